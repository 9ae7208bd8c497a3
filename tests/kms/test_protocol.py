"""The bytes written by hand are what the generated messages would write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import Internal, Malformed
from nodeplug.kms import protocol, v1cipher
from nodeplug.kms.contract import Encrypted
from nodeplug.pb.kms import v1beta1_pb2, v2_pb2

names = st.sampled_from(["a.example", "kek.nodeplug.io"])
values = st.builds(
    Encrypted,
    st.binary(min_size=1, max_size=1024),
    st.text(min_size=1, max_size=200),
    st.dictionaries(names, st.binary(max_size=200)),
)


@given(values)
def test_an_encrypt_answer(value: Encrypted) -> None:
    message = v2_pb2.EncryptResponse.FromString(protocol.write_v2_encrypt(value))
    assert message.ciphertext == value.ciphertext
    assert message.key_id == value.key_id
    assert dict(message.annotations) == dict(value.annotations)


@given(values, st.text(max_size=200))
def test_a_decrypt_request_is_read_as_it_was_meant_with_annotations_and_without(value: Encrypted, uid: str) -> None:
    data = v2_pb2.DecryptRequest(
        ciphertext=value.ciphertext, uid=uid, key_id=value.key_id, annotations=value.annotations
    ).SerializeToString()
    read = protocol.read_v2_decrypt(data)
    assert (read.encrypted, read.uid) == (value, uid)


def test_an_empty_annotation_is_not_overlooked() -> None:
    data = v2_pb2.DecryptRequest(ciphertext=b"c", uid="u", key_id="k").SerializeToString() + b"\x22\x00"
    with pytest.raises(Malformed, match="annotation"):
        protocol.read_v2_decrypt(data)


@given(st.text(max_size=300))
def test_the_uid_of_a_request_is_read_for_the_log_and_never_breaks_a_line(uid: str) -> None:
    for message in (v2_pb2.EncryptRequest(plaintext=b"p", uid=uid), v2_pb2.DecryptRequest(ciphertext=b"c", uid=uid)):
        said = protocol.read_v2_uid(message.SerializeToString())
        assert said == uid or said == "unprintable"
        assert said.isprintable()
    assert protocol.read_v2_uid(b"\xff") == ""


def test_a_v1_cipher_that_no_api_server_could_store_is_refused() -> None:
    many = {f"{number}.example": b"" for number in range(8000)}
    with pytest.raises(Internal, match="at most 65535"):
        v1cipher.make(Encrypted(b"c", "k", many))


@given(st.binary(min_size=1, max_size=4096))
def test_a_decrypt_answer(plaintext: bytes) -> None:
    assert protocol.write_v2_decrypt(plaintext) == v2_pb2.DecryptResponse(plaintext=plaintext).SerializeToString()
    assert protocol.write_v1_decrypt(plaintext) == v1beta1_pb2.DecryptResponse(plain=plaintext).SerializeToString()


@given(values)
def test_a_v1_cipher_carries_the_whole_value(value: Encrypted) -> None:
    assert v1cipher.read(v1cipher.make(value)) == value


@given(st.binary(max_size=200))
def test_no_bytes_break_a_reader(data: bytes) -> None:
    from nodeplug.core.errors import Error

    for reader in (
        protocol.read_v2_status,
        protocol.read_v2_encrypt,
        protocol.read_v2_decrypt,
        protocol.read_v1_version,
        protocol.read_v1_encrypt,
        protocol.read_v1_decrypt,
    ):
        try:
            reader(data)
        except Error as error:
            assert protocol.status_of(error)[0].name == "INVALID_ARGUMENT"
