"""`nodeplug cni`: networks and their plugins by hand, as a container runtime uses them.

Stands on `nodeplug.harness.runtime`, which runs plugins as libcni does and shares its cache, so that these commands
work on the attachments of the node's own runtime too.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.harness.runtime import cache, config, documents, valid
from nodeplug.harness.runtime.cache import Attachment
from nodeplug.harness.runtime.result import encode
from nodeplug.harness.runtime.runtime import PATH, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from nodeplug.harness.runtime.cache import Cached
    from nodeplug.harness.runtime.result import Result

    F = TypeVar("F", bound=Callable[..., Any])

NETNS = Path("/run/netns")


@click.group()
def cli() -> None:
    """Networks and their plugins by hand, as a container runtime uses them."""


def network_options(command: F) -> F:
    """The options that name a network and where its plugins and results are."""
    for option in reversed(
        (
            click.option(
                "--conf",
                type=click.Path(path_type=Path),
                required=True,
                help="The network's configuration: a file, or a directory as runtimes read it.",
            ),
            click.option("--network", default="", metavar="NAME", help="Which network of a directory; else its first."),
            click.option(
                "--path",
                default=":".join(map(str, PATH)),
                show_default=True,
                metavar="DIR[:DIR]",
                help="Where plugins are looked for.",
            ),
            click.option(
                "--cache-dir",
                type=click.Path(path_type=Path),
                default=cache.DIRECTORY,
                show_default=True,
                help="Where results are kept.",
            ),
            click.option("--timeout", default=120.0, show_default=True, help="Seconds for one plugin."),
            click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table."),
        )
    ):
        command = option(command)
    return command


def attachment_options(command: F) -> F:
    """The options that name one interface of one container."""
    for option in reversed(
        (
            click.option("--netns", default="", metavar="PATH", help="The container's network namespace, or its name."),
            click.option("--ifname", default="eth0", show_default=True, help="The interface inside."),
            click.option("--container-id", default="", metavar="ID", help="The container; else derived from --netns."),
            click.option("--args", "pairs", multiple=True, metavar="K=V", help="One pair of CNI_ARGS; repeatable."),
            click.option("--cap-args", default="{}", metavar="JSON", help="What the runtime offers, by capability."),
        )
    ):
        command = option(command)
    return command


@cli.command()
@network_options
@attachment_options
@click.option("--keep-failed", is_flag=True, help="Leave what a failed ADD made, to look at it.")
def add(keep_failed: bool, as_json: bool, **options: Any) -> None:
    """Attach a container to a network (ADD). Without --keep-failed a failure is followed by DEL."""
    runtime, network = _runtime(**options)
    attachment = _attachment(**options)
    try:
        result = runtime.add(network, attachment)
    except Error as error:
        if not keep_failed:
            try:
                runtime.delete(network, attachment)
            except Error as second:
                click.echo(f"and its DEL failed too: {second}", err=True)
        raise error
    if as_json:
        click.echo(json.dumps(encode(result), indent=2))
    else:
        _show_result(result)


@cli.command("del")
@network_options
@attachment_options
def delete(as_json: bool, **options: Any) -> None:
    """Detach a container (DEL). Nothing left to detach is success."""
    runtime, network = _runtime(**options)
    attachment = _attachment(**options)
    runtime.delete(network, attachment)
    _say(as_json=as_json, network=network.name, container=attachment.container_id, ifname=attachment.ifname)


@cli.command()
@network_options
@attachment_options
def check(as_json: bool, **options: Any) -> None:
    """Ask whether an attachment is still as its ADD left it (CHECK)."""
    runtime, network = _runtime(**options)
    attachment = _attachment(**options)
    runtime.check(network, attachment)
    said = "disabled by the network" if network.disable_check else "as it should be"
    _say(as_json=as_json, network=network.name, container=attachment.container_id, outcome=said)


@cli.command()
@network_options
def status(as_json: bool, **options: Any) -> None:
    """Ask whether a network can serve an ADD (STATUS, from version 1.1.0 on)."""
    runtime, network = _runtime(**options)
    asked = runtime.status(network)
    said = "ready" if asked else f"not asked: version {network.cni_version or '0.1.0'} has no STATUS"
    _say(as_json=as_json, network=network.name, outcome=said)


@cli.command()
@network_options
def validate(as_json: bool, **options: Any) -> None:
    """Ask whether every plugin of a network is there and speaks its version (VERSION)."""
    runtime, network = _runtime(**options)
    asked = sorted(runtime.validate(network))
    plugins = [plugin.type for plugin in network.plugins]
    version = network.cni_version or "0.1.0"
    _say(as_json=as_json, network=network.name, version=version, plugins=plugins, capabilities=asked)


@cli.command("list")
@click.option("--cache-dir", type=click.Path(path_type=Path), default=cache.DIRECTORY, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")
def list_attachments(cache_dir: Path, as_json: bool) -> None:
    """The attachments in the cache, whichever runtime made them."""
    _show_attachments(list(cache.Cache(cache_dir).entries()), as_json=as_json)


@cli.command()
@network_options
@click.option("--valid", "named", multiple=True, metavar="ID[/IFNAME]", help="An attachment that lives; repeatable.")
@click.option(
    "--valid-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help='A JSON list of {"containerID": ..., "ifname": ...}; - reads stdin.',
)
@click.option(
    "--cri", "socket", type=click.Path(path_type=Path), help="Ask the runtime on this socket which sandboxes live."
)
@click.option("--none-valid", is_flag=True, help="Nothing lives: remove all of the network.")
@click.option(
    "--grace",
    default=300.0,
    show_default=True,
    help="With --cri: seconds for which a new attachment counts as living, because a runtime lists a sandbox only "
    "after its network is made.",
)
def gc(
    named: tuple[str, ...],
    valid_file: Path | None,
    socket: Path | None,
    none_valid: bool,
    grace: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove what belongs to no living attachment: a DEL for each that is cached, then GC on each plugin.

    Of a container none of whose attachments lives, those in other networks go too. What lives must be said, by any of
    --valid, --valid-file, --cri, or by --none-valid. Run it while the runtime makes no pods.
    """
    if not (named or valid_file or socket or none_valid):
        raise ConfigInvalid("gc must be told what lives", hint="use --cri, --valid or --valid-file; or --none-valid")
    runtime, network = _runtime(**options)
    living = {valid.parse(text) for text in named}
    if valid_file is not None:
        living |= valid.from_document(_read(valid_file), str(valid_file))
    if socket is not None:
        living |= valid.from_cri(socket, runtime.cache)
    spared_since = time.time() - grace if socket is not None else None
    removed = runtime.gc(network, living, spared_since=spared_since)
    ended = {entry.attachment.container_id for entry in removed} - {container for container, _ in living}
    removed += runtime.forget(ended)
    if network.disable_gc:
        _say(as_json=as_json, network=network.name, outcome="not done: the network has disableGC")
    else:
        _show_attachments(removed, as_json=as_json, title="removed")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")
