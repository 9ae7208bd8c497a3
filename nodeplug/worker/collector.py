"""The collection after a boot: what containers of the boot before left behind is given back, once.

Leases outlive a boot, and a runtime that lost its own memory of a pod never makes its DEL. A process of its own
(`nodeplugd --collect`, started by the worker) asks the runtime what it knows and has our plugins of each network
collect the rest. Without that list nothing is removed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nodeplug.cni import dispatch
from nodeplug.core import files
from nodeplug.core.call import Call
from nodeplug.core.errors import Malformed, Refused, Unavailable
from nodeplug.worker import collect, living, sandboxes, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodeplug.core.log import Log
    from nodeplug.worker.notes import Note
    from nodeplug.worker.settings import WorkerSettings

_LARGEST = 4 << 20
_PATIENCE = 600.0  # seconds for the runtime to come up
_PAUSE = 5.0
_TYPES = (".conflist", ".conf", ".json")


def run(settings: WorkerSettings, *, log: Log, note: Note) -> None:
    """Collect, as soon as the runtime lists its pods; nothing when that was done since the boot.

    Enters the namespaces of `settings.host` on the way. Raises `Unavailable` when the list cannot be had for ten
    minutes, or the traces of attachments not be read.
    """
    listed = _listed(settings, note)
    if settings.host:
        world.enter(settings.host)
    if collect.is_done():
        return
    boot = living.boot_time()
    for network, plugins in _networks(settings.collect.networks):
        ours = [config for config in plugins if _is_ours(str(config.get("type")), settings.collect.path)]
        if ours:
            _collect(_Network(network, plugins, ours), settings, listed, boot, log=log, note=note)
    collect.done()


def _listed(settings: WorkerSettings, note: Note) -> frozenset[str]:
    deadline = time.monotonic() + _PATIENCE
    root = f"{settings.host}/root" if settings.host else ""
    told = ""
    while True:
        try:
            return sandboxes.listed(sandboxes.find(settings.collect.runtime, root))
        except Unavailable as error:
            if str(error) != told:
                told = str(error)
                note(f"nothing is collected as yet: {told}")
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def _networks(directory: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each network that may be collected, with its plugins' configurations."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(_TYPES):
            continue
        try:
            found = json.loads(files.read_bounded(f"{directory}/{name}", _LARGEST))
        except (OSError, ValueError, Malformed):
            continue  # nor does a runtime use it
        if not isinstance(found, dict) or str(found.get("disableGC", "")).lower() == "true":
            continue
        plugins = found.get("plugins", [found])
        if isinstance(plugins, list) and isinstance(found.get("name"), str):
            yield found["name"], [plugin for plugin in plugins if isinstance(plugin, dict)]


@dataclass(frozen=True)
class _Network:
    """A network's plugins, and those of them whose files are ours, each as its configuration."""

    name: str
    plugins: list[dict[str, Any]]
    ours: list[dict[str, Any]]


def _collect(
    network: _Network, settings: WorkerSettings, listed: frozenset[str], boot: float, *, log: Log, note: Note
) -> None:
    lock, held = dispatch.whole_network(network.name)
    # Nobody adds to the network between the look at what lives and the removal of the rest.
    with lock:
        try:
            traces = living.traces(network.name, network.plugins, results=settings.collect.results)
        except OSError as error:
            raise Unavailable(f"network {network.name}: {error}", hint="nothing of it was removed") from error
        valid = living.valid(traces, listed=listed, boot=boot)
        kept = {(entry["containerID"], entry["ifname"]) for entry in valid}
        stale = {(trace.container, trace.ifname) for trace in traces} - kept
        env = {"CNI_COMMAND": "GC", "CNI_PATH": settings.collect.path, **held}
        for config in network.ours:
            document = {**config, "name": network.name, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}
            call = Call(contract="cni", name=config["type"], env=env, stdin=json.dumps(document).encode(), files={})
            answer = dispatch.answer(call, to=log)
            if answer.code != 0:
                said = answer.stdout.decode(errors="replace")
                raise Refused(f"GC of {config['type']} in network {network.name}: {said}")
    if stale:
        names = ", ".join(sorted({container[:12] for container, _ in stale})[:20])
        note(f"network {network.name}: collected what {len(stale)} attachments had left behind ({names})")


def _is_ours(name: str, search: str) -> bool:
    """Whether the plugin that a runtime finds under that name is a file of ours, which heeds our locks."""
    if name not in dispatch.PLUGINS:
        return False
    for directory in search.split(":"):
        path = f"{directory}/{name}"
        if directory and os.path.isfile(path):
            copies = [f"{directory}/.nodeplug/lib/{kind}" for kind in ("shim", "launcher")]
            return any(os.path.exists(copy) and os.path.samefile(copy, path) for copy in copies)
    return False
