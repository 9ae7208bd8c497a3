"""The table and its index: what ADD puts in, DEL takes out, and what is made again when somebody flushes it."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from nodeplug.cni.contract import Attachment
from nodeplug.cni.filter import layout, plan
from nodeplug.cni.filter.index import Owner
from nodeplug.cni.filter.plan import MASQUERADE, PORTS
from nodeplug.core.errors import PermissionRefused, Refused
from tests.child import run
from tests.cni.filter.conftest import NETWORK, Node, mapping, nets, tcp
from tests.needs import needs

pytestmark = needs("sandbox", "program:nft")

BOTH = nets("10.1.0.2/16", "fd00:1::2/64")


def masq_set(net: str, network: str = NETWORK) -> str:
    return layout.Subnet(kind=layout.MASQUERADE, network=network, net=nets(net)[0]).set_name


def hairpin_set(net: str, network: str = NETWORK) -> str:
    return layout.Subnet(kind=layout.HAIRPIN, network=network, net=nets(net)[0]).set_name


def test_the_whole_table_loads_again_from_its_listing(node: Node) -> None:
    with node.open() as table:
        table.add(node.pod(), plan.masquerade(NETWORK, BOTH))
        table.add(node.pod("p2"), plan.ports(NETWORK, BOTH, [tcp(8080), mapping("udp", 53, 53, "192.0.2.1")]))
    listed = node.nft("list", "ruleset")
    node.nft("-f", "-", stdin=f"flush ruleset\n{listed}\n".encode())
    assert node.nft("list", "ruleset") == listed


def test_a_masquerade_is_one_element_for_each_address(node: Node) -> None:
    pod = node.pod()
    with node.open() as table:
        table.add(pod, plan.masquerade(NETWORK, BOTH))
        assert table.missing(pod.attachment, plan.masquerade(NETWORK, BOTH)) == []
    assert node.elements(masq_set("10.1.0.0/16")) == ["10.1.0.2"]
    assert node.elements(masq_set("fd00:1::/64")) == ["fd00:1::2"]
    assert f'comment "{pod.attachment.identity} net/pod/eth0"' in node.nft("list", "ruleset")
    rules = node.nft("list", "ruleset").count("masquerade")
    with node.open() as table:
        table.add(node.pod("another"), plan.masquerade(NETWORK, nets("10.1.0.3/16")))
        assert node.nft("list", "ruleset").count("masquerade") == rules
        assert table.remove(pod.attachment, MASQUERADE)
    assert node.elements(masq_set("10.1.0.0/16")) == ["10.1.0.3"]
    assert node.elements(masq_set("fd00:1::/64")) == []


def test_networks_with_one_subnet_have_sets_of_their_own(node: Node) -> None:
    with node.open() as table:
        table.add(node.pod("a", "one"), plan.masquerade("one", nets("10.1.0.2/16")))
        table.add(node.pod("b", "two"), plan.masquerade("two", nets("10.1.0.2/16")))
    assert node.elements(masq_set("10.1.0.0/16", "one")) == ["10.1.0.2"]
    assert node.elements(masq_set("10.1.0.0/16", "two")) == ["10.1.0.2"]


def test_host_ports_go_to_the_maps_of_their_family_and_hostip(node: Node) -> None:
    pod = node.pod()
    mappings = [
        tcp(8080),
        mapping("udp", 53, 5353, "192.0.2.1"),
        mapping("sctp", 9, 10, "2001:db8::1"),
        tcp(1, 2, "::"),
    ]
    share = plan.ports(NETWORK, BOTH, mappings)
    with node.open() as table:
        table.add(pod, share)
        assert node.elements("ports4") == ["['tcp.8080', '10.1.0.2.80']"]
        assert node.elements("ports6") == ["['tcp.1', 'fd00:1::2.2']", "['tcp.8080', 'fd00:1::2.80']"]
        assert node.elements("hostip4") == ["['192.0.2.1.udp.53', '10.1.0.2.5353']"]
        assert node.elements("hostip6") == ["['2001:db8::1.sctp.9', 'fd00:1::2.10']"]
        assert node.elements("snat4") == ["10.1.0.2.tcp.80.8080", "10.1.0.2.udp.5353.53"]
        assert node.elements(hairpin_set("10.1.0.0/16")) == ["10.1.0.2"]
        assert node.elements("all4") == []
        assert table.missing(pod.attachment, share) == []
        assert table.remove(pod.attachment, PORTS)
        for name in ("ports4", "ports6", "hostip4", "hostip6", "snat4", "snat6", hairpin_set("10.1.0.0/16")):
            assert node.elements(name) == []
        assert not table.remove(pod.attachment, PORTS)
    assert node.files() == []


def test_masq_all_needs_no_hairpin_and_no_snat_needs_neither(node: Node) -> None:
    address = nets("10.1.0.2/16")
    everybody = plan.ports(NETWORK, address, [tcp(8080)], masq_all=True)
    assert [entry.set for entry in everybody.entries] == ["ports4", "all4"]
    nobody = plan.ports(NETWORK, address, [tcp(8080)], snat=False, masq_all=True)
    assert [entry.set for entry in nobody.entries] == ["ports4"]
    assert everybody.subnets == nobody.subnets == ()
    with node.open() as table:
        table.add(node.pod(), everybody)
        table.add(node.pod("p2"), plan.ports(NETWORK, nets("10.1.0.3/16"), [tcp(8081)], snat=False))
    assert node.elements("all4") == ["10.1.0.2.tcp.80.8080"]
    assert node.elements("snat4") == []


def test_a_repeated_add_replaces_what_the_first_one_asked_for(node: Node) -> None:
    pod = node.pod()
    with node.open() as table:
        table.add(pod, plan.ports(NETWORK, BOTH, [tcp(8080), tcp(8081)]))
        table.add(pod, plan.ports(NETWORK, nets("10.1.0.9/16"), [tcp(8081)]))
    assert node.elements("ports4") == ["['tcp.8081', '10.1.0.9.80']"]
    assert node.elements("ports6") == []
    assert node.elements(hairpin_set("10.1.0.0/16")) == ["10.1.0.9"]
    assert node.files() == [f"filter/{pod.attachment.identity}.ports", "hostports/tcp-8081/0.0.0.0"]


def test_the_parts_of_an_attachment_come_and_go_alone(node: Node) -> None:
    pod = node.pod()
    with node.open() as table:
        table.add(pod, plan.masquerade(NETWORK, BOTH))
        table.add(pod, plan.ports(NETWORK, BOTH, [tcp(8080)]))
        table.remove(pod.attachment, PORTS)
        assert table.missing(pod.attachment, plan.masquerade(NETWORK, BOTH)) == []
    assert node.elements("ports4") == []


def test_a_flushed_ruleset_comes_back_whole_with_the_next_add(node: Node) -> None:
    first, second, dead = node.pod("first"), node.pod("second", "other"), node.pod("dead")
    one = plan.masquerade(NETWORK, BOTH)
    two = plan.ports("other", nets("10.2.0.2/16"), [tcp(8080)])
    with node.open() as table:
        table.add(first, one)
        table.add(second, two)
        table.add(dead, plan.ports(NETWORK, nets("10.1.0.66/16"), [tcp(6666)]))
        before = node.nft("list", "ruleset")
        node.kill(dead)
        node.nft("flush", "ruleset")
        assert table.missing(first.attachment, one) != []
        assert any("masq-" in sentence for sentence in table.missing(first.attachment, one))
        third = node.pod("third")
        table.add(third, plan.masquerade(NETWORK, nets("10.1.0.3/16")))
        assert table.missing(first.attachment, one) == table.missing(second.attachment, two) == []
        assert node.elements("ports4") == ["['tcp.8080', '10.2.0.2.80']"]
        table.remove(third.attachment, MASQUERADE)
        table.remove(dead.attachment, PORTS)
    assert "10.1.0.66" in before
    assert "10.1.0.66" not in node.nft("list", "ruleset")


def test_a_delete_after_a_flush_has_nothing_to_do(node: Node) -> None:
    pod = node.pod()
    with node.open() as table:
        table.add(pod, plan.ports(NETWORK, BOTH, [tcp(8080)]))
        node.nft("flush", "ruleset")
        assert table.remove(pod.attachment, PORTS)
    assert node.nft("list", "ruleset") == ""
    assert node.files() == []


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet nodeplug postrouting",
        "flush table inet nodeplug",
        "delete table inet nodeplug",
        "flush set inet nodeplug snat4",
        "flush map inet nodeplug ports4; delete chain inet nodeplug prerouting",
        "flush chain inet nodeplug raw",
    ],
)
def test_repair_mends_whatever_was_done_to_the_table(node: Node, damage: str) -> None:
    pod = node.pod()
    masquerade, ports = plan.masquerade(NETWORK, BOTH), plan.ports(NETWORK, BOTH, [tcp(8080)])
    with node.open() as table:
        table.add(pod, masquerade)
        table.add(pod, ports)
        whole = sorted(node.nft("list", "ruleset").splitlines())
        node.nft("-f", "-", stdin=damage.encode() + b"\n")
        assert table.missing(pod.attachment, ports) + table.missing(pod.attachment, masquerade)
        assert table.repair() == 2
        assert table.missing(pod.attachment, ports) == table.missing(pod.attachment, masquerade) == []
    assert sorted(node.nft("list", "ruleset").splitlines()) == whole


def test_a_set_that_is_missing_comes_back_with_its_other_pods(node: Node) -> None:
    pod = node.pod()
    share = plan.masquerade(NETWORK, nets("10.1.0.2/16"))
    with node.open() as table:
        table.add(pod, share)
        node.nft("flush", "chain", "inet", "nodeplug", "postrouting")
        node.nft("delete", "set", "inet", "nodeplug", masq_set("10.1.0.0/16"))
        table.add(node.pod("p2"), plan.masquerade(NETWORK, nets("10.1.0.3/16")))
    assert node.elements(masq_set("10.1.0.0/16")) == ["10.1.0.2", "10.1.0.3"]


def test_an_element_of_a_lost_attachment_is_taken_over_and_not_deleted_by_its_late_delete(node: Node) -> None:
    lost, pod = node.pod("lost"), node.pod("pod")
    share = plan.masquerade(NETWORK, nets("10.1.0.2/16"))
    with node.open() as table:
        table.add(lost, share)
        table.add(pod, share)
        assert any("net/lost/eth0" in warning for warning in node.warnings)
        assert table.remove(lost.attachment, MASQUERADE)
        assert table.missing(pod.attachment, share) == []
        assert table.remove(pod.attachment, MASQUERADE)
    assert node.elements(masq_set("10.1.0.0/16")) == []


def test_twenty_adds_at_once_after_a_flush_lose_nothing(node: Node) -> None:
    pods = [(node.pod(f"p{n}"), plan.ports(NETWORK, nets(f"10.1.0.{n + 2}/16"), [tcp(8000 + n)])) for n in range(20)]
    failures: list[BaseException] = []

    def add(number: int) -> None:
        try:
            with node.open() as table:
                table.add(*pods[number])
        except BaseException as error:
            failures.append(error)

    for _ in range(2):
        threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with node.open() as table:
            assert [table.missing(owner.attachment, share) for owner, share in pods] == [[]] * 20
        node.nft("flush", "ruleset")


def test_a_repair_beside_adds_loses_nothing(node: Node) -> None:
    pods = [(node.pod(f"p{n}"), plan.masquerade(NETWORK, nets(f"10.1.0.{n + 2}/16"))) for n in range(30)]
    done = threading.Event()
    failures: list[BaseException] = []

    def repair() -> None:
        try:
            with node.open() as table:
                while not done.is_set():
                    table.repair()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=repair)
    thread.start()
    try:
        with node.open() as table:
            for owner, share in pods:
                table.add(owner, share)
    finally:
        done.set()
        thread.join()
    assert failures == []
    with node.open() as table:
        assert [table.missing(owner.attachment, share) for owner, share in pods] == [[]] * 30


def test_a_pod_with_five_hundred_host_ports(node: Node) -> None:
    pod = node.pod()
    share = plan.ports(NETWORK, BOTH, [tcp(1000 + n, 2000 + n) for n in range(500)])
    with node.open() as table:
        table.add(pod, share)
        assert table.missing(pod.attachment, share) == []
        node.nft("flush", "ruleset")
        table.repair()
        assert table.missing(pod.attachment, share) == []
        assert table.remove(pod.attachment, PORTS)
    assert node.elements("ports4") == []
    assert node.files() == []


def test_a_damaged_file_is_no_file_and_the_next_add_goes_on(node: Node) -> None:
    pod = node.pod()
    share = plan.ports(NETWORK, BOTH, [tcp(8080)])
    with node.open() as table:
        table.add(pod, share)
        path = Path(node.index.directory, "filter", f"{pod.attachment.identity}.ports")
        for content in (b"", b"{", b"[]", b"null", b'{"network": 1}', path.read_bytes()[:100]):
            path.write_bytes(content)
            assert any("no record" in sentence for sentence in table.missing(pod.attachment, share))
            table.repair()
            table.add(pod, share)
            assert table.missing(pod.attachment, share) == []


def test_a_full_disk_fails_the_add_and_leaves_nothing(node: Node) -> None:
    small = node.ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "nr_inodes=9,size=64k", "tmpfs", str(small)]).ok()
    node.index.directory = f"{small}/cni"
    node.index._files = f"{small}/cni/filter"
    with node.open() as table, pytest.raises(Exception, match="No space left"):
        table.add(node.pod(), plan.ports(NETWORK, BOTH, [tcp(8080), tcp(8081), tcp(8082), tcp(8083)]))
    assert node.files() == []
    listed = run(["nft", "list", "ruleset"]).ok().text
    assert "tcp . 80" not in listed


def test_without_the_right_the_error_says_which(node: Node) -> None:
    script = (
        "from nodeplug.cni.filter.table import filtering\n"
        "from nodeplug.cni.filter.index import Index\n"
        f"with filtering(warn=print, index=Index({str(node.index.directory)!r})) as table:\n"
        "    try: table.repair()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    bounded = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "/usr/bin/python3", "-c", script]
    said = run(bounded).ok().text
    assert said.startswith(PermissionRefused.__name__) and "CAP_NET_ADMIN" in said


def test_usable_is_quiet_where_nf_tables_works(node: Node) -> None:
    with node.open() as table:
        table.usable()
    assert node.nft("list", "ruleset") == ""


def test_an_add_refused_half_way_is_taken_back(node: Node) -> None:
    first, second = node.pod("first"), node.pod("second")
    with node.open() as table:
        table.add(first, plan.ports(NETWORK, BOTH, [tcp(8081)]))
        before, files = node.nft("list", "ruleset"), node.files()
        with pytest.raises(Refused):
            table.add(second, plan.ports(NETWORK, nets("10.1.0.3/16"), [tcp(8080), tcp(8081)]))
    assert (node.nft("list", "ruleset"), node.files()) == (before, files)


def test_kill_9_anywhere_in_add_and_remove_is_mended_by_repeating(node: Node, directory: Path) -> None:
    """Kill the process at its n-th system call that changes something, for every n, then repeat."""
    pod = node.pod()
    share_text = (
        "plan.ports('net', [Net.parse('10.1.0.2/16')], [Mapping(protocol='tcp', host_port=8080, container_port=80)])"
    )
    script = f"""
