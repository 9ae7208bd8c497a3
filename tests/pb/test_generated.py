"""The committed modules are what the protos say, and they live together in one process."""

import importlib
from pathlib import Path

import pytest

from tests.pb import COMMITTED, PROTOS, generate, generated


def test_the_committed_modules_are_what_the_protos_generate(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh = tmp_path / "nodeplug" / "pb"
    assert list(generated(COMMITTED)) == list(generated(fresh)), "run: python -m tests.pb"
    for path in generated(fresh):
        assert (COMMITTED / path).read_bytes() == (fresh / path).read_bytes(), (
            f"{path} differs; run: python -m tests.pb"
        )


def test_no_stubs_are_generated() -> None:
    assert not list(COMMITTED.rglob("*_grpc*"))


@pytest.mark.parametrize("name", sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")))
def test_each_version_is_imported_beside_all_others(name: str) -> None:
    module = importlib.import_module("nodeplug.pb." + name.removesuffix(".proto").replace("/", ".") + "_pb2")
    assert module.DESCRIPTOR.name == f"nodeplug/pb/{name}"


def test_two_contracts_of_one_package_share_a_process() -> None:
    from nodeplug.pb.deviceplugin import v1beta1_pb2 as devices
    from nodeplug.pb.kms import v1beta1_pb2 as kms

    assert kms.DESCRIPTOR.package == devices.DESCRIPTOR.package == "v1beta1"
    assert kms.EncryptRequest(version="v1beta1", plain=b"k").SerializeToString() == b"\n\x07v1beta1\x12\x01k"
    assert devices.Device(ID="a", health="Healthy").SerializeToString() == b"\n\x01a\x12\x07Healthy"
