"""Arguments into requests, outcomes into JSON: every verb in the kubelet's order, and what cannot be true refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core import log
from nodeplug.core.call import Call
from nodeplug.core.document import size
from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.core.record import Record, key
from nodeplug.core.secret import Secret
from nodeplug.flexvolume import contract, dispatch, protocol
from nodeplug.flexvolume.contract import Driver

UID = "0d9b0c5e-4f5e-4b8a-9f3c-0a1b2c3d4e5f"
TARGET = f"/var/lib/kubelet/pods/{UID}/volumes/example.org~mine/data"


class Options(Record):
    size: int = key(size, default=0)


class Whole(Driver):
    """Has every verb."""

    name = "mine"
    options = Options
    mounts = False

    def volume_name(self, request: contract.VolumeNameRequest) -> str:
        return f"name of {request.volume}"

    def attach(self, request: contract.AttachRequest) -> str:
        return f"/dev/{request.node}"

    def wait_for_attach(self, request: contract.WaitForAttachRequest) -> str:
        return request.device

    def is_attached(self, request: contract.IsAttachedRequest) -> bool:
        return request.node == "here"

    def detach(self, request: contract.DetachRequest) -> None:
        assert (request.volume, request.node) == ("data", "node1")

    def mount_device(self, request: contract.MountDeviceRequest) -> None:
        assert (request.directory, request.device) == ("/global", "/dev/sdx")

    def unmount_device(self, request: contract.UnmountDeviceRequest) -> None:
        assert request.directory == "/global"

    def mount(self, request: contract.MountRequest) -> None:
        pass

    def unmount(self, request: contract.UnmountRequest) -> None:
        assert (request.pod_uid, request.volume) == (UID, "data")

    def expand_volume(self, request: contract.ExpandVolumeRequest) -> int:
        return request.new_size + request.old_size

    def expand_fs(self, request: contract.ExpandFsRequest) -> None:
        assert (request.device, request.directory, request.new_size, request.old_size) == ("/dev/sdx", "/global", 2, 1)


def document(**more: Any) -> str:
    common = {"kubernetes.io/fsType": "", "kubernetes.io/readwrite": "rw", "kubernetes.io/pvOrVolumeName": "data"}
    return json.dumps({**common, **{name.replace("__", "."): value for name, value in more.items()}})


def answer(*argv: str, driver: Driver | None = None) -> dict[str, Any]:
    call = Call(contract="flexvolume", name="mine", argv=argv, env={})
    given_ = dispatch.answer(call, to=log.Log(log.to_nowhere), driver=driver or Whole())
    assert (given_.code, given_.stderr) == (0, b"")
    found = json.loads(given_.stdout)
    assert isinstance(found, dict) and given_.stdout.count(b"\n") == 1
    return found


def mounting(options: str, target: str = TARGET) -> contract.MountRequest:
    request = protocol.read("mount", [target, options], Whole(), deadline=time.monotonic(), warn=lambda _: None)
    assert isinstance(request, contract.MountRequest)
    return request


def refused(options: str, target: str = TARGET) -> str:
    with pytest.raises(ConfigInvalid) as raised:
        mounting(options, target)
    return str(raised.value)


@pytest.mark.parametrize(
    ("argv", "more"),
    [
        (("getvolumename", document()), {"volumeName": "name of data"}),
        (("attach", document(), "node1"), {"device": "/dev/node1"}),
        (("waitforattach", "/dev/sdx", document()), {"device": "/dev/sdx"}),
        (("isattached", document(), "here"), {"attached": True}),
        (("isattached", document(), "there"), {"attached": False}),
        (("isattached", "here", document()), {"attached": True}),  # as 1.6 had it
        (("detach", "data", "node1"), {}),
        (("mountdevice", "/global", "/dev/sdx", document()), {}),
        (("unmountdevice", "/global"), {}),
        (("mount", TARGET, document()), {}),
        (("unmount", TARGET), {}),
        (("expandvolume", document(), "/global", "2", "1"), {"volumeNewSize": 3}),
        (("expandfs", document(), "/dev/sdx", "/global", "2", "1"), {}),
    ],
)
def test_each_verb_is_read_in_the_order_of_the_kubelets_code(argv: tuple[str, ...], more: dict[str, Any]) -> None:
    assert answer(*argv) == {"status": "Success", **more}


def test_init_says_every_capability_and_never_null() -> None:
    assert answer("init") == {
        "status": "Success",
        "capabilities": {
            "attach": False,
            "selinuxRelabel": True,
            "supportsMetrics": True,
            "fsGroup": True,
            "requiresFSResize": False,
        },
    }


@pytest.mark.parametrize("verb", [*protocol.OPS, "waitfordetach", "MOUNT", "-h"])
def test_a_driver_without_a_verb_does_not_support_it_whatever_the_arguments(verb: str) -> None:
    for arguments in ((), ("{",), ("a", "b", "c", "d", "e", "f")):
        assert answer(verb, *arguments, driver=Driver()) == {"status": "Not supported"}


@pytest.mark.parametrize("verb", protocol.OPS)
def test_another_number_of_arguments_is_a_failure_that_says_which_it_takes(verb: str) -> None:
    for arguments in ((), ("a",) * 6):
        found = answer(verb, *arguments)
        assert found["status"] == "Failure"
        assert f"{verb} takes {protocol.OPS[verb].arguments[0].upper()}" in found["message"]


def test_a_mount_has_pod_secrets_group_and_options() -> None:
    request = mounting(
        document(
            kubernetes__io__placeholder="",
            **{
                "kubernetes.io/pod.name": "web",
                "kubernetes.io/pod.namespace": "shop",
                "kubernetes.io/pod.uid": UID,
                "kubernetes.io/serviceAccount.name": "till",
                "kubernetes.io/secret/key": "AAH/",
                "kubernetes.io/mounterArgs.FsGroup": "4711",
                "kubernetes.io/mountsDir": "/documented/and/never/sent",
                "size": "64Mi",
            },
        ).replace("kubernetes.io.placeholder", "kubernetes.io/placeholder")
    )
    assert request.pod == contract.Pod(namespace="shop", name="web", uid=UID, service_account="till")
    assert request.secrets == {"key": Secret(b"\x00\x01\xff")}
    assert (request.fs_group, request.options.size, request.read_only, request.volume) == (
        4711,
        64 << 20,
        False,
        "data",
    )


@pytest.mark.parametrize("name", ["kubernetes.io/mounterArgs.FsGroup", "kubernetes.io/fsGroup"])
def test_the_group_is_found_under_either_key(name: str) -> None:
    assert mounting(document(**{name: "7"})).fs_group == 7
    assert mounting(document(**{name: ""})).fs_group is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"kubernetes.io/pod.uid": "another"}, "kubernetes.io/pod.uid is 'another', and the directory"),
        (
            {"kubernetes.io/pvOrVolumeName": "other"},
            "pvOrVolumeName is 'other', and the directory to mount on says 'data'",
        ),
        ({"kubernetes.io/readwrite": "write"}, "readwrite is 'write'"),
        ({"kubernetes.io/fsGroup": "7", "kubernetes.io/mounterArgs.FsGroup": "8"}, "differ"),
        ({"kubernetes.io/fsGroup": "root"}, "fsGroup is 'root'"),
        ({"kubernetes.io/fsGroup": "-1"}, "fsGroup is '-1'"),
        ({"kubernetes.io/fsGroup": "4294967295"}, "fsGroup is '4294967295'"),
        ({"kubernetes.io/pod.namespace": ["kube-system"]}, "pod.namespace is not a string"),
    ],
)
def test_options_in_the_place_of_the_kubelets_keys_are_found_out_where_they_can_be(
    more: dict[str, Any], said: str
) -> None:
    whole = refused(document(**more))
    assert said in whole and "options may not begin with kubernetes.io/" in whole


def test_a_driver_under_another_drivers_name_is_found_out() -> None:
    assert "is for a volume of example.org/other, and this is mine" in refused(
        document(), TARGET.replace("~mine", "~other")
    )


def test_a_directory_of_another_form_is_taken_as_it_is() -> None:
    assert mounting(document(), "/mnt/by/hand/").target == "/mnt/by/hand"


@pytest.mark.parametrize("target", ["", "relative", "/pods/../etc", "/pods/x\0y"])
def test_a_path_that_the_kubelet_never_sends_is_refused(target: str) -> None:
    assert "absolute path" in refused(document(), target)


@pytest.mark.parametrize("options", ["", "{", "[]", "null", '"x"', "{} {}", '{"kubernetes.io/secret/k": "b3Blbg=="'])
def test_a_document_that_cannot_be_read_is_refused_without_being_quoted(options: str) -> None:
    said = refused(options)
    assert "options" in said and "b3Blbg" not in said


@pytest.mark.parametrize("value", ["not base64", "YQ", "YQ==\n", "YQ==YQ==", 7, None])
def test_a_secret_that_is_no_base64_is_refused_without_being_shown(value: object) -> None:
    said = refused(document(**{"kubernetes.io/secret/key": value}))
    assert "kubernetes.io/secret/key is not base64" in said and str(value) not in said.replace("not base64, as", "")


def test_a_driver_without_options_takes_none() -> None:
    class Bare(Driver):
        name = "mine"

        def mount(self, request: contract.MountRequest) -> None:
            pass

    found = answer("mount", TARGET, document(size="1Mi", mode="x"), driver=Bare())
    assert "this driver takes no options, and is given mode, size" in found["message"]


def test_a_secret_is_masked_in_every_form_and_only_where_it_can_be_told_from_text() -> None:
    text = "open sesame, b3BlbiBzZXNhbWU= and abc"
    assert dispatch.mask(text, [Secret(b"open sesame"), Secret(b"abc")]) == "[secret], [secret] and abc"
    assert "two" not in dispatch.mask("line two here", [Secret(b"line one\ntwo here\n"), Secret(b"line two")])


@given(st.lists(st.text(max_size=60), max_size=6))
def test_no_arguments_bring_it_down(argv: list[str]) -> None:
    assert answer(*argv)["status"] in ("Success", "Failure", "Not supported")


@given(st.dictionaries(st.sampled_from(["size", "kubernetes.io/secret/k", "kubernetes.io/pod.uid", "x"]), st.text()))
def test_no_document_brings_it_down(found: dict[str, str]) -> None:
    try:
        mounting(json.dumps(found))
    except Error as error:
        assert str(error)
