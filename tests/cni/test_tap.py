"""tap: a pod's link whose other end a program holds, and each key of its table."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import pytest

from nodeplug.kernel import tuntap
from tests.child import run, until
from tests.cni.calls import VERSIONS
from tests.cni.pods import Network, addresses, host_local, link, routes, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "file:/dev/net/tun")
MAC = "02:00:00:00:00:07"


def tap(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, **{"type": "tap", "ipam": host_local(), **config})


def attached(pod: Space, ifname: str = "eth0", *, multi_queue: bool = False) -> int:
    """A descriptor that a program in the pod holds the tap's other end by."""

    def attach() -> int:
        fd = os.open(tuntap.DEVICE, os.O_RDWR | os.O_NONBLOCK)
        flags = tuntap.IFF_TAP | tuntap.IFF_NO_PI | (tuntap.IFF_MULTI_QUEUE if multi_queue else 0)
        try:
            fcntl.ioctl(fd, tuntap.TUNSETIFF, struct.pack("16sH22x", ifname.encode(), flags))
        except OSError:
            os.close(fd)
            raise
        return fd

    return pod.call(attach)


@pytest.mark.parametrize("version", VERSIONS)
def test_tap_add_check_delete_in_every_version(ledger: Ledger, netns: Space, version: str) -> None:
    network = tap(ledger, cniVersion=version)
    result = network.add(netns)
    found = link("eth0", netns)
    assert found and (found.kind, found.up, found.mtu) == ("tun", True, 1500)
    assert addresses(netns) == {"10.88.0.2/24"}
    if version >= "0.3.0":
        assert result["interfaces"] == [{"name": "eth0", "mac": found.mac.hex(":"), "sandbox": netns.path}]
        assert [ip["interface"] for ip in result["ips"]] == [0]
    if version >= "0.4.0":
        network.check(netns, result)
    network.delete(netns)
    assert (netns.links(), network.leases()) == ({"lo"}, set())


def test_tap_frames_of_the_pod_come_out_at_the_program(ledger: Ledger, netns: Space) -> None:
    ipam = static("10.5.0.2/24,10.5.0.1", "fd05::2/64", routes=[{"dst": "0.0.0.0/0"}])
    tap(ledger, ipam=ipam, mac=MAC).add(netns)
    assert (addresses(netns), routes(netns)["default"]["gateway"]) == ({"10.5.0.2/24", "fd05::2/64"}, "10.5.0.1")
    fd = attached(netns)
    try:
        netns.run("ip", "neigh", "add", "10.5.0.1", "lladdr", "02:00:00:00:00:99", "dev", "eth0").ok()
        sent = bytes.fromhex("020000000099") + bytes.fromhex(MAC.replace(":", "")) + b"\x08\x00"

        def comes_out() -> bool:
            netns.call(lambda: _send("10.5.0.1"))
            return any(frame.startswith(sent) and frame.endswith(b"hello") for frame in _read(fd))

        until(comes_out, "what was sent")  # the kernel makes the link one that is attached in its own time
    finally:
        os.close(fd)


def _read(fd: int) -> list[bytes]:
    """The frames that are there."""
    seen = []
    while True:
        try:
            seen.append(os.read(fd, 2000))
        except BlockingIOError:
            return seen


def _send(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (address, 7))


@pytest.mark.parametrize("multi_queue", [False, True])
def test_tap_has_as_many_queues_as_asked_for(ledger: Ledger, netns: Space, multi_queue: bool) -> None:
    network = tap(ledger, multiQueue=multi_queue)
    result = network.add(netns)
    found = link("eth0", netns)
    kept = tuntap.tap_of(found) if found else None
    assert kept and (kept.multi_queue, kept.persistent) == (multi_queue, True)
    fds = [attached(netns, multi_queue=multi_queue)]
    if multi_queue:
        fds.append(attached(netns, multi_queue=True))
    else:
        with pytest.raises(OSError):
            attached(netns)
    for fd in fds:
        os.close(fd)
    network.check(netns, result)
    error = network.refused("CHECK", netns, {"prevResult": result, "multiQueue": not multi_queue})
    assert "multiQueue of eth0 is" in error["msg"]


@pytest.mark.parametrize(
    ("keys", "owner", "group"),
    [
        ({}, None, None),
        ({"owner": 0, "group": 0}, 0, 0),
        ({"owner": 1000}, 1000, None),
        ({"group": 1001}, None, 1001),
        ({"owner": 4294967294, "group": 3000000000}, 4294967294, 3000000000),
    ],
)
def test_tap_belongs_to_the_owner_and_the_group_asked_for(
    ledger: Ledger, netns: Space, keys: dict[str, Any], owner: int | None, group: int | None
) -> None:
    network = tap(ledger, **keys)
    result = network.add(netns)
    found = link("eth0", netns)
    kept = tuntap.tap_of(found) if found else None
    assert kept and (kept.owner, kept.group) == (owner, group)
    network.check(netns, result)
    for name in ("owner", "group"):
        error = network.refused("CHECK", netns, {"prevResult": result, name: 4242})
        assert f"{name} of eth0 is {owner if name == 'owner' else group}, not 4242" in error["msg"]


