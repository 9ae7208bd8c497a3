"""A new key and certificate for a pod, in this process where it can sign, else in a child that can.

Executed plugins see the standard library only, and signing wants `cryptography`; the daemons' interpreter has it. Which
one that is stands in the authority's directory, written by every command that makes or takes an authority there and by
nodeplugd (`note_interpreter`); the setting `python` goes before it.
"""

from __future__ import annotations

import sys

from nodeplug.core import document, errors, files, jsontext
from nodeplug.core.errors import Error, Malformed, Unavailable
from nodeplug.core.log import RotatingFile
from nodeplug.core.record import Record, key
from nodeplug.volumes.identity import authority as rules
from nodeplug.volumes.identity import certificates, spiffe
from nodeplug.volumes.identity.layouts import Credential
from nodeplug.volumes.identity.store import Store, read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.identity.authority import Authority

PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from nodeplug.volumes.identity.main import main; main()"

_ATTEMPTS = 16
_LARGEST = 1 << 20
_NOTE = "python"


class Ask(Record):
    """Who wants a certificate, for how many seconds, with which kind of key; `volume` and `pod` are for the log."""

    name: str = key(document.name)
    ttl: int = key(document.integer(1))
    key_type: str = key(document.name)
    volume: str = key(document.text, default="")
    pod: str = key(document.text, default="")
    uid: str = key(document.text, default="")
    why: str = key(document.choice("publish", "renew"), default="publish")


class Interpreter(Record):
    """Where the package lies that signs, and what runs it."""

    python: str = key(document.absolute_path)
    path: str = key(document.absolute_path)


def issue(store: Store, ask: Ask, *, now: int, log: str, python: str = "", timeout: float = 30.0) -> Credential:
    """A credential, noted in the issuance log at `log`.

    Raises `Unavailable` with what to run where there is no authority, or none that is valid long enough.
    """
    if certificates.can_sign():
        return issue_here(store, ask, now=now, log=log)
    from nodeplug.volumes.identity import child

    return child.issue(_interpreter(store, python), store.directory, ask, log=log, timeout=timeout)


def issue_here(store: Store, ask: Ask, *, now: int, log: str) -> Credential:
    """Likewise, in this process."""
    found = store.load()
    for _ in range(_ATTEMPTS):
        try:
            made = _signed(store, found, ask, now)
            break
        except (errors.NotFound, ValueError) as error:
            before, found = found, store.load()
            if found == before:
                hint = "ask for a new one: nodeplug identity request"
                raise Unavailable(
                    f"the key of the authority in {store.directory} is gone: {error}", hint=hint
                ) from None
            # The authority has just been replaced, and the old key with it.
    else:
        raise errors.TryAgain(f"the authority in {store.directory} is replaced all the while")
    _note(made, ask, now, log)
    return made


def _signed(store: Store, found: Authority, ask: Ask, now: int) -> Credential:
    from nodeplug.volumes.identity import signing

    try:
        name = spiffe.parse(ask.name)
    except ValueError as error:
        raise errors.ConfigInvalid(f"{ask.name!r} is no SPIFFE ID: {error}") from None
    if name.trust_domain != found.trust_domain or not name.path:
        raise errors.Refused(f"{ask.name} is no name that the authority of {found.trust_domain} may give to a pod")
    found = rules.advance(found, now)  # due, though nobody has written it down yet
    until = rules.end_of_leaf(found, now=now, ttl=ask.ttl)
    signer = found.signer
    assert signer is not None  # or there is no end
    (issuer,) = certificates.read(signer.pem)
    made = signing.leaf(issuer, store.key(signer.key_id), name=name, kind=ask.key_type, now=now, until=until)
    leaf = made.certificate
    return Credential(
        name=ask.name,
        trust_domain=found.trust_domain,
        private_key=made.key,
        chain=leaf.pem + signer.pem,
        roots="".join(each.pem for each in found.roots),
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        serial=made.serial,
        id=leaf.id,
        signer=signer.id,
    )


def _note(made: Credential, ask: Ask, now: int, log: str) -> None:
    """One line for each certificate. A disk that is full takes no pod its identity, so the line may be lost."""
    line = {
        "ts": now,
        "serial": made.serial,
        "id": made.id,
        "name": made.name,
        "not_before": made.not_before,
        "not_after": made.not_after,
        "signer": made.signer,
        "why": ask.why,
        "pod": ask.pod,
        "uid": ask.uid,
        "volume": ask.volume,
    }
    RotatingFile(log)(jsontext.dumps(line).encode() + b"\n", "info")


def note_interpreter(store: Store, *, path: str) -> None:
    """Say that this interpreter, with the package below `path`, can sign. Raises OSError."""
    data = jsontext.dumps(document.encode(Interpreter(python=sys.executable, path=path))).encode() + b"\n"
    note = f"{store.directory}/{_NOTE}"
    try:
        if files.read_bounded(note, _LARGEST) == data:
            return
    except (OSError, Malformed):
        pass
    files.write_atomic(note, data, 0o600)


def _interpreter(store: Store, python: str) -> Interpreter:
    note = f"{store.directory}/{_NOTE}"
    hint = "start nodeplugd once, or run `nodeplug identity status`, as root: either notes it"
    try:
        found = read_document(Interpreter, files.read_bounded(note, _LARGEST), note)
    except FileNotFoundError:
        store.load()  # what is missing may be all of it
        raise Unavailable("it is not known which Python has the package that signs certificates", hint=hint) from None
    except (OSError, Error) as error:
        raise Unavailable(f"cannot read which Python signs certificates: {error}", hint=hint) from None
    return found.replace(python=python) if python else found
