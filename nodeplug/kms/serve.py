"""Gate, call, translate: the two services over raw bytes, in front of one provider.

`Status` answers from the prober's view and publishes its key id: v2 `Encrypt` uses the key published last, so that a
rotation never answers with a key the API server has not been told of. v1beta1 has no Status; its ciphers carry their
key and use the newest at once.
"""

import time
from collections.abc import Callable

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

import nodeplug
from nodeplug.core.errors import Error, Internal, TimedOut, TryAgain, Unavailable
from nodeplug.core.log import Event, Log
from nodeplug.daemon import grpcserver
from nodeplug.daemon.metrics import LATENCY_BUCKETS
from nodeplug.daemon.quiet import Quiet
from nodeplug.kms import protocol
from nodeplug.kms.contract import LONGEST_PLAINTEXT, Api, Call, Encrypted, Provider
from nodeplug.kms.prober import Prober

_LONGEST_WAIT = 10.0  # seconds, for a caller that sets no deadline

_BACKEND = (Unavailable, TryAgain, TimedOut)
_PROMPT = ("Status", "Version")  # never wait for the provider
_NAMED = ("v2/Encrypt", "v2/Decrypt")


class Service:
    """Both APIs. `answer_*` take a request's bytes and return the answer's; they raise what `protocol` translates."""

    def __init__(
        self,
        provider: Provider,
        prober: Prober,
        registry: CollectorRegistry,
        log: Log,
        *,
        status_version: str = "v2",
        verbose: bool = False,
    ) -> None:
        self._provider = provider
        self._prober = prober
        self._log = log
        self._verbose = verbose
        self._status_version = status_version
        self._published = ""
        self._status: tuple[object, bytes] = (None, b"")
        self._quiet = Quiet()
        self._failures = Counter(
            "nodeplug_kms_failures",
            "Failed calls by API, method and code.",
            ["api", "method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "nodeplug_kms_call_seconds",
            "Time to answer; its count is that of good answers.",
            ["api", "method"],
            registry=registry,
            buckets=LATENCY_BUCKETS,
        )
        self._keys = Counter(
            "nodeplug_kms_key_uses", "Successful operations by key.", ["key_id", "operation"], registry=registry
        )
        self._uses: dict[tuple[str, str], Counter] = {}

    def services(self, apis: tuple[str, ...]) -> list[grpcserver.Service]:
        """The gRPC services for the APIs named."""
        found = []
        if Api.V2.value in apis:
            found.append(
                self._service(
                    Api.V2,
                    protocol.V2_SERVICE,
                    {
                        "Status": self.answer_v2_status,
                        "Encrypt": self.answer_v2_encrypt,
                        "Decrypt": self.answer_v2_decrypt,
                    },
                )
            )
        if Api.V1BETA1.value in apis:
            found.append(
                self._service(
                    Api.V1BETA1,
                    protocol.V1BETA1_SERVICE,
                    {
                        "Version": self.answer_v1_version,
                        "Encrypt": self.answer_v1_encrypt,
                        "Decrypt": self.answer_v1_decrypt,
                    },
                )
            )
        return found

    def answer_v2_status(self, data: bytes, _call: grpcserver.Call) -> bytes:
        protocol.read_v2_status(data)
        view = self._prober.view
        if not view.key_id:
            raise Unavailable(f"no key is known yet: {view.healthz}")
        self._published = view.key_id
        known, answer = self._status
        if known is not view:
            answer = protocol.write_v2_status(version=self._status_version, healthz=view.healthz, key_id=view.key_id)
            self._status = (view, answer)
        return answer

    def answer_v2_encrypt(self, data: bytes, call: grpcserver.Call) -> bytes:
        request = protocol.read_v2_encrypt(data)
        key_id = self._published or self._prober.view.key_id
        return protocol.write_v2_encrypt(self._encrypt(request, key_id, _as_call(Api.V2, request.uid, call)))

    def answer_v2_decrypt(self, data: bytes, call: grpcserver.Call) -> bytes:
        request = protocol.read_v2_decrypt(data)
        return protocol.write_v2_decrypt(self._decrypt(request.encrypted, _as_call(Api.V2, request.uid, call)))

    def answer_v1_version(self, data: bytes, _call: grpcserver.Call) -> bytes:
        protocol.read_v1_version(data)
        return protocol.write_v1_version(nodeplug.__version__)

    def answer_v1_encrypt(self, data: bytes, call: grpcserver.Call) -> bytes:
        request = protocol.read_v1_encrypt(data)
        key_id = self._prober.view.key_id
        return protocol.write_v1_encrypt(self._encrypt(request, key_id, _as_call(Api.V1BETA1, "", call)))

    def answer_v1_decrypt(self, data: bytes, call: grpcserver.Call) -> bytes:
        request = protocol.read_v1_decrypt(data)
        return protocol.write_v1_decrypt(self._decrypt(request.encrypted, _as_call(Api.V1BETA1, "", call)))

    def _encrypt(self, request: protocol.EncryptRequest, key_id: str, call: Call) -> Encrypted:
        if not key_id:
            raise Unavailable(f"no key is known yet: {self._prober.view.healthz}")
        try:
            encrypted = self._provider.encrypt(request.plaintext, key_id, call)
        except _BACKEND:
            self._prober.suspect()
            raise
        try:
            protocol.check_shape(encrypted)
        except Error as error:
            raise Internal(f"the provider's answer breaks the contract: {error}") from None
        if encrypted.key_id != key_id:
            self._prober.wake()  # the provider has moved on; until Status says so, API servers throw such answers away
        self._used(encrypted.key_id, "encrypt")
        return encrypted

    def _decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        try:
            plaintext = self._provider.decrypt(encrypted, call)
        except _BACKEND:
            self._prober.suspect()
            raise
        if not isinstance(plaintext, bytes) or not 1 <= len(plaintext) <= LONGEST_PLAINTEXT:
            raise Internal("the provider's answer breaks the contract: what it decrypted was never encrypted here")
        self._used(encrypted.key_id, "decrypt")
        return plaintext

    def _used(self, key_id: str, operation: str) -> None:
        self._prober.proved()
        counter = self._uses.get((key_id, operation))
        if counter is None:
            counter = self._uses[key_id, operation] = self._keys.labels(key_id, operation)
        counter.inc()

    def _service(
        self, api: Api, name: str, methods: dict[str, Callable[[bytes, grpcserver.Call], bytes]]
    ) -> grpcserver.Service:
        observed = {method: self._observed(api, method, answer) for method, answer in methods.items()}
        return grpcserver.Service(name, observed, prompt=_PROMPT)

    def _observed(self, api: Api, method: str, answer: grpcserver.Unary) -> grpcserver.Unary:
        """`answer` counted, timed and logged, its errors translated. The one boundary of the door."""
        seconds = self._seconds.labels(api.value, method)
        op = f"{api.value}/{method}"

        def observed(data: bytes, call: grpcserver.Call) -> bytes:
            began = time.perf_counter()
            try:
                reply = answer(data, call)
            except Exception as error:
                code, text = protocol.status_of(error)
                self._failures.labels(api.value, method, code.name).inc()
                self._tell(op, data, code, error, text, time.perf_counter() - began)
                raise grpcserver.Abort(code, text) from None
            took = time.perf_counter() - began
            seconds.observe(took)
            if self._verbose:
                self._log.write(Event(contract="kms", op=op, level="debug", id=_uid(op, data), duration_ms=took * 1000))
            return reply

        return observed

    def _tell(self, op: str, data: bytes, code: grpc.StatusCode, error: Exception, text: str, took: float) -> None:
        """One line for a failure; a second of the same kind within a second is only counted."""
        number = code.value[0]
        if not self._quiet.passes((op, number)):
            return
        message = f"{code.name}: {text}"
        if not isinstance(error, Error):
            # What an unforeseen exception says may hold what it was given; its kind and its place cannot.
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "unknown place"
            message = f"{code.name}: {type(error).__name__} at {place}"
        event = Event(
            contract="kms",
            op=op,
            level="warning",
            id=_uid(op, data),
            duration_ms=took * 1000,
            outcome="error",
            code=number,
            message=message + self._quiet.held((op, number)),
        )
        self._log.write(event)


def _uid(op: str, data: bytes) -> str:
    """The uid of the call, by which an API server's own log names it."""
    return protocol.read_v2_uid(data) if op in _NAMED else ""


def _as_call(api: Api, uid: str, call: grpcserver.Call) -> Call:
    left = call.seconds_left
    wait = _LONGEST_WAIT if left is None else min(left, _LONGEST_WAIT)
    return Call(api, uid, time.monotonic() + wait, lambda: call.cancelled)
