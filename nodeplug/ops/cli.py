"""The commands of `nodeplug` that belong to no door: version, install, uninstall, demo."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

import nodeplug
from nodeplug.core.errors import ConfigInvalid, Error, TryAgain
from nodeplug.ops import shim, stage
from nodeplug.ops.install import Directory
from nodeplug.ops.place import Change, Door, Leaving
from nodeplug.worker import settings, world

if TYPE_CHECKING:
    from nodeplug.ops.shim import Kind

_CALLS = 30.0  # seconds for calls under way to end
_PAUSE = 2.0

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")


@click.command()
@as_json
def version(as_json: bool) -> None:
    """What is installed, and the versions of each contract it speaks."""
    found = {
        "nodeplug": nodeplug.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "contracts": contracts(),
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in ("nodeplug", "python", "kernel"):
        table.add_row(name, str(found[name]))
    for name, versions in contracts().items():
        table.add_row(name, ", ".join(versions))
    Console().print(table)


def contracts() -> dict[str, list[str]]:
    """The versions of each contract: the executed ones by their doors, the gRPC ones by the messages we have."""
    from nodeplug.cni.contract import VERSIONS

    package = Path(nodeplug.__file__).parent / "pb"
    spoken = {
        directory.name: sorted(file.name.removesuffix("_pb2.py") for file in directory.glob("*_pb2.py"))
        for directory in sorted(package.iterdir())
        if directory.is_dir() and directory.name != "__pycache__"
    }
    return {"cni": list(VERSIONS)} | spoken


def door(contract: str) -> Door:
    """What is installed for a contract."""
    if contract != "cni":
        raise ConfigInvalid(f"nothing can be installed for {contract!r}", hint="there is cni")
    from nodeplug.cni import lastwords, leaving
    from nodeplug.cni.dispatch import IPAM, PLUGINS
    from nodeplug.cni.reference import census

    client = tuple(f"worker/{name}.py" for name in ("__init__", "frames", "launcher", "wire"))
    calls, answer = lastwords.leaving()
    return Door(
        launcher="nodeplug-cni",
        parts=("core", "kernel", "cni", *client),
        module="nodeplug.cni.main",
        names=tuple(sorted({*PLUGINS, *IPAM})),
        socket=f"{settings.DIRECTORY}/cni.sock",
        absent=lastwords.absent(),
        replacing=census.announce,
        leaving=Leaving(
            calls=calls,
            answer=answer,
            attachments=cni_attachments,
            note=lambda directory, names: leaving.note(str(directory), names),
        ),
    )


def cni_attachments() -> dict[str, list[str]]:
    """Which pods still need which of our CNI plugins, with a pod's name where its runtime has told it."""
    from nodeplug.cni import live
    from nodeplug.harness.runtime.cache import Cache

    pods: dict[str, str] = {}
    for entry in Cache().entries():
        args = dict(entry.attachment.args)
        if "K8S_POD_NAME" in args:
            name = f"{args.get('K8S_POD_NAMESPACE', '')}/{args['K8S_POD_NAME']}"
            pods[f"{entry.network}/{entry.attachment.container_id}/{entry.attachment.ifname}"] = f"pod {name}, "
    found = live.attachments(patience=_CALLS)
    return {name: sorted(f"{pods.get(str(each), '')}{each}" for each in owners) for name, owners in found.items()}


@click.command()
@click.option("--own-runtime", is_flag=True, help="Use nodeplug's own runtime, as where containerd cannot be had.")
def demo(own_runtime: bool) -> int:
    """Three pods under a private containerd, networked by nodeplug; then the proof that nothing is left of them.

    Runs in namespaces of its own, needs root, and takes less than a minute.
    """
    from nodeplug.harness import enclosure

    def play() -> int:
        from nodeplug.ops.demo import scenario
        from nodeplug.ops.demo.show import Show

        try:
            return scenario.run(Show(), door=door("cni"), own_runtime=own_runtime)
        except Error as error:
            click.echo(f"error: {error}", err=True)
            return 1

    return enclosure.run(play)


destination = click.option(
    "--dest",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The directory the runtime looks in, such as /opt/cni/bin.",
)


host = click.option(
    "--host",
    "process",
    default="",
    metavar="/proc/1",
    help="In a container: a process of the host, on whose files to work. Its plugins are the shim alone, for a worker "
    "with the same `worker.host`; the host needs no Python.",
)


@click.group()
def install() -> None:
    """Put a contract's plugins where their caller looks for them."""


@install.command("cni")
@destination
@click.option("--only", default="", metavar="A,B", help="These plugins only.")
@click.option("--replace", is_flag=True, help="Put foreign files of these names aside; uninstall puts them back.")
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    default=stage.PYTHON,
    show_default=True,
    help="The interpreter that runs them.",
)
@click.option(
    "--shim",
    "kind",
    type=click.Choice(["auto", "c", "python"]),
    default="auto",
    show_default=True,
    help="What the files are: a small program that asks nodeplugd (c), Python that does (python), or what can be had.",
)
@host
@as_json
def install_cni(dest: Path, only: str, replace: bool, python: Path, kind: Kind, process: str, as_json: bool) -> None:
    """One file per network plugin, and .nodeplug/ beside them. Repeating it upgrades what is there."""
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    place, what = Directory(dest.absolute()), door("cni")
    if process:
        if kind == "python" or python != stage.PYTHON:
            raise ConfigInvalid("with --host nothing but the shim is installed", hint="leave --shim and --python out")
        program = shim.binary("c")  # while the compiler, or what was carried along, is in reach
        world.enter(process)
        changes = place.install(what, only=chosen, replace=replace, python=None, program=program)
    else:
        changes = place.install(what, only=chosen, replace=replace, python=python, kind=kind)
    _show(changes, dest, as_json=as_json)


@click.group()
def uninstall() -> None:
    """Take a contract's plugins out again, and put back what they replaced."""


@uninstall.command("cni")
@destination
@click.option("--only", default="", metavar="A,B", help="These plugins only.")
@click.option(
    "--drain",
    is_flag=True,
    help="Let plugins that pods still need go on for those pods alone; the last pod's DEL takes them out.",
)
@click.option("--wait", default=0.0, metavar="SECONDS", help="With --drain: wait so long for the last pod.")
@host
@as_json
def uninstall_cni(dest: Path, only: str, drain: bool, wait: float, process: str, as_json: bool) -> None:
    """Take out what install put there; files that are not nodeplug's stay.

    Plugins that no pod needs go at once. Those that one does are named with their pods, and stay, unless --drain.
    """
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    place, leaving = Directory(dest.absolute()), door("cni").leaving
    if process:
        world.enter(process)
    changes = place.uninstall(leaving, only=chosen, drain=drain)
    _show(changes, dest, as_json=as_json)
    left = {change.name for change in changes if change.what == "leaving"}
    deadline = time.monotonic() + wait
    while wait and (left := left & set(place.ours())):
        if time.monotonic() > deadline:
            raise TryAgain(f"pods still need {', '.join(sorted(left))}", hint="the DEL of the last one takes them out")
        time.sleep(_PAUSE)
        place.uninstall(leaving, only=sorted(left), drain=True)


def _show(changes: list[Change], dest: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps({"directory": str(dest), "plugins": {each.name: each.what for each in changes}}, indent=2)
        )
        return
    table = Table(title=str(dest), title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    for each in changes:
        table.add_row(each.name, each.what)
    Console().print(table)
