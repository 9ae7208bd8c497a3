"""static: every source of addresses, which one wins, and that the reference gives the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.child import run
from tests.cni.calls import VERSIONS, ask, environment
from tests.needs import needs

REFERENCE = "/usr/lib/cni/static"
Implementation = Callable[..., tuple[int, Any]]


def ours(command: str, config: object, args: str = "") -> tuple[int, Any]:
    code, answer, _ = ask("static", environment(command, CNI_ARGS=args or None), config)
    return code, answer


def reference(command: str, config: object, args: str = "") -> tuple[int, Any]:
    env = environment(command, CNI_ARGS=args or None)
    done = run([REFERENCE], env=env, stdin=json.dumps(config).encode())
    return done.code, json.loads(done.stdout) if done.stdout else None


BOTH = [ours, pytest.param(reference, marks=needs(f"file:{REFERENCE}"))]


@pytest.fixture(params=BOTH, ids=["ours", "reference"])
def plugin(request: pytest.FixtureRequest) -> Implementation:
    found: Implementation = request.param
    return found


def conf(version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    """A configuration; `keys` go into `ipam`, but for `runtimeConfig`, `args` and `prevResult`."""
    top = {name: keys.pop(name) for name in ("runtimeConfig", "args", "prevResult") if name in keys}
    return {"cniVersion": version, "name": "net", "type": "bridge", "ipam": {"type": "static", **keys}, **top}


CONFIGURED = [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}]
ROUTES = [
    {"dst": "0.0.0.0/0"},
    {"dst": "192.168.0.0/16", "gw": "10.1.0.9"},
    {"dst": "192.168.0.0/16", "gw": "10.1.0.8"},
]
DNS = {"nameservers": ["192.0.2.1"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:5"]}


def test_add_gives_what_is_configured_and_delete_has_nothing_to_do(plugin: Implementation) -> None:
    config = conf(addresses=CONFIGURED, routes=ROUTES, dns=DNS)
    code, result = plugin("ADD", config)
    wanted = {"cniVersion": "1.0.0", "ips": CONFIGURED, "routes": ROUTES, "dns": DNS}
    assert (code, result) == (0, wanted)
    assert plugin("DEL", config) == (0, None)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_its_form(version: str) -> None:
    code, result = ours("ADD", conf(version, addresses=CONFIGURED))
    assert (code, result["cniVersion"]) == (0, version)
    if version < "0.3.0":
        assert result["ip4"] == {"ip": "10.1.0.5/24", "gateway": "10.1.0.1"}
        assert result["ip6"] == {"ip": "fd00::5/64"}
    else:
        family = [{"version": "4"}, {"version": "6"}] if version < "1.0.0" else [{}, {}]
        assert result["ips"] == [{**extra, **ip} for extra, ip in zip(family, CONFIGURED, strict=True)]


@pytest.mark.parametrize("version", VERSIONS)
def test_several_gateways_of_one_destination_are_all_given(version: str) -> None:
    """Of which the plugin that asked makes one route with several next hops (ECMP)."""
    code, result = ours("ADD", conf(version, addresses=CONFIGURED, routes=ROUTES))
    assert code == 0
    found = result["ip4"]["routes"] if version < "0.3.0" else result["routes"]
    assert [route["gw"] for route in found if route["dst"] == "192.168.0.0/16"] == ["10.1.0.9", "10.1.0.8"]


SOURCES = {
    "configuration": ({}, "", ["10.1.0.5/24 10.1.0.1", "fd00::5/64"]),
    "CNI_ARGS adds": ({}, "IP=10.7.0.5/24", ["10.1.0.5/24 10.1.0.1", "fd00::5/64", "10.7.0.5/24"]),
    "CNI_ARGS adds one with its gateway": (
        {},
        "IP=10.7.0.5/24;GATEWAY=10.7.0.1",
        ["10.1.0.5/24 10.1.0.1", "fd00::5/64", "10.7.0.5/24 10.7.0.1"],
    ),
    "CNI_ARGS adds several with their gateways": (
        {},
        "IP=10.7.0.5/24, fd07::5/64;GATEWAY=10.7.0.1,fd07::1;IgnoreUnknown=1;K8S_POD_NAME=x",
        ["10.1.0.5/24 10.1.0.1", "fd00::5/64", "10.7.0.5/24 10.7.0.1", "fd07::5/64 fd07::1"],
    ),
    "the last gateway of a network counts": (
        {},
        "IP=10.7.0.5/24;GATEWAY=10.7.0.1,10.7.0.2",
        ["10.1.0.5/24 10.1.0.1", "fd00::5/64", "10.7.0.5/24 10.7.0.2"],
    ),
    "a gateway serves the addresses of CNI_ARGS only": (
        {},
        "GATEWAY=10.1.0.77",
        ["10.1.0.5/24 10.1.0.1", "fd00::5/64"],
    ),
    "empty variables say nothing": ({}, "IP=;GATEWAY=", ["10.1.0.5/24 10.1.0.1", "fd00::5/64"]),
    "args replace": ({"args": {"cni": {"ips": ["10.6.0.5/24"]}}}, "IP=10.7.0.5/24", ["10.6.0.5/24"]),
    "the runtime replaces": (
        {"args": {"cni": {"ips": ["10.6.0.5/24"]}}, "runtimeConfig": {"ips": ["10.5.0.5/24", "fd05::5/64"]}},
        "IP=10.7.0.5/24",
        ["10.5.0.5/24", "fd05::5/64"],
    ),
    "empty lists replace nothing": (
        {"args": {"cni": {"ips": []}}, "runtimeConfig": {"ips": []}},
        "",
        ["10.1.0.5/24 10.1.0.1", "fd00::5/64"],
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_order_of_sources(plugin: Implementation, source: str) -> None:
    top, args, wanted = SOURCES[source]
    code, result = plugin("ADD", conf(addresses=CONFIGURED, **top), args)
    assert code == 0
    assert [" ".join([ip["address"], *([ip["gateway"]] if "gateway" in ip else [])]) for ip in result["ips"]] == wanted


@pytest.mark.parametrize(
    ("top", "args", "says"),
    [
        (
            {"addresses": [{"address": "10.1.0.5"}]},
            "",
            "$.ipam.addresses[0].address: '10.1.0.5' is not an address with",
        ),
        ({"addresses": [{"gateway": "10.1.0.5"}]}, "", "$.ipam.addresses[0].address: '' is not an address with"),
        ({"addresses": [{"address": "10.1.0.5/33"}]}, "", "$.ipam.addresses[0].address: '10.1.0.5/33' is not"),
        (
            {"addresses": [{"address": "10.1.0.5/24", "gateway": "x"}]},
            "",
            "$.ipam.addresses[0].gateway: 'x' is not an IP",
        ),
        ({"addresses": "all"}, "", "$.ipam.addresses: expected a list, got a string"),
        ({}, "IP=10.7.0.5", "CNI_ARGS: IP: '10.7.0.5' is not an address with a prefix length"),
        ({}, "IP=10.7.0.5/24,", "CNI_ARGS: IP: '' is not an address with a prefix length"),
        ({}, "IP=10.7.0.5/24;GATEWAY=x", "CNI_ARGS: GATEWAY: 'x' is not an IP address"),
        ({}, "IP=10.7.0.5/24;MAC=02:00:00:00:00:01", "CNI_ARGS: unknown keys MAC"),
        ({"args": {"cni": {"ips": ["10.6.0.5"]}}}, "", "$.args.cni.ips[0]: '10.6.0.5' is not an address with"),
        ({"runtimeConfig": {"ips": ["10.5.0.5"]}}, "", "$.runtimeConfig.ips[0]: '10.5.0.5' is not an address with"),
        ({"routes": [{"dst": "0.0.0.0"}]}, "", "$.ipam.routes[0].dst: '0.0.0.0' is not an address with"),
    ],
)
def test_each_fault_has_its_sentence(plugin: Implementation, top: dict[str, Any], args: str, says: str) -> None:
    code, error = plugin("ADD", conf(**top), args)
    assert code == 1
    if plugin is ours:
        assert says in f"{error['msg']} {error.get('details', '')}"
        assert error["code"] in (4, 7)


@pytest.mark.parametrize(
    "top",
    [{}, {"args": {"cni": {"ips": ["10.6.0.5/24"]}}}, {"runtimeConfig": {"ips": ["10.5.0.5/24"]}}],
    ids=["alone", "with args", "with runtimeConfig"],
)
def test_a_configuration_without_ipam_is_refused(plugin: Implementation, top: dict[str, Any]) -> None:
    config = conf(**top)
    del config["ipam"]
    code, error = plugin("ADD", config)
    assert code == 1
    assert "ipam" in f"{error['msg']} {error.get('details', '')}"


def test_an_address_that_is_replaced_may_be_wrong(plugin: Implementation) -> None:
    code, result = plugin("ADD", conf(addresses=[{"address": "soon"}], runtimeConfig={"ips": ["10.5.0.5/24"]}))
    assert (code, result["ips"]) == (0, [{"address": "10.5.0.5/24"}])


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_first_versions_have_room_for_one_address_of_a_family(plugin: Implementation, version: str) -> None:
    code, error = plugin("ADD", conf(version, addresses=CONFIGURED), "IP=10.7.0.5/24")
    assert (code, error["msg"]) == (1, f"CNI version {version} does not support more than 1 address per family")


def test_no_address_at_all_is_a_result_where_the_version_can_say_so(plugin: Implementation) -> None:
    code, result = plugin("ADD", conf())
    assert (code, "ips" in result) == (0, False)
    assert plugin("ADD", conf("0.2.0"))[0] == 1


@pytest.mark.parametrize("ipam", [{"addresses": "junk"}, {"addresses": [{"address": 7}]}, {"dns": []}])
def test_delete_reads_nothing(plugin: Implementation, ipam: dict[str, Any]) -> None:
    assert plugin("DEL", conf(**ipam), "JUNK") == (0, None)


def checked(*ips: dict[str, Any]) -> dict[str, Any]:
    return conf(addresses=CONFIGURED, prevResult={"cniVersion": "1.0.0", "ips": list(ips)})


def test_check_is_content_with_what_add_gave(plugin: Implementation) -> None:
    _, result = plugin("ADD", conf(addresses=CONFIGURED))
    assert plugin("CHECK", conf(addresses=CONFIGURED, prevResult=result)) == (0, None)


def test_check_notices_another_gateway(plugin: Implementation) -> None:
    code, error = plugin("CHECK", checked({**CONFIGURED[0], "gateway": "10.1.0.2"}, CONFIGURED[1]))
    assert code == 1
    assert "Failed to match addr 10.1.0.5 on interface eth0" in error["msg"]


def test_check_notices_an_address_that_is_missing() -> None:
    code, error = ours("CHECK", checked(CONFIGURED[0]))
    assert (code, error["code"]) == (1, 100)
    assert "the result lacks fd00::5" in error["msg"]


def test_status_tells_a_configuration_that_no_add_can_use() -> None:
    assert ours("STATUS", conf("1.1.0", addresses=CONFIGURED)) == (0, None)
    # Its addresses may come from the runtime, which sends them with ADD only.
    assert ours("STATUS", conf("1.1.0")) == (0, None)
    assert ours("STATUS", conf("1.1.0", addresses="x"))[1]["code"] == 7
    assert ours("GC", {**conf("1.1.0"), "cni.dev/valid-attachments": []}) == (0, None)


# Whatever is said, the reference understands the same

addresses = st.sampled_from(
    ["10.1.0.5/24", "10.1.0.6/16", "10.2.0.5/8", "fd00::5/64", "10.3.0.1/32", "10.1.0.5", "", "x"]
)
gateways = st.sampled_from(["10.1.0.1", "10.2.0.1", "fd00::1", "", "x"])
listed = st.lists(addresses, max_size=3)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    keys: dict[str, Any] = {"addresses": []}
    for address in draw(listed):
        keys["addresses"].append({"address": address})
        if draw(st.booleans()):
            keys["addresses"][-1]["gateway"] = draw(gateways)
    if draw(st.booleans()):
        keys["args"] = {"cni": {"ips": draw(listed)}}
    if draw(st.booleans()):
        keys["runtimeConfig"] = {"ips": draw(listed)}
    pairs = []
    if draw(st.booleans()):
        pairs.append("IP=" + ",".join(draw(listed)))
    if draw(st.booleans()):
        pairs.append("GATEWAY=" + ",".join(draw(st.lists(gateways, max_size=2))))
    return conf(draw(st.sampled_from(VERSIONS[:-1])), **keys), ";".join(pairs)


@needs(f"file:{REFERENCE}")
@given(configurations())
@settings(deadline=None, max_examples=80)
def test_any_configuration_gives_what_the_reference_gives(given_: tuple[dict[str, Any], str]) -> None:
    config, args = given_
    mine, theirs = ours("ADD", config, args), reference("ADD", config, args)
    assert mine[0] == theirs[0]
    if mine[0] == 0:
        assert {"dns": {}, **mine[1]} == theirs[1]  # the reference writes dns where it is empty, too
