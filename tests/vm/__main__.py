"""Run the tests marked `vm` under Debian's kernel in an emulated machine, and end with their exit status.

    python -m tests.vm [--shell 'command'] [pytest arguments]

Without arguments all of them, in two machines at once where there are two processors: each emulates one well.

Needs Debian on x86-64, root (for virtiofs) and the packages in `PACKAGES`, which it installs where they are missing;
the kernel is unpacked into ~/.cache. No KVM needed. Where it cannot run it says why; that is a failure on Debian 12 as
root only, as every unannounced skip is.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.needs import OUTSIDE
from tests.sandbox import CHECKOUT, IN_VM
from tests.skips import strict
from tests.vm import initrd
from tests.vm.kernel import kernel

PACKAGES = ("qemu-system-x86", "qemu-system-common", "kmod", "busybox-static", "secilc")
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
TIMEOUT = 600.0  # seconds, against one that hangs; a machine with nothing else to do needs far less
MEMORY = "1536M"
MACHINES = 2
MARKER = "the machine is up"
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|c)|\r")


def main(arguments: list[str]) -> int:
    """Boot, run, report; returns the tests' exit status, 1 when the machine gave none."""
    reason = why_not()
    if reason:
        must = strict() and platform.machine() == "x86_64"
        print(f"vm: {reason}; the tests that need it are skipped{', so this run fails' if must else ''}")
        return 1 if must else 0
    if arguments[:1] == ["--shell"]:
        scripts = [arguments[1]]
    elif arguments:
        scripts = [pytest_script(arguments)]
    else:
        machines = min(os.cpu_count() or 1, MACHINES)
        scripts = [pytest_script(files) for files in shared(files_with_vm_tests(), machines)]
    kernel()  # else each machine would download it
    with ThreadPoolExecutor(len(scripts)) as pool:
        names = [f"vm {number}" if len(scripts) > 1 else "vm" for number in range(1, len(scripts) + 1)]
        return max(pool.map(boot, scripts, names))


def why_not() -> str:
    """Why no machine can be had here; "" when it can. Installs what is missing where that is possible."""
    if platform.machine() != "x86_64":
        return f"no kernel package is known for {platform.machine()}"
    if os.geteuid() != 0:
        return "not root, which sharing the file system needs"
    subprocess.run([CHECKOUT / "tests" / "setup-debian", *PACKAGES], check=False)
    for program in ("qemu-system-x86_64", "apt-get", "depmod", VIRTIOFSD, "/bin/busybox"):
        if shutil.which(program) is None:
            return f"no {program}"
    return ""


def files_with_vm_tests() -> Counter[str]:
    """The files with tests marked `vm` and how many each has; collected here, as an emulated machine is slow at it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "vm", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    found = Counter(line.split("::")[0] for line in done.stdout.splitlines() if "::" in line)
    if done.returncode or not found:
        raise SystemExit(f"vm: pytest cannot collect the tests marked vm:\n{done.stdout}{done.stderr}")
    return found


def shared(files: Counter[str], machines: int) -> list[list[str]]:
    """The files in so many parts with about as many tests each."""
    parts: list[list[str]] = [[] for _ in range(machines)]
    weights = [0] * machines
    for file, tests in files.most_common():
        lightest = weights.index(min(weights))
        parts[lightest].append(file)
        weights[lightest] += tests
    return [part for part in parts if part]


def pytest_script(arguments: list[str]) -> str:
    """What the guest runs: the sandbox with these tests, as its own last skip."""
    command = [sys.executable, "-m", "tests.sandbox", "-m", "vm", "-p", "no:cacheprovider", *arguments]
    environment = f"HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin {IN_VM}=1"
    environment += f" {OUTSIDE}=/proc/self/fd/9"
    enter = f"exec 9</proc/self/ns/net; cd {shlex.quote(str(CHECKOUT))}"
    return f"{enter} && exec env -i {environment} LANG=C.UTF-8 {shlex.join(command)}"


def boot(script: str, name: str) -> int:
    """Boot a machine that runs `script`, show its console; returns the script's exit status."""
    used = kernel()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="np-vm-") as directory:
        scratch = Path(directory)
        initrd.write(scratch / "initrd", used, script, marker=MARKER)
        status = scratch / "status"
        with root_served(scratch / "root.sock"):
            command = qemu(scratch, used.image, status)
            machine = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
            )
            timer = threading.Timer(TIMEOUT, machine.kill)
            timer.start()
            try:
                show(machine, name, begin)
                machine.wait()
            finally:
                timer.cancel()
                machine.kill()
                machine.wait()
        text = status.read_text().strip() if status.exists() else ""
    elapsed = time.monotonic() - begin
    if not text.isdigit():
        late = f" within {TIMEOUT:.0f} s" if elapsed >= TIMEOUT else ""
        print(f"{name}: the machine ended without a status{late}")
        return 1
    print(f"{name}: status {text} after {elapsed:.0f} s, Linux {used.release}")
    return int(text)


