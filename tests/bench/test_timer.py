"""The timer itself: what it counts, in which order, and what its report says."""

from __future__ import annotations

import sys

import pytest

from tests.bench.report import Report, Sample, percentile
from tests.bench.timer import Watch, measure


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def contender(name: str) -> None:
        turns.append(name)

    measure({"a": lambda _watch: contender("a"), "b": lambda _watch: contender("b")}, rounds=2, warm_up=1)
    assert turns == ["a", "b"] * 3


@pytest.mark.parametrize("weighs", [False, True])
def test_a_process_gets_its_input_and_gives_its_output(weighs: bool) -> None:
    watch = Watch(weighs=weighs)
    ran = watch.run("cat", ["/bin/cat"], stdin=b"x" * 200_000, env={})
    assert ran.stdout == b"x" * 200_000
    assert list(watch.weights if weighs else watch.samples) == ["cat"]


def test_a_process_is_weighed_without_its_parent() -> None:
    ours = bytearray(64 << 20)
    watch = Watch(weighs=True)
    watch.run("true", ["/bin/true"], env={})
    watch.run("large", ["/usr/bin/python3", "-IS", "-c", "bytes(range(256)) * (1 << 17)"], env={})
    assert watch.weights["true"] < 32 << 20 < watch.weights["large"] < len(ours)


def test_an_unexpected_exit_status_is_not_a_measurement() -> None:
    with pytest.raises(AssertionError, match="exit status 3"):
        Watch().run("fails", ["/bin/sh", "-c", "exit 3"])
    assert Watch().run("fails", ["/bin/sh", "-c", "exit 3"], expect=3).code == 3


def test_the_same_label_in_one_round_adds_up() -> None:
    watch = Watch()
    for _ in range(2):
        with watch.lap("chain"):
            sum(range(1000))
    first = watch.samples["chain"]
    with watch.lap("chain"):
        pass
    assert watch.samples["chain"].wall > first.wall


def test_ratios_are_taken_pair_by_pair() -> None:
    def rounds(*walls: float) -> list[dict[str, Sample]]:
        return [{"ADD": Sample(wall=wall, cpu=wall / 2)} for wall in walls]

    # The machine was ten times slower in the last round, for both alike.
    taken = {"Go": rounds(0.010, 0.020, 0.100), "nodeplug": rounds(0.005, 0.010, 0.050)}
    report = Report(taken, weights={"Go": {"ADD": 1 << 20}}, others=0.5)
    assert report.ratio("ADD", "nodeplug") == pytest.approx(0.5)
    assert report.difference("ADD", "nodeplug") == pytest.approx(-0.010)
    table = report.markdown(title="bridge", command="make bench", versions={"Go plugins": "1.1.1"})
    assert "| ADD | Go | 20.00 | 100.00 | 10.00 | 1.0 |  |  |" in table
    assert "| ADD | nodeplug | 10.00 | 50.00 | 5.00 |  | 0.50 | -10.00 |" in table
    assert "Go plugins 1.1.1" in table
    assert "too much to trust" in table


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentiles_are_values_that_occurred(part: float, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], part) == value


def test_a_timed_interpreter_costs_more_than_true() -> None:
    def true(watch: Watch) -> None:
        watch.run("run", ["/bin/true"], env={})

    def python(watch: Watch) -> None:
        watch.run("run", [sys.executable, "-IS", "-c", "pass"], env={})

    assert measure({"true": true, "python": python}, rounds=5).ratio("run", "python") > 1
