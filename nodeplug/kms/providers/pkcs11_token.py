"""A PKCS#11 token: its settings, one login, a pool of sessions, and opening all of it anew after a fault.

python-pkcs11 initializes a module without CKF_OS_LOCKING_OK, which promises the module one thread at a time; so one
session is open unless `concurrency` says that the module does not mind.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as faults

from nodeplug.core import document
from nodeplug.core.record import Record, key
from nodeplug.kms.contract import Call, Revoked, Throttled, Unreachable
from nodeplug.kms.providers.credentials import read_credential

Key = Any
"""A key on the token. Its operations are given to it at run time, by what the token says it may do; no static type has
them."""

_CHECK_BLOCK = b"nodeplug-kms-chk"  # one block of AES
_CANNOT = (faults.MechanismInvalid, faults.FunctionNotSupported, faults.FunctionRejected, faults.KeyTypeInconsistent)
_PIN_FAULTS = (faults.PinIncorrect, faults.PinLocked, faults.PinExpired, faults.PinInvalid, faults.PinLenRange)


class Pkcs11Settings(Record):
    """`[kms.provider]` with type = "pkcs11"."""

    module: str = key(document.absolute_path, help="the PKCS#11 module, a shared library")
    token: str = key(document.name, help="the token's label")
    pin_file: str = key(document.absolute_path, help="the user PIN; 0600")
    key_label: str = key(document.name, name="key", help="label of the AES key that encrypts")
    decrypt: tuple[str, ...] = key(
        document.array(document.name), default=(), help="labels of older keys, which only decrypt"
    )
    mechanism: str = key(
        document.choice("gcm", "wrap"), default="gcm", help="AES-GCM on the token, or AES key wrap (padded, RFC 5649)"
    )
    concurrency: int = key(
        document.integer(1, 64),
        default=1,
        help="sessions; more than 1 only where the module's maker calls it thread-safe without being asked to lock",
    )


@dataclass(frozen=True)
class Session:
    """One session and the keys as seen by it."""

    session: pkcs11.Session
    keys: dict[str, Key]
    active: str


class Token:
    """The module, one login, and a pool of sessions. A fault closes them all; the next borrower opens anew."""

    def __init__(self, settings: Pkcs11Settings) -> None:
        self._settings = settings
        self._condition = threading.Condition()
        self._idle: list[Session] = []
        self._busy = 0
        self._opening = False
        self._library: Any = None
        self._broken = True
        self._refused_pin = b""

    @contextlib.contextmanager
    def borrow(self, call: Call) -> Iterator[Session]:
        """A session for this thread alone. Raises `Throttled` when none is free in time, and what opening raises."""
        session = self._take(call)
        try:
            yield session
        finally:
            with self._condition:
                self._busy -= 1
                if not self._broken:
                    self._idle.append(session)
                self._condition.notify_all()

    def _take(self, call: Call) -> Session:
        with self._condition:
            while True:
                if self._broken:
                    if self._busy == 0 and not self._opening:
                        self._opening = True
                        break
                elif self._idle:
                    self._busy += 1
                    return self._idle.pop()
                if not self._condition.wait(call.seconds_left()):
                    raise Throttled("no session with the token became free in time")
        try:
            sessions = self._open()
        except BaseException:
            with self._condition:
                self._opening = False
                self._condition.notify_all()
            raise
        with self._condition:
            self._opening, self._broken = False, False
            self._idle = sessions
            self._busy += 1
            self._condition.notify_all()
            return self._idle.pop()

    def spoil(self) -> None:
        """What is open is of no use any more."""
        with self._condition:
            self._broken = True
            self._idle.clear()

    def _open(self) -> list[Session]:
        settings = self._settings
        pin = read_credential(settings.pin_file, "the PIN file")
        digest = hashlib.sha256(pin).digest()
        if digest == self._refused_pin:
            # A token locks itself after a few wrong PINs, for good: once is all we try.
            raise Revoked(
                f"the token refused the PIN in {settings.pin_file}, and it is not tried again",
                hint="write the right PIN there; it is read again within seconds",
            )
        try:
            self._initialize()
            token = self._library.get_token(token_label=settings.token)
            # The login is the application's: further sessions have it too.
            opened = [token.open(user_pin=pin.decode("utf-8", "replace"))]
            opened += [token.open() for _ in range(settings.concurrency - 1)]
            return [self._prepare(session) for session in opened]
        except _PIN_FAULTS as error:
            self._refused_pin = digest
            raise Revoked(f"the token refused the PIN in {settings.pin_file}: {type(error).__name__}") from None
        except (faults.NoSuchToken, faults.TokenNotPresent, faults.MultipleTokensReturned) as error:
            raise Unreachable(f'there is no one token "{settings.token}": {type(error).__name__}') from None
        except faults.PKCS11Error as error:
            raise Unreachable(f"the token cannot be opened: {type(error).__name__}") from None

    def _initialize(self) -> None:
        """Anew each time: a module looks for its tokens when it is initialized."""
        if self._library is None:
            try:
                self._library = pkcs11.lib(self._settings.module)
            except (faults.PKCS11Error, RuntimeError) as error:
                raise Unreachable(
                    f"the module {self._settings.module} cannot be loaded and initialized: {type(error).__name__}"
                ) from None
            return
        if self._library.initialized:
            with contextlib.suppress(faults.PKCS11Error):
                self._library.finalize()
        self._library.initialize()

    def _prepare(self, session: pkcs11.Session) -> Session:
        keys: dict[str, Key] = {}
        active = ""
        for label in (self._settings.key_label, *self._settings.decrypt):
            try:
                found = session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=label)
            except faults.NoSuchKey:
                raise Revoked(
                    f'the token has no AES key "{label}"', hint="create it, or restore it from the token's backup"
                ) from None
            except faults.MultipleObjectsReturned:
                raise Revoked(
                    f'the token has several AES keys "{label}"', hint="give each a label of its own"
                ) from None
            name = _key_id(label, found)
            keys[name] = found
            active = active or name
        return Session(session, keys, active)

    def close(self) -> None:
        """Log out and let the module go, unless a call is still in it: a module that is finalized under a call may take
        the process with it, and the end of the process does the same."""
        self.spoil()
        with self._condition:
            if self._busy or self._opening:
                return
            self._opening = True  # nobody comes in meanwhile
        try:
            if self._library is not None and self._library.initialized:
                with contextlib.suppress(faults.PKCS11Error):
                    self._library.finalize()
        finally:
            with self._condition:
                self._opening = False
                self._condition.notify_all()


def _key_id(label: str, found: Key) -> str:
    try:
        check = found.encrypt(_CHECK_BLOCK, mechanism=Mechanism.AES_ECB)
    except _CANNOT:
        try:
            check = bytes(found[Attribute.CHECK_VALUE])
        except faults.PKCS11Error:
            check = b""
    try:
        identity = bytes(found[Attribute.ID])
    except faults.PKCS11Error:
        identity = b""
    parts = (label.encode(), identity, check)
    digest = hashlib.sha256(b"".join(len(part).to_bytes(2, "big") + part for part in parts)).hexdigest()
    return f"np1-p11-{digest[:20]}"
