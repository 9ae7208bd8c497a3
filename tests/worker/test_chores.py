"""Chores of nodeplugd: done when due and when told, whatever becomes of the others, of the daemon and of the clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeplug.core import chore as kept
from nodeplug.daemon.health import Health
from nodeplug.worker import chores, keeper, settings
from nodeplug.worker.chores import Chores
from tests.child import Process, run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker import rounds
from tests.worker.node import Node
from tests.worker.rounds import Rounds, add, made, uptime
from tests.worker.test_metrics import fetch, value
from tests.worker.test_world import bare_root

pytestmark = needs("sandbox")


class Kept:
    """Chores on threads of this process; what they say is in `said`."""

    def __init__(self, *chores: Rounds) -> None:
        self.said: list[str] = []
        self.health = Health()
        self.chores = Chores(list(chores), lambda message, **_more: self.said.append(message), self.health)

    def trouble(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.health.trouble()

    def times(self, text: str) -> int:
        return sum(text in line for line in self.said)

    def account(self, number: int = 0) -> keeper.Account:
        return self.chores._keepers[number].account


@pytest.fixture
def keep(ledger: Ledger) -> Callable[..., Kept]:
    def start(*chores: Rounds) -> Kept:
        found = Kept(*chores)
        ledger.adopt("chores", lambda: found.chores.close(5.0))
        return found

    return start


def named(name: str, directory: Path) -> Rounds:
    chore = Rounds({}, str(directory))
    chore.name = name
    return chore


def test_what_is_due_is_done_at_the_start_and_again_when_its_time_has_come(
    keep: Callable[..., Kept], directory: Path
) -> None:
    add(directory, "late")
    add(directory, "soon", every=0.05)
    add(directory, "far", due=uptime() + 3600)
    keep(named("rounds", directory))
    until(lambda: made(directory, "soon") >= 3 and made(directory, "late") == 1, "they are made")
    assert made(directory, "far") == 0


def test_a_file_that_is_written_calls_it_though_it_wanted_to_sleep(keep: Callable[..., Kept], directory: Path) -> None:
    chore = named("rounds", directory)
    keep(chore)
    until(lambda: chore.runs > 0, "it has looked")
    for name in ("one", "two", "three"):
        add(directory, name)
        until(lambda name=name: made(directory, name) == 1, f"{name} is made")  # type: ignore[misc]  # bound now
    add(directory, "two")  # replaced: due once more
    until(lambda: made(directory, "two") == 1, "two is made again")


def test_nothing_due_is_not_looked_at_again_and_again(keep: Callable[..., Kept], directory: Path) -> None:
    chore = named("rounds", directory)
    add(directory, "one")
    keep(chore)
    until(lambda: made(directory, "one") == 1 and chore.runs == 2, "its own change called it once more")
    (directory / ".hidden~").write_text("")  # the temporary names of writers do not count
    assert not holds(lambda: chore.runs > 2, seconds=0.5)


def holds(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether it comes true within that time; for what must not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_directory_that_is_taken_away_is_made_and_watched_again(keep: Callable[..., Kept], directory: Path) -> None:
    place = directory / "deeper" / "rounds"
    keep(named("rounds", place))
    until(place.is_dir, "it is made")
    assert place.stat().st_mode & 0o777 == 0o700
    place.rmdir()
    until(place.is_dir, "it is made again")
    add(place, "one")
    until(lambda: made(place, "one") == 1, "and watched")


def test_without_watches_it_is_looked_at_all_the_same(
    keep: Callable[..., Kept], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_STEP", 0.1)
    place = directory / "rounds"
    place.write_text("a file where the directory should be")
    keep(named("rounds", place))
    place.unlink()
    until(place.is_dir, "the place is taken as soon as it is free")
    add(place, "one")
    until(lambda: made(place, "one") == 1, "one is made")


def test_one_that_raises_stops_no_other_and_is_tried_again_until_it_succeeds(
    keep: Callable[..., Kept], ledger: Ledger
) -> None:
    first, second = ledger.directory(), ledger.directory()
    (first / "raise").write_text("")
    found = keep(named("failing", first), named("rounds", second))
    until(found.trouble("chore-failing: the rounds cannot be made; remove the file raise"), "health says so")
    assert found.health.live and not found.health.ready
    add(second, "one")
    until(lambda: made(second, "one") == 1, "the other one works")
    until(lambda: found.account().failed >= 2, "it is tried again")
    assert found.account().overdue > 0
    assert found.times("tried again: the rounds cannot be made") == 1  # told once, not each time
    (first / "raise").unlink()
    until(lambda: found.health.ready, "it is well again", timeout=20)
    assert found.times("is done again") == 1
    assert found.account().overdue == 0


def test_a_fault_in_it_is_told_with_its_place(keep: Callable[..., Kept], directory: Path) -> None:
    (directory / "fault").write_text("")
    found = keep(named("rounds", directory))
    until(found.trouble("KeyError at rounds.py:"), "health says where")


def test_changes_do_not_turn_one_failure_into_many(keep: Callable[..., Kept], directory: Path) -> None:
    (directory / "raise").write_text("")
    found = keep(named("rounds", directory))
    until(lambda: found.account().failed == 3, "it has failed three times", timeout=20)
    for number in range(50):
        add(directory, f"z{number}")
    assert found.account().failed <= 4


def test_one_that_hangs_stops_no_other_and_is_seen(keep: Callable[..., Kept], ledger: Ledger) -> None:
    first, second = ledger.directory(), ledger.directory()
    add(first, "hang")
    found = keep(named("hanging", first), named("rounds", second))
    until(found.trouble("chore-hanging: has not ended after 1 s"), "health says so")
    assert not found.health.live  # starting again may mend it
    add(second, "one")
    until(lambda: made(second, "one") == 1, "the other one works")
    assert found.account().overdue >= 1
    (first / "hang").unlink()
    until(lambda: found.health.live, "it is well again", timeout=20)


def test_single_things_in_trouble_are_told_once_and_the_others_done(keep: Callable[..., Kept], directory: Path) -> None:
    add(directory, "broken")
    add(directory, "one", every=0.05)
    found = keep(named("rounds", directory))
    until(lambda: made(directory, "one") > 3, "the other one is done")
    assert found.health.trouble() == "chore-rounds: broken: this round cannot be made"
    assert found.health.live
    assert found.times("broken: this round cannot be made") == 1
    assert found.account().troubles >= 3 and found.account().failed == 0
    (directory / "broken").unlink()
    until(lambda: found.health.ready, "all is well")
    assert found.times("broken: is well again") == 1


@pytest.mark.parametrize("by", [-3600.0, 3600.0])
def test_a_clock_that_is_set_calls_it(
    keep: Callable[..., Kept], directory: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    monkeypatch.setattr(keeper, "_STEP", 0.05)
    chore = named("rounds", directory)
    keep(chore)
    until(lambda: chore.runs == 1, "it has looked")
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + by)
    until(lambda: chore.runs == 2, "it looks again")
    assert chore.last is not None and abs(chore.last.now - true() - by) < 60


def test_a_clock_that_is_set_while_it_runs_calls_it_again(
    keep: Callable[..., Kept], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run reckoned with is the clock of before."""
    monkeypatch.setattr(keeper, "_STEP", 0.05)
    true = time.time

    class Overtaken(Rounds):
        def run(self, turn: keeper.Turn) -> float | None:
            monkeypatch.setattr(time, "time", lambda: true() + 3600.0)
            return super().run(turn)

    chore = Overtaken({}, str(directory))
    keep(chore)
    until(lambda: chore.runs == 2, "it looks again")


