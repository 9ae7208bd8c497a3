"""Who has which host port: one link for each, `hostports/tcp-8080/0.0.0.0` -> identity.

A port belongs to one attachment, over all networks; taken on every address it belongs to nobody else on any. A link
whose identity has no share in the index is nobody's. Callers hold the index's lock on the port (`Holding.locks`).
"""

from __future__ import annotations

import os

from nodeplug.cni.filter.plan import PORTS
from nodeplug.core import files
from nodeplug.core.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.filter.index import Holding, Index

_ANYWHERE = ("0.0.0.0", "::")


class Claims:
    """The directory of links. Raises OSError with the path."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._directory = f"{index.directory}/hostports"

    def contested(self, wanted: Holding) -> list[tuple[str, Holding]]:
        """The claims of gone pods that stand in the way of `wanted`, each with its holder.

        Raises `Refused` naming the holder when one of them lives.
        """
        found = []
        for claim in wanted.share.claims:
            port, _, address = claim.partition("/")
            for other in self._addresses(port):
                if not _overlap(address, other):
                    continue
                standing = f"{port}/{other}"
                holder = self._holder(standing)
                if holder is None or holder.identity == wanted.identity:
                    continue
                if not holder.owner.gone():
                    raise _taken(claim, standing, holder)
                found.append((standing, holder))
        return list(dict(found).items())

    def take(self, holding: Holding) -> None:
        """Point each claim of `holding` at it, whoever had it: `contested` has been asked."""
        for claim in holding.share.claims:
            path = f"{self._directory}/{claim}"
            if self._read(claim) == holding.identity:
                continue
            files.remove(path)
            try:
                os.symlink(holding.identity, path)
            except FileNotFoundError:
                files.ensure_directory(os.path.dirname(path))
                os.symlink(holding.identity, path)

    def release(self, identity: str, claim: str) -> None:
        """Give up one claim if `identity` has it."""
        if self._read(claim) != identity:
            return
        files.remove(f"{self._directory}/{claim}")
        self._tidy(claim.partition("/")[0])

    def held(self, identity: str, claim: str) -> bool:
        """Whether `identity` has the claim."""
        return self._read(claim) == identity

    def sweep(self) -> None:
        """Remove the links that are nobody's."""
        for port in self._list(self._directory):
            with self._index.contended([port]):
                for address in self._addresses(port):
                    if self._holder(f"{port}/{address}") is None:
                        files.remove(f"{self._directory}/{port}/{address}")
                self._tidy(port)

    def _holder(self, claim: str) -> Holding | None:
        """The share that holds the claim; None when it is nobody's."""
        identity = self._read(claim)
        holding = self._index.read(identity, PORTS) if identity else None
        return holding if holding is not None and claim in holding.share.claims else None

    def _read(self, claim: str) -> str:
        try:
            return os.readlink(f"{self._directory}/{claim}")
        except FileNotFoundError:
            return ""

    def _addresses(self, port: str) -> list[str]:
        return self._list(f"{self._directory}/{port}")

    def _list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def _tidy(self, port: str) -> None:
        try:
            os.rmdir(f"{self._directory}/{port}")
        except OSError:
            pass  # other addresses of that port are held


def _overlap(one: str, other: str) -> bool:
    same_family = (":" in one) == (":" in other)
    return same_family and (one == other or one in _ANYWHERE or other in _ANYWHERE)


def _taken(claim: str, standing: str, holder: Holding) -> Refused:
    port, _, address = claim.partition("/")
    protocol, _, number = port.partition("-")
    where = "" if address in _ANYWHERE else f" on {address}"
    theirs = standing.partition("/")[2]
    scope = "" if theirs == address else f" on {'every address' if theirs in _ANYWHERE else theirs}"
    return Refused(
        f"hostPort {number}/{protocol}{where} is taken{scope} by {holder.owner.attachment}",
        hint=f"its namespace is {holder.owner.netns_path or 'unknown'}; delete it, or choose another port",
    )
