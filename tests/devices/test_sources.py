"""What each kind of rule finds on a node that is a fake in the shape of a real one."""

from __future__ import annotations

import os
import shutil

from nodeplug.devices.contract import Change, Device, Source
from nodeplug.devices.sources.netdev import NetMatch, NetSource
from nodeplug.devices.sources.path import Member, PathSource
from nodeplug.devices.sources.pci import PciMatch, PciSource
from nodeplug.devices.sources.udev import UdevMatch, UdevSource
from nodeplug.devices.sources.usb import UsbMatch, UsbSource
from nodeplug.devices.topology import Topology
from tests.devices.fake import FakeNode
from tests.needs import needs

pytestmark = needs("root")


def devices(source: Source) -> list[Device]:
    return [device for key in source.keys() for device in source.look(key)]  # noqa: SIM118  # a source is no mapping


def ids(source: Source) -> list[str]:
    return sorted(device.id for device in devices(source))


def usb(fake: FakeNode, **match: str) -> UsbSource:
    return UsbSource(fake.host, Topology(fake.host), UsbMatch(**match))


def pci(fake: FakeNode, **match: str) -> PciSource:
    return PciSource(fake.host, Topology(fake.host), PciMatch(**match))


def net(fake: FakeNode, **match: str) -> NetSource:
    return NetSource(fake.host, Topology(fake.host), NetMatch(**match))


def path(fake: FakeNode, glob: str, *members: Member) -> PathSource:
    return PathSource(Topology(fake.host), glob=f"{fake.dev}/{glob}", members=members)


