"""The settings of tuning's `sysctl`: which keys are allowed, which segments they mean, and writing and comparing them.

Only /proc/sys/net belongs to a network namespace; everything else is the host's and is refused. The caller is inside
the pod's namespace when it reads or writes.
"""

from __future__ import annotations

import errno
import os

from nodeplug.core import files, jsontext
from nodeplug.core.errors import ConfigInvalid, Malformed, PermissionRefused, Refused, doing
from nodeplug.core.undo import Undo
from nodeplug.kernel import sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Key = tuple[str, ...]

ALLOWLIST = "/etc/cni/tuning/allowlist.conf"

_LARGEST = 1 << 20
_TOKEN = "IFNAME"
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EIO)
"""What reading a setting that only takes orders (net.ipv4.route.flush) comes to."""


def planned(given: Mapping[str, str], ifname: str, raw: bytes) -> dict[Key, str]:
    """Values by the segments of their names below /proc/sys.

    Raises `ConfigInvalid` with every key that is no setting of a network namespace, that the document `raw` has twice,
    or that means the same setting as another.
    """
    problems: list[tuple[str, str]] = []
    found: dict[Key, str] = {}
    for path, name in _twice(raw) if given else ():
        problems.append((path, f"{name!r} is there twice; which one counts would be chance"))
    for name, value in given.items():
        segments = segments_of(name, ifname)
        fault = _fault(segments)
        if fault:
            problems.append(("$.sysctl", f"{name!r} {fault}"))
        elif segments in found:
            problems.append(("$.sysctl", f"{name!r} means the same setting as another key, {'.'.join(segments)}"))
        else:
            found[segments] = value
    if problems:
        raise ConfigInvalid("the settings of tuning are not valid", problems=problems)
    return found


def segments_of(name: str, ifname: str) -> Key:
    """`net.ipv4.conf.IFNAME.arp_ignore` -> ("net", "ipv4", "conf", ifname, "arp_ignore").

    The first separator decides, as for sysctl(8): after a slash dots are part of a name, so that
    `net/ipv4/conf/eth0.100/arp_ignore` can be said. After a dot both separate, as in the reference plugin. The first
    IFNAME is replaced after that, so an interface's own dots do no harm.
    """
    slash, dot = name.find("/"), name.find(".")
    parts = name.split("/") if 0 <= slash < dot or dot < 0 else name.replace("/", ".").split(".")
    for n, part in enumerate(parts):
        if _TOKEN in part:
            parts[n] = part.replace(_TOKEN, ifname, 1)
            break
    return tuple(parts)


def check_allowed(names: Iterable[str], *, path: str = ALLOWLIST) -> None:
    """Raise `Refused` when the node's list of allowed settings is there and none of its expressions matches a name.

    An expression matches anywhere in the name as the configuration has it, as in the reference plugin; anchor it by ^
    and $ for exactly one. Raises `ConfigInvalid` for a line that is no regular expression.
    """
    names = list(names)
    try:
        lines = files.read_bounded(path, _LARGEST).decode("utf-8", "replace").splitlines() if names else []
    except FileNotFoundError:
        return
    except (OSError, Malformed) as error:
        raise PermissionRefused(
            f"cannot read the list of allowed settings {path}: {error}", hint="nothing is set while it is unreadable"
        ) from error
    if not names:
        return
    import re

    expressions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            expressions.append(re.compile(line.strip()))
        except re.error as error:
            sentence = f"{line.strip()!r} is no regular expression: {error}"
            raise ConfigInvalid(f"{path} cannot be used", problems=((f"line {number}", sentence),)) from error
    refused = [name for name in names if not any(expression.search(name) for expression in expressions)]
    if refused:
        raise Refused(
            f"{', '.join(refused)} may not be set on this node",
            hint=f"{path} lists what may; add a line there, or take the key out of the configuration",
        )


def apply(wanted: Mapping[Key, str]) -> dict[Key, str]:
    """Set each, in the order of the configuration; returns what those that changed were before, for `revert`.

    When one cannot be set those before it are set back.
    """
    before: dict[Key, str] = {}
    with Undo() as undo:
        undo.push(lambda: revert(before))
        for key, value in wanted.items():
            with doing(f"cannot set {'.'.join(key)}", hints=_HINTS):
                now = _read(key)
                if now is not None and same(now, value):
                    continue
                sysctl.write(value, *key)
            if now is not None:
                before[key] = now
        undo.commit()
    return before


def revert(before: dict[Key, str]) -> None:
    """Set back what `apply` changed, last first."""
    for key in reversed(before):
        with doing(f"cannot set {'.'.join(key)} back"):
            sysctl.write(before[key], *key)


def different(wanted: Mapping[Key, str]) -> list[str]:
    """What does not have its value, as sentences. A setting that cannot be read is taken to be as it should."""
    found = []
    for key, value in wanted.items():
        try:
            now = _read(key)
        except FileNotFoundError:
            found.append(f"{'.'.join(key)} is not there")
            continue
        if now is not None and not same(now, value):
            found.append(f"{'.'.join(key)} is {now!r}, not {value!r}")
    return found


def same(one: str, other: str) -> bool:
    """Whether the kernel means the same by both: `4096\\t87380` and `4096 87380`, `1` and `01` and `0x1`."""
    return [_number(part) for part in one.split()] == [_number(part) for part in other.split()]


def _number(part: str) -> int | str:
    try:
        return int(part, 16 if part[:2].lower() == "0x" else 10)
    except ValueError:
        return part


def _read(key: Key) -> str | None:
    """The value; None for one that cannot be read. Raises FileNotFoundError where there is no such setting."""
    try:
        return sysctl.read(*key)
    except OSError as error:
        if error.errno in _UNREADABLE and os.path.lexists("/".join(("/proc/sys", *key))):
            return None
        raise


def _fault(segments: Key) -> str:
    if any(part in ("", ".", "..") or "\0" in part for part in segments):
        return "is not the name of a setting"
    if len(segments) < 3 or segments[0] != "net":
        return "is not a setting of a network namespace, which all begin with net."
    return ""


def _twice(raw: bytes) -> list[tuple[str, str]]:
    places = (("sysctl",), ("args", "cni", "sysctl"))
    return [(f"$.{'.'.join(place)}", name) for place in places for name in jsontext.repeated(raw, *place)]


_HINTS = {
    errno.ENOENT: "this kernel, or this namespace, has no such setting",
    errno.EINVAL: "the kernel does not take that value",
    errno.EROFS: "/proc/sys is read-only here; the plugin must run where it can be written",
}