def test_the_end_is_bounded_though_one_hangs(ledger: Ledger) -> None:
    first, second = ledger.directory(), ledger.directory()
    add(first, "hang")
    chore = named("hanging", first)
    found = Kept(chore, named("rounds", second))
    until(lambda: chore.runs == 1, "it hangs")
    found.chores.close(0.2)
    (first / "hang").unlink()
    found.chores._keepers[0]._thread.join(5.0)
    found.chores._keepers[0].close(1.0)


def test_who_leaves_work_to_it_can_ask_whether_it_is_kept(directory: Path) -> None:
    assert not kept.is_kept("rounds")
    found = Kept(named("rounds", directory))
    until(lambda: kept.is_kept("rounds"), "it is kept")
    assert not kept.is_kept("others")
    found.chores.close(5.0)
    assert not kept.is_kept("rounds")


def test_of_two_daemons_one_stands_by_and_takes_over(directory: Path, keep: Callable[..., Kept]) -> None:
    first = Kept(named("rounds", directory))
    until(lambda: kept.is_kept("rounds"), "it is kept")
    chore = named("rounds", directory)
    second = keep(chore)
    until(lambda: second.times("stands by") == 1, "it stands by")
    add(directory, "one")
    until(lambda: made(directory, "one") == 1, "the first makes it")
    assert chore.runs == 0 and second.health.ready
    first.chores.close(5.0)
    add(directory, "two")
    until(lambda: made(directory, "two") == 1, "the second has taken over")


