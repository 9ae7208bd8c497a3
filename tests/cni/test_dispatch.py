"""The door: every version with every command, every wrong variable and configuration, always an answer."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeplug.cni import (
    AddRequest,
    CheckRequest,
    DelRequest,
    GcRequest,
    Interface,
    IpConfig,
    NetConf,
    Plugin,
    Result,
    Route,
    StatusRequest,
)
from nodeplug.cni.contract import ContainerUnknown, FieldUnsupported
from nodeplug.core import errors, log
from nodeplug.core.document import integer
from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import key
from tests.cni.calls import COMMANDS, VERSIONS, ask, environment
from tests.ledger import Ledger

HOST = "/proc/self/ns/net"


class Conf(NetConf):
    mtu: int = key(integer(0, 65535), default=0)


class Toy(Plugin):
    """Answers, and keeps what it was asked."""

    name = "toy"
    config = Conf
    needs_netns = False
    asked: list[Any] = []  # noqa: RUF012  # a test's notebook

    def add(self, request: AddRequest) -> Result:
        self.asked.append(request)
        return Result(
            interfaces=(Interface(name="eth0", mac="02:00:00:00:00:01", sandbox="/run/netns/a", mtu=1400),),
            ips=(
                IpConfig(address=Net.parse("10.0.0.2/24"), gateway=Ip.parse("10.0.0.1"), interface=0),
                IpConfig(address=Net.parse("fd00::2/64"), interface=0),
            ),
            routes=(Route(dst=Net.parse("0.0.0.0/0"), gw=Ip.parse("10.0.0.1"), mtu=1300, table=0),),
        )

    def delete(self, request: DelRequest) -> None:
        self.asked.append(request)

    def check(self, request: CheckRequest) -> None:
        self.asked.append(request)

    def gc(self, request: GcRequest) -> None:
        self.asked.append(request)

    def status(self, request: StatusRequest) -> None:
        self.asked.append(request)


@pytest.fixture(autouse=True)
def _new_notebook() -> None:
    Toy.asked.clear()


PREVIOUS = {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24"}]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_version_allows_the_commands_it_has(version: str, command: str) -> None:
    config: dict[str, Any] = {"cniVersion": version, "name": "net", "type": "toy", "cni.dev/valid-attachments": []}
    if command == "CHECK":
        config["prevResult"] = {**PREVIOUS, "cniVersion": version} if version > "0.2.0" else {"cniVersion": version}
    code, answer, stderr = ask(Toy, environment(command), config)
    since = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.get(command, "0.1.0")
    if version < since:
        assert (code, answer["code"], answer["msg"]) == (1, 1, f"config version does not allow {command}")
        assert Toy.asked == []
    else:
        assert (code, stderr) == (0, "")
        assert len(Toy.asked) == (0 if command == "VERSION" else 1)
        assert (answer is not None) == (command in ("ADD", "VERSION"))


FIRST = {
    "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]},
    "ip6": {"ip": "fd00::2/64"},
    "dns": {},
}
THIRD = {
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a"}],
    "ips": [
        {"version": "4", "address": "10.0.0.2/24", "interface": 0, "gateway": "10.0.0.1"},
        {"version": "6", "address": "fd00::2/64", "interface": 0},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    "dns": {},
}
CURRENT = {
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1400, "sandbox": "/run/netns/a"}],
    "ips": [
        {"address": "10.0.0.2/24", "interface": 0, "gateway": "10.0.0.1"},
        {"address": "fd00::2/64", "interface": 0},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1300, "table": 0}],
}


@pytest.mark.parametrize(
    ("version", "shape"),
    [*((v, FIRST) for v in VERSIONS[:2]), *((v, THIRD) for v in VERSIONS[2:5]), *((v, CURRENT) for v in VERSIONS[5:])],
)
def test_a_result_has_the_shape_of_its_version_and_reads_back(version: str, shape: dict[str, Any]) -> None:
    code, answer, _ = ask(Toy, environment("ADD"), {"cniVersion": version, "name": "net"})
    assert (code, answer) == (0, {"cniVersion": version, **shape})
    code, _, _ = ask(Toy, environment("DEL"), {"cniVersion": version, "name": "net", "prevResult": answer})
    assert code == 0
    previous = Toy.asked[-1].prev_result
    assert [str(ip.address) for ip in previous.ips] == ["10.0.0.2/24", "fd00::2/64"]
    assert [str(route.dst) for route in previous.routes] == ["0.0.0.0/0"]


@pytest.mark.parametrize("version", [{}, {"cniVersion": ""}, {"cniVersion": None}])
def test_a_configuration_without_a_version_is_of_the_first(version: dict[str, Any]) -> None:
    _, answer, _ = ask(Toy, environment("ADD"), {"name": "net", **version})
    assert (answer["cniVersion"], "ip4" in answer) == ("0.1.0", True)


def test_a_result_without_addresses_has_no_form_in_the_first_versions_and_is_taken_back() -> None:
    class Layer2(Toy):
        def add(self, request: AddRequest) -> Result:
            return Result(interfaces=(Interface(name="eth0"),))

    code, answer, _ = ask(Layer2, environment("ADD"), {"cniVersion": "0.2.0", "name": "net"})
    assert (code, answer["msg"]) == (1, "cannot convert: no valid IP addresses")
    assert [(type(asked), asked.attachment.ifname) for asked in Toy.asked] == [(DelRequest, "eth0")]
    assert ask(Layer2, environment("ADD"), {"cniVersion": "0.3.0", "name": "net"})[0] == 0


@pytest.mark.parametrize(
    ("command", "changes", "code", "says"),
    [
        (
            "ADD",
            {"CNI_CONTAINERID": None, "CNI_PATH": ""},
            4,
            "required env variables [CNI_CONTAINERID,CNI_PATH] missing",
        ),
        ("DEL", {"CNI_NETNS": None}, 0, ""),
        ("DEL", {"CNI_IFNAME": None}, 4, "required env variables [CNI_IFNAME] missing"),
        ("GC", {"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None}, 0, ""),
        ("GC", {"CNI_IFNAME": "much/too:long and wrong"}, 0, ""),
        ("STATUS", {"CNI_PATH": None}, 4, "required env variables [CNI_PATH] missing"),
        ("ADD", {"CNI_CONTAINERID": "../etc"}, 4, "invalid characters in CNI_CONTAINERID"),
        ("ADD", {"CNI_CONTAINERID": "-a"}, 4, "invalid characters in CNI_CONTAINERID"),
        ("ADD", {"CNI_CONTAINERID": "ä"}, 4, "invalid characters in CNI_CONTAINERID"),
        ("ADD", {"CNI_IFNAME": "sixteen-bytes-xx"}, 4, "invalid CNI_IFNAME: it is longer than 15 bytes"),
        ("ADD", {"CNI_IFNAME": "."}, 4, "invalid CNI_IFNAME: it is . or .."),
        ("ADD", {"CNI_IFNAME": ".."}, 4, "invalid CNI_IFNAME: it is . or .."),
        ("ADD", {"CNI_IFNAME": "a/b"}, 4, "invalid CNI_IFNAME: it holds /, : or white space"),
        ("ADD", {"CNI_IFNAME": "a:b"}, 4, "invalid CNI_IFNAME: it holds /, : or white space"),
        ("ADD", {"CNI_IFNAME": "a\u2003b"}, 4, "invalid CNI_IFNAME: it holds /, : or white space"),
        ("MOVE", {}, 4, "unknown CNI_COMMAND: MOVE"),
        ("add", {}, 4, "unknown CNI_COMMAND: add"),
        ("VERSION", {"CNI_PATH": "dummy", "CNI_NETNS": "dummy", "CNI_IFNAME": "dummy"}, 0, ""),
    ],
)
def test_variables_are_checked_as_the_reference_does(
    command: str, changes: dict[str, str | None], code: int, says: str
) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": []}
    exit_code, answer, _ = ask(Toy, environment(command, **changes), config)
    if code == 0:
        assert exit_code == 0
    else:
        assert (exit_code, answer["code"], answer["msg"]) == (1, code, says)
        assert Toy.asked == []


@pytest.mark.parametrize(
    ("config", "code", "says"),
    [
        (b"", 6, "empty"),
        (b"{", 6, "not JSON"),
        (b"[]", 6, "not a JSON object"),
        (b"\xff{}", 6, "not UTF-8"),
        (b"null", 7, "missing network name"),
        ({}, 7, "missing network name"),
        ({"name": ""}, 7, "missing network name"),
        ({"name": "a/b"}, 7, "invalid characters found in network name"),
        ({"name": 5}, 7, "not valid"),
        ({"name": "net", "cniVersion": "9.9.9"}, 1, "incompatible CNI versions"),
        ({"name": "net", "cniVersion": "1.0"}, 1, "incompatible CNI versions"),
        ({"name": "net", "cniVersion": "not a version"}, 1, "incompatible CNI versions"),
        ({"name": "net", "cniVersion": 1.0}, 7, "not valid"),
        ({"name": "net", "mtu": "1500"}, 7, "not valid"),
        ({"name": "net", "mtu": 1500.0}, 7, "not valid"),
        ({"name": "net", "prevResult": {"cniVersion": "1.0.0", "ips": [{}]}}, 7, "not valid"),
        ({"name": "net", "prevResult": 5}, 7, "not valid"),
        ({"name": "net", "prevResult": {"cniVersion": "3.0.0"}}, 1, "$.prevResult has cniVersion '3.0.0'"),
        ({"name": "net", "ipam": {"type": "../evil"}}, 0, ""),
    ],
)
def test_a_bad_configuration_has_its_code_and_a_sentence(config: object, code: int, says: str) -> None:
    exit_code, answer, _ = ask(Toy, environment("ADD"), config)
    if code == 0:
        assert exit_code == 0
    else:
        assert (exit_code, answer["code"]) == (1, code)
        assert says in answer["msg"]
        assert Toy.asked == []


def test_problems_of_a_configuration_are_all_told_with_their_paths() -> None:
    config = {"name": "net", "mtu": -1, "prevResult": 5}
    _, answer, _ = ask(Toy, environment("ADD"), config)
    assert answer["details"] == "$.prevResult: expected an object with keys, got a whole number"
    _, answer, _ = ask(Toy, environment("ADD"), {"name": "net", "mtu": -1})
    assert answer["details"] == "$.mtu: expected a whole number from 0 to 65535, got -1"


def test_bad_json_is_told_before_an_unknown_command() -> None:
    assert ask(Toy, environment("MOVE"), b"{")[1]["code"] == 6


def test_keys_are_matched_without_regard_to_case() -> None:
    code, _, _ = ask(Toy, environment("ADD"), {"NAME": "net", "CniVersion": "1.0.0", "Mtu": 1400, "other": {"x": 1}})
    assert (code, Toy.asked[0].config.mtu, Toy.asked[0].version) == (0, 1400, "1.0.0")


def test_without_a_command_a_person_is_told_what_it_is() -> None:
    code, answer, stderr = ask(Toy, environment("", CNI_COMMAND=None))
    assert (code, answer) == (0, None)
    assert "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0" in stderr


def test_version_needs_no_configuration() -> None:
    code, answer, _ = ask(Toy, environment("VERSION"), b"not read")
    assert (code, answer) == (0, {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)})


def test_a_plugin_that_lacks_a_version_refuses_it() -> None:
    class Newer(Toy):
        versions = ("0.4.0", "1.0.0")

    code, answer, _ = ask(Newer, environment("ADD"), {"cniVersion": "0.3.1", "name": "net"})
    assert (code, answer["code"], answer["details"]) == (1, 1, 'config is "0.3.1", plugin supports [0.4.0 1.0.0]')


class Strict(Toy):
    args = ("IP", "MAC")


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        ("", {}),
        ("IP=10.0.0.5;MAC=02:00:00:00:00:01", {"IP": "10.0.0.5", "MAC": "02:00:00:00:00:01"}),
        ("IgnoreUnknown=1;K8S_POD_NAME=a", {"IgnoreUnknown": "1", "K8S_POD_NAME": "a"}),
        ("IgnoreUnknown=TRUE;ip=1", {"IgnoreUnknown": "TRUE", "ip": "1"}),
    ],
)
def test_args_are_read_as_the_reference_does(given_: str, found: dict[str, str]) -> None:
    code, _, _ = ask(Strict, environment("ADD", CNI_ARGS=given_), {"name": "net"})
    assert (code, Toy.asked[0].args) == (0, found)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("IP", "invalid pair 'IP'"),
        ("IP=1=2", "invalid pair 'IP=1=2'"),
        ("K8S_POD_NAME=a", "unknown keys K8S_POD_NAME"),
        ("IgnoreUnknown=0;x=1", "unknown keys x"),
        ("IgnoreUnknown=perhaps", "IgnoreUnknown is 'perhaps'"),
        ("ip=10.0.0.5", "unknown keys ip"),
    ],
)
def test_args_that_the_plugin_cannot_take_are_refused(given_: str, says: str) -> None:
    code, answer, _ = ask(Strict, environment("ADD", CNI_ARGS=given_), {"name": "net"})
    assert (code, answer["code"]) == (1, 4)
    assert says in answer["msg"]
    # One that takes none does not mind; nor does DEL, which a runtime sends with the same variables.
    assert ask(Toy, environment("ADD", CNI_ARGS=given_), {"name": "net"})[0] == 0
    assert ask(Strict, environment("DEL", CNI_ARGS=given_), {"name": "net"})[0] == 0


def test_gc_without_a_list_removes_nothing_and_with_one_gets_it() -> None:
    config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net"}
    code, _, stderr = ask(Toy, environment("GC"), config)
    assert (code, Toy.asked) == (0, [])
    assert "nothing was removed" in stderr
    for spelling in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        ask(Toy, environment("GC"), {**config, spelling: [{"containerID": "a", "ifname": "eth0"}]})
        assert [str(attachment) for attachment in Toy.asked[-1].valid] == ["net/a/eth0"]
    ask(Toy, environment("GC"), {**config, "cni.dev/valid-attachments": []})
    assert Toy.asked[-1].valid == frozenset()


@pytest.mark.parametrize(
    "wrong", [{}, "x", [5], [{"containerID": "a"}], [{"ifname": "eth0"}], [{"containerID": 1, "ifname": ""}]]
)
def test_a_list_that_cannot_be_read_removes_nothing(wrong: object) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": wrong}
    code, answer, _ = ask(Toy, environment("GC"), config)
    assert (code, answer["code"], Toy.asked) == (1, 7, [])
    assert "nothing was removed" in answer["msg"]


def test_check_needs_the_result_of_add() -> None:
    code, answer, _ = ask(Toy, environment("CHECK"), {"cniVersion": "1.0.0", "name": "net"})
    assert (code, answer["code"], answer["msg"]) == (1, 7, "Required prevResult missing")


class Inside(Toy):
    needs_netns = True


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@pytest.mark.needs("sandbox")
def test_the_hosts_own_namespace_is_refused_before_the_plugin_is_called(command: str) -> None:
    config = {"cniVersion": "1.0.0", "name": "net", "prevResult": PREVIOUS}
    code, answer, _ = ask(Inside, environment(command, CNI_NETNS=HOST), config)
    assert (code, answer["code"], Toy.asked) == (1, 8, [])
    for override in ("1", "TRUE", "true"):
        assert ask(Inside, environment(command, CNI_NETNS=HOST, CNI_NETNS_OVERRIDE=override), config)[0] == 0


@pytest.mark.needs("sandbox")
def test_delete_takes_the_hosts_own_namespace_for_one_that_is_gone() -> None:
    code, _, stderr = ask(Inside, environment("DEL", CNI_NETNS=HOST), {"name": "net"})
    assert (code, Toy.asked[0].netns) == (0, None)
    assert "the plugin's own namespace" in stderr


@pytest.mark.needs("sandbox")
def test_a_namespace_that_is_gone_or_none_fails_add_and_not_delete(ledger: Ledger) -> None:
    plain = ledger.directory() / "netns"
    plain.write_text("")
    for path in ("/run/netns/nothing-here", str(plain), "/proc/self/ns/mnt", str(ledger.directory())):
        code, answer, _ = ask(Inside, environment("ADD", CNI_NETNS=path), {"name": "net"})
        assert (code, answer["code"]) == (1, 8)
        assert path in answer["msg"]
        assert ask(Inside, environment("DEL", CNI_NETNS=path), {"name": "net"})[0] == 0
        assert Toy.asked[-1].netns is None


@pytest.mark.needs("sandbox")
def test_a_namespace_may_come_as_a_descriptor_which_is_then_believed(ledger: Ledger) -> None:
    space = ledger.netns()
    fd = os.open(space.path, os.O_RDONLY)
    try:
        code, _, _ = ask(Inside, environment("ADD", CNI_NETNS="/run/netns/other"), {"name": "net"}, netns=fd)
        assert code == 0
        os.fstat(fd)  # the caller's descriptor stays the caller's
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("error", "code", "status_code"),
    [
        (errors.ConfigInvalid("x"), 7, 7),
        (FieldUnsupported("x"), 2, 2),
        (ContainerUnknown("x"), 3, 3),
        (errors.TryAgain("x"), 11, 11),
        (errors.TimedOut("x"), 11, 11),
        (errors.Unavailable("x"), 5, 50),
        (errors.PermissionRefused("x"), 5, 50),
        (errors.Refused("x"), 100, 100),
        (OSError(28, "No space left on device"), 5, 50),
        (ZeroDivisionError("x"), 999, 999),
    ],
)
def test_errors_have_codes(error: Exception, code: int, status_code: int) -> None:
    class Failing(Toy):
        def add(self, request: AddRequest) -> Result:
            raise error

        def status(self, request: StatusRequest) -> None:
            raise error

    config = {"cniVersion": "1.1.0", "name": "net"}
    assert ask(Failing, environment("ADD"), config)[1]["code"] == code
    assert ask(Failing, environment("STATUS"), config)[1]["code"] == status_code


def test_each_operation_is_one_log_record_with_its_pod_and_no_environment() -> None:
    lines: list[bytes] = []
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1"
    to = log.Log(lambda line, _level: lines.append(line))
    ask(Toy, environment("ADD", CNI_ARGS=args, AWS_SECRET="hunter2"), {"name": "net"}, to=to)
    (line,) = lines
    found = json.loads(line)
    assert (found["contract"], found["op"], found["id"], found["outcome"]) == ("cni", "toy ADD", "net/cid/eth0", "ok")
    assert found["pod"] == {"namespace": "default", "name": "web", "uid": "u1"}
    assert b"hunter2" not in line


def test_a_name_that_is_no_plugin_of_ours_says_which_are() -> None:
    code, answer, _ = ask("brigde", environment("ADD"), {"name": "net"})
    assert (code, answer["code"]) == (1, 7)
    assert "loopback" in answer["details"]


words = st.sampled_from(["", "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "eth0", "cid", "net", "1.0.0", "/"])
variables = st.dictionaries(
    st.sampled_from(["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"]),
    words | st.text(st.characters(exclude_characters="\0"), max_size=20),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 70000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cniVersion", "name", "ips", "address", "routes", "dst", "dns", "mtu", "x"]), inner
        )
    ),
    max_leaves=10,
)
configs = st.dictionaries(
    st.sampled_from(["cniVersion", "name", "prevResult", "mtu", "ipam", "NAME", "cni.dev/valid-attachments"]), values
).map(lambda found: {"name": "net", "cniVersion": "1.1.0", **found})


@settings(max_examples=300)
@given(variables, st.binary(max_size=50) | configs)
def test_whatever_comes_the_answer_is_json_and_the_exit_0_or_1(env: dict[str, str], config: object) -> None:
    code, answer, _ = ask(Strict, env, config)
    assert code in (0, 1)
    if code == 1:
        assert isinstance(answer["code"], int) and answer["code"] != 999, answer
        assert answer["msg"]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=4), st.sampled_from(VERSIONS))
def test_any_result_survives_the_chain(addresses: list[tuple[int, int]], version: str) -> None:
    result = Result(ips=tuple(IpConfig(address=Net(ip=Ip.of(v, 4), prefix=p)) for v, p in addresses))

    class Giving(Toy):
        def add(self, request: AddRequest) -> Result:
            return result

    code, answer, _ = ask(Giving, environment("ADD"), {"name": "net", "cniVersion": version})
    if version < "0.3.0" and not addresses:
        assert (code, answer["code"]) == (1, 7)
        return
    assert code == 0
    ask(Toy, environment("ADD"), {"name": "net", "cniVersion": version, "prevResult": answer})
    kept = result.ips[:1] if version < "0.3.0" else result.ips
    assert Toy.asked[-1].prev_result.ips == kept
