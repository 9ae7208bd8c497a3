"""What the node's runtimes know: each keeps the result of every ADD until its DEL (libcni's cache).

What the reference made does not always say of which network it is. Then only what no runtime knows of in any network is
nobody's; without that directory nothing is.
"""

from __future__ import annotations

import os

from nodeplug.core import files, jsontext
from nodeplug.core.errors import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RESULTS = "/var/lib/cni/results"
"""Where libcni keeps them, and with it containerd, CRI-O and others."""

_LARGEST = 16 << 20


def containers(directory: str = RESULTS) -> frozenset[str] | None:
    """The containers that runtimes know of; None where that cannot be told."""
    try:
        return frozenset(str(entry.get("containerId", "")) for entry in _entries(directory))
    except (FileNotFoundError, Malformed):
        return None


def addresses(directory: str = RESULTS) -> dict[str, frozenset[str]] | None:
    """The addresses of each container that runtimes know of, without prefix length; None where that cannot be told."""
    found: dict[str, frozenset[str]] = {}
    try:
        for entry in _entries(directory):
            container = str(entry.get("containerId", ""))
            found[container] = found.get(container, frozenset()) | frozenset(_of(entry.get("result")))
    except (FileNotFoundError, Malformed):
        return None
    return found


def lives(container: str, directory: str = RESULTS) -> bool:
    """Whether a runtime knows the container and its namespace is there; where that cannot be told it is taken to."""
    try:
        entries = [entry for entry in _entries(directory) if entry.get("containerId") == container]
    except (FileNotFoundError, Malformed):
        return True
    return any(not entry.get("netns") or os.path.exists(str(entry["netns"])) for entry in entries)


def _entries(directory: str) -> Iterator[dict[str, Any]]:
    """Raises FileNotFoundError without the directory, `Malformed` for a file of it that cannot be understood."""
    for name in os.listdir(directory):
        try:
            found = jsontext.loads(files.read_bounded(f"{directory}/{name}", _LARGEST))
        except (FileNotFoundError, IsADirectoryError):
            continue
        if isinstance(found, dict):
            yield found


def _of(result: Any) -> Iterator[str]:
    """The addresses in a result of any version."""
    if not isinstance(result, dict):
        return
    found = result.get("ips")
    for ip in found if isinstance(found, list) else ():
        if isinstance(ip, dict) and isinstance(ip.get("address"), str):
            yield ip["address"].partition("/")[0]
    for key in ("ip4", "ip6"):
        ip = result.get(key)
        if isinstance(ip, dict) and isinstance(ip.get("ip"), str):
            yield ip["ip"].partition("/")[0]