def test_a_usb_device_is_named_by_its_serial_number_wherever_it_is(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330", numa=1), 1)
    fake.usb(hub, "1-2", "0403", "6001", serial="A50285BI")
    (device,) = devices(usb(fake, vendor="0403", product="6001"))
    assert device.id == "usb-0403-6001-A50285BI"
    assert device.numa == (1,)
    assert device.nodes[0].real == f"{fake.dev}/bus/usb/001/004"
    assert device.nodes[0].host == f"{fake.host.links}/{device.id}/usb"
    assert device.nodes[0].container == "/dev/bus/usb/001/004"
    shutil.rmtree(hub / "1-2")
    os.unlink(fake.sys / "bus/usb/devices/1-2")
    fake.usb(hub, "1-3", "0403", "6001", serial="A50285BI", number=9)
    (moved,) = devices(usb(fake, vendor="0403"))
    assert moved.id == device.id
    assert moved.nodes[0].host == device.nodes[0].host
    assert moved.nodes[0].real != device.nodes[0].real


def test_a_usb_device_without_a_serial_number_is_named_by_its_port_not_its_bus(fake: FakeNode) -> None:
    controller = fake.pci("0000:00:14.0", "8086", "a36d", "0c0330")
    fake.usb(fake.root_hub(controller, 3), "3-2", "046d", "0825")
    fake.usb(fake.root_hub(controller, 4, "3.00"), "4-2", "046d", "0825")
    assert ids(usb(fake)) == ["usb-046d-0825-0000:00:14.0-usbv2-2", "usb-046d-0825-0000:00:14.0-usbv3-2"]


def test_two_sticks_with_one_serial_number_are_two_devices(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    fake.usb(hub, "1-1", "abcd", "1234", serial="0123456789", number=2)
    fake.usb(hub, "1-2", "abcd", "1234", serial="0123456789", number=3)
    source = usb(fake)
    before = ids(source)
    assert before == ["usb-abcd-1234-0123456789", "usb-abcd-1234-0123456789-0000:00:14.0-usbv2-2"]
    assert ids(source) == before
    assert len(set(ids(usb(fake, id="port")))) == 2


def test_child_nodes_are_waited_for_and_given(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    stick = fake.usb(hub, "1-1", "0403", "6011", serial="Q")
    source = usb(fake, subsystem="tty")
    assert devices(source) == []
    first, second = fake.usb_interface(stick, "00"), fake.usb_interface(stick, "01")
    fake.child(first / "ttyUSB0", "tty", "ttyUSB0")
    fake.child(second / "ttyUSB1", "tty", "ttyUSB1")
    (device,) = devices(source)
    assert [node.host.rpartition("/")[2] for node in device.nodes] == ["tty-00.0", "tty-01.0"]
    assert ids(usb(fake, subsystem="tty", each="node")) == ["usb-0403-6011-Q-tty-00.0", "usb-0403-6011-Q-tty-01.0"]
    (only,) = devices(usb(fake, subsystem="tty", interface="01"))
    assert only.nodes[0].real == f"{fake.dev}/ttyUSB1"


def test_a_hub_is_not_given_what_hangs_on_it(fake: FakeNode) -> None:
    root = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    hub = fake.usb(root, "1-1", "05e3", "0610", number=2)
    stick = fake.usb(hub, "1-1.4", "0403", "6001", serial="S", number=3)
    fake.child(fake.usb_interface(stick) / "ttyUSB0", "tty", "ttyUSB0")
    assert ids(usb(fake, subsystem="tty")) == ["usb-0403-6001-S"]
    source = usb(fake)
    place = str(stick).removeprefix(str(fake.sys)) + "/1-1.4:1.0/ttyUSB0/tty/ttyUSB0"
    assert source.touched(Change(devpath=place)) == ["1-1.4"]


def test_what_a_device_says_of_itself_cannot_harm(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    fake.usb(hub, "1-1", "dead", "beef", serial=b"\xff\xfe a/../b\n\x1b[31m" + b"x" * 5000)
    (device,) = devices(usb(fake))
    assert len(device.id) <= 57
    assert device.id.isascii() and "/" not in device.id and "\n" not in device.id
    assert device.properties["serial"].isprintable()


def test_a_usb_device_without_a_driver_is_unhealthy(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    os.unlink(fake.usb(hub, "1-1", "0403", "6001", serial="S") / "driver")
    (device,) = devices(usb(fake))
    assert (device.healthy, device.reason) == (False, "no driver is bound")


def test_pci_functions_are_selected_and_named_by_address(fake: FakeNode) -> None:
    card = fake.pci("0000:03:00.0", "10de", "1eb8", "030200", driver="nvidia", numa=1, bridge="0000:00:01.0")
    fake.child(card, "drm", "renderD128", "dri/renderD128")
    fake.child(card, "drm", "card0", "dri/card0")
    fake.pci("0000:04:00.0", "8086", "0a54", "010802", driver="nvme")
    (device,) = devices(pci(fake, pci_class="0302", subsystem="drm", node="renderD*"))
    assert device.id == "0000:03:00.0"
    assert device.numa == (1,)
    assert [node.container for node in device.nodes] == ["/dev/dri/renderD128"]
    assert ids(pci(fake, vendor="8086")) == ["0000:04:00.0"]
    assert ids(pci(fake, address="0000:0[34]:*")) == ["0000:03:00.0", "0000:04:00.0"]


def test_a_function_bound_to_vfio_is_given_its_group(fake: FakeNode) -> None:
    card = fake.pci("0000:05:00.0", "10de", "1eb8", "030200", driver="vfio-pci")
    fake.iommu_group(card, 42)
    source = pci(fake, driver="vfio-pci")
    assert devices(source) == []
    fake.node("vfio/42")
    fake.node("vfio/vfio", number=(10, 196))
    (device,) = devices(source)
    assert [(node.container, node.common) for node in device.nodes] == [
        ("/dev/vfio/42", False),
        ("/dev/vfio/vfio", True),
    ]


def test_no_memory_node_is_no_topology_and_parents_are_asked(fake: FakeNode) -> None:
    fake.pci("0000:00:02.0", "8086", "1234", "060400", numa=1)
    inner = fake.sys / "devices/pci0000:00/0000:00:02.0/0000:06:00.0"
    inner.mkdir()
    for name, value in (("vendor", "0x10de"), ("device", "0x1"), ("class", "0x030000"), ("numa_node", "-1")):
        fake.write(inner / name, value)
    fake.link(fake.sys / "bus/pci/devices/0000:06:00.0", inner)
    fake.pci("0000:07:00.0", "10de", "0002", "030000", numa=-1)
    found = {device.id: device.numa for device in devices(pci(fake, vendor="10de"))}
    assert found == {"0000:06:00.0": (1,), "0000:07:00.0": ()}


def test_one_memory_node_is_nothing_to_align_to(fake: FakeNode) -> None:
    fake.write(fake.sys / "devices/system/node/online", "0")
    fake.pci("0000:07:00.0", "10de", "0002", "030000", numa=0)
    assert devices(pci(fake))[0].numa == ()


def test_virtual_functions_are_selected_by_their_card_and_stay_while_pods_have_them(fake: FakeNode) -> None:
    card = fake.pci("0000:03:00.0", "8086", "1592", "020000", driver="ice", numa=0)
    fake.interface("ens1", card)
    fake.vfs(card, ["0000:03:01.0", "0000:03:01.1", "0000:03:01.2"])
    first = fake.sys / "bus/pci/devices/0000:03:01.0"
    fake.interface("ens1v0", first.resolve())
    assert ids(net(fake, pf="ens1", vfs="0-1")) == ["0000:03:01.0", "0000:03:01.1"]
    assert ids(net(fake, kind="pf")) == ["0000:03:00.0"]
    assert ids(net(fake, driver="iavf", kind="vf")) == ["0000:03:01.0", "0000:03:01.1", "0000:03:01.2"]
    source = net(fake, kind="vf")
    (device,) = source.look("0000:03:01.0")
    assert (device.properties["interface"], device.properties["vf"]) == ("ens1v0", "0")
    shutil.rmtree(first.resolve() / "net")  # the interface is in a pod's namespace
    os.unlink(fake.sys / "class/net/ens1v0")
    (device,) = source.look("0000:03:01.0")
    assert device.healthy and device.id == "0000:03:01.0" and device.properties["interface"] == ""


def test_interfaces_without_a_card_go_by_name_and_roam(fake: FakeNode) -> None:
    fake.interface("veth0")
    fake.interface("tap1", carrier="0")
    fake.interface("lo")
    assert ids(net(fake)) == ["tap1", "veth0"]
    (device,) = devices(net(fake, name="tap*", link="up"))
    assert device.roams and not device.healthy and "no carrier" in device.reason
    source = net(fake)
    assert source.touched(Change(devpath="/devices/virtual/net/veth9", subsystem="net")) == ["veth9"]
    assert source.look("veth9") == ()


def test_udev_properties_are_waited_for(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    place = fake.child(fake.usb_interface(fake.usb(hub, "1-1", "0403", "6001")) / "ttyUSB0", "tty", "ttyUSB0")
    number = (place / "dev").read_text().strip()
    source = UdevSource(fake.host, Topology(fake.host), UdevMatch({"ID_VENDOR_ID": "0403", "ID_USB_DRIVER": "ftdi*"}))
    assert devices(source) == []
    record = "S:serial/by-id/usb-FTDI\nE:ID_VENDOR_ID=0403\nE:ID_USB_DRIVER=ftdi_sio\nE:ID_SERIAL=FTDI_A1\n"
    fake.write(fake.udev / f"c{number}", record)
    (device,) = devices(source)
    assert device.id == "tty-FTDI_A1"
    assert device.nodes[0].host == f"{fake.host.links}/tty-FTDI_A1/node"
    (fake.dev / "serial/by-id").mkdir(parents=True)
    (fake.dev / "serial/by-id/usb-FTDI").symlink_to("../../ttyUSB0")
    (device,) = devices(source)
    assert device.nodes[0].host == f"{fake.dev}/serial/by-id/usb-FTDI"
    assert source.touched(Change(path=f"{fake.udev}/c{number}")) == (f"c{number}",)
    assert "ID_VENDOR_ID is 0403" in UdevSource(
        fake.host, Topology(fake.host), UdevMatch({"ID_VENDOR_ID": "1234"})
    ).explain(f"{fake.dev}/ttyUSB0")


def test_links_count_when_their_target_is_there(fake: FakeNode) -> None:
    (fake.dev / "by-id").mkdir()
    (fake.dev / "by-id/thing").symlink_to("../ttyUSB0")
    source = path(fake, "by-id/*")
    assert devices(source) == []
    assert str(fake.dev) in source.directories()
    fake.node("ttyUSB0")
    assert source.touched(Change(path=f"{fake.dev}/ttyUSB0")) == {f"{fake.dev}/by-id/thing"}
    (device,) = devices(source)
    assert device.nodes[0].host == f"{fake.dev}/by-id/thing"
    assert device.nodes[0].real == f"{fake.dev}/ttyUSB0"


def test_what_is_no_device_node_does_not_count(fake: FakeNode) -> None:
    (fake.dev / "file").write_text("x")
    (fake.dev / "directory").mkdir()
    os.mkfifo(fake.dev / "fifo")
    (fake.dev / "loop").symlink_to("loop")
    source = path(fake, "*")
    assert devices(source) == []
    assert "not a device node" in source.explain(f"{fake.dev}/file")


def test_names_that_are_no_text_do_no_harm(fake: FakeNode) -> None:
    os.mknod(os.fsencode(fake.dev) + b"/tty\xff\xfe", 0o20600, os.makedev(250, 1))
    os.mknod(str(fake.dev / "tty\nx"), 0o20600, os.makedev(250, 2))
    for id in ids(path(fake, "tty*")):
        assert id.isascii() and id.isprintable()
    assert len(ids(path(fake, "tty*"))) == 2


def test_a_group_is_one_device_with_its_members(fake: FakeNode) -> None:
    for name in ("video0", "media0", "video1"):
        fake.node(name)
    required = path(fake, "video*", Member(f"{fake.dev}/media{{1}}"))
    assert [len(device.nodes) for device in devices(required)] == [2]
    optional = path(fake, "video*", Member(f"{fake.dev}/media{{1}}", optional=True))
    assert [len(device.nodes) for device in devices(optional)] == [2, 1]
    assert optional.touched(Change(path=f"{fake.dev}/media1")) is None


def test_a_regular_expression_walks_its_directory_only(fake: FakeNode) -> None:
    for name in ("snd/pcmC0D0p", "snd/deep/er/pcmC1D0p", "other"):
        fake.node(name)
    source = PathSource(Topology(fake.host), regex=rf"{fake.dev}/snd/(.*/)?pcmC\dD\dp")
    assert len(ids(source)) == 2
    assert str(fake.dev) not in source.directories()
