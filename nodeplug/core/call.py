"""A call is a value: what an exec door is asked and what it answers.

`main` makes a `Call` from its process, the worker from a frame, a test or the harness by hand. A door is one function
`answer(call) -> Answer` that never raises. Imports records only.
"""

from __future__ import annotations

from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Call(Record):
    """One execution of a plugin.

    `contract` is the door ("cni", "flexvolume"), `name` the plugin it was called as, `argv` what follows that name.
    `files` are descriptors that came with the call ("netns": CNI_NETNS as the caller opened it); whoever made the call
    closes them. None means that it comes from this very process, so that its paths can be opened here; otherwise a file
    that is not among them is one that the caller could not open.
    """

    contract: str
    name: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str]
    stdin: bytes = b""
    files: Mapping[str, int] | None = None


class Answer(Record):
    """What the process prints and its exit code.

    `mounted` is a path that must be a mount point for the caller, or else the answer does not hold: whoever gives the
    answer to the caller looks at its own mountinfo first. The directories on the way to it are no symbolic links.
    """

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    mounted: str = ""


class LastWords(Record):
    """What the caller is to say when no answer to a call arrives.

    `yourself` asks it to run the call itself first, if it can: for calls that may be made twice.
    """

    answer: Answer
    yourself: bool
