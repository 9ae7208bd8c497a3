"""FlexVolume on the wire: arguments into requests, outcomes into the one JSON value that the kubelet reads.

The only module that knows verbs, argument orders and key names. They are those of the kubelet's code
(pkg/volume/flexvolume), which its documentation does not have right; docs/flexvolume.md lists where.
"""

from __future__ import annotations

import os

from nodeplug.core import document, jsontext
from nodeplug.core.errors import ConfigInvalid, Malformed
from nodeplug.core.record import Record
from nodeplug.core.secret import Secret
from nodeplug.flexvolume.contract import (
    AttachRequest,
    Capabilities,
    DetachRequest,
    Driver,
    ExpandFsRequest,
    ExpandVolumeRequest,
    IsAttachedRequest,
    MountDeviceRequest,
    MountRequest,
    Request,
    UnmountDeviceRequest,
    UnmountRequest,
    VolumeNameRequest,
    WaitForAttachRequest,
)
from nodeplug.volumes.contract import Pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from nodeplug.core.call import Answer

SUCCESS = "Success"
FAILURE = "Failure"
NOT_SUPPORTED = "Not supported"

KUBELET = "kubernetes.io/"
_RESERVED = (KUBELET, "k8s.io/")
_SECRET = KUBELET + "secret/"
# Renamed by accident in 1.15 and never back; the documentation has the old name.
_FS_GROUP = (KUBELET + "mounterArgs.FsGroup", KUBELET + "fsGroup")
_LONGEST = 8192
_FAILS = b'{"status":"Failure"'


class Op(Record):
    """One verb: the driver's method, its request, and what each argument after the verb is.

    `result` is the key under which what the method returns is answered.
    """

    method: str
    request: type[Request]
    arguments: tuple[str, ...]
    result: str = ""
    logged: bool = True


_DOCUMENT = "options"
OPS = {
    # Asked for with each look at a volume, and never used.
    "getvolumename": Op(
        method="volume_name", request=VolumeNameRequest, arguments=(_DOCUMENT,), result="volumeName", logged=False
    ),
    "attach": Op(method="attach", request=AttachRequest, arguments=(_DOCUMENT, "node"), result="device"),
    "waitforattach": Op(
        method="wait_for_attach", request=WaitForAttachRequest, arguments=("device", _DOCUMENT), result="device"
    ),
    "isattached": Op(method="is_attached", request=IsAttachedRequest, arguments=(_DOCUMENT, "node"), result="attached"),
    "detach": Op(method="detach", request=DetachRequest, arguments=("volume", "node")),
    "mountdevice": Op(method="mount_device", request=MountDeviceRequest, arguments=("directory", "device", _DOCUMENT)),
    "unmountdevice": Op(method="unmount_device", request=UnmountDeviceRequest, arguments=("directory",)),
    "mount": Op(method="mount", request=MountRequest, arguments=("target", _DOCUMENT)),
    "unmount": Op(method="unmount", request=UnmountRequest, arguments=("target",)),
    "expandvolume": Op(
        method="expand_volume",
        request=ExpandVolumeRequest,
        arguments=(_DOCUMENT, "directory", "new_size", "old_size"),
        result="volumeNewSize",
    ),
    "expandfs": Op(
        method="expand_fs",
        request=ExpandFsRequest,
        arguments=(_DOCUMENT, "device", "directory", "new_size", "old_size"),
    ),
}
INIT = "init"
VERBS = (INIT, *OPS)


def supports(driver: type[Driver], verb: str) -> bool:
    """Whether the driver defines the verb. By class and never by call: the kubelet remembers what is not supported."""
    if verb == INIT:
        return True
    op = OPS.get(verb)
    return op is not None and getattr(driver, op.method) is not getattr(Driver, op.method)


class PodDirectory(Record):
    """What a path of the form ROOT/pods/UID/volumes/VENDOR~DRIVER/VOLUME says; empty fields for any other."""

    uid: str = ""
    plugin: str = ""
    volume: str = ""

    @property
    def driver(self) -> str:
        return self.plugin.rpartition("~")[2]


