"""The whole life of encrypted data, with the harness's API servers: nothing that was encrypted is ever lost."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from nodeplug.harness.apiserver.client import CallFailed
from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer, WriteRefused
from nodeplug.harness.apiserver.server_v1 import ApiServerV1
from nodeplug.kms.keyring import commands
from nodeplug.kms.keyring.evidence import read
from nodeplug.kms.keyring.ring import SETTLED, State
from tests.child import until
from tests.kms.node import Node
from tests.ledger import Ledger

FAST = 60.0  # a minute of the API server in a second


def server(ledger: Ledger, node: Node, etcd: Etcd, *, skew: float = 0.0, speed: float = FAST) -> ApiServer:
    found = ApiServer(str(node.socket), etcd, clock=Clock(speed=speed, skew=skew))
    ledger.adopt("API server", found.stop)
    return found


def secret(number: int) -> str:
    return f"/registry/secrets/default/s{number}"


def passphrase(node: Node) -> Path:
    path = node.directory / "passphrase"
    if not path.exists():
        path.write_text("correct horse battery staple\n")
        path.chmod(0o600)
    return path


def carry(source: Node, target: Node, name: str) -> None:
    """Export on one node, import on the other, as an operator does."""
    file = source.directory / name
    if not file.exists():
        source.kms("export", "--for", passphrase(source), file).ok()
    merge = ["--merge"] if target.keyring.exists() else []
    target.kms("import", *merge, "--for", passphrase(source), file).ok()


def three(ledger: Ledger) -> list[Node]:
    nodes = [Node(ledger) for _ in range(3)]
    nodes[0].kms("init", "--nodes", "3").ok()
    for other in nodes[1:]:
        carry(nodes[0], other, "first.json")
    for node in nodes:
        node.start()
    return nodes


def test_an_api_server_starts_before_its_plugin_and_finds_it(ledger: Ledger, node: Node) -> None:
    etcd = Etcd()
    api = ApiServer(str(node.socket), etcd, clock=Clock(speed=FAST), timeout=0.3)
    ledger.adopt("API server", api.stop)
    api.start()
    with pytest.raises(WriteRefused, match="no state"):
        api.write(secret(1), b"x")
    assert api.healthz()
    node.start()
    until(lambda: not api.healthz(), "the probe succeeds")
    api.write(secret(1), b"x")
    assert api.read(secret(1)) == b"x"


def test_a_rotation_costs_a_client_no_failed_probe_and_new_data_is_under_the_new_key(
    ledger: Ledger, node: Node
) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    api.write(secret(1), b"old")
    before = api.key_id
    node.kms("add-key").ok()
    node.kms("activate").ok()
    until(lambda: api.key_id == node.active() != before, "the API server has taken the new key over")
    assert api.failures == []
    assert api.is_stale(secret(1))
    assert api.migrate() == 1
    assert not api.is_stale(secret(1))
    assert api.read(secret(1)) == b"old"


def test_with_two_clients_a_rotation_costs_at_most_one_failed_probe_each(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    apis = [server(ledger, node, etcd, speed=600.0) for _ in range(2)]
    for api in apis:
        api.start()
    for _ in range(3):
        before = node.active()
        failed = [len(api.failures) for api in apis]
        node.kms("add-key").ok()
        node.kms("activate").ok()
        until(lambda: all(api.key_id == node.active() for api in apis), "both have taken the new key over")
        assert node.active() != before
        assert all(len(api.failures) - count <= 1 for api, count in zip(apis, failed, strict=True))


def test_three_nodes_rotate_under_load_and_every_object_stays_readable_on_each(ledger: Ledger) -> None:
    nodes = three(ledger)
    etcd = Etcd()
    apis = [server(ledger, node, etcd, skew=skew) for node, skew in zip(nodes, (-300.0, 0.0, 300.0), strict=True)]
    for api in apis:
        api.start()
    wrong: list[BaseException] = []
    written: dict[str, bytes] = {}
    done = threading.Event()

    def load(number: int, api: ApiServer) -> None:
        count = 0
        while not done.is_set():
            path, value = secret(number * 1_000_000 + count), f"{number} {count}".encode()
            try:
                api.write(path, value)
                written[path] = value
                count += 1
                for other in apis:
                    assert other.read(path) == value
            except BaseException as error:
                wrong.append(error)
                return
            time.sleep(0.002)

    threads = [threading.Thread(target=load, args=pair) for pair in enumerate(apis)]
    for thread in threads:
        thread.start()
    nodes[0].kms("add-key").ok()
    for other in nodes[1:]:
        carry(nodes[0], other, "second.json")
    prints = {node.ring().fingerprint for node in nodes}
    assert len(prints) == 1
    for node in nodes:
        node.kms("activate", "--confirm", prints.copy().pop()).ok()
    until(lambda: len({api.key_id for api in apis} | {nodes[0].active()}) == 1, "all use the new key", timeout=20)
    done.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert all(api.failures == [] for api in apis)
    assert len(written) > 50
    apis[0].migrate()
    for api in apis:
        api.restart()
        assert api.read_all() == written
        assert api.migrate() == 0  # all agree on the key id, so that nobody finds another's data stale


def test_activation_on_several_nodes_asks_for_the_fingerprint_all_show(ledger: Ledger) -> None:
    nodes = three(ledger)
    nodes[0].kms("add-key").ok()
    refused = nodes[0].kms("activate")
    assert refused.code == 1
    assert b"nodeplug kms status" in refused.stderr
    stale = nodes[1].ring().fingerprint
    assert nodes[0].kms("activate", "--confirm", stale).code == 1
    nodes[0].kms("activate", "--confirm", nodes[0].ring().fingerprint).ok()


def test_a_node_activated_too_early_is_healed_by_carrying_the_key(ledger: Ledger) -> None:
    nodes = three(ledger)
    etcd = Etcd()
    early, late = (server(ledger, node, etcd) for node in nodes[:2])
    early.start()
    late.start()
    nodes[0].kms("add-key").ok()
    # Against all advice: the fingerprint of this node alone.
    nodes[0].kms("activate", "--confirm", nodes[0].ring().fingerprint).ok()
    until(lambda: early.key_id == nodes[0].active(), "the early one has rotated")
    early.write(secret(1), b"x")
    with pytest.raises(CallFailed) as failed:
        late.read(secret(1))
    assert failed.value.code == "NOT_FOUND"
    assert "import --merge" in failed.value.details
    carry(nodes[0], nodes[1], "late.json")
    assert until(lambda: _reads(late, secret(1)), "the key is taken over live") == b"x"
    assert nodes[1].ring().pending() is not None  # decrypts, and waits for its own activation


def _reads(api: ApiServer, path: str) -> bytes | None:
    try:
        return api.read(path)
    except CallFailed:
        return None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_in_the_middle_of_a_rotation_loses_nothing(ledger: Ledger, node: Node, how: int) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    values = {}
    for number in range(6):
        values[secret(number)] = str(number).encode()
        api.write(secret(number), values[secret(number)])
        if number % 2:
            node.kms("add-key").ok()
            assert node.stop(how) == (0 if how == signal.SIGTERM else -9)
            node.kms("activate").ok()
            node.start()
            until(lambda: api.key_id == node.active(), "the new key is used", timeout=20)
    api.restart()
    assert api.read_all() == values


def test_sigterm_while_clients_call_fails_no_call_that_was_under_way(ledger: Ledger, node: Node) -> None:
    process = node.start()
    api = server(ledger, node, Etcd(), speed=1.0)
    api.start()
    api.write(secret(1), b"x")
    assert node.stop() == 0
    assert "Traceback" not in process.output()
    assert not node.socket.exists()


@pytest.mark.parametrize("damage", ["half", "empty", "mode", "gone", "older"])
def test_a_bad_ring_file_leaves_the_old_ring_serving_and_readyz_says_so(
    ledger: Ledger, node: Node, damage: str
) -> None:
    backup = node.keyring.read_bytes()
    node.kms("add-key").ok()
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    api.write(secret(1), b"x")
    whole = node.keyring.read_bytes()
    if damage == "gone":
        node.keyring.unlink()
    elif damage == "mode":
        node.keyring.chmod(0o644)
    else:
        node.keyring.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "older": backup}[damage])
    until(lambda: "503" in node.page("/readyz").splitlines()[0], "readyz tells")
    assert "[-]keyring" in node.page("/readyz")
    assert "200" in node.page("/livez").splitlines()[0]
    api.restart()
    assert api.failures == []
    assert api.read(secret(1)) == b"x"
    node.keyring.write_bytes(whole)
    node.keyring.chmod(0o600)
    until(lambda: "200" in node.page("/readyz").splitlines()[0], "readyz is well again")
    assert node.process is not None
    assert "the one in memory serves on" in node.process.output()


def test_sighup_reads_the_ring_again(ledger: Ledger, node: Node) -> None:
    process = node.start()
    process.signal(signal.SIGHUP)
    node.kms("add-key").ok()
    node.kms("activate").ok()
    process.signal(signal.SIGHUP)
    api = server(ledger, node, Etcd())
    api.start()
    until(lambda: api.key_id == node.active(), "the new key is served")
    assert process.running()


def test_a_ring_that_did_not_change_is_not_opened_again_and_loosened_rights_are_seen_all_the_same(
    ledger: Ledger, node: Node
) -> None:
    passphrase = node.directory / "passphrase"
    passphrase.write_text("correct horse battery staple\n")
    passphrase.chmod(0o600)
    node.keyring.unlink()
    node.keyring.with_name("keyring.json.seen").unlink()
    sealed = f'seal = "passphrase-file"\npassphrase_file = "{passphrase}"'
    node.config.write_text(node.config.read_text().replace('seal = "plain"', sealed))
    node.kms("init").ok()
    process = node.start()
    passphrase.rename(passphrase.with_name("away"))  # the medium it is on was taken out
    for _ in range(3):
        process.signal(signal.SIGHUP)
        time.sleep(0.2)
    assert "200" in node.page("/readyz").splitlines()[0]
    node.keyring.chmod(0o644)
    until(lambda: "chmod 600" in node.page("/readyz"), "readyz tells")


def test_an_api_server_that_cached_for_a_month_restarts_after_a_retire_and_reads_everything(
    ledger: Ledger, node: Node
) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    values = {secret(number): str(number).encode() for number in range(20)}
    for path, value in values.items():
        api.write(path, value)
    old = node.active()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    until(lambda: api.key_id != old, "the new key is used")
    store, later = node.store(), int(time.time()) + 30 * 86400
    # A month in which nobody asked this node about the old key: every seed was cached.
    refused = node.kms("retire", "--key", old, stdin=etcd.dump())
    assert refused.code == 1
    assert b"20 objects in etcd are encrypted under" in refused.stderr
    api.migrate()
    proof = read(io.BytesIO(etcd.dump()), taken=later)
    commands.retire(store, old, proof, everywhere="", now=later)
    api.restart()
    assert api.read_all() == values


def test_a_retired_key_says_how_it_comes_back(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    api.write(secret(1), b"forgotten")
    api.write(secret(2), b"x")
    kept = etcd.get(secret(1))
    old = node.active()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    until(lambda: api.key_id != old, "the new key is used")
    api.migrate()
    later = int(time.time()) + SETTLED
    commands.retire(node.store(), old, read(io.BytesIO(etcd.dump()), taken=later), everywhere="", now=later + 7200)
    etcd.put(secret(1), kept)  # a backup of etcd is restored
    api.restart()

    def refusal() -> CallFailed | None:
        try:
            api.read(secret(1))
        except CallFailed as error:
            return error
        api.restart()
        return None

    found = until(refusal, "the daemon has noticed")
    assert found.code == "FAILED_PRECONDITION"
    assert "nodeplug kms reinstate" in found.details
    node.kms("reinstate", "--key", old).ok()
    assert until(lambda: _reads(api, secret(1)), "the key is back") == b"forgotten"


def test_retire_demands_a_dump_that_is_young_whole_and_of_this_cluster(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    api.write(secret(1), b"x")
    old = node.active()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    until(lambda: api.key_id != old, "the new key is used")
    api.migrate()

    def refused(data: bytes | None, reason: bytes) -> None:
        done = node.kms("retire", "--key", old, stdin=data)
        assert done.code in (1, 2), done.stdout
        assert reason in done.stderr, done.stderr

    refused(None, b"etcdctl get /registry")
    refused(b"", b"no etcdctl dump")
    refused(b"hello", b"no etcdctl dump")
    refused(etcd.dump()[:-20], b"cut off")
    refused(etcd.dump().replace(b'"count":1', b'"count":2'), b"1 of 2 objects")
    refused(etcd.dump(), b"take a dump in")
    store, now = node.store(), int(time.time())
    empty = read(io.BytesIO(Etcd().dump()), taken=now + SETTLED + 1)
    with pytest.raises(Exception, match="no object under a newer key"):
        commands.retire(store, old, empty, everywhere="", now=now + SETTLED + 1)
    good = read(io.BytesIO(etcd.dump()), taken=now + SETTLED + 1)
    commands.retire(store, old, good, everywhere="", now=now + SETTLED + 1)
    ring = node.ring()
    assert ring.state(ring.find(old)) is State.RETIRED


def test_retire_on_several_nodes_asks_which_key_is_active_everywhere(ledger: Ledger) -> None:
    nodes = three(ledger)
    etcd = Etcd()
    api = server(ledger, nodes[0], etcd)
    api.start()
    api.write(secret(1), b"x")
    old = nodes[0].active()
    nodes[0].kms("add-key").ok()
    nodes[0].kms("activate", "--confirm", nodes[0].ring().fingerprint).ok()
    until(lambda: api.key_id != old, "the new key is used")
    api.migrate()
    now = int(time.time()) + SETTLED + 1
    good = read(io.BytesIO(etcd.dump()), taken=now)
    with pytest.raises(Exception, match="--everywhere"):
        commands.retire(nodes[0].store(), old, good, everywhere="", now=now)
    commands.retire(nodes[0].store(), old, good, everywhere=nodes[0].active(), now=now)


def test_recent_use_on_this_node_keeps_a_key(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    api.write(secret(1), b"x")
    old = node.active()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    until(lambda: api.key_id != old, "the new key is used")
    api.restart()
    api.migrate()  # reads under the old key: the daemon decrypts with it
    node.stop()  # and notes it
    now = int(time.time()) + SETTLED + 1
    with pytest.raises(Exception, match="seconds ago"):
        commands.retire(node.store(), old, read(io.BytesIO(etcd.dump()), taken=now), everywhere="", now=now)
    later = now + 3600
    commands.retire(node.store(), old, read(io.BytesIO(etcd.dump()), taken=now), everywhere="", now=later)


def test_a_clock_that_was_moved_back_is_named_and_keeps_the_key(ledger: Ledger, node: Node) -> None:
    key_id = node.active()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    usage = node.keyring.with_name("keyring.json.usage")
    usage.write_text(json.dumps({key_id: int(time.time()) + 5000}))
    usage.chmod(0o600)
    keys = {"kind": "nodeplug-kms-keys", "taken": int(time.time()) + 10_000, "objects": {node.active(): 1}}
    done = node.kms("retire", "--key", key_id, stdin=json.dumps(keys).encode())
    assert done.code == 1
    assert b"its clock was moved" in done.stderr


def test_verify_counts_what_each_key_protects_and_finds_what_cannot_be_read(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    v1 = ApiServerV1(str(node.socket), etcd)
    ledger.adopt("v1", v1.stop)
    api.start()
    for number in range(3):
        api.write(secret(number), b"x")
    v1.write(secret(10), b"y")
    etcd.put("/registry/configmaps/default/plain", b"k8s\0plain")
    done = node.kms("verify", stdin=etcd.dump()).ok()
    assert f"{node.active()} active 4" in " ".join(done.text.split())
    assert "1 other objects" in done.text
    listed = node.kms("verify", "--list", stdin=etcd.dump()).ok().json()
    assert listed["objects"] == {node.active(): 4}
    stranger = Node(ledger)
    stranger.kms("init").ok()
    bad = stranger.kms("verify", stdin=etcd.dump())
    assert bad.code == 1
    assert b"NOT READABLE: 4 objects" in bad.stdout


def test_losing_one_node_s_ring_it_starts_again_from_another_s_export(ledger: Ledger) -> None:
    nodes = three(ledger)
    etcd = Etcd()
    api = server(ledger, nodes[1], etcd)
    api.start()
    api.write(secret(1), b"x")
    nodes[1].kill()
    for name in nodes[1].keyring.parent.iterdir():
        name.unlink()
    carry(nodes[0], nodes[1], "again.json")
    assert nodes[1].active() == nodes[0].active()
    nodes[1].start()
    api.restart()
    assert api.read(secret(1)) == b"x"


def test_v1beta1_data_survives_rotation_and_restart_by_the_key_in_its_cipher(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = ApiServerV1(str(node.socket), etcd)
    ledger.adopt("v1", api.stop)
    values = {}
    for number in range(4):
        api.healthz()
        values[secret(number)] = str(number).encode()
        api.write(secret(number), values[secret(number)])
        node.kms("add-key").ok()
        node.kms("activate").ok()
    node.kill()
    node.start()
    api.forget()
    assert api.read_all() == values
    assert api.decrypts == 4


def test_parallel_reads_after_a_start_are_all_answered(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = server(ledger, node, etcd)
    api.start()
    values = {secret(number): str(number).encode() for number in range(300)}
    for path, value in values.items():
        api.write(path, value)
    api.restart()
    assert api.read_all(threads=32) == values


def test_writes_stop_three_minutes_after_the_last_good_status_and_reads_go_on(ledger: Ledger, node: Node) -> None:
    node.start()
    etcd = Etcd()
    api = ApiServer(str(node.socket), etcd, clock=Clock(speed=600.0), timeout=0.2)
    ledger.adopt("API server", api.stop)
    api.start()
    api.write(secret(1), b"x")
    node.stop()

    def refused() -> bool:
        try:
            api.write(secret(2), b"y")
        except WriteRefused as error:
            return "expired" in str(error)
        return False

    until(refused, "the state expires")
    assert api.read(secret(1)) == b"x"
    node.start()
    until(lambda: not refused(), "writes are taken again", timeout=20)
