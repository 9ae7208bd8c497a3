"""The nouns of the KMS door and the base class of providers. No I/O, no wire.

Providers raise `nodeplug.core.errors`; three of them tell a remote backend's troubles apart, because an operator does
something different about each: `Throttled`, `Revoked`, `Unreachable`.
"""

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from nodeplug.core.errors import ConfigInvalid, Internal, NotFound, Refused, TimedOut, TryAgain, Unavailable
from nodeplug.core.record import Record

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from nodeplug.daemon.health import Health

SEED_BYTES = 32
"""Length of what a v2 API server has encrypted: the seed of its data keys."""

LONGEST_PLAINTEXT = 512
"""Room for any seed or data key; every provider's ciphertext of so much keeps within `LONGEST_CIPHERTEXT`."""

LONGEST_KEY_ID = 1023
LONGEST_CIPHERTEXT = 1024
MOST_ANNOTATION_BYTES = 32768

_NO_ANNOTATIONS: Mapping[str, bytes] = MappingProxyType({})


class Api(enum.Enum):
    """The two versions of the contract, by their gRPC package. Bound into what the local provider encrypts."""

    V2 = "v2"
    V1BETA1 = "v1beta1"


class Throttled(TryAgain):
    """The backend is well and asks for fewer calls."""


class Revoked(Refused):
    """The backend answers, and says no: the key is disabled or destroyed, or our access to it was taken."""


class Unreachable(Unavailable):
    """The backend does not answer, or answers as if it were broken."""


class KeyUnknown(NotFound):
    """No key with that id is here. Another node may have one that was not carried over yet."""


class KeyRetired(Refused):
    """The key is there and put out of use on purpose."""


class CiphertextInvalid(ConfigInvalid):
    """What is to be decrypted was not made by this key, for this API, or was changed since."""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A ciphertext and all that is needed to find its key again.

    One value, because a key id from a second call is a race with a rotation. `annotations` are stored in clear beside
    every object: each byte counts once for each object of the cluster.
    """

    ciphertext: bytes
    key_id: str
    annotations: Mapping[str, bytes] = field(default_factory=lambda: _NO_ANNOTATIONS)

    def size(self) -> int:
        """Bytes it adds to each stored object."""
        parts = sum(len(name) + len(value) for name, value in self.annotations.items())
        return len(self.ciphertext) + len(self.key_id) + parts


@dataclass(frozen=True, slots=True)
class Call:
    """What a provider may know about the call it serves. `deadline` is on the monotonic clock."""

    api: Api
    uid: str = ""
    deadline: float = field(default_factory=lambda: time.monotonic() + 3.0)
    is_cancelled: Callable[[], bool] = lambda: False

    def seconds_left(self) -> float:
        """Until the caller gives up; raises `TimedOut` when it has."""
        left = self.deadline - time.monotonic()
        if left <= 0 or self.is_cancelled():
            raise TimedOut("the caller no longer waits for the answer")
        return left


Level = Literal["debug", "info", "warning", "error"]


class Note(Protocol):
    """Takes a sentence for the log."""

    def __call__(self, message: str, *, level: Level = "info") -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the daemon lends a provider: its environment, conditions, metrics and log."""

    environ: Mapping[str, str]
    health: "Health"
    registry: "CollectorRegistry"
    note: Note


class NoSettings(Record):
    """The settings of a provider that has none."""


class Provider:
    """A way to encrypt. Subclass it, give it three methods, and `run` it.

    `Settings` is a Record whose keys are those of `[kms.provider]`; `in_process` says that no call leaves the process,
    so that joining, retrying and capping them would only cost. Methods are called by many threads at once.
    """

    Settings: ClassVar[type[Record]] = NoSettings
    in_process: ClassVar[bool] = False

    def __init__(self, settings: Record, surroundings: Surroundings) -> None:
        self.settings = settings
        self.surroundings = surroundings

    def key_id(self, call: Call) -> str:
        """The id of the key new data is to be encrypted with: public, stable, never used for another key, the same on
        every node. Asked by the prober now and then, never in the way of an API server."""
        raise Internal(f"{type(self).__name__} has no key_id method")

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        """`plaintext` (at most 512 bytes) under the key `key_id`, the one published last."""
        raise Internal(f"{type(self).__name__} has no encrypt method")

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        """What `encrypt` was given. Raises `KeyUnknown`, `KeyRetired` or `CiphertextInvalid` for what cannot be."""
        raise Internal(f"{type(self).__name__} has no decrypt method")

    def reload(self) -> None:
        """Read again what may have changed on disk. On a fault: keep what is good and state a condition."""

    def close(self) -> None:
        """Give back what is held."""
