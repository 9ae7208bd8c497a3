"""Taking a door's plugins out of a directory again, while pods that they made may still need them.

A plugin that nothing needs any more goes at once: what it was put in the place of comes back by one rename. One that
something needs stays, or, with `drain`, leaves: its calls for new things go to what comes in its place, those for old
ones to it, until the last of them is done. Who notices that puts the file back (`settle`, which the door's own calls do
as well); to be killed at any point leaves a plugin that works one way or the other.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid, Refused
from nodeplug.ops.manifest import digest, say
from nodeplug.ops.place import PRIVATE, Change, Leaving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nodeplug.ops.manifest import Manifest
    from nodeplug.ops.place import Place

_SHOWN = 20


def take_out(
    place: Place, leaving: Leaving | None = None, *, only: Sequence[str] = (), drain: bool = False
) -> list[Change]:
    """Take out every plugin of ours, or those of `only`, that nothing needs. `leaving` says what is needed; without it
    nothing is. Called with the directory locked; foreign files stay.

    Raises `Refused` naming those who need what stays, after the rest has gone; with `drain` that is "leaving" instead.
    """
    leaving = leaving or Leaving()
    manifest = place.manifest()
    kept = {path.name for path in (place.private / "kept").glob("*")}
    chosen = sorted({path.name for path in place.path.iterdir() if path.name != PRIVATE} | kept)
    unknown = [name for name in only if name not in chosen]
    if unknown:
        raise ConfigInvalid(f"there is no plugin {', '.join(unknown)} in {place.path}")
    chosen = [name for name in chosen if not only or name in only]
    ours = [name for name in chosen if manifest.owns(place.path / name)]
    if drain:
        _redirect(place, leaving, ours, kept)
    needed = {name: who for name, who in leaving.attachments().items() if name in ours}
    found = [_put_back(place, manifest, name, kept) for name in chosen if not needed.get(name)]
    changes = [change for change in found if change is not None]
    gone = [change.name for change in changes if change.what != "left"]
    # A call that was under way by then may have made something after all.
    late = leaving.attachments() if gone else {}
    for name in gone:
        if late.get(name):
            if (place.path / name).is_symlink() or (place.path / name).exists():
                place.link(place.path / name, place.private / "kept" / name)
            place.link(place.program(), place.path / name)
    stays = {name: late.get(name) or needed[name] for name in chosen if late.get(name) or needed.get(name)}
    changes = [change for change in changes if change.name not in stays]
    files.sync_directory(str(place.path))
    _clear(place)
    leaving.note(place.path, tuple(stays) if drain else ())
    if stays and not drain:
        done = ", ".join(f"{change.name} {change.what}" for change in changes)
        raise Refused(
            f"pods still need {', '.join(stays)} of {place.path}: {_shown(stays)}",
            hint="delete them first, or let --drain take the plugins out with the last of them"
            + (f"; meanwhile: {done}" if done else ""),
        )
    return sorted((*changes, *[Change(name, "leaving") for name in stays]), key=lambda change: change.name)


def _redirect(place: Place, leaving: Leaving, names: Sequence[str], kept: set[str]) -> None:
    """From now on calls for new things are not for ours: first what takes them, then the word that it does."""
    old = place.private / "old"
    old.mkdir(exist_ok=True)
    old.chmod(0o755)
    for name in names:
        if (old / name).is_symlink() or (old / name).exists():
            continue
        if name in kept:
            _stand_in(place, place.private / "kept" / name, old / name)
        else:
            say(old / name, leaving.answer)
    say(place.private / "leaving", "".join(f"{call}\n" for call in leaving.calls).encode())


def _stand_in(place: Place, source: Path, target: Path) -> None:
    """Another name of a file that was put aside; of a link that was, one which leads where that led."""
    if not source.is_symlink():
        place.link(source, target)
        return
    leads_to = os.readlink(source)
    if not os.path.isabs(leads_to):
        leads_to = os.path.relpath(place.path / leads_to, target.parent)
    target.symlink_to(leads_to)


def _put_back(place: Place, manifest: Manifest, name: str, kept: set[str]) -> Change | None:
    """None for a foreign file that we never had anything to do with."""
    target = place.path / name
    ours = manifest.owns(target)
    if name in kept and (ours or digest(target) is None):
        (place.private / "kept" / name).rename(target)
        return Change(name, "restored")
    if ours:
        target.unlink()
        return Change(name, "removed")
    return Change(name, "left") if name in kept else None


def _clear(place: Place) -> None:
    """Remove what no plugin needs any more: all of it with the last one."""
    ours = place.ours()
    for path in (place.private / "old").glob("*"):
        if path.name not in ours:
            path.unlink()
    if not ours:
        shutil.rmtree(place.private)


def _shown(stays: Mapping[str, Sequence[str]]) -> str:
    """Who needs what, the first of many."""
    who: dict[str, list[str]] = {}
    for name, attachments in stays.items():
        for attachment in attachments:
            who.setdefault(attachment, []).append(name)
    told = [f"{attachment} ({', '.join(names)})" for attachment, names in sorted(who.items())]
    return "; ".join(told[:_SHOWN]) + (f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
