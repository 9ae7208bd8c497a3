"""Who has which device, asked of the kubelet's podresources and remembered.

`in_use` answers from memory, as discovery must not wait; asking it is what makes the thread ask the kubelet, at most
every two seconds and not at all while nobody wants to know.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping

from nodeplug.core.errors import Error
from nodeplug.deviceplugin import client, protocol
from nodeplug.deviceplugin.protocol import Holder

_LIMIT = 16 << 20
_TIMEOUT = 5.0
_LEAST = 2.0
_FRESH = 15.0

Held = Mapping[str, Mapping[str, list[Holder]]]


def ask(socket: str, *, timeout: float = _TIMEOUT) -> Held:
    """By resource and device, who has it. Raises `Error` when the kubelet does not tell."""
    answer = client.call(socket, protocol.LIST_PODS, protocol.write_list_pods(), timeout=timeout, limit=_LIMIT)
    return protocol.read_list_pods(answer)


class PodResources:
    """A memory of the kubelet's last answer. `news` is called after each new one."""

    def __init__(self, socket: str, *, news: Callable[[], None]) -> None:
        self._socket = socket
        self._news = news
        self._held: Held | None = None
        self._at = 0.0
        self._wanted = threading.Event()
        self._unanswered = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="podresources", daemon=True)
        self._thread.start()

    def in_use(self, resource: str) -> Collection[str] | None:
        """The devices of a resource that pods have; None when that is not known now."""
        self._wanted.set()
        held = self._held
        if held is None or time.monotonic() - self._at > _FRESH:
            self._unanswered = True
            return None
        return held.get(resource, {}).keys()

    def last(self, resource: str) -> Collection[str] | None:
        """The same without asking the kubelet, however old; None when it never said."""
        held = self._held
        return None if held is None else held.get(resource, {}).keys()

    def close(self) -> None:
        self._over.set()
        self._wanted.set()
        self._thread.join(0.2)  # a call under way ends within its own bound

    def _run(self) -> None:
        while not self._over.is_set():
            self._wanted.wait()
            self._wanted.clear()
            before, unanswered = self._held, self._unanswered
            self._unanswered = False
            try:
                self._held = ask(self._socket)
                self._at = time.monotonic()
            except Error:
                self._held = None
            if self._held is not None and (unanswered or self._held != before) and not self._over.is_set():
                self._news()
            self._over.wait(_LEAST)
