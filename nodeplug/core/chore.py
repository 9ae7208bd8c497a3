"""Chores: work due from state on disk, done by nodeplugd: leases and certificates are renewed, logs rotated.

A room subclasses `Chore` behind its door and enters it in the table of `nodeplug.worker.chores`. A chore remembers
nothing that is not on disk, so a restart or kill -9 loses nothing: each run reads the state files, does what is due and
says when it wants to be called again. A change in its directory calls it at once, so whoever has just written a file
there need not tell anybody. Imports core only; `is_kept` is for those who leave work to a chore.
"""

from __future__ import annotations

from nodeplug.core import files, paths
from nodeplug.core.errors import Internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from nodeplug.core.log import Level

    class Turn(Protocol):
        """One run, as its chore sees it."""

        @property
        def now(self) -> float:
            """When it began, in seconds since the epoch. It may jump; see `Chore.run`."""

        @property
        def stopping(self) -> bool:
            """Whether the daemon ends: do no more than what is under way, and return."""

        def wait(self, seconds: float) -> bool:
            """Sleep, which is never done otherwise; True when the daemon ends meanwhile."""

        def fileno(self) -> int:
            """For poll and select beside other descriptors: readable once the daemon ends."""

        def note(self, message: str, *, level: Level = "info") -> None:
            """A sentence for the daemon's log."""

        def fail(self, what: str, message: str) -> None:
            """One of the things looked after (`what`) is in trouble, and the others go on.

            Told in the log when it is new, seen in health until a run passes without it, counted in metrics.
            """


LOCK = paths.LOCKS + "/chores"


class Chore:
    """Subclass this. One instance serves a daemon, on a thread of its own; no two daemons of a node run the same chore.

    `directory` holds what is due, one file for each thing, written whole (`files.write_atomic`, `create_whole`): a
    name that comes, goes or is replaced there calls the chore, one that begins with a dot does not. Whose state lies
    deeper writes to a file in it. It is made, 0700, where it is missing. `patience` is the seconds after which a run
    that has not ended counts as hung.
    """

    name = ""
    directory = ""
    patience = 300.0

    def __init__(self, settings: Mapping[str, object]) -> None:
        """`settings` are the node's, of which a chore reads its own table (`config.section`): `ConfigInvalid`."""

    def run(self, turn: Turn) -> float | None:
        """Do what is due; returns in how many seconds something will be, None when nothing will by itself.

        Called at the start, after each change in `directory`, when that time has come, when the clock was set, and at
        least once an hour; so it is often called with nothing due, which must be cheap and write nothing. What it
        writes itself calls it once more. Every wait in it is bounded and ends with `turn.stopping`. A lock that calls
        of the door need is held only while something is changed, never while a server is waited for.

        Raises whatever goes wrong as a whole: it is told, and tried again ever later, each minute in the end. Of single
        things use `turn.fail`.
        """
        raise Internal(f"chore {self.name} has nothing to run")


def is_kept(name: str) -> bool:
    """Whether a nodeplugd of this node runs that chore now: it holds a lock while it does."""
    return files.is_locked(LOCK, name)
