"""One link deleted and known to be gone; several in one go, and only those that were asked for."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeplug.core import company
from nodeplug.kernel.netlink import NETLINK_ROUTE, Message, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import deletes, links, veths
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")


def opened(netns: Space) -> Netlink:
    return netns.call(lambda: Netlink(NETLINK_ROUTE))


def make(route: Netlink, *names: str) -> None:
    route.request(*[veths.add(name, f"peer{name}") for name in names])


@pytest.mark.parametrize("which", ["a", 0], ids=["by name", "by index"])
def test_one_is_gone_with_all_it_had_when_its_deletion_returns(netns: Space, which: int | str) -> None:
    with opened(netns) as route:
        for _ in range(20):
            make(route, "a")
            route.request(links.set("a", up=True), links.set("peera", up=True))
            netns.run("ip", "addr", "add", "10.9.0.1/24", "dev", "a").ok()
            found = links.find(route, "a")
            assert found is not None
            wanted = which or found.index
            assert netns.call(lambda wanted=wanted: deletes.delete(route, wanted))  # type: ignore[misc]  # of this round
            assert netns.links() == {"lo"}
            assert not netns.run("ip", "route", "show", "table", "all", "10.9.0.0/24").ok().stdout
        assert not netns.call(lambda: deletes.delete(route, "a"))
        assert not netns.call(lambda: deletes.delete(route, "way too long a name"))


def test_one_in_another_namespace_is_deleted_there(netns: Space, pod: Space, pod_opened: Netns) -> None:
    with opened(netns) as host, Netlink(NETLINK_ROUTE, netns=pod_opened) as inside:
        host.request(veths.add("a", "eth0", peer_netns=pod_opened))
        assert netns.call(lambda: deletes.delete(inside, "eth0"))
        assert (netns.links(), pod.links()) == ({"lo"}, {"lo"})


def test_one_that_the_kernel_does_not_delete_is_told(netns: Space) -> None:
    with opened(netns) as route, pytest.raises(OSError, match="not supported"):
        netns.call(lambda: deletes.delete(route, "lo"))


def test_those_who_delete_the_same_link_at_once_all_find_it_gone(netns: Space) -> None:
    with opened(netns) as route:
        for _ in range(5):
            make(route, "a")
            ready = threading.Barrier(4, timeout=20)

            def one(_number: int, ready: threading.Barrier = ready) -> set[str]:
                with opened(netns) as own:
                    ready.wait()
                    netns.call(lambda: deletes.delete(own, "a"))
                    return {link.name for link in links.dump(own)}

            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(one, range(4))) == [{"lo"}] * 4


def test_where_no_thread_can_be_had_the_caller_waits(netns: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(company, "start_new_thread", refuse)
    with opened(netns) as route:
        make(route, "a")
        assert netns.call(lambda: deletes.delete(route, "a"))
        assert netns.links() == {"lo"}


def test_each_is_deleted_and_what_was_not_there_is_told(netns: Space) -> None:
    with opened(netns) as route:
        make(route, "a", "b", "c")
        wanted = ["a", "gone", "b", "way too long a name", "a"]
        assert deletes.delete_all(route, list(wanted)) == [True, False, True, False, True]
        assert netns.links() == {"lo", "c", "peerc"}
        assert deletes.delete_all(route, ["c"]) == [True]
        assert deletes.delete_all(route, ["c"]) == [False]
        assert deletes.delete_all(route, ["x", "y"]) == [False, False]


def test_both_ends_of_one_pair_may_be_asked_for(netns: Space) -> None:
    with opened(netns) as route:
        make(route, "a", "b")
        assert deletes.delete_all(route, ["a", "peera", "b"]) == [True, True, True]
        assert netns.links() == {"lo"}


def test_one_that_cannot_be_deleted_does_not_fail_the_others(netns: Space) -> None:
    with opened(netns) as route:
        make(route, "a", "b")
        first, lo, second = deletes.delete_all(route, ["a", "lo", "b"])
        assert (first, second) == (True, True)
        assert isinstance(lo, OSError)
        assert netns.links() == {"lo"}
        assert netns.ip("link", "show", "lo")[0].get("group") == "default"


class Meddling(Netlink):
    """Lets somebody act just before the message of a kind goes out for the n-th time."""

    def __init__(self, act: object, *, before: str) -> None:
        super().__init__(NETLINK_ROUTE)
        self.act, self.before, self.left = act, before, 1

    def attempt(self, *messages: Message) -> list:  # type: ignore[type-arg]  # as the base class has it
        return self._meddled(super().attempt, *messages)

    def dump(self, message: Message) -> list[bytes]:
        return self._meddled(super().dump, message)

    def _meddled(self, then: object, *messages: Message) -> object:  # type: ignore[override]
        if self.left and any(f"{m.call} {m.subject}".startswith(self.before) for m in messages):
            self.left -= 1
            self.act(messages)  # type: ignore[operator]
        return then(*messages)  # type: ignore[operator]


def test_a_foreign_link_in_the_number_that_was_made_up_survives(netns: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(netns) as route:
        make(route, "a", "b", "foreign")
        numbers = iter([b"\x12\x34", b"\x12\x34", b"\x56\x78"])
        monkeypatch.setattr(os, "urandom", lambda _size: next(numbers))
        route.request(links.set("foreign", group=0x6E701234))
        assert deletes.delete_all(route, ["a", "b"]) == [True, True]
        assert netns.links() == {"lo", "foreign", "peerforeign"}
        found = links.find(route, "foreign")
        assert found is not None and found.group == 0x6E701234


def test_links_that_somebody_takes_out_of_the_group_are_deleted_all_the_same(netns: Space) -> None:
    with opened(netns) as other:
        make(other, "a", "b", "c")

        def take_out(_messages: object) -> None:
            other.request(links.set("b", group=0))

        with netns.call(lambda: Meddling(take_out, before="link delete group")) as route:
            assert deletes.delete_all(route, list("abc")) == [True, True, True]
            assert route.left == 0
        assert netns.links() == {"lo"}


def test_what_a_killed_process_left_in_a_group_is_put_back_by_name(netns: Space) -> None:
    with opened(netns) as route:
        make(route, "npa", "npb", "other", "npfree")

        class Killed(BaseException):
            pass

        def kill(_messages: object) -> None:
            raise Killed

        with netns.call(lambda: Meddling(kill, before="link delete group")) as dying, pytest.raises(Killed):
            deletes.delete_all(dying, ["npa", "npb"])
        route.request(links.set("other", group=0x6E700001), links.set("npfree", group=7))
        assert sorted(deletes.restore_leftovers(route, "np")) == ["npa", "npb"]
        groups = {link.name: link.group for link in links.dump(route)}
        assert (groups["npa"], groups["npb"], groups["other"], groups["npfree"]) == (0, 0, 0x6E700001, 7)
        assert deletes.restore_leftovers(route, "np") == []


def test_a_link_keeps_the_group_its_owner_gave_it_when_the_batch_fails(netns: Space) -> None:
    with opened(netns) as route:
        make(route, "a")
        route.request(links.set("a", group=42), links.set("lo", group=43))
        deletes.delete_all(route, ["a", "lo"])
        found = links.find(route, "lo")
        assert found is not None and found.group == 43


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_links_in_random_batches(netns: Space, seed: int) -> None:
    chance = random.Random(seed)
    with opened(netns) as route:
        names = [f"v{n}" for n in range(100)]
        make(route, *names)
        left = set(names)
        while left:
            batch = chance.sample(names, min(chance.randint(1, 64), 100))
            assert deletes.delete_all(route, list(batch)) == [name in left for name in batch]
            left -= set(batch)
        assert netns.links() == {"lo"}
