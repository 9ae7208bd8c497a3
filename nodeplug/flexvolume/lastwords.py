"""What the kubelet is told when nobody can answer its call: the worker ended over it, or nothing here can run it.

The worker asks for `last_words` before it acts; `nodeplug install` writes `absent` for a shim that finds neither worker
nor launcher. Never a false success of what changes the node: what was not done is asked for again.
"""

from __future__ import annotations

from nodeplug.core.call import Answer, LastWords
from nodeplug.core.record import Record
from nodeplug.flexvolume import protocol
from nodeplug.flexvolume.drivers.volume import VolumeDriver, capabilities
from nodeplug.volumes import service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.core.call import Call

_ENDED = "nodeplug's worker ended before it could answer; the kubelet tries again"
_ABSENT = (
    "nodeplug's worker cannot be reached, and no Python runs drivers on this host; the kubelet tries again; "
    "`systemctl status nodeplugd`, or the pod that runs it, says why"
)


class Word(Record):
    """One verb's. `seconds` is how long a shim that can run nothing goes on looking for the worker."""

    repeatable: bool = True
    seconds: int = 0


# A mount may be under way in a worker that is only slow, so the kubelet is to ask again: by then it has ended or been
# taken back. An unmount may be done by whoever is at hand.
WORDS = {
    "mount": Word(repeatable=False, seconds=5),
    "unmount": Word(seconds=10),
    "expandfs": Word(repeatable=False),
}


def last_words(call: Call) -> LastWords:
    """The answer to give if the worker never does."""
    verb = call.argv[0] if call.argv else ""
    return LastWords(answer=_answer(verb, _ENDED), yourself=WORDS.get(verb, Word()).repeatable)


def absent() -> bytes:
    """The lines of `.nodeplug/absent`: seconds, exit code, which call (`driver/verb`, a verb, or `*`), stdout.

    init succeeds. A driver that the kubelet did not load when it started would not be there when the worker is, which
    may be a pod of that very kubelet; one that is loaded says why a mount fails, and lets a pod end once the worker is
    back.
    """
    lines = []
    for name in sorted(service.DRIVERS):
        init = protocol.write_capabilities(capabilities(service.implementation(name)))
        lines.append(f"0 0 {name}/{protocol.INIT} ".encode() + init)
    for verb in (*WORDS, "*"):
        seconds = WORDS.get(verb, Word()).seconds
        lines.append(f"{seconds} 0 {verb} ".encode() + _answer(verb, _ABSENT).stdout)
    return b"".join(lines)


def _answer(verb: str, message: str) -> Answer:
    if verb in (*WORDS, protocol.INIT):
        return Answer(code=0, stdout=protocol.write(protocol.FAILURE, message=message))
    supported = protocol.supports(VolumeDriver, verb)
    assert not supported, f"{verb} needs words of its own"
    return Answer(code=0, stdout=protocol.write(protocol.NOT_SUPPORTED))
