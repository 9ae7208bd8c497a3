"""The executable: the process's arguments, environment and signals, handed to what serves."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import nodeplug
from nodeplug.core.errors import Error
from nodeplug.core.log import Log
from nodeplug.core.record import Record
from nodeplug.daemon import hygiene
from nodeplug.daemon.lifecycle import EXIT_FAILED, EXIT_OK, Event, Lifecycle, exit_code
from nodeplug.daemon.settings import open_log
from nodeplug.kernel import libc
from nodeplug.kms import settings
from nodeplug.kms.contract import Provider
from nodeplug.kms.daemon import Daemon, try_provider

_LOOK = 2.0  # seconds, for what `systemctl status` shows


def run(provider: type[Provider]) -> NoReturn:
    """Be the daemon of that provider: an author's own file calls this and nothing else."""
    sys.exit(_main(sys.argv[1:], os.environ, provider))


def main() -> NoReturn:
    """Be nodeplug-kms: the settings name the provider."""
    sys.exit(_main(sys.argv[1:], os.environ))


def _main(arguments: Sequence[str], environ: Mapping[str, str], provider: type[Provider] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nodeplug-kms", description="A KMS plugin for the Kubernetes API server, v2 and v1beta1 on one socket."
    )
    parser.add_argument(
        "--config", default=settings.CONFIG, metavar="FILE", help="settings in TOML (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="read the settings, try the provider once, and end")
    parser.add_argument("--version", action="version", version=f"nodeplug {nodeplug.__version__}")
    given = parser.parse_args(arguments)
    missed = hygiene.harden(libc)
    try:
        found = settings.load(given.config)
        parts = settings.provider_settings(found, given.config, provider)
        log = open_log(found.log, environ)
        if given.check:
            return _check(*parts, environ, log)
        with Lifecycle(environ) as life, Daemon(found, *parts, environ=environ, log=log) as daemon:
            for sentence in missed:
                daemon.note(sentence, level="warning")
            _live(life, daemon, found.drain)
        return EXIT_OK
    except Error as error:
        sys.stderr.write(f"nodeplug-kms: {error}\n")
        return exit_code(error)


def _live(life: Lifecycle, daemon: Daemon, drain: float) -> None:
    life.alive = lambda: daemon.alive
    said = daemon.status()
    life.ready(said)
    while (event := life.wait(_LOOK)) is not Event.STOP:
        if event is Event.RELOAD:
            life.reloading()
            daemon.reload()
            life.ready(daemon.status())
        elif daemon.status() != said:
            said = daemon.status()
            life.status(said)
    life.stopping()
    if not daemon.close(drain):
        daemon.note(f"calls that took longer than {drain:g} s were cut off", level="warning")


def _check(provider: type[Provider], own: Record, environ: Mapping[str, str], log: Log) -> int:
    """What a first Status would say, on stdout; the exit code says whether it is good."""
    view = try_provider(provider, own, environ=environ, log=log)
    sys.stdout.write(f"{view.healthz}: {view.key_id or 'no key is known'}\n")
    return EXIT_OK if view.healthz == "ok" else EXIT_FAILED
