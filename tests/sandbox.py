"""`python -m tests.sandbox [pytest arguments]`: pytest in a world of its own.

As root the module runs itself once more under unshare(1), with network, mount, pid and ipc namespaces of its own, and
there starts pytest. What a test finds there:

- lo, up, and no other link; /sys shows this network namespace
- fresh tmpfs on the paths in `FRESH`, so that nodeplug's default paths are used unchanged; /run/netns, /run/lock and
  /run/tmp (TMPDIR) exist
- its first process reaps what the tests orphan, and everything dies with it

Nothing of it reaches the host: where one of the directories is missing, its parent is covered by an overlay whose
upper half is in memory. Any number of checkouts can do this at once. Without root pytest runs bare, and the tests
that need more are skipped with the reason. `SANDBOX` in the environment tells tests that they are inside.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

SANDBOX = "NODEPLUG_TEST_SANDBOX"
IN_VM = "NODEPLUG_TEST_VM"
FRESH = ("/run", "/etc/nodeplug", "/etc/cni", "/var/lib/nodeplug", "/var/lib/cni", "/var/log/nodeplug")
NAMESPACES = ("--net", "--mount", "--pid", "--ipc", "--fork", "--mount-proc", "--propagation", "private")
CHECKOUT = Path(__file__).resolve().parent.parent

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def main(arguments: list[str]) -> int:
    """Run pytest with `arguments`; returns its exit status."""
    command = [sys.executable, "-m", "pytest", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    if os.environ.get(SANDBOX) == "entering" and os.getpid() == 1:
        furnish()
        return first_process(command, {**environment, SANDBOX: "inside", "TMPDIR": "/run/tmp"})
    missing = what_is_missing()
    if missing:
        print(f"sandbox: {missing}; tests that need more than this process may do are skipped, with the reason")
        return subprocess.run(command, env=environment, cwd=CHECKOUT, check=False).returncode
    os.chdir(CHECKOUT)
    again = ["unshare", *NAMESPACES, "--kill-child", sys.executable, "-m", "tests.sandbox", *arguments]
    return os.execvpe(again[0], again, {**environment, SANDBOX: "entering"})


def inside() -> bool:
    """Whether this process runs in the sandbox, or in the emulated machine, which is one."""
    return os.environ.get(SANDBOX) == "inside"


def what_is_missing() -> str:
    """Why this process cannot make a sandbox; "" when it can."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("unshare") is None:
        return "no unshare(1) (Debian: util-linux)"
    trial = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return trial.stderr.strip() if trial.returncode else ""


def furnish() -> None:
    """Make the new namespaces the world that the module's docstring describes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for path in FRESH[1:]:
        _make_mount_point(Path(path))
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", path)
    # `ip netns add` would make /run/netns a mount of its own and leave it behind, which reads as a leak.
    for name, options in (("netns", "mode=755"), ("lock", "mode=1777"), ("tmp", "mode=1777")):
        Path("/run", name).mkdir()
        _mount("-t", "tmpfs", "-o", options, "tmpfs", f"/run/{name}")
    _renew_sys()


def _make_mount_point(path: Path) -> None:
    if path.is_dir():
        return
    if not path.parent.is_dir():
        _make_mount_point(path.parent)
    scratch = Path("/run/.overlay")
    scratch.mkdir(exist_ok=True)
    name = path.parent.as_posix().strip("/").replace("/", "-")
    upper, work = scratch / name, scratch / f"{name}.work"
    if not upper.exists():
        upper.mkdir()
        shutil.copystat(path.parent, upper)
        work.mkdir()
        options = f"lowerdir={path.parent},upperdir={upper},workdir={work}"
        _mount("-t", "overlay", "-o", options, "overlay", str(path.parent))
    path.mkdir()


def _renew_sys() -> None:
    # sysfs shows the network namespace it was mounted in, so the host's would still list, and change, the host's links.
    cgroup = Path("/run/.cgroup")
    cgroup.mkdir()
    _mount("--rbind", "/sys/fs/cgroup", str(cgroup))
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("--move", str(cgroup), "/sys/fs/cgroup")
    cgroup.rmdir()


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def first_process(command: list[str], environment: dict[str, str]) -> int:
    """Be init: run `command`, reap every orphan until it ends; returns its exit status as a shell would."""
    child = os.fork()
    if child == 0:
        # What a shell's background or nohup(1) has us ignore, every child of every test would ignore too.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], command, environment)
    # A terminal sends Ctrl-C to both, and pytest answers it; SIGTERM comes to one process and is passed on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(child, number))
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
