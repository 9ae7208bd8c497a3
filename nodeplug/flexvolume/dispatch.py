"""One FlexVolume call from arguments to answer: gate, call the driver, translate.

`answer(call)` is the door, and never raises. It keeps no state of the process: the worker calls it from many threads.
The exit code is always 0: for any other the kubelet logs the whole command line, secrets and all.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import errors, log
from nodeplug.core.call import Answer
from nodeplug.core.errors import ConfigInvalid, Error, Internal, Refused
from nodeplug.core.secret import MASK
from nodeplug.flexvolume import protocol
from nodeplug.flexvolume.contract import MountRequest, Request
from nodeplug.kernel import mount
from nodeplug.volumes.service import DRIVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nodeplug.core.call import Call
    from nodeplug.core.secret import Secret
    from nodeplug.flexvolume.contract import Driver
    from nodeplug.volumes.contract import Pod
    from nodeplug.volumes.policy import Policy

LIMIT = 45.0
"""Seconds that a call may take. The kubelet waits for ever, and a pod for two minutes until it says what is wrong."""

_SHORTEST = 4  # characters of a secret that are looked for in messages; fewer are everywhere


def answer(call: Call, *, to: log.Log, policy: Policy | Error | None = None, driver: Driver | None = None) -> Answer:
    """Serve one call, and tell `to` of it.

    `driver` is what runs; without it, the one of ours that `call.name` names, under `policy`. An error in that place is
    why the policy could not be read: it is raised for what needs one.
    """
    return _Service(call, to, policy, driver).answer()


def refuse(error: Error) -> Answer:
    """The answer to a call that could not even be taken from its process."""
    return Answer(code=0, stdout=protocol.write(protocol.FAILURE, message=str(error)))


class _Service:
    """What is known of one call so far, for its answer and its log record."""

    def __init__(self, call: Call, to: log.Log, policy: Policy | Error | None, driver: Driver | None) -> None:
        self.call = call
        self.log = to
        self.policy = policy
        self.driver = driver
        self.verb = call.argv[0] if call.argv else ""
        self.id = os.urandom(4).hex()
        self.request: Request | None = None
        self.mounted = ""
        self.warnings: list[str] = []

    def answer(self) -> Answer:
        started = time.monotonic()
        error: Error | None = None
        stdout = b""
        try:
            stdout = self._serve(started + LIMIT)
        except Error as raised:
            error = raised
        except OSError as raised:
            error = errors.from_os(raised, f"{self.verb} failed")
            error.__notes__ = getattr(raised, "__notes__", [])
        except (Exception, SystemExit) as raised:  # an author's driver may think that it is a script
            error = fault(raised)
        self.warnings += getattr(error, "__notes__", ())  # what went wrong besides, as in undoing
        message = ""
        if error is not None:
            # By this number an event of the pod and a line of the node's log are known to be of one call.
            message = self._masked(f"{error} (call {self.id})")
            stdout = protocol.write(protocol.FAILURE, message=message)
        self._record(error, message, (time.monotonic() - started) * 1000)
        return Answer(code=0, stdout=stdout, mounted=self.mounted if error is None else "")

    def _serve(self, deadline: float) -> bytes:
        if not self.verb:
            raise ConfigInvalid(
                f"{self.call.name} is a FlexVolume driver", hint=f"its verbs are {', '.join(protocol.VERBS)}"
            )
        driver = self.driver or self._ours()
        if not protocol.supports(type(driver), self.verb):
            return protocol.write(protocol.NOT_SUPPORTED)
        if self.verb == protocol.INIT:
            driver.init()
            return protocol.write_capabilities(driver.capabilities)
        request = protocol.read(self.verb, self.call.argv[1:], driver, deadline=deadline, warn=self.warnings.append)
        self.request = request
        result = getattr(driver, protocol.OPS[self.verb].method)(request)
        if isinstance(request, MountRequest) and driver.mounts:
            self._look_for(request.target)
        return protocol.write_result(self.verb, result)

    def _look_for(self, target: str) -> None:
        """Make sure that something is mounted there; a caller in another process does so for itself."""
        if not mount.is_mounted(target):
            raise Refused(
                f"the driver says that it mounted, and nothing is mounted on {target}",
                hint="what a container wrote there would land on the node's disk",
            )
        head, tail = os.path.split(target)
        self.mounted = os.path.join(os.path.realpath(head), tail)  # as it stands in mountinfo

    def _ours(self) -> Driver:
        if self.call.name not in DRIVERS:
            raise ConfigInvalid(
                f"nodeplug has no FlexVolume driver {self.call.name!r}",
                hint=f"it has {', '.join(sorted(DRIVERS))}; the file's name selects one",
            )
        from nodeplug.flexvolume.drivers.volume import VolumeDriver

        return VolumeDriver(self.call.name, self.policy)

    def _masked(self, text: str) -> str:
        """The text without any secret of the call, raw or in base64: exceptions quote what they are about."""
        request = self.request
        return mask(text, request.secrets.values()) if isinstance(request, MountRequest) else text

    def _record(self, error: Error | None, message: str, duration: float) -> None:
        op = protocol.OPS.get(self.verb)
        if op is not None and not op.logged:
            return
        common: dict[str, Any] = {
            "contract": "flexvolume",
            "op": f"{self.call.name} {self.verb}".strip(),
            "id": self._subject(),
            "pod": self._pod(),
        }
        for sentence in self.warnings:
            told = self._masked(f"{sentence} (call {self.id})")
            self.log.write(log.Event(**common, level="warning", outcome="note", message=told))
        if error is None:
            self.log.write(log.Event(**common, duration_ms=duration))
        else:
            event = log.Event(**common, duration_ms=duration, level="error", outcome="error", message=message)
            self.log.write(event)

    def _subject(self) -> str:
        """What the call is about: the pod's id and the volume, or the directory. Never an argument with the options."""
        op = protocol.OPS.get(self.verb)
        for name, argument in zip(op.arguments if op is not None else (), self.call.argv[1:], strict=False):
            if name in ("target", "directory"):
                known = protocol.pod_directory(argument)
                return f"{known.uid}/{known.volume}" if known.uid else argument
            if name == "volume":
                return argument
        return str(getattr(self.request, "volume", ""))

    def _pod(self) -> log.Pod | None:
        if isinstance(self.request, MountRequest):
            pod: Pod | None = self.request.pod
        else:
            pod = protocol.pod_of(self.verb, self.call.argv[1:])
        return log.Pod(namespace=pod.namespace, name=pod.name, uid=pod.uid) if pod is not None else None


def mask(text: str, secrets: Iterable[Secret]) -> str:
    """The text with every secret in it, raw or in base64, replaced."""
    from binascii import b2a_base64

    for secret in secrets:
        raw = secret.reveal()
        forms = [raw.decode("utf-8", "replace"), b2a_base64(raw, newline=False).decode(), repr(raw)[2:-1]]
        for form in (*forms, *forms[0].split("\n")):
            if len(form) >= _SHORTEST:
                text = text.replace(form, MASK)
    return text


def fault(error: BaseException) -> Internal:
    """An exception nobody foresaw, with the place it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "unknown"
    return Internal(f"{type(error).__name__}: {error}", hint=f"a fault of the driver, at {where}; please report it")
