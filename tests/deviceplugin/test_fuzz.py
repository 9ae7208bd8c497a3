"""Whatever comes in, settings, messages, a command's answer, a broken sysfs: an answer, or an error that says why."""

from __future__ import annotations

import os
import random
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodeplug.core import document
from nodeplug.core.errors import ConfigInvalid, Error, Malformed
from nodeplug.deviceplugin import protocol
from nodeplug.deviceplugin.allocation import allocate, pick, prefer
from nodeplug.deviceplugin.contract import Preference
from nodeplug.deviceplugin.runtime import judge
from nodeplug.deviceplugin.settings import Resource, Settings, problems, resource_name
from nodeplug.devices.contract import Device, Node
from nodeplug.devices.rules import build
from nodeplug.devices.sources.polled import parse_devices
from nodeplug.devices.topology import Topology
from nodeplug.harness.kubelet.devicemanager import is_extended_resource
from nodeplug.kernel import uevent
from tests.devices.fake import FakeNode
from tests.needs import needs

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
keys = ["name", "match", "permissions", "share", "env", "mounts", "cdi", "prefer", "hold", "probe", "reset", "limit"]


@given(json_values)
def test_any_settings_are_read_or_refused_with_their_problems(value: Any) -> None:
    try:
        found = document.decode(Settings, value, path="deviceplugin")
    except ConfigInvalid as invalid:
        assert all(path.startswith("deviceplugin") and sentence for path, sentence in invalid.problems)
        return
    list(problems(found))


@given(st.dictionaries(st.sampled_from(keys), json_values))
def test_any_resource_is_read_or_refused(table: dict[str, Any]) -> None:
    try:
        found = document.decode(Settings, {"resource": [table]})
    except ConfigInvalid as invalid:
        assert invalid.problems
        return
    list(problems(found))


def test_all_problems_are_told_at_once_with_the_nearest_key() -> None:
    text = """
    registration = "kubelet"
    [[resource]]
    name = "kubernetes.io/x"
    match = [ { path = "dev/x" }, { usb = { vendor = "04", prodct = "6001" } }, {}, { path = "/a", regex = "/dev/b" } ]
    permisions = "rw"
    """
    with pytest.raises(ConfigInvalid) as refused:
        document.decode(Settings, tomllib.loads(text))
    found = dict(refused.value.problems)
    assert found["$.resource[0].permisions"].endswith("did you mean permissions?")
    assert found["$.resource[0].match[1].usb.prodct"].endswith("did you mean product?")
    for place in (
        "$.registration",
        "$.resource[0].name",
        "$.resource[0].match[0].path",
        "$.resource[0].match[1].usb.vendor",
    ):
        assert place in found
    assert "exactly one" in found["$.resource[0].match[2]"]
    assert "exactly one" in found["$.resource[0].match[3]"]


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9.-]{1,20}/[A-Za-z0-9._-]{1,70}", fullmatch=True))
@example("a" * 244 + "/x")
@example("a" * 245 + "/x")
@example("x.kubernetes.io/y")
@example("requests.x/y")
def test_we_and_the_kubelet_agree_on_names(name: str) -> None:
    try:
        resource_name(name)
        ours = True
    except ValueError:
        ours = False
    assert ours == is_extended_resource(name)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for read in (
        protocol.read_allocate,
        protocol.read_preferred,
        protocol.read_prestart,
        protocol.read_status,
        protocol.read_list_pods,
    ):
        try:
            read(data)  # type: ignore[operator]  # each takes bytes
        except Malformed:
            pass


@given(st.binary(max_size=300))
def test_any_datagram_is_an_event_or_none(data: bytes) -> None:
    event = uevent.parse(data)
    assert event is None or event.devpath.startswith("/")


@given(st.binary(max_size=300) | json_values.map(lambda value: __import__("json").dumps(value).encode()))
def test_any_answer_of_a_command_is_devices_or_refused(data: bytes) -> None:
    try:
        found = parse_devices(data)
    except ConfigInvalid:
        return
    assert all(0 < len(device.id) <= 57 for device in found)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=50))
def test_any_runtime_is_judged(name: str, version: str, config: str) -> None:
    assert judge(name, version, config)[1]


@pytest.mark.parametrize(
    ("name", "version", "config", "known"),
    [
        ("containerd", "1.6.20~ds1", "{}", False),
        ("containerd", "v1.7.2", '{"enableCDI": false}', False),
        ("containerd", "v1.7.2", '{"enableCDI": true}', True),
        ("containerd", "v2.0.1", "{}", True),
        ("cri-o", "1.29.1", "", True),
        ("cri-o", "1.20.0", "", False),
        ("docker", "20.10", "", False),
    ],
)
def test_runtimes_that_know_cdi_are_known(name: str, version: str, config: str, known: bool) -> None:
    assert judge(name, version, config)[0] is known


