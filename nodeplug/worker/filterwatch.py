"""Watches the nft table and makes it again when somebody flushed it: masquerade and host ports of every pod hang on it.

The kernel announces each change of the ruleset. What this process changes itself, all the time, it is not told of; what
others change in the table is looked at closer. Whether something is missing is then counted, so nothing is made again
for nothing.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

from nodeplug.cni.filter.layout import TABLE
from nodeplug.cni.filter.table import filtering
from nodeplug.core import company
from nodeplug.core.errors import Error
from nodeplug.daemon.health import Condition, Health
from nodeplug.kernel.attributes import attrs, text
from nodeplug.kernel.listener import NFNLGRP_NFTABLES, Listener
from nodeplug.kernel.netlink import NETLINK_NETFILTER

if TYPE_CHECKING:
    from nodeplug.core.company import Company
    from nodeplug.worker.notes import Note

_MOMENT = 0.1
_SETTLE = 0.1  # seconds: a script flushes and then adds its own, in several transactions
_LOOK_AGAIN = 60.0  # for what no announcement tells
_RETRY = 5.0
_HEADER = 4  # nfgenmsg
_TABLE_NAME = 1  # the first attribute of tables, chains, rules, sets and elements alike
_NEWGEN = 15
_CONDITION = "filter"
_THREAD = "filter-watch"


class FilterWatch:
    """A thread from `start()` to `close()`, in the network namespace of whoever makes it.

    `place` is its company: it looks by a socket that stays open, for closing one would hold up every call meanwhile.
    """

    def __init__(self, note: Note, health: Health, *, place: Company) -> None:
        self._note = note
        self._place = place
        self._health = health
        self._listener = Listener(NETLINK_NETFILTER, NFNLGRP_NFTABLES)
        self._listener.pass_over_own()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._listener.close()
        os.close(self._wake)

    def _run(self) -> None:
        company.join(self._place)
        wait = 0.0  # the table may have been flushed before the start
        while not self._stopped(wait):
            wait = _LOOK_AGAIN if self._mend() else _RETRY

    def _stopped(self, seconds: float) -> bool:
        """Wait until the table has to be looked at, `seconds` at most; True when the watch is to end."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._listener.fileno(), self._wake], [], [], left)
            if self._wake in ready:
                return True
            if ready and self._concerns_us():
                return self._paused(_SETTLE)
        return False

    def _paused(self, seconds: float) -> bool:
        """Let so much time go by; True when the watch is to end."""
        return self._wake in select.select([self._wake], [], [], seconds)[0]

    def _concerns_us(self) -> bool:
        """Whether what is announced may have taken something from the table."""
        try:
            found = self._listener.receive(0)
        except OSError:
            return True  # some were lost
        return any(
            type & 0xFF != _NEWGEN and text(attrs(body, _HEADER).get(_TABLE_NAME)) == TABLE for type, body in found
        )

    def _mend(self) -> bool:
        try:
            with filtering(warn=lambda sentence: self._note(sentence, level="warning")) as table:
                # A plugin beside this process has its share on disk a moment before it is in the table.
                if not table.whole() and not self._paused(_MOMENT) and not table.whole():
                    held = table.repair()
                    self._note(f"the nft table inet {TABLE} had lost something and was made again for {held} shares")
        except Error as error:
            if self._health.set(_CONDITION, Condition(ok=False, message=str(error))):
                self._note(f"the nft table inet {TABLE} cannot be looked after: {error}", level="error")
            return False
        self._health.set(_CONDITION, Condition(ok=True))
        return True
