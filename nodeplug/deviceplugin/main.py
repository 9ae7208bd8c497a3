"""The executable: the process's arguments, environment and signals, handed to what serves."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import nodeplug
from nodeplug.core import config, document
from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.daemon.lifecycle import EXIT_OK, Event, Lifecycle, exit_code
from nodeplug.daemon.settings import open_log
from nodeplug.deviceplugin.contract import Source
from nodeplug.deviceplugin.daemon import Daemon
from nodeplug.deviceplugin.settings import CONFIG, KUBELET_DIR, Settings, check, load

_DRAIN = 5.0
_STEP = 0.1  # seconds
_MOST_STEPS = 20


def run(source: type[Source]) -> NoReturn:
    """Be the plugin of that class: an author's own file calls this and nothing else."""
    sys.exit(_main(sys.argv[1:], os.environ, source))


def main() -> NoReturn:
    """Be nodeplug-deviceplugin: the settings name the resources."""
    sys.exit(_main(sys.argv[1:], os.environ))


def _main(arguments: Sequence[str], environ: Mapping[str, str], source: type[Source] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nodeplug-deviceplugin", description="Any device on the node as a schedulable resource."
    )
    parser.add_argument(
        "--config",
        default=None if source else CONFIG,
        metavar="FILE",
        help="settings in TOML, read again when they change" + ("" if source else " (default: %(default)s)"),
    )
    parser.add_argument(
        "--kubelet-dir", default=KUBELET_DIR, metavar="DIR", help="the kubelet's directory (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="read the settings, tell every problem, and end")
    parser.add_argument("--version", action="version", version=f"nodeplug {nodeplug.__version__}")
    given = parser.parse_args(arguments)
    try:
        settings = _settings(given.config, source)
        if given.check:
            return EXIT_OK
        log = open_log(settings.log, environ)
        running: list[Daemon] = []
        with Lifecycle(environ, alive=lambda: all(daemon.alive for daemon in running)) as life:
            served = Daemon(
                settings,
                kubelet_dir=given.kubelet_dir,
                log=log,
                source=given.config or "",
                read=lambda: _settings(given.config, source),
            )
            running.append(served)
            try:
                _live(life, served, given.config)
            finally:
                life.stopping()
                served.close(_DRAIN)
        return EXIT_OK
    except Error as error:
        sys.stderr.write(f"nodeplug-deviceplugin: {error}\n")
        return exit_code(error)


def _settings(path: str | None, source: type[Source] | None) -> Settings:
    """The settings of a file; for an author's class without one, those the class carries."""
    if source is None:
        assert path is not None
        return load(path)
    table: dict[str, object] = config.read(path) if path else {}
    own = table.get("deviceplugin", {})
    name = f"{source.__module__}:{source.__qualname__}"
    resource = {**source.settings, "name": source.resource, "match": [{"type": {"class": name}}]}
    if isinstance(own, dict):
        own = {**own, "resource": [resource, *own.get("resource", [])]}
    try:
        settings = document.decode(Settings, own, path="deviceplugin")
    except ConfigInvalid as invalid:
        raise ConfigInvalid(f"the settings of {name} are not valid", problems=invalid.problems) from None
    check(settings, name)
    return settings


def _live(life: Lifecycle, served: Daemon, path: str | None) -> None:
    seen = _stamp(path)

    def look() -> None:
        nonlocal seen
        now = _stamp(path)
        if now != seen:
            seen = now
            life.post(Event.RELOAD)

    if path:
        served.watch.listen(look)
    life.ready(served.status())
    while (event := life.wait(30.0)) is not Event.STOP:
        if event is Event.RELOAD and path:
            life.reloading()
            _settle(path)
            served.reload()
            life.ready(served.status())
        else:
            life.status(served.status())


def _settle(path: str) -> None:
    """Wait until the file has stopped changing: an editor that writes in place leaves it empty for a moment, and a file
    without resources would withdraw them all."""
    before = _stamp(path)
    for _ in range(_MOST_STEPS):
        time.sleep(_STEP)
        now = _stamp(path)
        if now == before:
            return
        before = now


def _stamp(path: str | None) -> tuple[int, ...]:
    """What changes when the file does, also when it is a link into a directory that was replaced (a ConfigMap)."""
    try:
        status = os.stat(path or "")
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
