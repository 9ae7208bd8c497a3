"""The PKCS#11 provider: AES keys that never leave a token (HSM, TPM by tpm2-pkcs11, SoftHSM).

`gcm` encrypts on the token. `wrap`, for tokens that cannot, has the token wrap a fresh key for each message, which is
encrypted here under that key. Keys are found by label; the id that API servers see is a hash of label, CKA_ID and a
check value, so that another key under an old label is another key.
"""

import os
from collections.abc import Callable
from typing import ClassVar, TypeVar

import pkcs11
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as faults

from nodeplug.core.record import Record
from nodeplug.kms.contract import (
    Call,
    CiphertextInvalid,
    Encrypted,
    KeyUnknown,
    Provider,
    Surroundings,
    Unreachable,
)
from nodeplug.kms.keyring import cipher
from nodeplug.kms.providers.pkcs11_token import Key, Pkcs11Settings, Session, Token

T = TypeVar("T")

_GCM = 1
_WRAP = 2
_NONCE = 12
_TAG_BITS = 128


class Pkcs11(Provider):
    """See the module."""

    Settings: ClassVar[type[Record]] = Pkcs11Settings

    def __init__(self, settings: Record, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        assert isinstance(settings, Pkcs11Settings)  # what Settings decodes to
        self._mechanism = settings.mechanism
        self.concurrency = settings.concurrency
        self._token = Token(settings)

    def key_id(self, call: Call) -> str:
        return self._with_session(call, lambda session: self._touch(session))

    @staticmethod
    def _touch(session: Session) -> str:
        # Any attribute: the answer shows that the token is still there and we are logged in.
        _ = session.keys[session.active][Attribute.LABEL]
        return session.active

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        def act(session: Session) -> Encrypted:
            name = key_id if key_id in session.keys else session.active
            bound = cipher.bind(call.api, name, "")
            if self._mechanism == "gcm":
                return Encrypted(_encrypt_gcm(session.keys[name], plaintext, bound), name)
            return Encrypted(_encrypt_wrap(session.session, session.keys[name], plaintext, bound), name)

        return self._with_session(call, act)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        def act(session: Session) -> bytes:
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
    def _tell_apart(error: Exception, found: Key) -> None:
        """Return where the data is to blame, raise where the token is: both may be CKR_GENERAL_ERROR."""
        if isinstance(error, InvalidTag):
            return
        try:
            _ = found[Attribute.LABEL]
        except faults.PKCS11Error:
            raise error from None

    def _with_session(self, call: Call, act: Callable[[Session], T]) -> T:
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


def _encrypt_gcm(found: Key, plaintext: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    data = found.encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, bound, _TAG_BITS))
    return bytes([_GCM]) + nonce + bytes(data)


def _decrypt_gcm(found: Key, data: bytes, bound: bytes) -> bytes:
    parameters = GCMParams(data[:_NONCE], bound, _TAG_BITS)
    return bytes(found.decrypt(data[_NONCE:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def _encrypt_wrap(session: pkcs11.Session, found: Key, plaintext: bytes, bound: bytes) -> bytes:
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


def _decrypt_wrap(found: Key, data: bytes, bound: bytes) -> bytes:
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
