"""tuning: each setting from each place that may name it, set on ADD, compared by CHECK, put back on DEL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.plugins.tuning import sysctls
from nodeplug.cni.plugins.tuning.config import TuningConf
from nodeplug.core import document
from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.calls import VERSIONS
from tests.cni.chains import MAC, Chain, result, wire
from tests.cni.pods import Network, link, setting
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")

BACKUPS = Path("/run/cni/tuning")
OTHER = "02:00:00:00:00:99"


@pytest.fixture
def pod(ledger: Ledger, netns: Space) -> Space:
    ledger.adopt("backups", lambda: run(["rm", "-rf", str(BACKUPS)]))
    wire(ledger, netns)
    return netns


def tuning(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, type="tuning", **config)


def add(network: Network, pod: Space, extra: Any = None, **variables: str | None) -> dict[str, Any]:
    return network.add(pod, {"prevResult": result(pod, "10.0.0.2/24"), **(extra or {})}, **variables)


def state(pod: Space) -> dict[str, Any]:
    (found,) = pod.ip("link", "show", "dev", "eth0")
    flags = found["flags"]
    return {
        "mac": found["address"],
        "mtu": found["mtu"],
        "txQLen": found.get("txqlen", 0),
        "promisc": "PROMISC" in flags,
        "allmulti": "ALLMULTI" in flags,
    }


AS_MADE = {"mac": MAC, "mtu": 1500, "txQLen": 1000, "promisc": False, "allmulti": False}
TUNED = {"mac": OTHER, "mtu": 1400, "txQLen": 0, "promisc": True, "allmulti": True}


@pytest.mark.parametrize("version", VERSIONS)
def test_without_keys_the_result_before_passes_through_in_every_version(
    ledger: Ledger, pod: Space, version: str
) -> None:
    before: dict[str, Any] = {**result(pod, "10.0.0.2/24"), "cniVersion": version}
    if version < "0.3":
        before = {"cniVersion": version, "ip4": {"ip": "10.0.0.2/24"}, "dns": {}}
    elif version < "1":
        before["ips"][0]["version"] = "4"
        before["dns"] = {}
    network = tuning(ledger, cniVersion=version)
    assert network.add(pod, {"prevResult": before}) == before
    assert state(pod) == AS_MADE
    if version >= "0.4.0":
        network.check(pod, before)
    network.delete(pod)


@pytest.mark.parametrize("name", AS_MADE)
@pytest.mark.parametrize("place", ["key", "args"])
def test_each_setting_is_set_checked_and_put_back(ledger: Ledger, pod: Space, name: str, place: str) -> None:
    keys: dict[str, Any] = {name: TUNED[name]}
    keys = (
        keys if place == "key" else {"args": {"cni": keys}, **({"mac": "02:00:00:00:00:55"} if name == "mac" else {})}
    )
    network = tuning(ledger, **keys)
    answer = add(network, pod)
    assert state(pod) == {**AS_MADE, name: TUNED[name]}
    assert answer["interfaces"][0]["mac"] == (OTHER if name == "mac" else MAC)
    network.check(pod, answer)
    pod.run("ip", "link", "set", "eth0", *CHANGED[name]).ok()
    assert f"{name.lower()} of eth0 is" in network.refused("CHECK", pod, {"prevResult": answer})["msg"]
    network.delete(pod)
    assert state(pod) == AS_MADE
    assert list(BACKUPS.iterdir()) == []


CHANGED = {
    "mac": ("address", "02:00:00:00:00:77"),
    "mtu": ("mtu", "1300"),
    "txQLen": ("txqlen", "7"),
    "promisc": ("promisc", "off"),
    "allmulti": ("allmulticast", "off"),
}


def test_the_mac_address_of_args_goes_before_runtime_config_before_cni_args_before_the_key(
    ledger: Ledger, pod: Space
) -> None:
    macs = [f"02:00:00:00:01:0{n}" for n in range(4)]
    network = tuning(ledger, mac=macs[0])
    by_variable = {"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={macs[1]}"}
    runtime = {"runtimeConfig": {"mac": macs[2]}}
    args = {"args": {"cni": {"mac": macs[3]}}}
    add(network, pod)
    assert state(pod)["mac"] == macs[0]
    add(network, pod, **by_variable)
    assert state(pod)["mac"] == macs[1]
    add(network, pod, runtime, **by_variable)
    assert state(pod)["mac"] == macs[2]
    assert add(network, pod, {**runtime, **args}, **by_variable)["interfaces"][0]["mac"] == macs[3]
    assert state(pod)["mac"] == macs[3]
    network.delete(pod)
    assert state(pod)["mac"] == MAC


def test_a_mac_address_that_is_none_is_refused(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger)
    error = network.refused("ADD", pod, {"mac": "01:00:5e:00:00:01", "prevResult": result(pod)})
    assert (error["code"], "$.mac" in error["details"]) == (7, True)
    assert network.refused("ADD", pod, {"prevResult": result(pod)}, CNI_ARGS="MAC=nonsense")["code"] == 4
    network.delete(pod, CNI_ARGS="MAC=nonsense")


def test_an_mtu_that_was_told_is_told_anew(ledger: Ledger, pod: Space) -> None:
    before = result(pod, "10.0.0.2/24")
    before["interfaces"][0]["mtu"] = 1500
    assert tuning(ledger, mtu=1400).add(pod, {"prevResult": before})["interfaces"][0]["mtu"] == 1400


def test_it_must_be_chained(ledger: Ledger, pod: Space) -> None:
    error = tuning(ledger, mtu=1400).refused("ADD", pod)
    assert (error["code"], error["msg"]) == (7, "Required prevResult missing")


def test_a_missing_interface_is_named(ledger: Ledger, netns: Space) -> None:
    error = tuning(ledger, mtu=1400).refused("ADD", netns, {"prevResult": result(netns)})
    assert "there is no interface eth0" in error["msg"]


@pytest.mark.parametrize(
    "key",
    [
        "net.ipv4.conf.IFNAME.arp_ignore",
        "net.ipv4.conf.eth0.arp_ignore",
        "net/ipv4/conf/IFNAME/arp_ignore",
        "net.ipv4/conf/eth0.arp_ignore",
    ],
)
def test_a_setting_is_named_by_dots_or_slashes_and_ifname_stands_for_the_interface(
    ledger: Ledger, pod: Space, key: str
) -> None:
    network = tuning(ledger, sysctl={key: "1"})
    answer = add(network, pod)
    assert setting(pod, "net", "ipv4", "conf", "eth0", "arp_ignore") == "1"
    network.check(pod, answer)
    pod.call(lambda: Path("/proc/sys/net/ipv4/conf/eth0/arp_ignore").write_text("2"))
    error = network.refused("CHECK", pod, {"prevResult": answer})
    assert "net.ipv4.conf.eth0.arp_ignore is '2', not '1'" in error["msg"]


@pytest.mark.parametrize("key", ["net.ipv4.conf.IFNAME.arp_ignore", "net/ipv4/conf/eth0.100/arp_ignore"])
def test_an_interface_whose_name_has_a_dot_is_reached(ledger: Ledger, netns: Space, key: str) -> None:
    wire(ledger, netns, "eth0.100")
    network = tuning(ledger, sysctl={key: "1"})
    network.add(netns, {"prevResult": result(netns, ifname="eth0.100")}, CNI_IFNAME="eth0.100")
    assert setting(netns, "net", "ipv4", "conf", "eth0.100", "arp_ignore") == "1"


def test_only_the_first_ifname_of_a_key_is_replaced() -> None:
    assert sysctls.segments_of("net.IFNAME.IFNAME.x", "e.0") == ("net", "e.0", "IFNAME", "x")
    assert sysctls.segments_of("net.a-IFNAME-b.x", "e") == ("net", "a-e-b", "x")


def test_settings_of_args_are_added_to_those_of_the_key(ledger: Ledger, pod: Space) -> None:
    conf = "net.ipv4.conf.IFNAME"
    network = tuning(ledger, sysctl={f"{conf}.arp_ignore": "1", f"{conf}.arp_notify": "1"})
    add(network, pod, {"args": {"cni": {"sysctl": {f"{conf}.arp_ignore": "2", f"{conf}.arp_announce": "2"}}}})
    values = [
        setting(pod, "net", "ipv4", "conf", "eth0", name) for name in ("arp_ignore", "arp_notify", "arp_announce")
    ]
    assert values == ["2", "1", "2"]
    alone = tuning(ledger)
    add(alone, pod, {"args": {"cni": {"sysctl": {f"{conf}.arp_ignore": "1"}}}})
    assert setting(pod, "net", "ipv4", "conf", "eth0", "arp_ignore") == "1"


@pytest.mark.parametrize(
    "key", ["kernel.hostname", "vm.swappiness", "net", "net.core", "net.ipv4..ip_forward", "net/../kernel/hostname", ""]
)
def test_what_is_no_setting_of_a_network_namespace_is_refused(ledger: Ledger, pod: Space, key: str) -> None:
    error = tuning(ledger, sysctl={key: "1"}).refused("ADD", pod, {"prevResult": result(pod)})
    assert error["code"] == 7
    assert "is not" in error["details"]


def test_a_setting_that_does_not_exist_is_named_and_what_was_done_is_taken_back(ledger: Ledger, pod: Space) -> None:
    keys = {"net.ipv4.conf.IFNAME.arp_ignore": "1", "net.ipv4.no_such": "1"}
    error = tuning(ledger, sysctl=keys, mtu=1400).refused("ADD", pod, {"prevResult": result(pod)})
    assert "cannot set net.ipv4.no_such" in error["msg"]
    assert "has no such setting" in error["details"]
    assert setting(pod, "net", "ipv4", "conf", "eth0", "arp_ignore") == "0"
    assert state(pod) == AS_MADE


def test_when_the_interface_refuses_everything_is_taken_back(ledger: Ledger, pod: Space) -> None:
    keys = {"sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"}, "txQLen": 5, "mac": OTHER, "mtu": 65535}
    tight = tuning(ledger, **keys)
    pod.run("ip", "link", "add", "mv0", "link", "eth0", "type", "macvlan").ok()
    before = result(pod, ifname="mv0")
    made = link("mv0", pod)
    error = tight.refused("ADD", pod, {"prevResult": before}, CNI_IFNAME="mv0")
    assert "cannot set mtu of mv0 to 65535" in error["msg"]
    assert link("mv0", pod) == made
    assert setting(pod, "net", "ipv4", "conf", "mv0", "arp_ignore") == "0"
    assert list(BACKUPS.iterdir()) == []


def test_one_setting_twice_is_refused(ledger: Ledger, pod: Space) -> None:
    twice = '{"net.ipv4.conf.all.log_martians": "1", "net.ipv4.conf.all.log_martians": "0"}'
    for place in (f'"sysctl": {twice}', f'"args": {{"cni": {{"sysctl": {twice}}}}}'):
        plain = json.dumps({"cniVersion": "1.1.0", "name": "n", "type": "tuning", "prevResult": result(pod)})
        network = tuning(ledger)
        stdin = (plain[:-1] + f", {place}}}").encode()
        done = run([network.plugins / "tuning"], env=network.env("ADD", pod), stdin=stdin)
        assert done.code == 1
        assert "is there twice" in done.json()["details"]
    same = {"net.ipv4.conf.IFNAME.arp_ignore": "1", "net/ipv4/conf/eth0/arp_ignore": "2"}
    error = tuning(ledger, sysctl=same).refused("ADD", pod, {"prevResult": result(pod)})
    assert "means the same setting as another key" in error["details"]


def test_an_interface_whose_name_has_a_slash_is_refused_before_anything_is_set(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, sysctl={"net.ipv4.conf.all.log_martians": "1"})
    for name in ("eth/0", "../all"):
        error = network.refused("ADD", pod, {"prevResult": result(pod, ifname=name)}, CNI_IFNAME=name)
        assert (error["code"], error["msg"]) == (4, "invalid CNI_IFNAME: it holds /, : or white space")
    assert setting(pod, "net", "ipv4", "conf", "all", "log_martians") == "0"


def test_values_that_the_kernel_reads_alike_are_alike(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, sysctl={"net.ipv4.ping_group_range": "0 10", "net.ipv4.conf.all.log_martians": "01"})
    network.check(pod, add(network, pod))
    assert not sysctls.same("1", "one") and sysctls.same("a 1", "a\t0x1")


def test_a_setting_that_only_takes_orders_is_written_and_not_compared(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, sysctl={"net.ipv4.route.flush": "1"})
    network.check(pod, add(network, pod))


def test_the_hosts_own_settings_stay(ledger: Ledger, pod: Space) -> None:
    path = Path("/proc/sys/net/ipv4/conf/all/log_martians")
    before = path.read_text()
    add(tuning(ledger, sysctl={"net.ipv4.conf.all.log_martians": "1"}), pod)
    assert (path.read_text(), setting(pod, "net", "ipv4", "conf", "all", "log_martians")) == (before, "1")


def test_with_a_list_of_allowed_settings_only_those_are_set(ledger: Ledger, pod: Space) -> None:
    allowed = Path(sysctls.ALLOWLIST)
    allowed.parent.mkdir(parents=True)
    ledger.adopt("allowlist", lambda: run(["rm", "-rf", str(allowed.parent)]))
    allowed.write_text("\n  ^net\\.ipv4\\.conf\\.IFNAME\\.arp_[a-z]+$  \n^net\\.core\\.\n")
    good = tuning(ledger, sysctl={"net.ipv4.conf.IFNAME.arp_ignore": "1"})
    bad = tuning(ledger, sysctl={"net.ipv4.conf.IFNAME.arp_ignore": "1", "net.ipv4.conf.all.arp_ignore": "1"})
    good.check(pod, add(good, pod))
    error = bad.refused("ADD", pod, {"prevResult": result(pod)})
    assert error["msg"] == "net.ipv4.conf.all.arp_ignore may not be set on this node"
    assert good.ask("STATUS")[0] == 0
    assert "may not be set" in bad.refused("STATUS")["msg"]
    allowed.write_text("net(\n")
    assert "line 1: 'net(' is no regular expression" in good.refused("ADD", pod, {"prevResult": result(pod)})["details"]
    allowed.write_text("")
    assert "may not be set" in good.refused("ADD", pod, {"prevResult": result(pod)})["msg"]
    add(tuning(ledger, mtu=1400), pod)


def test_delete_succeeds_whatever_is_gone_and_keeps_no_backup(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, mtu=1400)
    network.delete(pod)
    add(network, pod)
    assert [path.name for path in BACKUPS.iterdir()] == [f"{identity('pods', pod.name, 'eth0')}.json"]
    pod.run("ip", "link", "delete", "eth0").ok()
    network.delete(pod)
    assert list(BACKUPS.iterdir()) == []
    wire(ledger, pod)
    add(network, pod)
    network.delete(pod, CNI_NETNS="")
    assert list(BACKUPS.iterdir()) == []
    add(network, pod)
    pod.remove()
    network.delete(pod)
    assert list(BACKUPS.iterdir()) == []


def test_delete_survives_a_damaged_backup(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, mtu=1400)
    for damage in ('{"mtu": "many", "mac": 7, "link": 3}', "{", "[]", ""):
        add(network, pod)
        (backup,) = BACKUPS.iterdir()
        backup.write_text(damage)
        network.delete(pod)
        assert list(BACKUPS.iterdir()) == []


def test_a_later_interface_of_that_name_is_not_given_the_values_of_an_earlier_one(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, mtu=1400)
    add(network, pod)
    pod.run("ip", "link", "delete", "eth0").ok()
    wire(ledger, pod)
    pod.run("ip", "link", "set", "eth0", "mtu", "1300").ok()
    add(network, pod)
    network.delete(pod)
    assert state(pod)["mtu"] == 1300


def test_two_tunings_of_one_chain_put_back_what_was_there_before_both(ledger: Ledger, pod: Space) -> None:
    first, second = tuning(ledger, mtu=1400, mac=OTHER), tuning(ledger, mtu=1300, promisc=True)
    add(first, pod)
    add(second, pod)
    assert state(pod) == {**AS_MADE, "mac": OTHER, "mtu": 1300, "promisc": True}
    second.delete(pod)
    assert state(pod) == AS_MADE
    first.delete(pod)
    assert state(pod) == AS_MADE


def test_what_the_reference_plugin_kept_is_put_back(ledger: Ledger, pod: Space) -> None:
    network = tuning(ledger, mtu=1400, mac=OTHER)
    before = {**result(pod), "cniVersion": "1.0.0"}
    done = run(
        ["/usr/lib/cni/tuning"],
        env=network.env("ADD", pod),
        stdin=json.dumps({**network.config, "cniVersion": "1.0.0", "prevResult": before}).encode(),
    )
    assert done.code == 0, done.text
    assert [path.name for path in BACKUPS.iterdir()] == [f"{pod.name}_eth0.json"]
    network.delete(pod)
    assert (state(pod), list(BACKUPS.iterdir())) == (AS_MADE, [])


def test_backups_are_kept_where_the_configuration_says(ledger: Ledger, pod: Space, directory: Path) -> None:
    network = tuning(ledger, mtu=1400, dataDir=str(directory / "a" / "b"))
    add(network, pod)
    (backup,) = (directory / "a" / "b").iterdir()
    assert backup.stat().st_mode & 0o777 == 0o600
    network.delete(pod)
    assert (state(pod), list((directory / "a" / "b").iterdir())) == (AS_MADE, [])
    assert "absolute path" in tuning(ledger, dataDir="here").refused("ADD", pod)["details"]


def test_gc_removes_backups_of_its_network_whose_attachment_is_not_valid(ledger: Ledger, pod: Space) -> None:
    network, other = tuning(ledger, mtu=1400), tuning(ledger, mtu=1400, name="other")
    add(network, pod)
    add(network, pod, CNI_CONTAINERID="dead")
    add(other, pod, CNI_CONTAINERID="dead")
    (BACKUPS / "x_eth0.json").write_text("{}")
    valid = {"cni.dev/valid-attachments": [{"containerID": pod.name, "ifname": "eth0"}]}
    assert network.ask("GC", None, valid) == (0, None)
    kept = {f"{identity(*names, 'eth0')}.json" for names in (("pods", pod.name), ("other", "dead"))}
    assert {path.name for path in BACKUPS.iterdir()} == {*kept, "x_eth0.json"}


def test_keys_are_read_in_any_case_and_wrong_types_are_named(ledger: Ledger, pod: Space) -> None:
    add(tuning(ledger, MTU=1400, TXQLEN=7, Promisc=None), pod)
    assert state(pod) == {**AS_MADE, "mtu": 1400, "txQLen": 7}
    bad = tuning(ledger, sysctl={"net.core.somaxconn": 7}, promisc="yes", txQLen=-1)
    details = bad.refused("ADD", pod)["details"]
    assert "$.sysctl.net.core.somaxconn: expected a string" in details
    assert "$.promisc" in details and "$.txQLen" in details


def test_every_key_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cni" / "tuning.md").read_text()
    assert document.reference(TuningConf).strip() in page


def test_the_example_of_its_page_runs(ledger: Ledger, netns: Space) -> None:
    chain = Chain.of_page(ledger, "cni/tuning.md", "tuned.conflist")
    answer = chain.add(netns)
    assert setting(netns, "net", "core", "somaxconn") == "500"
    assert setting(netns, "net", "ipv4", "conf", "eth0", "arp_announce") == "2"
    assert state(netns)["mtu"] == 1400
    assert next(found for found in answer["interfaces"] if found["name"] == "eth0")["mac"] == state(netns)["mac"]
    chain.check(netns)
    chain.status()
    chain.delete(netns)
    assert netns.links() == {"lo"}
