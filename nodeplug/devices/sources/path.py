"""Devices by the path of their node: globs, regular expressions, and groups of nodes that are one device.

The path that matches is the identity and what containers are given, so a link (by-id, by-path) stays right when the
kernel's number changes; a link counts once its target is there.
"""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from nodeplug.devices.contract import Change, Device, Node
from nodeplug.devices.host import device_number
from nodeplug.devices.ids import device_id
from nodeplug.devices.sources.finders import Glob, Regex
from nodeplug.devices.topology import Topology


@dataclass(frozen=True, slots=True)
class Member:
    """A further node of a group. `path` is a glob in which {1}, {2} ... stand for what the leader's wildcards took.

    `container` is empty for the same path inside.
    """

    path: str
    optional: bool = False
    container: str = ""


class PathSource:
    """Nodes whose path matches a glob or a regular expression. The key is the path."""

    def __init__(
        self,
        topology: Topology,
        *,
        glob: str = "",
        regex: str = "",
        members: tuple[Member, ...] = (),
        container: str = "",
    ) -> None:
        self._topology = topology
        self._members = members
        self._container = container
        self._finder = Glob(glob) if glob else Regex(regex)
        self._shown = f"path {glob}" if glob else f"regex {regex}"
        self._targets: dict[str, str] = {}  # link -> the path it leads to
        self._by_target: dict[str, set[str]] = {}
        self._member_directories: set[str] = set()

    def keys(self) -> Iterable[str]:
        found = self._finder.paths()
        for gone in self._targets.keys() - set(found):
            self._follow(gone, "")
        return found

    def look(self, key: str) -> tuple[Device, ...]:
        match = self._finder.match(key)
        if match is None:
            return ()
        try:
            link = os.path.islink(key)
        except ValueError:
            return ()
        real = os.path.realpath(key) if link else key
        self._follow(key, real if link else "")
        number = device_number(key)
        if number is None:
            return ()
        nodes = [Node(host=key, real=real, container=self._inside(key), number=number)]
        for member in self._members:
            extra = self._member(member, match)
            if extra is None:
                return ()
            nodes += extra
        return (
            Device(
                id=device_id(key.removeprefix("/dev/")),
                nodes=tuple(nodes),
                numa=self._topology.of_number(number),
                properties={"path": key, "name": os.path.basename(key)},
            ),
        )

    def touched(self, change: Change) -> Iterable[str] | None:
        if not change.path:
            return ()
        if change.path in self._member_directories or os.path.dirname(change.path) in self._member_directories:
            return None
        if self._finder.leads_to(change.path):
            return None  # a directory on the way came or went
        touched = set(self._by_target.get(change.path, ()))
        if self._finder.match(change.path) is not None:
            touched.add(change.path)
        return touched

    def directories(self) -> Collection[str]:
        return (
            self._finder.directories()
            | {os.path.dirname(target) for target in self._targets.values()}
            | self._member_directories
        )

    def explain(self, path: str) -> str:
        if self._finder.match(path) is None:
            links = self._by_target.get(path, set())
            if links:
                return f"{self._shown} matches it by {', '.join(sorted(links))}"
            return f"{self._shown} does not match the path"
        if not os.path.lexists(path):
            return f"{self._shown} matches, but nothing is there"
        if device_number(path) is None:
            return f"{self._shown} matches, but " + (
                "the link leads nowhere yet" if not os.path.exists(path) else "it is not a device node"
            )
        return f"{self._shown} matches" if self.look(path) else f"{self._shown} matches, but a member is missing"

    def close(self) -> None:
        pass

    def _inside(self, path: str) -> str:
        return self._container.replace("{name}", os.path.basename(path)) if self._container else path

    def _follow(self, link: str, target: str) -> None:
        old = self._targets.pop(link, "")
        if old:
            links = self._by_target.get(old, set())
            links.discard(link)
            if not links:
                self._by_target.pop(old, None)
        if target:
            self._targets[link] = target
            self._by_target.setdefault(target, set()).add(link)

    def _member(self, member: Member, match: re.Match[str]) -> list[Node] | None:
        """The nodes of one member; None when it is not optional and there are none."""
        pattern = member.path
        for number, text in enumerate(match.groups(default=""), 1):
            pattern = pattern.replace(f"{{{number}}}", text)
        self._member_directories.add(os.path.dirname(pattern))
        finder = Glob(pattern)
        found = []
        for path in finder.paths():
            number_of = device_number(path)
            if number_of is not None:
                inside = member.container.replace("{name}", os.path.basename(path)) or path
                found.append(Node(host=path, real=os.path.realpath(path), container=inside, number=number_of))
        return found if found or member.optional else None
