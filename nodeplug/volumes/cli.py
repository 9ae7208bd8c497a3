"""`nodeplug volume ...`: the volumes of this node, how they are, and what is left over. Needs no daemon."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nodeplug.core import config, paths
from nodeplug.core.errors import Error, NotFound
from nodeplug.kernel import mount
from nodeplug.volumes.contract import Published
from nodeplug.volumes.imagefile import images_of
from nodeplug.volumes.images import below
from nodeplug.volumes.policy import Policy
from nodeplug.volumes.service import Service
from nodeplug.volumes.sizes import shown

_settings = click.option(
    "--config", "settings", default=paths.ETC, show_default=True, metavar="DIR", help="Where the node's settings are."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")


@click.group()
def cli() -> None:
    """Volumes of this node: what pods have, how it is, and what is left over."""


@cli.command("list")
@_settings
@_as_json
def list_(settings: str, as_json: bool) -> None:
    """Every volume that the node knows of, oldest first."""
    service = _service(settings)
    found = service.published()
    if as_json:
        click.echo(json.dumps([_described(service, each) for each in found], indent=2))
        return
    if not found:
        click.echo("no volumes")
        return
    table = Table("volume", "driver", "pod", "size", "used", "state", "target", box=None, pad_edge=False)
    for each in found:
        known = _described(service, each)
        size, used = (shown(known[name]) if name in known else "" for name in ("total", "used"))
        pod = f"{each.pod.namespace}/{each.pod.name}"
        table.add_row(each.volume, each.driver, pod, size, used, known["state"], each.target)
    _print(table)


@cli.command()
@click.argument("volume")
@_settings
@_as_json
def inspect(volume: str, settings: str, as_json: bool) -> None:
    """All that is known of one volume, named by its target or by its id."""
    service = _service(settings)
    published = _named(service, volume)
    known = _described(service, published)
    known["options"] = dict(published.options)
    known["steps"] = [{"step": type(step).__name__, **step.__dict__} for step in published.steps]
    there = mount.find(published.target)
    if there is not None:
        known["mount"] = {
            "type": there.fstype,
            "source": there.source,
            "root": there.root,
            "options": list(there.options),
            "super_options": list(there.super_options),
        }
    if as_json:
        click.echo(json.dumps(known, indent=2))
        return
    lines = list(_lines(known))
    width = max(len(name) for name, _ in lines)
    for name, line in lines:
        click.echo(f"{name:<{width}}  {line}")


def _lines(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in known.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", _plain(inner, part)) for inner, part in value.items())
        elif name == "steps":
            for number, step in enumerate(value):
                yield from ((f"steps[{number}].{inner}", _plain(inner, part)) for inner, part in step.items())
        else:
            yield name, _plain(name, value)


@cli.command()
@_settings
@_as_json
def images(settings: str, as_json: bool) -> None:
    """Image files, and the volumes that have them. A node's are kept until `remove-image`."""
    service = _service(settings)
    users: dict[str, list[str]] = {}
    for each in service.published():
        for path in images_of(each):
            users.setdefault(path, []).append(each.target)
    found = below(service.policy.loop.directory)
    if as_json:
        click.echo(json.dumps([{**each.__dict__, "volumes": users.get(each.path, [])} for each in found], indent=2))
        return
    if not found:
        click.echo("no images")
        return
    table = Table("image", "file system", "size", "on disk", "volumes", box=None, pad_edge=False)
    for image in found:
        table.add_row(image.path, image.fs, shown(image.size), shown(image.used), ", ".join(users.get(image.path, [])))
    _print(table)


@cli.command("remove-image")
@click.argument("image", metavar="NAMESPACE/NAME")
@_settings
def remove_image(image: str, settings: str) -> None:
    """Remove a node's image with all that is in it. Refused while a volume has it."""
    namespace, _, name = image.partition("/")
    _service(settings).remove_image(namespace, name)
    click.echo(f"removed {image}")


@cli.command()
@click.option("--apply", is_flag=True, help="Remove it; without this nothing is changed.")
@_settings
@_as_json
def gc(apply: bool, settings: str, as_json: bool) -> int:
    """What kill -9, a reboot or a vanished pod left over. Ends with 1 when some of it could not be removed."""
    found = _service(settings).collect(apply=apply)
    if as_json:
        click.echo(json.dumps([each.__dict__ for each in found], indent=2))
    elif not found:
        click.echo("nothing is left over")
    else:
        table = Table("what", "name", "reason", "", box=None, pad_edge=False)
        for each in found:
            table.add_row(each.kind, each.name, each.reason, "removed" if each.removed else "left" if apply else "")
        _print(table)
        if not apply:
            click.echo("nothing was changed; --apply removes what can be")
    return 1 if any("cannot be removed" in each.reason for each in found) else 0


def _service(settings: str) -> Service:
    policy = config.section(Policy, config.load(settings), "volumes", settings)
    return Service(policy, warn=lambda sentence: click.echo(f"warning: {sentence}", err=True))


def _named(service: Service, volume: str) -> Published:
    for each in service.published():
        if volume in (each.target, each.id):
            return each
    raise NotFound(f"there is no volume {volume!r}", hint="`nodeplug volume list` shows those there are")


def _described(service: Service, published: Published) -> dict[str, Any]:
    """What is known of it, as JSON has it; sizes only where the volume can be asked."""
    known: dict[str, Any] = {
        "id": published.id,
        "driver": published.driver,
        "volume": published.volume,
        "target": published.target,
        "pod": dict(published.pod.__dict__),
        "read_only": published.read_only,
        "fs_group": published.fs_group,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(published.created)),
        "mounted": published.mounted,
        "state": _state(service, published),
    }
    try:
        held = service.stats(published.target)
    except Error:
        return known
    return known | held.__dict__


def _state(service: Service, published: Published) -> str:
    if not published.device:
        return "unfinished"
    if not published.mounted:
        return "not mounted"
    try:
        health = service.health(published.target)
    except Error as error:
        return str(error)
    return "well" if health.ok else health.reason


def _plain(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name in ("mode", "keyMode") and isinstance(value, int):
        return f"{value:04o}"
    if name in ("size", "total", "available", "used", "floor") and isinstance(value, int):
        return shown(value)
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value) or "-"
    return str(value) if value != "" else "-"


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 250).print(table)
