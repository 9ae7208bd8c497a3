"""The log under many writers: every line whole, none lost in rotation, secrets masked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from nodeplug.core.log import Event, Log, Pod, RotatingFile, as_text
from nodeplug.core.secret import Secret

WRITER = """
import sys
sys.path.insert(0, {root!r})
from nodeplug.core.log import Event, Log, RotatingFile
log = Log(RotatingFile({path!r}, limit=20000, keep=1000, locks={locks!r}))
for n in range(300):
    log.write(Event(contract="cni", op="ADD", id=f"{{sys.argv[1]}}-{{n}}", message="x" * 40))
"""


def test_many_processes_rotate_one_file_without_losing_or_tearing_a_line(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    code = WRITER.format(root=root, path=str(tmp_path / "cni.log"), locks=str(tmp_path / "locks"))
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(6)]
    assert [writer.wait(60) for writer in writers] == [0] * 6
    logs = [path for path in tmp_path.iterdir() if path.name.startswith("cni.log")]
    assert len(logs) > 5
    ids = [json.loads(line)["id"] for path in logs for line in path.read_text().splitlines()]
    assert sorted(ids) == sorted(f"{w}-{n}" for w in range(6) for n in range(300))


def test_old_files_beyond_the_number_kept_go(tmp_path: Path) -> None:
    log = Log(RotatingFile(str(tmp_path / "a"), limit=300, keep=2, locks=str(tmp_path / "locks")))
    for _ in range(50):
        log.write(Event(contract="cni", op="ADD", message="y" * 50))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a", "a.1", "a.2"]


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Log(RotatingFile(str(tmp_path / "file" / "cni.log"))).write(Event(contract="cni", op="ADD"))


def test_a_record_has_the_fields_of_the_house_and_no_empty_ones() -> None:
    lines: list[bytes] = []
    Log(lambda line, _level: lines.append(line)).write(
        Event(
            contract="cni",
            op="ADD",
            id="net/cid/eth0",
            pod=Pod(namespace="default", name="web"),
            duration_ms=1.23456,
            outcome="error",
            level="error",
            code=11,
            message='range "a" exhausted\n',
        )
    )
    found = json.loads(lines[0])
    assert found.pop("ts").endswith("Z")
    assert found == {
        "level": "error",
        "contract": "cni",
        "op": "ADD",
        "id": "net/cid/eth0",
        "pod": {"namespace": "default", "name": "web"},
        "duration_ms": 1.235,
        "outcome": "error",
        "code": 11,
        "message": 'range "a" exhausted\n',
    }


def test_text_keeps_a_record_on_one_line_and_a_secret_masked() -> None:
    line = as_text(Event(contract="kms", op="init", message=f"a\nb {Secret('hunter2')}"), 0.0)
    assert line == "1970-01-01T00:00:00.000Z info    kms init ok - a b [secret]"


def test_quiet_levels_are_left_out() -> None:
    lines: list[bytes] = []
    log = Log(lambda line, _level: lines.append(line), level="warning")
    log.write(Event(contract="cni", op="ADD"))
    log.write(Event(contract="cni", op="ADD", level="warning"))
    assert len(lines) == 1
