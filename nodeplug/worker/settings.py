"""The settings of nodeplugd: the table `[worker]` of the node's settings."""

from nodeplug.core import config, document, paths
from nodeplug.core.record import Record, key
from nodeplug.daemon.settings import HealthSettings, LogSettings

DIRECTORY = paths.RUN + "/worker"


class CollectSettings(Record):
    """`[worker.collect]`: the collection after a boot of what containers of the boot before left behind."""

    enabled: bool = key(document.boolean, default=True, help="whether it is done")
    runtime: str = key(
        document.text, default="", help="the container runtime's socket; empty: the first of the usual ones that exists"
    )
    networks: str = key(document.absolute_path, default="/etc/cni/net.d", help="where networks are configured")
    results: str = key(document.absolute_path, default="/var/lib/cni/results", help="where runtimes keep results")
    path: str = key(
        document.text, default="/opt/cni/bin:/usr/lib/cni", help="where foreign address managers are looked for"
    )


class ChoresSettings(Record):
    """`[worker.chores]`: which of the chores in `nodeplug.worker.chores` it does; each is a key."""

    dhcp: bool = key(document.boolean, default=True, help="renew the leases of the address manager dhcp")
    identity: bool = key(document.boolean, default=True, help="replace the certificates of the volume identity in time")
    logs: bool = key(document.boolean, default=True, help="rotate the logs of the volume log, and drop the oldest")


class WorkerSettings(Record):
    """`[worker]`."""

    directory: str = key(
        document.absolute_path, default=DIRECTORY, help="where the sockets are, one for each contract: cni.sock"
    )
    host: str = key(
        document.text,
        default="",
        help="/proc/1 in a container with the host's processes: work in that process's namespaces, and on its files",
    )
    threads: int = key(document.integer(1, 512), default=64, help="calls under way at once")
    running: int = key(document.integer(1, 64), default=2, help="how many of them run Python at once; the rest wait")
    queue: int = key(document.integer(0, 100_000), default=256, help="calls that wait for a thread; more are refused")
    connections: int = key(
        document.integer(1, 100_000), default=1024, help="connections whose request has not arrived whole"
    )
    drain: float = key(document.duration, default=30.0, help="how long calls under way may take after SIGTERM")
    watch_filter: bool = key(document.boolean, default=True, help="make the nft table again when somebody flushes it")
    health: HealthSettings = key(document.nested(HealthSettings), default=HealthSettings(), help="health and metrics")
    log: LogSettings = key(document.nested(LogSettings), default=LogSettings(), help="the log on stderr")
    collect: CollectSettings = key(
        document.nested(CollectSettings), default=CollectSettings(), help="the collection after a boot"
    )
    chores: ChoresSettings = key(
        document.nested(ChoresSettings), default=ChoresSettings(), help="the work it does by itself"
    )


def load(directory: str) -> WorkerSettings:
    """The settings in a directory such as /etc/nodeplug. Raises `ConfigInvalid` with every problem."""
    return read(config.load(directory), directory)


def read(node: dict[str, object], where: str) -> WorkerSettings:
    """Those among the node's settings, which are in `where`. Raises `ConfigInvalid` with every problem."""
    return config.section(WorkerSettings, node, "worker", where)
