"""Settings of a namespace of our own."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from nodeplug.kernel import libc, sysctl
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netlink import Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import bridges
from tests.needs import needs
from tests.space import in_a_thread

pytestmark = needs("sandbox")

MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

FORWARD = ("net", "ipv4", "ip_forward")
PROXY_ARP = ("net", "ipv4", "conf", "eth0.100", "proxy_arp")


@pytest.fixture
def inside(opened: Netns, route: Netlink) -> Iterator[None]:
    """The test runs inside its namespace, which has a link with a dot in its name."""
    route.request(bridges.add("eth0.100"))
    with namespaces.entered(opened):
        yield


def test_a_setting_is_read_and_written(inside: None) -> None:
    assert sysctl.read(*PROXY_ARP) == "0"
    sysctl.write("1", *PROXY_ARP)
    assert sysctl.read(*PROXY_ARP) == "1"


def test_settings_outside_stay(opened: Netns) -> None:
    before = sysctl.read(*FORWARD)
    with namespaces.entered(opened):
        sysctl.write("1" if before == "0" else "0", *FORWARD)
    assert sysctl.read(*FORWARD) == before


def test_ensure_writes_only_what_differs(opened: Netns) -> None:
    def beside_read_only_settings() -> None:
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", "", MS_REC | MS_PRIVATE)
        libc.mount("/proc/sys", "/proc/sys", "", MS_BIND)
        libc.mount("none", "/proc/sys", "", MS_REMOUNT | MS_BIND | MS_RDONLY)
        with namespaces.entered(opened):
            assert sysctl.ensure("1", *FORWARD) is False
            with pytest.raises(OSError, match=r"sysctl write '0' to: Read-only file system.*/proc/sys/net/ipv4"):
                sysctl.ensure("0", *FORWARD)

    with namespaces.entered(opened):
        sysctl.write("0", *FORWARD)
        assert sysctl.ensure("1", *FORWARD) is True
        assert sysctl.read(*FORWARD) == "1"
    in_a_thread(beside_read_only_settings)


def test_values_of_several_words_are_compared_as_the_kernel_shows_them(inside: None) -> None:
    key = ("net", "ipv4", "ping_group_range")
    assert sysctl.ensure("5 10", *key) is True
    assert sysctl.read(*key) == "5\t10"
    assert sysctl.ensure("5 10", *key) is False


def test_an_absent_key_is_file_not_found_and_names_it(inside: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"sysctl read.*'/proc/sys/net/ipv4/conf/absent/forwarding'"):
        sysctl.read("net", "ipv4", "conf", "absent", "forwarding")
    with pytest.raises(FileNotFoundError, match=r"sysctl write '1' to.*'/proc/sys/net/absent'"):
        sysctl.write("1", "net", "absent")


def test_a_value_the_kernel_does_not_take_is_an_error(inside: None) -> None:
    with pytest.raises(OSError, match="sysctl write 'yes' to: Invalid argument") as caught:
        sysctl.write("yes", *PROXY_ARP)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("segment", ["", ".", "..", "a/b", "a\0b"])
def test_a_key_cannot_leave_its_place(segment: str) -> None:
    with pytest.raises(ValueError):
        sysctl.read("net", segment, "ip_forward")
