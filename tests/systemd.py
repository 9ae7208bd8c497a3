"""A systemd of its own, process 1 of namespaces that end with it, on an overlay of this machine's file system.

boot(directory, script) runs a shell script as a unit of it, with the checkout at /opt/nodeplug, and returns what the
script wrote. Nothing of it reaches the machine: what is written lies in `directory`.
"""

from __future__ import annotations

from pathlib import Path

from tests.child import run
from tests.sandbox import CHECKOUT

_BOOT = """
set -e
top=$1 checkout=$2
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
root=$top/root
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys" 2>/dev/null || mount --rbind /sys "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mkdir -p "$root$checkout" "$root/opt"
mount --bind "$checkout" "$root$checkout"
ln -sfn "$checkout" "$root/opt/nodeplug"
# A mount of its own, so that what the script writes is still there when all of this is gone.
mkdir "$root/out"
mount --bind "$3" "$root/out"
rm -f "$root/etc/machine-id"
touch "$root/etc/machine-id"
cat > "$root/etc/systemd/system/trial.target" <<END
[Unit]
Requires=trial.service
END
cat > "$root/etc/systemd/system/trial.service" <<END
[Service]
Type=oneshot
Environment=HOME=/root PATH=/opt/nodeplug/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/bin/sh /out/script
StandardOutput=file:/out/said
StandardError=file:/out/said
ExecStopPost=/bin/systemctl --no-block exit
END
exec chroot "$root" env -i container=trial PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --unit=trial.target --log-target=journal-or-kmsg --show-status=false
"""

_END = "the script came to its end"


def boot(directory: Path, script: str, *, timeout: float = 100.0) -> str:
    """What the script wrote on stdout and stderr; it ends at the first command that fails."""
    top, out = directory / "top", directory / "out"
    top.mkdir()
    out.mkdir()
    told = "systemctl status --no-pager --lines=50 'nodeplug*'; journalctl --no-pager"
    (out / "script").write_text(
        f'set -eu\ntrap "{told}" EXIT\nsystemctl start systemd-journald\n{script}\ntrap - EXIT\necho {_END}\n'
    )
    flags = ["--fork", "--pid", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--propagation", "private"]
    done = run(
        ["unshare", *flags, "--kill-child", "sh", "-c", _BOOT, "boot", str(top), str(CHECKOUT), str(out)],
        timeout=timeout,
    )
    said = (out / "said").read_text() if (out / "said").exists() else ""
    assert said.endswith(f"{_END}\n"), f"{said}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    return said
