"""The tables of iptables-legacy, as the kernel's x_tables gives them: read only, by getsockopt(2), without a child.

iptables-nft's tables are nf_tables' and read by `nodeplug.kernel.nft`; these are seen by nobody but x_tables itself.
See the kernel's uapi/linux/netfilter_ipv4/ip_tables.h and netfilter/x_tables.h.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import AF_INET, AF_INET6, IPPROTO_RAW, SOCK_CLOEXEC, SOCK_RAW, socket

from nodeplug.core.record import Record
from nodeplug.kernel import libc

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)

ACCEPT, DROP, RETURN, JUMP, GOTO, OTHER = "accept", "drop", "return", "jump", "goto", "other"

_HOOKS = 5
_GET_INFO, _GET_ENTRIES = 64, 65
_ATTEMPTS = 8

_INFO = struct.Struct("=32sI5I5III")  # name, valid hooks, hook entries, underflows, number of entries, size
_WANTED = struct.Struct("=32sI4x")  # name, size; the entries are aligned to eight bytes
_PART = struct.Struct("=H29sB")  # the size of a match or target with this head, its name, its revision
_MARK = struct.Struct("=IIB")
_VERDICTS = {-1: DROP, -2: ACCEPT, -5: RETURN}


class _Family(Record):
    """What differs between the families: the layout of an entry, and where its flags and counters are."""

    domain: int
    level: int
    file: str
    head: int  # bytes of the match on addresses at an entry's begin
    flags: int  # offset of its flags
    goto: int  # the flag that tells a goto from a jump
    size: int  # bytes of the whole entry, before its matches


_FAMILIES = {
    4: _Family(domain=AF_INET, level=0, file="ip_tables_names", head=84, flags=82, goto=0x2, size=112),
    6: _Family(domain=AF_INET6, level=41, file="ip6_tables_names", head=136, flags=131, goto=0x4, size=168),
}


class Rule(Record):
    """One rule: whether every packet meets it, and what becomes of one that does.

    `target` is ACCEPT, DROP, RETURN, JUMP or GOTO (to `chain`), else OTHER, with the extension's name in `chain`.
    `mark` is (value, mask) where it matches the packet's mark.
    """

    unconditional: bool
    target: str
    chain: str = ""
    mark: tuple[int, int] | None = None


class Table(Record):
    """One table: rules by chain, and the policies of those that the kernel itself runs, by hook name in capitals."""

    chains: dict[str, tuple[Rule, ...]]
    policies: dict[str, str]


def tables(family: int) -> list[str]:
    """The tables that x_tables has in the thread's network namespace for IPv4 (4) or IPv6 (6); none without it."""
    try:
        with open(f"/proc/thread-self/net/{_FAMILIES[family].file}") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def read(family: int, table: str) -> Table | None:
    """One table of the thread's network namespace; None when there is none. Raises OSError (EPERM, EAGAIN)."""
    found = _entries(family, table)
    return None if found is None else parse(family, *found)


def content(family: int, table: str) -> bytes:
    """The entries of a table as they are; empty when there is none. Names of chains, comments and addresses are found
    in it without taking it apart: a table may have tens of thousands of rules. Raises OSError as `read`.
    """
    found = _entries(family, table)
    return b"" if found is None else found[0]


def _entries(family: int, table: str) -> tuple[bytes, dict[int, tuple[int, int]]] | None:
    """A table's entries, and the offsets of each hook's first one and of its policy."""
    shape = _FAMILIES[family]
    control = socket(shape.domain, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW)
    try:
        for _ in range(_ATTEMPTS):
            info = bytearray(_INFO.size)
            info[:32] = table.encode().ljust(32, b"\0")
            try:
                libc.getsockopt(control.fileno(), shape.level, _GET_INFO, info)
                _name, valid, *numbers = _INFO.unpack(info)
                size = numbers[-1]
                found = bytearray(_WANTED.pack(bytes(info[:32]), size) + bytes(size))
                libc.getsockopt(control.fileno(), shape.level, _GET_ENTRIES, found)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return None
                if error.errno == errno.EAGAIN:
                    continue  # it was changed between the two calls
                raise
            hooks = {n: (numbers[n], numbers[_HOOKS + n]) for n in range(_HOOKS) if valid >> n & 1}
            return bytes(found[_WANTED.size :]), hooks
    finally:
        control.close()
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), f"table {table} kept changing")


