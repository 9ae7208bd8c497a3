"""Devices by the path of their node: globs, regular expressions, and groups of nodes that are one device.

The path that matches is the identity and what containers are given, so a link (by-id, by-path) stays right when the
kernel's number changes; a link counts once its target is there.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from nodeplug.devices.contract import Change, Device, Node
from nodeplug.devices.host import device_number
from nodeplug.devices.ids import device_id
from nodeplug.devices.topology import Topology

MOST_KEYS = 100_000
_MOST_DIRECTORIES = 4096
_DEEPEST = 8
_MAGIC = re.compile(r"[*?\[]")


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
        self._finder = _Glob(glob) if glob else _Regex(regex)
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
        finder = _Glob(pattern)
        found = []
        for path in finder.paths():
            number_of = device_number(path)
            if number_of is not None:
                inside = member.container.replace("{name}", os.path.basename(path)) or path
                found.append(Node(host=path, real=os.path.realpath(path), container=inside, number=number_of))
        return found if found or member.optional else None


class _Glob:
    """An absolute glob: each component with its own wildcards, none of which crosses a slash."""

    def __init__(self, pattern: str) -> None:
        self._parts = pattern.strip("/").split("/")
        self._whole = re.compile("/" + "/".join(_component(part) for part in self._parts) + r"\Z")
        self._prefixes = [
            re.compile("/" + "/".join(_component(part) for part in self._parts[:n]) + r"\Z")
            for n in range(1, len(self._parts))
        ]
        self._directories: set[str] = set()

    def match(self, path: str) -> re.Match[str] | None:
        return self._whole.match(path)

    def leads_to(self, path: str) -> bool:
        """Whether `path` may be a directory on the way."""
        return any(prefix.match(path) for prefix in self._prefixes)

    def directories(self) -> set[str]:
        return self._directories

    def paths(self) -> list[str]:
        self._directories = set()
        level = [""]
        for part in self._parts[:-1]:
            following = []
            for directory in level:
                if not _MAGIC.search(part):
                    following.append(f"{directory}/{part}")
                    continue
                self._directories.add(directory or "/")
                following += [f"{directory}/{name}" for name in _matching(directory or "/", part)]
            level = [path for path in following[:_MOST_DIRECTORIES] if self._note(path)]
        found: list[str] = []
        last = self._parts[-1]
        for directory in level:
            self._directories.add(directory or "/")
            if _MAGIC.search(last):
                found += [f"{directory}/{name}" for name in _matching(directory or "/", last)]
            elif os.path.lexists(f"{directory}/{last}"):
                found.append(f"{directory}/{last}")
            if len(found) >= MOST_KEYS:
                break
        return found[:MOST_KEYS]

    def _note(self, path: str) -> bool:
        """Whether the directory is there; if not, its nearest parent that is has to be watched."""
        if os.path.isdir(path):
            return True
        self._directories.add(nearest_directory(path))
        return False


class _Regex:
    """A regular expression over whole paths, walked from the longest directory it names literally."""

    def __init__(self, pattern: str) -> None:
        self._whole = re.compile(pattern)
        self._top = literal_directory(pattern)
        self._directories: set[str] = set()

    def match(self, path: str) -> re.Match[str] | None:
        return self._whole.fullmatch(path)

    def leads_to(self, path: str) -> bool:
        return path in self._directories or self._top.startswith(path.rstrip("/") + "/") or self._is_new(path)

    def _is_new(self, path: str) -> bool:
        return path.startswith(self._top + "/") and os.path.isdir(path)

    def directories(self) -> set[str]:
        return self._directories

    def paths(self) -> list[str]:
        self._directories = set()
        if not os.path.isdir(self._top or "/"):
            self._directories.add(nearest_directory(self._top))
            return []
        found: list[str] = []
        waiting = [(self._top, 0)]
        while waiting and len(self._directories) < _MOST_DIRECTORIES and len(found) < MOST_KEYS:
            directory, depth = waiting.pop()
            self._directories.add(directory or "/")
            try:
                with os.scandir(directory or "/") as entries:
                    for entry in entries:
                        path = f"{directory}/{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            if depth < _DEEPEST:
                                waiting.append((path, depth + 1))
                        elif self.match(path):
                            found.append(path)
            except OSError:
                continue
        return found[:MOST_KEYS]


def _component(part: str) -> str:
    """A regular expression for one component of a glob; each wildcard is a group."""
    text = ""
    rest = part
    while rest:
        found = _MAGIC.search(rest)
        if found is None:
            return text + re.escape(rest)
        text += re.escape(rest[: found.start()])
        rest = rest[found.start() :]
        if rest[0] == "*":
            text += "([^/]*)"
            rest = rest.lstrip("*")
        elif rest[0] == "?":
            text += "([^/])"
            rest = rest[1:]
        else:
            end = rest.find("]", 2)
            if end < 0:
                text += re.escape("[")
                rest = rest[1:]
                continue
            body = fnmatch.translate(rest[: end + 1])
            text += "(" + body.removeprefix("(?s:").partition(r")\Z")[0] + ")"
            rest = rest[end + 1 :]
    return text


def _matching(directory: str, part: str) -> list[str]:
    accepts: Callable[[str], object] = re.compile(_component(part) + r"\Z").match
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    hidden = part.startswith(".")
    return sorted(name for name in names if accepts(name) and (hidden or not name.startswith(".")))


def literal_directory(pattern: str) -> str:
    """The longest directory that every path matched by the regular expression `pattern` lies in; "" for the root."""
    text = pattern.removeprefix("^").removeprefix(r"\A")
    literal = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\" and position + 1 < len(text) and not text[position + 1].isalnum():
            char = text[position + 1]
            position += 1
        elif char in "\\.^$*+?{}[]|()":
            if char in "*?{":
                literal = literal[:-1]
            break
        literal += char
        position += 1
    return "" if _has_alternatives(text) else literal.rpartition("/")[0]


def _has_alternatives(text: str) -> bool:
    """Whether the expression has a | outside of all groups."""
    depth = 0
    for char in re.sub(r"\\.|\[[^]]*\]", "", text):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            return True
    return False


def nearest_directory(path: str) -> str:
    """The directory nearest to `path`, itself or above, that exists."""
    while path and path != "/":
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                return path
        except (OSError, ValueError):
            pass
        path = os.path.dirname(path)
    return "/"
