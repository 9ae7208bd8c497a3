"""Numbers of a measurement, and the table they make."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from nodeplug import __version__
from tests.bench import machine

CALM = 0.15  # above this part of the CPUs taken by others the report says not to trust it


@dataclass(frozen=True)
class Sample:
    """One timing: seconds of wall clock and of CPU (user and system)."""

    wall: float
    cpu: float

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.wall + other.wall, self.cpu + other.cpu)


class Report:
    """All samples of a measurement, by contender, round and label. The first contender is the baseline.

    `weights` has bytes of peak resident memory by contender and label; `others` is the part of the CPUs, 0 to 1, that
    was not ours meanwhile.
    """

    def __init__(
        self, taken: Mapping[str, list[dict[str, Sample]]], *, weights: Mapping[str, Mapping[str, int]], others: float
    ) -> None:
        self._taken = taken
        self._weights = weights
        self._baseline = next(iter(taken))
        self.others = others

    def labels(self) -> list[str]:
        """What was timed, in the order in which it first was."""
        return list(dict.fromkeys(label for rounds in self._taken.values() for one in rounds for label in one))

    def walls(self, label: str, contender: str) -> list[float]:
        """Seconds of each round."""
        return [one[label].wall for one in self._taken[contender] if label in one]

    def cpus(self, label: str, contender: str) -> list[float]:
        """Seconds of CPU of each round, which others' load changes less."""
        return [one[label].cpu for one in self._taken[contender] if label in one]

    def ratio(self, label: str, contender: str) -> float:
        """The median over the rounds of its time through the baseline's in the same round."""
        return median(ours / base for base, ours in self._pairs(label, contender))

    def difference(self, label: str, contender: str) -> float:
        """The median over the rounds of its time minus the baseline's in the same round, in seconds."""
        return median(ours - base for base, ours in self._pairs(label, contender))

    def _pairs(self, label: str, contender: str) -> list[tuple[float, float]]:
        return list(zip(self.walls(label, self._baseline), self.walls(label, contender), strict=True))

    def markdown(self, *, title: str, command: str, versions: Mapping[str, str] | None = None) -> str:
        """A section for docs/performance: how it was measured, then the table."""
        rounds = len(self._taken[self._baseline])
        parts = {"nodeplug": __version__, **(versions or {})}
        named = ", ".join(f"{name} {version}" for name, version in parts.items())
        doubt = "" if self.others <= CALM else ": too much to trust this table"
        lines = [
            f"### {title}",
            "",
            f"{datetime.date.today().isoformat()}, {machine.describe()}; {named}.",
            f"{rounds} rounds, contenders in turn; ratio and difference are medians of the pairs. Others took"
            f" {self.others:.0%} of the CPUs meanwhile{doubt}.",
            f"Again: `{command}`",
            "",
            f"| what | who | median ms | p99 ms | CPU ms | memory MiB | ratio to {self._baseline} | difference ms |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for label in self.labels():
            lines += [self._row(label, name) for name in self._taken if self.walls(label, name)]
        return "\n".join([*lines, ""])

    def _row(self, label: str, contender: str) -> str:
        samples = [one[label] for one in self._taken[contender] if label in one]
        walls = sorted(sample.wall for sample in samples)
        memory = self._weights.get(contender, {}).get(label, 0)
        cells = [
            label,
            contender,
            _ms(median(walls)),
            _ms(percentile(walls, 0.99)),
            _ms(median(sample.cpu for sample in samples)),
            f"{memory / 1024**2:.1f}" if memory else "",
            *self._against_baseline(label, contender),
        ]
        return f"| {' | '.join(cells)} |"

    def _against_baseline(self, label: str, contender: str) -> tuple[str, str]:
        if contender == self._baseline or not self.walls(label, self._baseline):
            return "", ""
        return f"{self.ratio(label, contender):.2f}", f"{self.difference(label, contender) * 1000:+.2f}"


def percentile(ordered: list[float], part: float) -> float:
    """The smallest value that at least `part` of all do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
