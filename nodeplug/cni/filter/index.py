"""What each attachment has in the table, on disk by identity: one small file for each plugin's share.

It is written before the table changes and removed after, so whatever kill -9 left in the table, the file still names;
DEL needs nothing else, and the whole table can be made again from the directory. It lies in /run: what it describes
ends with the boot as well.

    filter/np7k3...masquerade    a Holding as JSON
    hostports/tcp-8080/0.0.0.0   a link to the identity that has the port, see `claims`
    filter.lock                  a byte for each address and host port, taken after
    attachments.lock             a byte for each identity
    gates.lock                   held while another table is made to let pods' packets through
"""

from __future__ import annotations

import os
import time

from nodeplug.cni.contract import Attachment
from nodeplug.cni.filter.layout import FORWARD, HAIRPIN, MASQUERADE, Subnet
from nodeplug.cni.filter.plan import Condition, Entry, Flow, Share
from nodeplug.core import files, jsontext, paths
from nodeplug.core.errors import Malformed
from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager
    from typing import Any

    from nodeplug.kernel.netns import Netns

DIRECTORY = paths.RUN + "/cni"
LOCK_TIMEOUT = 30.0

_KINDS = {kind: kind for kind in (MASQUERADE, HAIRPIN, FORWARD)}
_LARGEST = 16 << 20
_SETTLED = 300.0  # seconds after which nobody still writes a file, whoever it was


