"""What pods may have on this node: the settings' `[volumes]`, as pure rules over requests.

Any author of a pod may write an inline flexVolume, so what reaches the host's own files is refused unless a rule
allows it; the refusal has the lines that would. Reading settings is a door's business: a policy is a value.
"""

from __future__ import annotations

from nodeplug.core import paths
from nodeplug.core.document import absolute_path, array, boolean, choice, integer, name, nested, text
from nodeplug.core.errors import PermissionRefused
from nodeplug.core.record import Record, key
from nodeplug.volumes.contract import Grant
from nodeplug.volumes.options import limit, span
from nodeplug.volumes.sizes import exact, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeplug.volumes.contract import Pod, Request

_EVERY = "*"
_NO_RULE = "no rule is for them"


class Allow(Record):
    """`[[volumes.allow]]`: what some pods may have beyond what all may."""

    driver: str = key(name, help="the volume's kind: tmpfs, bind, loop ...")
    namespaces: tuple[str, ...] = key(array(name), help='the pods\' namespaces; "*" is any, "team-*" any so beginning')
    service_accounts: tuple[str, ...] = key(array(name), default=(_EVERY,), help="the pods' service accounts, likewise")
    roots: tuple[str, ...] = key(
        array(absolute_path), default=(), help="bind, overlay: host directories that may be shown, with all below"
    )
    read_only: bool = key(boolean, default=False, help="bind: only to be read")
    scopes: tuple[str, ...] = key(
        array(choice("pod", "node")), default=("pod",), help="loop: `node` for images that outlive a pod"
    )
    largest: int | None = key(limit, default=None, help="bytes a volume may have; the kind's own limit if unset")

    def matches(self, pod: Pod) -> bool:
        return _among(pod.namespace, self.namespaces) and _among(pod.service_account, self.service_accounts)

    def covers(self, path: str) -> str:
        """The longest of the roots that `path` is at or below; empty for none."""
        found = ""
        for root in self.roots:
            root = root.rstrip("/") or "/"
            if (path == root or path.startswith(root if root == "/" else root + "/")) and len(root) > len(found):
                found = root
        return found


class MemoryLimits(Record):
    """`[volumes.tmpfs]`."""

    largest: int = key(limit, default=1 << 30, help="bytes a volume may have where no rule says more")


class ImageLimits(Record):
    """`[volumes.loop]`: images, whichever kind of volume they are for."""

    directory: str = key(absolute_path, default=paths.VAR + "/volumes/images", help="where images are")
    largest: int = key(limit, default=10 << 30, help="bytes a volume may have where no rule says more")
    total: int = key(limit, default=100 << 30, help="bytes that all images together may have")
    floor: int = key(
        limit, default=2 << 30, help="bytes of the directory's disk that stay free, whatever images grow to"
    )


class OverlayLimits(Record):
    """`[volumes.overlay]`."""

    largest: int = key(limit, default=1 << 30, help="bytes a volume's own copy may have where no rule says more")


class IdentityLimits(Record):
    """`[volumes.identity]`."""

    directory: str = key(absolute_path, default=paths.VAR + "/ca", help="where the node's authority is; 0700")
    longest: float = key(span, default=86400.0, help="how long a certificate may be valid; a day at most")
    overlap: float = key(
        span, default=86400.0, help="how long a new root is shown to all pods before anything is signed under it"
    )
    node_days: int = key(
        integer(1, 3650), default=30, help="days that an authority is valid which a node makes for itself"
    )
    host_certificates: str = key(
        text, default="", help="the file of certificates that the host trusts; empty: the first of the usual ones"
    )
    log: str = key(absolute_path, default=paths.LOG + "/identity.jsonl", help="where each certificate is noted")
    python: str = key(
        text, default="", help="the interpreter that signs for executed plugins; empty: the one noted by nodeplugd"
    )


