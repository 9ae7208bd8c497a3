"""The PKCS#11 provider: AES keys that never leave a token (HSM, TPM by tpm2-pkcs11, SoftHSM).

`gcm` encrypts on the token. `wrap`, for tokens that cannot, has the token wrap a fresh key for each message, which is
encrypted here under that key. Keys are found by label; the id that API servers see is a hash of label, CKA_ID and a
check value, so that another key under an old label is another key.

python-pkcs11 initializes a module without CKF_OS_LOCKING_OK, which promises the module one thread at a time; so one
session is open unless `concurrency` says that the module does not mind.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pkcs11
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as faults

from nodeplug.core import document
from nodeplug.core.record import Record, key
from nodeplug.kms.contract import (
    Call,
    CiphertextInvalid,
    Encrypted,
    KeyUnknown,
    Provider,
    Revoked,
    Surroundings,
    Throttled,
    Unreachable,
)
from nodeplug.kms.keyring import cipher
from nodeplug.kms.keyring.seals import read_private

T = TypeVar("T")

# A key's operations are given to it at run time, by what the token says it may do; no static type has them.
_Key = Any

_GCM = 1
_WRAP = 2
_NONCE = 12
_TAG_BITS = 128
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
class _Session:
    """One session and the keys as seen by it."""

    session: pkcs11.Session
    keys: dict[str, _Key]
    active: str


class _Token:
    """The module, one login, and a pool of sessions. A fault closes them all; the next borrower opens anew."""

    def __init__(self, settings: Pkcs11Settings) -> None:
        self._settings = settings
        self._condition = threading.Condition()
        self._idle: list[_Session] = []
        self._busy = 0
        self._opening = False
        self._library: Any = None
        self._broken = True
        self._refused_pin = b""

    @contextlib.contextmanager
    def borrow(self, call: Call) -> Iterator[_Session]:
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

    def _take(self, call: Call) -> _Session:
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

    def _open(self) -> list[_Session]:
        settings = self._settings
        pin = read_private(settings.pin_file, "the PIN file").rstrip(b"\r\n")
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

    def _prepare(self, session: pkcs11.Session) -> _Session:
        keys: dict[str, _Key] = {}
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
        return _Session(session, keys, active)

    def close(self) -> None:
        """Log out and let the module go."""
        self.spoil()
        if self._library is not None and self._library.initialized:
            with contextlib.suppress(faults.PKCS11Error):
                self._library.finalize()


def _key_id(label: str, found: _Key) -> str:
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


class Pkcs11(Provider):
    """See the module."""

    Settings: ClassVar[type[Record]] = Pkcs11Settings

    def __init__(self, settings: Record, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        assert isinstance(settings, Pkcs11Settings)  # what Settings decodes to
        self._mechanism = settings.mechanism
        self.concurrency = settings.concurrency
        self._token = _Token(settings)

    def key_id(self, call: Call) -> str:
        return self._with_session(call, lambda session: self._touch(session))

    @staticmethod
    def _touch(session: _Session) -> str:
        # Any attribute: the answer shows that the token is still there and we are logged in.
        _ = session.keys[session.active][Attribute.LABEL]
        return session.active

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        def act(session: _Session) -> Encrypted:
            name = key_id if key_id in session.keys else session.active
            bound = cipher.bind(call.api, name, "")
            if self._mechanism == "gcm":
                return Encrypted(_encrypt_gcm(session.keys[name], plaintext, bound), name)
            return Encrypted(_encrypt_wrap(session.session, session.keys[name], plaintext, bound), name)

        return self._with_session(call, act)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        def act(session: _Session) -> bytes:
            found = session.keys.get(encrypted.key_id)
            if found is None:
                raise KeyUnknown(
                    "the settings name no key with the id of the request",
                    hint="list the labels of older keys in kms.provider.decrypt",
                )
            bound = cipher.bind(call.api, encrypted.key_id, "")
            data = encrypted.ciphertext
            if encrypted.annotations:
                raise CiphertextInvalid("this provider writes no annotations, and the request has some")
            try:
                if data[:1] == bytes([_GCM]):
                    return _decrypt_gcm(found, data[1:], bound)
                if data[:1] == bytes([_WRAP]):
                    return _decrypt_wrap(found, data[1:], bound)
            except (faults.PKCS11Error, InvalidTag) as error:
                self._tell_apart(error, found)
            raise CiphertextInvalid("the ciphertext has no form that this provider writes, or was changed")

        return self._with_session(call, act)

    @staticmethod
    def _tell_apart(error: Exception, found: _Key) -> None:
        """Return where the data is to blame, raise where the token is: both may be CKR_GENERAL_ERROR."""
        if isinstance(error, InvalidTag):
            return
        try:
            _ = found[Attribute.LABEL]
        except faults.PKCS11Error:
            raise error from None

    def _with_session(self, call: Call, act: Callable[[_Session], T]) -> T:
        """`act` on a session; once more on fresh ones when the first was of no use any more."""
        for attempt in (1, 2):
            with self._token.borrow(call) as session:
                try:
                    return act(session)
                except faults.PKCS11Error as error:
                    self._token.spoil()
                    if attempt == 2:
                        raise Unreachable(f"the token failed: {type(error).__name__}") from None
            call.seconds_left()
        raise Unreachable("the token failed")

    def close(self) -> None:
        self._token.close()


def _encrypt_gcm(found: _Key, plaintext: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    data = found.encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, bound, _TAG_BITS))
    return bytes([_GCM]) + nonce + bytes(data)


def _decrypt_gcm(found: _Key, data: bytes, bound: bytes) -> bytes:
    parameters = GCMParams(data[:_NONCE], bound, _TAG_BITS)
    return bytes(found.decrypt(data[_NONCE:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def _encrypt_wrap(session: pkcs11.Session, found: _Key, plaintext: bytes, bound: bytes) -> bytes:
    one_time = cipher.new_key()
    template = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
        Attribute.VALUE: one_time,
        Attribute.EXTRACTABLE: True,
        Attribute.SENSITIVE: False,
        Attribute.TOKEN: False,
    }
    carrier = session.create_object(template)
    try:
        wrapped = bytes(found.wrap_key(carrier, mechanism=Mechanism.AES_KEY_WRAP_PAD))
    finally:
        carrier.destroy()
    # The key is used once, so the nonce may be constant.
    return bytes([_WRAP, len(wrapped)]) + wrapped + AESGCM(one_time).encrypt(bytes(_NONCE), plaintext, bound)


def _decrypt_wrap(found: _Key, data: bytes, bound: bytes) -> bytes:
    length = data[0] if data else 0
    if len(data) < 1 + length + _TAG_BITS // 8:
        raise InvalidTag
    template = {Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False, Attribute.TOKEN: False}
    carrier = found.unwrap_key(
        ObjectClass.SECRET_KEY,
        KeyType.GENERIC_SECRET,
        data[1 : 1 + length],
        mechanism=Mechanism.AES_KEY_WRAP_PAD,
        template=template,
    )
    try:
        one_time = bytes(carrier[Attribute.VALUE])
    finally:
        carrier.destroy()
    try:
        return AESGCM(one_time).decrypt(bytes(_NONCE), data[1 + length :], bound)
    except ValueError:
        raise InvalidTag from None
