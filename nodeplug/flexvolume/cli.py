"""`nodeplug flexvolume`: FlexVolume drivers, ours and others', looked at and tried out as a kubelet would.

Stands on `nodeplug.harness.kubelet.flexvolume`, which runs drivers as the kubelet does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nodeplug.core.errors import ConfigInvalid
from nodeplug.harness.kubelet.flexvolume import check as trial
from nodeplug.harness.kubelet.flexvolume.call import BARE_ENV, Caller
from nodeplug.harness.kubelet.flexvolume.prober import DIRECTORY, Prober

if TYPE_CHECKING:
    from collections.abc import Sequence

_STYLES = {"ok": "green", "fault": "bold red", "note": "yellow", "skipped": "dim"}
as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table.")


@click.group()
def cli() -> None:
    """FlexVolume drivers, in any language: which the kubelet would load, and what is wrong with one."""


@cli.command()
@click.argument("driver", type=click.Path(path_type=Path))
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the volume; repeatable.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME=VALUE", help="A secret of the volume; repeatable.")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or directory the driver logs to, to be searched for secrets; repeatable.",
)
@click.option("--patience", default=60.0, show_default=True, help="Seconds after which a call counts as hung.")
@as_json_option
def check(
    driver: Path,
    options: tuple[str, ...],
    secrets: tuple[str, ...],
    logs: tuple[Path, ...],
    patience: float,
    as_json: bool,
) -> int:
    """Try an executable out as kubelets would use and misuse it, and say what is wrong with it.

    Needs root. What it mounts stays in a mount namespace of this command; what it makes elsewhere is its own. The exit
    status is 1 when there are faults.
    """
    given = _pairs(options, "--option")
    hidden = {name: value.encode() for name, value in _pairs(secrets, "--secret").items()}
    trial.enclose()
    found = trial.run(driver, options=given, secrets=hidden, logs=logs, patience=patience)
    faults = sum(finding.verdict == "fault" for finding in found)
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in found], indent=2))
    else:
        table = Table(
            "rule", "", "what was seen", title=str(driver), title_justify="left", box=None, padding=(0, 2, 0, 0)
        )
        for finding in found:
            table.add_row(finding.rule, Text(finding.verdict, style=_STYLES[finding.verdict]), Text(finding.what))
        console = Console()
        console.print(table)
        console.print(f"{faults} faults" if faults else "no faults", style=_STYLES["fault" if faults else "ok"])
    return 1 if faults else 0


@cli.command()
@click.option(
    "--dest",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY,
    show_default=True,
    help="The directory the kubelet looks in.",
)
@click.option("--bare", is_flag=True, help="Without any environment, as controller managers may run them.")
@as_json_option
def probe(dest: Path, bare: bool, as_json: bool) -> None:
    """Which drivers a kubelet that starts now would load from a directory, and which it could not."""
    if not dest.is_dir():
        raise ConfigInvalid(f"there is no directory {dest}", hint="--dest names another")
    with Prober(dest, caller=Caller(env=BARE_ENV) if bare else Caller()) as prober:
        outcomes = prober.refresh()
        found: list[dict[str, Any]] = []
        for outcome in outcomes:
            driver = outcome.name.replace("~", "/")
            plugin = prober.plugins.get(driver)
            capabilities = vars(plugin.capabilities) if plugin is not None else None
            found.append({"driver": driver, "capabilities": capabilities, "error": outcome.error})
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("driver", "capabilities", box=None, padding=(0, 2, 0, 0))
    for entry in found:
        said = entry["error"] or ", ".join(name for name, value in entry["capabilities"].items() if value) or "none"
        table.add_row(entry["driver"], Text(said, style=_STYLES["fault"] if entry["error"] else ""))
    Console().print(table if found else f"no drivers in {dest}")


def _pairs(given: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigInvalid(f"{option} {pair.partition('=')[0]!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs
