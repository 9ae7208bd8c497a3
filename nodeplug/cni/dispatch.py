"""One CNI call from variables to answer: gate, open the namespace, call the plugin, translate.

`answer(call)` is the door. It keeps no state of the process: the worker calls it from many threads. Plugins are reached
through static tables and imported when they are called for.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from nodeplug.cni import protocol
from nodeplug.cni.contract import (
    AddRequest,
    AttachmentRequest,
    CheckRequest,
    DelRequest,
    GcRequest,
    NetnsInvalid,
    Request,
    StatusRequest,
)
from nodeplug.cni.delegate import Executed, InProcess
from nodeplug.core import company, errors, files, log, paths
from nodeplug.core.call import Answer
from nodeplug.core.errors import ConfigInvalid, Error, Internal
from nodeplug.core.naming import digest
from nodeplug.core.record import Record
from nodeplug.core.undo import Undo
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netns import Netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nodeplug.cni.contract import Plugin
    from nodeplug.core.call import Call

PLUGINS = {
    "bandwidth": "nodeplug.cni.plugins.bandwidth.plugin:Bandwidth",
    "bridge": "nodeplug.cni.plugins.bridge.plugin:Bridge",
    "dummy": "nodeplug.cni.plugins.dummy:Dummy",
    "firewall": "nodeplug.cni.plugins.firewall.plugin:Firewall",
    "host-device": "nodeplug.cni.plugins.hostdevice.plugin:HostDevice",
    "ipvlan": "nodeplug.cni.plugins.ipvlan:Ipvlan",
    "loopback": "nodeplug.cni.plugins.loopback:Loopback",
    "macvlan": "nodeplug.cni.plugins.macvlan:Macvlan",
    "portmap": "nodeplug.cni.plugins.portmap:Portmap",
    "ptp": "nodeplug.cni.plugins.ptp.plugin:Ptp",
    "sbr": "nodeplug.cni.plugins.sbr.plugin:Sbr",
    "tap": "nodeplug.cni.plugins.tap:Tap",
    "tuning": "nodeplug.cni.plugins.tuning.plugin:Tuning",
    "vlan": "nodeplug.cni.plugins.vlan:Vlan",
    "vrf": "nodeplug.cni.plugins.vrf.plugin:Vrf",
}
IPAM = {
    "dhcp": "nodeplug.cni.ipam.dhcp.plugin:Dhcp",
    "host-local": "nodeplug.cni.ipam.host_local:HostLocal",
    "static": "nodeplug.cni.ipam.static:Static",
}

# Tells an executed delegate what its caller has locked, which it would wait for in vain.
_HELD = "NODEPLUG_CNI_LOCKED"
_LONGEST_FILE_NAME = 255


def answer(call: Call, *, to: log.Log, plugin: type[Plugin] | None = None) -> Answer:
    """Serve one call, and tell `to` of it. `plugin` is what runs; without it, the one of ours that `call.name` names.

    No error leaves it except `Stranded`, after which the calling thread must end.
    """
    return _Service(call, to, plugin).answer()


def refuse(error: Error, command: str) -> Answer:
    """The answer to a call that could not even be taken from its process."""
    return Answer(code=1, stdout=protocol.write_error(error, command, ""))


def implementation(name: str) -> type[Plugin]:
    """One of our own plugins. Raises `ConfigInvalid` when there is none of that name."""
    where = PLUGINS.get(name) or IPAM.get(name)
    if where is None:
        known = ", ".join(sorted((*PLUGINS, *IPAM)))
        raise ConfigInvalid(f"nodeplug has no CNI plugin {name!r}", hint=f"it has {known}; the file's name selects one")
    return _load(where)


def _load(where: str) -> type[Plugin]:
    module, _, name = where.partition(":")
    __import__(module)  # importlib would bring warnings and contextlib along
    return getattr(sys.modules[module], name)  # type: ignore[no-any-return]  # the tables above name plugins


def whole_network(network: str) -> tuple[files.RangeLock, dict[str, str]]:
    """Every attachment of a network, held in a `with` block against other calls.

    With the variables returned, a call made in that block finds that it need not wait. For a GC whose list of valid
    attachments must not grow old between its making and its use.
    """
    lock = _Lock(network=network, key=None)
    return files.range_lock(lock.path, lock.key), {_HELD: lock.name}


class _Lock(Record):
    """`key` is the attachment's identity; None is the whole network."""

    network: str
    key: str | None

    @property
    def path(self) -> str:
        name = self.network if len(self.network) <= _LONGEST_FILE_NAME else digest(self.network, 50)
        return f"{paths.LOCKS}/cni/{name}"

    @property
    def name(self) -> str:
        return f"{self.network} {self.key or 'whole'}"


