"""The daemon as a process: its socket, its listener, its exit codes, its pages."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from nodeplug.harness.apiserver.client import V2, CallFailed
from tests.child import Process, run, until
from tests.examples import ROOT
from tests.kms.node import Node, daemon_argv
from tests.ledger import Ledger
from tests.needs import needs

SEED = bytes(range(32))


def activated(ledger: Ledger, node: Node, *listeners: socket.socket) -> Process:
    """The daemon as systemd starts it: the listeners are descriptors 3 and on, LISTEN_PID its own."""
    command = " ".join(daemon_argv(node.config))
    moved = " ".join(f"{3 + number}<&{held.fileno()}" for number, held in enumerate(listeners))
    return ledger.start(
        ["bash", "-c", f"exec {moved}; LISTEN_PID=$$ exec {command}"],
        env={**os.environ, "LISTEN_FDS": str(len(listeners)), "LISTEN_FDNAMES": ":".join(["kms"] * len(listeners))},
        pass_fds=[held.fileno() for held in listeners],
    )


def held(ledger: Ledger, node: Node) -> socket.socket:
    node.socket.parent.mkdir(mode=0o700, exist_ok=True)
    listener = ledger.listener(node.socket, backlog=128)
    node.socket.chmod(0o600)
    return listener


def test_the_socket_is_its_owner_s_alone_in_a_directory_of_its_own(node: Node) -> None:
    node.start()
    assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.socket.parent.stat().st_mode) == 0o700


def test_mode_and_group_are_as_the_settings_say(ledger: Ledger) -> None:
    node = Node(ledger, more='socket_mode = "0660"\nsocket_group = 12345')
    node.kms("init").ok()
    node.start()
    status = node.socket.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, 12345)


def test_a_second_daemon_leaves_the_first_alone(ledger: Ledger, node: Node) -> None:
    node.start()
    second = ledger.start(daemon_argv(node.config), env=dict(os.environ))
    assert second.wait() == 1
    assert "another process holds" in second.output() or "somebody answers" in second.output()
    assert node.answers()


def test_a_socket_left_by_a_power_cut_is_no_obstacle(node: Node) -> None:
    node.start()
    node.kill()
    assert node.socket.exists()
    node.start()


def test_only_the_users_named_are_served(ledger: Ledger) -> None:
    node = Node(ledger, more='allowed_uids = [4321]\nsocket_mode = "0660"\nsocket_group = 0')
    node.kms("init").ok()
    node.start()
    stranger = V2(str(node.socket), timeout=1.0)
    ledger.adopt("client", stranger.close)
    with pytest.raises(CallFailed) as failed:
        stranger.status()
    assert failed.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert node.process is not None
    assert "refused a connection from uid 0" in node.process.output()
    os.chmod(node.directory, 0o711)
    os.chmod(node.socket.parent, 0o711)
    os.chown(node.socket, 4321, -1)
    script = (
        "import os, sys; os.setuid(4321);"
        "from nodeplug.harness.apiserver.client import V2;"
        "print(V2(sys.argv[1]).status().healthz)"
    )
    asked = run([sys.executable, "-c", script, str(node.socket)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert asked.ok().text == "ok"


def test_restarts_behind_a_socket_of_systemd_never_refuse_a_connection_and_lose_no_call(
    ledger: Ledger, node: Node
) -> None:
    listener = held(ledger, node)
    process = activated(ledger, node, listener)
    failures: list[str] = []
    answered = 0
    done = threading.Event()

    def client() -> None:
        nonlocal answered
        while not done.is_set():
            # A connection of its own each time: any that is refused would show.
            one = V2(str(node.socket), timeout=10)
            try:
                one.status()
                answered += 1
            except CallFailed as error:
                failures.append(str(error))
            finally:
                one.close()

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = answered
        until(lambda count=before: answered > count + 5, "calls are answered", timeout=20)
        process.signal(15)
        assert process.wait() == 0
        process = activated(ledger, node, listener)
    before = answered
    until(lambda: answered > before + 5, "calls are answered", timeout=20)
    done.set()
    for thread in threads:
        thread.join(15)
    assert failures == []
    assert node.socket.exists()


def test_a_connection_that_outlives_a_restart_goes_on(ledger: Ledger, node: Node) -> None:
    listener = held(ledger, node)
    process = activated(ledger, node, listener)
    client = V2(str(node.socket), timeout=10, backoff=0.01)
    ledger.adopt("client", client.close)
    good = client.encrypt("u", SEED)
    for _ in range(2):
        process.signal(15)
        process.wait()
        process = activated(ledger, node, listener)
        assert client.decrypt("u", good) == SEED


def test_a_socket_of_systemd_at_another_path_is_named_and_not_used(ledger: Ledger, node: Node) -> None:
    listener = ledger.listener()
    process = activated(ledger, node, listener)
    until(node.answers, "the socket of the settings answers")
    assert "is not kms.socket" in process.output()


def test_of_several_sockets_with_one_name_the_right_one_is_used_by_whatever_path_it_is_known(
    ledger: Ledger, node: Node
) -> None:
    link = node.directory / "alias"
    link.symlink_to(node.socket.parent)
    listener = held(ledger, node)
    node.config.write_text(node.config.read_text().replace(str(node.socket), str(link / "kms.sock")))
    with listener.dup() as again:
        process = activated(ledger, node, listener, ledger.listener(), again)
    client = V2(str(node.socket), timeout=10)
    ledger.adopt("client", client.close)
    assert client.status().healthz == "ok"
    assert process.output().count("is not kms.socket") == 2
    process.signal(15)
    assert process.wait() == 0
    assert node.answers()  # the backlog of systemd's socket takes who comes now


@pytest.mark.parametrize(
    "text, code, said",
    [
        ("", 78, "has no table [kms]"),
        ("not toml [", 78, "is not TOML"),
        ("[kms]\n", 78, "kms.provider"),
        ('[kms]\nsockett = "/x"\n[kms.provider]\ntype = "local"\n', 78, "did you mean socket?"),
        ('[kms]\nsocket_mode = "0666"\n[kms.provider]\ntype = "local"\n', 78, "others must have no access"),
        ('[kms]\napis = []\n[kms.provider]\ntype = "local"\n', 78, "nothing would be served"),
        ('[kms]\nallowed_uids = []\n[kms.provider]\ntype = "local"\n', 78, "nobody would be served"),
        ('[kms]\nsocket_group = 1\n[kms.provider]\ntype = "local"\n', 78, "set it to 0660"),
        ('[kms.provider]\ntype = "lokal"\n', 78, 'no provider type "lokal"'),
        ('[kms.provider]\ntype = "no.such:Class"\n', 78, "cannot be imported"),
        ('[kms.provider]\ntype = "pathlib:Path"\n', 78, "not a subclass"),
        ('[kms.provider]\ntype = "local"\nseal = "passphrase-file"\n', 78, "needs passphrase_file"),
        ('[kms.provider]\ntype = "local"\nseal = "plain"\nkeyring = "/nonexistent/ring.json"\n', 1, "/nonexistent"),
        ('[kms.health]\nlisten = "0.0.0.0:80"\n[kms.provider]\n', 78, "kms.provider.type is missing"),
    ],
)
def test_a_start_that_cannot_work_says_why_and_whether_another_try_helps(
    directory: Path, text: str, code: int, said: str
) -> None:
    config = directory / "kms.toml"
    config.write_text(text)
    done = run(daemon_argv(config))
    assert done.code == code, done.stderr
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_health_pages_off_the_node_are_refused(ledger: Ledger, node: Node) -> None:
    node.config.write_text(node.config.read_text().replace(str(node.health), "0.0.0.0:8080"))
    done = run(daemon_argv(node.config))
    assert done.code == 78
    assert b"0.0.0.0:8080" in done.stderr
    assert not node.answers()


def test_the_metrics_tell_calls_keys_and_health_and_no_secret(ledger: Ledger, node: Node) -> None:
    node.start()
    client = V2(str(node.socket))
    ledger.adopt("client", client.close)
    key_id = client.status().key_id
    client.decrypt("u", client.encrypt("u", SEED))
    with pytest.raises(CallFailed):
        client.encrypt("u", b"")
    page = node.page("/metrics")
    assert f'nodeplug_kms_key_uses_total{{key_id="{key_id}",operation="decrypt"}} 1.0' in page
    assert 'nodeplug_kms_call_seconds_count{api="v2",method="Encrypt"} 1.0' in page
    assert 'nodeplug_kms_failures_total{api="v2",code="INVALID_ARGUMENT",method="Encrypt"} 1.0' in page
    assert "nodeplug_kms_healthy 1.0" in page


def test_the_process_leaves_no_core_and_its_memory_is_locked(node: Node) -> None:
    process = node.start()
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"^Max core file size\s+0\s+0\s", limits, re.MULTILINE)
    locked = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmLck" in line)
    assert int(locked.split()[1]) > 0 or "memory is not locked" in process.output()


def test_the_daemon_tells_systemd_of_its_life(ledger: Ledger, node: Node) -> None:
    path = node.directory / "notify"
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ledger.adopt("notify", peer.close)
    peer.bind(str(path))
    peer.settimeout(10)
    process = node.start(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="200000")
    heard = [peer.recv(4096) for _ in range(2)]
    assert heard[0].startswith(b"READY=1\nSTATUS=encrypting with np1-")
    assert b"WATCHDOG=1" in heard
    node.kms("add-key").ok()
    node.kms("activate").ok()
    until(lambda: peer.recv(4096) == f"STATUS=encrypting with {node.active()}".encode(), "it tells of the new key")
    process.signal(1)
    until(lambda: peer.recv(4096).startswith(b"RELOADING=1"), "it reloads")
    process.signal(15)
    until(lambda: peer.recv(4096) == b"STOPPING=1", "it stops")
    assert process.wait() == 0


def test_a_failed_call_is_logged_with_the_uid_by_which_the_api_server_logs_it(ledger: Ledger, node: Node) -> None:
    process = node.start()
    client = V2(str(node.socket))
    ledger.adopt("client", client.close)
    good = client.encrypt("u", SEED)
    good.key_id = "np1-000000000000-1-00000000"
    with pytest.raises(CallFailed):
        client.decrypt("7f3c-the-uid", good)
    until(lambda: '"id":"7f3c-the-uid"' in process.output().replace(" ", ""), "it is logged")


def test_v1beta1_is_not_served_unless_asked_for(ledger: Ledger) -> None:
    node = Node(ledger)
    node.config.write_text(node.config.read_text().replace('apis = ["v2", "v1beta1"]\n', ""))
    node.kms("init").ok()
    node.start()
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/v1beta1.KeyManagementService/Version")
        with pytest.raises(grpc.RpcError) as failed:
            send(b"", timeout=5)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_status_can_call_itself_v2beta1_for_a_swap_under_a_running_api_server(ledger: Ledger) -> None:
    node = Node(ledger, more='status_version = "v2beta1"')
    node.kms("init").ok()
    node.start()
    client = V2(str(node.socket))
    ledger.adopt("client", client.close)
    assert client.status().version == "v2beta1"


@needs("root")
def test_a_descriptor_shortage_is_no_end(ledger: Ledger, node: Node) -> None:
    process = node.start()
    subprocess.run(["prlimit", "--pid", str(process.pid), "--nofile=40:40"], check=True)
    crowd = []
    for _ in range(60):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(0.2)
        try:
            one.connect(str(node.socket))
        except OSError:
            pass
        crowd.append(one)
    for one in crowd:
        one.close()
    client = V2(str(node.socket), timeout=10, backoff=0.05)
    ledger.adopt("client", client.close)
    until(lambda: _status(client) == "ok", "it answers again", timeout=20)


def _status(client: V2) -> str:
    try:
        return client.status().healthz
    except CallFailed:
        return ""
