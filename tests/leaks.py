"""What tests left behind on the system, by name: two looks and their difference.

Exact inside the sandbox, where nothing else lives. Without it only what belongs to this process is looked at: its
descriptors, its children and its loop devices.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from nodeplug.core.paths import LOCKS
from tests.ledger import OUR_FILES, loop_devices, mounts
from tests.sandbox import FRESH, inside

# Written by design and kept: locks, of host-local the last address it gave and its index's stamp, and whether somebody
# has looked for what the reference plugins left.
_KEPT = ("lock", "last_reserved_ip.", "stamp", "reference.")
_SETTLE = 3.0


def look() -> frozenset[str]:
    """Everything there is now, one name each."""
    found = {*_descriptors(), *_processes(), *_loops()}
    if inside():
        found |= {*_links(), *_files(), *_mounts(), *_filters(), *_sockets()}
    return frozenset(found)


def since(before: frozenset[str]) -> list[str]:
    """What is new since `before`. What ends by itself has three seconds to do so."""
    deadline = time.monotonic() + _SETTLE
    while True:
        gc.collect()
        new = sorted(look() - before)
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.05)


def sweep() -> None:
    """Empty nodeplug's default paths, so that the next module finds them as this one did."""
    if not inside():
        return
    for top in (*FRESH[1:], "/run/nodeplug"):
        for path in Path(top).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _links() -> list[str]:
    named = [f"netns {entry.name}" for entry in Path("/run/netns").iterdir()]
    return named + [f"link {name}" for _index, name in socket.if_nameindex()]


def _files() -> list[str]:
    found = []
    for top in FRESH:
        for folder, _folders, names in os.walk(top):
            if folder.startswith("/run/tmp/pytest-of-"):
                continue  # pytest's tmp_path, which it keeps by rule and removes by itself
            found += [f"file {folder}/{name}" for name in names if not _kept(name)]
    elsewhere = ("file /run/netns/", "file /var/log/nodeplug/", f"file {LOCKS}/")
    return [name for name in found if not name.startswith(elsewhere)]


def _kept(name: str) -> bool:
    return name.startswith(_KEPT) or name.endswith(".lock")


def _mounts() -> list[str]:
    return [f"mount {point} ({kind})" for point, kind in mounts() if not point.startswith("/run/netns/")]


def _loops() -> list[str]:
    return [f"loop device {device} of {file}" for device, file in loop_devices() if f"/{OUR_FILES}" in file]


def _filters() -> list[str]:
    if shutil.which("nft") is None:
        return []
    shown = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=False)
    found = []
    for entry in json.loads(shown.stdout or b'{"nftables": []}')["nftables"]:
        for kind, what in entry.items():
            if kind == "metainfo":
                continue
            place = " ".join(str(what[key]) for key in ("family", "table", "chain", "name", "handle") if key in what)
            found.append(f"nft {kind} {place}")
            found += [f"nft element {place} {json.dumps(element)}" for element in what.get("elem", ())]
    return found


def _sockets() -> list[str]:
    found = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8:
            found.append(f"unix socket {fields[7]}")
    for proto in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{proto}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state in ("0A", "07"):  # listening, or an unconnected datagram socket
                found.append(f"{proto} socket on port {int(local.rsplit(':', 1)[1], 16)}")
    return found


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue  # the listing's own
        if target.startswith(("socket:", "net:", "mnt:")) or f"/{OUR_FILES}" in target:
            found.append(f"descriptor {entry.name} -> {target}")
    return found


def _processes() -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(status.parent.name), status.read_text().rpartition(")")[2].split()
            arguments = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # ended meanwhile
        ours = pid not in (1, os.getpid()) if inside() else int(rest[1]) == os.getpid()
        if ours:
            found.append(f"process {pid} {arguments or '(ended, not waited for)'}")
    return found
