"""Dumps of etcd: streamed whatever their size, never half believed."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import Malformed
from nodeplug.harness.apiserver import stored
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.kms.contract import Api
from nodeplug.kms.keyring.evidence import read, seed_of


def v2(key_id: str, number: int = 0) -> bytes:
    item = stored.EncryptedObject(b"data" * 50, key_id, b"seed %d" % number, {"a.example": b"x"})
    return stored.write_v2("any name", item)


def etcd(count: int, key_id: str = "np1-a-1-b") -> Etcd:
    found = Etcd()
    for number in range(count):
        found.put(f"/registry/secrets/a/{number}", v2(key_id, number))
    return found


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_every_object_is_counted_across_the_pieces_it_is_read_in(count: int) -> None:
    assert read(io.BytesIO(etcd(count).dump()), taken=1.0).objects == ({"np1-a-1-b": count} if count else {})


def test_a_dump_larger_than_what_is_read_at_once_stays_small_in_memory() -> None:
    value = base64.b64encode(v2("np1-a-1-b") + bytes(200_000)).decode()

    def pieces() -> Iterator[bytes]:
        yield b'{"header":{"revision":9},"kvs":['
        for number in range(300):
            yield (b"," if number else b"") + json.dumps({"key": "eA==", "value": value}).encode()
        yield b'],"count":300}\n'

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.rest, self.source = b"", pieces()

        def read(self, size: int = -1) -> bytes:
            while len(self.rest) < size:
                more = next(self.source, None)
                if more is None:
                    break
                self.rest += more
            found, self.rest = self.rest[:size], self.rest[size:]
            return found

    tracemalloc.start()
    found = read(Stream(), taken=1.0)  # type: ignore[arg-type]  # all it needs is read
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(found.objects.values()) + found.foreign == 300
    assert peak < 20_000_000  # of 80 million


@given(cut=st.integers(1, 2000))
def test_a_dump_cut_anywhere_is_refused(cut: int) -> None:
    whole = etcd(3).dump()
    # Without its newline a dump is still whole.
    if 1 < cut < len(whole):
        with pytest.raises(Malformed):
            read(io.BytesIO(whole[:-cut]), taken=1.0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"kvs":[{"key":"x","value":"***"}],"count":1}',
        b'{"kvs":[{"key":"x","value":"eA=="}],"count":1,"more":true}',
        b'{"kvs":[{"key":"x","value":"eA=="}]}',
        b'{"count":5}',
        b'{"kind":"nodeplug-kms-keys"',
        b'{"kind":"nodeplug-kms-keys","taken":"x","objects":{}}',
    ],
)
def test_what_is_no_whole_dump_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read(io.BytesIO(data), taken=1.0)


def test_a_list_carries_its_own_time() -> None:
    found = read(io.BytesIO(etcd(4).dump()), taken=777.5)
    again = read(io.BytesIO(found.as_list().encode()), taken=999.0)
    assert (again.taken, again.objects) == (777.0, {"np1-a-1-b": 4})


@given(st.binary(max_size=200))
def test_no_value_breaks_the_reading(tail: bytes) -> None:
    for prefix in (b"", b"k8s:enc:kms:v2:np:", b"k8s:enc:kms:v1:np:", b"k8s:enc:kms:v1:np:\x00\x20np1\0"):
        seed_of(prefix + tail)


# Written by an API server's own code (k8s.io/apiserver 0.34.1) with nodeplug behind it.
REAL = {
    Api.V2: (
        "6b38733a656e633a6b6d733a76323a6e703a0a41f4cef47e7d66a8e275e838239a965fbf4b8c3706b40e8564a909aed35078"
        "f9f2a29a6343e4de765e9fbeafc5786ad0d727cc4a47b2eb9b5fef5459172c5a3c5b12121b6e70312d666561636162353861"
        "3363362d312d39323636633763351a5101c75e09cd5c7e6f78d55c8afb7b652f3e375f07c7a0de022b57426ea9de133bf9af"
        "1f2069056272b8f3ea1d8411388afd4d9195f3914ddddac880e5bb9950b69993cd17b7da57fdaf2d7536a9ff1f14802801"
    ),
    Api.V1BETA1: (
        "6b38733a656e633a6b6d733a76313a6e703a00746e7031000a510141b1c5ca6cac516a3287bf7aa7c8a1a3a98b68cae866ca"
        "62fbbd4b01d7dbfabd971b9eb3fc0c71459e5a46d80012356026b29e15138e02d6a6f11ee5280d8e9e951999101b9b185629"
        "235dff3f796a2b121b6e70312d6665616361623538613363362d312d3932363663376335a95871ccb93e1f3c3d4b4a949ef2"
        "eee714efc576544d1990b745c396f1def62146"
    ),
}


@pytest.mark.parametrize("api", list(Api))
def test_what_a_real_api_server_stored_names_its_key(api: Api) -> None:
    found = seed_of(bytes.fromhex(REAL[api]))
    assert found is not None
    assert (found[0].key_id, len(found[0].ciphertext), found[1]) == ("np1-feacab58a3c6-1-9266c7c5", 81, api)


def test_both_apis_and_names_with_anything_in_them_are_read() -> None:
    found = seed_of(v2("np1-x-1-y"))
    assert found is not None
    assert (found[0].key_id, found[1]) == ("np1-x-1-y", Api.V2)
    assert found[0].annotations == {"a.example": b"x"}
    assert seed_of(b"k8s\0plain") is None
    assert seed_of(b"k8s:enc:aescbc:v1:key1:xx") is None