def one_resource(**table: Any) -> Resource:
    """A resource as the settings would give it."""
    whole = {"resource": [{"name": "a.b/c", "match": [{"path": "/dev/d*"}], **table}]}
    return document.decode(Settings, whole).resource[0]


devices = {
    f"d{number}": Device(f"d{number}", (Node(f"/dev/d{number}"),), numa=(number % 2,) if number < 6 else ())
    for number in range(8)
}


@given(st.lists(st.sampled_from([f"d{n}::{r}" for n in range(9) for r in range(3)] + ["", "::", "x"]), max_size=8))
def test_an_allocation_is_the_same_in_any_order(ids: list[str]) -> None:
    resource = one_resource(share={"replicas": 2}, env={"P": "{container_path}"})
    shuffled = list(ids)
    random.Random(1).shuffle(shuffled)
    answers = []
    for order in (ids, shuffled):
        try:
            answers.append(protocol.write_allocate([allocate(resource, pick(resource, order, devices), by_cdi=False)]))
        except Error as error:
            answers.append(type(error).__name__.encode())
    assert answers[0] == answers[1]


@given(
    st.lists(st.sampled_from([f"d{n}" for n in range(10)]), max_size=10),
    st.lists(st.sampled_from([f"d{n}" for n in range(10)]), max_size=3),
    st.integers(-2, 12),
    st.sampled_from(["auto", "packed", "spread", "numa"]),
)
def test_a_preference_is_always_an_answer(available: list[str], chosen: list[str], size: int, how: str) -> None:
    resource = one_resource(prefer=how)
    found = prefer(resource, Preference(tuple(available), tuple(chosen), size), devices)
    assert len(found) == len(set(found)) <= max(0, size)
    assert set(found) <= {*available, *chosen}
    if available and set(chosen) <= set(available):
        assert len(found) == min(max(0, size), len(set(available)))


def test_devices_of_one_memory_node_are_preferred() -> None:
    resource = one_resource()
    found = prefer(resource, Preference(tuple(devices), ("d1",), 3), devices)
    assert {devices[id].numa for id in found} == {(1,)}


@pytest.mark.parametrize(("how", "count"), [("packed", 1), ("spread", 3)])
def test_shares_are_packed_or_spread(how: str, count: int) -> None:
    resource = one_resource(prefer=how, share={"replicas": 3})
    available = (*(f"d{device}::{share}" for device in (6, 7) for share in range(3)), "d0::2")
    found = prefer(resource, Preference(available, (), 3), devices)
    assert len({id.partition("::")[0] for id in found}) == count + (1 if how == "packed" else 0)
    if how == "packed":
        assert "d0::2" in found, "the share whose device is in use already comes first"


@needs("root")
@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["idVendor", "idProduct", "serial", "uevent", "numa_node", "vendor", "class", "device", "carrier"]
        ),
        st.binary(max_size=100) | st.just(b"x" * 4200) | st.just(b"DEVNAME=../../etc\n") | st.just(b"\xff\xfe\n\n"),
    )
)
def test_a_sysfs_full_of_rubbish_breaks_no_source(attributes: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(prefix="np-") as top:
        fake = FakeNode(Path(top))
        card = fake.pci("0000:00:14.0", "8086", "a36d", "0c0330")
        stick = fake.usb(fake.root_hub(card, 1), "1-1", "0403", "6001")
        place = fake.child(fake.usb_interface(stick) / "ttyUSB0", "tty", "ttyUSB0")
        nic = fake.pci("0000:03:00.0", "8086", "1592", "020000")
        for directory in (stick, place, card, nic, fake.interface("e0", nic)):
            for name, value in attributes.items():
                if not (directory / name).is_dir():
                    (directory / name).write_bytes(value)
        os.symlink("loop", card / "loop")
        rules = [{"usb": {}}, {"usb": {"subsystem": "tty"}}, {"pci": {"vendor": "8086"}}, {"netdev": {"kind": "any"}}]
        for table in rules:
            (rule,) = one_resource(match=[table]).match
            source = build(rule, fake.host, Topology(fake.host), wake=lambda: None, note=lambda _: None)
            for key in source.keys():  # noqa: SIM118  # a source is no mapping
                for device in source.look(key):
                    assert device.id.isascii()
                    assert all(not node.real.startswith(f"{fake.dev}/..") for node in device.nodes)
            source.explain(f"{fake.dev}/ttyUSB0")
