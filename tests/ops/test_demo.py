"""The demo does what it shows, on either runtime, and nothing of it stays, however it ends."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from nodeplug.harness.enclosure import Ending
from nodeplug.harness.runtime import cgroups as control_groups
from nodeplug.ops.demo.show import Show
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = [needs("sandbox", "program:nft"), pytest.mark.timeout(180)]
NODEPLUG = Path(__file__).parents[2] / "bin/nodeplug"
CONTAINERD = needs("program:containerd", "program:runc")
RUNTIMES = [pytest.param((), id="containerd", marks=CONTAINERD), pytest.param(("--own-runtime",), id="ours")]


@pytest.mark.parametrize("options", RUNTIMES)
def test_demo_shows_everything_and_proves_that_nothing_is_left(options: tuple[str, ...]) -> None:
    done = run([NODEPLUG, "demo", *options], timeout=120)
    assert done.code == 0, done.text + done.stderr.decode()
    for words in (
        "plugins installed: ",
        "own runtime" if options else "containerd 1.6",
        "three pods started at once",
        "outside answers 192.0.2.1",
        "web answers 192.0.2.2",
        "pod job deleted: gone: links 1, network namespaces 1, leases 1",
        "pod api killed behind the runtime's back",
        "nodeplug cni gc",
        "removed",
        "pod web goes on: web answers 192.0.2.2",
        "nothing is left of it on this node",
    ):
        assert words in done.text, words
    proof = done.text.partition("what pods leave on a node")[2]
    counts = [line.split()[-2:] for line in proof.splitlines() if line.rstrip().endswith(" 0")]
    assert len(counts) == 6
    assert all(int(before) >= 3 for before, _ in counts)


@pytest.fixture
def programs(ledger: Ledger) -> Path:
    """A directory that is seen inside the demo's own world, where /run is empty."""
    path = Path(tempfile.mkdtemp(prefix="np-", dir="/tmp"))
    ledger.adopt(f"directory {path}", lambda: shutil.rmtree(path))
    return path


def test_demo_without_containerd_says_so_and_runs_on_our_own_runtime(programs: Path) -> None:
    (programs / "nft").symlink_to("/usr/sbin/nft")
    done = run([NODEPLUG, "demo"], env={"PATH": str(programs)}, timeout=120)
    assert done.code == 0, done.text + done.stderr.decode()
    assert "no containerd here (not installed: containerd" in done.text.replace("\n", " ")
    assert "nodeplug's own runtime" in done.text


@CONTAINERD
def test_demo_where_containers_cannot_run_says_why_and_goes_on_with_our_own_runtime(programs: Path) -> None:
    broken = programs / "runc"
    broken.write_text("#!/bin/sh\necho no containers today >&2\nexit 1\n")
    broken.chmod(0o755)
    done = run([NODEPLUG, "demo"], env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}, timeout=120)
    assert done.code == 0, done.text + done.stderr.decode()
    said = " ".join(done.text.split())
    assert "✗ runtime started" in said
    assert "no containerd here (RunPodSandbox" in said
    assert "runtime started: nodeplug's own runtime" in said


@CONTAINERD
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("runtime started", signal.SIGINT),
        ("three pods started", signal.SIGTERM),
        ("three pods started", signal.SIGKILL),
        ("pod job deleted", signal.SIGINT),
    ],
)
def test_demo_that_is_ended_leaves_nothing(ledger: Ledger, moment: str, number: int) -> None:
    demo = ledger.start([NODEPLUG, "demo"], env={**os.environ, "PYTHONUNBUFFERED": "1"})
    until(lambda: moment in demo.output(), f"{moment!r} is shown", timeout=60)
    groups = cgroups()
    if number == signal.SIGINT:
        os.killpg(demo.pid, number)  # as a terminal does
    else:
        demo.signal(number)
    assert demo.wait(60) == (-number if number == signal.SIGKILL else 130)
    until(lambda: not strays(), "no process of it goes on")
    if number == signal.SIGKILL:
        for name in groups:  # which the next demo sweeps, but not before they are old
            control_groups.remove(name)
    else:
        assert [path for name in groups for path in Path("/sys/fs/cgroup").glob(f"*/{name}")] == []


def test_no_step_begins_nor_ends_well_once_the_end_was_asked_for() -> None:
    ending, begun = Ending(), []
    show = Show(Console(file=io.StringIO()), check=ending.check)
    with pytest.raises(KeyboardInterrupt), show.step("under way"), pytest.raises(KeyboardInterrupt):
        ending.ask(signal.SIGINT, None)  # and that was lost
    with pytest.raises(KeyboardInterrupt), show.step("the next"):
        begun.append(True)
    assert not begun


def test_demo_without_root_says_what_it_needs() -> None:
    done = run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", NODEPLUG, "demo"])
    assert done.code == 77, done.stderr
    assert b"error: namespaces need root" in done.stderr


def strays() -> list[str]:
    """Processes that only a demo starts."""
    shown = run(["ps", "-eo", "pid,args"]).ok().text.splitlines()
    return [line for line in shown if "containerd" in line and "/run/demo" in line]


def cgroups() -> set[str]:
    """The names of the groups that pods below this process are in; other checkouts' are not seen."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            found |= set(re.findall(r"nodeplug-[0-9a-f]{8}", path.read_text()))
        except OSError:
            pass  # it has ended
    return found
