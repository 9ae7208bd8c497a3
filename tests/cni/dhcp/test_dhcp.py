"""dhcp as a plugin: leases from a real server, given back, checked, collected; and servers that are no use."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from nodeplug.core import chore, files
from tests.child import run, until
from tests.cni.calls import VERSIONS, ask, environment
from tests.cni.dhcp.lan import (
    ACK,
    DIRECTORY,
    DISCOVER,
    NAK,
    OFFER,
    RELEASE,
    REQUEST,
    SERVER,
    Dnsmasq,
    Faulty,
    Heard,
    Lan,
    ipv4,
    leases,
    reply,
    the_lease,
)
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "program:dnsmasq")


def conf(version: str = "1.1.0", *, network: str = "lan", **ipam: Any) -> dict[str, Any]:
    """As a main plugin of anybody's hands it on."""
    return {"cniVersion": version, "name": network, "type": "macvlan", "ipam": {"type": "dhcp", **ipam}}


def call(
    command: str, pod: Space | None, config: dict[str, Any] | None = None, **variables: str | None
) -> tuple[int, Any, str]:
    where = {} if pod is None else {"CNI_NETNS": pod.path, "CNI_CONTAINERID": pod.name}
    return ask("dhcp", environment(command, **{**where, **variables}), config or conf())


def add(pod: Space, config: dict[str, Any] | None = None, **variables: str | None) -> Any:
    code, answer, _ = call("ADD", pod, config, **variables)
    assert code == 0, answer
    return answer


def refused(command: str, pod: Space | None, config: dict[str, Any] | None = None, **variables: str | None) -> Any:
    code, answer, _ = call(command, pod, config, **variables)
    assert code == 1, answer
    return answer


def delete(pod: Space, config: dict[str, Any] | None = None, **variables: str | None) -> str:
    """What it said on stderr."""
    code, answer, stderr = call("DEL", pod, config, **variables)
    assert (code, answer) == (0, None), answer
    return stderr


def give(pod: Space, result: Any, ifname: str = "eth0") -> None:
    """What the main plugin does with a result."""
    pod.run("ip", "address", "add", result["ips"][0]["address"], "dev", ifname).ok()


class Kept:
    """Somebody who renews leases, as far as a plugin can tell."""

    def __init__(self, ledger: Ledger) -> None:
        self._lock = files.range_lock(chore.LOCK, "dhcp")
        self._lock.__enter__()
        ledger.adopt("who renews", lambda: self._lock.__exit__())


@pytest.fixture
def kept(ledger: Ledger) -> Kept:
    return Kept(ledger)


@pytest.mark.parametrize("version", VERSIONS)
def test_dhcp_configures_and_deconfigures_a_link_with_static_routes(lan: Lan, version: str) -> None:
    """Options 3 and 33: the reference suite's own server sends these."""
    server = Dnsmasq(lan, "--dhcp-option=3,10.5.0.1", "--dhcp-option=33,10.9.0.0,10.5.0.2,192.168.7.0,10.5.0.3")
    pod = lan.pod()
    result = add(pod, conf(version))
    wanted = [("10.0.0.0/8", "10.5.0.2"), ("192.168.7.0/24", "10.5.0.3"), ("0.0.0.0/0", "10.5.0.1")]
    if version < "0.3.0":
        assert result["ip4"]["ip"].endswith("/24") and result["ip4"]["gateway"] == "10.5.0.1"
        address, routes = result["ip4"]["ip"], result["ip4"]["routes"]
    else:
        (ip,) = result["ips"]
        assert ip["gateway"] == "10.5.0.1" and "interface" not in ip and "interfaces" not in result
        address, routes = ip["address"], result["routes"]
    assert [(route["dst"], route["gw"]) for route in routes] == wanted
    identifier = f"\0{pod.name}/lan/eth0".encode()
    assert server.leases() == {address.partition("/")[0]: identifier}
    delete(pod, conf(version))
    until(lambda: not server.leases(), "the server has it back")
    assert leases() == []


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0", "1.1.0"])
def test_dhcp_classless_routes_supersede_static_ones_and_the_router(lan: Lan, version: str) -> None:
    Dnsmasq(
        lan,
        "--dhcp-option=3,10.5.0.9",
        "--dhcp-option=33,10.9.0.0,10.5.0.9",
        "--dhcp-option=121,169.254.169.254/32,0.0.0.0,10.9.0.0/16,10.5.0.2,0.0.0.0/0,10.5.0.1",
    )
    pod = lan.pod()
    result = add(pod, conf(version))
    direct, *others = result["routes"]
    assert direct["dst"] == "169.254.169.254/32" and "gw" not in direct
    assert direct.get("scope") == (253 if version >= "1.0.0" else None)
    assert others == [{"dst": "10.9.0.0/16", "gw": "10.5.0.2"}, {"dst": "0.0.0.0/0", "gw": "10.5.0.1"}]
    assert result["ips"][0]["gateway"] == "10.5.0.1"
    delete(pod)