def pod_directory(path: str) -> PodDirectory:
    parts = path.rstrip("/").split("/")
    if len(parts) < 6 or parts[-5] != "pods" or parts[-3] != "volumes":
        return PodDirectory()
    return PodDirectory(uid=parts[-4], plugin=parts[-2], volume=parts[-1])


def secrets_of(argv: Sequence[str]) -> bool:
    """Whether secrets are among the arguments, without reading them."""
    return any(_SECRET in argument for argument in argv)


def read(
    verb: str, arguments: Sequence[str], driver: Driver, *, deadline: float, warn: Callable[[str], None]
) -> Request:
    """The request of a verb that the driver supports. `arguments` are those after the verb.

    Raises `ConfigInvalid` with every problem found, `Malformed` for a document that is none.
    """
    op = OPS[verb]
    if len(arguments) != len(op.arguments):
        wanted = " ".join(name.upper() for name in op.arguments)
        raise ConfigInvalid(f"{verb} takes {wanted}; {len(arguments)} arguments came")
    if verb == "isattached" and arguments[1].startswith("{"):  # the order of 1.6
        arguments = arguments[::-1]
    values: dict[str, Any] = {"deadline": deadline, "warn": warn}
    for name, argument in zip(op.arguments, arguments, strict=True):
        if name in ("new_size", "old_size"):
            values[name] = _bytes(argument, name)
        elif name in ("target", "directory"):
            values[name] = _path(argument, verb)
        elif name != _DOCUMENT:
            values[name] = argument
    if verb == "unmount":
        known = pod_directory(values["target"])
        values.update(pod_uid=known.uid, volume=known.volume)
    if _DOCUMENT in op.arguments:
        found = _document(arguments[op.arguments.index(_DOCUMENT)])
        values.update(_volume(found, driver))
        if verb == "mount":
            values.update(_pod(found, values["target"], driver))
    return op.request(**values)


def _path(argument: str, verb: str) -> str:
    if not argument.startswith("/") or "\0" in argument or ".." in argument.split("/"):
        raise ConfigInvalid(f"{verb} is given {argument!r}", hint="it takes an absolute path without ..")
    return os.path.normpath(argument)


def _bytes(argument: str, name: str) -> int:
    if not (argument.isascii() and argument.isdigit() and len(argument) < 20):
        raise ConfigInvalid(f"{name.replace('_', ' ')} is {argument[:40]!r}", hint="it is a number of bytes")
    return int(argument)


def _document(argument: str) -> dict[str, Any]:
    try:
        found = jsontext.loads(argument.encode("utf-8", "surrogateescape"))
    except Malformed as error:
        # Its words may quote the text, and that may hold secrets.
        raise Malformed("the volume's options cannot be read: they are not JSON") from error
    if not isinstance(found, dict):
        raise Malformed("the volume's options are not a JSON object")
    return found


def _volume(found: dict[str, Any], driver: Driver) -> dict[str, Any]:
    """The fields of every request with a document."""
    mode = _said(found, "readwrite") or "rw"
    if mode not in ("rw", "ro"):
        raise _clash(f"{KUBELET}readwrite is {mode!r}, where the kubelet says ro or rw")
    return {
        "volume": _said(found, "pvOrVolumeName"),
        "fs_type": _said(found, "fsType"),
        "read_only": mode == "ro",
        "options": _options(found, driver),
    }


def _options(found: dict[str, Any], driver: Driver) -> Record:
    own = {name: value for name, value in found.items() if not name.startswith(_RESERVED)}
    if own and not driver.options._keys:
        raise ConfigInvalid(f"this driver takes no options, and is given {', '.join(sorted(own))}")
    try:
        return document.decode(driver.options, own, path="options")
    except ConfigInvalid as invalid:
        raise ConfigInvalid("the volume's options are not valid", problems=invalid.problems) from None


