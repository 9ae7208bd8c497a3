"""A driver as the kubelet has loaded it: capabilities, what it does not support, and each operation around its verbs.

The operations are those of pkg/volume/flexvolume with their defaults: what happens where a verb is not supported. What
the kubelet forgets between calls is forgotten here too.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.harness.kubelet.flexvolume import mounts
from nodeplug.harness.kubelet.flexvolume.answer import Capabilities, NotSupported, Panic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodeplug.harness.kubelet.flexvolume.answer import Status
    from nodeplug.harness.kubelet.flexvolume.call import Caller

ROOT = Path("/var/lib/kubelet")
NEW_GROUP_KEY = "kubernetes.io/mounterArgs.FsGroup"
OLD_GROUP_KEY = "kubernetes.io/fsGroup"
WAIT_FOR_ATTACH = 600.0


@dataclass(frozen=True)
class Pod:
    """As much of a pod as the kubelet tells a driver. `fs_group` is that of its security context."""

    name: str
    namespace: str = "default"
    uid: str = "11111111-2222-3333-4444-555555555555"
    service_account: str = "default"
    fs_group: int | None = None


@dataclass(frozen=True)
class Volume:
    """A flexVolume of a pod, or a persistent volume. `secrets` are what its secretRef names, as bytes by key."""

    name: str
    driver: str
    options: Mapping[str, str] = field(default_factory=dict)
    fs_type: str = ""
    read_only: bool = False
    secrets: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The API server's validation, the only one there is.
        for key in self.options:
            if key.lower().startswith(("kubernetes.io/", "k8s.io/")):
                raise ConfigInvalid(f"options[{key}]: must not use kubernetes.io or k8s.io reserved keys")


@dataclass(frozen=True)
class Habits:
    """How kubelets differ. `statx` is whether a bind mount within a file system is known for one."""

    group_key: str = NEW_GROUP_KEY
    statx: bool = True


class Plugin:
    """Made by `Prober`. May be used by several threads, one operation for each volume at a time."""

    def __init__(self, plugin_dir: Path, name: str, caller: Caller, *, root: Path = ROOT, habits: Habits) -> None:
        """Load the driver in `plugin_dir/name`. Raises what its init does, and `Panic` for null capabilities."""
        self.driver = name.replace("~", "/")
        self.executable = plugin_dir / name / self.driver.rpartition("/")[2]
        self.caller = caller
        self.root = root
        self.habits = habits
        self._lock = threading.Lock()
        self._unsupported: set[str] = set()
        found = self._run("init").capabilities
        if found is None:
            raise Panic("invalid memory address or nil pointer dereference: init answered null capabilities")
        self.capabilities: Capabilities = found

    def directory(self, pod: Pod, name: str) -> Path:
        """Where the pod's volume is mounted."""
        return self.root / "pods" / pod.uid / "volumes" / self.driver.replace("/", "~") / name

    def device_directory(self, name: str) -> Path:
        """Where the node's mount of an attached volume is."""
        return self.root / "plugins/kubernetes.io/flexvolume" / self.driver / "mounts" / name

    def volume_name(self, volume: Volume) -> str:
        """The driver is asked, and its answer thrown away."""
        try:
            self._run("getvolumename", self.document(volume))
        except NotSupported:
            return volume.name
        self.caller.journal.say(f"GetVolumeName is not supported yet. Defaulting to PV or volume name: {volume.name}")
        return volume.name

    # For a pod

    def set_up(self, pod: Pod, volume: Volume) -> Path:
        """Mount the volume for the pod; does nothing where it is mounted already, as far as can be seen.

        Raises what the verb does, or `KubeletFailed`; the directory is then removed if it can be.
        """
        target = self.directory(pod, volume.name)
        try:
            if mounts.prepare_for_mount(target, statx=self.habits.statx):
                return target
        except OSError as error:
            raise mounts.KubeletFailed(f"{target}: {error.strerror}") from error
        try:
            try:
                self._run("mount", str(target), self.mount_document(pod, volume))
            except NotSupported:
                mounts.bind(self.device_directory(self.volume_name(volume)), target)
        except Error:
            try:
                os.rmdir(target)
            except OSError:
                pass  # ignored, and with a mount left there the next attempt will find it and be content
            raise
        if not volume.read_only and self.capabilities.fsGroup and pod.fs_group is not None:
            mounts.set_ownership(target, pod.fs_group, read_only=False)
        return target

    def tear_down(self, pod: Pod, name: str) -> None:
        """Unmount the pod's volume and remove its directory, of which no more than its path is known.

        Raises what the verb does, or `KubeletFailed`.
        """
        target = self.directory(pod, name)
        try:
            if not mounts.path_exists(target):
                self.caller.journal.say(f"Unmount skipped because path does not exist: {target}")
                return
        except OSError as error:
            self.caller.journal.say(f"Error checking path: {error}")
        try:
            self._run("unmount", str(target))
        except NotSupported:
            mounts.unmount(target)
        try:
            there = mounts.path_exists(target)
        except OSError as error:
            raise mounts.KubeletFailed(f"error checking if path exists: {error.strerror}") from error
        if there:
            mounts.remove_directory(target)

    def metrics(self, pod: Pod, name: str) -> os.statvfs_result | None:
        """What the kubelet reports of the volume; None where the driver has no metrics."""
        return os.statvfs(self.directory(pod, name)) if self.capabilities.supportsMetrics else None

    # For a node, with a driver that attaches

    def attach(self, volume: Volume, node: str) -> str:
        try:
            return self._run("attach", self.document(volume), node).device
        except NotSupported:
            return ""

    def wait_for_attach(self, volume: Volume, device: str, *, timeout: float = WAIT_FOR_ATTACH) -> str:
        try:
            return self._run("waitforattach", device, self.document(volume), timeout=timeout).device
        except NotSupported:
            return device

    def is_attached(self, volume: Volume, node: str) -> bool:
        """Any failure but "Not supported", which ends all of the check, counts as attached."""
        try:
            return self._run("isattached", self.document(volume), node).attached
        except Error:
            return True

    def detach(self, volume: Volume, node: str) -> None:
        try:
            self._run("detach", volume.name, node)
        except NotSupported:
            pass

    def mount_device(self, volume: Volume, device: str) -> Path:
        target = self.device_directory(self.volume_name(volume))
        if mounts.prepare_for_mount(target, statx=self.habits.statx):
            return target
        try:
            self._run("mountdevice", str(target), device, self.document(volume))
        except NotSupported:
            if device:
                mounts.mount_device(device, target, volume.fs_type, read_only=volume.read_only)
        return target

    def unmount_device(self, name: str) -> None:
        target = self.device_directory(name)
        try:
            if not mounts.path_exists(target):
                return
            mounted = not mounts.is_likely_not_mount_point(target, statx=self.habits.statx)
        except OSError as error:
            if not mounts.is_corrupt(error):
                raise mounts.KubeletFailed(f"error checking path: {error.strerror}") from error
            mounted = True
        if mounted:
            try:
                self._run("unmountdevice", str(target))
            except NotSupported:
                mounts.unmount(target)
        if mounts.path_exists(target):
            mounts.remove_directory(target)

    def expand_volume(self, volume: Volume, new: int, old: int) -> int:
        """The size that the kubelet takes it to have, whatever the driver answered."""
        directory = self.device_directory(self.volume_name(volume))
        try:
            self._run("expandvolume", self.document(volume), str(directory), str(new), str(old))
        except NotSupported:
            pass
        return new

    def expand_fs(self, volume: Volume, device: str, directory: Path, new: int, old: int) -> None:
        """Asked for persistent volumes only, and where the driver has requiresFSResize. Raises `NotSupported` where the
        kubelet would run resize2fs or xfs_growfs on the device."""
        if self.capabilities.requiresFSResize:
            self._run("expandfs", self.document(volume), device, str(directory), str(new), str(old))

    def mount_document(self, pod: Pod, volume: Volume) -> str:
        """The options of a mount, which alone has the pod and the secrets."""
        extra = {f"kubernetes.io/secret/{key}": base64.b64encode(data).decode() for key, data in volume.secrets.items()}
        extra |= {
            "kubernetes.io/pod.name": pod.name,
            "kubernetes.io/pod.namespace": pod.namespace,
            "kubernetes.io/pod.uid": pod.uid,
            "kubernetes.io/serviceAccount.name": pod.service_account,
        }
        if pod.fs_group is not None:
            extra[self.habits.group_key] = str(pod.fs_group)
        return self.document(volume, extra)

    def document(self, volume: Volume, extra: Mapping[str, str] | None = None) -> str:
        """A volume's options as they are sent: its own last, so that they win."""
        document = {
            "kubernetes.io/fsType": volume.fs_type,
            "kubernetes.io/readwrite": "ro" if volume.read_only else "rw",
            "kubernetes.io/pvOrVolumeName": volume.name,
            **(extra or {}),
            **volume.options,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    def _run(self, verb: str, *arguments: str, timeout: float = 0.0) -> Status:
        with self._lock:
            if verb in self._unsupported:
                raise NotSupported
        try:
            return self.caller.call(self.executable, verb, *arguments, timeout=timeout)
        except NotSupported:
            with self._lock:
                self._unsupported.add(verb)
            raise
