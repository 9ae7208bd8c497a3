"""The emulated machine's first file system: busybox, the modules to reach the real one, and a script as /init.

The real one is this machine's root, read-only by virtiofs, with an overlay in the guest's memory above it. So the
guest has the same Python, tools, checkout and virtual environment under the same paths, and can change nothing here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.vm.kernel import Kernel

TAG = "root"  # of the virtiofs device
_MODULES = ("virtio_pci", "virtiofs", "overlay")
_FOLDERS = ("bin", "dev", "lower", "modules", "proc", "sys", "upper", "root")

_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
mount -t virtiofs -o ro {tag} /lower
mount -t tmpfs -o size=75% tmpfs /upper
mkdir /upper/changes /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /root
mkdir -p /root/lib/modules/{release}
mount --bind /lower{module_folder} /root/lib/modules/{release}
for point in dev proc sys; do mount --move /$point /root/$point; done
mount -t tmpfs tmpfs /root/run
mount -t tmpfs tmpfs /root/tmp
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t cgroup2 cgroup /root/sys/fs/cgroup
ip link set lo up
echo '{marker}'
exec switch_root /root /bin/sh -c {script}
"""
_AROUND = """\
sh -c {script}
echo $? >/dev/ttyS1
exec /bin/busybox reboot -f
"""


def write(path: Path, kernel: Kernel, script: str, *, marker: str) -> None:
    """Write the archive: a machine that boots it prints `marker`, runs the shell `script` in the real root, and ends.

    The script's exit status goes to the second serial port.
    """
    modules = _in_order(kernel)
    init = _INIT.format(
        modules=" ".join(module.name for module in modules),
        tag=TAG,
        release=kernel.release,
        module_folder=shlex.quote(str(kernel.modules)),
        script=shlex.quote(_AROUND.format(script=shlex.quote(script))),
        marker=marker,
    )
    files = {"init": init.encode(), "bin/busybox": Path("/bin/busybox").read_bytes()}
    files |= {f"modules/{module.name}": module.read_bytes() for module in modules}
    path.write_bytes(b"".join(_archive(files)))


def _in_order(kernel: Kernel) -> list[Path]:
    """The files of `_MODULES` and of all they depend on, those first."""
    needed: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        needed[name] = others.split()
    order: dict[str, None] = {}

    def add(name: str) -> None:
        for other in needed[name]:
            add(other)
        order.setdefault(name)

    for module in _MODULES:
        wanted = next((name for name in needed if Path(name).name.split(".")[0] == module), None)
        if wanted:  # else built in
            add(wanted)
    return [kernel.modules / name for name in order]


def _archive(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """A cpio archive in the "newc" format; see the kernel's driver-api/early-userspace/buffer-format."""
    entries = [(name, 0o040755, b"") for name in _FOLDERS]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for inode, (name, mode, data) in enumerate(entries, 1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