def repair(as_json: bool) -> None:
    """Make the nft table of masquerades and host ports again, as this node's living attachments need it."""
    from nodeplug.cni.filter.table import filtering

    with filtering(warn=lambda sentence: click.echo(sentence, err=True)) as table:
        restored = table.repair()
    _say(as_json=as_json, table="inet nodeplug", restored=restored)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")
def takeover(as_json: bool) -> None:
    """What the reference plugins have left on this node for pods, which goes with each pod."""
    from nodeplug.cni.reference import look

    found = look.everything()
    if as_json:
        click.echo(json.dumps([each.__dict__ for each in found], indent=2))
        return
    table = Table("what", "network", "container", "", box=None)
    for each in found:
        table.add_row(each.what, each.network, each.container, each.detail)
    Console().print(table if found else "nothing of the reference plugins is left of any pod")


def _runtime(
    *, conf: Path, network: str, path: str, cache_dir: Path, timeout: float, **_attachment: Any
) -> tuple[Runtime, config.Network]:
    if conf.is_dir():
        loaded = config.load_directory(conf, network) if network else config.first_network(conf)
    else:
        loaded = config.load_file(conf)
        if network not in ("", loaded.name):
            raise ConfigInvalid(f"{conf} is network {loaded.name!r}, not {network!r}")
    directories = [Path(part) for part in path.split(":") if part]
    return Runtime(directories, cache_directory=cache_dir, timeout=timeout), loaded


def _attachment(
    *, netns: str, ifname: str, container_id: str, pairs: tuple[str, ...], cap_args: str, **_network: Any
) -> Attachment:
    where = netns if not netns or "/" in netns else str(NETNS / netns)
    if not (container_id or where):
        raise ConfigInvalid("an attachment needs a container", hint="use --netns, --container-id, or both")
    args = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigInvalid(f"--args {pair!r} is not K=V")
        args.append((key, value))
    return Attachment(
        container_id=container_id or f"nodeplug-{hashlib.sha256(where.encode()).hexdigest()[:12]}",
        netns=where,
        ifname=ifname,
        args=tuple(args),
        capability_args=documents.parse(cap_args.encode(), "--cap-args"),
    )


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(documents.LIMIT)
    try:
        return documents.read(path)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error


def _say(*, as_json: bool, **told: Any) -> None:
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in told.items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    Console().print(table)


def _show_result(result: Result) -> None:
    console = Console()
    links = Table("interface", "mac", "where", title=f"result {result.cni_version}", title_justify="left", box=None)
    for link in result.interfaces:
        links.add_row(link.name, link.mac, link.sandbox or "host")
    addresses = Table("address", "gateway", "interface", box=None)
    for ip in result.ips:
        known = ip.interface is not None and 0 <= ip.interface < len(result.interfaces)
        addresses.add_row(ip.address, ip.gateway, result.interfaces[ip.interface or 0].name if known else "")
    routes = Table("route", "via", box=None)
    for route in result.routes:
        routes.add_row(route.dst, route.gw)
    for table in (links, addresses, routes):
        if table.row_count:
            console.print(table)


def _show_attachments(entries: list[Cached], *, as_json: bool, title: str = "") -> None:
    if as_json:
        told = [
            {
                "network": entry.network,
                "container": entry.attachment.container_id,
                "ifname": entry.attachment.ifname,
                "netns": entry.attachment.netns,
                "addresses": list(entry.addresses()),
            }
            for entry in entries
        ]
        click.echo(json.dumps(told, indent=2))
        return
    table = Table("network", "container", "interface", "addresses", title=title, title_justify="left", box=None)
    for entry in entries:
        found = entry.attachment
        table.add_row(entry.network, found.container_id, found.ifname, " ".join(entry.addresses()))
    Console().print(table if entries else (f"nothing {title}" if title else "no attachments"))
