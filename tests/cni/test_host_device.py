"""host-device: a device of the host in a pod and home again, whichever way the pod ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.plugins.hostdevice import loans
from nodeplug.cni.plugins.hostdevice.config import HostDeviceConf, is_pci_address
from nodeplug.core.document import reference
from nodeplug.kernel import mount
from tests.child import run
from tests.cni.calls import VERSIONS, ask
from tests.cni.pods import REFERENCE, Network, addresses, host_links, host_local, link, routes, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import Space

pytestmark = needs("sandbox")
PAGE = CHECKOUT / "docs" / "cni" / "host-device.md"
PCI = "0000:00:1f.6"


@pytest.fixture
def device(ledger: Ledger) -> str:
    """A link of the host with another namespace behind it, as a card has a network behind it."""
    far = ledger.netns()
    ledger.link("ens5")
    run(["ip", "link", "add", "ens5", "type", "veth", "peer", "name", "far", "netns", far.name]).ok()
    far.run("ip", "address", "add", "10.7.0.1/24", "dev", "far").ok()
    far.run("ip", "link", "set", "far", "up").ok()
    run(["ip", "link", "set", "ens5", "up", "alias", "rack 7"]).ok()
    return "ens5"


@pytest.fixture
def network(ledger: Ledger, device: str) -> Network:
    return Network(ledger, type="host-device", device=device, ipam=static("10.7.0.2/24,10.7.0.1"))


def loan_files() -> list[str]:
    directory = Path(loans.DIRECTORY)
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def at_home(name: str = "ens5", *, alias: str = "rack 7") -> bool:
    found = link(name)
    return found is not None and found.alias == alias and not loan_files()


def test_add_moves_the_device_and_delete_brings_it_home(network: Network, netns: Space) -> None:
    before = link("ens5")
    result = network.add(netns)
    inside = link("eth0", netns)
    assert before is not None and inside is not None
    assert (inside.mac, inside.alias, inside.up) == (before.mac, "ens5", True)
    assert result["interfaces"] == [
        {"name": "eth0", "mac": before.mac.hex(":"), "mtu": 1500, "sandbox": netns.path},
    ]
    assert result["ips"][0]["interface"] == 0
    assert (addresses(netns), host_links()) == ({"10.7.0.2/24"}, set())
    assert netns.run("ping", "-c", "1", "-W", "2", "10.7.0.1").code == 0
    network.check(netns, result)
    network.delete(netns)
    assert at_home()
    back = link("ens5")
    assert back is not None
    assert (back.mac, back.up) == (before.mac, False)
    assert netns.links() == {"lo"}
    network.delete(netns)
    assert at_home()


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_its_result(network: Network, netns: Space, version: str) -> None:
    result = network.add(netns, {"cniVersion": version})
    assert "10.7.0.2/24" in json.dumps(result)
    if version >= "0.4.0":
        network.check(netns, result, {"cniVersion": version})
    network.delete(netns, {"cniVersion": version})
    assert at_home()


def test_without_address_manager_the_device_is_only_moved(ledger: Ledger, device: str, netns: Space) -> None:
    network = Network(ledger, type="host-device", device=device)
    result = network.add(netns)
    assert "ips" not in result
    assert addresses(netns) == set()
    network.check(netns, result)
    network.delete(netns)
    assert at_home()


@pytest.mark.parametrize("by", ["hwaddr", "kernelpath", "pciBusID", "virtio", "deviceID", "auxiliary"])
def test_the_device_is_found_by(ledger: Ledger, device: str, netns: Space, by: str, sysfs: Path) -> None:
    found = link(device)
    assert found is not None
    extra: dict[str, Any] = {}
    config: dict[str, Any] = {}
    if by == "hwaddr":
        config["hwaddr"] = found.mac.hex("-").upper()
    elif by == "kernelpath":
        config["kernelpath"] = f"/sys/devices/virtual/net/{device}/../../.."
        code, answer, _ = ask("host-device", Network(ledger, type="host-device").env("ADD", netns), conf(config))
        assert (code, answer["code"]) == (1, 7)
        assert "must lie below /sys/devices/" in answer["details"]
        place = sysfs / "devices" / "card"
        (place / "net" / device).mkdir(parents=True)
        bind(ledger, place, Path("/sys/devices/virtual/misc"))
        config["kernelpath"] = "/sys/devices/virtual/misc"
    elif by == "pciBusID":
        (sysfs / "pci" / PCI / "net" / device).mkdir(parents=True)
        config["pciBusID"] = PCI.upper()
    elif by == "virtio":
        (sysfs / "pci" / PCI / "virtio3" / "net" / device).mkdir(parents=True)
        config["pciBusID"] = PCI
    elif by == "deviceID":
        (sysfs / "pci" / PCI / "net" / device).mkdir(parents=True)
        config["device"] = "some-other"
        extra = {"runtimeConfig": {"deviceID": PCI}}
    else:
        (sysfs / "auxiliary" / "mlx5_core.sf.4" / "net" / device).mkdir(parents=True)
        extra = {"runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}
    network = Network(ledger, type="host-device", **config)
    network.add(netns, extra)
    assert (netns.links(), host_links()) == ({"lo", "eth0"}, set())
    network.delete(netns, extra)
    assert at_home()


def conf(config: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "pods", "type": "host-device", **config}


@pytest.fixture
def sysfs(ledger: Ledger) -> Path:
    """A directory whose pci/ and auxiliary/ are what /sys/bus has of devices; this kernel may lack the buses."""
    directory = ledger.directory()
    cover = directory / "bus"
    for bus in ("pci", "auxiliary"):
        (directory / bus).mkdir()
        (cover / bus).mkdir(parents=True)
        (cover / bus / "devices").symlink_to(directory / bus)
    bind(ledger, cover, Path("/sys/bus"))
    return directory


def bind(ledger: Ledger, source: Path, target: Path) -> None:
    mount.bind(str(source), str(target))
    ledger.adopt(f"mount {target}", lambda: mount.unmount(str(target), detach=True))


def test_device_of_a_user_space_driver_is_given_addresses_and_not_moved(
    ledger: Ledger, netns: Space, sysfs: Path
) -> None:
    place = sysfs / "pci" / PCI
    place.mkdir()
    (sysfs / "vfio-pci").mkdir()
    (place / "driver").symlink_to("../../vfio-pci")
    network = Network(ledger, type="host-device", ipam=static("10.7.0.2/24"))
    extra = {"runtimeConfig": {"deviceID": PCI}}
    result = network.add(netns, extra)
    assert "interfaces" not in result
    assert [ip["address"] for ip in result["ips"]] == ["10.7.0.2/24"]
    network.check(netns, result, extra)
    network.delete(netns, extra)
    assert netns.links() == {"lo"}


def test_dpdk_mode_may_be_set_by_hand_and_in_any_case(ledger: Ledger, device: str, netns: Space) -> None:
    network = Network(ledger, type="host-device", device=device, DPDKMode=True, ipam=static("10.7.0.2/24"))
    network.add(netns)
    assert host_links() == {"ens5"}
    network.delete(netns)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, 'specify one of "device", "hwaddr", "kernelpath" and "pciBusID"'),
        ({"device": "ens5", "pciBusID": PCI}, "and not device and pciBusID"),
        ({"pciBusID": "0000:00:20.0"}, "is not the address of a PCI device"),
        ({"pciBusID": "../.."}, "is not the address of a PCI device"),
        ({"kernelpath": "/etc"}, "must lie below /sys/devices/"),
        ({"hwaddr": "zz"}, "is not the MAC address"),
        ({"device": "a/b"}, "cannot be the name of a link"),
        ({"runtimeConfig": {"deviceID": "../x"}}, "neither the address of a PCI device nor"),
    ],
)
def test_a_configuration_that_cannot_be_is_told(netns: Space, ledger: Ledger, config: Any, words: str) -> None:
    network = Network(ledger, type="host-device", **config)
    answer = network.refused("ADD", netns)
    assert (answer["code"], words in answer["details"]) == (7, True), answer


@pytest.mark.parametrize("config", [{"device": "ens9"}, {"hwaddr": "02:00:00:00:00:99"}, {"pciBusID": PCI}])
def test_device_that_is_not_there_is_told(ledger: Ledger, netns: Space, config: Any) -> None:
    answer = Network(ledger, type="host-device", **config).refused("ADD", netns)
    assert answer["code"] == 3 or "this host has no" in answer["msg"], answer
    assert loan_files() == []


def test_address_manager_that_refuses_leaves_the_device_at_home(ledger: Ledger, device: str, netns: Space) -> None:
    network = Network(ledger, type="host-device", device=device, ipam={"type": "no-such-manager"})
    network.refused("ADD", netns)
    assert at_home()


def test_address_is_released_without_netns(ledger: Ledger, device: str, netns: Space) -> None:
    """containernetworking/plugins#1196."""
    network = Network(ledger, type="host-device", device=device, ipam=host_local())
    network.add(netns)
    assert network.leases() == {"10.88.0.2"}
    network.delete(netns, CNI_NETNS="")
    assert network.leases() == set()
    assert at_home()


