"""State files: what goes in comes out, nothing secret goes in, and junk is known as such."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeplug.core.errors import Malformed
from nodeplug.core.secret import Secret
from nodeplug.volumes import state
from nodeplug.volumes.contract import Pod, Published, Request
from nodeplug.volumes.imagefile import ImageFile
from nodeplug.volumes.secret import SecretOptions
from nodeplug.volumes.stage import Staged
from tests.needs import needs

pytestmark = needs("sandbox")

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
flags = st.booleans()
steps = st.one_of(
    st.builds(
        ImageFile,
        **{name: words for name in ("path", "fs", "directory")},
        **{name: st.integers(0, 1 << 60) for name in ("size", "total", "floor")},
        **{name: flags for name in ("full", "make", "stays", "shared")},
    ),
    st.builds(Staged, id=words, name=words, of=words),
)
states = st.builds(
    Published,
    id=st.just("trial"),
    driver=words,
    volume=words,
    target=words,
    options=st.dictionaries(words, st.one_of(words, st.integers(), flags, st.lists(words))),
    read_only=flags,
    fs_group=st.none() | st.integers(0, 1 << 31),
    fs_type=words,
    pod=st.builds(Pod, namespace=words, name=words, uid=words, service_account=words),
    created=st.floats(0, 1e10),
    device=words,
    steps=st.lists(steps, max_size=3).map(tuple),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(states)
def test_what_is_written_is_read_back(published: Published) -> None:
    try:
        state.write(published)
        assert state.read("trial") == published
        assert state.ids() == ["trial"] and state.every() == [published] and state.abandoned() == []
    finally:
        state.remove("trial")
    assert state.read("trial") is None and state.ids() == []


def test_it_lies_where_what_it_tells_of_lies() -> None:
    request = Request(driver="tmpfs", volume="v", target="/t", options=SecretOptions())
    record = state.record_of(request, 1.0)
    image = ImageFile(
        path="", fs="", size=1, full=False, make=True, stays=False, shared=False, directory="", total=0, floor=0
    )
    for step, directory in (((), state.RUN), ((Staged(id="i", name="n", of="n"),), state.RUN), ((image,), state.KEPT)):
        state.write(record.replace(steps=step))
        path = Path(directory, f"{record.id}.json")
        assert path.stat().st_mode & 0o7777 == 0o600 and path.parent.stat().st_mode & 0o7777 == 0o700
        state.remove(record.id)
        assert not path.exists()


def test_a_secret_cannot_even_be_written() -> None:
    request = Request(
        driver="secret", volume="v", target="/t", options=SecretOptions(), secrets={"key": Secret("hunter2")}
    )
    state.write(state.record_of(request, 1.0))
    written = Path(state.RUN, f"{request.id}.json").read_text()
    state.remove(request.id)
    assert "hunter2" not in written and "key" not in json.loads(written)["options"]["keys"]
    with pytest.raises(TypeError):
        state.write(state.record_of(request, 1.0).replace(options={"leak": Secret("hunter2")}))
    assert state.ids() == []
    state.remove(request.id)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"version": 2}',
        b'{"version": 1}',
        b"\xff",
        b"[" * 100_000,
        b'"' + b"x" * (2 << 20),
    ],
    ids=lambda junk: repr(junk[:12]),
)
def test_junk_is_malformed_and_can_be_removed(junk: bytes) -> None:
    os.makedirs(state.RUN, exist_ok=True)
    Path(state.RUN, "junk.json").write_bytes(junk)
    try:
        with pytest.raises(Malformed):
            state.read("junk")
        assert state.ids() == ["junk"] and state.every() == []
    finally:
        state.remove("junk")