def _pod(found: dict[str, Any], target: str, driver: Driver) -> dict[str, Any]:
    """The fields that mount alone has. Options of the pod's author win over the kubelet's own keys of the same name, so
    what the directory says too is compared with it."""
    pod = _whose(found)
    known = pod_directory(target)
    for key, said, path in (
        ("pod.uid", pod.uid, known.uid),
        ("pvOrVolumeName", _said(found, "pvOrVolumeName"), known.volume),
    ):
        if said and path and said != path:
            raise _clash(f"{KUBELET}{key} is {said!r}, and the directory to mount on says {path!r}")
    if known.driver and known.driver != driver.name:
        raise ConfigInvalid(
            f"the directory to mount on is for a volume of {known.plugin.replace('~', '/')}, and this is {driver.name}",
            hint="the driver's file must have its directory's name",
        )
    groups = {str(found[key]) for key in _FS_GROUP if found.get(key) not in (None, "")}
    if len(groups) > 1:
        raise _clash(f"{' and '.join(_FS_GROUP)} differ")
    group = groups.pop() if groups else None
    if group is not None and not (group.isascii() and group.isdigit() and int(group) < (1 << 32) - 1):
        raise _clash(f"fsGroup is {group[:40]!r}, where the kubelet sends a group number")
    return {"pod": pod, "fs_group": None if group is None else int(group), "secrets": _secrets(found)}


def _whose(found: Mapping[str, Any]) -> Pod:
    return Pod(
        namespace=_said(found, "pod.namespace"),
        name=_said(found, "pod.name"),
        uid=_said(found, "pod.uid"),
        service_account=_said(found, "serviceAccount.name"),
    )


def pod_of(verb: str, arguments: Sequence[str]) -> Pod | None:
    """The pod that a mount is for, of a call that may be wrong otherwise; None where it cannot be told."""
    if verb != "mount" or len(arguments) != len(OPS[verb].arguments):
        return None
    try:
        return _whose(_document(arguments[1]))
    except ConfigInvalid:
        return None


def _secrets(found: Mapping[str, Any]) -> dict[str, Secret]:
    from binascii import a2b_base64

    secrets = {}
    for key, value in found.items():
        if key.startswith(_SECRET):
            try:
                secrets[key.removeprefix(_SECRET)] = Secret(a2b_base64(value.encode("ascii"), strict_mode=True))
            except (ValueError, AttributeError):
                raise ConfigInvalid(f"{key} is not base64, as which the kubelet sends a secret") from None
    return secrets


def _said(found: Mapping[str, Any], key: str) -> str:
    value = found.get(KUBELET + key, "")
    if not isinstance(value, str):
        raise _clash(f"{KUBELET}{key} is not a string")
    return value


def _clash(sentence: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"an option has taken the place of a key of the kubelet's: {sentence}",
        hint="options may not begin with kubernetes.io/",
    )


def is_failure(answer: Answer) -> bool:
    """Whether that answer, written here, is of a call that failed."""
    return answer.stdout.startswith(_FAILS)


def write(status: str, *, message: str = "", fields: Mapping[str, object] | None = None) -> bytes:
    """The one JSON value, on one line. `fields` go in under their names on the wire."""
    answer: dict[str, object] = {"status": status}
    if message:
        answer["message"] = message if len(message) <= _LONGEST else message[:_LONGEST] + " (cut)"
    answer.update(fields or {})
    return (jsontext.dumps(answer) + "\n").encode("utf-8", "replace")


def write_capabilities(capabilities: Capabilities) -> bytes:
    """The answer to init: every capability, because what is left out is true for the kubelet more often than not."""
    found = {key.name or field: getattr(capabilities, field) for field, key in capabilities._keys.items()}
    return write(SUCCESS, fields={"capabilities": found})


def write_result(verb: str, result: object) -> bytes:
    """The answer of a verb that succeeded and returned `result`."""
    op = OPS[verb]
    return write(SUCCESS, fields={op.result: result} if op.result else {})
