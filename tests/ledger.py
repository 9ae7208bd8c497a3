"""The ledger: it hands out what a test needs from the system and takes all of it back, also when the test fails.

Fixtures: `ledger` for one test, `module_ledger` for a test module (see conftest). Removal is in reverse order; each
one is tried, whatever happened to the others, and does not mind that the test removed the thing itself.

    def test_pods_see_each_other(ledger):
        a, b = ledger.netns(), ledger.netns()
        conf = ledger.directory() / "10-net.conflist"
        server = ledger.echo(a)
        daemon = ledger.start(["bin/nodeplug-kms", "--socket", str(ledger.socket_path())])
        ledger.link("cni0")                      # the plugin will make it; the ledger deletes it
        ledger.adopt("my thing", my_thing.close) # anything else
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nodeplug.kernel import libc
from tests.child import Process, run
from tests.space import HERE, Space
from tests.traffic import Echo

# Every directory of a ledger begins so. The leak check knows our loop devices' files by it; those of other sandboxes,
# which are seen here too, begin differently.
OUR_FILES = f"np-{os.stat('/proc/self/ns/mnt').st_ino & 0xFFFF:x}-"
_MNT_DETACH = 2


class Ledger:
    """What was handed out, and how to take it back. Not shared between threads."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, Callable[[], object]]] = []

    def adopt(self, name: str, remove: Callable[[], object]) -> None:
        """Call `remove` at the end; `name` stands in the report if that fails."""
        self._entries.append((name, remove))

    def netns(self, name: str = "") -> Space:
        """A network namespace under /run/netns with lo up and nothing else."""
        space = Space.make(name or f"np-{secrets.token_hex(4)}")
        self.adopt(f"netns {space.name}", space.remove)
        return space

    def directory(self) -> Path:
        """An empty directory, its path short enough for sockets below; mounts and loop devices below end with it."""
        path = Path(tempfile.mkdtemp(prefix=OUR_FILES))
        self.adopt(f"directory {path}", lambda: _remove_tree(path))
        return path

    def socket_path(self) -> Path:
        """A path of its own where a unix socket may be bound."""
        return self.directory() / "s"

    def listener(self, path: Path | None = None, *, backlog: int = 16) -> socket.socket:
        """A listening unix stream socket; its path is `getsockname()`."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.adopt(f"socket {path}", server.close)
        server.bind(str(path or self.socket_path()))
        server.listen(backlog)
        return server

    def start(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> Process:
        """A running child, see `tests.child.Process`."""
        process = Process(argv, **options)
        self.adopt(f"process {process.pid} {argv[0]}", process.end)
        return process

    def echo(self, space: Space = HERE, **options: Any) -> Echo:
        """An echo server, see `tests.traffic`."""
        server = Echo(space, **options)
        self.adopt(f"echo server {server.port}", server.close)
        return server

    def link(self, name: str, space: Space = HERE) -> str:
        """Delete the link of that name at the end, if it exists then."""
        self.adopt(f"link {name}", lambda: run(["ip", "link", "delete", name], netns=space.path))
        return name

    def table(self, family: str, name: str, space: Space = HERE) -> str:
        """Delete the nft table of that name at the end, if it exists then."""
        self.adopt(f"table {name}", lambda: run(["nft", "delete", "table", family, name], netns=space.path))
        return name

    def close(self) -> None:
        """Take everything back. Raises ExceptionGroup with what could not be."""
        failures: list[Exception] = []
        while self._entries:
            name, remove = self._entries.pop()
            try:
                remove()
            except Exception as error:
                error.add_note(f"while the ledger removed: {name}")
                failures.append(error)
        if failures:
            raise ExceptionGroup("the ledger could not take everything back", failures)


def mounts() -> list[tuple[str, str]]:
    """(mount point, type) of every mount of this mount namespace, in mountinfo's order."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point = fields[4].encode().decode("unicode_escape")
        found.append((point, fields[fields.index("-") + 1]))
    return found


def loop_devices() -> list[tuple[str, str]]:
    """(device, backing file) of every loop device in use on this machine; other sandboxes' too."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append((f"/dev/{entry.parent.parent.name}", entry.read_text().strip().removesuffix(" (deleted)")))
        except OSError:
            pass  # detached meanwhile
    return found


def _remove_tree(path: Path) -> None:
    for point, _type in reversed(mounts()):
        if point == str(path) or point.startswith(f"{path}/"):
            libc.umount2(point, _MNT_DETACH)
    for device, file in loop_devices():
        if file.startswith(f"{path}/"):
            subprocess.run(["losetup", "-d", device], check=False)
    if path.exists():
        shutil.rmtree(path)