def test_every_chore_can_be_loaded_and_has_a_switch() -> None:
    assert set(settings.ChoresSettings._keys) == set(chores.TABLE)
    found = chores.load(settings.ChoresSettings(), {})
    assert [chore.name for chore in found] == list(chores.TABLE)
    assert all(chore.directory.startswith("/") for chore in found)


class Keeping(Node):
    """A node whose nodeplugd has the rounds of this test beside its own chores."""

    def begin(self, directory: Path, **environ: str) -> Process:
        import os
        import sys

        argv = [sys.executable, rounds.__file__, directory, "--config", self.config]
        self.process = self.ledger.start(argv, env={**os.environ, **environ})
        return self.process


@pytest.fixture
def node(ledger: Ledger) -> Iterator[Keeping]:
    found = Keeping(ledger)
    yield found
    if found.process is not None and found.process.running():
        found.stop()


@needs("program:cc")
def test_kill_9_and_a_restart_lose_nothing(node: Keeping, directory: Path) -> None:
    for name in ("a", "b", "c"):
        add(directory, name, every=0.02)
    counts = {"a": 0, "b": 0, "c": 0}
    for _ in range(3):
        node.begin(directory)
        node.await_worker()
        before = counts
        until(lambda: all(made(directory, n) > before[n] for n in before), "they go on", timeout=20)  # noqa: B023
        node.kill()
        assert not kept.is_kept("rounds")
        now = {name: made(directory, name) for name in counts}
        assert all(now[name] >= counts[name] for name in counts)
        counts = now
    add(directory, "d", due=uptime() + 0.1)
    node.begin(directory)
    until(lambda: made(directory, "d") == 1, "what was written meanwhile is done", timeout=20)
    assert node.stop() == 0


@needs("program:cc")
def test_it_is_seen_in_health_and_metrics(node: Keeping, directory: Path) -> None:
    pages = node.directory / "health.sock"
    node.configure(f'[worker.health]\nlisten = "{pages}"')
    add(directory, "one")
    add(directory, "broken")
    process = node.begin(directory)
    node.await_worker()
    until(lambda: made(directory, "one") == 1 and pages.exists(), "it is made")
    until(
        lambda: value(fetch(pages, "/metrics")[1], "nodeplug_worker_chore_runs_total", chore="rounds") >= 2, "counted"
    )
    page = fetch(pages, "/metrics")[1]
    assert value(page, "nodeplug_worker_chore_troubles_total", chore="rounds") >= 2
    assert 'nodeplug_worker_chore_failures_total{chore="rounds"} 0.0' in page
    assert 'nodeplug_worker_chore_overdue_seconds{chore="rounds"} 0.0' in page
    assert fetch(pages, "/livez")[0] == 200
    code, text = fetch(pages, "/readyz")
    assert code == 500 or code == 503
    assert "[-]chore-rounds broken: this round cannot be made" in text
    assert "chore rounds: broken: this round cannot be made" in process.output()
    (directory / "raise").write_text("")
    until(
        lambda: value(fetch(pages, "/metrics")[1], "nodeplug_worker_chore_failures_total", chore="rounds") > 0,
        "counted",
    )
    assert node.stop() == 0


@needs("program:cc")
def test_sigterm_ends_them_in_time_though_one_hangs(node: Keeping, directory: Path) -> None:
    add(directory, "hang")
    process = node.begin(directory)
    node.await_worker()
    until(lambda: "has not ended" in process.output(), "it hangs", timeout=20)
    process.signal(signal.SIGTERM)
    assert process.wait(20) == 0


@needs("program:cc")
def test_in_a_container_they_are_done_on_the_host(node: Keeping, ledger: Ledger) -> None:
    _root, host = bare_root(ledger, node)
    node.configure(f'host = "/proc/{host.pid}"')
    text = (node.config / "nodeplug.toml").read_text().replace(str(node.sockets), "/run/w")
    (node.config / "nodeplug.toml").write_text(text)
    process = node.begin(Path("/run/rounds"))
    there = Path(f"/proc/{host.pid}/root/run/rounds")
    until(lambda: there.is_dir() or not process.running(), "its directory is the host's", timeout=30)
    assert process.running(), process.output()
    # Written from outside, into the host's own file system.
    run(["nsenter", "-t", str(host.pid), "--mount", "/bin/busybox", "sh", "-c", "echo 3600 0 0 > /run/rounds/one"]).ok()
    until(lambda: made(there, "one") == 1, "it is made")
    assert not Path("/run/rounds").exists()
    assert Path(f"/proc/{host.pid}/root{kept.LOCK}").exists() and not kept.is_kept(
        "rounds"
    )  # the host's lock, not ours
    assert node.stop() == 0
