"""Where nodeplug keeps things. Every path can be changed by settings or flags; these are the defaults."""

from __future__ import annotations

ETC = "/etc/nodeplug"  # settings: nodeplug.toml and conf.d/*.toml
RUN = "/run/nodeplug"  # gone with the reboot, as what it describes is: locks, attachments, sockets
VAR = "/var/lib/nodeplug"  # kept
LOG = "/var/log/nodeplug"

LOCKS = RUN + "/lock"

LEAVING = VAR + "/cni/leaving"
"""The plugin directories that CNI plugins are being taken out of, see `nodeplug.cni.leaving`."""

NO_REFERENCE = RUN + "/cni/reference.none"
"""Its existence says that the reference CNI plugins have left nothing on this node, see `nodeplug.cni.reference`."""
