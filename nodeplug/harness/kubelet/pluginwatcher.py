"""A kubelet's plugin watcher: sockets that appear in plugins_registry/ are asked who they are and registered.

As the kubelet does it: what is there at the start is walked, names that begin with a dot are passed over, GetInfo has
one second and NotifyRegistrationStatus five, what failed is tried again after a pause that doubles, and a socket that
is removed is deregistered.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from nodeplug.core.errors import Error, Refused, TimedOut
from nodeplug.pb.pluginregistration import v1_pb2 as reg

if TYPE_CHECKING:
    from collections.abc import Callable

GET_INFO = 1.0
NOTIFY = 5.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 120.0
_LOOK = 0.05
"""The kubelet hears of sockets by inotify and acts on them once a second; looking is enough for a harness."""


class PluginWatcher:
    """Watches one directory from `start` to `close`.

    `register(name, endpoint, versions)` registers and raises `Error` when it does not; `deregister(endpoint)` is called
    when a socket is gone.
    """

    def __init__(
        self,
        directory: str,
        register: Callable[[str, str, list[str]], None],
        deregister: Callable[[str], None],
        *,
        pause: float = _FIRST_PAUSE,
    ) -> None:
        self._directory = directory
        self._register = register
        self._deregister = deregister
        self._pause = pause
        self._known: dict[str, tuple[int, int]] = {}
        self._failed: dict[str, tuple[float, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pluginwatcher", daemon=True)
        self.calls = 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop watching; a restarted kubelet begins with an empty memory."""
        self._over.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._over.wait(_LOOK):
            self._look()

    def _look(self) -> None:
        present = self._sockets()
        for path in self._known.keys() - present.keys():
            del self._known[path]
            self._deregister(path)
        for path, identity in present.items():
            if self._over.is_set():
                return
            if self._known.get(path) == identity:
                continue
            due, pause = self._failed.get(path, (0.0, self._pause))
            if time.monotonic() < due:
                continue
            try:
                self._ask(path)
                self._known[path] = identity
                self._failed.pop(path, None)
            except Error:
                self._failed[path] = (time.monotonic() + pause, min(2 * pause, _LONGEST_PAUSE))
        for path in self._failed.keys() - present.keys():
            del self._failed[path]

    def _sockets(self) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, folders, names in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                if stat.S_ISSOCK(status.st_mode) and not name.startswith("."):
                    found[path] = (status.st_ino, status.st_ctime_ns)
        return found

    def _ask(self, path: str) -> None:
        """GetInfo, register, tell how it went. Raises `Error` for what a kubelet tries again."""
        self.calls += 1
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
            info = reg.PluginInfo.FromString(_call(channel, "GetInfo", b"", GET_INFO))
            problem = ""
            try:
                if info.type != "DevicePlugin":
                    raise Refused(f"no handler registered for plugin type: {info.type}")
                self._register(info.name, info.endpoint or path, list(info.supported_versions))
            except Error as error:
                problem = str(error)
            status = reg.RegistrationStatus(plugin_registered=not problem, error=problem)
            _call(channel, "NotifyRegistrationStatus", status.SerializeToString(), NOTIFY)
        if problem:
            raise Refused(problem)


def _call(channel: grpc.Channel, method: str, request: bytes, timeout: float) -> bytes:
    ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/pluginregistration.Registration/{method}")
    try:
        return ask(request, timeout=timeout)
    except grpc.RpcError as failed:
        error: Any = failed
        raise TimedOut(f"{method}: {error.code().name}: {error.details()}") from None