def test_pod_that_has_an_interface_of_that_name_keeps_it(network: Network, netns: Space) -> None:
    netns.run("ip", "link", "add", "eth0", "type", "bridge").ok()
    assert "already exists" in network.refused("ADD", netns)["msg"]
    network.delete(netns)
    found = link("eth0", netns)
    assert found is not None and found.kind == "bridge"
    assert at_home()


def test_delete_fails_while_the_name_is_taken_and_succeeds_later(network: Network, netns: Space) -> None:
    network.add(netns)
    run(["ip", "link", "add", "ens5", "type", "bridge"]).ok()
    answer = network.refused("DEL", netns)
    assert (answer["code"], "another link called ens5" in answer["msg"]) == (11, True), answer
    inside = link("eth0", netns)
    assert inside is not None and inside.up
    run(["ip", "link", "delete", "ens5"]).ok()
    network.delete(netns)
    assert at_home()


def test_device_comes_home_though_the_pod_has_another_of_its_name(network: Network, netns: Space) -> None:
    network.add(netns)
    netns.run("ip", "link", "add", "ens5", "type", "bridge").ok()
    network.delete(netns)
    assert at_home()
    assert netns.links() == {"lo", "ens5"}


def test_device_of_one_pod_is_refused_to_another_by_name_of_its_holder(
    ledger: Ledger, network: Network, netns: Space
) -> None:
    network.add(netns)
    other = ledger.netns()
    answer = network.refused("ADD", other)
    assert f"in use by container {netns.name}" in answer["msg"]
    network.delete(other)
    assert link("eth0", netns) is not None
    network.delete(netns)
    assert at_home()


