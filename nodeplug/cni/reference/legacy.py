"""The rules of iptables-legacy as its own programs print them, and their removal by one transaction of theirs.

x_tables takes changes as whole tables only, so there is no way but its programs. They run only after a look into the
kernel's own copy of the table has shown something of the reference's.
"""

from __future__ import annotations

from nodeplug.cni.filter import iptables
from nodeplug.cni.filter.iptables import LEGACY
from nodeplug.cni.reference.rules import Rule
from nodeplug.core.errors import Unavailable
from nodeplug.core.inet import Ip, Net
from nodeplug.kernel import xtables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_WORDS = {"-j": "target", "--comment": "comment", "-p": "protocol", "-i": "link"}
_HOSTS = {"-s": "source", "-d": "destination"}


class LegacyTable:
    """One table at one moment."""

    def __init__(self, family: int, table: str, lines: Sequence[str]) -> None:
        self.family = family
        self._table = table
        self._chains = [line[1:].partition(" ")[0] for line in lines if line.startswith(":")]
        self._rules: dict[str, list[Rule]] = {}
        for line in lines:
            if line.startswith("-A "):
                rule = parse(line)
                self._rules.setdefault(rule.chain, []).append(rule)

    @classmethod
    def look(cls, family: int, table: str, hints: Collection[bytes]) -> LegacyTable | None:
        """None where the table, which there must be, holds none of `hints` anywhere."""
        content = xtables.content(family, table)
        if not any(hint in content for hint in hints):
            return None
        return cls(family, table, iptables.save(LEGACY, family, table))

    def chains(self) -> list[str]:
        return self._chains

    def has(self, chain: str) -> bool:
        return chain in self._chains

    def rules(self, chain: str) -> list[Rule]:
        return self._rules.get(chain, [])

    def remove(self, rules: Sequence[Rule], chains: Sequence[str]) -> bool:
        """Remove these rules and chains; False when somebody has changed the table meanwhile."""
        lines = [f"*{self._table}"]
        lines += [f"-D {rule.chain} {rule.key}" for rule in rules if rule.chain not in chains]
        lines += [f"-F {chain}" for chain in chains]
        lines += [f"-X {chain}" for chain in chains]
        try:
            iptables.restore(LEGACY, self.family, "\n".join((*lines, "COMMIT", "")))
        except Unavailable:
            now = LegacyTable(self.family, self._table, iptables.save(LEGACY, self.family, self._table))
            if (now._rules, now._chains) == (self._rules, self._chains):
                raise
            return False
        return True


def parse(line: str) -> Rule:
    """A line of iptables-save such as `-A CNI-FORWARD -s 10.88.0.2/32 -j ACCEPT`."""
    words = split(line)
    chain = words[1]
    found: dict[str, object] = {}
    for before, word, value in zip(words, words[1:], words[2:], strict=False):
        if before == "!":
            continue
        if word in _WORDS:
            found[_WORDS[word]] = value
        elif word in _HOSTS:
            found[_HOSTS[word]] = _host(value)
        elif word == "--dport" and value.isdecimal():
            found["port"] = int(value)
        elif word == "--to-destination":
            found["to"], found["to_port"] = _destination(value)
    return Rule(chain=chain, key=line.removeprefix(f"-A {chain} "), **found)  # type: ignore[arg-type]


def split(line: str) -> list[str]:
    """Its words as iptables-restore reads them: in quotes a backslash keeps the next character."""
    words: list[str] = []
    word, quoted, begun = "", False, False
    characters = iter(line)
    for c in characters:
        if c == '"':
            quoted, begun = not quoted, True
        elif c == "\\" and quoted:
            word += next(characters, "")
        elif c in " \t" and not quoted:
            if word or begun:
                words.append(word)
            word, begun = "", False
        else:
            word += c
    return [*words, word] if word or begun else words


def _host(text: str) -> bytes:
    """Packed, when it is one address; else nothing."""
    try:
        net = Net.parse(text)
    except ValueError:
        return b""
    return net.ip.packed if net.prefix == net.ip.bits else b""


def _destination(text: str) -> tuple[bytes, int]:
    """`10.88.0.2:80`, `[fd88::2]:80`; a range of ports is its first."""
    address, _, port = text.rpartition(":")
    try:
        return Ip.parse(address.strip("[]")).packed, int(port.partition("-")[0])
    except ValueError:
        return b"", 0
