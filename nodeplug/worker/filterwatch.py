"""Watches the nft table and makes it again when somebody flushed it: masquerade and host ports of every pod hang on it.

The kernel announces each change of the ruleset. Our own calls change elements all the time; what is looked at closer is
a change of the table's frame, and any change by a program that is none of ours. Whether something is missing is then
counted, so nothing is made again for nothing.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

from nodeplug.cni.filter.layout import TABLE
from nodeplug.cni.filter.table import filtering
from nodeplug.core.errors import Error
from nodeplug.daemon.health import Condition, Health
from nodeplug.kernel.attributes import attrs, text
from nodeplug.kernel.listener import NFNLGRP_NFTABLES, Listener
from nodeplug.kernel.netlink import NETLINK_NETFILTER
from nodeplug.worker.pool import THREAD

if TYPE_CHECKING:
    from nodeplug.worker.notes import Note

_SETTLE = 0.1  # seconds: a script flushes and then adds its own, in several transactions
_LOOK_AGAIN = 60.0  # for what no announcement tells
_RETRY = 5.0
_HEADER = 4  # nfgenmsg
_TABLE_NAME = 1  # the first attribute of tables, chains, rules, sets and elements alike
_GEN_NAME = 3  # NFTA_GEN_PROC_NAME
_NEWGEN = 15
_FRAME = frozenset((2, 5, 8, 11))  # DELTABLE, DELCHAIN, DELRULE, DELSET
_CONDITION = "filter"
_THREAD = "filter-watch"


class FilterWatch:
    """A thread from `start()` to `close()`, in the network namespace of whoever makes it."""

    def __init__(self, note: Note, health: Health) -> None:
        self._note = note
        self._health = health
        self._listener = Listener(NETLINK_NETFILTER, NFNLGRP_NFTABLES)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._own = _own_names()
        self._ours = False
        """Whether the transaction that is being announced changes our table."""
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
                return self._wake in select.select([self._wake], [], [], _SETTLE)[0]
        return False

    def _concerns_us(self) -> bool:
        """Whether what is announced may have taken something from the table."""
        try:
            found = self._listener.receive(0)
        except OSError:
            return True  # some were lost
        for type, body in found:
            inner = attrs(body, _HEADER)
            if type & 0xFF == _NEWGEN:  # the end of a transaction, by whom it was
                ours, self._ours = self._ours, False
                if ours and text(inner.get(_GEN_NAME)) not in self._own:
                    return True
            elif text(inner.get(_TABLE_NAME)) == TABLE:
                if type & 0xFF in _FRAME:
                    return True
                self._ours = True
        return False

    def _mend(self) -> bool:
        try:
            with filtering(warn=lambda sentence: self._note(sentence, level="warning")) as table:
                if not table.whole():
                    held = table.repair()
                    self._note(f"the nft table inet {TABLE} had lost something and was made again for {held} shares")
        except Error as error:
            if self._health.set(_CONDITION, Condition(ok=False, message=str(error))):
                self._note(f"the nft table inet {TABLE} cannot be looked after: {error}", level="error")
            return False
        self._health.set(_CONDITION, Condition(ok=True))
        return True


def _own_names() -> frozenset[str]:
    """What the kernel may call this process's threads, by which its announcements name who made a change."""
    with open("/proc/thread-self/comm") as file:
        process = file.read().rstrip("\n")
    return frozenset((process, THREAD, _THREAD))  # from Python 3.14 on threads have their own names there
