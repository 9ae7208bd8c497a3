"""CNI calls made by hand, for tests of the door and of plugins: a Call in, the exit code and the parsed answer out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nodeplug.cni import Plugin, dispatch
from nodeplug.core import log
from nodeplug.core.call import Answer, Call

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
QUIET = log.Log(log.to_nowhere)


def environment(command: str, **changes: str | None) -> dict[str, str]:
    """All variables of a command; a change to None takes one away."""
    env: dict[str, str | None] = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "cid",
        "CNI_NETNS": "/run/netns/none",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
        **changes,
    }
    return {name: value for name, value in env.items() if value is not None}


def ask(
    plugin: type[Plugin] | str, env: Mapping[str, str], config: object = None, *, to: log.Log = QUIET, **files: int
) -> tuple[int, Any, str]:
    """(exit code, what stdout holds as JSON or None when it is empty, stderr). `config` is JSON bytes or a value."""
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    name = plugin if isinstance(plugin, str) else plugin.name
    call = Call(contract="cni", name=name, env=env, stdin=raw, files=files or None)
    found: Answer = dispatch.answer(call, to=to, plugin=None if isinstance(plugin, str) else plugin)
    return found.code, json.loads(found.stdout) if found.stdout else None, found.stderr.decode()
