"""What every remote provider needs around it: joined calls, a cap, retries, a breaker, and troubles told apart.

API servers decrypt in parallel after a start and do not join equal requests; backends throttle, fail for a moment, or
are gone. All of it ends within the caller's deadline.
"""

import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import ParamSpec, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nodeplug.core.errors import Error, TimedOut
from nodeplug.daemon.metrics import LATENCY_BUCKETS
from nodeplug.kms.contract import Call, Encrypted, Provider, Revoked, Throttled, Unreachable

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_BREAK_AFTER = 8
_BREAK_SPAN = 1.0
_BREAK_FOR = 1.0
_ROOM = 0.02  # seconds kept for our own answer


class Breaker:
    """After some failures in a row, over some time, fail calls at once; every `seconds` one of them may try.

    `span` keeps the retries of a single bad moment from counting as an outage.
    """

    def __init__(self, *, after: int = _BREAK_AFTER, span: float = _BREAK_SPAN, seconds: float = _BREAK_FOR) -> None:
        self._after = after
        self._span = span
        self._seconds = seconds
        self._failures = 0
        self._first = 0.0
        self._until = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise `Unreachable` while open; who finds the time over is the one that tries, the others wait longer."""
        if not self.open:
            return
        with self._lock:
            now = time.monotonic()
            if self._until == 0.0:
                return  # it closed meanwhile
            if now < self._until:
                raise Unreachable(f"the backend did not answer the last {self._failures} calls; trying again soon")
            self._until = now + self._seconds

    def note(self, *, reached: bool) -> None:
        """How a call ended."""
        if reached and not self._failures and not self.open:
            return  # as nearly always, and then there is nothing to change
        with self._lock:
            if reached:
                self._failures, self._until = 0, 0.0
                return
            now = time.monotonic()
            if self._failures == 0:
                self._first = now
            self._failures += 1
            if self._until == 0.0 and self._failures >= self._after and now - self._first >= self._span:
                self._until = now + self._seconds

    @property
    def open(self) -> bool:
        return self._until > 0.0


class Guarded(Provider):
    """A remote provider with all of that. `limit` bounds the calls to the backend at one time."""

    def __init__(self, inner: Provider, registry: CollectorRegistry, *, limit: int | None = None) -> None:
        super().__init__(inner.settings, inner.surroundings)
        self._inner = inner
        self.limit = limit or int(getattr(inner, "concurrency", 16))
        # What a call has to hold while it asks the backend. A semaphore is Python all through, with a lock for each who
        # waits: 40 us of a call where 16 are under way; this queue is one call into the interpreter.
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.limit):
            self._slots.put(None)
        self._breaker = Breaker()
        self._flying: dict[bytes, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._joined = Counter(
            "nodeplug_kms_joined_decrypts", "Decrypts answered by an equal one under way.", registry=registry
        )
        seconds = Histogram(
            "nodeplug_kms_backend_seconds",
            "Time of one call to the backend.",
            ["operation"],
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self._seconds = {operation: seconds.labels(operation) for operation in ("key_id", "encrypt", "decrypt")}
        self._errors = Counter(
            "nodeplug_kms_backend_errors", "Failed calls to the backend.", ["operation", "kind"], registry=registry
        )
        self._retries = Counter("nodeplug_kms_backend_retries", "Calls made again.", ["operation"], registry=registry)
        Gauge("nodeplug_kms_breaker_open", "1 while calls fail at once.", registry=registry).set_function(
            lambda: float(self._breaker.open)
        )

    def key_id(self, call: Call) -> str:
        return self._attempt("key_id", call, self._inner.key_id, call)

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        return self._attempt("encrypt", call, self._inner.encrypt, plaintext, key_id, call)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        """Equal requests in flight share one call, whatever their uid; each waits no longer than its own deadline."""
        identity = _identity(encrypted, call)
        with self._lock:
            flight = self._flying.get(identity)
            mine = flight is None
            if flight is None:
                flight = self._flying[identity] = Future()
        if not mine:
            self._joined.inc()
            try:
                return flight.result(call.seconds_left())
            except FutureTimeout:
                raise TimedOut("the backend did not answer in time") from None
            except TimedOut:
                # The one that led had less time than this one: go by itself.
                return self._attempt("decrypt", call, self._inner.decrypt, encrypted, call)
        try:
            plaintext = self._attempt("decrypt", call, self._inner.decrypt, encrypted, call)
        except BaseException as error:
            self._land(identity)
            flight.set_exception(error)
            raise
        self._land(identity)
        flight.set_result(plaintext)
        return plaintext

    def _land(self, identity: bytes) -> None:
        with self._lock:
            del self._flying[identity]

    def reload(self) -> None:
        self._inner.reload()

    def close(self) -> None:
        self._inner.close()

    def _attempt(self, operation: str, call: Call, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        pause = _FIRST_PAUSE
        cause: Error | None = None
        while True:
            try:
                return self._once(operation, call, ask, *args, **kwargs)
            except TimedOut as late:
                # Why the time was used up says more than that it was.
                raise cause or late from None
            except (Throttled, Unreachable) as error:
                cause = error
                wait = random.uniform(0, pause)  # full jitter: nodes that failed together do not return together
                if isinstance(error, Throttled):
                    wait = max(wait, min(error.after, _LONGEST_PAUSE) * random.uniform(0.5, 1.0))
                if wait + _ROOM >= call.deadline - time.monotonic() or self._breaker.open:
                    raise
                self._retries.labels(operation).inc()
                time.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _once(self, operation: str, call: Call, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._breaker.check()
        self._take_slot(call)
        began = time.perf_counter()
        try:
            found = ask(*args, **kwargs)
        except Error as error:
            self._errors.labels(operation, kind_of(error)).inc()
            self._breaker.note(reached=not isinstance(error, (Unreachable, TimedOut)))
            raise
        finally:
            self._slots.put(None)
            self._seconds[operation].observe(time.perf_counter() - began)
        self._breaker.note(reached=True)
        return found

    def _take_slot(self, call: Call) -> None:
        """Wait for one of the slots. Raises `Throttled`, and `TimedOut` for a caller that gave up meanwhile: that says
        nothing about the backend."""
        try:
            self._slots.get(timeout=max(0.0, call.seconds_left() - _ROOM))
        except queue.Empty:
            raise Throttled(f"{self.limit} calls to the backend are under way and none ended in time") from None
        try:
            call.seconds_left()
        except TimedOut:
            self._slots.put(None)
            raise


def kind_of(error: Error) -> str:
    """The class of trouble, for metrics: what an operator looks at differs for each."""
    for kind, name in (
        (Throttled, "throttled"),
        (Revoked, "revoked"),
        (Unreachable, "unreachable"),
        (TimedOut, "slow"),
    ):
        if isinstance(error, kind):
            return name
    return "refused"


def _identity(encrypted: Encrypted, call: Call) -> bytes:
    digest = hashlib.sha256()
    parts = [call.api.value.encode(), encrypted.key_id.encode(), encrypted.ciphertext]
    for name, value in sorted(encrypted.annotations.items()):
        parts += [name.encode(), value]
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
