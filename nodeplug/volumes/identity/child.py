"""Signing in a child: one request in by stdin, one credential out by stdout, nothing in argv but where the package is.

The child is hardened before it reads a key: no core dump, not readable by its peers, not swapped out.
"""

from __future__ import annotations

from nodeplug.core import child, document, errors, jsontext
from nodeplug.core.errors import Error, Internal, Unavailable
from nodeplug.core.record import Record, key
from nodeplug.volumes.identity import certificates
from nodeplug.volumes.identity.issuing import PROGRAM, Ask, Interpreter, issue_here
from nodeplug.volumes.identity.layouts import Credential
from nodeplug.volumes.identity.store import Store, read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST = 1 << 20
_HINT = "start nodeplugd once, or run `nodeplug identity status`, as root: either notes another"
_KINDS = (
    errors.ConfigInvalid,
    errors.NotFound,
    errors.TryAgain,
    errors.Unavailable,
    errors.PermissionRefused,
    errors.Refused,
    errors.TimedOut,
    errors.Malformed,
)


class Order(Record):
    """What the child is asked."""

    directory: str = key(document.absolute_path)
    log: str = key(document.absolute_path)
    ask: Ask = key(document.nested(Ask))


class Reply(Record):
    """What it answers: the fields of a credential, or an error of core.errors."""

    error: str = key(document.text, default="")
    message: str = key(document.text, default="")
    hint: str = key(document.text, default="")
    credential: Credential | None = key(document.nested(Credential), default=None)


def issue(interpreter: Interpreter, directory: str, ask: Ask, *, log: str, timeout: float) -> Credential:
    """A credential made by a child. Raises what it raises, `TimedOut`, `Unavailable` where it cannot be run."""
    order = jsontext.dumps(document.encode(Order(directory=directory, log=log, ask=ask))).encode()
    argv = [interpreter.python, "-I", "-c", PROGRAM, interpreter.path]
    try:
        done = child.run(argv, env={"PATH": "/usr/bin:/bin"}, stdin=order, timeout=timeout, limit=_LARGEST)
    except errors.NotFound:
        raise Unavailable(
            f"{interpreter.python}, which signs certificates, is not there any more",
            hint=_HINT,
        ) from None
    if done.code != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{interpreter.python} could not sign: {said[-1] if said else f'exit status {done.code}'}")
    reply = read_document(Reply, done.stdout, "what the signing child says")
    if reply.credential is None:
        raise _error(reply)
    return reply.credential


def answer(data: bytes, now: Callable[[], float]) -> bytes:
    """The child's side: the reply to one order. Never raises."""
    try:
        if not certificates.can_sign():
            raise Unavailable("the interpreter that is to sign certificates lacks the package cryptography", hint=_HINT)
        order = read_document(Order, data, "the order")
        made = issue_here(Store(order.directory), order.ask, now=int(now()), log=order.log)
        fields = {name: getattr(made, name) for name in made._fields}
        return _reply(credential={**fields, "private_key": made.private_key.reveal().decode("ascii")})
    except Error as error:
        kind = next((each.__name__ for each in _KINDS if type(error) is each), Unavailable.__name__)
        return _reply(error=kind, message=error.message or str(error), hint=error.hint)
    except Exception as error:
        return _reply(error=Internal.__name__, message=f"{type(error).__name__}: {error}")


def _reply(**fields: object) -> bytes:
    return jsontext.dumps(fields).encode()


def _error(reply: Reply) -> Error:
    kind = next((each for each in _KINDS if each.__name__ == reply.error), Internal)
    return kind(reply.message, hint=reply.hint)
