"""What sets and maps hold: adding, removing, looking up, listing.

An element is its key, in a map its data, and a comment that `nft list` shows.
"""

from __future__ import annotations

import errno

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_list, attr_text, attrs, nest, text
from nodeplug.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Message, NetlinkError
from nodeplug.kernel.nft.expressions import verdict_data
from nodeplug.kernel.nft.wire import comment_data, message, read_be32, read_comment, subject, user_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nodeplug.kernel.netlink import Netlink

_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_PER_MESSAGE = 200
"""Elements in one message: the list is one attribute of at most 64 KiB, which 300 with the longest comments fill."""


class Element(Record):
    """`key` and `data` as the kernel has them (`wire.concat`); in a verdict map `verdict` is (code, chain)."""

    key: bytes
    data: bytes = b""
    verdict: tuple[int, str] | None = None
    comment: str = ""


def add_elements(
    family: int,
    table: str,
    set_name: str,
    elements: Iterable[Element],
    *,
    exclusive: bool = False,
    per_message: int = _PER_MESSAGE,
) -> list[Message]:
    """Messages that add the elements.

    An element that is there stays as it is if its data is the same, else EEXIST; with `exclusive` always EEXIST. The
    error names the message, so with `per_message=1` it tells which element.
    """
    flags = NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0)
    return [
        message(_NEWSETELEM, flags, family, body, "add element", subject(family, table, set_name))
        for body in _lists(table, set_name, [_encode(element) for element in elements], per_message)
    ]


def delete_elements(
    family: int, table: str, set_name: str, keys: Iterable[bytes], *, per_message: int = 1
) -> list[Message]:
    """Messages that remove elements by key; one that is not there is refused with ENOENT.

    One key a message by default, so that the transaction's errors tell which were gone.
    """
    return [
        message(_DELSETELEM, 0, family, body, "delete element", subject(family, table, set_name))
        for body in _lists(table, set_name, [nest(1, nest(1, attr(1, key))) for key in keys], per_message)
    ]


def get_elements(netlink: Netlink, family: int, wanted: Iterable[tuple[str, str, bytes]]) -> list[Element | None]:
    """The elements (table, set, key), asked for in one send; None where key, set or table is not there."""
    requests = [
        message(_GETSETELEM, 0, family, body, "get element", subject(family, table, name), asks=True)
        for table, name, key in wanted
        for body in _lists(table, name, [nest(1, nest(1, attr(1, key)))], 1)
    ]
    found: list[Element | None] = []
    for answer in netlink.attempt(*requests):
        if isinstance(answer, NetlinkError):
            if answer.errno != errno.ENOENT:
                raise answer
            found.append(None)
        else:
            found.append(next(iter(read_elements(answer or b"")), None))
    return found


def dump_elements(netlink: Netlink, family: int, table: str, set_name: str) -> list[Element]:
    """All elements of the set. ENOENT when it is not there."""
    body = attr_text(1, table) + attr_text(2, set_name)
    request = message(_GETSETELEM, 0, family, body, "list elements", subject(family, table, set_name))
    return [element for payload in netlink.dump(request) for element in read_elements(payload)]


def read_elements(payload: bytes) -> list[Element]:
    """The elements in an nf_tables message; what is cut off is left out."""
    found = []
    for _, item in attr_list(attrs(payload, 4).get(3, b"")):
        parts = attrs(item)
        key = attrs(parts.get(1, b"")).get(1)
        if key is None:
            continue
        data = attrs(parts.get(2, b""))
        verdict = attrs(data[2]) if 2 in data else None
        found.append(
            Element(
                key=key,
                data=data.get(1, b""),
                verdict=None if verdict is None else (_signed(read_be32(verdict.get(1))), text(verdict.get(2))),
                comment=read_comment(parts.get(6)),
            )
        )
    return found


def _encode(element: Element) -> bytes:
    data = b""
    if element.verdict is not None:
        data = nest(2, verdict_data(*element.verdict))
    elif element.data:
        data = nest(2, attr(1, element.data))
    comment = attr(6, user_data(comment_data(0, element.comment))) if element.comment else b""
    return nest(1, nest(1, attr(1, element.key)), data, comment)


def _lists(table: str, set_name: str, encoded: list[bytes], size: int) -> Iterator[bytes]:
    head = attr_text(1, table) + attr_text(2, set_name)
    for start in range(0, len(encoded), size):
        yield head + nest(3, *encoded[start : start + size])


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number
