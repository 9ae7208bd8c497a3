"""Whether the node's container runtime knows CDI, asked of the runtime itself."""

import json
import re
import time

from nodeplug.core.errors import Error
from nodeplug.deviceplugin import client
from nodeplug.pb.cri import v1_pb2 as cri

SOCKETS = ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/crio/crio.sock")
_LIMIT = 16 << 20
_AGAIN = 60.0  # seconds; a runtime may be upgraded under us
_NUMBERS = re.compile(r"v?(\d+)\.(\d+)")


def knows_cdi(socket: str = "", *, timeout: float = 2.0) -> tuple[bool, str]:
    """(whether, and how that is known: one sentence). False too when nobody can be asked."""
    for path in (socket,) if socket else SOCKETS:
        if not client.listens(path):
            continue
        try:
            data = client.call(
                path, "/runtime.v1.RuntimeService/Version", cri.VersionRequest().SerializeToString(), timeout=timeout
            )
            version = cri.VersionResponse.FromString(data)
            request = cri.StatusRequest(verbose=True).SerializeToString()
            data = client.call(path, "/runtime.v1.RuntimeService/Status", request, timeout=timeout, limit=_LIMIT)
            config = cri.StatusResponse.FromString(data).info.get("config", "")
        except Error as error:
            return False, f"the runtime does not say whether it knows CDI: {error}"
        return judge(version.runtime_name, version.runtime_version, config)
    return False, f"no container runtime answers at {socket or ' or '.join(SOCKETS)}"


def judge(name: str, version: str, config: str) -> tuple[bool, str]:
    """What a runtime's name, version and (containerd's) own configuration tell. Pure."""
    told = f"{name} {version}"
    found = _NUMBERS.match(version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if name == "cri-o":
        known = number >= (1, 23)
        return known, f"{told} {'knows' if known else 'does not know'} CDI"
    if name != "containerd":
        return False, f"{told}: nothing is known about its CDI"
    enabled = None
    try:
        parsed = json.loads(config) if config else {}
        enabled = parsed.get("enableCDI") if isinstance(parsed, dict) else None
    except (ValueError, RecursionError):
        pass
    if enabled is None:
        enabled = number >= (2, 0)
    if enabled:
        return True, f"{told} knows CDI"
    if number >= (1, 7):
        return False, f"{told} has CDI switched off; set enable_cdi = true in its CRI plugin's configuration"
    return False, f"{told} does not know CDI"


class Asked:
    """The runtime's last answer, asked again each minute."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._due = 0.0
        self._how = ""
        self.known = False

    def ask(self) -> str:
        """Ask when it is time; the sentence that tells the answer when it is another than before, else ""."""
        if time.monotonic() < self._due:
            return ""
        self.known, how = knows_cdi(self._socket)
        self._due = time.monotonic() + _AGAIN
        news, self._how = (how if how != self._how else ""), how
        return news
