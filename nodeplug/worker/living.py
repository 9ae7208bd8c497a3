"""Which attachments of a network there are, by every trace of them, and which of those live.

A list that is too short takes the network from pods that run. So whatever is doubtful lives: what the runtime lists,
what has a namespace or a link, and everything made since the boot.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nodeplug.cni.filter.index import Index
from nodeplug.cni.ipam.dhcp import conf, sandbox
from nodeplug.cni.ipam.dhcp import store as dhcp
from nodeplug.cni.ipam.store import directory_of
from nodeplug.cni.plugins import hostlink, podlink
from nodeplug.core import files
from nodeplug.core.errors import Malformed
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 16 << 20
_IFNAME = "eth0"  # what runtimes call a pod's first interface
_DATA_DIR = "/var/lib/cni/networks"


@dataclass(frozen=True)
class Trace:
    """A sign of an attachment: its container and interface ("" where that is not known), when it was made, and whether
    its namespace is there."""

    container: str
    ifname: str
    made: float
    namespace: bool = False


def valid(traces: list[Trace], *, listed: frozenset[str], boot: float) -> list[dict[str, str]]:
    """The list a GC is given: every attachment with a trace that lives, and the first one of each listed container."""
    alive = set(listed)
    alive |= {trace.container for trace in traces if trace.namespace or trace.made >= boot}
    pairs = {(trace.container, trace.ifname or _IFNAME) for trace in traces if trace.container in alive}
    pairs |= {(container, _IFNAME) for container in alive}
    return [{"containerID": container, "ifname": ifname} for container, ifname in sorted(pairs)]


def traces(network: str, plugins: list[dict[str, Any]], *, results: str) -> list[Trace]:
    """All traces of a network's attachments. Raises OSError: half of them would be too few."""
    return [
        *_in_results(network, results),
        *(trace for config in plugins for trace in _in_leases(network, config)),
        *_in_dhcp(network),
        *_in_filter(network),
        *_in_links(network),
    ]


def boot_time() -> float:
    """When this kernel started, in seconds since the epoch."""
    with open("/proc/stat") as stat:
        return next(float(line.split()[1]) for line in stat if line.startswith("btime "))


def _in_results(network: str, directory: str) -> Iterator[Trace]:
    """What runtimes keep of each ADD (libcni's cache)."""
    for name in _list(directory):
        path = f"{directory}/{name}"
        try:
            found = json.loads(files.read_bounded(path, _LARGEST))
            if found["networkName"] == network:
                container, ifname = str(found["containerId"]), str(found["ifName"])
                yield Trace(container, ifname, os.stat(path).st_mtime, _is_netns(str(found.get("netns", ""))))
        except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, Malformed):
            continue  # none of an attachment


def _in_leases(network: str, config: dict[str, Any]) -> Iterator[Trace]:
    ipam = config.get("ipam")
    if not isinstance(ipam, dict) or ipam.get("type") != "host-local":
        return
    directory = directory_of(str(ipam.get("dataDir") or _DATA_DIR), network)
    for name in _list(directory):
        path = f"{directory}/{name}"
        try:
            status = os.lstat(path)
            if status.st_size and not name.startswith(("lock", "last_reserved_ip.", ".")):
                container, _, ifname = files.read_bounded(path, 4096).decode(errors="replace").strip().partition("\r\n")
                yield Trace(container.strip(), ifname.strip(), status.st_mtime)
        except (FileNotFoundError, IsADirectoryError, Malformed):
            continue


def _in_dhcp(network: str) -> Iterator[Trace]:
    """A lease of this boot lives as long as its namespace."""
    for lease in dhcp.Leases(conf.settings().directory).all():
        if not isinstance(lease, dhcp.Unreadable) and lease.network == network:
            there = lease.sandbox.boot == sandbox.boot()
            yield Trace(lease.container, lease.ifname, 0.0, namespace=there and _is_netns(lease.sandbox.path))


def _in_filter(network: str) -> Iterator[Trace]:
    for holding in Index().holdings(network):
        owner = holding.owner
        there = owner.netns_id is not None and not owner.gone()
        yield Trace(owner.attachment.container, owner.attachment.ifname, holding.age / 1e9, there)


def _in_links(network: str) -> Iterator[Trace]:
    """A veth ends with the namespace of its other end, so one that is there has both; others are in pods themselves."""
    with Netlink(NETLINK_ROUTE) as route:
        found = [hostlink.owner(link) for link in links.dump(route, kind=hostlink.KIND)]
    for attachment in (*found, *podlink.owners()):
        if attachment is not None and attachment.network == network:
            yield Trace(attachment.container, attachment.ifname, 0.0, namespace=True)


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _is_netns(path: str) -> bool:
    try:
        Netns.open(path).close()
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOTDIR, errno.ESRCH)  # doubtful ones count
    return True
