"""What the daemon tells of itself in a file, for `nodeplug device list`: written by it alone, read by anybody.

A file and not a socket: it is there when the daemon hangs, and costs nothing while nobody asks.
"""

import json
import os
from collections.abc import Iterable
from typing import Any

from nodeplug.core import files
from nodeplug.core.naming import digest
from nodeplug.deviceplugin.settings import Settings
from nodeplug.devices.snapshot import Snapshot

_LARGEST = 64 << 20


def state_path(settings: Settings, source: str) -> str:
    """Beside the links; each settings file (`source`) has a daemon, and so a state, of its own."""
    directory = os.path.dirname(settings.directories.links)
    return os.path.join(directory, f"deviceplugin-{digest(os.path.abspath(source), 8)}.json")


def write_state(path: str, resources: Iterable[tuple[str, bool, str, Snapshot]]) -> None:
    """Replace the file by (name, registered, trouble, snapshot) of each resource. Raises OSError."""
    state = {
        "pid": os.getpid(),
        "resources": [
            {
                "name": name,
                "registered": registered,
                "trouble": trouble,
                "devices": [
                    {
                        "id": device.id,
                        "health": "healthy" if device.healthy else "unhealthy",
                        "reason": device.reason,
                        "since": round(snapshot.since[device.id], 3),
                    }
                    for device in snapshot.devices
                ],
            }
            for name, registered, trouble, snapshot in resources
        ],
    }
    files.ensure_directory(os.path.dirname(path))
    files.write_atomic(path, json.dumps(state).encode(), 0o644, durable=False)


def read_state(path: str) -> dict[str, Any] | None:
    """What a daemon wrote last; None when there is nothing that can be read."""
    try:
        found = json.loads(files.read_bounded(path, _LARGEST))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("resources"), list) else None
