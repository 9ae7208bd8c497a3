"""The address manager a configuration names: ours in this process, anybody else's executed from CNI_PATH.

Called by `dispatch`, which hands the result to plugins as the contract's `Ipam`. Imports the protocol and the table of
our own; a plugin sees only the interface.
"""

from __future__ import annotations

import os

from nodeplug.cni import protocol
from nodeplug.cni.contract import DelegateFailed, DelRequest, Result
from nodeplug.core import child, jsontext, paths
from nodeplug.core.errors import ConfigInvalid, Malformed, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.cni.contract import Plugin, Request

_PATIENCE = 100.0  # seconds; runtimes give up after two to four minutes


class InProcess:
    """One of our own address managers, on the same request with its own view of the configuration."""

    def __init__(self, plugin: type[Plugin], request: Request, data: dict[str, Any]) -> None:
        self._plugin = plugin()
        config = protocol.plugin_configuration(plugin.config, data, request.raw)
        changes: dict[str, Any] = {"config": config, "ipam": None}
        if "args" in request.__dict__:
            known = plugin.args if not isinstance(request, DelRequest) else ()  # as for the plugin's own
            changes["args"] = protocol.arguments(request.env.get("CNI_ARGS", ""), known)
        self._request: Any = request.replace(**changes)

    def add(self) -> Result:
        return _free(self._plugin.add(self._request))

    def leave(self) -> None:
        self._plugin.leave(self._request)

    def delete(self) -> None:
        # A rollback comes with the ADD's request, which has all that a DEL's has; the plugin reads no more.
        self._plugin.delete(self._request)

    def check(self) -> None:
        self._plugin.check(self._request)

    def gc(self) -> None:
        self._plugin.gc(self._request)

    def status(self) -> None:
        self._plugin.status(self._request)


class Executed:
    """A foreign address manager: the same environment and the same bytes on stdin, with the command changed."""

    def __init__(self, type: str, request: Request) -> None:
        self._type = type
        self._request = request

    def add(self) -> Result:
        stdout = self._run("ADD")
        try:
            found = jsontext.loads(stdout) or {}
        except Malformed as malformed:
            raise Unavailable(f"address manager {self._type} answered with what is no result: {malformed}") from None
        return _free(protocol.read_result(found, self._request.version, f"result of {self._type}"))

    def leave(self) -> None:
        pass  # the contract has one DEL, which comes when the link has gone

    def delete(self) -> None:
        self._run("DEL")

    def check(self) -> None:
        self._run("CHECK")

    def gc(self) -> None:
        if self._speaks_gc():
            self._run("GC")

    def status(self) -> None:
        if self._speaks_gc():
            self._run("STATUS")

    def _speaks_gc(self) -> bool:
        """Whether it lists 1.1.0, the first version with GC and STATUS; older ones refuse both."""
        found = jsontext.loads(self._run("VERSION"))
        versions = found.get("supportedVersions") if isinstance(found, dict) else None
        return isinstance(versions, list) and "1.1.0" in versions

    def _run(self, command: str) -> bytes:
        path = find(self._type, self._request.env.get("CNI_PATH", ""))
        env = {**self._request.env, "CNI_COMMAND": command}
        done = child.run([path], env=env, stdin=self._request.raw, timeout=_PATIENCE)
        if done.stderr:
            self._request.warn(f"{self._type}: {done.stderr.decode('utf-8', 'replace').strip()}")
        if done.code != 0:
            raise _failure(self._type, done)
        return done.stdout


def _free(given: Result) -> Result:
    """What the address manager gave, with nothing left of the reference plugins that a pod before had by it."""
    if given.ips and not os.path.lexists(paths.NO_REFERENCE):
        from nodeplug.cni.reference import sweep

        sweep.free({ip.address.ip.packed for ip in given.ips})
    return given


def find(type: str, search: str) -> str:
    """The executable of that name in the directories of `search` (CNI_PATH).

    Raises `ConfigInvalid` for a name that is a path, `Unavailable` when no directory has it.
    """
    if "/" in type or type in ("", ".", ".."):
        raise ConfigInvalid(f"ipam.type {type!r} is not a plugin's name", hint="name a file in CNI_PATH, without /")
    for directory in search.split(":"):
        path = os.path.join(directory, type)
        if directory and os.path.isfile(path):
            return path
    raise Unavailable(f"failed to find plugin {type!r} in path [{search}]", hint="install it there, or mend ipam.type")


def _failure(type: str, done: child.Finished) -> DelegateFailed:
    try:
        found = jsontext.loads(done.stdout)
    except Malformed:
        found = None
    if isinstance(found, dict) and isinstance(found.get("code"), int):
        return DelegateFailed(str(found.get("msg", "")), code=found["code"], details=str(found.get("details", "")))
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
    return DelegateFailed(f"address manager {type} ended with code {done.code}", code=999, details=said[:2000])
