"""Work done by a thread beside the one that answers: waited for as long as somebody wants, its failure told."""

from __future__ import annotations

import threading

import pytest

from nodeplug.worker.aside import MOST, Asides
from tests.child import until


def running() -> int:
    return sum(thread.name == "aside" for thread in threading.enumerate())


def test_what_is_not_done_yet_is_told_and_so_is_its_end() -> None:
    asides = Asides()
    go = threading.Event()
    job = asides.do(go.wait)
    assert not job.over(0.0)
    assert not job.over(0.01)
    go.set()
    assert job.over(20)
    assert job.over(0.0)
    asides.close()


def test_what_failed_is_raised_to_each_who_asks_and_the_next_is_done() -> None:
    asides = Asides()
    failed = asides.do(lambda: int("none"))
    for _ in range(2):
        with pytest.raises(ValueError, match="none"):
            failed.over(20)
    assert asides.do(lambda: None).over(20)
    asides.close()


def test_a_thread_that_is_free_takes_the_next() -> None:
    before = running()
    asides = Asides()
    for _ in range(50):
        assert asides.do(lambda: None).over(20)
        until(lambda: asides._free == 1, "it is free again")
    assert running() == before + 1
    asides.close()
    until(lambda: running() == before, "it has ended")


def test_where_all_are_busy_the_caller_does_it_himself() -> None:
    asides = Asides()
    go = threading.Event()
    held = [asides.do(go.wait) for _ in range(MOST)]
    here: list[str] = []
    assert asides.do(lambda: here.append(threading.current_thread().name)).over(0.0)
    assert here == [threading.current_thread().name]
    go.set()
    assert all(job.over(20) for job in held)
    asides.close()
    assert asides.do(lambda: here.append("after the end")).over(0.0)
    assert here[1:] == ["after the end"]
