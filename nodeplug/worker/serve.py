"""One request from its arrival to its answer. Called by the pool's threads; what a call is about, the door knows.

Nothing is changed on the node before the last words are out: see docs/wire.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error, TimedOut
from nodeplug.core.log import Event
from nodeplug.kernel.netns import Stranded
from nodeplug.worker import wire
from nodeplug.worker.wire import Gone

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping

    from nodeplug.core.call import Answer, Call
    from nodeplug.core.log import Level, Log
    from nodeplug.worker.crowd import Seat
    from nodeplug.worker.doors import Door
    from nodeplug.worker.frames import Request
    from nodeplug.worker.world import World

_LAST_WORDS = 1.0
_ANSWER = 10.0
"""Seconds for the client to take them; what does not fit into the socket's buffer waits for it to read."""


@dataclass(frozen=True)
class Arrived:
    """A whole request and the connection it came by, both to be closed by whoever serves it."""

    contract: str
    connection: socket
    request: Request
    since: float

    def close(self) -> None:
        self.request.close()
        self.connection.close()


@dataclass(frozen=True)
class Service:
    """What serves: the doors with what answers, the world they work in. `tell` hears how each request ended."""

    world: World
    doors: Mapping[str, tuple[Door, Callable[[Call], Answer]]]
    log: Log
    tell: Callable[[str, str, float], None]

    def serve(self, arrived: Arrived, seat: Seat) -> None:
        """Answer one request. Raises `Stranded`, after which the thread must end."""
        try:
            outcome = self._serve(arrived, seat)
        except Stranded as stranded:
            self._note(arrived, f"{stranded}; the thread ends, and its caller has its last words", level="error")
            self.tell(arrived.contract, "stranded", time.monotonic() - arrived.since)
            raise
        finally:
            arrived.close()
        self.tell(arrived.contract, outcome, time.monotonic() - arrived.since)
        seat.catch_up()

    def _serve(self, arrived: Arrived, seat: Seat) -> str:
        door, answers = self.doors[arrived.contract]
        call = arrived.request.call
        with seat:
            fault = self.world.fault(arrived.request)
            if fault:
                self._note(arrived, f"{fault}: it runs the call itself", level="debug")
                return "foreign"
            try:
                wire.send_last_words(arrived.connection, door.last_words(call), deadline=time.monotonic() + _LAST_WORDS)
            except (Gone, TimedOut):
                return "late"
            answer = answers(call)
        return self._send(arrived, answer) or ("error" if door.failed(answer) else "ok")

    def _send(self, arrived: Arrived, answer: Answer) -> str:
        """What came of the sending; nothing when it was heard."""
        try:
            wire.send_answer(arrived.connection, answer, deadline=time.monotonic() + _ANSWER)
        except Error as error:
            # It has its last words: for what may not be repeated they say that the runtime is to ask again.
            self._note(arrived, f"the call was done, and its answer not heard: {error}", level="warning")
            return "unheard"
        return ""

    def _note(self, arrived: Arrived, sentence: str, *, level: Level) -> None:
        call = arrived.request.call
        self.log.write(Event(contract=arrived.contract, op=call.name, level=level, outcome="note", message=sentence))
