"""The settings of the KMS daemon: the table `[kms]` of one TOML file, which the commands read too."""

import grp
from typing import Any

from nodeplug.core import config, document, paths
from nodeplug.core.document import Place, Wrong, expects
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key
from nodeplug.daemon.settings import HealthSettings, LogSettings
from nodeplug.kms.contract import Provider
from nodeplug.kms.providers import table

CONFIG = paths.ETC + "/kms.toml"
SOCKET = paths.RUN + "/kms.sock"


class Mode(int):
    """Permission bits, shown in octal."""

    def __str__(self) -> str:
        return f'"{int(self):04o}"'


@expects('permission bits in octal, as a string ("0660")')
def _mode(value: Any, at: Place) -> Mode:
    text = document.text(value, at)
    try:
        mode = Mode(text, 8)
    except ValueError:
        raise Wrong('expected permission bits in octal, such as "0660"') from None
    if not 0 < mode <= 0o777 or mode & 0o007:
        raise Wrong("others must have no access: use the owner's and the group's bits only")
    return mode


@expects("a group's name or number")
def _group(value: Any, at: Place) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    name = document.text(value, at)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise Wrong(f'this node has no group "{name}"') from None


class KmsSettings(Record):
    """`[kms]`."""

    socket: str = key(document.absolute_path, default=SOCKET, help="where the API server connects")
    socket_mode: Mode = key(_mode, default=Mode(0o600), help="who may connect: the socket's permission bits")
    socket_group: int | None = key(_group, default=None, help='the socket\'s group, with socket_mode = "0660"')
    allowed_uids: tuple[int, ...] | None = key(
        document.array(document.integer(0, 2**32 - 2)),
        default=None,
        help="let in only processes of these users, whatever the socket's mode says; absent: the mode alone decides",
    )
    apis: tuple[str, ...] = key(
        document.array(document.choice("v2", "v1beta1")),
        default=("v2",),
        help="the versions served; v1beta1 only where data of an old API server needs it",
    )
    status_version: str = key(
        document.choice("v2", "v2beta1"),
        default="v2",
        help="what Status calls itself: an API server that has seen v2beta1 from another plugin insists on it",
    )
    threads: int = key(
        document.integer(0, 512),
        default=0,
        help="calls answered at once; 0: 4, or for a remote provider twice its concurrency, as joined calls wait too",
    )
    queue: int = key(document.integer(1, 100_000), default=1024, help="calls that wait; more are refused at once")
    drain: float = key(document.duration, default=2.5, help="how long calls under way may take after SIGTERM")
    provider: dict[str, object] = key(
        document.table(document.anything), help="the table [kms.provider]; its type says which keys it has"
    )
    health: HealthSettings = key(document.nested(HealthSettings), default=HealthSettings(), help="health and metrics")
    log: LogSettings = key(document.nested(LogSettings), default=LogSettings(), help="the log on stderr")


def load(path: str) -> KmsSettings:
    """The settings in a file. Raises `ConfigInvalid` with every problem, `PermissionRefused`."""
    found = config.read(path)
    if "kms" not in found:
        raise ConfigInvalid(f"{path} has no table [kms]", hint="docs/kms.md shows a whole file")
    settings = config.section(KmsSettings, found, "kms", path)
    problems = []
    if not settings.apis:
        problems.append(("kms.apis", "is empty, so nothing would be served"))
    if settings.allowed_uids == ():
        problems.append(
            ("kms.allowed_uids", "is empty, so nobody would be served; leave it out to let the mode decide")
        )
    if settings.socket_group is not None and not settings.socket_mode & 0o060:
        problems.append(("kms.socket_group", f"is of no use with socket_mode = {settings.socket_mode}; set it to 0660"))
    if problems:
        raise ConfigInvalid(f"the settings in {path} are not valid", problems=problems)
    return settings


def provider_settings(
    settings: KmsSettings, path: str, provider: type[Provider] | None = None
) -> tuple[type[Provider], Record]:
    """The provider's class (the one given, or what `type` names) and its own settings. Raises `ConfigInvalid`."""
    keys = dict(settings.provider)
    kind = keys.pop("type", None)
    if provider is None:
        if not isinstance(kind, str):
            raise ConfigInvalid(f"{path}: kms.provider.type is missing", hint='for example: type = "local"')
        provider = table.find(kind)
    try:
        return provider, document.decode(provider.Settings, keys, path="kms.provider")
    except ConfigInvalid as invalid:
        raise ConfigInvalid(f"the settings in {path} are not valid", problems=invalid.problems) from None