import os, signal, sys
left = int(sys.argv[1])
def watch(event, args):
    global left
    if event in ('os.rename', 'os.symlink', 'os.mkdir', 'os.remove', 'os.rmdir', 'socket.sendto') or (
        event == 'open' and args[2] and args[2] & os.O_CREAT):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from nodeplug.cni.contract import Attachment
from nodeplug.cni.filter import plan
from nodeplug.cni.filter.plan import Mapping, PORTS
from nodeplug.cni.filter.index import Index, Owner
from nodeplug.cni.filter.table import filtering
from nodeplug.core.inet import Net
attachment = Attachment(network='net', container='pod', ifname='eth0')
with filtering(warn=print, index=Index({str(node.index.directory)!r})) as table:
    if sys.argv[2] == 'add':
        table.add(Owner(attachment=attachment), {share_text})
    else:
        table.remove(attachment, PORTS)
"""
    share = plan.ports(NETWORK, nets("10.1.0.2/16"), [tcp(8080)])
    for verb in ("add", "remove"):
        for step in range(1, 100):
            with node.open() as table:
                if verb == "remove":
                    table.add(pod, share)
            ended = subprocess.run(["/usr/bin/python3", "-c", script, str(step), verb], check=False)
            with node.open() as table:
                if step % 2:
                    table.add(pod, share)
                    assert table.missing(pod.attachment, share) == []
                    assert table.remove(pod.attachment, PORTS)
                else:
                    table.remove(pod.attachment, PORTS)
                assert table.collect(NETWORK, frozenset()) == 0
            assert node.elements("ports4") + node.elements("snat4") == []
            assert [name for name in node.files() if not name.endswith("~")] == []
            if ended.returncode == 0:
                break
        else:
            pytest.fail("the process never came to its end")
        assert step > 5


def test_an_attachment_is_known_by_its_identity() -> None:
    names = {Attachment(network=n, container=c, ifname=i).identity for n in "ab" for c in "ab" for i in "ab"}
    assert len(names) == 8


def test_a_repair_of_many_pods_comes_through_while_others_change_the_ruleset(node: Node) -> None:
    """Each transaction of anybody makes it look again; reading hundreds of files each time it would never be quick."""
    with node.open() as table:
        for n in range(300):
            attachment = Attachment(network=NETWORK, container=f"p{n}", ifname="eth0")
            table.add(Owner(attachment=attachment), plan.masquerade(NETWORK, nets(f"10.1.{n // 200}.{n % 200 + 2}/16")))
    busy = "import time\nfrom nodeplug.kernel.netlink import *\nfrom nodeplug.kernel.nft import messages as m\n"
    busy += "netlink = Netlink(NETLINK_NETFILTER)\nwhile True:\n"
    busy += "    m.commit(netlink, [m.add_table(2, 'busy'), m.delete_table(2, 'busy')])\n    time.sleep(0.03)\n"
    process = node.ledger.start(["/usr/bin/python3", "-c", busy])
    with node.open() as table:
        for _ in range(3):
            assert table.repair() == 300
    assert process.running()
    assert len(node.elements(masq_set("10.1.0.0/16"))) == 300