class LogLimits(Record):
    """`[volumes.log]`."""

    largest: int = key(limit, default=1 << 30, help="bytes a volume may have where no rule says more")
    directory: str = key(
        absolute_path, default=paths.LOG + "/pods", help="where collectors of the node find the pods' logs"
    )
    linger: float = key(span, default=3600.0, help="how long logs may stay after their pod, at most")


class Policy(Record):
    """`[volumes]` of the node's settings."""

    open: tuple[str, ...] = key(
        array(name), default=("tmpfs", "secret", "loop", "log"), help="kinds that every pod may have, without a rule"
    )
    allow: tuple[Allow, ...] = key(
        array(nested(Allow)), default=(), help="rules; a pod may have what any of them gives"
    )
    tmpfs: MemoryLimits = key(nested(MemoryLimits), default=MemoryLimits(), help="volumes in memory")
    loop: ImageLimits = key(nested(ImageLimits), default=ImageLimits(), help="volumes in image files")
    overlay: OverlayLimits = key(nested(OverlayLimits), default=OverlayLimits(), help="writable copies")
    identity: IdentityLimits = key(nested(IdentityLimits), default=IdentityLimits(), help="certificates")
    log: LogLimits = key(nested(LogLimits), default=LogLimits(), help="logs")

    def grant(self, request: Request, *, size: int = 0, scope: str = "pod", wanted: Sequence[str] = ()) -> Grant:
        """What the request may have. `wanted` are the host paths it names: `Grant.roots` has the root of each.

        Raises `PermissionRefused` with the lines that would allow it.
        """
        rules = [rule for rule in self.allow if rule.driver == request.driver and rule.matches(request.pod)]
        fitting = [rule for rule in rules if scope in rule.scopes and (request.read_only or not rule.read_only)]
        needs_rule = request.driver not in self.open or scope != "pod" or bool(wanted)
        if needs_rule and not fitting:
            raise _refused(request, size, scope, wanted, "no rule that is for them gives it" if rules else _NO_RULE)
        roots = []
        for path in wanted:
            root = max((rule.covers(path) for rule in fitting), key=len)
            if not root:
                raise _refused(request, size, scope, wanted, f"no rule that is for them has a root above {path}")
            roots.append(root)
        limits = getattr(self, request.driver, None)
        largest = max([getattr(limits, "largest", 0), *(rule.largest or 0 for rule in fitting)])
        if size > largest:
            raise _refused(request, size, scope, wanted, f"they may have {shown(largest)}")
        return Grant(largest=largest, policy=self, roots=tuple(roots))


def _refused(request: Request, size: int, scope: str, wanted: Sequence[str], why: str) -> PermissionRefused:
    pod = request.pod
    lines = [
        "[[volumes.allow]]",
        f"driver = {_quoted(request.driver)}",
        f"namespaces = [{_quoted(pod.namespace or _EVERY)}]",
        f"service_accounts = [{_quoted(pod.service_account or _EVERY)}]",
    ]
    what = f"{'an' if request.driver[0] in 'aeiou' else 'a'} {request.driver} volume"
    if scope != "pod":
        lines.append(f"scopes = [{_quoted(scope)}]")
        what += f" of scope {scope}"
    if wanted:
        lines.append(f"roots = [{', '.join(_quoted(path) for path in wanted)}]")
        what += f" of {', '.join(wanted)}"
    if size:
        lines.append(f"largest = {exact(size)}")
        what += f" of {shown(size)}"
    if wanted and not request.read_only:
        what += " that can be written"
    return PermissionRefused(
        f"pods of namespace {pod.namespace!r}, service account {pod.service_account!r} may not have {what}: {why}",
        hint=f"who runs the node allows it in {paths.ETC}/nodeplug.toml by\n" + "\n".join(lines),
    )


def _among(value: str, patterns: Sequence[str]) -> bool:
    return any(value.startswith(p[:-1]) if p.endswith(_EVERY) else value == p for p in patterns)


def _quoted(value: str) -> str:
    """A TOML basic string."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
