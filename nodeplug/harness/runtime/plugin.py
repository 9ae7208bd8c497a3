"""Plugins as executables: finding one on CNI_PATH, giving it its environment, and reading its answer or its error.

Called by `runtime`, once per plugin and command. The wire is the CNI specification's, sections 2 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core import child
from nodeplug.core.errors import ConfigInvalid, Error, NotFound, PermissionRefused, Refused, TimedOut
from nodeplug.harness.runtime import documents
from nodeplug.harness.runtime.config import NEWEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TIMEOUT = 120.0
"""Seconds that one plugin may take; kubelets give a whole sandbox two to four minutes."""

LIMIT = 1024 * 1024
"""Bytes that one plugin may write to stdout, and to stderr."""

_SHOWN = 400


class PluginFailed(Error):
    """A plugin ended with an error: `code`, `msg` and `details` as it printed them, `stderr` as it wrote it.

    `code` is 0 where it printed no error object; `msg` then says what was seen instead.
    """

    def __init__(self, plugin: str, command: str, *, code: int, msg: str, details: str = "", stderr: str = "") -> None:
        said = "; ".join(part for part in (msg, details) if part)
        super().__init__(f"plugin {plugin} failed on {command}" + (f" (code {code})" if code else "") + f": {said}")
        self.plugin = plugin
        self.command = command
        self.code = code
        self.msg = msg
        self.details = details
        self.stderr = stderr


@dataclass(frozen=True)
class Answered:
    """What a plugin said on success."""

    stdout: bytes
    stderr: str


def find(type: str, path: Sequence[Path]) -> Path:
    """The first regular file called `type` in the directories of `path`. Raises `NotFound`, `ConfigInvalid`."""
    if not type or "/" in type:
        raise ConfigInvalid(f"{type!r} cannot be a plugin's name")
    for directory in path:
        candidate = directory / type
        if candidate.is_file():
            return candidate
    raise NotFound(
        f"no plugin called {type!r} in {':'.join(map(str, path)) or 'an empty path'}",
        hint="install it there, or name its directory with --path",
    )


def call(
    type: str,
    command: str,
    stdin: bytes,
    *,
    path: Sequence[Path],
    env: Mapping[str, str],
    timeout: float = TIMEOUT,
) -> Answered:
    """Run one command of a plugin. `env` is the whole environment but CNI_COMMAND and CNI_PATH.

    Raises `PluginFailed` for an error of the plugin's own, `NotFound` where there is none, `TimedOut` for one that
    does not end, `Error` for one that cannot be run.
    """
    program = find(type, path)
    whole = {**env, "CNI_COMMAND": command, "CNI_PATH": ":".join(map(str, path))}
    try:
        finished = child.run([str(program)], env=whole, stdin=stdin, timeout=timeout, limit=LIMIT)
    except TimedOut:
        raise TimedOut(f"plugin {type} had not ended {command} after {timeout:g} s and was killed") from None
    except Refused as error:
        msg = f"it wrote more than {LIMIT} bytes to stdout or stderr and was killed"
        raise PluginFailed(type, command, code=0, msg=msg) from error
    except (NotFound, PermissionRefused) as error:
        hint = "the file may lack its execute bit, or its interpreter may be missing"
        raise Error(error.message, hint=hint) from error
    if finished.code != 0:
        raise _failure(type, command, finished)
    return Answered(finished.stdout, finished.stderr.decode("utf-8", "replace"))


def _failure(type: str, command: str, finished: child.Finished) -> PluginFailed:
    """The plugin's error object; stdout alone counts, stderr is its word only where stdout is empty."""
    stderr = finished.stderr.decode("utf-8", "replace")
    end = f"signal {-finished.code}" if finished.code < 0 else f"exit status {finished.code}"
    if not finished.stdout.strip():
        said = _shown(finished.stderr)
        msg = f"it ended with {end} and " + (f"wrote {said}" if said else "said nothing")
        return PluginFailed(type, command, code=0, msg=msg, stderr=stderr)
    try:
        fields = documents.Fields(documents.parse(finished.stdout, "its error"), "$")
        code, msg, details = fields.number("code") or 0, fields.text("msg"), fields.text("details")
    except ConfigInvalid as error:
        msg = f"it ended with {end}, and its stdout is no error object ({error}): {_shown(finished.stdout)}"
        return PluginFailed(type, command, code=0, msg=msg, stderr=stderr)
    return PluginFailed(type, command, code=code, msg=msg or "no message", details=details, stderr=stderr)


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def versions(type: str, *, path: Sequence[Path], env: Mapping[str, str], timeout: float = TIMEOUT) -> tuple[str, ...]:
    """The versions of the specification that a plugin says it speaks.

    One that does not know VERSION speaks 0.1.0; one that answers 0.2.0 alone speaks both of the oldest. Raises as
    `call`, and `ConfigInvalid` for an answer that cannot be read.
    """
    placeholders = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_CONTAINERID": "", "CNI_ARGS": ""}
    try:
        answer = call(
            type,
            "VERSION",
            documents.dump({"cniVersion": NEWEST}),
            path=path,
            env={**env, **placeholders},
            timeout=timeout,
        )
    except PluginFailed as error:
        if error.msg == "unknown CNI_COMMAND: VERSION":
            return ("0.1.0",)
        raise
    fields = documents.Fields(documents.parse(answer.stdout, f"the versions of plugin {type}"), "$")
    supported = fields.texts("supportedVersions")
    if supported:
        return supported
    if fields.text("cniVersion") == "0.2.0":
        return ("0.1.0", "0.2.0")
    raise ConfigInvalid(f"plugin {type} does not say which versions it supports")
