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
from nodeplug.ops import flexplaces, kubelet, shim, stage
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


_CLIENT = tuple(f"worker/{name}.py" for name in ("__init__", "launcher"))


def door(contract: str) -> Door:
    """What is installed for a contract."""
    if contract not in _DOORS:
        raise ConfigInvalid(f"nothing can be installed for {contract!r}", hint=f"there is {', '.join(_DOORS)}")
    return _DOORS[contract]()


def _cni() -> Door:
    from nodeplug.cni import lastwords, leaving
    from nodeplug.cni.dispatch import IPAM, PLUGINS
    from nodeplug.cni.reference import census

    calls, answer = lastwords.leaving()
    return Door(
        launcher="nodeplug-cni",
        parts=("core", "kernel", "cni", *_CLIENT),
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


def _flexvolume() -> Door:
    from nodeplug.flexvolume import lastwords
    from nodeplug.volumes.service import DRIVERS

    return Door(
        launcher="nodeplug-flexvolume",
        parts=("core", "kernel", "volumes", "flexvolume", *_CLIENT),
        module="nodeplug.flexvolume.main",
        names=tuple(sorted(DRIVERS)),
        socket=f"{settings.DIRECTORY}/flexvolume.sock",
        absent=lastwords.absent(),
    )


_DOORS = {"cni": _cni, "flexvolume": _flexvolume}


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

    def play(ending: enclosure.Ending) -> int:
        from nodeplug.ops.demo import scenario
        from nodeplug.ops.demo.show import Show

        try:
            return scenario.run(Show(check=ending.check), door=door("cni"), own_runtime=own_runtime)
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


volume_plugins = click.option(
    "--dest",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="The directory the kubelet looks in; else what the running kubelet says, or its default.",
)
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=flexplaces.STORE,
    show_default=True,
    help="Where what drivers need is kept: not in the directory that the kubelet watches.",
)
interpreter = click.option(
    "--python",
    type=click.Path(path_type=Path),
    default=stage.PYTHON,
    show_default=True,
    help="The interpreter that runs them.",
)
shim_kind = click.option(
    "--shim",
    "kind",
    type=click.Choice(["auto", "c", "python"]),
    default="auto",
    show_default=True,
    help="What the files are: a small program that asks nodeplugd (c), Python that does (python), or what can be had.",
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
@interpreter
@shim_kind
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


@install.command("flexvolume")
@volume_plugins
@store_option
@click.option("--only", default="", metavar="A,B", help="These drivers only.")
@click.option("--replace", is_flag=True, help="Put foreign executables of these names aside; uninstall restores them.")
@interpreter
@shim_kind
@as_json
def install_flexvolume(
    dest: Path | None, store: Path, only: str, replace: bool, python: Path, kind: Kind, as_json: bool
) -> None:
    """One directory per driver, nodeplug.dev~NAME, in the kubelet's plugin directory. Repeating it upgrades them."""
    found = _plugin_directory(dest)
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    drivers = flexplaces.Drivers(found.path.absolute(), store=store.absolute())
    changes = drivers.install(door("flexvolume"), only=chosen, replace=replace, python=python, kind=kind)
    _show(changes, found.path, as_json=as_json, by=found.by)


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


@uninstall.command("flexvolume")
@volume_plugins
@store_option
@as_json
def uninstall_flexvolume(dest: Path | None, store: Path, as_json: bool) -> None:
    """Remove what install put there, unless volumes of it are published; what is not nodeplug's stays."""
    found = _plugin_directory(dest)
    changes = flexplaces.Drivers(found.path.absolute(), store=store.absolute()).uninstall()
    _show(changes, found.path, as_json=as_json, by=found.by)


def _plugin_directory(dest: Path | None) -> kubelet.Found:
    return kubelet.Found(dest, "") if dest is not None else kubelet.plugin_directory()


def _show(changes: list[Change], dest: Path, *, as_json: bool, by: str = "") -> None:
    """`by` says how the directory was found where nobody named it."""
    if as_json:
        told = {"directory": str(dest), **({"found": by} if by else {})}
        click.echo(json.dumps({**told, "plugins": {each.name: each.what for each in changes}}, indent=2))
        return
    Console().print(f"{dest} ({by})" if by else str(dest), style="italic", highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for each in changes:
        table.add_row(each.name, each.what)
    Console().print(table)