def test_the_same_add_again_is_refused_and_the_pod_keeps_its_device(network: Network, netns: Space) -> None:
    network.add(netns)
    assert "already" in network.refused("ADD", netns)["msg"]
    assert addresses(netns) == {"10.7.0.2/24"}


def test_port_of_a_bridge_is_not_taken_from_it(network: Network, netns: Space, ledger: Ledger) -> None:
    ledger.link("br7")
    run(["ip", "link", "add", "br7", "type", "bridge"]).ok()
    run(["ip", "link", "set", "ens5", "master", "br7"]).ok()
    assert "is a port of br7" in network.refused("ADD", netns)["msg"]
    assert at_home()


def test_check_tells_another_device_in_its_place(network: Network, netns: Space) -> None:
    result = network.add(netns)
    netns.run("ip", "address", "flush", "dev", "eth0").ok()
    assert "has not the address 10.7.0.2/24" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    netns.run("ip", "link", "set", "eth0", "down").ok()
    netns.run("ip", "link", "set", "eth0", "name", "else").ok()
    assert "eth0" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    network.delete(netns)
    assert at_home()


def test_gc_brings_home_what_no_valid_attachment_has(ledger: Ledger, network: Network, netns: Space) -> None:
    network.add(netns)
    valid = [{"containerID": netns.name, "ifname": "eth0"}]
    other = {"name": "others"}
    for config in ({"cni.dev/valid-attachments": valid}, {"cni.dev/valid-attachments": [], **other}):
        assert network.ask("GC", None, config) == (0, None)
        assert link("eth0", netns) is not None
    assert network.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert at_home()


