"""bridge, host-local and portmap in a chain through shim and worker, the worker killed at random steps of random calls
and started again as systemd would: nothing is lost, nothing is doubled."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.child import Finished, run
from tests.cni.killed import NEVER, Chain
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker import mortal
from tests.worker.node import Node, code

pytestmark = needs("sandbox", "program:nft", "program:cc")
SOAK = (pytest.mark.stress, pytest.mark.timeout(1800))
FIVE_HUNDRED = pytest.param(500, marks=SOAK)
THOUSAND = pytest.param(1000, marks=SOAK)


class Asked(Chain):
    """Each call is one of the C shim, answered by a worker that dies under some of them and is away for others."""

    often = 0.2

    def __init__(self, ledger: Ledger, chance: random.Random, *, pods: int = 6) -> None:
        super().__init__(ledger, chance, pods=pods)
        path = str(ledger.directory() / "left")
        self.countdown = mortal.Countdown(path)
        ledger.adopt("countdown", self.countdown.close)
        self.node = Node(ledger, program=(mortal.__file__, path))
        self.seen: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        self.countdown.left, self.countdown.dying = mortal.UNLIMITED, False
        self.node.start()

    def there(self) -> bool:
        """Whether the worker lives; one that is being killed has ended when this returns."""
        assert self.node.process is not None
        if self.countdown.dying:
            assert self.node.process.wait() == -9
        return self.node.process.running()

    def ask(self, plugin: str, env: dict[str, str], stdin: bytes) -> Finished:
        path = f"{self.node.plugins}:{env['CNI_PATH']}"
        return run([self.node.plugins / plugin], env={**env, "CNI_PATH": path}, stdin=stdin, timeout=60)


class OneByOne(Asked):
    """The step at which the worker dies is one of a certain call's."""

    def execute(self, plugin: str, env: dict[str, str], stdin: bytes, step: int) -> Finished | None:
        # As long as systemd takes to start it again: one call in two meets nobody.
        if not self.there() and self.chance.random() < 0.5:
            self.start()
        there = self.there()
        self.countdown.left = mortal.UNLIMITED if step == NEVER else step
        done = self.ask(plugin, env, stdin)
        died = there and not self.there()
        self.countdown.left = mortal.UNLIMITED
        if done.code != 0:
            # An ADD is not repeated by itself: the runtime is told to try again.
            assert (died, env["CNI_COMMAND"], code(done)) == (True, "ADD", 11), done
            self.seen["failed"] += 1
            return None
        self.seen["launcher, after the worker" if died else "worker" if there else "launcher"] += 1
        return done


class AtOnce(Asked):
    """Several calls are under way when the worker dies, at a step of any of them; somebody starts it again at once."""

    def __init__(self, ledger: Ledger, chance: random.Random, *, pods: int) -> None:
        super().__init__(ledger, chance, pods=pods)
        self._over = threading.Event()
        self._manager = threading.Thread(target=self._manage)
        self._manager.start()

    def _manage(self) -> None:
        while not self._over.is_set():
            self.countdown.left = self.chance.randrange(150)
            while self.there() and not self._over.wait(0.005):
                pass
            if not self._over.is_set():
                self.seen["killed"] += 1
                self.start()

    def close(self) -> None:
        self._over.set()
        self._manager.join()
        self.countdown.left = mortal.UNLIMITED
        if not self.there():  # and is waited for: until then a file that it was writing is one being written
            self.start()

    def execute(self, plugin: str, env: dict[str, str], stdin: bytes, step: int) -> Finished | None:
        done = self.ask(plugin, env, stdin)
        if done.code != 0:
            assert (env["CNI_COMMAND"], code(done)) == ("ADD", 11), done
            self.seen["failed"] += 1
            return None
        return done


@pytest.mark.parametrize("operations", [120, FIVE_HUNDRED])
def test_operations_of_a_worker_killed_anywhere_leave_what_lives_and_nothing_else(
    ledger: Ledger, operations: int
) -> None:
    chain = OneByOne(ledger, random.Random(1048))
    for _ in range(operations):
        chain.go_on()
    chain.end()
    print(dict(chain.seen))
    for what in ("failed", "launcher, after the worker", "launcher", "worker"):
        assert chain.seen[what] > operations / 40, chain.seen


@pytest.mark.parametrize("operations", [120, THOUSAND])
def test_operations_at_once_of_a_worker_killed_anywhere_leave_what_lives_and_nothing_else(
    ledger: Ledger, operations: int
) -> None:
    chain = AtOnce(ledger, random.Random(1049), pods=16)
    ledger.adopt("who starts the worker again", chain.close)

    def caller(number: int) -> None:
        for _ in range(operations // 4):
            chain.go_on(chain.pods[number::4])

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(caller, range(4)):
            pass
    chain.close()
    chain.end()
    print(dict(chain.seen))
    assert chain.seen["killed"] > operations / 40, chain.seen
    assert chain.seen["failed"], chain.seen
