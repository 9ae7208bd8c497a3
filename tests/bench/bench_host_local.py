"""host-local's cost by the number of leases, with the reference's beside it.

Target: ADD and DEL at 5,000 leases within 10 % of those at 10, as processes and as the worker will call them.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from nodeplug.cni import dispatch
from nodeplug.core.call import Call
from tests.bench.report import Report
from tests.bench.timer import Round, Watch, measure
from tests.cni.calls import QUIET, environment
from tests.cni.leases import NET, REFERENCE, conf, executable, ours
from tests.needs import needs

pytestmark = needs("sandbox", f"file:{REFERENCE}")

COUNTS = (10, 1000, 5000)
GROWTH = 1.10


def network(directory: Path, count: int) -> bytes:
    """A network with that many leases, taken one after the other; its configuration."""
    config = conf(directory, subnet="10.1.0.0/16")
    for number in range(count):
        name = f"10.1.{number // 250}.{number % 250 + 2}"
        path = directory / NET / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{'0123456789abcdef' * 4}{number}\r\neth0")
        (directory / NET / "last_reserved_ip.0").write_text(name)
    # Its first operation reads all leases, once.
    assert ours("ADD", config, "first")[0] == 0
    assert ours("DEL", config, "first")[0] == 0
    return json.dumps(config).encode()


def processes(plugin: Path | str, config: bytes) -> Round:
    def one_round(watch: Watch) -> None:
        for command in ("ADD", "DEL"):
            watch.run(command, [plugin], stdin=config, env=environment(command, CNI_CONTAINERID="measured"))

    return one_round


def calls(config: bytes) -> Round:
    def one_round(watch: Watch) -> None:
        for command in ("ADD", "DEL"):
            env = environment(command, CNI_CONTAINERID="measured")
            call = Call(contract="cni", name="host-local", env=env, stdin=config)
            with watch.lap(command):
                answer = dispatch.answer(call, to=QUIET)
            assert answer.code == 0, answer.stdout

    return one_round


def tell(report: Report, who: str, *, target: float | None) -> None:
    """Print what each verb costs at the most leases, as a multiple of what it costs at the fewest."""
    names = [f"{who}, {count:,} leases" for count in (COUNTS[0], COUNTS[-1])]
    for label in report.labels():
        wall, cpu = (
            median(high / low for low, high in zip(*(samples(label, name) for name in names), strict=True))
            for samples in (report.walls, report.cpus)
        )
        verdict = "" if target is None else f"; target {target:.2f}: {'met' if cpu <= target else 'MISSED'}"
        print(f"{who}, {label} at {COUNTS[-1]:,} leases through {COUNTS[0]}: time {wall:.2f}, CPU {cpu:.2f}{verdict}")


@pytest.mark.timeout(600)
def bench_host_local_by_leases(directory: Path) -> None:
    plugin = executable(directory)
    reference, whole, called = {}, {}, {}
    for count in COUNTS:
        for who in ("reference", "nodeplug"):
            (directory / f"{who}-{count}").mkdir()
        reference[f"reference, {count:,} leases"] = processes(
            REFERENCE, network(directory / f"reference-{count}", count)
        )
        config = network(directory / f"nodeplug-{count}", count)
        whole[f"nodeplug, {count:,} leases"] = processes(plugin, config)
        called[f"nodeplug, {count:,} leases"] = calls(config)
    report = measure({**reference, **whole}, rounds=50)
    print()
    print(report.markdown(title="host-local, a process a call", command="make bench", versions={"reference": "1.1.1"}))
    tell(report, "reference", target=None)
    tell(report, "nodeplug", target=GROWTH)
    report = measure(called, rounds=200)
    print()
    print(report.markdown(title="host-local, called in a process that runs already", command="make bench"))
    tell(report, "nodeplug", target=GROWTH)
