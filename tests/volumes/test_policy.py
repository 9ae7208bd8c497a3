"""What pods may have: pure rules, and refusals that say which lines would allow it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeplug.core import config, document
from nodeplug.core.errors import ConfigInvalid, PermissionRefused
from nodeplug.volumes.contract import Pod, Request
from nodeplug.volumes.policy import Allow, MemoryLimits, Policy
from nodeplug.volumes.service import implementation

POD = Pod(namespace="shop", name="till-0", uid="u", service_account="till")
GIB = 1 << 30


def asked(driver: str, pod: Pod = POD, *, read_only: bool = False, **options: str) -> Request:
    read = document.decode(implementation(driver).options, options)
    secrets = {"a": None} if driver == "secret" else None
    return Request(driver=driver, volume="v", target="/t", options=read, pod=pod, read_only=read_only, secrets=secrets)  # type: ignore[arg-type]  # a name is enough here


def allowed(policy: Policy, request: Request) -> bool:
    try:
        implementation(request.driver)().validate(request, policy)
    except PermissionRefused:
        return False
    return True


def from_toml(text: str) -> Policy:
    return config.section(Policy, tomllib.loads(text), "volumes", "a file")


NODE_LOOP = {"size": "1Gi", "scope": "node", "name": "cache"}


@pytest.mark.parametrize(
    ("request_", "without_policy"),
    [
        (asked("tmpfs", size="64Mi"), True),
        (asked("tmpfs", size="2Gi"), False),
        (asked("secret"), True),
        (asked("loop", size="1Gi"), True),
        (asked("loop", size="1Ti"), False),
        (asked("loop", **NODE_LOOP), False),
        (asked("bind", path="/var/log"), False),
        (asked("bind", path="/var/log", read_only=True), False),
        (asked("overlay", lower="/usr/share", size="1Mi"), False),
        (asked("overlay", image="/srv/base.img", size="1Mi"), False),
    ],
    ids=lambda value: f"{value.driver} {value.options}" if isinstance(value, Request) else str(value),
)
def test_without_a_policy_nothing_of_the_host_is_given(request_: Request, without_policy: bool) -> None:
    assert allowed(Policy(), request_) is without_policy


def test_the_refusal_has_the_lines_that_would_allow_it() -> None:
    with pytest.raises(PermissionRefused) as caught:
        implementation("bind")().validate(asked("bind", path="/var/log"), Policy())
    assert str(caught.value) == (
        "pods of namespace 'shop', service account 'till' may not have a bind volume of /var/log that can be written: "
        "no rule is for them; who runs the node allows it in /etc/nodeplug/nodeplug.toml by\n"
        "[[volumes.allow]]\n"
        'driver = "bind"\n'
        'namespaces = ["shop"]\n'
        'service_accounts = ["till"]\n'
        'roots = ["/var/log"]'
    )


names = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=20)
paths = st.lists(st.text("ab /\"\\',.:é\x01", min_size=1, max_size=12), min_size=1, max_size=3).map(
    lambda parts: [f"/{part.replace('/', '-')}" for part in parts]
)


@settings(deadline=None)
@given(
    namespace=names,
    account=names,
    wanted=st.one_of(st.just([]), paths),
    scope=st.sampled_from(["pod", "node"]),
    size=st.integers(0, 1 << 50),
    read_only=st.booleans(),
)
def test_the_lines_of_any_refusal_allow_what_was_refused(
    namespace: str, account: str, wanted: list[str], scope: str, size: int, read_only: bool
) -> None:
    pod = Pod(namespace=namespace, service_account=account)
    request = Request(driver="loop", volume="v", target="/t", options=None, pod=pod, read_only=read_only)
    closed = Policy(open=())
    with pytest.raises(PermissionRefused) as caught:
        closed.grant(request, size=size, scope=scope, wanted=wanted)
    lines = caught.value.hint.partition("\n")[2]
    given = from_toml(f"volumes.open = []\n{lines}").grant(request, size=size, scope=scope, wanted=wanted)
    assert given.largest >= size and len(given.roots) == len(wanted)


def rule(**fields: Any) -> Policy:
    return Policy(allow=(Allow(**{"driver": "bind", "namespaces": ("shop",), "roots": ("/var/log",), **fields}),))


@pytest.mark.parametrize(
    ("fields", "pod", "path", "expected"),
    [
        ({}, POD, "/var/log", True),
        ({}, POD, "/var/log/pods", True),
        ({}, POD, "/var/logs", False),
        ({}, POD, "/var", False),
        ({}, POD, "/", False),
        ({"roots": ("/",)}, POD, "/anything", True),
        ({"roots": ("/var/log/",)}, POD, "/var/log/pods", True),
        ({}, POD.replace(namespace="other"), "/var/log", False),
        ({"namespaces": ("*",)}, POD.replace(namespace="other"), "/var/log", True),
        ({"namespaces": ("sh*",)}, POD, "/var/log", True),
        ({"namespaces": ("sh*",)}, POD.replace(namespace="s"), "/var/log", False),
        ({"service_accounts": ("other",)}, POD, "/var/log", False),
        ({"service_accounts": ("other", "till")}, POD, "/var/log", True),
        ({"driver": "overlay"}, POD, "/var/log", False),
        ({"read_only": True}, POD, "/var/log", False),
    ],
)
def test_a_rule_is_for_some_pods_and_paths(fields: dict[str, Any], pod: Pod, path: str, expected: bool) -> None:
    assert allowed(rule(**fields), asked("bind", pod, path=path)) is expected


def test_a_read_only_rule_gives_what_is_only_read() -> None:
    assert allowed(rule(read_only=True), asked("bind", path="/var/log", read_only=True))


@pytest.mark.parametrize("path", ["/var/log/../../etc", "/var/log/.", "//var/log", "var/log", "/var/log/", "", "/a\0b"])
def test_a_path_that_does_not_say_where_it_leads_is_no_option(path: str) -> None:
    with pytest.raises(ConfigInvalid):
        asked("bind", path=path)


def test_rules_add_up_and_the_longest_root_is_the_one_that_is_opened() -> None:
    policy = Policy(
        allow=(
            Allow(driver="overlay", namespaces=("shop",), roots=("/srv", "/srv/a"), largest=5 * GIB),
            Allow(driver="overlay", namespaces=("*",), roots=("/usr",)),
        )
    )
    grant = policy.grant(
        asked("overlay", lower="/srv/a/b,/usr/x,/srv/c", size="5Gi"), wanted=("/srv/a/b", "/usr", "/srv/c")
    )
    assert grant.roots == ("/srv/a", "/usr", "/srv")
    assert grant.largest == 5 * GIB


def test_a_rule_may_give_more_than_every_pod_has_and_the_node_may_give_less() -> None:
    assert allowed(
        Policy(allow=(Allow(driver="tmpfs", namespaces=("shop",), largest=4 * GIB),)), asked("tmpfs", size="4Gi")
    )
    assert not allowed(Policy(tmpfs=MemoryLimits(largest=1 << 20)), asked("tmpfs", size="2Mi"))
    assert not allowed(Policy(open=()), asked("tmpfs", size="1Mi"))
    assert not allowed(Policy(open=("loop",)), asked("loop", **NODE_LOOP))


def test_the_settings_of_the_page_are_read() -> None:
    policy = from_toml(
        """
        [volumes]
        open = ["tmpfs"]
        [volumes.loop]
        total = "20Gi"
        [[volumes.allow]]
        driver = "bind"
        namespaces = ["monitoring"]
        service_accounts = ["*"]
        roots = ["/var/log"]
        """
    )
    assert (policy.open, policy.loop.total, policy.allow[0].roots) == (("tmpfs",), 20 * GIB, ("/var/log",))
    with pytest.raises(ConfigInvalid, match="did you mean roots"):
        from_toml('[[volumes.allow]]\ndriver = "bind"\nnamespaces = ["a"]\nroot = "/"')


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("loop", {"size": "1Mi"}, "1Mi is too little for ext4; 8Mi is the least"),
        ("loop", {"size": "299Mi", "fs": "xfs"}, "300Mi is the least"),
        ("loop", {"size": "1Gi", "scope": "node"}, "set the option name"),
        ("loop", {"size": "1Gi", "name": "a"}, "of scope pod, whose images have none"),
        ("overlay", {"size": "1Mi"}, "a copy of nothing, or of two things"),
        ("overlay", {"size": "1Mi", "lower": "/a", "image": "/b"}, "a copy of nothing, or of two things"),
        ("overlay", {"size": "1Mi", "lower": "/a", "upper": "loop"}, "1Mi is too little for ext4"),
    ],
)
def test_options_that_make_no_sense_together_are_refused_with_what_would(
    driver: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        implementation(driver)().validate(asked(driver, **options), Policy())


def test_a_nodes_image_needs_a_namespace_that_can_be_a_directory() -> None:
    for namespace in ("", "..", "a/b"):
        with pytest.raises(ConfigInvalid, match="is none"):
            implementation("loop")().validate(asked("loop", POD.replace(namespace=namespace), **NODE_LOOP), Policy())
