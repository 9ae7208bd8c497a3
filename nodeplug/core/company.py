"""What a process that serves many calls does for each of them. A process with a single call does all alone.

Whoever waits, deletes or opens something costly asks `present()` for it, wherever he is called from; the worker gives
its threads a company of their own (`join`), and nobody else has to know. What is kept here belongs to the thread.

    with company.present().waiting():            # others may run meanwhile
        time.sleep(pause)
    done = company.present().aside(delete)   # by another thread, while this one looks for what it has brought about
    with company.present().lend(open_netfilter) as netlink:   # kept for the next one where there is a next
    company.present().later(announce)            # when the caller has his answer
"""

from __future__ import annotations

from _thread import _local, allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractContextManager
    from typing import Protocol, TypeVar

    class Closing(Protocol):
        """What can be lent."""

        def close(self) -> None: ...

    T = TypeVar("T")
    C = TypeVar("C", bound=Closing)


class Job:
    """Work that one thread does and another may wait for."""

    __slots__ = ("_ended", "_error", "_work")

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: Exception | None = None
        self._ended = allocate_lock()
        self._ended.acquire()

    def run(self) -> None:
        """Do it. Raises nothing."""
        try:
            self._work()
        except Exception as error:
            self._error = error
        finally:
            self._ended.release()

    def over(self, within: float) -> bool:
        """Whether it has been done, for which `within` seconds are waited. Raises what it raised."""
        if not self._ended.acquire(timeout=within):
            return False
        self._ended.release()
        if self._error is not None:
            raise self._error
        return True


class Company:
    """That of a process which serves one call: nobody else is there."""

    def waiting(self) -> AbstractContextManager[None]:
        """In a `with` block: the thread only waits (for a lock, a child, the kernel), and others may run instead."""
        return _NOTHING

    def aside(self, work: Callable[[], object]) -> Job:
        """Have `work` done by another thread: a call of the kernel that comes back long after it has had its effect.

        Who asked finds out about the effect by himself, and need not wait for the end then; but no process ends before
        the kernel has let go of all its threads.
        """
        job = Job(work)
        try:
            start_new_thread(job.run, ())
        except RuntimeError:  # as many processes and threads as there may be
            job.run()
        return job

    def lend(self, make: Callable[[], C]) -> AbstractContextManager[C]:
        """In a `with` block: what `make()` makes, for nobody else in that time; the same `make` means the same kind.

        It is closed at the end or kept for the next who asks; always closed when the block raises.
        """
        return _Loan(make())

    def by_turns(self, what: str) -> AbstractContextManager[None]:
        """In a `with` block: no other call of this process is in one for the same thing.

        For what the kernel does one at a time anyway, and where it lets those who wait spin.
        """
        return _NOTHING

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` returns, or returned before for an equal `key`: what is read of the same bytes again and again.

        It depends on the key alone, and nobody changes it.
        """
        return make()

    def later(self, work: Callable[[], object]) -> None:
        """Have `work` done once the call is answered: its caller need not wait for it, nor hear of an OSError in it.

        It is lost when the process is killed before.
        """
        try:
            work()
        except OSError:
            pass  # see above


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Loan:
    __slots__ = ("_lent",)

    def __init__(self, lent: Closing) -> None:
        self._lent = lent

    def __enter__(self):  # type: ignore[no-untyped-def]  # what was given, whose type `lend` states
        return self._lent

    def __exit__(self, *_: object) -> None:
        self._lent.close()


_NOTHING = _Nothing()
_ALONE = Company()


class _Here(_local):
    company: Company = _ALONE


_here = _Here()


def present() -> Company:
    """The calling thread's company."""
    return _here.company


def join(company: Company) -> None:
    """Give the calling thread a company, at its start."""
    _here.company = company
