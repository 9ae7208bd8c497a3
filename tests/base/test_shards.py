"""A suite in several sandboxes is reported as one run in one process would be, whatever happens to them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.base.made.waiting import SIGN
from tests.child import Finished, run, until
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox")
MADE = Path(__file__).with_name("made")


def shards_on(*names: str) -> list[str]:
    modules = [str(MADE / f"{name}.py") for name in names]
    return [sys.executable, "-m", "tests.shards", "-p", "no:cacheprovider", *modules]


def tested(*names: str) -> Finished:
    return run(shards_on(*names), timeout=100)


def test_modules_run_once_each_and_a_sandbox_that_dies_fails_only_the_test_it_was_at() -> None:
    done = tested("dying", "passing", "failing", "skipping")
    assert done.code == 1
    for line in (
        "8 tests of 4 modules",
        "base/made/dying.py .F",
        "base/made/passing.py ...",
        "base/made/failing.py F.E",
        "FAILED tests/base/made/dying.py::test_kills_its_process",
        "ended with status 137",
        "what the test printed",
        "link leaky0",
        "NOT IN tests/expected-skips.txt",
        "2 failed, 5 passed, 1 skipped, 1 error",
    ):
        assert line in done.text, done.text


def test_a_run_in_which_all_is_well_ends_well() -> None:
    done = tested("passing")
    assert (done.code, "3 passed" in done.text) == (0, True), done.text


def test_a_skip_that_nobody_announced_fails_the_run() -> None:
    done = tested("passing", "skipping")
    release = Path("/etc/os-release").read_text()
    assert done.code == (1 if "ID=debian" in release and '"12"' in release else 0)


def test_a_module_that_cannot_be_collected_ends_the_run_with_the_reason() -> None:
    done = tested("passing", "broken")
    assert done.code == 2
    assert "this module cannot be imported" in done.text, done.text
    assert "passing.py" not in done.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_ended_from_outside_it_ends_every_sandbox_and_tells_what_it_knew(ledger: Ledger, number: int) -> None:
    ledger.adopt("sign", lambda: SIGN.unlink(missing_ok=True))
    process = ledger.start(shards_on("waiting", "passing"))
    until(lambda: SIGN.exists() and "passing.py ..." in process.output(), "both are under way", timeout=60)
    process.signal(number)
    assert process.wait(60) == 2, process.output()
    assert "made/waiting.py ." in process.output()
    assert "4 passed" in process.output() and "KeyboardInterrupt" in process.output()
    assert not SIGN.exists()  # what the test does at its end was done
    assert not [line for line in run(["ps", "-eo", "args"]).text.splitlines() if "made/waiting.py" in line]
