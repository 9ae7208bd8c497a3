"""portmap: the rules of a pod, all of them, as nft lists them; added and deleted again, and by many at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.filter.table import filtering
from tests.child import Finished, run
from tests.cni.calls import environment
from tests.cni.hostports import GATEWAY, GATEWAY6, HOST, HOST6, NETWORK, Host, Pod, to
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.traffic import exchange

pytestmark = needs("sandbox", "program:nft", "program:conntrack")


@pytest.fixture(scope="module")
def host(module_ledger: Ledger) -> Host:
    return Host.make(module_ledger)


@pytest.fixture(scope="module")
def pod(host: Host) -> Pod:
    """10.99.0.2, fd99::2"""
    return host.pod()


@pytest.fixture(scope="module")
def other(pod: Pod, host: Host) -> Pod:
    return host.pod()


def listed() -> list[dict[str, Any]]:
    done = run(["nft", "-j", "list", "table", "inet", "nodeplug"])
    return [] if done.code else list(done.json()["nftables"])


def _words(item: Any) -> str:
    """An element as nft takes it, without its comment."""
    if isinstance(item, list):
        return " : ".join(map(_words, item))
    if isinstance(item, dict):
        return " . ".join(map(str, item["concat"])) if "concat" in item else _words(item["elem"]["val"])
    return str(item)


def elements() -> set[tuple[str, str]]:
    """(set or map, element), of the whole table; the sets of a subnet by their kind."""
    found = set()
    for item in listed():
        (body,) = item.values()
        for element in body.get("elem", []) if isinstance(body, dict) else []:
            found.add((body["name"].partition("-")[0], _words(element)))
    return found


def rules() -> list[str]:
    """What stands once for all pods, by the comment of each rule."""
    return [f"{item['rule']['chain']}: {item['rule']['comment']}" for item in listed() if "rule" in item]


MAPPINGS = [
    to(8080, 80),
    to(8081, 81, host_ip="0.0.0.0"),
    to(8082, 82, host_ip="::"),
    to(53, 5353, "udp", HOST),
    to(53, 5353, "udp", HOST6),
]
MINE = {
    *{("ports4", "tcp . 8080 : 10.99.0.2 . 80"), ("ports4", "tcp . 8081 : 10.99.0.2 . 81")},
    *{("ports6", "tcp . 8080 : fd99::2 . 80"), ("ports6", "tcp . 8082 : fd99::2 . 82")},
    ("hostip4", f"{HOST} . udp . 53 : 10.99.0.2 . 5353"),
    ("hostip6", f"{HOST6} . udp . 53 : fd99::2 . 5353"),
}
HAIRPIN = {("hairpin", "10.99.0.2"), ("hairpin", "fd99::2")}
PORTS4, PORTS6 = ("tcp . 80 . 8080", "tcp . 81 . 8081"), ("tcp . 80 . 8080", "tcp . 82 . 8082")


def hidden(kind: str) -> set[tuple[str, str]]:
    """The elements of those sets by which sources are masqueraded."""
    found = {(f"{kind}4", f"10.99.0.2 . {ports}") for ports in (*PORTS4, "udp . 5353 . 53")}
    return found | {(f"{kind}6", f"fd99::2 . {ports}") for ports in (*PORTS6, "udp . 5353 . 53")}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, MINE | HAIRPIN | hidden("snat")),
        ({"backend": "iptables"}, MINE | HAIRPIN | hidden("snat")),
        ({"backend": "nftables"}, MINE | HAIRPIN | hidden("snat")),
        ({"markMasqBit": 5}, MINE | HAIRPIN | hidden("snat")),
        ({"externalSetMarkChain": "KUBE-MARK-MASQ"}, MINE | HAIRPIN | hidden("snat")),
        ({"masqAll": True}, MINE | hidden("all")),
        ({"snat": False}, MINE),
    ],
    ids=["no keys", "iptables", "nftables", "markMasqBit", "externalSetMarkChain", "masqAll", "no snat"],
)
def test_rules_are_these_and_no_others_until_delete(
    host: Host, pod: Pod, other: Pod, keys: dict[str, Any], wanted: set[Any]
) -> None:
    """hostIP of any address is none; the keys of iptables' marks change nothing, because nothing needs to be marked."""
    host.add(other, to(7070, 70), **keys)
    others, common = elements(), rules()
    for _ in range(2):
        host.add(pod, *MAPPINGS, **keys)
        assert (elements() - others, rules()) == (wanted, common)
        assert host.portmap("CHECK", pod, *MAPPINGS, **keys)[0] == 0
    for _ in range(2):
        host.delete(pod)
        assert (elements(), rules()) == (others, common)
    host.delete(other)
    assert elements() == set()


def test_check_counts_every_element_and_every_rule(host: Host, pod: Pod) -> None:
    host.add(pod, *MAPPINGS)
    whole = elements()
    names = [item[kind]["name"] for item in listed() for kind in ("set", "map") if kind in item]
    for kind, element in sorted(whole):
        where = [name for name in names if name.partition("-")[0] == kind]
        key = element.partition(" : ")[0]
        gone = [run(["nft", "delete", "element", "inet", "nodeplug", name, "{", key, "}"]).code for name in where]
        assert 0 in gone
        assert key in host.wrong("CHECK", pod, *MAPPINGS)["msg"]
        host.add(pod, *MAPPINGS)
        assert elements() == whole
    for chain in ("hostports", "mapped", "snat4", "snat6", "prerouting", "output", "postrouting"):
        run(["nft", "flush", "chain", "inet", "nodeplug", chain]).ok()
        assert f"is not in chain {chain}" in host.wrong("CHECK", pod, *MAPPINGS)["msg"]
        with filtering(warn=print) as table:
            table.repair()
    assert host.portmap("CHECK", pod, *MAPPINGS)[:2] == (0, None)
    host.delete(pod)


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "::"], ids=["v4", "v6"])
def test_masq_all_hides_those_outside_by_either_family(host: Host, pod: Pod, ledger: Ledger, anywhere: str) -> None:
    address, gateway = (HOST6, GATEWAY6) if anywhere == "::" else (HOST, GATEWAY)
    ledger.echo(pod.space, port=80, address=anywhere)
    host.add(pod, to(8080, 80), masqAll=True)
    for space in (host.outside, pod.space):
        assert exchange(address, 8080, space=space) == gateway
    host.delete(pod)


def test_pods_that_are_deleted_at_once_by_processes_leave_nothing_and_keep_the_others(
    host: Host, pod: Pod, other: Pod, directory: Path
) -> None:
    program = directory / "portmap"
    program.symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
    pods = [pod, *(host.pod() for _ in range(7))]
    host.add(other, to(7070, 70))
    before = elements()
    for n, each in enumerate(pods):
        host.add(each, to(8000 + n, 80), to(9000 + n, 90, "udp"))
    config = json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "type": "portmap"}).encode()
    done: list[Finished] = []

    def delete(container: str) -> None:
        done.append(run([program], env=environment("DEL", CNI_CONTAINERID=container, CNI_NETNS=None), stdin=config))

    threads = [threading.Thread(target=delete, args=(each.container,)) for each in pods for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(found.code, found.stdout) for found in done] == [(0, b"")] * len(threads)
    assert elements() == before
    assert host.portmap("CHECK", other, to(7070, 70))[0] == 0
    host.delete(other)
