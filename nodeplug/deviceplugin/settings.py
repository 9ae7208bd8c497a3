"""Resources as an operator writes them: the table `[deviceplugin]` of one TOML file, which the commands read too."""

import re
from collections.abc import Iterable
from typing import Any

from nodeplug.core import config, document, paths
from nodeplug.core.document import Place, Wrong, expects
from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.core.record import Record, key
from nodeplug.daemon.settings import HealthSettings, LogSettings
from nodeplug.deviceplugin.contract import PLACEHOLDER
from nodeplug.devices.health import Probe
from nodeplug.devices.host import Host
from nodeplug.devices.pool import PoolSpec
from nodeplug.devices.rules import Rule, load_inventory, rule

KUBELET_DIR = "/var/lib/kubelet"
CONFIG = paths.ETC + "/deviceplugin.toml"
CDI_DIR = "/var/run/cdi"
MOST_RESOURCES = 256
MOST_REPLICAS = 999
LONGEST_RESET = 25.0  # seconds; the kubelet gives PreStartContainer 30

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CDI_VENDOR = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")


def resource_name(name: str) -> str:
    """`name`, which must be an extended resource as the kubelet understands it. ValueError says what is wrong."""
    domain, slash, rest = name.partition("/")
    if not slash:
        raise ValueError("expected domain/name, such as nodeplug.dev/serial")
    if "kubernetes.io/" in name:
        raise ValueError("the kubelet refuses every domain that ends in kubernetes.io")
    if name.startswith("requests."):
        raise ValueError("must not begin with requests.")
    if len(domain) > 244 or not _DOMAIN.match(domain):
        raise ValueError(f"{domain!r} is no domain: lower-case letters, digits, - and ., at most 244 characters")
    if not _NAME.match(rest):
        raise ValueError(f"{rest!r}: at most 63 letters, digits, -, _ and ., the first and last a letter or digit")
    return name


@expects('letters of "rwm"')
def permissions(value: Any, at: Place) -> str:
    found = document.text(value, at)
    if not found or set(found) - set("rwm") or len(set(found)) != len(found):
        raise Wrong('expected "r", "rw", "rwm" or the like')
    return found


@expects("text with {placeholders}")
def template(value: Any, at: Place) -> str:
    found = document.text(value, at)
    rest = PLACEHOLDER.sub("", found)
    if "{" in rest or "}" in rest:
        raise Wrong("a brace without its partner, or around something that is no name")
    if "\0" in found:
        raise Wrong("a NUL character")
    return found


@expects("an object of environment variables")
def environment(value: Any, at: Place) -> dict[str, str]:
    found = document.table(template)(value, at)
    for name in found:
        if not _ENV.match(name):
            at.below(f".{name}").wrong("no name of an environment variable")
    return found


@expects('true, false, or "always"')
def cdi(value: Any, _at: Place) -> str:
    if value == "always" or isinstance(value, bool):
        return {True: "auto", False: "never"}.get(value, "always")
    raise Wrong('expected true, false or "always"')


class Share(Record):
    """How many may use one device."""

    replicas: int = key(document.integer(1, MOST_REPLICAS), default=1, help="shares of each device")
    one_per_container: bool = key(
        document.boolean,
        default=False,
        help="refuse a container that asks for several shares: they give it no more",
    )


@expects('"exclusive", or an object with `replicas`', Share)
def share(value: Any, at: Place) -> Share:
    if value == "exclusive":
        return Share()
    return document.nested(Share)(value, at)


class Mount(Record):
    """A file or directory of the node that comes along."""

    host: str = key(document.absolute_path, help="path on the node")
    container: str = key(document.absolute_path, help="path inside")
    read_only: bool = key(document.boolean, default=True, help="whether the container may not write")


class ProbeSettings(Record):
    """A command that says whether a device is well, by its exit status."""

    command: tuple[str, ...] = key(
        document.array(document.name, most=64), help="argv; {host} is the node's path, {id} the device"
    )
    interval: float = key(document.duration, default=30.0, help="how often it is run for each device")
    timeout: float = key(document.duration, default=5.0, help="when it is ended, which is a failure")
    fall: int = key(document.integer(1, 100), default=3, help="failures in a row that make a device unhealthy")
    rise: int = key(document.integer(1, 100), default=2, help="successes in a row that make it well again")


