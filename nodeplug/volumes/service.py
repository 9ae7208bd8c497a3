"""What doors and `nodeplug volume` call: publish, unpublish and what there is, for every back-end alike.

Holds locks, state and journal, so that a call is safe beside others and after kill -9. Back-ends are reached through a
static table and imported when they are called for.
"""

from __future__ import annotations

import sys

from nodeplug.core.errors import ConfigInvalid, Unavailable
from nodeplug.volumes.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.volumes.contract import Health, Leftover, Published, Request, Resized, Stats, Volume

DRIVERS = {
    "bind": "nodeplug.volumes.bind:Bind",
    "loop": "nodeplug.volumes.loop:Loop",
    "overlay": "nodeplug.volumes.overlay:Overlay",
    "secret": "nodeplug.volumes.secret:SecretFiles",
    "tmpfs": "nodeplug.volumes.tmpfs:Tmpfs",
}


def implementation(name: str) -> type[Volume]:
    """One of our back-ends. Raises `ConfigInvalid` when there is none of that name."""
    where = DRIVERS.get(name)
    if where is None:
        raise ConfigInvalid(f"nodeplug has no volume {name!r}", hint=f"it has {', '.join(sorted(DRIVERS))}")
    module, _, kind = where.partition(":")
    __import__(module)  # importlib would bring warnings and contextlib along
    return getattr(sys.modules[module], kind)  # type: ignore[no-any-return]  # the table above names back-ends


def _nowhere(_sentence: str) -> None:
    pass


class Service:
    """All volumes of this node, under one policy. Safe among threads, processes and kill -9.

    `timeout` bounds each operation, in seconds: the kubelet itself waits for ever. `warn` is told in a sentence of what
    went wrong besides, though the operation succeeds.
    """

    def __init__(
        self, policy: Policy | None = None, *, timeout: float = 90.0, warn: Callable[[str], None] = _nowhere
    ) -> None:
        self.policy = policy or Policy()
        self.timeout = timeout
        self.warn = warn

    def publish(self, request: Request) -> Published:
        """Show the volume at the request's target.

        The same request again is success, and brings its content up to date; any other on a live target is `Refused`.
        A failure leaves nothing behind, and nothing mounted. Raises what `Volume.validate` and `plan` do, `Refused`
        (something else is mounted there), `TryAgain` (another call is at it), `TimedOut`, `Unavailable`.
        """
        raise Unavailable(f"{request.driver} volumes are not there yet")

    def unpublish(self, target: str) -> None:
        """Take away whatever is at the target, and what was made for it: the directory is empty then, or missing.

        Needs nothing but the path: no state, no directory, no mount, an unreadable mount are all fine, and twice too.
        """
        raise Unavailable(f"cannot unpublish {target}")

    def stats(self, target: str) -> Stats:
        """What the volume at the target holds. Raises `NotFound` when there is none."""
        raise Unavailable(f"cannot look at {target}")

    def health(self, target: str) -> Health:
        """Whether the volume at the target is well. Raises `NotFound` when there is none."""
        raise Unavailable(f"cannot look at {target}")

    def resize(self, target: str, size: int) -> Resized:
        """Make the volume at the target `size` bytes large. Raises `NotFound`, or what the back-end does."""
        raise Unavailable(f"cannot resize {target} to {size}")

    def published(self) -> tuple[Published, ...]:
        """Every volume that the node has a state of, oldest first; `mounted` tells which are at their target now."""
        return ()

    def find(self, target: str) -> Published | None:
        """The volume of that target."""
        return None

    def collect(self, *, apply: bool) -> tuple[Leftover, ...]:
        """What kill -9, a reboot or a vanished pod left over; taken away where `apply` says so."""
        raise Unavailable(f"cannot collect{' and remove' if apply else ''} leftovers")
