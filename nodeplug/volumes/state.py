"""The state of each volume: one small file, keyed by the target, that tells how to take it all back.

It lies where what it describes lies: in /run when that ends with the reboot as mounts do, in /var when there is an
image or the like. Written before the first thing that lasts is made. Never holds a secret.
"""

from __future__ import annotations

import os
import sys

from nodeplug.core import files, jsontext, paths
from nodeplug.core.errors import Malformed
from nodeplug.volumes.contract import Pod, Published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.record import Record
    from nodeplug.volumes.contract import Request, Step

RUN = paths.RUN + "/volumes"
KEPT = paths.VAR + "/volumes/state"
_VERSION = 1
_LARGEST = 1 << 20
_SUFFIX = ".json"

STEPS = {
    "IdentityFiles": "nodeplug.volumes.identity.volume:IdentityFiles",
    "LogImage": "nodeplug.volumes.log.volume:LogImage",
    "LogKept": "nodeplug.volumes.log.volume:LogKept",
    "ImageFile": "nodeplug.volumes.imagefile:ImageFile",
    "Staged": "nodeplug.volumes.stage:Staged",
}


def record_of(request: Request, now: float) -> Published:
    """What is known of a volume before anything is done for it."""
    return Published(
        id=request.id,
        driver=request.driver,
        volume=request.volume,
        target=request.target,
        options=_wire(request.options),
        read_only=request.read_only,
        fs_group=request.fs_group,
        fs_type=request.fs_type,
        pod=request.pod,
        created=now,
        device="",
        steps=(),
    )


def _wire(options: Record) -> dict[str, Any]:
    """By their names in documents; a field that no document has is left out."""
    found = {}
    for field, key in options._keys.items():
        value = getattr(options, field)
        found[key.name or field] = list(value) if isinstance(value, tuple) else value
    return found


def write(published: Published) -> None:
    """Replace the volume's state. Survives a power cut where what it describes does."""
    kept = any(step.kept for step in published.steps)
    document = {
        "version": _VERSION,
        **{name: value for name, value in published.__dict__.items() if name not in ("mounted", "pod", "steps")},
        "pod": published.pod.__dict__,
        "steps": [{"step": type(step).__name__, **_fields(step)} for step in published.steps],
    }
    data = jsontext.dumps(document).encode("utf-8", "surrogateescape")
    directory = KEPT if kept else RUN
    path, temporary = f"{directory}/{published.id}{_SUFFIX}", _coming(published.id)
    try:
        files.write_atomic(path, data, 0o600, durable=kept, temporary=temporary)
    except FileNotFoundError:
        files.ensure_directory(directory, 0o700)
        files.write_atomic(path, data, 0o600, durable=kept, temporary=temporary)


def _coming(id: str) -> str:
    """The name of a state while it is written, by the one who holds the volume's lock."""
    return f".{id}{_SUFFIX}~"


def _fields(step: Step) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in step.__dict__.items()}


def read(id: str) -> Published | None:
    """The volume's state; None when there is none. Raises `Malformed` when it cannot be understood."""
    for directory in (KEPT, RUN):
        try:
            data = files.read_bounded(f"{directory}/{id}{_SUFFIX}", _LARGEST)
        except FileNotFoundError:
            continue
        return _parse(data, id)
    return None


def _parse(data: bytes, id: str) -> Published:
    try:
        found: Any = jsontext.loads(data)
        if found.pop("version") != _VERSION:
            raise ValueError("it is of another version")
        found["pod"] = Pod(**found["pod"])
        found["steps"] = tuple(_step(each) for each in found["steps"])
        return Published(**found)
    except Exception as error:
        raise Malformed(f"the state of volume {id} cannot be understood: {error}") from None


def _step(fields: dict[str, Any]) -> Step:
    module, _, name = STEPS[fields.pop("step")].partition(":")
    __import__(module)
    kind: type[Step] = getattr(sys.modules[module], name)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def remove(id: str) -> None:
    """Forget the volume; nothing to forget is success."""
    for directory in (RUN, KEPT):
        files.remove(f"{directory}/{_coming(id)}")
        files.remove(f"{directory}/{id}{_SUFFIX}")


def ids() -> list[str]:
    """Every volume that has a state, readable or not."""
    names = {name for _, name in _entries() if name.endswith(_SUFFIX) and not name.startswith(".")}
    return sorted(name.removesuffix(_SUFFIX) for name in names)


def every() -> list[Published]:
    """All states that can be understood."""
    found = []
    for id in ids():
        try:
            known = read(id)
        except Malformed:
            continue
        if known is not None:
            found.append(known)
    return found


def abandoned() -> list[str]:
    """What killed writers of states left behind; also one that is being written, for who holds no lock."""
    return [f"{directory}/{name}" for directory, name in _entries() if name.startswith(".")]


def _entries() -> list[tuple[str, str]]:
    found = []
    for directory in (RUN, KEPT):
        try:
            found += [(directory, name) for name in os.listdir(directory)]
        except FileNotFoundError:
            pass
    return found