class ResetSettings(Record):
    """A command run before each start of a container that has the device."""

    command: tuple[str, ...] = key(
        document.array(document.name, most=64), help="argv; {host} is the node's path, {id} the device"
    )
    timeout: float = key(document.duration, default=10.0, help="when it is ended; at most 25 s")


class Resource(Record):
    """`[[deviceplugin.resource]]`: one schedulable resource."""

    name: str = key(document.converted(resource_name, "domain/name"), help="what pods ask for")
    match: tuple[Rule, ...] = key(document.array(rule, most=256), help="which devices; of two rules the first wins")
    permissions: str = key(permissions, default="rwm", help="what the container may do with the nodes")
    share: Share = key(share, default=Share(), help="how many may use one device at once")
    container_path: str = key(
        template, default="", help="where the node is inside ({name}, {id}, {index}); empty: where it is on the node"
    )
    env: dict[str, str] = key(environment, default=None, help="environment; values of several devices are joined by ,")
    mounts: tuple[Mount, ...] = key(
        document.array(document.nested(Mount), most=64), default=(), help="what comes along"
    )
    annotations: dict[str, str] = key(document.table(template), default=None, help="for the container runtime")
    cdi: str = key(
        cdi, default="never", help='name devices by CDI; "always": without asking the runtime whether it can'
    )
    uid: int | None = key(document.integer(0, 2**32 - 2), default=None, help="owner of the node inside, with cdi")
    gid: int | None = key(document.integer(0, 2**32 - 2), default=None, help="group of the node inside, with cdi")
    prefer: str = key(
        document.choice("auto", "packed", "spread", "numa"),
        default="auto",
        help="which devices first: of one memory node, few (packed) or many (spread); auto: numa, then spread",
    )
    numa: bool = key(document.boolean, default=True, help="tell the kubelet which memory node a device is on")
    hold: float = key(document.duration, default=60.0, help="how long a device that is gone stays listed, unhealthy")
    limit: int = key(document.integer(1, 100_000), default=100_000, help="the most devices")
    open: str = key(
        document.choice("auto", "always", "never"),
        default="auto",
        help="open nodes to see whether they are well; auto: where that has no effect, so no ttys, tapes, watchdogs",
    )
    probe: ProbeSettings | None = key(document.nested(ProbeSettings), default=None, help="a command that tells health")
    reset: ResetSettings | None = key(document.nested(ResetSettings), default=None, help="a command before each start")

    @property
    def spec(self) -> PoolSpec:
        """What discovery has to know of it."""
        probe = self.probe
        return PoolSpec(
            name=self.name,
            rules=self.match,
            hold=self.hold,
            opens=self.open,
            limit=self.limit,
            probe=None
            if probe is None
            else Probe(probe.command, interval=probe.interval, timeout=probe.timeout, fall=probe.fall, rise=probe.rise),
        )

    @property
    def pcidevice(self) -> str:
        """The variable that tells network functions' addresses, as the SR-IOV world names it."""
        return "PCIDEVICE_" + re.sub(r"[^A-Z0-9]", "_", self.name.upper())


class PagesSettings(HealthSettings):
    """`[deviceplugin.health]`: /livez, /readyz and /metrics."""

    unregistered: float = key(
        document.duration, default=30.0, help="how long a resource may be unregistered before /readyz fails"
    )


class Directories(Record):
    """`[deviceplugin.directories]`: where things are. Change them for tests, or where the node is seen elsewhere."""

    dev: str = key(document.absolute_path, default="/dev", help="device nodes")
    sys: str = key(document.absolute_path, default="/sys", help="sysfs")
    udev: str = key(document.absolute_path, default="/run/udev/data", help="udev's data")
    links: str = key(document.absolute_path, default=paths.RUN + "/devices", help="our stable links to nodes")
    cdi: str = key(document.absolute_path, default=CDI_DIR, help="CDI spec files")
    runtime: str = key(document.text, default="", help="the container runtime's socket; empty: the usual places")


