"""Clean-up is all of its steps: each is tried whatever became of the others, and the first error is raised at the end.

    steps = Steps()
    if steps.run(delete_link):
        steps.run(release_address)
    steps.run(delete_rules)
    steps.close()

Used by every back-end that takes things back. Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Steps:
    """The first error so far; later ones are noted on it (PEP 678)."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    def run(self, step: Callable[[], object]) -> bool:
        """Whether it succeeded."""
        try:
            step()
        except Exception as error:
            if self._first is None:
                self._first = error
            else:
                self._first.add_note(f"and then: {error}")
            return False
        return True

    def close(self) -> None:
        """Raise the first error, if there was one."""
        if self._first is not None:
            raise self._first
