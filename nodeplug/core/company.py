"""What calls that one process serves at the same time do for each other. A process with a single call does all alone.

Whoever waits, deletes or opens something costly asks `present()` for it, wherever he is called from; the worker gives
its threads a company of their own (`join`), and nobody else has to know. What is kept here belongs to the thread.

    with company.present().waiting():            # others may run meanwhile
        time.sleep(pause)
    company.present().together(delete_links, name)   # in one go with what others bring at the same time
    with company.present().lend(open_netfilter) as netlink:   # kept for the next one where there is a next
    company.present().later(announce)            # when the caller has his answer
"""

from __future__ import annotations

from _thread import _local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractContextManager
    from typing import Protocol, TypeVar

    class Closing(Protocol):
        """What can be lent."""

        def close(self) -> None: ...

    T = TypeVar("T")
    R = TypeVar("R")
    C = TypeVar("C", bound=Closing)
    Work = Callable[[list[T]], list[R | Exception]]


class Company:
    """That of a process which serves one call: nobody else is there."""

    def waiting(self) -> AbstractContextManager[None]:
        """In a `with` block: the thread only waits (for a lock, a child, the kernel), and others may run instead."""
        return _NOTHING

    def together(self, work: Work[T, R], item: T) -> R:
        """Have `work` done for `item`, in one go with the items that others bring meanwhile; returns its outcome.

        `work` takes items and returns as many outcomes in their order; an exception among them is raised for its item
        alone. Those who name the same function are brought together.
        """
        (outcome,) = work([item])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

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