def test_status_knows_wrong_configurations_and_asks_for_no_device(ledger: Ledger, netns: Space) -> None:
    assert Network(ledger, type="host-device", device="ens9").ask("STATUS") == (0, None)
    assert Network(ledger, type="host-device").ask("STATUS") == (0, None)
    assert Network(ledger, type="host-device", device="a", pciBusID=PCI).refused("STATUS")["code"] == 7


@needs("file:/usr/lib/cni/host-device")
@pytest.mark.parametrize("way", ["theirs then ours", "ours then theirs"])
def test_either_takes_back_what_the_other_lent(network: Network, netns: Space, way: str) -> None:
    config = {**network.config, "cniVersion": "1.0.0"}
    env = network.env("ADD", netns)

    def theirs(command: str, result: Any = None) -> Any:
        stdin = json.dumps({**config, **({"prevResult": result} if result else {})}).encode()
        done = run([f"{REFERENCE}/host-device"], env={**env, "CNI_COMMAND": command}, stdin=stdin)
        assert done.code == 0, done.text
        return json.loads(done.text) if done.text else None

    if way == "theirs then ours":
        theirs("ADD")
        assert link("ens5") is None
        network.delete(netns, {"cniVersion": "1.0.0"})
    else:
        result = network.add(netns, {"cniVersion": "1.0.0"})
        theirs("DEL", result)
        network.delete(netns, {"cniVersion": "1.0.0"})
    found = link("ens5")
    assert found is not None
    assert (netns.links(), loan_files()) == ({"lo"}, [])


@needs("file:/usr/lib/cni/host-device")
def test_results_are_those_of_the_reference(network: Network, netns: Space) -> None:
    extra = {"cniVersion": "1.0.0"}
    ours = network.add(netns, extra)
    seen = addresses(netns), routes(netns)
    network.delete(netns, extra)
    env = network.env("ADD", netns)
    stdin = network.stdin(extra)
    theirs = run([f"{REFERENCE}/host-device"], env=env, stdin=stdin).ok().json()
    assert (addresses(netns), routes(netns)) == seen
    run([f"{REFERENCE}/host-device"], env={**env, "CNI_COMMAND": "DEL"}, stdin=stdin).ok()
    for result in (ours, theirs):
        for interface in result["interfaces"]:
            interface.pop("mtu", None)  # a key of 1.1.0, which their release has not
    assert theirs.pop("dns") == {}  # which later releases leave out
    assert ours == theirs


@pytest.mark.parametrize("given", ["0000:00:1f.6", "10000:e1:00.0", "0000:ff:1F.7"])
def test_pci_addresses_are_known(given: str) -> None:
    assert is_pci_address(given)


@pytest.mark.parametrize("given", ["", "0000:00:20.0", "00:1f.6", "0000:00:1f.8", "0000:00:1f", "g000:00:1f.6"])
def test_what_is_no_pci_address_is_known(given: str) -> None:
    assert not is_pci_address(given)


def test_the_keys_of_the_page_are_those_that_are_read() -> None:
    assert reference(HostDeviceConf).strip() in PAGE.read_text()
