"""A world of its own: what is inside, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.child import Process, run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE

pytestmark = needs("sandbox")
CHECKOUT = Path(__file__).parents[2]
HEAD = f"""
import os, signal, socket, subprocess, sys, time
sys.path.insert(0, {str(CHECKOUT)!r})
from pathlib import Path
from nodeplug.harness import enclosure
"""


def enclosed(body: str) -> list[str]:
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return [sys.executable, "-c", f"{HEAD}\ndef body(ending):\n{lines}\n\nsys.exit(enclosure.run(body))"]


def test_inside_are_lo_and_empty_directories(directory: Path) -> None:
    Path("/var/lib/cni/mark").touch()
    try:
        done = run(
            enclosed(
                """
                print([name for _, name in socket.if_nameindex()], os.listdir("/sys/class/net"))
                print(sorted(os.listdir("/run")), os.listdir("/var/lib"), os.listdir("/var/log"))
                print(os.getpid(), Path("/sys/fs/cgroup").is_dir(), os.environ["TMPDIR"])
                return 7
                """.replace(" " * 16, "")
            )
        )
    finally:
        Path("/var/lib/cni/mark").unlink()
    assert done.code == 7, done.stderr
    assert done.text.splitlines() == [
        "['lo'] ['lo']",
        "['lock', 'netns', 'tmp'] [] []",
        "2 True /run/tmp",
    ]


def test_nothing_made_inside_is_seen_outside() -> None:
    before = (HERE.links(), sorted(os.listdir("/run")))
    done = run(
        enclosed('subprocess.run(["ip", "link", "add", "br9", "type", "bridge"])\nPath("/run/x").touch()\nreturn 0')
    )
    assert done.code == 0, done.stderr
    assert (HERE.links(), sorted(os.listdir("/run"))) == before


def test_failure_inside_is_told() -> None:
    done = run(enclosed("raise ValueError('broken')"))
    assert done.code == 70
    assert b"ValueError: broken" in done.stderr


def start(ledger: Ledger, body: str) -> Process:
    process = ledger.start(enclosed(body))
    until(lambda: "ready" in process.output(), "it runs")
    return process


STRAY = 'stray = subprocess.Popen(["sleep", "987"], start_new_session=True)\nprint("ready", flush=True)\n'


def strays() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\x00987\x00":
                found.append(path.parent.name)
        except OSError:
            pass
    return found


CLEANS_UP = STRAY + 'try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print("cleaned up")\nreturn 130'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", ["", "INT"])
def test_request_to_end_reaches_the_body_as_an_interrupt(ledger: Ledger, number: int, ignored: str) -> None:
    """Also in the background of a shell, which has its jobs ignore SIGINT."""
    shell = ["sh", "-c", f'trap "" {ignored or "USR2"}; exec "$@"', "sh"]
    process = ledger.start([*shell, *enclosed(CLEANS_UP)])
    until(lambda: "ready" in process.output(), "it runs")
    process.signal(number)
    assert process.wait() == 130
    assert "cleaned up" in process.output()
    until(lambda: not strays(), "what it started ends with it")


LOSES_IT = """
class Finalized:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)

Finalized()
print("went on")
"""


@pytest.mark.parametrize("rest", ["ending.check()\nprint('did not stop')\nreturn 0", "return 0"])
def test_request_that_a_finalizer_swallowed_is_still_known(ledger: Ledger, rest: str) -> None:
    process = start(ledger, LOSES_IT + rest)
    process.signal(signal.SIGTERM)
    assert process.wait() == 130
    assert "Exception ignored in" in process.output() and "went on" in process.output()
    assert "did not stop" not in process.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_request_kills_a_body_that_does_not_end(ledger: Ledger, number: int) -> None:
    process = start(
        ledger, STRAY.replace("print", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint") + "time.sleep(60)"
    )
    process.signal(number)
    process.signal(signal.SIGHUP)
    assert process.wait() == 128 + signal.SIGKILL
    until(lambda: not strays(), "what it started ends with it")


def test_everything_inside_ends_with_a_caller_that_is_killed(ledger: Ledger) -> None:
    process = start(ledger, STRAY + "time.sleep(60)")
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    until(lambda: not strays(), "what it started ends with it")
