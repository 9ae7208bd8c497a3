"""Which volumes of logs the node has, with those whose pod is gone and whose collectors have some time left.

    /var/lib/nodeplug/volumes/logs/ID.json      one of them: where it is, by which rules it is kept, until when
    /var/log/nodeplug/pods/NS_POD_UID/VOLUME    its content, read-only, for collectors of the node
    /var/log/nodeplug/pods/NS_POD_UID/VOLUME.json   its account (`index`)

Written by the volume's publish and unpublish, read by the chore of nodeplugd, which is called by the change. They
survive a reboot, as the images do.
"""

from __future__ import annotations

import os

from nodeplug.core import document, files, jsontext, paths
from nodeplug.core.errors import ConfigInvalid, Malformed
from nodeplug.core.record import Record, key
from nodeplug.volumes import imagefile
from nodeplug.volumes.log.rules import Rules
from nodeplug.volumes.show import take_away

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = paths.VAR + "/volumes/logs"

_LARGEST = 1 << 20
_SUFFIX = ".json"


class Known(Record):
    """A volume of logs. `image` is empty for one in memory; `ended` is 0 while its pod has it."""

    id: str = key(document.name)
    target: str = key(document.absolute_path)
    place: str = key(document.absolute_path)
    """Where collectors find it."""
    image: str = key(document.text, default="")
    device: str = key(document.text, default="")
    """major:minor of its file system, since it was mounted last."""
    rules: Rules = key(document.nested(Rules))
    linger: float = key(document.number)
    ended: float = key(document.number, default=0.0)

    @property
    def account(self) -> str:
        return account_of(self.place)

    @property
    def until(self) -> float:
        """When it may go; 0 while its pod has it."""
        return self.ended + self.linger if self.ended else 0.0


def account_of(place: str) -> str:
    return place + _SUFFIX


def write(known: Known) -> None:
    """Raises OSError."""
    files.ensure_directory(DIRECTORY, 0o700)
    files.write_atomic(
        f"{DIRECTORY}/{known.id}{_SUFFIX}", jsontext.dumps(document.encode(known)).encode() + b"\n", 0o600
    )


def read(id: str) -> Known | None:
    """None when there is none. Raises `Malformed`."""
    path = f"{DIRECTORY}/{id}{_SUFFIX}"
    try:
        data = files.read_bounded(path, _LARGEST)
    except FileNotFoundError:
        return None
    try:
        return document.decode(Known, jsontext.loads(data), unknown="ignore")
    except ConfigInvalid as invalid:
        raise Malformed(f"{path} cannot be understood: {invalid}", hint="remove it, and what it was about") from None


def ids() -> list[str]:
    return sorted(
        name.removesuffix(_SUFFIX) for name in _names() if name.endswith(_SUFFIX) and not name.startswith(".")
    )


def abandoned() -> list[str]:
    """What writers left that were killed."""
    return [f"{DIRECTORY}/{name}" for name in _names() if files.is_abandoned(name)]


def remove(known: Known, warn: Callable[[str], None]) -> None:
    """Take away everything of it, the record last. Raises OSError, an error of core.errors."""
    take_away(known.place, warn)
    hide(known.place)
    if known.image:
        imagefile.remove(known.image)
    files.remove(f"{DIRECTORY}/{known.id}{_SUFFIX}")


def hide(place: str) -> None:
    """Remove the account and the directories for collectors, where nothing is mounted any more."""
    account = account_of(place)
    above, name = os.path.split(account)
    files.remove(account)
    for each in _names(above):
        if each.startswith(f".{name}.") and files.is_abandoned(each):
            files.remove(f"{above}/{each}")
    for directory in (place, above):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            return  # others of its pod are there


def forget(id: str) -> None:
    """Remove a record that cannot be read."""
    files.remove(f"{DIRECTORY}/{id}{_SUFFIX}")


def _names(directory: str = DIRECTORY) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
