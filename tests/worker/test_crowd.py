"""What calls under way at once do for each other: turns, loans."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from nodeplug.core import company
from nodeplug.worker.crowd import Crowd, Seat


def in_threads(count: int, body: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=body, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_only_so_many_run_at_once_and_who_waits_lets_others_run() -> None:
    crowd = Crowd(running=2)
    lock = threading.Lock()
    running = most = 0
    inside = threading.Barrier(6, timeout=20)

    def count(change: int) -> None:
        nonlocal running, most
        with lock:
            running += change
            most = max(most, running)

    def one(_number: int) -> None:
        seat = Seat(crowd)
        company.join(seat)
        with seat:
            count(1)
            count(-1)
            with company.present().waiting(), company.present().waiting():
                inside.wait()  # all six are here at once, though only two may run
            count(1)
            count(-1)

    in_threads(6, one)
    assert most <= 2
    assert crowd.turns.qsize() == 2


def test_a_turn_comes_back_when_the_call_fails() -> None:
    crowd = Crowd(running=1)
    seat = Seat(crowd)
    with pytest.raises(ValueError), seat, seat.waiting():
        raise ValueError
    assert crowd.turns.qsize() == 1


class Thing:
    made = 0
    closed = 0

    def __init__(self) -> None:
        Thing.made += 1

    def close(self) -> None:
        Thing.closed += 1


def test_what_is_lent_is_kept_for_the_next_and_closed_after_a_failure() -> None:
    Thing.made = Thing.closed = 0
    crowd = Crowd(running=1)
    seat = Seat(crowd)
    for _ in range(3):
        with seat.lend(Thing):
            pass
    assert (Thing.made, Thing.closed) == (1, 0)
    with pytest.raises(ValueError), seat.lend(Thing):
        raise ValueError
    assert (Thing.made, Thing.closed) == (1, 1)
    with seat.lend(Thing) as one, seat.lend(Thing) as other:
        assert one is not other
    crowd.close()
    assert Thing.made == Thing.closed == 3


def test_alone_all_is_done_at_once_and_nothing_is_kept() -> None:
    Thing.made = Thing.closed = 0
    alone = company.Company()
    with alone.lend(Thing), alone.waiting():
        assert Thing.closed == 0
    assert Thing.closed == 1


def test_a_threads_company_is_its_own() -> None:
    mine = company.present()
    seen: list[company.Company] = []

    def other(_number: int) -> None:
        company.join(Seat(Crowd(running=1)))
        seen.append(company.present())

    in_threads(1, other)
    assert company.present() is mine
    assert seen[0] is not mine


def test_what_a_caller_need_not_wait_for_is_done_in_order_once_he_has_his_answer() -> None:
    seat = Seat(Crowd(running=1))
    done: list[str] = []

    def gone() -> None:
        done.append("second")
        raise OSError("no such device")

    seat.later(lambda: done.append("first"))
    seat.later(gone)
    seat.later(lambda: done.append("third"))
    assert done == []
    seat.catch_up()
    assert done == ["first", "second", "third"]
    seat.catch_up()
    assert len(done) == 3


def test_alone_nothing_is_put_off_and_an_os_error_in_it_is_nobodys() -> None:
    done: list[str] = []

    def gone() -> None:
        done.append("done")
        raise OSError("no such device")

    company.present().later(gone)
    assert done == ["done"]


def test_what_was_read_once_is_recalled_until_others_have_taken_its_place() -> None:
    seat = Seat(Crowd(running=1))
    made: list[object] = []

    def read(key: object) -> object:
        made.append(key)
        return object()

    first = seat.recall("a", lambda: read("a"))
    assert seat.recall("a", lambda: read("a")) is first
    with pytest.raises(ValueError):
        seat.recall("b", lambda: int("none"))
    for number in range(1000):
        seat.recall(number, lambda number=number: read(number))  # type: ignore[misc]  # bound now
    assert len(seat._crowd._known) <= 512
    assert seat.recall("a", lambda: read("a")) is not first
    assert company.Company().recall("a", lambda: 1) == 1
    assert company.Company().recall("a", lambda: 2) == 2


def test_what_only_one_may_do_at_a_time_is_done_by_turns_and_who_waits_lets_others_run() -> None:
    crowd = Crowd(running=1)
    inside = 0
    most = 0
    ran = threading.Event()

    def one(number: int) -> None:
        nonlocal inside, most
        seat = Seat(crowd)
        if number == 0:
            with seat:
                ran.set()  # the only turn is to be had while the others wait for each other
            return
        with seat, seat.by_turns("this"):
            inside += 1
            most = max(most, inside)
            with seat.waiting():
                assert ran.wait(20)
            inside -= 1

    in_threads(8, one)
    assert (most, inside) == (1, 0)
    with Seat(crowd).by_turns("this"), Seat(crowd).by_turns("that"):
        pass
