"""The executable nodeplugd: the process's arguments, environment and signals, handed to what serves."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

import nodeplug
from nodeplug.cni import main as cni_main
from nodeplug.core import config, paths
from nodeplug.core.errors import Error
from nodeplug.core.log import Event as LogEvent
from nodeplug.daemon.hygiene import PR_SET_DUMPABLE
from nodeplug.daemon.lifecycle import EXIT_OK, Event, Lifecycle, exit_code
from nodeplug.daemon.settings import open_log
from nodeplug.kernel import libc
from nodeplug.worker import chores, collect, doors, settings, world
from nodeplug.worker.daemon import Daemon, preload_pages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nodeplug.core.chore import Chore
    from nodeplug.core.log import Level, Log
    from nodeplug.worker.settings import WorkerSettings

_FILES = 65536


def main() -> NoReturn:
    """Be nodeplugd."""
    sys.exit(_main(sys.argv[1:], os.environ))


def _main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(
        prog="nodeplugd", description="Answers the calls of executed plugins from a process that is already warm."
    )
    parser.add_argument(
        "--config", default=paths.ETC, metavar="DIR", help="where settings are, in TOML (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="read the settings and end")
    parser.add_argument("--collect", action="store_true", help="do the collection after a boot, and end")
    parser.add_argument("--version", action="version", version=f"nodeplug {nodeplug.__version__}")
    given = parser.parse_args(arguments)
    try:
        node = config.load(given.config)
        found = settings.read(node, given.config)
        kept = chores.load(found.chores, node)
        if given.check:
            return EXIT_OK
        for door in doors.DOORS.values():
            doors.preload(door)
        if found.health.listen:
            preload_pages()
        _prepare_process()
        log = open_log(found.log, environ)
        if given.collect:
            return _collect(found, log)
        # Before the host is entered, where this program is not to be found.
        collector = _start_collector(given.config) if collect.is_due(found) else None
        try:
            if found.host:
                world.enter(found.host)
            if collector is not None:
                threading.Thread(target=collector.wait, name="collect", daemon=True).start()
            return _live(found, kept, environ, given.config, log)
        finally:
            if collector is not None:
                collector.terminate()
                collector.wait()
    except Error as error:
        sys.stderr.write(f"nodeplugd: {error}\n")
        return exit_code(error)


def _prepare_process() -> None:
    """What the plugins' code expects of its process, which for an executed plugin its runtime sees to."""
    gc.freeze()  # what was imported stays, and need not be looked through again and again
    os.umask(0o022)
    os.chdir("/")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    libc.prctl(PR_SET_DUMPABLE, 0)  # secrets of volumes and keys of identities pass through its memory
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _start_collector(directory: str) -> subprocess.Popen[bytes]:
    """The collection as a process of its own, which ends by itself."""
    program = os.path.abspath(sys.argv[0])
    return subprocess.Popen(
        [sys.executable, "-I", program, "--config", directory, "--collect"], stdin=subprocess.DEVNULL
    )


def _collect(found: WorkerSettings, log: Log) -> int:
    from nodeplug.worker import collector

    def note(message: str, *, level: Level = "info") -> None:
        log.write(LogEvent(contract="worker", op="collect", level=level, outcome="note", message=message))

    try:
        collector.run(found, log=cni_main.open_log(), note=note)
    except Error as error:
        note(f"not everything was collected: {error}", level="error")
        return exit_code(error)
    return EXIT_OK


def _live(found: WorkerSettings, kept: list[Chore], environ: Mapping[str, str], directory: str, log: Log) -> int:
    with Lifecycle(environ) as life, Daemon(found, world.World.own(), kept, log=log) as daemon:
        life.alive = lambda: daemon.alive
        life.ready(daemon.status())
        while (event := life.wait()) is not Event.STOP:
            if event is Event.RELOAD:
                life.reloading()
                _reload(daemon, found, directory, environ)
                life.ready(daemon.status())
        life.stopping()
        in_time = daemon.close(found.drain)
        if not in_time:
            daemon.note(f"calls that took longer than {found.drain:g} s were cut off", level="warning")
    if not in_time:
        os._exit(EXIT_OK)  # threads that still work have nobody left to answer, and their locks end with the process
    return EXIT_OK


def _reload(daemon: Daemon, before: WorkerSettings, directory: str, environ: Mapping[str, str]) -> None:
    """Take up the settings of logs; the others are those of the start."""
    try:
        now = settings.load(directory)
        daemon.reload(open_log(now.log, environ))
    except Error as error:
        daemon.note(f"the settings stay as they were: {error}", level="error")
        return
    if now.replace(log=before.log) != before:
        daemon.note("settings other than those of logs take effect with the next start", level="warning")