def test_tap_may_be_held_by_its_owner_without_any_right(ledger: Ledger, netns: Space) -> None:
    tap(ledger, owner=1000).add(netns)
    script = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "os.setgroups([])\n"
        "os.setresuid(*3 * [int(sys.argv[1])])\n"
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', b'eth0', 0x1002))\n"
    )
    for user, expected in ((1000, 0), (1001, 1)):
        assert netns.run("/usr/bin/python3", "-c", script, str(user)).code == expected


@pytest.mark.parametrize("owned", [False, True])
def test_tap_mac_address_comes_from_who_goes_before_the_others(ledger: Ledger, netns: Space, owned: bool) -> None:
    """Also with both owner and group, where the reference forgets it."""
    keys: dict[str, Any] = {"owner": 1, "group": 1} if owned else {}
    network = tap(ledger, ipam={}, mac=MAC, **keys)
    env, args, runtime = (f"02:00:00:00:00:0{n}" for n in range(1, 4))
    asked: dict[str, Any] = {}
    for extra, variables, expected in (
        ({}, {}, MAC),
        ({}, {"CNI_ARGS": f"MAC={env}"}, env),
        ({"args": {"cni": {"mac": args}}}, {"CNI_ARGS": f"MAC={env}"}, args),
        ({"runtimeConfig": {"mac": runtime}}, {"CNI_ARGS": f"MAC={env}"}, runtime),
    ):
        asked |= extra
        result = network.add(netns, asked, **variables)
        found = link("eth0", netns)
        assert found and found.mac.hex(":") == expected == result["interfaces"][0]["mac"]
        network.delete(netns)


def test_tap_is_a_port_of_the_pods_bridge(ledger: Ledger, netns: Space) -> None:
    """Without addresses: layer 2 only."""
    network = tap(ledger, ipam={}, bridge="br0", mtu=1400)
    error = network.refused("ADD", netns)
    assert (error["code"], error["msg"]) == (5, "the pod has no bridge br0")
    netns.run("ip", "link", "add", "br0", "type", "veth", "peer", "name", "x").ok()
    assert "link br0 of the pod is no bridge" in network.refused("ADD", netns)["msg"]
    netns.run("ip", "link", "delete", "br0").ok()
    netns.run("ip", "link", "add", "br0", "type", "bridge").ok()
    result = network.add(netns)
    assert set(result) == {"cniVersion", "interfaces"}
    found, bridge = link("eth0", netns), link("br0", netns)
    assert found and bridge and (found.master, found.mtu, found.up) == (bridge.index, 1400, True)
    network.check(netns, result)
    netns.run("ip", "link", "set", "eth0", "nomaster").ok()
    assert "eth0 is no port of bridge br0" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    network.delete(netns)
    assert netns.links() == {"lo", "br0"}


def test_tap_that_a_program_holds_goes_all_the_same(ledger: Ledger, netns: Space) -> None:
    network = tap(ledger)
    network.add(netns)
    fd = attached(netns)
    try:
        network.delete(netns)
        assert (netns.links(), network.leases()) == ({"lo"}, set())
    finally:
        os.close(fd)


def test_tap_check_tells_it_from_a_link_without_ethernet(ledger: Ledger, netns: Space) -> None:
    network = tap(ledger, ipam={})
    result = network.add(netns)
    network.delete(netns)
    netns.run("ip", "tuntap", "add", "eth0", "mode", "tun").ok()
    netns.run("ip", "link", "set", "eth0", "up").ok()
    result["interfaces"][0]["mac"] = ""
    assert "eth0 is no tap" in network.refused("CHECK", netns, {"prevResult": result})["msg"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"owner": -1}, "$.owner: "),
        ({"owner": 4294967295}, "$.owner: "),
        ({"group": "kvm"}, "$.group: "),
        ({"multiQueue": "yes"}, "$.multiQueue: "),
        ({"mtu": 67}, "$.mtu: "),
        ({"mac": "nonsense"}, "$.mac: "),
        ({"bridge": "a/b"}, "$.bridge: "),
        ({"selinuxContext": 7}, "$.selinuxContext: "),
    ],
)
def test_tap_wrong_keys_are_told_by_their_paths(ledger: Ledger, netns: Space, keys: dict[str, Any], said: str) -> None:
    error = tap(ledger, **keys).refused("ADD", netns)
    assert (error["code"], said in error["details"]) == (7, True), error
    assert netns.links() == {"lo"}


def test_tap_context_of_selinux_is_refused_where_there_is_none(ledger: Ledger, netns: Space) -> None:
    network = tap(ledger, selinuxContext="system_u:system_r:container_t:s0")
    for command in ("ADD", "STATUS"):
        error = network.refused(command, netns if command == "ADD" else None)
        assert (error["code"], "SELinux is off on this node" in error["msg"]) == (2, True), error
    assert (netns.links(), network.leases()) == ({"lo"}, set())
    network.delete(netns)


def test_tap_without_the_driver_is_told_of_it(ledger: Ledger, netns: Space) -> None:
    network = tap(ledger)
    script = f"mount -t tmpfs none /dev/net && exec {network.plugins}/tap"
    for command, code in (("ADD", 5), ("STATUS", 50)):
        env = {**network.env(command, netns), "PATH": os.environ["PATH"]}
        done = run(["unshare", "--mount", "sh", "-c", script], env=env, stdin=network.stdin())
        assert (done.code, done.json()["code"]) == (1, code), done.text
        assert "CONFIG_TUN" in done.json()["details"]
    assert (netns.links(), network.leases()) == ({"lo"}, set())
