"""What a runtime is told when nobody can answer a CNI call: the worker ended over it, or nothing here can run it.

The worker asks for `last_words` before it acts; `nodeplug install` writes `absent` beside the plugins, for a shim that
finds neither worker nor launcher. Never a false success: what was not done is asked for again.
"""

from __future__ import annotations

from nodeplug.cni import protocol
from nodeplug.core.call import Answer, LastWords
from nodeplug.core.errors import TryAgain, Unavailable
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.core.call import Call
    from nodeplug.core.errors import Error

_ENDED = "nodeplug's worker ended before it could answer"
_ABSENT = "nodeplug's worker cannot be reached, and no Python runs plugins on this host"
_LEAVING = "this plugin of nodeplug's is being taken out of the node, and makes no new attachments"
_NONE_INSTEAD = "put another in its place, or install nodeplug's again"
_HINT = "`systemctl status nodeplugd`, or the pod that runs it, says why"


class Word(Record):
    """One verb's. `seconds` is how long a shim that can run nothing goes on looking for the worker."""

    error: type[Error]
    repeatable: bool
    seconds: int = 0


# ADD may have been half done: the runtime undoes it by DEL before it asks again. What is repeatable runs once more.
WORDS = {
    "ADD": Word(error=TryAgain, repeatable=False),
    "DEL": Word(error=TryAgain, repeatable=True, seconds=10),
    "CHECK": Word(error=TryAgain, repeatable=True),
    "GC": Word(error=TryAgain, repeatable=True),
    "STATUS": Word(error=Unavailable, repeatable=True),
    "VERSION": Word(error=TryAgain, repeatable=True),
}
_OTHER = Word(error=TryAgain, repeatable=True)


def last_words(call: Call) -> LastWords:
    """The answer to give if the worker never does."""
    return _SAID.get(call.env.get("CNI_COMMAND", ""), _SAID[""])


def leaving() -> tuple[tuple[str, ...], bytes]:
    """The lines of `.nodeplug/leaving`, the calls that a plugin which is being taken out no longer gets; and what they
    are answered where no other plugin comes in its place.
    """
    answer = _answer(WORDS["ADD"], "ADD", _LEAVING, hint=_NONE_INSTEAD)
    return tuple(f"CNI_COMMAND={command}" for command in ("ADD", "STATUS", "VERSION")), answer.stdout


def absent() -> bytes:
    """The lines of `.nodeplug/absent`: seconds, exit code, which call (a variable and its value, or `*`), stdout."""
    lines = []
    for command, word in (*WORDS.items(), ("", _OTHER)):
        answer = _answer(word, command, _ABSENT)
        which = f"CNI_COMMAND={command}" if command else "*"
        lines.append(f"{word.seconds} {answer.code} {which} ".encode() + answer.stdout.replace(b"\n", b"") + b"\n")
    return b"".join(lines)


def _answer(word: Word, command: str, message: str, *, hint: str = _HINT) -> Answer:
    return Answer(code=1, stdout=protocol.write_error(word.error(message, hint=hint), command, ""))


_SAID = {
    command: LastWords(answer=_answer(word, command, _ENDED), yourself=word.repeatable)
    for command, word in (*WORDS.items(), ("", _OTHER))
}
