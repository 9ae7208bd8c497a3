"""The volume `identity`: a failure at each system call of publish, replacement and unpublish, kill -9 before each.

What must come of it: a pair that fits or no volume, and in the end nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from nodeplug.core.errors import Unavailable
from nodeplug.kernel import mount
from nodeplug.volumes import state
from nodeplug.volumes.identity import notes
from nodeplug.volumes.identity.chore import IdentityChore
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes import faults
from tests.volumes.authorities import HOUR
from tests.volumes.identities import Node
from tests.volumes.test_identity_renewal import fits, shown

pytestmark = [needs("sandbox"), pytest.mark.timeout(300)]


class Trial:
    """One volume, published, replaced and unpublished once already, so that everything is imported."""

    def __init__(self, ledger: Ledger) -> None:
        self.node = Node(ledger)
        self.path = self.node.target()
        self.request = self.node.request()
        self.chore = IdentityChore(self.node.settings)
        self.stop = os.eventfd(0)
        ledger.adopt("stop", lambda: os.close(self.stop))
        self.publish()
        self.replace()
        self.unpublish()

    def publish(self) -> None:
        self.do_publish()
        assert fits(shown(self.path))
        assert self.node.turn()[1] == {}

    def replace(self) -> None:
        before = shown(self.path)
        self.node.turn(after=HOUR)
        assert shown(self.path) != before
        assert fits(shown(self.path))

    def unpublish(self) -> None:
        self.do_unpublish()
        assert not mount.is_mounted(str(self.path))
        assert self.remains() == []

    def collect(self) -> None:
        assert all(each.removed for each in self.node.service.collect(apply=True))
        self.unpublish()

    def remains(self) -> list[str]:
        # A note whose writer was killed is a half-written file until the next collection.
        return [*state.ids(), *notes.ids()]

    def do_publish(self) -> object:
        return self.node.service.publish(self.request)

    def do_replace(self) -> object:
        try:
            return self.chore.run(self.node.ready(self.stop, after=HOUR))
        except OSError as error:
            raise Unavailable("as nodeplugd would be told") from error

    def do_unpublish(self) -> object:
        return self.node.service.unpublish(str(self.path))


@pytest.fixture
def trial(ledger: Ledger) -> Trial:
    return Trial(ledger)


def test_a_publish_that_fails_anywhere_leaves_nothing_and_the_next_one_succeeds(trial: Trial) -> None:
    names = faults.calls_of(trial.do_publish)
    trial.unpublish()
    assert len(names) > 40
    for number, name in enumerate(names):
        if faults.failing_at(number, errno.EIO, trial.do_publish):
            assert fits(shown(trial.path))
            trial.unpublish()
        assert trial.remains() == [], f"after call {number}, {name}"
        assert not mount.is_mounted(str(trial.path))
        trial.publish()
        trial.unpublish()


def test_a_publish_killed_anywhere_is_made_good_by_whatever_comes_next(trial: Trial) -> None:
    count = len(faults.calls_of(trial.do_publish))
    trial.unpublish()
    mends: tuple[Callable[[], None], ...] = (trial.publish, trial.unpublish, trial.collect)
    for number in range(count):
        assert faults.killed_at(number, trial.do_publish)
        mends[number % 3]()
        trial.do_unpublish()
        trial.node.service.collect(apply=True)
        assert trial.remains() == []


def test_a_replacement_that_fails_or_is_killed_anywhere_leaves_a_pair_that_fits(trial: Trial) -> None:
    trial.publish()
    count = len(faults.calls_of(trial.do_replace))
    assert count > 40
    for number in range(count):
        for killed in (False, True):
            trial.publish()
            if killed:
                faults.killed_at(number, trial.do_replace)
            else:
                faults.failing_at(number, errno.ENOSPC, trial.do_replace)
            assert fits(shown(trial.path)), number
            trial.node.turn(after=2 * HOUR)
            assert fits(shown(trial.path)), number
            trial.unpublish()


def test_an_unpublish_that_fails_or_is_killed_anywhere_is_finished_by_the_next_one(trial: Trial) -> None:
    trial.publish()
    names = faults.calls_of(trial.do_unpublish)
    assert len(names) > 20
    for number, name in enumerate(names):
        trial.publish()
        if faults.failing_at(number, errno.EIO, trial.do_unpublish):
            assert trial.remains() == [], f"after call {number}, {name}"
        trial.unpublish()
        trial.publish()
        assert faults.killed_at(number, trial.do_unpublish)
        trial.unpublish()
