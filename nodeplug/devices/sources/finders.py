"""Which paths a glob or a regular expression means, and which directories tell when that changes.

Used by the path source and by whoever watches a path that may not be there yet.
"""

import fnmatch
import os
import re
import stat

MOST_KEYS = 100_000
_MOST_DIRECTORIES = 4096
_DEEPEST = 8
_MAGIC = re.compile(r"[*?\[]")


class Glob:
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


class Regex:
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
    accepts = re.compile(_component(part) + r"\Z").match
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
