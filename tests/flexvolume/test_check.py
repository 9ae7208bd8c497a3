"""`nodeplug flexvolume check`: faults of drivers in any language are found, and ours has none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.child import Finished, run
from tests.flexvolume.drivers import MINE, SHELL, place, python, shell
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("sandbox", "file:/usr/bin/python3")
COMMAND = CHECKOUT / "bin" / "nodeplug"
SUCCESS = """echo '{"status": "Success"}'"""
CAREFUL = 'grep -q " $2 " /proc/self/mountinfo || mount -t tmpfs -o size=1m tmpfs "$2" >/dev/null 2>&1'


def checked(program: Path, *more: str) -> Finished:
    return run([COMMAND, "flexvolume", "check", program, "--json", *more], timeout=100)


def verdicts(done: Finished) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in done.json():
        found.setdefault(finding["rule"], []).append((finding["verdict"], finding["what"]))
    return found


def faults(done: Finished) -> dict[str, str]:
    return {rule: what for rule, outcomes in verdicts(done).items() for verdict, what in outcomes if verdict == "fault"}


def test_a_driver_of_ours_has_no_faults(ledger: Ledger) -> None:
    program = ledger.directory() / "tmpfs"
    program.symlink_to(CHECKOUT / "bin" / "nodeplug-flexvolume")
    done = checked(program, "--option", "size=1Mi", "--log", "/var/log/nodeplug")
    assert faults(done) == {} and done.code == 0
    found = verdicts(done)
    assert [verdict for outcomes in found.values() for verdict, _ in outcomes if verdict == "note"] == []
    assert found["dead mount"][0][0] in ("ok", "skipped")


FAILURE = """echo '{"status": "Failure"}'"""
DONE = f"{CAREFUL}; {SUCCESS}; exit 0"
STRICT = f'umount "$2" 2>/dev/null && {SUCCESS} || {FAILURE}; exit 0'
FAULTY = [
    (shell(init="exit 1"), "init", "unexpected end of JSON input"),
    (shell(init=f'test -n "$PATH_OF_MINE" || {FAILURE}; exit 0'), "init", "status: Failure"),
    (shell(init=f"no-such-tool --version; {SUCCESS}; exit 0"), "init", "invalid character"),
    (SHELL.replace('*) answer \'{"status": "Not supported"}\'', f"*) {SUCCESS}"), "unknown verbs", "newer kubelets"),
    (shell(mount=f"{SUCCESS}; exit 0"), "mount", "write to the node's own disk"),
    (SHELL, "mount again", "2 mounts lie on each other"),
    (SHELL, "read-only", "it can be written"),
    (shell(mount=DONE), "foreign mount", "a pod would get that"),
    (shell(unmount=f"{SUCCESS}; exit 0"), "unmount", "stay Terminating"),
    (shell(unmount=STRICT), "unmount after a reboot", "must be success"),
    (shell(mount=f'sh -c ": $3; sleep 0.2"; {DONE}'), "secrets", "the arguments of sh"),
    (shell(mount=f'echo "$3" >> /run/leaky.log; {DONE}'), "secrets", "/run/leaky.log"),
    (shell(mount=f'echo "$3" >&2; {DONE}'), "mount", "after top-level value"),
    (shell(mount=f'echo x >> "$(dirname "$0")/log"; {DONE}'), "its directory", "log changed"),
    (shell(mount=f'case "$3" in *nosuchoption*) {FAILURE}; exit 3;; esac; {DONE}'), "exit status", "all arguments"),
    (shell(mount=f"sleep 30 & {DONE}"), "mount", "keeps its output open"),
    (shell(mount="exec sleep 30"), "mount", "had not ended after 2 s"),
]


@pytest.mark.parametrize(("text", "rule", "what"), FAULTY)
def test_faults_of_a_shell_driver_are_found(ledger: Ledger, text: str, rule: str, what: str) -> None:
    program = place(ledger.directory(), "mine", text)
    ledger.adopt("log", lambda: Path("/run/leaky.log").unlink(missing_ok=True))
    Path("/run/leaky.log").touch()
    done = checked(program, "--log", "/run/leaky.log", "--patience", "2")
    found = faults(done)
    assert what in found.get(rule, "nothing"), found
    assert done.code == 1


def test_what_a_driver_leaves_after_a_failure_is_found(ledger: Ledger) -> None:
    body = MINE.replace(
        "mount.tmpfs(request.target,", "mount.tmpfs(request.target, size=65536); 1 / 0; mount.tmpfs(request.target,"
    )
    done = checked(place(ledger.directory(), "mine", python(body)), "--option", "size=1Mi")
    assert "ZeroDivisionError" in faults(done)["mount"]


def test_it_prints_a_table_for_people(ledger: Ledger) -> None:
    done = run([COMMAND, "flexvolume", "check", place(ledger.directory(), "mine", SHELL)])
    assert done.code == 1 and "mount again" in done.text and done.text.endswith("faults")


def test_what_is_no_driver_is_said(ledger: Ledger) -> None:
    done = run([COMMAND, "flexvolume", "check", ledger.directory() / "nothing"])
    assert done.code == 2 and b"is no executable file" in done.stderr
    done = run([COMMAND, "flexvolume", "check", "/bin/true", "--option", "size"])
    assert done.code == 2 and b"--option 'size' is not NAME=VALUE" in done.stderr


@needs("program:setpriv")
def test_it_asks_for_root() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from nodeplug.ops.main import run;"
        "sys.exit(run(['flexvolume', 'check', '/bin/true']))"
    )
    done = run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", program])
    assert done.code == 77 and b"mounting needs root" in done.stderr, done


def test_nothing_of_it_is_left_on_the_node(ledger: Ledger) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    run([COMMAND, "flexvolume", "check", place(ledger.directory(), "mine", SHELL)])
    assert Path("/proc/self/mountinfo").read_text() == before


def test_probe_shows_what_a_kubelet_would_load(ledger: Ledger) -> None:
    plugins = ledger.directory()
    place(plugins, "mine", SHELL)
    place(plugins, "broken", "#!/bin/sh\nexit 1\n")
    found = {
        entry["driver"]: entry for entry in run([COMMAND, "flexvolume", "probe", "--dest", plugins, "--json"]).json()
    }
    assert found["example.org/mine"]["capabilities"]["attach"] is False
    assert "unexpected end of JSON input" in found["example.org/broken"]["error"]
    shown = run([COMMAND, "flexvolume", "probe", "--dest", plugins, "--bare"]).ok().text
    assert "example.org/mine" in shown
