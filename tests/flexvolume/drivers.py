"""Drivers for tests: one in Python by the author's base class, one in shell, and those that do things wrong."""

from __future__ import annotations

from pathlib import Path

from tests.sandbox import CHECKOUT

VENDOR = "example.org"

# What an author writes. It mounts a tmpfs, as the fixtures of the kubelet's own tests do.
MINE = """
from nodeplug.core.document import choice, secret, size
from nodeplug.core.record import Record, key
from nodeplug.flexvolume import Capabilities, Driver, MountRequest, UnmountRequest, run
from nodeplug.kernel import mount
from nodeplug.volumes.options import flag


class Options(Record):
    size: int = key(size, help="bytes it may hold")
    mode: str = key(choice("plain", "loud", "wrong", "slow", "nothing"), default="plain", help="how it behaves")
    keep: bool = key(flag, default=False, help="whether to keep it")


class Mine(Driver):
    options = Options
    capabilities = Capabilities(fs_group=False)

    def mount(self, request: MountRequest) -> None:
        if request.options.mode == "loud":
            import os, subprocess, sys
            print("printed"); print("complained", file=sys.stderr); os.write(1, b"raw"); os.write(2, b"raw")
            subprocess.run(["sh", "-c", "echo child; echo child >&2"], check=True)
        if request.options.mode == "wrong":
            known = [secret.reveal().decode(errors="replace") for secret in request.secrets.values()]
            raise RuntimeError("it went wrong with " + ", ".join(known))
        if request.options.mode == "slow":
            import time
            time.sleep(3600)
        if request.options.mode != "nothing" and not mount.is_mounted(request.target):
            mount.tmpfs(request.target, size=request.options.size)

    def unmount(self, request: UnmountRequest) -> None:
        mount.unmount(request.target)


run(Mine)
"""

SHELL = """#!/bin/sh
# A driver in the style of the public examples.
answer() { echo "$1"; exit 0; }
case "$1" in
init) answer '{"status": "Success", "capabilities": {"attach": false}}' ;;
mount)
    mount -t tmpfs -o size=1m tmpfs "$2" >/dev/null 2>&1 || answer '{"status": "Failure", "message": "cannot mount"}'
    answer '{"status": "Success"}' ;;
unmount)
    if grep -q " $2 " /proc/self/mountinfo; then umount "$2" >/dev/null 2>&1 || answer '{"status": "Failure"}'; fi
    answer '{"status": "Success"}' ;;
*) answer '{"status": "Not supported"}' ;;
esac
"""


def place(plugins: Path, name: str, text: str, *, vendor: str = VENDOR) -> Path:
    """A driver's directory made whole and then renamed into its place; returns the executable."""
    made = plugins / f".{vendor}~{name}.new"
    made.mkdir(parents=True)
    program = made / name
    program.write_text(text)
    program.chmod(0o755)
    made.rename(plugins / f"{vendor}~{name}")
    return plugins / f"{vendor}~{name}" / name


def python(body: str) -> str:
    """A driver in Python that imports nodeplug from this checkout."""
    return f"#!/usr/bin/python3 -I\nimport sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n{body}"


def shell(**verbs: str) -> str:
    """A shell driver that runs the given text for a verb, and is like SHELL for the others."""
    cases = "".join(f"{verb})\n{text}\n;;\n" for verb, text in verbs.items())
    return SHELL.replace('case "$1" in\n', f'case "$1" in\n{cases}')
