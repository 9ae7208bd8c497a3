"""What pods leave on a node, by name: looked at with the system's own eyes, not with nodeplug's memory."""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodeplug.core import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nodeplug.ops.demo.pods import Pod

LEASES = Path("/var/lib/cni/networks")
RESULTS = Path("/var/lib/cni/results")
STATE = (Path(paths.RUN), Path(paths.VAR), LEASES / ".nodeplug")
NETNS = Path("/run/netns")

Remains = dict[str, set[str]]
"""Kind -> the names of all there is of it."""


def look() -> Remains:
    """Everything there is now."""
    return {
        "links": {name for _, name in socket.if_nameindex()},
        "network namespaces": {path.name for path in NETNS.iterdir()} if NETNS.is_dir() else set(),
        "leases": {path.name for path in _files(LEASES) if _is_address(path.name)},
        "nft elements": set(_elements()),
        "cached results": {path.name for path in _files(RESULTS)},
        "state files": {str(path) for top in STATE for path in _files(top) if not _is_of_the_network(path)},
    }


def new(before: Mapping[str, set[str]], *, but: str) -> Remains:
    """What is there now and was not before; `but` is the one link that stays, the network's bridge."""
    found = {kind: names - before[kind] for kind, names in look().items()}
    found["links"].discard(but)
    return found


def of(pod: Pod) -> Remains:
    """What is known to be of one pod: by its address, or by its id in a file's name or content."""
    found = look()
    return {
        "leases": found["leases"] & {pod.address},
        "nft elements": {element for element in found["nft elements"] if pod.address in element},
        "cached results": {name for name in found["cached results"] if pod.id in name},
        "state files": {
            name for name in found["state files"] if pod.id in name or _holds(name, pod.id) or _holds(name, pod.address)
        },
    }


def rules() -> int:
    """How many nft rules there are; they belong to networks."""
    return sum(1 for kind, _ in _ruleset() if kind == "rule")


def _files(top: Path) -> list[Path]:
    """Files, and links that lead nowhere: the address manager's index is made of those."""
    return [path for path in top.rglob("*") if path.is_file() or path.is_symlink()]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_of_the_network(path: Path) -> bool:
    """Locks and time stamps are a network's, and stay; so is what is noted of the reference plugins the node's."""
    noted = path.name in ("lock", "stamp") or path.stem == "reference"
    return noted or path.is_relative_to(paths.LOCKS) or path.suffix == ".lock"


def _holds(name: str, text: str) -> bool:
    path = Path(name)
    try:
        return text in (str(path.readlink()) if path.is_symlink() else path.read_text(errors="replace"))
    except OSError:
        return False  # gone meanwhile


def _elements() -> Iterator[str]:
    for kind, what in _ruleset():
        if kind in ("set", "map"):
            for element in what.get("elem", ()):
                yield f"{what['family']} {what['table']} {what['name']}: {_plain(element)}"


def _plain(value: object) -> str:
    """An element in few words: its addresses and ports, without the names that nft's JSON has for the parts."""
    if isinstance(value, dict):
        return " . ".join(_plain(part) for part in value.values())
    if isinstance(value, list):
        return " : ".join(_plain(part) for part in value)
    return str(value)


def _ruleset() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that nft(8) lists as (kind, object); nothing where it is not installed."""
    if shutil.which("nft") is None:
        return
    shown = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, timeout=30, check=False)
    for entry in json.loads(shown.stdout or b'{"nftables": []}')["nftables"]:
        yield from entry.items()
