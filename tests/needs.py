"""What a test needs from the machine: named, probed once, and skipped with the reason where it is missing.

    pytestmark = needs("sandbox", "program:nft")

    @needs("link:vlan")
    def test_...

Names: `root`, `sandbox`, `card` (a network card to lend), `sctp`, `vlan-filtering`, `selinux` (a kernel with it, whose
policy is the test's to load), `overlay`, `loop`, `transit-server` (OpenBao or Vault), and three families:
`program:NAME` (on PATH), `file:PATH`, `link:KIND` (a kind of `ip link add type`). A test that needs one of `IN_THE_VM`
is marked `vm` by itself.
Each name that may be missing on Debian 12 stands in expected-skips.txt, with the place where the test runs instead.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox import IN_VM, inside

OUTSIDE = "NODEPLUG_TEST_OUTSIDE"
"""In the emulated machine: a path of the network namespace it booted in, which has cards."""

IN_THE_VM = frozenset(
    {"card", "sctp", "vlan-filtering", "selinux", "link:vlan", "link:ipvlan", "link:dummy", "link:vrf"}
)


def needs(*names: str) -> pytest.MarkDecorator:
    """A mark for a test, a class, a parameter or, as `pytestmark`, a module."""
    for name in names:
        if name not in PROBES and name.partition(":")[0] not in FAMILIES:
            raise ValueError(f"needs({name!r}): there is no such probe in {__name__}")
    return pytest.mark.needs(*names)


@functools.cache
def missing(name: str) -> str:
    """Why `name` cannot be had here; "" when it can."""
    if name in PROBES:
        return PROBES[name]()
    family, _, what = name.partition(":")
    return FAMILIES[family](what)


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _sandbox() -> str:
    return "" if inside() else "not inside the sandbox: python -m tests.sandbox (as root)"


def _card() -> str:
    return "" if os.environ.get(OUTSIDE) else "no network card that a test may take"


def _sctp() -> str:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        return f"no SCTP sockets: {error.strerror}"
    return ""


def _vlan_filtering() -> str:
    return _in_trial_namespaces("ip link add name trial type bridge vlan_filtering 1")


def _selinux() -> str:
    if os.environ.get(IN_VM) != "1":
        return "not in the emulated machine, and a test must not load a policy here"
    there = "selinuxfs" in Path("/proc/filesystems").read_text().split()
    return "" if there else "the kernel was booted without SELinux"


def _link(kind: str) -> str:
    above_another = {"vlan": "vlan id 7", "ipvlan": "ipvlan mode l2", "macvlan": "macvlan mode bridge"}
    if kind in above_another:
        lower = "ip link add name lower type veth && ip link add name trial link lower type "
        return _in_trial_namespaces(lower + above_another[kind])
    alone = {"vrf": "vrf table 10", "vxlan": "vxlan id 7 dstport 4789"}
    return _in_trial_namespaces(f"ip link add name trial type {alone.get(kind, kind)}")


def _overlay() -> str:
    return _in_trial_namespaces(
        "mount -t tmpfs tmpfs /mnt; mkdir /mnt/l /mnt/u /mnt/w /mnt/m;"
        "mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w overlay /mnt/m"
    )


def _loop() -> str:
    return "" if Path("/dev/loop-control").exists() else "no /dev/loop-control"


def _program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not on PATH"


def _file(path: str) -> str:
    return "" if Path(path).exists() else f"{path} does not exist"


def _in_trial_namespaces(script: str) -> str:
    """Run `script` in namespaces that end with it; returns its last complaint."""
    if _root():
        return _root()
    command = ["unshare", "--net", "--mount", "sh", "-ec", script]
    trial = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if trial.returncode == 0 else (trial.stderr.strip().splitlines() or ["refused without a word"])[-1]


def transit_server() -> str:
    """The program of OpenBao or Vault: on PATH, or where `make setup` puts OpenBao; "" where there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "bao")
    return shutil.which("bao") or shutil.which("vault") or (beside if os.path.exists(beside) else "")


def _transit_server() -> str:
    return "" if transit_server() else "neither bao nor vault is on PATH or in the virtual environment"


PROBES: dict[str, Callable[[], str]] = {
    "root": _root,
    "sandbox": _sandbox,
    "card": _card,
    "sctp": _sctp,
    "vlan-filtering": _vlan_filtering,
    "selinux": _selinux,
    "overlay": _overlay,
    "loop": _loop,
    "transit-server": _transit_server,
}
FAMILIES: dict[str, Callable[[str], str]] = {"program": _program, "file": _file, "link": _link}
