"""Undo is a stack, not a flag: each step that takes effect pushes its reverse, success throws the stack away.

    with Undo() as undo:
        link = add_link()
        undo.push(lambda: delete_link(link))
        ...
        undo.commit()

Used by every back-end that changes the node. Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self


class Undo:
    """Leaving the block without `commit()` runs the reverses, last first.

    A reverse that fails does not stop the others and does not hide the first error: it is noted on it (PEP 678), or
    raised when the block itself did not fail.
    """

    def __init__(self) -> None:
        self._reverses: list[Callable[[], object]] = []

    def push(self, reverse: Callable[[], object]) -> None:
        self._reverses.append(reverse)

    def commit(self) -> None:
        """Keep what was done."""
        self._reverses.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        failed: BaseException | None = None
        while self._reverses:
            try:
                self._reverses.pop()()
            except Exception as undoing:
                if error is not None:
                    error.add_note(f"while undoing: {undoing}")
                elif failed is None:
                    failed = undoing
        if failed is not None:
            raise failed
