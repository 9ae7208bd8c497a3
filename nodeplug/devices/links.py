"""Links of our own that lead to the present node of a device: /run/nodeplug/devices/<id>/<role>.

What a kubelet has stored for a container names the link, never a number that the kernel may give to another device
tomorrow. A device that is gone has no link, so that a container that starts meanwhile fails instead of opening
something else. Used by discovery, on one thread.
"""

import os
import secrets

from nodeplug.core import files
from nodeplug.devices.contract import Device


class Links:
    """The links below one directory. `make` False makes and removes none: for a look that changes nothing."""

    def __init__(self, directory: str, *, make: bool = True) -> None:
        self._make = make
        self._directory = directory
        self._prefix = directory + "/"
        self._made: dict[str, dict[str, str]] = {}  # id -> role -> target
        self._users: dict[str, set[str]] = {}  # id -> the pools that want its links

    def load(self) -> None:
        """Learn what is there: at the start what an earlier process left, later what is left of ours."""
        self._made.clear()
        for id in _entries(self._directory) if self._make else ():
            roles = {}
            for role in _entries(os.path.join(self._directory, id)):
                try:
                    roles[role] = os.readlink(os.path.join(self._directory, id, role))
                except OSError:
                    continue
            self._made[id] = roles

    def want(self, pool: str, device: Device) -> None:
        """Make the links of a device right before it is published. Raises OSError (a full disk, say)."""
        if not self._make:
            return
        wanted = {
            node.host.removeprefix(self._prefix).partition("/")[2]: node.real
            for node in device.nodes
            if node.host.startswith(self._prefix)
        }
        if not wanted:
            return
        self._users.setdefault(device.id, set()).add(pool)
        made = self._made.setdefault(device.id, {})
        folder = os.path.join(self._directory, device.id)
        for role, target in wanted.items():
            if made.get(role) == target:
                continue
            files.ensure_directory(folder)
            temporary = os.path.join(folder, f".{secrets.token_hex(5)}~")
            os.symlink(target, temporary)
            try:
                os.rename(temporary, os.path.join(folder, role))
            except BaseException:
                files.remove(temporary)
                raise
            made[role] = target

    def forget(self, pool: str, id: str) -> None:
        """A pool no longer has the device: remove its links when no other pool has it."""
        users = self._users.get(id)
        if users is not None:
            users.discard(pool)
            if users:
                return
            del self._users[id]
        if id in self._made:
            self._remove(id)

    def sweep(self) -> None:
        """Remove the links of all devices that nobody wants: after the first look at everything."""
        for id in [id for id in self._made if id not in self._users]:
            self._remove(id)

    def _remove(self, id: str) -> None:
        folder = os.path.join(self._directory, id)
        try:
            for role in os.listdir(folder):
                files.remove(os.path.join(folder, role))
            os.rmdir(folder)
        except OSError:
            pass  # the directory is gone, or not ours to mend; the next look at everything tries again
        self._made.pop(id, None)


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
