"""A containerd of our own: its configuration, files and sockets in one directory, ended by pid, nothing left behind.

Needs root, runc and containerd 1.6 or newer; uses no registry and no running containerd. The caller chooses the
namespaces it lives in: sandboxes' network namespaces are named /run/netns/cni-*, and shims bind sockets below
/run/containerd, whatever the configuration says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Self

from nodeplug.core.errors import Error, NotFound, TimedOut, Unavailable
from nodeplug.harness.runtime import cgroups, image
from nodeplug.harness.runtime.cri import Cri, PodSpec
from nodeplug.kernel import mount, netns

PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
IMAGE = "localhost/nodeplug-pod:1"
_PAUSE = "localhost/nodeplug-pause:1"
_START = 30.0
_STOP = 15.0

_CONFIG = """version = 2
root = {root}
state = {state}
# The first would make /opt/containerd, the others complain about a file system they do not find.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = {socket}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {pause}
  stream_server_address = "127.0.0.1"
  # Without CAP_SYS_RESOURCE a score below our own cannot be set, and runc dies of it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {snapshotter}
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {bin_dir}
    conf_dir = {conf_dir}
"""


def missing() -> str:
    """Why no containerd can be started here; "" when one can."""
    if os.geteuid() != 0:
        return "containerd needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: containerd runc)"
    try:
        image.busybox()
    except NotFound as error:
        return str(error)
    return ""


class Containerd:
    """One private instance below `directory`, which must be short enough for unix sockets (80 bytes).

    `bin_dir` has the CNI plugins, `conf_dir` their configuration. `with` starts it and ends it with all its pods.
    """

    def __init__(self, directory: Path, *, bin_dir: Path, conf_dir: Path, snapshotter: str = "overlayfs") -> None:
        self.directory = directory
        self.socket = directory / "containerd.sock"
        self.log = directory / "containerd.log"
        self._config = directory / "config.toml"
        self._keys = {
            "root": directory / "root",
            "state": directory / "state",
            "socket": self.socket,
            "pause": _PAUSE,
            "snapshotter": snapshotter,
            "bin_dir": bin_dir,
            "conf_dir": conf_dir,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._cri: Cri | None = None
        self._prepared = False
        self.cgroup_parent = cgroups.new_parent()

    @property
    def cri(self) -> Cri:
        """The client of the running instance."""
        if self._cri is None:
            raise Unavailable("this containerd is not running")
        return self._cri

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        if self._process is None:
            raise Unavailable("this containerd is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the daemon, wait until it answers, and import the image the first time. Raises `Error` subclasses."""
        if self._process is not None:
            return
        cgroups.sweep()
        self.directory.mkdir(parents=True, exist_ok=True)
        quoted = {key: json.dumps(str(value)) for key, value in self._keys.items()}
        self._config.write_text(_CONFIG.format(**quoted))
        with self.log.open("ab") as log:
            self._process = self._spawn(log)
        self._cri = Cri(self.socket)
        self._await_answer()
        if not self._prepared:
            self._import_image()
            self._prepared = True

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = ["containerd", "--config", str(self._config), "--log-level", "info"]
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        except OSError as error:
            raise Unavailable(f"cannot start containerd: {error.strerror}") from error

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START
        while True:
            if self._process is None or self._process.poll() is not None:
                raise Unavailable(f"containerd ended at once: {self._last_words()}")
            try:
                if self.cri.conditions().get("RuntimeReady", (False, ""))[0]:
                    return
            except Error as error:
                last: Error | str = error
            else:
                last = "it is not ready"
            if time.monotonic() > deadline:
                raise TimedOut(f"containerd did not answer within {_START:g} s: {last}; {self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "it wrote no log"
        return " | ".join(lines[-3:])

    def _import_image(self) -> None:
        archive = self.directory / "image.tar"
        image.write(archive, [IMAGE, _PAUSE])
        self._ctr("images", "import", str(archive))
        archive.unlink()

    def stop(self) -> None:
        """End the daemon alone; its pods go on, as they do when a node's containerd is restarted."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the daemon without warning."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._cri is not None:
            self._cri.close()
            self._cri = None
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP)

    def spec(self, name: str, **more: object) -> PodSpec:
        """A pod's spec whose control groups are this instance's own."""
        return PodSpec(name, cgroup_parent=self.cgroup_parent, **more)  # type: ignore[arg-type]  # PodSpec's own fields

    def remove_pods(self) -> list[Error]:
        """Stop and remove every pod; returns what could not be."""
        errors: list[Error] = []
        for pod in self.cri.pods():
            try:
                self.cri.stop_pod(pod.id)
                self.cri.remove_pod(pod.id)
            except Error as error:
                errors.append(error)
        return errors

    def lose_pod(self, pod_id: str) -> None:
        """Take a pod away behind this runtime's back: its processes, its namespace, its record. No DEL is made.

        What a crash of the node's runtime and a hasty clean-up leave: the network's state, and nobody who knows it.
        The daemon is killed and started again, and does not list the pod any more.
        """
        described = json.loads(self.cri.pod_info(pod_id))
        namespaces = described["runtimeSpec"]["linux"]["namespaces"]
        path = next(entry["path"] for entry in namespaces if entry["type"] == "network")
        records = (*self.cri.containers(pod_id), pod_id)
        self._end_shims(pod_id)
        for record in records:
            self._forget(record)
        netns.remove(path)
        self.kill()
        self.start()

    def _forget(self, record: str) -> None:
        """Delete a container's record once the daemon has noticed the end of its shim."""
        deadline = time.monotonic() + _STOP
        while True:
            try:
                self._ctr("containers", "rm", record)
                return
            except Error as error:
                if "not found" in str(error):
                    return
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _ctr(self, *arguments: str) -> str:
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"ctr {' '.join(arguments)} did not end within 60 s") from error
        if done.returncode != 0:
            raise Error(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def close(self) -> None:
        """End everything this instance ever started and delete its directory; works after a crash at any point."""
        if self._process is not None:
            with contextlib.suppress(Error):
                self.remove_pods()
        self._end(signal.SIGTERM)
        self._end_shims()
        _unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        cgroups.remove(self.cgroup_parent)

    def _end_shims(self, pod_id: str = "") -> None:
        """Kill the shims that name our socket, or the one of a pod: they outlive their daemon by design."""
        wanted = [str(self.socket).encode(), *([pod_id.encode()] if pod_id else [])]
        for shim in _processes_with_arguments(wanted):
            for pid in (*_descendants(shim), shim):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _STOP
        while _processes_with_arguments(wanted) and time.monotonic() < deadline:
            time.sleep(0.02)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _processes_with_arguments(wanted: list[bytes]) -> list[int]:
    """The processes that have each of `wanted` among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if set(wanted) <= set(entry.read_bytes().split(b"\0")) and int(entry.parent.name) != os.getpid():
                found.append(int(entry.parent.name))
    return found


def _descendants(pid: int) -> list[int]:
    """The processes below `pid`, deepest first."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [*_descendants(int(child)), int(child)]
    return found


def _unmount_below(directory: Path) -> None:
    for found in reversed(mount.mounts()):
        if found.point.startswith(f"{directory}/"):
            with contextlib.suppress(OSError):
                mount.unmount(found.point, detach=True)
