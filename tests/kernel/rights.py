"""Threads without rights, while the rest of the process keeps its own."""

from __future__ import annotations

import ctypes


def drop_this_threads_capabilities() -> None:
    """capset(2) for the calling thread, for good: run it in a thread that ends with the test."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
