"""Namespaces as descriptors and names, and threads that come back from them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns, Stranded
from nodeplug.kernel.rtnl import bridges, links
from tests.kernel.rights import drop_this_threads_capabilities
from tests.needs import needs
from tests.space import Space, in_a_thread

pytestmark = needs("sandbox")


def test_two_descriptors_of_one_namespace_are_equal_and_of_two_are_not(netns: Space, pod: Space) -> None:
    with Netns.open(netns.path) as one, Netns.open(netns.path) as same, Netns.open(pod.path) as other:
        assert one.identity() == same.identity() != other.identity()
        assert namespaces.own_identity() not in (one.identity(), other.identity())


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "device", "mount namespace", "nothing"])
def test_what_is_no_network_namespace_is_refused_at_once(directory: Path, kind: str) -> None:
    path = directory / "x"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "mount namespace":
        path = Path("/proc/self/ns/mnt")
    with pytest.raises(OSError) as caught:
        Netns.open(str(path))
    assert caught.value.errno == (errno.ENOENT if kind == "nothing" else errno.EINVAL)
    assert caught.value.filename == str(path)


def test_pinned_are_those_that_a_mount_keeps_each_once(netns: Space, pod: Space, directory: Path) -> None:
    second = directory / "second"
    second.touch()
    subprocess.run(["mount", "--bind", netns.path, second], check=True)
    found = namespaces.pinned()
    assert pod.path in found
    assert len([path for path in found if path in (netns.path, str(second))]) == 1
    pod.remove()
    assert pod.path not in namespaces.pinned()


def test_a_closed_namespace_may_be_closed_again(netns: Space) -> None:
    handle = Netns.open(netns.path)
    handle.close()
    handle.close()
    with pytest.raises(OSError, match="setns: Bad file descriptor"), namespaces.entered(handle):
        pass


def test_the_body_runs_inside_and_the_thread_comes_back(opened: Netns) -> None:
    home = namespaces.own_identity()
    with namespaces.entered(opened):
        assert namespaces.own_identity() == opened.identity()
    assert namespaces.own_identity() == home


def test_the_thread_comes_back_after_an_error_too(opened: Netns) -> None:
    home = namespaces.own_identity()
    with pytest.raises(ZeroDivisionError), namespaces.entered(opened):
        raise ZeroDivisionError
    assert namespaces.own_identity() == home


def test_stays_may_be_nested(opened: Netns, pod_opened: Netns) -> None:
    with namespaces.entered(opened):
        with namespaces.entered(pod_opened):
            assert namespaces.own_identity() == pod_opened.identity()
        assert namespaces.own_identity() == opened.identity()


def test_a_socket_made_inside_stays_there(opened: Netns, pod_opened: Netns) -> None:
    home = namespaces.own_identity()
    with Netlink(NETLINK_ROUTE, netns=opened) as one, Netlink(NETLINK_ROUTE, netns=pod_opened) as other:
        assert namespaces.own_identity() == home
        one.request(bridges.add("cni0"))
        assert links.find(one, "cni0") is not None
        assert links.find(other, "cni0") is None


def test_many_threads_go_in_and_out_at_once(opened: Netns, pod_opened: Netns) -> None:
    home = namespaces.own_identity()
    wrong: list[object] = []

    def visit(first: Netns, second: Netns) -> None:
        try:
            for place in (first, second) * 50:
                with namespaces.entered(place):
                    if namespaces.own_identity() != place.identity():
                        wrong.append(place)
                if namespaces.own_identity() != home:
                    wrong.append("abroad")
        except BaseException as error:
            wrong.append(error)

    pairs = ((opened, pod_opened), (pod_opened, opened)) * 4
    threads = [threading.Thread(target=visit, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("failing", [False, True])
def test_a_thread_that_cannot_come_back_is_stranded(opened: Netns, failing: bool) -> None:
    def visit() -> None:
        with namespaces.entered(opened):
            drop_this_threads_capabilities()
            if failing:
                raise ZeroDivisionError

    with pytest.raises(
        Stranded, match=f"could not return from {opened.path}: .*setns: Operation not permitted"
    ) as caught:
        in_a_thread(visit)
    assert not isinstance(caught.value, Exception)
    chain = caught.value.__context__
    assert isinstance(chain, PermissionError)
    assert isinstance(chain.__context__, ZeroDivisionError) is failing


def test_a_thread_that_may_not_go_in_stays_where_it_is(opened: Netns) -> None:
    def visit() -> None:
        home = namespaces.own_identity()
        drop_this_threads_capabilities()
        with pytest.raises(PermissionError, match="setns"), namespaces.entered(opened):
            raise AssertionError("inside")
        assert namespaces.own_identity() == home

    in_a_thread(visit)


def test_a_named_namespace_is_made_and_removed(directory: Path) -> None:
    path = str(directory / "pod")
    home = namespaces.own_identity()
    namespaces.create(path)
    assert namespaces.own_identity() == home
    with Netns.open(path) as made, Netlink(NETLINK_ROUTE, netns=made) as route:
        assert made.identity() != home
        (lo,) = links.dump(route)
        assert (lo.name, lo.up) == ("lo", False)
    assert namespaces.remove(path) is True
    assert not os.path.exists(path)
    assert namespaces.remove(path) is False


def test_a_name_that_is_taken_is_not_touched(directory: Path) -> None:
    path = directory / "pod"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        namespaces.create(str(path))
    assert path.read_text() == "mine"


def test_a_namespace_that_cannot_be_named_leaves_nothing(directory: Path) -> None:
    path = str(directory / "pod")

    def try_it() -> None:
        drop_this_threads_capabilities()
        with pytest.raises(PermissionError, match="unshare: Operation not permitted"):
            namespaces.create(path)

    in_a_thread(try_it)
    assert not os.path.exists(path)


def test_half_made_names_are_removed(directory: Path) -> None:
    path = directory / "pod"
    path.touch()
    with pytest.raises(OSError, match="not a network namespace"):
        Netns.open(str(path))
    assert namespaces.remove(str(path)) is True
    assert not path.exists()


def test_a_namespace_in_use_loses_its_name_and_lives_on(directory: Path) -> None:
    path = str(directory / "pod")
    namespaces.create(path)
    with Netns.open(path) as kept:
        namespaces.remove(path)
        with Netlink(NETLINK_ROUTE, netns=kept) as route:
            route.request(bridges.add("cni0"))
            assert links.find(route, "cni0") is not None


def test_a_killed_maker_leaves_a_namespace_or_a_plain_file_and_both_go_away(directory: Path) -> None:
    script = (
        "import sys, os, signal\nfrom nodeplug.kernel import netns\nnetns.create(sys.argv[1])\nos.kill(os.getpid(), 9)"
    )
    path = str(directory / "pod")
    subprocess.run([sys.executable, "-c", script, path], check=False)
    with Netns.open(path) as survivor:
        assert survivor.identity() != namespaces.own_identity()
    assert namespaces.remove(path) is True
