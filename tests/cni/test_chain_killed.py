"""bridge, host-local and portmap in a chain, killed at random steps 500 times: nothing is lost, nothing is doubled."""

from __future__ import annotations

import random

import pytest

from tests.child import Finished, run
from tests.cni import faults
from tests.cni.killed import Chain
from tests.ledger import Ledger

pytestmark = [pytest.mark.needs("sandbox", "program:nft"), pytest.mark.timeout(600)]
OPERATIONS = 500
KILLED = -9


class Executed(Chain):
    """Each call is a process, and dies with it."""

    kills = 0

    def execute(self, plugin: str, env: dict[str, str], stdin: bytes, step: int) -> Finished | None:
        done = run(faults.program(step, "kill", plugin), env=env, stdin=stdin)
        assert done.code in (0, KILLED), done.stdout
        self.kills += done.code == KILLED
        return None if done.code == KILLED else done


def test_five_hundred_operations_killed_anywhere_leave_what_lives_and_nothing_else(ledger: Ledger) -> None:
    chain = Executed(ledger, random.Random(1047))
    for _ in range(OPERATIONS):
        chain.go_on()
    assert chain.kills > OPERATIONS / 10
    chain.end()
