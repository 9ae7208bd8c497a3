"""The pool behind a gRPC server: few threads, each job's end told once, nothing waited for at the end."""

from __future__ import annotations

import threading

import pytest

from nodeplug.daemon.threads import Threads


def test_threads_of_the_pool_are_few_while_calls_come_one_by_one() -> None:
    pool = Threads(8, "t")
    seen: set[int] = set()
    over = threading.Semaphore(0)
    for _ in range(50):
        pool.submit(lambda: seen.add(threading.get_ident())).add_done_callback(lambda _: over.release())
        assert over.acquire(timeout=10)
    pool.shutdown()
    assert len(seen) <= 2


def test_as_many_jobs_run_at_once_as_there_may_be_threads_and_no_more() -> None:
    pool = Threads(4, "t")
    leave, running = threading.Event(), threading.Semaphore(0)
    over = threading.Semaphore(0)

    def job() -> None:
        running.release()
        leave.wait(10)

    for _ in range(9):
        pool.submit(job).add_done_callback(lambda _: over.release())
    for _ in range(4):
        assert running.acquire(timeout=10)
    assert not running.acquire(timeout=0.1)
    leave.set()
    for _ in range(9):
        assert over.acquire(timeout=10)
    pool.shutdown()


def test_the_end_of_a_job_is_told_once_whenever_it_is_asked_for_and_whatever_the_job_raised() -> None:
    pool = Threads(1, "t")
    told: list[int] = []

    def fails() -> None:
        raise ValueError("lost")

    for number in range(500):
        future = pool.submit(fails)
        if number % 3 == 0:
            pool.submit(lambda: None)
        future.add_done_callback(lambda _, number=number: told.append(number))
    done = threading.Event()
    pool.submit(lambda: None).add_done_callback(lambda _: done.set())
    assert done.wait(10)
    assert sorted(told) == list(range(500))
    pool.shutdown()


def test_jobs_under_way_outlive_the_shutdown_and_new_ones_are_refused() -> None:
    pool = Threads(2, "t")
    leave, began = threading.Event(), threading.Event()
    over = threading.Event()

    def job() -> None:
        began.set()
        leave.wait(10)

    pool.submit(job).add_done_callback(lambda _: over.set())
    assert began.wait(10)
    pool.shutdown(wait=True)
    assert not over.is_set()
    with pytest.raises(RuntimeError):
        pool.submit(job)
    leave.set()
    assert over.wait(10)
