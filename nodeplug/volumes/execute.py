"""A plan carried out: its steps one after another, the volume shown, or everything taken back.

Called by `service`, which holds the locks. What is not yet a mount is a descriptor here and gone with the process; what
lasts is in the volume's state before it is made, so that whoever comes next can take it back.
"""

from __future__ import annotations

import os
import time

from nodeplug.core.errors import TimedOut
from nodeplug.core.steps import Steps
from nodeplug.volumes import state
from nodeplug.volumes.show import show, take_away

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.volumes.contract import Plan, Published, Request

VOLUME = "volume"


class UnderWay:
    """See `contract.Work`."""

    def __init__(self, request: Request, deadline: float, warn: Callable[[str], None]) -> None:
        self.request = request
        self.warn = warn
        self._deadline = deadline
        self._open: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> None:
        before = self._open.get(name)
        self._open[name] = fd
        if before is not None:
            os.close(before)

    def fd(self, name: str) -> int:
        return self._open[name]

    def left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(
                f"volume {self.request.volume} was not ready in time", hint="the next attempt may be quicker"
            )
        return left

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def carry_out(plan: Plan, record: Published, before: Published | None, work: UnderWay) -> Published:
    """Make the volume and show it; returns its state. `before` is the state of an earlier life, to which it falls back.

    On failure everything that this did is undone, last first, and what else went wrong is noted on the error.
    """
    # With the device of its earlier life it stays known as a volume that pods have written to.
    seen = before.device if before is not None else ""
    record = record.replace(steps=tuple(step for step in plan.steps if step.lasts), device=seen)
    try:
        if record.steps:
            state.write(record)
        for step in plan.steps:
            work.left()
            step.do(work)
        volume = work.fd(VOLUME)
        device = os.fstat(volume).st_dev
        record = record.replace(device=f"{os.major(device)}:{os.minor(device)}")
        state.write(record)
        show(volume, record.target, work.warn)
    except BaseException as error:
        work.close()
        roll_back(record, before, error, work.warn)
        raise
    work.close()
    return record.replace(mounted=True)


def roll_back(record: Published, before: Published | None, error: BaseException, warn: Callable[[str], None]) -> None:
    """Undo the steps of a publish that failed; its state goes last, and stays when something else has to."""
    clean = True
    for undo in (lambda: take_away(record.target, warn), *(step.undo for step in reversed(record.steps))):
        try:
            undo()
        except Exception as undoing:
            clean = False
            error.add_note(f"while undoing: {undoing}")
    try:
        if before is not None:
            state.write(before)
        elif clean:
            state.remove(record.id)
    except Exception as undoing:
        error.add_note(f"while undoing: {undoing}")


def end(known: Published) -> None:
    """Take away what was made for a volume that is mounted nowhere any more, and forget it."""
    steps = Steps()
    for step in reversed(known.steps):
        steps.run(step.end)
    steps.close()
    state.remove(known.id)
