"""A directory of plugins that do as they are told and write down what they were asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_SCRIPT = """#!/usr/bin/python3 -IS
import json, os, sys
name, here = os.path.basename(sys.argv[0]), os.path.dirname(sys.argv[0])
command, stdin = os.environ["CNI_COMMAND"], sys.stdin.read()
with open(here + "/.asked", "a") as log:
    cni = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    log.write(json.dumps({"plugin": name, "env": cni, "stdin": json.loads(stdin)}) + "\\n")
try:
    told = json.load(open(f"{here}/.told-{name}-{command}"))
except FileNotFoundError:
    told = {}
answer = told.get("stdout", "")
if command == "ADD" and not told:
    request = json.loads(stdin)
    answer = json.dumps(request.get("prevResult") or {"cniVersion": request["cniVersion"]})
sys.stdout.write(answer)
sys.stdout.flush()
sys.stderr.write(told.get("stderr", ""))
sys.stderr.flush()
os._exit(told.get("exit", 0))
"""


@dataclass(frozen=True)
class Asked:
    """One call of a fake plugin."""

    plugin: str
    command: str
    env: dict[str, str]
    stdin: dict[str, Any]


class Fakes:
    """Fake plugins in `directory`."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        for name in names:
            self.script(name, _SCRIPT)

    def script(self, name: str, text: str) -> Path:
        """Put an executable of its own there."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def tell(self, name: str, command: str, **answer: object) -> None:
        """What a plugin is to answer from now on: any of `stdout`, `stderr`, `exit`."""
        (self.directory / f".told-{name}-{command}").write_text(json.dumps(answer))

    def asked(self) -> list[Asked]:
        """All calls since the last time."""
        log = self.directory / ".asked"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        calls = [json.loads(line) for line in lines]
        return [Asked(call["plugin"], call["env"]["CNI_COMMAND"], call["env"], call["stdin"]) for call in calls]
