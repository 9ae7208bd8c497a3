"""What a measurement was made on, and what else that machine did meanwhile."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


class Load:
    """How busy others kept the CPUs since it was made."""

    def __init__(self) -> None:
        self._busy, self._ours, self._begin = _busy_seconds(), _our_seconds(), time.monotonic()

    def others(self) -> float:
        """The part of all CPU time, 0 to 1, that neither we nor our finished children took."""
        elapsed = (time.monotonic() - self._begin) * (os.cpu_count() or 1)
        others = (_busy_seconds() - self._busy) - (_our_seconds() - self._ours)
        return min(1.0, max(0.0, others / elapsed)) if elapsed else 0.0


def describe() -> str:
    """The machine in one line: kernel, CPUs, memory, Python."""
    facts = Path("/proc/meminfo").read_text().split()
    gigabytes = round(int(facts[facts.index("MemTotal:") + 1]) / 1024**2)
    kernel = f"Linux {platform.release().split('-')[0]} {platform.machine()}"
    cpus = f"{os.cpu_count()} CPUs ({_cpu_model() or 'of an unnamed model'})"
    return f"{kernel}, {cpus}, {gigabytes} GiB, Python {platform.python_version()}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return ""


def _busy_seconds() -> float:
    # user nice system idle iowait irq softirq steal: idle and iowait are not busy; steal is another guest's work.
    ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _our_seconds() -> float:
    return sum(os.times()[:4])
