"""The kernel's device events: read whole, from the kernel alone, with losses told."""

from __future__ import annotations

import socket
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel.uevent import Listener, Uevent, parse
from tests.child import until
from tests.needs import needs

NULL = Path("/sys/class/mem/null/uevent")
PLACE = "/devices/virtual/mem/null"


def test_a_datagram_is_read() -> None:
    place = b"/devices/a/tty/ttyUSB0"
    data = b"add@" + place + b"\0ACTION=add\0DEVPATH=" + place + b"\0SUBSYSTEM=tty\0DEVNAME=ttyUSB0\0SEQNUM=7\0"
    event = parse(data)
    assert event is not None
    assert (event.action, event.devpath) == ("add", "/devices/a/tty/ttyUSB0")
    assert (event.subsystem, event.devname, event.sequence) == ("tty", "ttyUSB0", 7)


def test_udevs_own_messages_are_none() -> None:
    assert parse(b"libudev\0\xfe\xed\xca\xfe" + bytes(40)) is None


@given(st.binary(max_size=400))
def test_any_bytes_are_an_event_or_none(data: bytes) -> None:
    event = parse(data)
    assert event is None or (event.devpath.startswith("/") and event.action.isalpha())


@needs("sandbox")
def test_an_event_the_kernel_sends_is_heard() -> None:
    with Listener() as listener:
        heard: list[Uevent] = []
        NULL.write_text("change")
        until(lambda: heard.extend(listener.read()[0]) or any(event.devpath == PLACE for event in heard), "the event")
        found = next(event for event in heard if event.devpath == PLACE)
        assert (found.action, found.subsystem, found.devname) == ("change", "mem", "null")


@needs("sandbox")
def test_events_the_kernel_drops_are_told_as_dropped() -> None:
    with Listener() as listener:
        listener._socket.setsockopt(socket.SOL_SOCKET, 33, 4096)  # SO_RCVBUFFORCE: a queue of a few events
        for _ in range(200):
            NULL.write_text("change")
        until(lambda: listener.read()[1], "the overflow")
        NULL.write_text("change")
        heard: list[Uevent] = []
        until(lambda: heard.extend(listener.read()[0]) or any(event.devpath == PLACE for event in heard), "the event")


@needs("sandbox")
def test_another_process_cannot_speak_for_the_kernel() -> None:
    with Listener() as listener, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as forger:
        forger.bind((0, 0))
        forger.sendto(b"add@/devices/forged\0ACTION=add\0DEVPATH=/devices/forged\0", (0, 1))
        NULL.write_text("change")
        heard: list[Uevent] = []
        until(lambda: heard.extend(listener.read()[0]) or any(event.devpath == PLACE for event in heard), "the event")
        assert "/devices/forged" not in [event.devpath for event in heard]