_NAMES = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def parse(family: int, data: bytes, hooks: dict[int, tuple[int, int]]) -> Table:
    """The entries of a table; `hooks` has the offsets of each hook's first entry and of its policy.

    What is cut off is left out.
    """
    shape = _FAMILIES[family]
    starts = {begin: _NAMES[hook] for hook, (begin, _) in hooks.items()}
    ends = {end: _NAMES[hook] for hook, (_, end) in hooks.items()}
    found: list[tuple[int, str, Rule]] = []
    names: dict[int, str] = dict(starts)  # of chains, by the offset of their first rule
    policies: dict[str, str] = {}
    chain, offset = "", 0
    while offset + shape.size <= len(data):
        target_at, length = struct.unpack_from("=HH", data, offset + shape.head + 4)
        if length < shape.size or target_at < shape.size or offset + length > len(data):
            break
        title = _chain_title(data, offset + target_at, length - target_at)
        if title is not None:
            chain = title
            names[offset + length] = title
        else:
            chain = starts.get(offset, chain)
            rule = _rule(data, offset, shape, target_at, length)
            if offset in ends:
                policies[ends[offset]] = rule.target
            else:
                found.append((offset, chain, rule))
        offset += length
    chains: dict[str, list[Rule]] = {name: [] for name in names.values() if name != "ERROR"}
    for at, name, rule in found:
        if rule.target == JUMP or rule.target == GOTO:
            to = int(rule.chain)
            if rule.target == JUMP and to == at + _length(data, at, shape):
                rule = rule.replace(target=OTHER, chain="")  # a rule without a target goes on to the next
            else:
                rule = rule.replace(chain=names.get(to, ""))
        chains.setdefault(name, []).append(rule)
    return Table(chains={name: tuple(rules) for name, rules in chains.items()}, policies=policies)


def _length(data: bytes, offset: int, shape: _Family) -> int:
    return int(struct.unpack_from("=H", data, offset + shape.head + 6)[0])


def _chain_title(data: bytes, at: int, length: int) -> str | None:
    """The name of the chain that begins behind this entry; None for an entry that is a rule."""
    if length < _PART.size + 30:
        return None
    _size, name, _revision = _PART.unpack_from(data, at)
    return _text(data[at + _PART.size : at + _PART.size + 30]) if _text(name) == "ERROR" else None


def _rule(data: bytes, offset: int, shape: _Family, target_at: int, length: int) -> Rule:
    head = data[offset : offset + shape.head]
    matches = _matches(data, offset + shape.size, offset + target_at)
    # The flag of a goto is the only part of an empty head that may be set.
    goto = bool(head[shape.flags] & shape.goto)
    bare = head[: shape.flags] + bytes((head[shape.flags] & ~shape.goto,)) + head[shape.flags + 1 :]
    unconditional = not any(bare) and all(name == "comment" for name, _ in matches)
    found = next((mark(info) for name, info in matches if name == "mark"), None)
    _size, name, _revision = _PART.unpack_from(data, offset + target_at)
    if _text(name):
        return Rule(unconditional=unconditional, target=OTHER, chain=_text(name), mark=found)
    verdict = struct.unpack_from("=i", data, offset + target_at + _PART.size)[0]
    if verdict < 0:
        return Rule(unconditional=unconditional, target=_VERDICTS.get(verdict, OTHER), mark=found)
    return Rule(unconditional=unconditional, target=GOTO if goto else JUMP, chain=str(verdict), mark=found)


def _matches(data: bytes, start: int, end: int) -> list[tuple[str, bytes]]:
    found = []
    while start + _PART.size <= end:
        size, name, _revision = _PART.unpack_from(data, start)
        if size < _PART.size or start + size > end:
            break
        found.append((_text(name), data[start + _PART.size : start + size]))
        start += size
    return found


def mark(info: bytes) -> tuple[int, int] | None:
    """(value, mask) that a match `mark` compares with, from its data; None for one that is inverted, or cut."""
    if len(info) < _MARK.size:
        return None
    value, mask, inverted = _MARK.unpack_from(info)
    return None if inverted else (value, mask)


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode("ascii", "replace")
