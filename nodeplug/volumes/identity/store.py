"""The authority of a node on disk: one document, and its private keys beside it.

    authority.json     roots, signers and times (`authority.Authority`); swapped whole, so all of it changes at once
    KEY-ID.key         the private half of a signer, PEM, 0600; there before the document names it, gone after
    request.key        that of a request which is not answered yet
    root/              only where the node is alone: its own root (`operator`)
    python             which interpreter has the package that signs (`child`)

The directory is 0700. Whoever reads it finds each file whole; whoever changes it holds `lock()`.
"""

from __future__ import annotations

import os
import stat

from nodeplug.core import document, files, jsontext, paths
from nodeplug.core.errors import (
    ConfigInvalid,
    Malformed,
    NotFound,
    PermissionRefused,
    Unavailable,
    doing,
)
from nodeplug.core.secret import Secret
from nodeplug.volumes.identity.authority import HOW, Authority

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import TypeVar

    from nodeplug.core.files import RangeLock
    from nodeplug.core.record import Record

    R = TypeVar("R", bound=Record)

DIRECTORY = paths.VAR + "/ca"

_DOCUMENT = "authority.json"
_REQUEST = "request.key"
_LARGEST = 4 << 20
_LARGEST_KEY = 64 << 10
_PATIENCE = 10.0


class Store:
    """The directory of a node's authority."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self.directory = directory

    @property
    def root(self) -> str:
        """Where the root is of a node that is alone."""
        return self._path("root")

    def lock(self) -> RangeLock:
        """In a `with` block: keep other writers out. Raises `TryAgain`."""
        return files.range_lock(f"{paths.LOCKS}/ca", self.directory, timeout=_PATIENCE)

    def exists(self) -> bool:
        return os.path.exists(self._path(_DOCUMENT))

    def load(self) -> Authority:
        """What the node knows. Raises `Unavailable` with what to run when it has no authority yet."""
        check_private(self.directory)
        try:
            data = files.read_bounded(self._path(_DOCUMENT), _LARGEST)
        except FileNotFoundError:
            raise Unavailable(f"this node has no authority to sign identities: no {self.directory}", hint=HOW) from None
        return read_document(Authority, data, self._path(_DOCUMENT))

    def save(self, authority: Authority) -> None:
        """Replace what there is; keys that nothing names any more are overwritten and removed."""
        data = jsontext.dumps(document.encode(authority), indent=1).encode() + b"\n"
        with doing(f"cannot write {self._path(_DOCUMENT)}"):
            ensure_private(self.directory)
            files.write_atomic(self._path(_DOCUMENT), data, 0o600)
        self.tidy(authority)

    def tidy(self, authority: Authority) -> None:
        """Destroy keys that nothing names, and what killed writers left. For the holder of the lock."""
        with doing(f"cannot remove what is not needed in {self.directory}"):
            destroy_others(self.directory, _named(authority))

    def is_untidy(self, authority: Authority) -> bool:
        """Whether `tidy` would find something. Raises OSError."""
        return bool(_others(self.directory, _named(authority)))

    def key(self, key_id: str) -> Secret:
        """A signer's private key. Raises `Unavailable`, `PermissionRefused` when others could read it too."""
        return read_key(self._path(f"{key_id}.key"))

    def add_key(self, key_id: str, key: Secret) -> None:
        """Keep it; `save` an authority that names it next."""
        write_key(self._path(f"{key_id}.key"), key)

    def requested(self) -> Secret | None:
        """The key of the request that is not answered yet."""
        try:
            return read_key(self._path(_REQUEST))
        except NotFound:
            return None

    def set_requested(self, key: Secret | None) -> None:
        if key is None:
            destroy(self._path(_REQUEST))
        else:
            write_key(self._path(_REQUEST), key)

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"


def read_document(cls: type[R], data: bytes, path: str) -> R:
    """A record that was written as JSON. Raises `Malformed`."""
    try:
        return document.decode(cls, jsontext.loads(data))
    except ConfigInvalid as invalid:
        raise Malformed(
            f"{path} cannot be understood: {invalid}", hint="put back a copy of it, or begin anew"
        ) from None


def ensure_private(directory: str) -> None:
    """Make the directory, for its owner only. Raises OSError, `PermissionRefused` where it is another's."""
    files.ensure_directory(directory, 0o700)
    check_private(directory)


def check_private(path: str) -> None:
    """Raises `PermissionRefused` where others than we may read or change it; nothing where it is missing."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077:
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else f"mode {stat.S_IMODE(found.st_mode):o}"
        raise PermissionRefused(
            f"{path} holds keys, and others may reach it: {kind}, of user {found.st_uid}",
            hint=f"if nobody has used that, chown it to root and chmod go= {path}; else begin anew with new keys",
        )


def read_key(path: str) -> Secret:
    """A private key. Raises `NotFound`, `PermissionRefused`, `Unavailable`."""
    check_private(path)
    with doing(f"cannot read the key {path}"):
        return Secret(files.read_bounded(path, _LARGEST_KEY))


def write_key(path: str, key: Secret) -> None:
    """A private key that only its owner may read. Raises OSError."""
    ensure_private(os.path.dirname(path))
    files.write_atomic(path, key.reveal(), 0o600)


def destroy(path: str) -> None:
    """Overwrite and remove a key; a disk that writes elsewhere (most flash does) may keep it all the same."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        files.write_all(fd, bytes(os.fstat(fd).st_size))
        os.fsync(fd)
    finally:
        os.close(fd)
    files.remove(path)


def destroy_others(directory: str, keep: Collection[str]) -> None:
    """Destroy every key in the directory but those, and what killed writers left. Raises OSError."""
    for name in _others(directory, keep):
        destroy(f"{directory}/{name}")


def _named(authority: Authority) -> set[str]:
    return {f"{key_id}.key" for key_id in authority.keys} | {_REQUEST}


def _others(directory: str, keep: Collection[str]) -> list[str]:
    names = os.listdir(directory)
    return [name for name in names if (name.endswith(".key") and name not in keep) or files.is_abandoned(name)]