class Owner(Record):
    """Whose share it is, and the namespace that shows whether its pod still exists."""

    attachment: Attachment
    netns_path: str = ""
    netns_id: tuple[int, int] | None = None  # device and inode

    @classmethod
    def of(cls, attachment: Attachment, netns: Netns) -> Owner:
        return cls(attachment=attachment, netns_path=netns.path, netns_id=netns.identity())

    def gone(self) -> bool:
        """Whether its namespace certainly does not exist any more. Where that cannot be told it is taken to live."""
        if self.netns_id is None:
            return False
        try:
            found = os.stat(self.netns_path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self.netns_id


class Holding(Record):
    """One plugin's share, with its owner, as it stands on disk. `age` orders them: a later one is the truer."""

    owner: Owner
    share: Share
    age: int = 0

    @property
    def identity(self) -> str:
        return self.owner.attachment.identity

    @property
    def comment(self) -> str:
        """What its elements carry, for operators and for `GC`."""
        return f"{self.identity} {self.owner.attachment}"

    @property
    def locks(self) -> frozenset[str]:
        """What it has that another attachment might want: host ports, and addresses given again."""
        ports = {claim.partition("/")[0] for claim in self.share.claims}
        addresses = {entry.key.hex() for entry in self.share.entries if not entry.claim}
        return frozenset(ports | addresses)


class Index:
    """The directory. Raises OSError with the path."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self.directory = directory
        self._files = f"{directory}/filter"
        self._seen: dict[str, tuple[tuple[int, int], Holding]] = {}  # by file name, with inode and time

    def attachment(self, identity: str) -> AbstractContextManager[None]:
        """Hold one attachment against other calls for it. Raises `TryAgain` when that takes too long."""
        return files.range_lock(f"{self.directory}/attachments.lock", identity, timeout=LOCK_TIMEOUT)

    def contended(self, keys: Collection[str]) -> AbstractContextManager[None]:
        """Hold these addresses and ports (`Holding.locks`) against other attachments. Raises `TryAgain` likewise."""
        return files.range_lock(f"{self.directory}/filter.lock", keys, timeout=LOCK_TIMEOUT)

    def gates(self) -> AbstractContextManager[None]:
        """Hold the chains of other tables against other calls of ours. Raises `TryAgain` likewise."""
        return files.range_lock(f"{self.directory}/gates.lock", "gates", timeout=LOCK_TIMEOUT)

    def has(self, identity: str, part: str) -> bool:
        """Whether anything is on disk, without reading it: most pods have no host ports."""
        return os.path.lexists(f"{self._files}/{identity}.{part}")

    def read(self, identity: str, part: str) -> Holding | None:
        """The share that is on disk; None when there is none. A damaged file counts as none: `GC` finds its elements by
        their comments.
        """
        return self._read(f"{identity}.{part}")

    def write(self, holding: Holding) -> None:
        """Keep it, in place of the one of that identity and part."""
        path = f"{self._files}/{holding.identity}.{holding.share.part}"
        data = jsontext.dumps(_document(holding)).encode()
        try:
            files.write_atomic(path, data, 0o600, durable=False)
        except FileNotFoundError:
            files.ensure_directory(self._files)
            files.write_atomic(path, data, 0o600, durable=False)

    def drop(self, identity: str, part: str) -> None:
        """Forget it; no matter whether it is there."""
        files.remove(f"{self._files}/{identity}.{part}")

    def holdings(self, network: str | None = None) -> list[Holding]:
        """All that are on disk, or those of one network, oldest first.

        Asked again, it reads only files that are new since: who looks again because the table has changed meanwhile
        must be quicker than those who change it.
        """
        found: dict[str, tuple[tuple[int, int], Holding]] = {}
        for name in self._names():
            if name.startswith("."):
                continue
            try:
                status = os.stat(f"{self._files}/{name}")
            except FileNotFoundError:
                continue
            version = (status.st_ino, status.st_mtime_ns)
            known = self._seen.get(name)
            holding = known[1] if known is not None and known[0] == version else self._read(name)
            if holding is not None:
                found[name] = (version, holding)
        self._seen = found
        kept = [holding for _, holding in found.values() if network in (None, holding.owner.attachment.network)]
        return sorted(kept, key=lambda holding: holding.age)

    def sweep(self) -> None:
        """Remove the temporary files of writers that were killed, and files that cannot be read."""
        for name in self._names():
            path = f"{self._files}/{name}"
            try:
                settled = time.time() - os.lstat(path).st_mtime > _SETTLED
                if files.is_abandoned(name) or (settled and (name.startswith(".") or self._read(name) is None)):
                    os.unlink(path)
            except FileNotFoundError:
                pass

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._files)
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> Holding | None:
        path = f"{self._files}/{name}"
        try:
            return _holding(jsontext.loads(files.read_bounded(path, _LARGEST)), os.stat(path).st_mtime_ns)
        except (FileNotFoundError, Malformed, KeyError, TypeError, ValueError, AttributeError, IndexError):
            return None


def _document(holding: Holding) -> dict[str, Any]:
    owner, share = holding.owner, holding.share
    return {
        "network": owner.attachment.network,
        "container": owner.attachment.container,
        "ifname": owner.attachment.ifname,
        "netns": [owner.netns_path, *(owner.netns_id or ())],
        "part": share.part,
        "subnets": [[subnet.kind, str(subnet.net)] for subnet in share.subnets],
        "elements": [[e.set, e.key.hex(), e.data.hex(), e.chain, e.claim] for e in share.entries],
        "flows": [[str(flow.address), flow.protocol, list(flow.ports)] for flow in share.flows],
        "conditions": [[condition.family, list(condition.rules)] for condition in share.conditions],
    }


def _holding(document: Any, age: int) -> Holding:
    """Raises KeyError, TypeError, ValueError, IndexError or AttributeError for a document of another shape."""
    network = _text(document["network"])
    path, *numbers = document["netns"]
    owner = Owner(
        attachment=Attachment(
            network=network, container=_text(document["container"]), ifname=_text(document["ifname"])
        ),
        netns_path=_text(path),
        netns_id=(int(numbers[0]), int(numbers[1])) if numbers else None,
    )
    share = Share(
        part=_text(document["part"]),
        subnets=tuple(
            Subnet(kind=_KINDS[kind], network="" if kind == FORWARD else network, net=Net.parse(net))
            for kind, net in document["subnets"]
        ),
        entries=tuple(
            Entry(
                set=_text(name),
                key=bytes.fromhex(element),
                data=bytes.fromhex(data),
                chain=_text(chain),
                claim=_text(claim),
            )
            for name, element, data, chain, claim in document["elements"]
        ),
        flows=tuple(
            Flow(address=Ip.parse(address), protocol=_text(protocol), ports=tuple(map(int, ports)))
            for address, protocol, ports in document["flows"]
        ),
        conditions=tuple(
            Condition(family=int(family), rules=tuple(map(_text, rules))) for family, rules in document["conditions"]
        ),
    )
    return Holding(owner=owner, share=share, age=age)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
