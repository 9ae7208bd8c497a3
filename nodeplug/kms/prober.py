"""Whether the provider works, and which key it would encrypt with: found out in the background, answered from memory.

One thread keeps the time; a second asks the provider for its key id and, unless real calls have just shown that it
works, encrypts and decrypts a few random bytes. So a provider that never returns (a token's module that hangs) is
noticed too. Jitter keeps the nodes of a cluster from asking in step; one bad answer among good ones changes nothing; an
answer that the key was revoked counts at once.
"""

import os
import random
import threading
import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge

from nodeplug.core.errors import Error, Internal
from nodeplug.daemon.health import Condition, Health
from nodeplug.daemon.threads import Threads
from nodeplug.kms.contract import SEED_BYTES, Api, Call, Note, Provider, Revoked, Unreachable

_GRACE = 0.5  # seconds; a provider that keeps its deadline answers within them


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, and how many failures in a row make a provider unwell."""

    well: float = 30.0
    unwell: float = 5.0
    patience: float = 5.0
    failures: int = 3
    stale: float = 150.0  # without any proof for so long one failure is enough, and a call so long under way never ends


@dataclass(frozen=True, slots=True)
class View:
    """What Status answers: the last known key id ("" before there was one) and "ok" or what is wrong."""

    key_id: str
    healthz: str


class _Asked:
    """A question to the provider that is under way or over."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.over = threading.Event()
        self.key_id = ""
        self.error: Error | None = None


class Prober:
    """See the module. `view` is swapped whole; `proved` and `suspect` are told by the calls that pass."""

    def __init__(
        self,
        provider: Provider,
        health: Health,
        registry: CollectorRegistry,
        note: Note,
        pace: Pace | None = None,
    ) -> None:
        self._provider = provider
        self._health = health
        self._note = note
        self._pace = pace or Pace()
        self._failures = 0
        self._proof = 0.0
        self._wake = threading.Event()
        self._stop = False
        self._asking: _Asked | None = None
        self._asker = Threads(1, "kms-probe")
        self.view = View("", "not probed yet")
        self._healthy = Gauge("nodeplug_kms_healthy", "1 while the provider is well.", registry=registry)
        self._age = Gauge(
            "nodeplug_kms_proof_age_seconds", "Since the provider was last seen to work.", registry=registry
        )
        self._age.set_function(lambda: time.monotonic() - self._proof if self._proof else float("inf"))
        self._thread = threading.Thread(target=self._run, name="kms-prober", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> None:
        """End, or leave a provider that does not return to the end of the process."""
        self._stop = True
        self._wake.set()
        if self._asking is not None:
            self._asking.over.wait(seconds)
        self._asker.shutdown()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def wake(self) -> None:
        """Probe soon: settings or keys have changed."""
        self._wake.set()

    def proved(self) -> None:
        """A call of a client has just succeeded."""
        self._proof = time.monotonic()

    def suspect(self) -> None:
        """A call of a client has just failed by the backend's fault; while all seemed well, look at once."""
        if self._failures == 0:
            self._wake.set()

    @property
    def alive(self) -> bool:
        """For the watchdog: false when the thread does not turn, or the provider has been in one call for so long that
        only another process can be better."""
        asking = self._asking
        hangs = asking is not None and time.monotonic() - asking.began > self._pace.stale
        return self._stop or (self._thread.is_alive() and not hangs)

    def probe(self, *, patience: float | None = None) -> None:
        """Judge now, within `patience` seconds (else the pace's). Never raises for the provider's fault.

        For one thread at a time: the prober's own, once that has begun.
        """
        patience = patience or self._pace.patience
        asking = self._asking
        if asking is None:
            asking = self._asking = _Asked()
            self._asker.submit(self._ask, asking, patience)
        if not asking.over.wait(patience + _GRACE):
            since = time.monotonic() - asking.began
            self._failed(Unreachable(f"the provider does not return from a call, now {since:.0f} s long"))
            return
        self._asking = None
        if asking.error is not None:
            self._failed(asking.error)
        else:
            self._succeeded(asking.key_id)

    def _ask(self, asking: _Asked, patience: float) -> None:
        try:
            asking.key_id = self._proven(asking.began, patience)
        except Error as error:
            asking.error = error
        except Exception as error:
            asking.error = Internal(f"the provider failed with {type(error).__name__}")
        finally:
            asking.over.set()

    def _proven(self, began: float, patience: float) -> str:
        call = Call(Api.V2, "probe", began + patience)
        key_id = self._provider.key_id(call)
        if began - self._proof > self._pace.well or key_id != self.view.key_id or self._failures:
            sample = os.urandom(SEED_BYTES)
            if self._provider.decrypt(self._provider.encrypt(sample, key_id, call), call) != sample:
                raise Internal("the provider decrypts to something else than was encrypted")
            self._proof = time.monotonic()
        return key_id

    def _succeeded(self, key_id: str) -> None:
        self._failures = 0
        self._healthy.set(1)
        if key_id != self.view.key_id:
            self._note(f"new data is to be encrypted with {key_id}")
        self.view = View(key_id, "ok")
        if self._health.set("provider", Condition(ok=True)):
            self._note("the provider is well")

    def _failed(self, error: Error) -> None:
        self._failures += 1
        stale = time.monotonic() - self._proof > self._pace.stale
        if not (stale or self._failures >= self._pace.failures or isinstance(error, Revoked) or not self.view.key_id):
            return
        self._healthy.set(0)
        text = " ".join(str(error).split())[:500]
        self.view = View(self.view.key_id, text)
        if self._health.set("provider", Condition(ok=False, message=text)):
            self._note(f"the provider is not well: {text}", level="error")

    def _run(self) -> None:
        while not self._stop:
            usual = self._pace.unwell if self._failures else self._pace.well
            self._wake.wait(usual * random.uniform(0.8, 1.2))
            self._wake.clear()
            if not self._stop:
                self.probe()