class Settings(Record):
    """`[deviceplugin]`."""

    registration: str = key(
        document.choice("auto", "kubelet.sock", "watcher"),
        default="auto",
        help="auto: by the plugin watcher where the kubelet says it has one and it answers, else at kubelet.sock",
    )
    resource: tuple[Resource, ...] = key(
        document.array(document.nested(Resource), most=MOST_RESOURCES), default=(), help="the resources"
    )
    rescan: float = key(document.duration, default=300.0, help="how often all is looked at, whatever was heard")
    poll: float = key(document.duration, default=5.0, help="the same where the kernel cannot tell of changes")
    health: PagesSettings = key(document.nested(PagesSettings), default=PagesSettings(), help="pages")
    log: LogSettings = key(document.nested(LogSettings), default=LogSettings(), help="the log")
    directories: Directories = key(document.nested(Directories), default=Directories(), help="where things are")


def problems(settings: Settings) -> Iterable[tuple[str, str]]:
    """What each key by itself cannot tell: (path, sentence)."""
    seen: dict[str, int] = {}
    for number, resource in enumerate(settings.resource):
        at = f"deviceplugin.resource[{number}]"
        if resource.name in seen:
            yield f"{at}.name", f"resource[{seen[resource.name]}] has this name already"
        seen.setdefault(resource.name, number)
        if not resource.match:
            yield f"{at}.match", "no rule: nothing would ever match"
        vendor, _, kind = resource.name.partition("/")
        if resource.cdi != "never" and not _CDI_VENDOR.match(vendor):
            yield f"{at}.cdi", f"a CDI vendor begins with a letter, and {vendor} does not"
        if resource.cdi != "never" and min(len(vendor), len(kind)) < 2:
            yield (
                f"{at}.cdi",
                "a vendor or class of one character crashes runtimes with an older CDI library (podman 4)",
            )
        if resource.cdi != "never" and len(kind) > 63:
            yield f"{at}.cdi", "a CDI class has at most 63 characters"
        if resource.cdi == "never" and (resource.uid is not None or resource.gid is not None):
            yield at, "uid and gid work by CDI only; set cdi = true"
        if resource.container_path and not resource.container_path.startswith("/"):
            yield f"{at}.container_path", "expected an absolute path"
        if resource.reset is not None and not 0 < resource.reset.timeout <= LONGEST_RESET:
            yield f"{at}.reset.timeout", f"must be within {LONGEST_RESET:g} s: the kubelet gives up after 30"
        for name, command in (("probe", resource.probe), ("reset", resource.reset)):
            if command is not None and (not command.command or not command.command[0].startswith("/")):
                yield f"{at}.{name}.command", "must begin with the absolute path of a program"
        if resource.probe is not None and not (0 < resource.probe.timeout <= 60 and resource.probe.interval >= 0.1):
            yield f"{at}.probe", "timeout must be within 60 s and interval at least 100 ms"
    if settings.rescan < 1 or settings.poll < 0.1:
        yield "deviceplugin", "rescan must be at least 1 s and poll at least 100 ms"


def load(path: str) -> Settings:
    """The settings in one file, or of the node for the default path that is not there. Raises `ConfigInvalid`."""
    settings = config.section(Settings, config.read(path), "deviceplugin", path)
    check(settings, path)
    return settings


def check(settings: Settings, where: str) -> None:
    """What single keys cannot tell. Raises `ConfigInvalid` with every problem."""
    found = list(problems(settings))
    for number, resource in enumerate(settings.resource):
        for position, given in enumerate(resource.match):
            if given.type is None:
                continue
            try:
                load_inventory(given.type)
            except Error as error:
                found.append((f"deviceplugin.resource[{number}].match[{position}].type", str(error)))
    if found:
        raise ConfigInvalid(f"the settings in {where} are not valid", problems=found)


def host_of(settings: Settings) -> Host:
    """Where the node's devices are to be seen, as the settings say."""
    d = settings.directories
    return Host(dev=d.dev, sys=d.sys, udev=d.udev, links=d.links)
