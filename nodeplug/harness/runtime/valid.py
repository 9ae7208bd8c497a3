"""Which attachments live: said by hand, by a document, or by the node's runtime.

What GC keeps. A list that is too short takes the network from pods that run, so everything doubtful counts as living.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nodeplug.core.errors import ConfigInvalid, Malformed
from nodeplug.harness.runtime.documents import Fields, wrong

if TYPE_CHECKING:
    from pathlib import Path

    from nodeplug.harness.runtime.cache import Cache

Key = tuple[str, str]
"""(container, interface)"""

IFNAME = "eth0"
"""The interface that runtimes make for a pod's first network."""


def parse(text: str) -> Key:
    """ "ID" or "ID/IFNAME". Raises `ConfigInvalid`."""
    container, _, ifname = text.partition("/")
    if not container or "/" in ifname:
        raise ConfigInvalid(f"{text!r} names no attachment", hint="write ID or ID/IFNAME")
    return container, ifname or IFNAME


def from_document(data: bytes, what: str) -> set[Key]:
    """The pairs of a JSON list in the form GC has on the wire. Raises `Malformed` or `ConfigInvalid`."""
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {error}") from error
    if not isinstance(document, list):
        raise wrong("$", "a list", document)
    found = set()
    for n, entry in enumerate(document):
        fields = Fields(entry, f"$[{n}]")
        container = fields.text("containerID")
        if not container:
            raise ConfigInvalid(f"{what} names no container", problems=[(f"$[{n}].containerID", "missing")])
        found.add((container, fields.text("ifname") or IFNAME))
    return found


def from_cri(socket: Path, cache: Cache) -> set[Key]:
    """What the runtime on `socket` lists, in whatever state, with all its interfaces in the cache.

    A runtime lists a sandbox only after its network is made: let `Runtime.gc` spare what is young. Raises `Unavailable`
    where no runtime answers.
    """
    from nodeplug.harness.runtime.cri import Cri  # gRPC takes a quarter of a second to import

    with Cri(socket) as runtime:
        listed = {pod.id for pod in runtime.pods()}
    attached = {entry.attachment.key for entry in cache.entries() if entry.attachment.container_id in listed}
    return attached | {(container, IFNAME) for container in listed}