def test_dhcp_names_and_the_mtu_are_passed_on_and_priority_is_the_metric(lan: Lan) -> None:
    Dnsmasq(
        lan,
        "--dhcp-option=6,10.5.0.53,10.5.0.54",
        "--dhcp-option=15,pods.test",
        "--dhcp-option=119,a.pods.test,b.pods.test",
        "--dhcp-option=26,1400",
    )
    pod = lan.pod()
    result = add(pod, conf(priority=77))
    assert result["dns"] == {
        "nameservers": ["10.5.0.53", "10.5.0.54"],
        "domain": "pods.test",
        "search": ["a.pods.test", "b.pods.test"],
    }
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": SERVER, "mtu": 1400, "priority": 77}]
    delete(pod)


def test_dhcp_multiple_deletes_succeed(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    delete(pod)  # before any ADD
    add(pod)
    for _ in range(3):
        delete(pod)
    until(lambda: not server.leases(), "the server has it back")


@pytest.mark.usefixtures("impatient")
def test_dhcp_multiple_adds_with_the_server_exhausted(lan: Lan) -> None:
    server = Dnsmasq(lan, range="10.5.0.10,10.5.0.11")
    pods = [lan.pod() for _ in range(4)]
    given = {add(pod)["ips"][0]["address"] for pod in pods[:2]}
    assert given == {"10.5.0.10/24", "10.5.0.11/24"}
    for pod in pods[2:]:
        error = refused("ADD", pod)
        assert error["code"] == 11 and "no DHCP server granted eth0 an address within 0.6 s" in error["msg"]
        assert "used up" in error["details"]
        delete(pod)
    assert len(leases()) == 2
    delete(pods[0])
    until(lambda: len(server.leases()) == 1, "one is free")
    assert add(pods[2])["ips"][0]["address"] in given
    delete(pods[1])
    delete(pods[2])


def test_dhcp_multiple_links(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod("eth0")
    lan.plug(pod, "net1")
    first = add(pod)
    second = add(pod, CNI_IFNAME="net1")
    third = conf(network="other")
    lan.plug(pod, "net2")
    add(pod, third, CNI_IFNAME="net2")
    assert first["ips"] != second["ips"]
    assert set(server.leases().values()) == {
        f"\0{pod.name}/{name}".encode() for name in ("lan/eth0", "lan/net1", "other/net2")
    }
    delete(pod, CNI_IFNAME="net1")
    until(lambda: len(server.leases()) == 2, "one is given back")
    assert {lease.ifname for lease in leases()} == {"eth0", "net2"}
    delete(pod)
    delete(pod, third, CNI_IFNAME="net2")
    until(lambda: not server.leases(), "all are")


def test_dhcp_options_are_sent_and_asked_for(lan: Lan) -> None:
    server = Faulty(lan)
    pod = lan.pod()
    config = conf(
        daemonSocketPath="/run/cni/dhcp.sock",
        provide=[
            {"option": "host-name", "fromArg": "K8S_POD_NAME", "value": "nobody"},
            {"option": "60", "value": "nodeplug"},
            {"option": "user-class", "fromArg": "ABSENT"},
            {"option": "vendor-encapsulated-options", "fromArg": "ABSENT", "value": "x"},
        ],
        request=[{"option": "ntp-servers"}, {"option": "3"}],
    )
    add(pod, config, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_UID=1=2")
    for heard in server.heard:
        assert heard.options[12] == b"web-0" and heard.options[60] == b"nodeplug" and heard.options[43] == b"x"
        assert 77 not in heard.options
        assert heard.options[55] == bytes((1, 121, 33, 3, 6, 15, 119, 26, 42))
        assert heard.options[61] == f"\0{pod.name}/lan/eth0".encode()
    delete(pod)


def test_dhcp_skip_default_asks_for_what_is_listed_alone(lan: Lan) -> None:
    server = Faulty(lan)
    pod = lan.pod()
    add(pod, conf(request=[{"skipDefault": True}, {"option": "routers"}, {"option": "subnet-mask"}]))
    assert server.heard[0].options[55] == bytes((3, 1))
    delete(pod)


def test_dhcp_a_client_identifier_is_cut_to_what_an_option_holds(lan: Lan) -> None:
    server = Faulty(lan)
    pod = lan.pod()
    add(pod, CNI_CONTAINERID="c" * 300)
    assert server.heard[0].options[61] == b"\0" + b"c" * 254
    delete(pod, CNI_CONTAINERID="c" * 300)
    until(lambda: server.count(RELEASE) > 0, "it is given back")
    assert server.heard[-1].options[61] == b"\0" + b"c" * 254


def test_dhcp_a_provided_client_identifier_is_the_one_that_is_released(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    add(pod, conf(provide=[{"option": "dhcp-client-identifier", "fromArg": "ID"}]), CNI_ARGS="ID=mine")
    assert list(server.leases().values()) == [b"mine"]
    delete(pod)
    until(lambda: not server.leases(), "it is given back")


@pytest.mark.parametrize(
    ("ipam", "where"),
    [
        ({"provide": [{"option": "no-such", "value": "x"}]}, "$.ipam.provide[0].option"),
        ({"provide": [{"value": "x"}]}, "$.ipam.provide[0].option"),
        ({"provide": [{"option": "53", "value": "x"}]}, "$.ipam.provide[0].option"),
        ({"provide": [{"option": "12", "value": "x" * 256}]}, "$.ipam.provide[0]"),
        ({"request": [{"option": "0"}]}, "$.ipam.request[0].option"),
        ({"request": [{"skipDefault": "yes"}]}, "$.ipam.request[0].skipDefault"),
        ({"priority": "high"}, "$.ipam.priority"),
    ],
)
def test_dhcp_what_is_wrong_with_a_configuration_is_said_before_anything_is_asked(
    lan: Lan, ipam: dict[str, Any], where: str
) -> None:
    pod = lan.pod()
    error = refused("ADD", pod, conf(**ipam))
    assert error["code"] == 7 and where in error["details"]
    assert "UP" not in pod.ip("link", "show", "eth0")[0]["flags"]
    delete(pod, conf(**ipam))  # which must not keep a DEL from being done


def test_dhcp_without_the_link_it_says_so(lan: Lan) -> None:
    error = refused("ADD", lan.pod("eth1"))
    assert error["code"] == 5 and "there is no interface eth0" in error["msg"]


def test_dhcp_check_passes_after_add_and_fails_once_the_lease_is_gone_or_has_ended(lan: Lan) -> None:
    from tests.cni.dhcp.lan import rewrite

    Dnsmasq(lan)
    pod = lan.pod()
    result = add(pod)
    config = {**conf(), "prevResult": result}
    code, answer, stderr = call("CHECK", pod, config)
    assert (code, answer) == (0, None)
    assert "no nodeplugd" in stderr
    other = {**result, "ips": [{"address": "10.5.0.200/24"}]}
    assert "10.5.0.200" in refused("CHECK", pod, {**config, "prevResult": other})["details"]
    rewrite(expires=-1.0)
    assert "has ended" in refused("CHECK", pod, config)["msg"]
    delete(pod)
    assert "has no lease" in refused("CHECK", pod, config)["msg"]


def test_dhcp_delete_takes_the_address_away_before_the_server_hears_of_it(lan: Lan) -> None:
    seen: list[set[str]] = []
    pod = lan.pod()
    server = Faulty(lan)

    def answer(heard: Heard) -> list[bytes]:
        if heard.type == RELEASE:
            seen.append(ipv4(pod))
            assert heard.sender == ("10.5.0.50", 68) and heard.options[54] == socket.inet_aton(SERVER)
        return server.lease(heard)

    server.answer = answer
    give(pod, add(pod))
    assert ipv4(pod) == {"10.5.0.50/24"}
    delete(pod)
    until(lambda: bool(seen), "the server has heard")
    assert seen[0] == set()


@pytest.mark.parametrize("gone", ["server", "netns", "netns path", "link", "link down", "lease", "file is no lease"])
def test_dhcp_delete_succeeds_whatever_has_gone(lan: Lan, gone: str) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    add(pod)
    variables: dict[str, str | None] = {}
    if gone == "server":
        server.stop()
    elif gone == "netns":
        pod.remove()
    elif gone == "netns path":
        variables["CNI_NETNS"] = None
    elif gone == "link":
        pod.run("ip", "link", "delete", "eth0").ok()
    elif gone == "link down":
        pod.run("ip", "link", "set", "eth0", "down").ok()
    elif gone == "lease":
        next(DIRECTORY.glob("np*")).unlink()
    else:
        next(DIRECTORY.glob("np*")).write_text("{")
    stderr = delete(pod, **variables)
    assert ("no lease" in stderr) == (gone == "file is no lease")
    assert list(DIRECTORY.glob("np*")) == []
    delete(pod, **variables)


def test_dhcp_a_server_that_has_another_hardware_address_by_now_hears_of_the_release(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    add(pod)
    lan.space.run("ip", "link", "set", "lan0", "address", "02:00:00:00:00:99").ok()
    delete(pod)
    until(lambda: not server.leases(), "it is given back")


def test_dhcp_gc_gives_back_what_belongs_to_nobody(lan: Lan) -> None:
    server = Dnsmasq(lan)
    kept_pod, stale, dead = lan.pod(), lan.pod(), lan.pod()
    for pod in (kept_pod, stale, dead):
        give(pod, add(pod))
    add(kept_pod, conf(network="other"))
    dead.remove()
    (DIRECTORY / ".npabc.7fffffff-1~").write_text("half")
    valid = [{"containerID": kept_pod.name, "ifname": "eth0"}]
    code, answer, _ = call("GC", None, {**conf(), "cni.dev/valid-attachments": valid}, CNI_NETNS=None)
    assert (code, answer) == (0, None)
    assert {(lease.network, lease.container) for lease in leases()} == {
        ("lan", kept_pod.name),
        ("other", kept_pod.name),
    }
    assert ipv4(stale) == set() and len(ipv4(kept_pod)) == 1
    # The namespace of the third has ended, and with it every way to tell the server.
    until(lambda: len(server.leases()) == 3, "the server has one back")
    assert not list(DIRECTORY.glob(".np*"))
    code, answer, _ = call("GC", None, {**conf(), "cni.dev/valid-attachments": []}, CNI_NETNS=None)
    assert [lease.network for lease in leases()] == ["other"]
    delete(kept_pod, conf(network="other"))


def test_dhcp_gc_without_a_list_removes_nothing(lan: Lan) -> None:
    Dnsmasq(lan)
    pod = lan.pod()
    add(pod)
    code, _, stderr = call("GC", None, conf(), CNI_NETNS=None)
    assert code == 0 and "nothing was removed" in stderr and len(leases()) == 1
    delete(pod)


def test_dhcp_status_says_that_nobody_renews(lan: Lan, ledger: Ledger) -> None:
    error = refused("STATUS", None, CNI_NETNS=None)
    assert error["code"] == 50 and "no nodeplugd that renews leases" in error["msg"]
    Kept(ledger)
    assert call("STATUS", None, CNI_NETNS=None)[0] == 0


@pytest.mark.usefixtures("kept")
def test_dhcp_status_says_that_leases_cannot_be_kept(lan: Lan, configure: Callable[..., None]) -> None:
    configure('directory = "/dev/null/leases"')
    error = refused("STATUS", None, CNI_NETNS=None)
    assert error["code"] == 50 and "/dev/null is no directory" in error["msg"]


def test_dhcp_a_long_lease_that_nobody_renews_is_given_with_a_warning(lan: Lan, ledger: Ledger) -> None:
    Dnsmasq(lan)
    pod, other = lan.pod(), lan.pod()
    code, _, stderr = call("ADD", pod)
    assert code == 0 and "no nodeplugd that renews leases" in stderr and "ends at 2" in stderr
    Kept(ledger)
    assert call("ADD", other)[2] == ""
    delete(pod)
    delete(other)


def test_dhcp_a_short_lease_that_nobody_renews_is_refused_and_given_back(
    lan: Lan, configure: Callable[..., None]
) -> None:
    server = Dnsmasq(lan, lasts="2m")
    pod = lan.pod()
    error = refused("ADD", pod)
    assert error["code"] == 11 and "no nodeplugd" in error["msg"] and "unattended" in error["details"]
    until(lambda: not server.leases(), "it is given back")
    assert leases() == []
    configure('unattended = "1m"')
    assert call("ADD", pod)[0] == 0
    delete(pod)


def test_dhcp_a_lease_for_ever_needs_nobody(lan: Lan) -> None:
    Dnsmasq(lan, lasts="infinite")
    pod = lan.pod()
    code, _, stderr = call("ADD", pod)
    assert (code, stderr) == (0, "")
    delete(pod)


def test_dhcp_a_repeated_add_gets_the_same_address(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    assert add(pod)["ips"] == add(pod)["ips"]
    assert len(server.leases()) == 1 and len(leases()) == 1
    delete(pod)


def test_dhcp_an_attachment_that_comes_back_after_a_boot_asks_for_its_address(lan: Lan) -> None:
    from tests.cni.dhcp.lan import rewrite

    server = Faulty(lan)
    pod = lan.pod()
    add(pod)
    rewrite(sandbox=the_lease().sandbox.replace(boot="the boot before", inode=1, cookie=1))
    again = lan.ledger.netns()
    lan.plug(again, "eth0")
    add(again, CNI_CONTAINERID=pod.name)
    assert server.heard[-2].options[50] == socket.inet_aton("10.5.0.50")
    assert the_lease().sandbox.path == again.path
    delete(again, CNI_CONTAINERID=pod.name)


def test_dhcp_a_lease_without_a_mask_is_refused_and_given_back(lan: Lan) -> None:
    server = Faulty(lan, options={})
    pod = lan.pod()
    error = refused("ADD", pod)
    assert error["code"] == 100 and "without a subnet mask" in error["msg"]
    until(lambda: server.count(RELEASE) > 0, "it is given back")
    assert leases() == []


@pytest.mark.usefixtures("impatient")
def test_dhcp_a_server_that_refuses_its_own_offers_is_told_of(lan: Lan) -> None:
    Faulty(lan, nak=True)
    error = refused("ADD", lan.pod())
    assert error["code"] == 11 and error["msg"].endswith("not today?")
    assert leases() == []


def test_dhcp_a_server_that_refuses_once_is_asked_again(lan: Lan) -> None:
    server = Faulty(lan)

    def answer(heard: Heard) -> list[bytes]:
        if heard.type == REQUEST and server.count(REQUEST) == 1:
            return [reply(heard, NAK, "0.0.0.0")]
        return server.lease(heard)

    server.answer = answer
    pod = lan.pod()
    assert add(pod)["ips"][0]["address"] == "10.5.0.50/24"
    delete(pod)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["silent", "silent after its offer", "nonsense", "wrong transaction", "wrong client"])
def test_dhcp_a_server_that_is_no_use_is_given_up_in_time(lan: Lan, kind: str) -> None:
    server = Faulty(lan, silent=kind == "silent")

    def answer(heard: Heard) -> list[bytes]:
        if kind == "silent after its offer":
            return server.lease(heard) if heard.type == DISCOVER else []
        if kind == "nonsense":
            whole = server.lease(heard)[0]
            return [
                b"",
                b"x",
                whole[:200],
                whole[:-1] + b"\x33\x09",
                bytes(300),
                whole[:236] + b"\0\0\0\0" + whole[240:],
            ]
        if kind == "wrong transaction":
            return [reply(heard, OFFER, "10.5.0.50", xid=heard.xid ^ 1), reply(heard, ACK, "10.5.0.50", xid=0)]
        return [reply(heard, OFFER, "10.5.0.50", chaddr=b"\2\0\0\0\0\7")]

    server.answer = answer
    error = refused("ADD", lan.pod())
    assert error["code"] == 11
    assert ("did not answer when" in error["details"]) == (kind == "silent after its offer")
    assert leases() == []


def test_dhcp_nonsense_in_between_does_no_harm(lan: Lan) -> None:
    server = Faulty(lan)

    def answer(heard: Heard) -> list[bytes]:
        (good,) = server.lease(heard) or [b""]
        wrong = reply(heard, ACK, "10.5.0.66", {51: b"\xff" * 4}, xid=heard.xid ^ 1)
        return [b"\xff" * 999, good[:100], wrong, reply(heard, OFFER, "0.0.0.0"), good, good, wrong]

    server.answer = answer
    pod = lan.pod()
    assert add(pod)["ips"][0]["address"] == "10.5.0.50/24"
    delete(pod)


def test_dhcp_of_two_servers_one_is_chosen(lan: Lan) -> None:
    server = Faulty(lan)

    def answer(heard: Heard) -> list[bytes]:
        options = {**server.options, 51: (3600).to_bytes(4, "big")}
        if heard.type == DISCOVER:
            return [
                reply(heard, OFFER, "10.5.0.61", options, server="10.5.0.2"),
                reply(heard, OFFER, "10.5.0.62", options, server="10.5.0.3"),
            ]
        mine = [reply(heard, NAK, "0.0.0.0", server="10.5.0.3")]
        return [*mine, reply(heard, ACK, "10.5.0.61", options, server="10.5.0.2")]

    server.answer = answer
    pod = lan.pod()
    assert add(pod)["ips"][0]["address"] == "10.5.0.61/24"
    assert server.heard[1].options[54] == socket.inet_aton("10.5.0.2")
    delete(pod)


def test_dhcp_a_link_that_hears_no_unicast_has_answers_sent_to_everybody(
    lan: Lan, configure: Callable[..., None]
) -> None:
    server = Faulty(lan)
    pod = lan.pod()
    add(pod)
    assert not server.heard[0].broadcast
    configure("broadcast = true")
    add(pod)
    assert server.heard[-1].broadcast
    delete(pod)


def test_dhcp_refuses_the_hosts_own_namespace() -> None:
    error = refused("ADD", None, CNI_NETNS="/proc/self/ns/net", CNI_IFNAME="lo")
    assert error["code"] == 8


def test_dhcp_as_an_executable(lan: Lan, ledger: Ledger) -> None:
    from tests.sandbox import CHECKOUT

    Dnsmasq(lan)
    pod = lan.pod()
    program = ledger.directory() / "dhcp"
    program.symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
    env = environment("ADD", CNI_NETNS=pod.path, CNI_CONTAINERID=pod.name)
    result = run([program], env=env, stdin=json.dumps(conf()).encode()).ok().json()
    assert result["ips"][0]["address"].startswith("10.5.0.")
    run([program], env={**env, "CNI_COMMAND": "DEL"}, stdin=json.dumps(conf()).encode()).ok()
    assert leases() == []
    version = run([program], env={"CNI_COMMAND": "VERSION"}, stdin=b"").ok().json()
    assert version["supportedVersions"] == list(VERSIONS)


@pytest.mark.usefixtures("impatient")
def test_dhcp_an_add_in_vain_leaves_what_an_earlier_one_has(lan: Lan) -> None:
    """Its pod may live: the runtime's DEL says that it does not."""
    server = Faulty(lan)
    pod = lan.pod()
    give(pod, add(pod))
    server.silent = True
    assert refused("ADD", pod)["code"] == 11
    assert ipv4(pod) == {"10.5.0.50/24"} and the_lease().state == "bound"
    assert refused("ADD", pod, conf(provide=[{"option": "53", "value": "x"}]))["code"] == 7
    assert ipv4(pod) == {"10.5.0.50/24"} and server.count(RELEASE) == 0
    delete(pod)
