"""What keeps the ring's own key on this node: a systemd credential, a passphrase in a file, or nothing.

A seal turns the ring key into a small document that stands in the ring file, and back. What each protects against, and
what not, is in docs/kms.md.
"""

import os
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from nodeplug.core.errors import ConfigInvalid, NotFound, PermissionRefused, Refused, Unavailable, from_os
from nodeplug.core.files import read_fd
from nodeplug.daemon.listeners import check_directories
from nodeplug.kms.keyring import cipher

CREDENTIAL_NAME = "nodeplug-kms"
_SHORTEST_PASSPHRASE = 16
_LARGEST = 64 * 1024
_PATIENCE = 60.0  # seconds; a TPM takes one or two


class Seal(Protocol):
    """`close` makes the document, `open` reads it back; `prepare` makes what is outside the ring, at `init`."""

    kind: str

    def prepare(self) -> None: ...

    def close(self, ring_key: bytes, ring_id: str) -> dict[str, object]: ...

    def open(self, document: Mapping[str, object], ring_id: str) -> bytes: ...


def read_private(path: str, what: str, *, limit: int = _LARGEST) -> bytes:
    """A file that only its owner may read, and that is no link.

    Raises `NotFound`, `Refused` with the command that mends it, `Malformed` for more than `limit` bytes, and what
    `check_directories` raises.
    """
    check_directories(os.path.dirname(path) or ".")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"{what} {path} is not there") from None
    except OSError as error:
        if os.path.islink(path):
            raise Refused(f"{what} {path} is a symbolic link", hint=f"put the file itself there: rm {path}") from None
        raise from_os(error, f"cannot open {what} {path}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{what} {path} is not a regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise Refused(f"{what} {path} belongs to uid {status.st_uid}", hint=f"chown root {path}")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise Refused(f"{what} {path} is open to others (mode {mode:04o})", hint=f"chmod 600 {path}")
        return read_fd(fd, limit, path)
    except OSError as error:
        raise from_os(error, f"cannot read {what} {path}") from error
    finally:
        os.close(fd)


def read_passphrase(path: str) -> bytes:
    """A passphrase file's content without the newline at its end. Raises also `Refused` for a short one."""
    found = read_private(path, "the passphrase file").rstrip(b"\r\n")
    if len(found) < _SHORTEST_PASSPHRASE:
        raise Refused(
            f"the passphrase in {path} has fewer than {_SHORTEST_PASSPHRASE} characters",
            hint=f"umask 077; head -c 32 /dev/urandom | base64 > {path}",
        )
    return found


class Plain:
    """No seal: whoever reads the file has the keys."""

    kind = "plain"

    def prepare(self) -> None:
        return

    def close(self, ring_key: bytes, ring_id: str) -> dict[str, object]:
        return {"type": self.kind, "key": ring_key.hex()}

    def open(self, document: Mapping[str, object], ring_id: str) -> bytes:
        try:
            return bytes.fromhex(str(document.get("key", "")))
        except ValueError:
            raise cipher.Damaged from None


@dataclass(frozen=True)
class PassphraseFile:
    """scrypt of a passphrase that is in a file of its own, best on another medium than the ring."""

    path: str
    kind = "passphrase-file"

    def prepare(self) -> None:
        read_passphrase(self.path)

    def close(self, ring_key: bytes, ring_id: str) -> dict[str, object]:
        parameters = cipher.passphrase_parameters()
        key = cipher.passphrase_key(read_passphrase(self.path), parameters)
        sealed = cipher.wrap(key, ring_key, cipher.seal_binding(ring_id))
        return {"type": self.kind, **parameters, "sealed": sealed.hex()}

    def open(self, document: Mapping[str, object], ring_id: str) -> bytes:
        key = cipher.passphrase_key(read_passphrase(self.path), document)
        try:
            return _unseal(key, document, ring_id)
        except cipher.Damaged:
            raise Refused(f"the passphrase in {self.path} does not open this ring") from None


@dataclass(frozen=True)
class SystemdCredential:
    """A key that systemd keeps encrypted to this host's key, its TPM, or both; see systemd-creds(1).

    A service finds it in `directory` (LoadCredentialEncrypted=); a command has systemd-creds decrypt `path`.
    """

    path: str
    with_key: str = "auto"
    directory: str = ""
    kind = "systemd-credential"

    def prepare(self) -> None:
        if os.path.exists(self.path):
            return
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        check_directories(os.path.dirname(self.path))
        self._run("encrypt", f"--with-key={self.with_key}", "-", self.path, given=cipher.new_key())
        os.chmod(self.path, 0o600)

    def close(self, ring_key: bytes, ring_id: str) -> dict[str, object]:
        sealed = cipher.wrap(self._key(), ring_key, cipher.seal_binding(ring_id))
        return {"type": self.kind, "name": CREDENTIAL_NAME, "sealed": sealed.hex()}

    def open(self, document: Mapping[str, object], ring_id: str) -> bytes:
        try:
            return _unseal(self._key(), document, ring_id)
        except cipher.Damaged:
            raise Refused(
                f"the credential {CREDENTIAL_NAME} does not open this ring",
                hint="it was made for another ring, or another host; import an export here",
            ) from None

    def _key(self) -> bytes:
        inside = os.path.join(self.directory, CREDENTIAL_NAME) if self.directory else ""
        if inside and os.path.exists(inside):
            try:
                with open(inside, "rb") as file:
                    key = file.read(cipher.KEY_BYTES + 1)
            except OSError as error:
                raise from_os(error, f"cannot read the credential {inside}") from error
        elif os.path.exists(self.path):
            key = self._run("decrypt", self.path, "-")
        else:
            raise NotFound(f"the credential {self.path} is not there", hint="`nodeplug kms init` makes it")
        if len(key) != cipher.KEY_BYTES:
            raise Refused(f"the credential {CREDENTIAL_NAME} is not a key of {cipher.KEY_BYTES} bytes")
        return key

    def _run(self, verb: str, *arguments: str, given: bytes = b"") -> bytes:
        # The key passes through pipes, never through arguments or files.
        command = ["systemd-creds", verb, f"--name={CREDENTIAL_NAME}", *arguments]
        try:
            done = subprocess.run(command, input=given, capture_output=True, timeout=_PATIENCE, check=False)
        except FileNotFoundError:
            raise Unavailable("systemd-creds is not installed", hint="choose another seal") from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"systemd-creds {verb} did not end within {_PATIENCE:g} s") from None
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().replace("\n", " ")[:500]
            raise PermissionRefused(f"systemd-creds {verb} of {self.path} failed: {said}")
        return done.stdout


def _unseal(key: bytes, document: Mapping[str, object], ring_id: str) -> bytes:
    try:
        sealed = bytes.fromhex(str(document.get("sealed", "")))
    except ValueError:
        raise cipher.Damaged from None
    return cipher.unwrap(key, sealed, cipher.seal_binding(ring_id))


KINDS = ("systemd-credential", "passphrase-file", "plain")


def make(kind: str, *, passphrase_file: str, credential: str, with_key: str, directory: str) -> Seal:
    """The seal that the settings name. Raises `ConfigInvalid` when its own key is missing."""
    if kind == "plain":
        return Plain()
    if kind == "passphrase-file":
        if not passphrase_file:
            raise ConfigInvalid('seal = "passphrase-file" needs passphrase_file', hint="give the file's absolute path")
        return PassphraseFile(passphrase_file)
    return SystemdCredential(credential, with_key, directory)
