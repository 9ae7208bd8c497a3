"""The interleaved timer of all benchmarks: A B A B ..., whole processes, ratios pair by pair.

Contenders take turns, one round each, so that whatever else the machine does meets all of them alike; each round of one
is compared with the same round of the first. What else ran meanwhile is measured and stands in the report.

    def go(watch):                                   # one round; what is timed says so, the rest is preparation
        with a_pod() as netns:
            watch.run("ADD", [GO / "bridge"], stdin=conf, env=env(netns, "ADD"))
            watch.run("DEL", [GO / "bridge"], stdin=conf, env=env(netns, "DEL"))

    report = measure({"Go": go, "nodeplug": ours}, rounds=50)
    print(report.markdown(title="bridge + host-local", command="make bench", versions={"Go plugins": "1.1.1"}))
    assert report.ratio("DEL", "nodeplug") <= 0.5    # medians of ratios, never seconds

Times of one label in one round add up (a chain of plugins is one ADD). `watch.lap("...")` times a block of our own
process instead, for daemons. The first warm-up round weighs instead: it runs each process below a small one, because
the kernel counts what a process's parent held when it was made as the process's own peak; so nothing is lighter than
a bare Python. The tables are made for docs/performance.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench.machine import Load
from tests.bench.report import Report, Sample

_PIPE = 1 << 20  # the largest unprivileged pipe: stdin is written before the child starts
_TIMEOUT = 60.0
_SCALES = (
    "/usr/bin/python3",
    "-IS",
    "-c",
    "import os, sys\n"
    "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)\n"
    "_, status, usage = os.wait4(pid, 0)\n"
    "os.write(2, b'%d' % usage.ru_maxrss)\n"
    "os._exit(os.waitstatus_to_exitcode(status) & 255)\n",
)


@dataclass(frozen=True)
class Ran:
    """What a timed process left behind."""

    code: int
    stdout: bytes


@dataclass
class Watch:
    """One contender's stop-watch for one round; with `weighs` its scales."""

    samples: dict[str, Sample] = field(default_factory=dict)
    weighs: bool = False
    weights: dict[str, int] = field(default_factory=dict)

    def run(
        self,
        label: str,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        expect: int | None = 0,
    ) -> Ran:
        """Time a whole process: from before it is spawned until it is reaped and its output read.

        `argv[0]` is a path. stderr is ours. Raises AssertionError when it exits with another code than `expect`.
        """
        command = [os.fspath(part) for part in argv]
        environment = dict(os.environ if env is None else env)
        if self.weighs:
            weighed = subprocess.run(
                [*_SCALES, *command], input=stdin, env=environment, capture_output=True, timeout=_TIMEOUT, check=False
            )
            peak = int(re.findall(rb"[0-9]+$", weighed.stderr)[0]) * 1024
            self.weights[label] = max(peak, self.weights.get(label, 0))
            return _expected(command, weighed.returncode, weighed.stdout, expect)
        source, filled = os.pipe()
        out, output = os.pipe()
        try:
            if stdin:
                os.set_blocking(filled, False)
                _grow(filled, len(stdin))
                assert os.write(filled, stdin) == len(stdin), "stdin does not fit a pipe"
            os.close(filled)
            filled = -1
            actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
            begin = time.perf_counter()
            pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
            os.close(output)
            output = -1
            stdout = _read_all(out, pid)
            _, status, usage = os.wait4(pid, 0)
            wall = time.perf_counter() - begin
        finally:
            for descriptor in (source, filled, out, output):
                if descriptor >= 0:
                    os.close(descriptor)
        self._add(label, Sample(wall=wall, cpu=usage.ru_utime + usage.ru_stime))
        return _expected(command, os.waitstatus_to_exitcode(status), stdout, expect)

    @contextmanager
    def lap(self, label: str) -> Iterator[None]:
        """Time the block, in this process."""
        cpu, begin = time.process_time(), time.perf_counter()
        yield
        wall = time.perf_counter() - begin
        self._add(label, Sample(wall=wall, cpu=time.process_time() - cpu))

    def _add(self, label: str, sample: Sample) -> None:
        before = self.samples.get(label)
        self.samples[label] = before + sample if before else sample


Round = Callable[[Watch], object]


def measure(contenders: Mapping[str, Round], *, rounds: int = 50, warm_up: int = 2) -> Report:
    """Let the contenders take turns, `rounds` times after `warm_up` that do not count. The first is the baseline."""
    taken: dict[str, list[dict[str, Sample]]] = {name: [] for name in contenders}
    weights: dict[str, dict[str, int]] = {}
    load = Load()
    for number in range(-warm_up, rounds):
        for name, one_round in contenders.items():
            watch = Watch(weighs=number == -warm_up and warm_up > 0)
            one_round(watch)
            if watch.weighs:
                weights[name] = watch.weights
            elif number >= 0:
                taken[name].append(watch.samples)
    return Report(taken, weights=weights, others=load.others())


def _expected(command: Sequence[str], code: int, stdout: bytes, expect: int | None) -> Ran:
    assert expect is None or code == expect, f"{' '.join(command)}: exit status {code}\n{stdout.decode()}"
    return Ran(code, stdout)


def _grow(pipe: int, size: int) -> None:
    if size > 65536:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, min(size, _PIPE))


def _read_all(fd: int, pid: int) -> bytes:
    parts: list[bytes] = []
    deadline = time.monotonic() + _TIMEOUT
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            os.wait4(pid, 0)
            raise AssertionError(f"a timed process ran longer than {_TIMEOUT} s")
        data = os.read(fd, 65536)
        if not data:
            return b"".join(parts)
        parts.append(data)
