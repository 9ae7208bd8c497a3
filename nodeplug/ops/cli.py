"""The commands of `nodeplug` that belong to no door: version, install, uninstall, demo."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

import nodeplug
from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.ops import flexplaces, kubelet, stage
from nodeplug.ops.install import Change, Directory, Door
from nodeplug.worker import settings

if TYPE_CHECKING:
    from nodeplug.ops.shim import Kind

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


_CLIENT = tuple(f"worker/{name}.py" for name in ("__init__", "frames", "launcher", "wire"))


def door(contract: str) -> Door:
    """What is installed for a contract."""
    if contract not in _DOORS:
        raise ConfigInvalid(f"nothing can be installed for {contract!r}", hint=f"there is {', '.join(_DOORS)}")
    return _DOORS[contract]()


def _cni() -> Door:
    from nodeplug.cni import lastwords
    from nodeplug.cni.dispatch import IPAM, PLUGINS

    return Door(
        launcher="nodeplug-cni",
        parts=("core", "kernel", "cni", *_CLIENT),
        module="nodeplug.cni.main",
        names=tuple(sorted({*PLUGINS, *IPAM})),
        socket=f"{settings.DIRECTORY}/cni.sock",
        absent=lastwords.absent(),
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


@click.group()
def install() -> None:
    """Put a contract's plugins where their caller looks for them."""


@install.command("cni")
@destination
@click.option("--only", default="", metavar="A,B", help="These plugins only.")
@click.option("--replace", is_flag=True, help="Put foreign files of these names aside; uninstall puts them back.")
@interpreter
@shim_kind
@as_json
def install_cni(dest: Path, only: str, replace: bool, python: Path, kind: Kind, as_json: bool) -> None:
    """One file per network plugin, and .nodeplug/ beside them. Repeating it upgrades what is there."""
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    changes = Directory(dest.absolute()).install(door("cni"), only=chosen, replace=replace, python=python, kind=kind)
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
@as_json
def uninstall_cni(dest: Path, as_json: bool) -> None:
    """Remove what install put there; files that are not nodeplug's stay."""
    _show(Directory(dest.absolute()).uninstall(), dest, as_json=as_json)


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
