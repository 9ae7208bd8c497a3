"""The ground all other tests stand on: what the ledger hands out works, and is gone afterwards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import leaks
from tests.child import run, until
from tests.ledger import Ledger, loop_devices, mounts
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox")


def join(a: Space, b: Space) -> None:
    a.run("ip", "link", "add", "name", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.name).ok()
    for space, last in ((a, 1), (b, 2)):
        space.run("ip", "addr", "add", f"10.9.0.{last}/24", "dev", "eth0").ok()
        space.run("ip", "addr", "add", f"fd09::{last}/64", "dev", "eth0", "nodad").ok()
        space.run("ip", "link", "set", "eth0", "up").ok()


@pytest.mark.parametrize("proto", ["tcp", "udp", pytest.param("sctp", marks=needs("sctp"))])
@pytest.mark.parametrize(("address", "any_address"), [("10.9.0.1", "0.0.0.0"), ("fd09::1", "::")])
def test_bytes_go_both_ways_between_two_namespaces(ledger: Ledger, proto: str, address: str, any_address: str) -> None:
    a, b = ledger.netns(), ledger.netns()
    join(a, b)
    server = ledger.echo(a, proto=proto, address=any_address)
    sender = exchange(address, server.port, proto=proto, space=b)
    assert sender == address.replace("::1", "::2").replace(".0.1", ".0.2")


def test_a_closed_port_is_not_reached(netns: Space) -> None:
    assert not reaches("127.0.0.1", 9, space=netns, timeout=0.5)
    assert not reaches("127.0.0.1", 9, proto="udp", space=netns, timeout=0.5)


def test_python_and_children_run_inside_the_namespace(netns: Space) -> None:
    netns.run("ip", "link", "add", "name", "probe", "type", "bridge").ok()
    assert netns.links() == {"lo", "probe"}
    assert [link["ifname"] for link in netns.ip("link", "show", "type", "bridge")] == ["probe"]
    assert netns.run("true").code == 0


def test_what_was_handed_out_is_gone_after_close() -> None:
    before = leaks.look()
    book = Ledger()
    space = book.netns()
    folder = book.directory()
    (folder / "mounted").mkdir()
    run(["mount", "-t", "tmpfs", "tmpfs", str(folder / "mounted")]).ok()
    book.listener()
    child = book.start(["sh", "-c", "sleep 60 & sleep 60"], netns=space.path)
    book.link("left0")
    run(["ip", "link", "add", "name", "left0", "type", "bridge"]).ok()
    book.table("inet", "left")
    run(["nft", "add", "table", "inet", "left"]).ok()
    assert child.running()
    assert str(folder / "mounted") in [point for point, _type in mounts()]
    book.close()
    assert leaks.since(before) == []
    assert not folder.exists()


@needs("loop", "program:losetup")
def test_loop_devices_on_files_of_the_ledger_end_with_it() -> None:
    book = Ledger()
    image = book.directory() / "disk"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    device = run(["losetup", "--find", "--show", str(image)]).ok().text
    assert (device, str(image)) in loop_devices()
    book.close()
    until(lambda: (device, str(image)) not in loop_devices(), f"{device} is detached")


def test_the_ledger_goes_on_after_a_failure_and_names_it() -> None:
    book = Ledger()
    folder = book.directory()

    def refuse() -> None:
        raise RuntimeError("no")

    book.adopt("stubborn thing", refuse)
    with pytest.raises(ExceptionGroup) as caught:
        book.close()
    assert "stubborn thing" in caught.value.exceptions[0].__notes__[0]
    assert not folder.exists()


LEAKS = {
    "link left0": ["ip", "link", "add", "name", "left0", "type", "bridge"],
    "netns left": ["ip", "netns", "add", "left"],
    "nft table inet left": ["nft", "add", "table", "inet", "left"],
    "file /var/lib/cni/networks/left/10.0.0.2": [
        "sh",
        "-c",
        "mkdir -p /var/lib/cni/networks/left && touch /var/lib/cni/networks/left/10.0.0.2",
    ],
    "file /run/nodeplug/left": ["sh", "-c", "mkdir -p /run/nodeplug && touch /run/nodeplug/left"],
    "mount /mnt (tmpfs)": ["mount", "-t", "tmpfs", "tmpfs", "/mnt"],
    "process": ["sh", "-c", "setsid sleep 30 >/dev/null 2>&1 &"],
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_leak_check_names_what_is_left(ledger: Ledger, name: str) -> None:
    before = leaks.look()
    run(LEAKS[name]).ok()
    ledger.link("left0")
    ledger.table("inet", "left")
    found = until(lambda: leaks.look() - before, "the leak shows")
    undo = ["ip netns del left", "umount /mnt", "rm -rf /run/nodeplug /var/lib/cni/networks", "kill $(pgrep -x sleep)"]
    for command in undo:
        subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert any(entry.startswith(name) for entry in found), found


def test_a_table_with_elements_is_seen_element_by_element(ledger: Ledger) -> None:
    ledger.table("inet", "left")
    before = leaks.look()
    run(
        ["nft", "-f", "-"], stdin=b"table inet left {\n set s {\n type ipv4_addr; elements = { 10.0.0.7 }\n }\n }\n"
    ).ok()
    assert 'nft element inet left s 1 "10.0.0.7"' in leaks.look() - before


def test_the_sandbox_has_nothing_but_lo_and_empty_default_paths() -> None:
    assert {entry.name for entry in Path("/sys/class/net").iterdir()} == {"lo"}
    for path in ("/etc/cni", "/etc/nodeplug", "/var/lib/cni", "/var/lib/nodeplug", "/var/log/nodeplug"):
        assert list(Path(path).iterdir()) == []
