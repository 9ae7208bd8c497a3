"""`nodeplug device ...`: what would be published and why, and what is. Needs no running daemon for the first two."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nodeplug.core.document import reference
from nodeplug.core.errors import Error, NotFound
from nodeplug.deviceplugin import podresources
from nodeplug.deviceplugin.allocation import given_nodes
from nodeplug.deviceplugin.kubelet import KUBELET_SOCKET
from nodeplug.deviceplugin.settings import CONFIG, KUBELET_DIR, Resource, Settings, host_of, load
from nodeplug.deviceplugin.statefile import read_state, state_path
from nodeplug.devices.contract import Device
from nodeplug.devices.discovery import Discovery

_config = click.option(
    "--config", default=CONFIG, show_default=True, metavar="FILE", help="The daemon's settings file."
)
_kubelet = click.option(
    "--kubelet-dir", default=KUBELET_DIR, show_default=True, metavar="DIR", help="The kubelet's directory."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")
_POLLED = 3.0


@click.group()
def cli() -> None:
    """Devices as schedulable resources: what matches, what is published, who has it."""


@contextmanager
def _looking(settings: Settings) -> Iterator[Discovery]:
    """A discovery of our own that has looked once. It makes no links: those are the daemon's."""
    discovery = Discovery(host_of(settings), keep_links=False)
    discovery.start()
    try:
        discovery.follow(resource.spec for resource in settings.resource)
        discovery.wait_polled(_POLLED)
        yield discovery
    finally:
        discovery.close()


@cli.command()
@_config
@_as_json
def discover(config: str, as_json: bool) -> None:
    """What would be published with these settings, and which rule found it."""
    settings = load(config)
    found = []
    with _looking(settings) as discovery:
        for resource in settings.resource:
            for device in discovery.publisher(resource.name).current.devices:
                found.append(_described(resource, device))
            for double in discovery.doubles(resource.name):
                entry = _described(resource, double.device)
                found.append({**entry, "health": "not published", "reason": f"is {double.same_as} already"})
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("resource", "device", "health", "nodes", "numa", "rule", box=None, padding=(0, 2, 0, 0))
    for entry in found:
        health = entry["health"] + (f" ({entry['reason']})" if entry["reason"] else "")
        numa = ",".join(map(str, entry["numa"]))
        table.add_row(entry["resource"], entry["id"], health, "\n".join(entry["nodes"]), numa, entry["rule"])
    Console().print(table if found else "nothing matches; `nodeplug device explain PATH` says why a node does not")


def _described(resource: Resource, device: Device) -> dict[str, Any]:
    return {
        "resource": resource.name,
        "id": device.id,
        "replicas": resource.share.replicas,
        "health": "healthy" if device.healthy else "unhealthy",
        "reason": device.reason,
        "nodes": [node.container for node in given_nodes(resource, device, 0)]
        or [device.properties.get("interface", "")],
        "host": [node.real or node.host for node in device.nodes],
        "numa": list(device.numa),
        "rule": resource.match[device.rule].shown,
        "properties": dict(device.properties),
    }


@cli.command(name="list")
@_config
@_kubelet
@_as_json
def list_(config: str, kubelet_dir: str, as_json: bool) -> None:
    """What the daemon has published: health and since when, and which pod has it."""
    settings = load(config)
    path = state_path(settings, config)
    state = read_state(path)
    if state is None:
        raise NotFound(
            f"no daemon has left its state in {path}", hint="start nodeplug-deviceplugin with these settings"
        )
    socket = os.path.join(kubelet_dir, "pod-resources", KUBELET_SOCKET)
    try:
        held = podresources.ask(socket)
        unknown = ""
    except Error as error:
        held, unknown = {}, str(error)
    rows = []
    for resource in state["resources"]:
        holders = held.get(resource["name"], {})
        for device in resource["devices"]:
            pods = [f"{who.namespace}/{who.pod} ({who.container})" for who in holders.get(device["id"], ())]
            rows.append({"resource": resource["name"], "registered": resource["registered"], **device, "pods": pods})
    if as_json:
        click.echo(json.dumps({"devices": rows, "podresources": unknown or "ok"}, indent=2))
        return
    table = Table("resource", "device", "health", "since", "pods", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        health = row["health"] + (f" ({row['reason']})" if row["reason"] else "")
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"]))
        table.add_row(row["resource"], row["id"], health, since, "?" if unknown else "\n".join(row["pods"]) or "-")
    console = Console()
    console.print(table)
    for resource in state["resources"]:
        if not resource["registered"]:
            console.print(f"{resource['name']} is not registered: {resource['trouble']}")
    if unknown:
        console.print(f"who has what is not known: {unknown}")


@cli.command()
@click.argument("path")
@_config
@_as_json
def explain(path: str, config: str, as_json: bool) -> None:
    """Why the node (or network interface, or PCI address) PATH is or is not a device, rule by rule."""
    settings = load(config)
    lines = []
    with _looking(settings) as discovery:
        for resource in settings.resource:
            devices = discovery.publisher(resource.name).current.devices
            mine = [device for device in devices if path in {name for n in device.nodes for name in (n.host, n.real)}]
            doubles = [
                double for double in discovery.doubles(resource.name) if path in {n.real for n in double.device.nodes}
            ]
            for shown, why in discovery.explain(resource.name, path):
                lines.append({"resource": resource.name, "rule": shown, "why": why})
            for device in mine:
                health = "healthy" if device.healthy else f"unhealthy: {device.reason}"
                lines.append({"resource": resource.name, "rule": "", "why": f"published as {device.id}, {health}"})
            for double in doubles:
                lines.append(
                    {"resource": resource.name, "rule": "", "why": f"not published again: it is {double.same_as}"}
                )
    if as_json:
        click.echo(json.dumps(lines, indent=2))
        return
    for line in lines:
        click.echo(f"{line['resource']}: {line['rule'] + ': ' if line['rule'] else ''}{line['why']}")


@cli.command()
def settings() -> None:
    """Every key of the settings file, its default and meaning."""
    click.echo(reference(Settings, "deviceplugin"))
