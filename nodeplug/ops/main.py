"""`nodeplug`: one command for all doors; each group is imported when it is used.

Errors of the house end here: a sentence on stderr, or an object on stdout with `--json`, and an exit status that
scripts can tell apart.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from nodeplug.core.errors import (
    ConfigInvalid,
    Error,
    PermissionRefused,
    TimedOut,
    TryAgain,
    VersionUnsupported,
    code_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "version": ("nodeplug.ops.cli:version", "What is installed, and the versions of each contract it speaks."),
    "demo": ("nodeplug.ops.cli:demo", "Three pods under a private containerd, networked by nodeplug."),
    "install": ("nodeplug.ops.cli:install", "Put a contract's plugins where their caller looks for them."),
    "uninstall": ("nodeplug.ops.cli:uninstall", "Take them out again, and put back what they replaced."),
}
DOORS = {
    "cni": ("nodeplug.cni.cli:cli", "Run network plugins as a container runtime does; collect what was left behind."),
    "flexvolume": (
        "nodeplug.flexvolume.cli:cli",
        "FlexVolume drivers in any language: what a kubelet makes of them, and what is wrong.",
    ),
    "device": ("nodeplug.deviceplugin.cli:cli", "Devices of this node: what is found, offered and in use, and why."),
    "identity": (
        "nodeplug.volumes.identity.cli:cli",
        "Identities of pods: the node's authority that signs them, and the roots above.",
    ),
    "kms": ("nodeplug.kms.cli:cli", "The key management service: keys, their rotation, their copies."),
    "volume": ("nodeplug.volumes.cli:cli", "Volumes of pods: what there is, how it is, and what is left over."),
}
_ALL = COMMANDS | DOORS

# After sysexits(3), where it has a number: usage, temporary failure, permission.
EXIT: dict[type[BaseException], int] = {
    Error: 1,
    ConfigInvalid: 2,
    VersionUnsupported: 2,
    TryAgain: 75,
    TimedOut: 75,
    PermissionRefused: 77,
}
INTERRUPTED = 130


class Doors(click.Group):
    """The top-level group: our own commands, and each door's."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_ALL)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        return _load(_ALL[name][0]) if name in _ALL else None

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_where, text) in _ALL.items()])


def _load(where: str) -> click.Command:
    module, _, name = where.partition(":")
    found: click.Command = getattr(importlib.import_module(module), name)
    return found


@click.command(cls=Doors, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Everything below the kubelet: plugins for each node contract, and the other side of each to try them on."""


def run(arguments: Sequence[str]) -> int:
    """The command; returns its exit status and never raises, so that nobody has to read a traceback."""
    try:
        outcome: Any = cli.main(args=list(arguments), prog_name="nodeplug", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Error as error:
        _tell(error, as_json="--json" in arguments)
        return code_of(error, EXIT)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; the interpreter would complain when it flushes
        return 1
    return outcome if isinstance(outcome, int) else 0


def _tell(error: Error, *, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {"error": type(error).__name__, "message": error.message}
        told |= {key: value for key, value in error.__dict__.items() if key in _TOLD and value}
        click.echo(json.dumps(told, indent=2, default=str))
        return
    click.echo(f"error: {error.message}", err=True)
    for path, sentence in getattr(error, "problems", ()):
        click.echo(f"  {path}: {sentence}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    said = getattr(error, "stderr", "").strip()
    if said:
        click.echo("the plugin also wrote:\n" + "\n".join(f"  {line}" for line in said.splitlines()), err=True)


_TOLD = ("hint", "problems", "plugin", "command", "code", "msg", "details", "stderr")


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
