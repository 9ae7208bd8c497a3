"""A container image made by hand: an OCI image layout in a tar file, its one layer busybox and its links.

No registry is asked. `containerd` imports the file; see the image layout specification of the Open Container
Initiative, version 1.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodeplug.core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
_OCI = "application/vnd.oci.image"
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "www/index.html": b"nodeplug\n",
    # Says who answered whom: traffic shown by bytes that went both ways.
    "www/cgi-bin/who": b"""#!/bin/sh
peer=${REMOTE_ADDR#\\[::ffff:}
echo "Content-type: text/plain"
echo
echo "$(hostname) answers ${peer%]}"
""",
}
SERVER = ("/bin/httpd", "-f", "-p", "80", "-h", "/www")
"""A command that serves /cgi-bin/who."""

_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "var", "var/tmp", "www", "www/cgi-bin")


def busybox() -> Path:
    """The busybox of this machine. Raises `NotFound`."""
    for path in BUSYBOX:
        if path.exists():
            return path
    raise NotFound("no busybox on this machine", hint="install it: apt-get install busybox-static")


def write(path: Path, names: Iterable[str]) -> None:
    """Write an image under every one of `names` ("localhost/pod:1"); its command sleeps until it is killed.

    The same busybox makes the same bytes. A busybox that is not static will not run in it.
    """
    binary = busybox()
    layer = _layer(binary)
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    config_bytes = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _descriptor(f"{_OCI}.config.v1+json", config_bytes),
        "layers": [_descriptor(f"{_OCI}.layer.v1.tar", layer)],
    }
    manifest_bytes = json.dumps(manifest).encode()
    described = _descriptor(f"{_OCI}.manifest.v1+json", manifest_bytes)
    # The annotation is containerd's, which has no other way to know a whole name from an OCI layout.
    entries = [described | {"annotations": {"io.containerd.image.name": name}} for name in names]
    index = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": entries}
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps(index).encode())
        for blob in (layer, config_bytes, manifest_bytes):
            _add(tar, "blobs/" + _digest(blob).replace(":", "/"), blob)


def _layer(binary: Path) -> bytes:
    listed = subprocess.run([binary, "--list"], capture_output=True, text=True, timeout=10, check=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _DIRECTORIES:
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
            tar.addfile(directory)
        _add(tar, "bin/busybox", binary.read_bytes(), 0o755)
        for applet in sorted(set(listed.stdout.split()) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet.rpartition('/')[2]}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, data in _FILES.items():
            _add(tar, name, data, 0o755 if "cgi-bin" in name else 0o644)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
