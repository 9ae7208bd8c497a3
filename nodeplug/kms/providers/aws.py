"""The AWS KMS provider, by botocore. Its credential chain is used as it is: environment, files, instance metadata.

The id that API servers see is a hash of the key's ARN (and of `suffix`), never the ARN itself. AWS's own yearly
rotation keeps the ARN and decrypts older data by itself, so it shows no new id; a new id comes with a new key behind
the alias, or with a new `suffix` after a rotation on demand.
"""

import hashlib
import threading
from typing import Any, ClassVar

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ReadTimeoutError,
)

from nodeplug.core import document
from nodeplug.core.errors import ConfigInvalid, Error
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

_THROTTLED = {"ThrottlingException", "Throttling", "RequestLimitExceeded", "LimitExceededException", "TooManyRequests"}
_REVOKED = {
    "AccessDeniedException",
    "AccessDenied",
    "DisabledException",
    "KMSInvalidStateException",
    "NotFoundException",
    "InvalidGrantTokenException",
    "InvalidKeyUsageException",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "ExpiredTokenException",
    "SignatureDoesNotMatch",
}
_INVALID = {"InvalidCiphertextException", "IncorrectKeyException"}


class AwsSettings(Record):
    """`[kms.provider]` with type = "aws"."""

    key_: str = key(document.name, name="key", help="id, ARN or alias of a symmetric key")
    region: str = key(document.text, default="", help="where the key is; empty: from the ARN, the environment or files")
    endpoint: str = key(document.text, default="", help="another address than AWS's own, for private endpoints")
    profile: str = key(document.text, default="", help="a profile of the shared credential files")
    suffix: str = key(
        document.text, default="", help="any text; changing it gives a new key id after a rotation on demand"
    )
    decrypt: tuple[str, ...] = key(
        document.array(document.name), default=(), help="older keys, which only decrypt (ids, ARNs or aliases)"
    )
    decrypt_suffixes: tuple[str, ...] = key(
        document.array(document.text), default=(), help="suffixes that were in use before"
    )
    concurrency: int = key(document.integer(1, 256), default=16, help="calls to AWS at one time")
    timeout: float = key(document.duration, default=1.0, help="for one call; failed ones are tried again in time")


class Aws(Provider):
    """See the module."""

    Settings: ClassVar[type[Record]] = AwsSettings

    def __init__(self, settings: Record, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        assert isinstance(settings, AwsSettings)  # what Settings decodes to
        self._own = settings
        self.concurrency = settings.concurrency
        self._lock = threading.Lock()
        self._arns: dict[str, str] = {}  # by key id, for those that were seen
        self._active = ""
        try:
            session = botocore.session.Session(profile=settings.profile or None)
            # AWS's rules for retries know nothing of our caller's deadline; ours do.
            self._client: Any = session.create_client(
                "kms",
                region_name=settings.region or _region_of(settings.key_) or None,
                endpoint_url=settings.endpoint or None,
                config=Config(
                    connect_timeout=settings.timeout,
                    read_timeout=settings.timeout,
                    max_pool_connections=settings.concurrency,
                    retries={"total_max_attempts": 1},
                ),
            )
        except BotoCoreError as error:
            raise ConfigInvalid(f"no client for AWS KMS can be made: {error}") from None

    def key_id(self, call: Call) -> str:
        arn, name = self._describe(self._own.key_, self._own.suffix, call)
        with self._lock:
            self._active, self._arns[name] = name, arn
        return name

    def _describe(self, wanted: str, suffix: str, call: Call) -> tuple[str, str]:
        found = self._ask(call, "describe_key", KeyId=wanted)["KeyMetadata"]
        state = str(found.get("KeyState", ""))
        if state not in ("Enabled", ""):
            raise Revoked(f"AWS says the key is in state {state}", hint="enable it, or cancel its deletion")
        arn = str(found["Arn"])
        return arn, key_id_of(arn, suffix)

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        arn = self._arns.get(key_id)
        name = key_id
        if arn is None:
            name = self.key_id(call)
            arn = self._arns[name]
        reply = self._ask(call, "encrypt", KeyId=arn, Plaintext=plaintext, EncryptionContext=_context(call, name))
        if reply["KeyId"] != arn:
            raise Unreachable("AWS encrypted with another key than it was asked to")
        return Encrypted(bytes(reply["CiphertextBlob"]), name)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        if encrypted.annotations:
            raise CiphertextInvalid("this provider writes no annotations, and the request has some")
        arn = self._arns.get(encrypted.key_id) or self._learn(encrypted.key_id, call)
        reply = self._ask(
            call,
            "decrypt",
            CiphertextBlob=encrypted.ciphertext,
            KeyId=arn,
            EncryptionContext=_context(call, encrypted.key_id),
        )
        return bytes(reply["Plaintext"])

    def _learn(self, key_id: str, call: Call) -> str:
        """Ask AWS about every key of the settings once more: the one wanted may be an older one."""
        for wanted in (self._own.key_, *self._own.decrypt):
            for suffix in (self._own.suffix, *self._own.decrypt_suffixes):
                try:
                    arn, name = self._describe(wanted, suffix, call)
                except Revoked:
                    continue  # another of them may be the one
                with self._lock:
                    self._arns[name] = arn
        if key_id not in self._arns:
            raise KeyUnknown(
                "the settings name no key with the id of the request",
                hint="list older keys in kms.provider.decrypt, older suffixes in kms.provider.decrypt_suffixes",
            )
        return self._arns[key_id]

    def _ask(self, call: Call, operation: str, **arguments: object) -> dict[str, Any]:
        call.seconds_left()
        try:
            reply: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            raise _of_reply(error) from None
        except (NoCredentialsError, CredentialRetrievalError):
            raise Revoked("there are no credentials for AWS", hint="see botocore's credential chain") from None
        except (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, HTTPClientError) as error:
            raise Unreachable(f"AWS KMS does not answer: {type(error).__name__}") from None
        except BotoCoreError as error:
            raise Unreachable(f"the call to AWS KMS failed: {type(error).__name__}") from None
        return reply

    def close(self) -> None:
        self._client.close()


def _of_reply(error: ClientError) -> Error:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _INVALID:
        return CiphertextInvalid("AWS KMS did not make this ciphertext with this key for this API")
    if code in _THROTTLED or status == 429:
        return Throttled(f"AWS KMS asks for fewer calls ({code})")
    if code in _REVOKED or status in (401, 403):
        return Revoked(f"AWS KMS refuses: {code}", hint="look at the key's state, its policy and our credentials")
    return Unreachable(f"AWS KMS answered with {code or status}")


def _context(call: Call, key_id: str) -> dict[str, str]:
    """What AWS binds to the ciphertext and shows in CloudTrail: nothing that is secret, nothing that changes."""
    return {"nodeplug/api": call.api.value, "nodeplug/key-id": key_id}


def _region_of(arn: str) -> str:
    parts = arn.split(":")
    return parts[3] if len(parts) > 5 and parts[0] == "arn" else ""


def key_id_of(arn: str, suffix: str) -> str:
    """The public id of a key. A multi-region key has one for all regions, for its replicas decrypt for each other."""
    parts = arn.split(":")
    resource = parts[-1]
    identity = f"{parts[4]}:{resource}" if resource.startswith("key/mrk-") else arn
    return f"np1-aws-{hashlib.sha256(f'{identity}|{suffix}'.encode()).hexdigest()[:20]}"
