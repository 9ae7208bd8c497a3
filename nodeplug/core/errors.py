"""The one error tree, named by what the caller should do next.

    Error
    |-- ConfigInvalid        mend the document or the arguments; `problems` lists every one found
    |-- VersionUnsupported   speak one of the versions named
    |-- NotFound             what you name is not there
    |-- TryAgain             the same call later, after `after` seconds, may succeed
    |-- Unavailable          nothing of this kind works until the node is mended
    |-- PermissionRefused    run it with the rights named
    |-- Refused              this very thing is not allowed or conflicts with another
    |-- TimedOut             it was not done in time; it may be tried again
    `-- Internal             a fault of nodeplug; report it

Rooms subclass where a contract tells cases apart. Each door's protocol ends with a table from this tree to its own
codes, looked up by `code_of`. Imports nothing.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType


class Error(Exception):
    """Base of all errors a caller may see.

    `message` is a sentence: what is wrong and where; `hint` says what to do next. Neither ever holds a secret.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ConfigInvalid(Error):
    """A document, argument or variable is wrong. `problems` has (path, sentence) for each fault found."""

    def __init__(self, message: str, *, problems: Iterable[tuple[str, str]] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        found = "; ".join(f"{path}: {sentence}" for path, sentence in self.problems)
        return ": ".join(part for part in (super().__str__(), found) if part)


class Malformed(ConfigInvalid):
    """A document that cannot be read at all: not JSON, not TOML, not UTF-8, too large."""


class VersionUnsupported(Error):
    """The version asked for is not spoken; the message names those that are."""


class NotFound(Error):
    """What the caller names does not exist."""


class TryAgain(Error):
    """A passing state: a lock held, an address pool exhausted, a service restarting. `after` is in seconds."""

    def __init__(self, message: str, *, hint: str = "", after: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class Unavailable(Error):
    """The node cannot do this at all until somebody mends it: a full disk, a missing kernel feature, a backend gone."""


class PermissionRefused(Error):
    """The process lacks a right; the message names it."""


class Refused(Error):
    """Understood and possible, but not allowed or in conflict with something that exists."""


class TimedOut(Error):
    """A bounded wait ended before its event."""


class Internal(Error):
    """A fault of nodeplug itself."""


_BY_ERRNO: dict[int, type[Error]] = {
    errno.EPERM: PermissionRefused,
    errno.EACCES: PermissionRefused,
    errno.EAGAIN: TryAgain,
    errno.EBUSY: TryAgain,
    errno.EINTR: TryAgain,
    errno.ETIMEDOUT: TimedOut,
    errno.EEXIST: Refused,
    errno.ENOENT: NotFound,
    errno.ENODEV: NotFound,
    errno.ESRCH: NotFound,
}


def from_os(error: OSError, doing: str, *, hint: str = "") -> Error:
    """The error to raise for a failed system call; `doing` says what was attempted ("cannot create bridge cni0").

    Anything not in the table above (ENOSPC, EROFS, EIO, EOPNOTSUPP ...) is the node's fault: `Unavailable`.
    """
    kind = TimedOut if isinstance(error, TimeoutError) else _BY_ERRNO.get(error.errno or 0, Unavailable)
    reason = error.strerror or str(error)
    subject = f" [{error.filename}]" if error.filename else ""
    return kind(f"{doing}: {reason}{subject}", hint=hint)


def doing(what: str, *, hints: Mapping[int, str] | None = None) -> Doing:
    """In a `with` block: an OSError becomes the error that `from_os` makes of it, with `what` as its beginning.

    `hints` says by errno what to do next.
    """
    return Doing(what, hints or {})


class Doing:
    """See `doing`."""

    __slots__ = ("_hints", "_what")

    def __init__(self, what: str, hints: Mapping[int, str]) -> None:
        self._what = what
        self._hints = hints

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise from_os(error, self._what, hint=self._hints.get(error.errno or 0, "")) from error


def code_of(error: BaseException, table: Mapping[type[BaseException], int]) -> int:
    """The entry of `table` for the nearest ancestor of the error's class. KeyError when none is in the table."""
    for kind in type(error).__mro__:
        if kind in table:
            return table[kind]
    raise KeyError(type(error).__name__)
