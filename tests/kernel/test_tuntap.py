"""Taps against the kernel, with iproute2 as a second opinion."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from nodeplug.kernel import selinux, tuntap
from nodeplug.kernel.netlink import Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links
from nodeplug.kernel.tuntap import Tap
from tests.child import run
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "file:/dev/net/tun")


@pytest.fixture
def device(opened: Netns) -> Iterator[int]:
    fd = tuntap.open_device(opened)
    yield fd
    os.close(fd)


def tap(route: Netlink, name: str = "t") -> Tap | None:
    found = links.find(route, name)
    return tuntap.tap_of(found) if found else None


@pytest.mark.parametrize("multi_queue", [False, True])
def test_a_tap_outlives_its_maker_and_is_as_asked_for(
    netns: Space, opened: Netns, route: Netlink, multi_queue: bool
) -> None:
    fd = tuntap.open_device(opened)
    tuntap.add(fd, "t", multi_queue=multi_queue, owner=4294967294, group=7)
    os.close(fd)
    assert tap(route) == Tap(owner=4294967294, group=7, multi_queue=multi_queue, persistent=True)
    shown = netns.run("ip", "-d", "link", "show", "t").ok().text
    assert "tun type tap" in shown and "persist on" in shown and "pi off" in shown


def test_a_tap_that_is_not_kept_ends_with_its_maker(opened: Netns, route: Netlink, device: int) -> None:
    fd = os.dup(device)
    request, argument = tuntap.creation("t")
    run(["/usr/bin/python3", "-c", _IOCTL, str(fd), str(request), argument.hex()], pass_fds=(fd,)).ok()
    assert tap(route) == Tap(owner=None, group=None, multi_queue=False, persistent=False)
    tuntap.keep(fd, "t", owner=5)
    os.close(fd)
    assert tap(route) == Tap(owner=5, group=None, multi_queue=False, persistent=True)


_IOCTL = "import fcntl, sys; fcntl.ioctl(int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3]))"


def test_a_name_that_is_taken_is_refused_also_by_another_tap(netns: Space, route: Netlink, device: int) -> None:
    netns.run("ip", "tuntap", "add", "t", "mode", "tap").ok()
    with pytest.raises(OSError) as caught:
        tuntap.add(device, "t")
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, "t")
    assert "tap add" in str(caught.value)


def test_other_links_are_no_taps(netns: Space, route: Netlink) -> None:
    netns.run("ip", "tuntap", "add", "t", "mode", "tun").ok()
    found = links.find(route, "t")
    assert found and (found.kind, tuntap.tap_of(found)) == (tuntap.KIND, None)
    assert tap(route, "lo") is None


def test_whether_selinux_is_on_is_as_the_kernel_lists_its_file_systems() -> None:
    shown = run(["cat", "/proc/filesystems"]).ok().text
    assert selinux.is_enabled() is ("selinuxfs" in shown.split())
