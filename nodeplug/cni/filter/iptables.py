"""iptables' own programs, of the kind that is meant: for what no other way leads to, and never for a plain call."""

from __future__ import annotations

from nodeplug.core import child
from nodeplug.core.errors import NotFound, TryAgain, Unavailable

NFT = "nft"
LEGACY = "legacy"

_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_WAIT = 10  # seconds for the lock of iptables-legacy
_TIMEOUT = 20.0
_BUSY = 4  # the exit status of iptables that did not get its lock
_LARGEST = 64 << 20


def program(kind: str, family: int, tool: str) -> str:
    """`tool` ("restore" or "save") of that kind for IPv4 (4) or IPv6 (6), by name. Raises `NotFound`."""
    stem = "ip6tables" if family == 6 else "iptables"
    for name in (f"{stem}-{kind}-{tool}", f"{stem}-{tool}"):
        try:
            version = child.run([name, "--version"], env=_ENV, timeout=_TIMEOUT)
        except NotFound:
            continue
        # "iptables-restore v1.8.9 (nf_tables)"; before 1.8 there was the legacy kind alone.
        if version.code == 0 and (b"nf_tables" in version.stdout) == (kind == NFT):
            return name
    raise NotFound(f"there is no {stem}-{tool} of the {kind} kind", hint="install iptables")


def restore(kind: str, family: int, script: str) -> None:
    """Carry out a script of iptables-restore beside what is there, whole or not at all.

    Raises `TryAgain` while somebody else holds the lock of iptables, `NotFound` where there is no such program,
    `Unavailable` with its complaint.
    """
    name = program(kind, family, "restore")
    done = child.run([name, "--noflush", f"--wait={_WAIT}"], env=_ENV, stdin=script.encode(), timeout=_TIMEOUT)
    said = done.stderr.decode("utf-8", "replace").strip()[:500]
    if done.code == _BUSY:
        raise TryAgain(f"{name} did not get the lock of iptables in {_WAIT} s: {said}")
    if done.code != 0:
        raise Unavailable(f"{name} ended with {done.code}: {said}")


def save(kind: str, family: int, table: str) -> list[str]:
    """The lines that iptables-save prints of one table. Raises `NotFound` and `Unavailable`."""
    name = program(kind, family, "save")
    done = child.run([name, "-t", table], env=_ENV, timeout=_TIMEOUT, limit=_LARGEST)
    if done.code != 0:
        raise Unavailable(f"{name} ended with {done.code}: {done.stderr.decode('utf-8', 'replace').strip()[:500]}")
    return done.stdout.decode("utf-8", "replace").splitlines()
