"""What a driver printed, as Go reads it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.harness.kubelet.flexvolume.answer import (
    Capabilities,
    Failed,
    NotSupported,
    Status,
    Unreadable,
    judge,
    parse,
)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (b"", "unexpected end of JSON input"),
        (b" \n", "unexpected end of JSON input"),
        (b'{"status": "Success"', "unexpected end of JSON input"),
        (b'{"status": "Succ', "unexpected end of JSON input"),
        (b"mounted\n", "invalid character 'm' looking for beginning of value"),
        (b"-ne {}", "invalid character"),
        (b"\xef\xbb\xbf{}", "invalid character"),
        (b'{"status": "Success"}\n{"status": "Success"}\n', "invalid character '{' after top-level value"),
        (b'{"status": "Success"} done', "invalid character 'd' after top-level value"),
        (b"{'status': 'Success'}", "invalid character"),
        (b'{"status": NaN}', "invalid character 'N' looking for beginning of value"),
        (b'["Success"]', "json: cannot unmarshal array into Go value of type flexvolume.DriverStatus"),
        (b'"Success"', "json: cannot unmarshal string into Go value"),
        (b'{"status": true}', "json: cannot unmarshal bool into Go struct field DriverStatus.status of type string"),
        (
            b'{"status": "Success", "attached": "true"}',
            "string into Go struct field DriverStatus.attached",
        ),
        (b'{"status": "Success", "volumeNewSize": 1.5}', "number 1.5 into Go struct field DriverStatus.volumeNewSize"),
        (b'{"status": "Success", "volumeNewSize": 1e3}', "number 1e3"),
        (b'{"status": "Success", "volumeNewSize": 9223372036854775808}', "number 9223372036854775808"),
        (b'{"status": "Success", "capabilities": {"attach": "false"}}', "of type bool"),
        (b'{"status": "Success", "capabilities": []}', "array into Go struct field"),
        (b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_output_that_is_not_one_value_of_the_right_shape_is_an_error(output: bytes, complaint: str) -> None:
    with pytest.raises(Unreadable) as raised:
        judge("init", output)
    assert complaint in raised.value.message


@pytest.mark.parametrize(
    ("output", "status"),
    [
        (b' \n{"status": "Success"}\r\n\t', Status(status="Success")),
        (b'{"STATUS": "Success", "Message": "m"}', Status(status="Success", message="m")),
        (b'{"status": "Failure", "status": "Success"}', Status(status="Success")),
        (b'{"status": "Success", "new": {"unknown": [1]}}', Status(status="Success")),
        (b'{"status": "Success", "message": null}', Status(status="Success")),
        (b'{"status": "Success", "message": "\xff"}', Status(status="Success", message="\ufffd")),
        (b'{"status": "Success", "capabilities": null}', Status(status="Success", capabilities=None)),
        (
            b'{"status": "Success", "capabilities": {"ATTACH": false}}',
            Status(status="Success", capabilities=Capabilities(attach=False)),
        ),
        (b'{"status": "Success", "device": "/dev/sdx", "volumeNewSize": -1}', None),
        (b"null", Status()),
    ],
)
def test_what_go_reads_is_read(output: bytes, status: Status | None) -> None:
    found = parse(output)
    assert status is None or found == status


def test_a_partial_object_of_capabilities_keeps_the_other_defaults() -> None:
    found = parse(b'{"status": "Success", "capabilities": {"supportsMetrics": true}}').capabilities
    assert found == Capabilities(
        attach=True, selinuxRelabel=True, supportsMetrics=True, fsGroup=True, requiresFSResize=True
    )


@pytest.mark.parametrize("status", ["success", "Failed", "Failure", "SUCCESS", "Success ", "", "not supported"])
def test_any_other_spelling_of_success_is_failure(status: str) -> None:
    with pytest.raises(Failed, match=f"^mount command failed, status: {status}, reason: why$"):
        judge("mount", json.dumps({"status": status, "message": "why"}).encode())


def test_not_supported_is_told_apart() -> None:
    with pytest.raises(NotSupported):
        judge("attach", b'{"status": "Not supported"}')


@given(st.binary(max_size=100))
def test_no_output_brings_it_down(output: bytes) -> None:
    try:
        judge("mount", output)
    except (Unreadable, Failed, NotSupported):
        pass
