"""Packet sockets: what they hear, what they do not, and whose checksums are there."""

from __future__ import annotations

import errno
import socket
import struct
import time

import pytest

from nodeplug.kernel import libc
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.packet import EVERYBODY, Packet, PacketSocket, udp_to
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")
PORT = 6868


@pytest.fixture
def far(netns: Space, pod: Space) -> Space:
    """A namespace whose link `far0` leads to `near0` of `netns`; both are up."""
    netns.run("ip", "link", "add", "name", "near0", "type", "veth", "peer", "name", "far0", "netns", pod.name).ok()
    netns.run("ip", "link", "set", "near0", "up").ok()
    pod.run("ip", "address", "add", "10.7.0.2/24", "dev", "far0").ok()
    pod.run("ip", "link", "set", "far0", "up").ok()
    return pod


def open_socket(space: Space, link: str = "near0", port: int = PORT) -> PacketSocket:
    with Netns.open(space.path) as netns:
        return PacketSocket(link, netns=netns, accepted=udp_to(port))


def heard(one: PacketSocket, *, within: float = 2.0) -> list[Packet]:
    deadline, found = time.monotonic() + within, []
    while time.monotonic() < deadline:
        packet = one.receive()
        if packet is not None:
            found.append(packet)
            deadline = min(deadline, time.monotonic() + 0.1)
        time.sleep(0.005)
    return found


def say(space: Space, data: bytes, port: int) -> None:
    """By a socket of the far end, to everybody."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(data, ("10.7.0.255", port))

    space.call(send)


def test_it_hears_what_its_filter_lets_pass_though_the_link_has_no_address(netns: Space, far: Space) -> None:
    one = open_socket(netns)
    try:
        for port in (PORT - 1, PORT, PORT + 1):
            say(far, f"to {port}".encode(), port)
        (packet,) = heard(one)
        assert packet.data.endswith(f"to {PORT}".encode()) and packet.data[0] >> 4 == 4
        assert packet.sender == bytes.fromhex(far.ip("link", "show", "far0")[0]["address"].replace(":", ""))
        # It never left this machine, where nobody needs a checksum.
        assert not packet.sealed
    finally:
        one.close()


def test_what_is_sent_by_it_is_heard_by_it_at_the_other_end(netns: Space, far: Space) -> None:
    one, other = open_socket(netns), open_socket(far, "far0")
    try:
        udp = struct.pack("!HHHH", 1, PORT, 12, 0) + b"data"
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
        for to in (EVERYBODY, bytes.fromhex(far.ip("link", "show", "far0")[0]["address"].replace(":", ""))):
            one.send(header + udp, to)
            (packet,) = heard(other)
            assert packet.data == header + udp and packet.sealed
        # Later fragments have no ports to look at.
        one.send(header[:6] + b"\0\x10" + header[8:] + udp)
        assert heard(other, within=0.2) == []
    finally:
        one.close()
        other.close()


def test_a_link_that_is_not_there_or_down_is_told(netns: Space, far: Space) -> None:
    with pytest.raises(OSError) as caught:
        open_socket(netns, "nowhere")
    assert caught.value.errno == errno.ENODEV
    one = open_socket(netns)
    try:
        netns.run("ip", "link", "set", "near0", "down").ok()
        with pytest.raises(OSError) as caught:
            one.send(b"x")
        assert caught.value.errno == errno.ENETDOWN
    finally:
        one.close()


def test_a_program_that_is_none_is_refused(netns: Space) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        with pytest.raises(OSError) as caught:
            libc.attach_filter(one.fileno(), b"\xff" * 8)
        assert caught.value.errno == errno.EINVAL
        libc.attach_filter(one.fileno(), udp_to(1))


def test_two_namespaces_never_have_one_cookie(netns: Space, pod: Space) -> None:
    with Netns.open(netns.path) as one, Netns.open(netns.path) as same, Netns.open(pod.path) as other:
        assert namespaces.cookie(one) == namespaces.cookie(same) != namespaces.cookie(other)
        assert 0 not in (namespaces.cookie(one), namespaces.cookie(other))