class _Service:
    """What is known of one call so far, for its answer and its log record."""

    def __init__(self, call: Call, to: log.Log, plugin: type[Plugin] | None) -> None:
        self.call = call
        self.log = to
        self.plugin = plugin
        self.command = call.env.get("CNI_COMMAND", "")
        self.version = ""
        self.network = ""
        self.warnings: list[str] = []

    def answer(self) -> Answer:
        started = time.monotonic()
        error: Error | None = None
        stdout = b""
        try:
            if not self.command:
                return self._about()
            stdout = self._serve()
            if self.command in ("DEL", "GC") and os.path.lexists(paths.LEAVING):
                self._settle()
        except Error as raised:
            error = raised
        except OSError as raised:
            error = errors.from_os(raised, f"{self.command or 'plugin'} failed")
            error.__notes__ = getattr(raised, "__notes__", [])
        except Exception as raised:
            error = _fault(raised)
        self.warnings += getattr(error, "__notes__", ())  # what went wrong besides, as in undoing
        stderr = "".join(f"nodeplug: {sentence}\n" for sentence in self.warnings).encode("utf-8", "replace")
        self._record(error, (time.monotonic() - started) * 1000)
        if error is not None:
            return Answer(code=1, stdout=protocol.write_error(error, self.command, self.version), stderr=stderr)
        return Answer(code=0, stdout=stdout, stderr=stderr)

    def _settle(self) -> None:
        from nodeplug.cni import leaving

        leaving.settle(self.warnings.append)

    def _about(self) -> Answer:
        plugin = self.plugin or implementation(self.call.name)
        return Answer(code=0, stderr=protocol.about(self.call.name, plugin.versions))

    def _serve(self) -> bytes:
        plugin = self.plugin or implementation(self.call.name)
        protocol.environment(self.call)
        if self.command == "VERSION":
            return protocol.write_version(plugin.versions)
        data, preamble = protocol.configuration(self.call.stdin)
        self.version, self.network = preamble.version, preamble.network
        if self.command not in protocol.OPS:
            raise protocol.unknown_command(self.command)
        protocol.gate(self.command, preamble.version, plugin.versions)
        opened = self._netns(plugin)
        try:
            request = self._request(plugin, data, preamble, opened)
            if request is None:
                return b""
            lock = self._lock(plugin, request)
            if lock is not None:
                request = request.replace(env={**request.env, _HELD: lock.name})
            if preamble.ipam_type:
                request = request.replace(ipam=self._ipam(preamble.ipam_type, request, data))
            if lock is None:
                return self._call(plugin(), request)
            with files.range_lock(lock.path, lock.key):
                return self._call(plugin(), request)
        finally:
            if opened is not None:
                opened.close()

    def _netns(self, plugin: type[Plugin]) -> Netns | None:
        """CNI_NETNS, open, and known not to be the host's: both before anything is touched.

        For DEL a namespace that cannot be used is one that is gone. That includes the host's own: the path of an ended
        process names it once its pid has been taken again (containernetworking/plugins#714).
        """
        path = self.call.env.get("CNI_NETNS", "")
        if self.command not in ("ADD", "CHECK", "DEL"):
            return None
        if not plugin.needs_netns:
            return Netns(-1, path)
        try:
            opened = self._open(path)
        except OSError as error:
            if self.command == "DEL":
                return None
            raise NetnsInvalid(
                f"failed to open netns {path!r}: {error.strerror}",
                hint="the sandbox may have ended; the path must be a network namespace",
            ) from error
        if opened.identity() != namespaces.own_identity() or self._override():
            return opened
        opened.close()
        if self.command == "DEL":
            self.warnings.append(f"CNI_NETNS {path!r} is the plugin's own namespace, so the sandbox is taken for gone")
            return None
        raise NetnsInvalid(
            f"CNI_NETNS {path!r} is the plugin's own network namespace",
            hint="name the sandbox's; CNI_NETNS_OVERRIDE=1 allows it where it is meant",
        )

    def _open(self, path: str) -> Netns:
        """Never by its path where the call came from another process, for which that may lead elsewhere."""
        if self.call.files is None:
            return Netns.open(path)
        if "netns" not in self.call.files:
            raise FileNotFoundError(errno.ENOENT, "the caller could not open it", path)
        return Netns.adopt(os.dup(self.call.files["netns"]), path)

    def _override(self) -> bool:
        return self.call.env.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true")

    def _request(
        self, plugin: type[Plugin], data: dict[str, Any], preamble: protocol.Preamble, netns: Netns | None
    ) -> Request | None:
        """The plugin's request; None when there is nothing it may do."""
        env = self.call.env
        common: dict[str, Any] = {
            "config": protocol.plugin_configuration(plugin.config, data, self.call.stdin),
            "version": preamble.version,
            "network": preamble.network,
            "prev_result": None,
            "ipam": None,
            "warn": self.warnings.append,
            "env": env,
            "raw": self.call.stdin,
        }
        if self.command == "STATUS":
            return StatusRequest(**common)
        if self.command == "GC":
            valid = protocol.valid_attachments(preamble)
            if valid is None:
                self.warnings.append("GC came without a list of valid attachments, so nothing was removed")
                return None
            return GcRequest(**common, valid=valid)
        if preamble.prev_result is not None:
            common["prev_result"] = protocol.read_result(preamble.prev_result, preamble.version, "$.prevResult")
        common["container"] = env["CNI_CONTAINERID"]
        common["ifname"] = env["CNI_IFNAME"]
        # An ADD refused for its CNI_ARGS is followed by a DEL with the same ones, which must not fail as well.
        known = plugin.args if self.command != "DEL" else ()
        common["args"] = protocol.arguments(env.get("CNI_ARGS", ""), known)
        if self.command == "DEL":
            return DelRequest(**common, netns=netns, netns_path=env.get("CNI_NETNS", ""))
        assert netns is not None, "_netns gives one to ADD and CHECK, or raises"
        if self.command == "ADD":
            return AddRequest(**common, netns=netns)
        if common["prev_result"] is None:
            raise ConfigInvalid("Required prevResult missing", hint="CHECK is given the result of the chain's ADD")
        return CheckRequest(**common, netns=netns)

    def _ipam(self, type: str, request: Request, data: dict[str, Any]) -> InProcess | Executed:
        if type in IPAM:
            return InProcess(_load(IPAM[type]), request, data)
        return Executed(type, request)

    def _lock(self, plugin: type[Plugin], request: Request) -> _Lock | None:
        """What keeps others away from this attachment, for GC from this network; None when nothing must.

        The lock is the attachment's, not the plugin's: the plugins of a chain take it one after another, and an address
        manager works under that of the plugin that asked it. A plugin that needs no netns has nothing in common with
        others but files, which it locks by itself.
        """
        if isinstance(request, StatusRequest) or not plugin.needs_netns:
            return None
        key = request.attachment.identity if isinstance(request, AttachmentRequest) else None
        lock = _Lock(network=request.network, key=key)
        return None if request.env.get(_HELD) == lock.name else lock

    def _call(self, plugin: Plugin, request: Request) -> bytes:
        if isinstance(request, AddRequest):
            return self._add(plugin, request)
        if isinstance(request, DelRequest):
            self._remove(request, lambda: plugin.delete(request))
        elif isinstance(request, CheckRequest):
            plugin.check(request)
        elif isinstance(request, GcRequest):
            self._remove(request, lambda: plugin.gc(request))
        elif isinstance(request, StatusRequest):
            plugin.status(request)
        return b""

    def _remove(self, request: Request, remove: Callable[[], object]) -> None:
        if request.ipam is None:
            remove()
            return
        from nodeplug.core.steps import Steps

        steps = Steps()
        steps.run(request.ipam.leave)
        steps.run(remove)
        steps.close()

    def _add(self, plugin: Plugin, request: AddRequest) -> bytes:
        result = plugin.add(request)

        def take_back() -> None:
            made = DelRequest(**request.__dict__, netns_path=request.netns.path)
            self._remove(made, lambda: type(plugin)().delete(made))

        with Undo() as undo:
            # A version may have no words for what was made, and then nobody knows of it who would delete it.
            undo.push(take_back)
            written = protocol.write_result(result, request.version)
            undo.commit()
        return written

    def _record(self, error: Error | None, duration: float) -> None:
        env = self.call.env
        where = (self.network, env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", ""))
        common: dict[str, Any] = {
            "contract": "cni",
            "op": f"{self.call.name} {self.command}",
            "id": "/".join(part for part in where if part),
            "pod": _pod(env),
        }
        for sentence in self.warnings:
            self.log.write(log.Event(**common, level="warning", outcome="note", message=sentence))
        if error is None:
            company.present().later(lambda: self.log.write(log.Event(**common, duration_ms=duration)))
        else:
            code = protocol.error_code(error, self.command)
            event = log.Event(
                **common, duration_ms=duration, level="error", outcome="error", code=code, message=str(error)
            )
            self.log.write(event)


def _pod(env: Mapping[str, str]) -> log.Pod | None:
    """The pod as CNI_ARGS names it, where a kubelet's runtime calls."""
    found = protocol.arguments(env.get("CNI_ARGS", ""), ())
    if "K8S_POD_NAME" not in found:
        return None
    return log.Pod(
        namespace=found.get("K8S_POD_NAMESPACE", ""), name=found["K8S_POD_NAME"], uid=found.get("K8S_POD_UID", "")
    )


def _fault(error: Exception) -> Internal:
    """An exception nobody foresaw, with the place it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "unknown"
    return Internal(f"{type(error).__name__}: {error}", hint=f"a fault of the plugin, at {where}; please report it")
