"""The kubelet's directories: where its socket is and which kubelet that is, what our sockets are called, what is stale.

Used by registrars and the daemon.
"""

import os
import re
import secrets
import stat
import time

from nodeplug.core import files
from nodeplug.core.naming import digest
from nodeplug.deviceplugin import client
from nodeplug.deviceplugin.watch import Watch

DEVICE_PLUGINS = "device-plugins"
REGISTRY = "plugins_registry"
KUBELET_SOCKET = "kubelet.sock"
DEPRECATION = "DEPRECATION"  # the kubelet makes this file when it has a plugin watcher for device plugins

_OURS = re.compile(r"np-dp-[a-z2-7]{12}-[0-9a-f]{8}\.sock\Z")
_STAGING = re.compile(r"\.[0-9a-f]{10}~\Z")
_STAGING_AGE = 60.0


class Kubelet:
    """The kubelet's directories, and who is at its socket."""

    def __init__(self, directory: str, watch: Watch) -> None:
        self.plugins = os.path.join(directory, DEVICE_PLUGINS)
        self.registry = os.path.join(directory, REGISTRY)
        self.socket = os.path.join(self.plugins, KUBELET_SOCKET)
        self.watch = watch

    def identity(self) -> tuple[int, int, int] | None:
        """Which kubelet.sock this is: another one means another kubelet. None when there is none."""
        try:
            status = os.lstat(self.socket)
        except OSError:
            return None
        return (status.st_dev, status.st_ino, status.st_ctime_ns) if stat.S_ISSOCK(status.st_mode) else None

    @property
    def watcher_offered(self) -> bool:
        """Whether the kubelet says that its plugin watcher takes device plugins."""
        return os.path.isdir(self.registry) and os.path.exists(os.path.join(self.plugins, DEPRECATION))


def socket_name(resource: str) -> str:
    """A name no registration had before: 32 characters, so that with the directory it stays far below 107 bytes."""
    return f"np-dp-{digest(resource, 12)}-{secrets.token_hex(4)}.sock"


def sweep(directory: str) -> list[str]:
    """Remove sockets of ours in a kubelet's directory on which nobody listens; what was removed.

    A plugin that was killed leaves them, and a plugin watcher would dial them for ever. A socket that is being made
    (bound, not listening yet) is left alone while it is young.
    """
    removed = []
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    for name in names:
        staging = _STAGING.match(name)
        if not staging and not _OURS.match(name):
            continue
        path = os.path.join(directory, name)
        try:
            status = os.lstat(path)
            if not stat.S_ISSOCK(status.st_mode) or (staging and time.time() - status.st_mtime < _STAGING_AGE):
                continue
            if not client.listens(path) and files.remove(path):
                removed.append(path)
        except OSError:
            continue
    return removed