@contextmanager
def root_served(socket: Path) -> Iterator[None]:
    """virtiofsd over this machine's root, without /dev, /proc and /sys, bound read-only in a mount namespace."""
    options = ("-o", "source=/mnt,sandbox=chroot,cache=always,timeout=3600", "--rlimit-nofile=0")
    serve = shlex.join([str(VIRTIOFSD), f"--socket-path={socket}", *options])
    command = [*ENDS_WITH_US, "unshare", "--mount", "--propagation", "private"]
    with tempfile.TemporaryFile("w+") as words:
        server = subprocess.Popen(
            [*command, "sh", "-ec", f"mount --rbind -o ro / /mnt; umount -R /mnt/dev /mnt/proc /mnt/sys; exec {serve}"],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
        )
        try:
            deadline = time.monotonic() + 10
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    words.seek(0)
                    raise SystemExit(f"vm: virtiofsd does not start: {words.read()}")
                time.sleep(0.02)
            yield
        finally:
            server.kill()
            server.wait()


def qemu(scratch: Path, image: Path, status: Path) -> list[str]:
    """The emulator's command line."""
    # Pure emulation, also where there is /dev/kvm: nested inside another machine that one may stop half-way.
    return [
        *ENDS_WITH_US,
        "qemu-system-x86_64",
        *("-M", "q35,accel=tcg,memory-backend=ram", "-cpu", "max", "-smp", "2", "-m", MEMORY),
        *("-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on"),
        *("-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-serial", f"file:{status}"),
        *("-chardev", f"socket,id=root,path={scratch / 'root.sock'}"),
        *("-device", f"vhost-user-fs-pci,chardev=root,tag={initrd.TAG}"),
        # Cards that lead nowhere, for plugins that lend them; without the firmware that boots from a network.
        *("-netdev", "hubport,id=wire0,hubid=0", "-device", "virtio-net-pci,netdev=wire0,romfile="),
        *("-netdev", "hubport,id=wire1,hubid=0", "-device", "virtio-net-pci,netdev=wire1,romfile="),
        *("-kernel", str(image), "-initrd", str(scratch / "initrd")),
        # SELinux labels nothing and refuses nothing until a test loads a policy.
        *("-append", "console=ttyS0 quiet panic=-1 security=selinux"),
    ]


def show(machine: subprocess.Popen[str], name: str, begin: float) -> None:
    """Print the console, without a terminal's escapes, and when the machine was up."""
    assert machine.stdout is not None
    before = "" if name == "vm" else f"{name}: "
    for line in machine.stdout:
        text = _ESCAPES.sub("", line.rstrip("\n"))
        if text == MARKER:
            print(f"{name}: up after {time.monotonic() - begin:.1f} s", flush=True)
        elif "reboot: Restarting system" not in text:
            print(f"{before}{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
