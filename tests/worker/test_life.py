"""nodeplugd as its callers meet it: there, away, full, hung, killed, restarted. No call ends worse than without it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.core import files, paths
from nodeplug.core.call import Answer
from nodeplug.worker import wire
from nodeplug.worker.wire import Fallback
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker.node import BRIDGE, LOOPBACK, Node, call_of, code, environment

pytestmark = needs("sandbox", "program:cc")
LOG = Path(paths.LOG) / "cni.log"


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    return Node(module_ledger, more="threads = 8\nqueue = 4\ndrain = 5")


@pytest.fixture
def worker(node: Node) -> Iterator[Node]:
    node.start()
    yield node
    assert node.process is not None
    if node.process.running():
        node.stop()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def lo_is_up(pod: object) -> bool:
    return "UP" in pod.ip("link", "show", "lo")[0]["flags"]  # type: ignore[attr-defined]  # a Space


def calls_served(process: object) -> str:
    return process.output()  # type: ignore[attr-defined]  # a Process


def test_a_call_goes_to_the_worker_and_does_its_work(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    run(["ip", "link", "set", "lo", "down"], netns=pod.path).ok()
    (worker.plugins / ".nodeplug" / "exec").rename(worker.plugins / ".nodeplug" / "exec.away")
    try:
        result = worker.call("ADD", LOOPBACK, pod).ok().json()
    finally:
        (worker.plugins / ".nodeplug" / "exec.away").rename(worker.plugins / ".nodeplug" / "exec")
    assert result["interfaces"][0]["sandbox"] == pod.path
    assert lo_is_up(pod)


def test_without_a_worker_the_launcher_answers(node: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    assert node.call("ADD", LOOPBACK, pod).ok().json()["cniVersion"] == "1.1.0"
    assert node.call("VERSION", LOOPBACK).ok().json()["supportedVersions"]


def test_the_socket_is_for_root_alone(worker: Node) -> None:
    assert worker.socket.stat().st_mode & 0o777 == 0o600
    assert worker.sockets.stat().st_mode & 0o777 == 0o700


def test_another_user_is_refused_even_where_the_mode_would_let_it_in(worker: Node) -> None:
    worker.sockets.chmod(0o755)
    worker.directory.chmod(0o755)
    worker.socket.chmod(0o666)
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(10)\n"
        "try: got = s.recv(1)\n"
        "except ConnectionResetError: got = b''\n"
        "print(repr(got))"
    )
    command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", program, str(worker.socket)]
    assert run(command).ok().text == "b''"
    worker.sockets.chmod(0o700)


def test_a_hung_worker_costs_two_seconds_and_the_call_is_done(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    assert worker.process is not None
    worker.process.signal(signal.SIGSTOP)
    try:
        assert worker.call("ADD", LOOPBACK, pod).ok().json()["interfaces"]
    finally:
        worker.process.signal(signal.SIGCONT)


def test_a_call_given_up_by_its_caller_changes_nothing_when_the_worker_wakes(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    run(["ip", "link", "set", "lo", "down"], netns=pod.path).ok()
    assert worker.process is not None
    worker.process.signal(signal.SIGSTOP)
    with open(pod.path) as opened:
        call = call_of("ADD", LOOPBACK, pod.path, "late").replace(files={"netns": opened.fileno()})
        outcome = wire.ask(str(worker.socket), call, deadline=soon(), greeting=0.3)
    assert isinstance(outcome, Fallback)
    worker.process.signal(signal.SIGCONT)
    assert worker.call("STATUS", LOOPBACK).ok()  # it is awake, and has looked at what waited before this
    assert not lo_is_up(pod)


class Held:
    """The whole network's lock: calls of the network wait while it is held."""

    def __init__(self, network: str) -> None:
        self._lock = files.range_lock(f"{paths.LOCKS}/cni/{network}", None)

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__(None, None, None)


def start_call(node: Node, command: str, pod: object) -> subprocess.Popen[bytes]:
    import json

    child = subprocess.Popen(
        [node.plugins / "loopback"],
        env=environment(command, pod.path, "held"),  # type: ignore[attr-defined]  # a Space
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(LOOPBACK).encode())
    child.stdin.close()
    return child


def waits_for_the_lock(node: Node) -> bool:
    """Whether the worker has the network's lock file open: it is where a call waits."""
    assert node.process is not None
    for fd in Path(f"/proc/{node.process.pid}/fd").iterdir():
        try:
            if os.readlink(fd).endswith("/lock/cni/lo-net"):
                return True
        except OSError:
            continue
    return False


def test_killed_after_accepting_an_add_asks_to_try_again(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    with Held("lo-net"):
        child = start_call(worker, "ADD", pod)
        until(lambda: waits_for_the_lock(worker), "the worker has the call")
        worker.kill()
        assert child.stdout is not None
        said = child.stdout.read()
    child.stdout.close()
    assert child.wait(20) == 1
    assert b'"code": 11' in said
    assert worker.call("ADD", LOOPBACK, pod).ok()  # and it can


def test_killed_after_accepting_a_del_is_done_by_the_launcher(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    with Held("lo-net"):
        child = start_call(worker, "DEL", pod)
        until(lambda: waits_for_the_lock(worker), "the worker has the call")
        worker.kill()
    assert child.stdout is not None
    assert child.stdout.read() == b""
    child.stdout.close()
    assert child.wait(20) == 0
    assert not lo_is_up(pod)


def test_sigterm_lets_calls_under_way_end_and_sends_new_ones_to_the_launcher(worker: Node, ledger: Ledger) -> None:
    pod, other = ledger.netns(), ledger.netns()
    assert worker.process is not None
    with Held("lo-net"):
        child = start_call(worker, "ADD", pod)
        until(lambda: waits_for_the_lock(worker), "the worker has the call")
        worker.process.signal(signal.SIGTERM)
        until(lambda: not worker.socket.exists(), "the socket's name is given up")
        assert worker.call("VERSION", LOOPBACK, other).ok()
        assert worker.process.running()
    assert child.stdout is not None
    assert b'"cniVersion"' in child.stdout.read()
    child.stdout.close()
    assert child.wait(20) == 0
    assert worker.process.wait() == 0


def test_a_drain_has_an_end_and_whoever_was_cut_off_has_last_words(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    assert worker.process is not None
    with Held("lo-net"):
        child = start_call(worker, "ADD", pod)
        until(lambda: waits_for_the_lock(worker), "the worker has the call")
        worker.process.signal(signal.SIGTERM)
        assert worker.process.wait() == 0
        assert child.stdout is not None
        assert b'"code": 11' in child.stdout.read()
    child.stdout.close()
    assert child.wait(20) == 1


def test_full_means_that_callers_run_their_calls_themselves(worker: Node, ledger: Ledger) -> None:
    pods = [ledger.netns() for _ in range(16)]
    with Held("lo-net"):
        children = [start_call(worker, "DEL", pod) for pod in pods[:12]]  # 8 threads, 4 in the queue
        until(lambda: waits_for_the_lock(worker), "the worker has calls")
        until(lambda: _connections(worker) >= 12, "all are with the worker")
        call = call_of("VERSION", LOOPBACK, "", "x")
        outcome = wire.ask(str(worker.socket), call, deadline=soon())
        assert isinstance(outcome, Fallback)
        assert worker.call("VERSION", LOOPBACK).ok()
    for child in children:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(40) == 0


def _connections(node: Node) -> int:
    assert node.process is not None
    found = 0
    for fd in Path(f"/proc/{node.process.pid}/fd").iterdir():
        try:
            found += os.readlink(fd).startswith("socket:")
        except OSError:
            continue
    return found - 2  # the listener, and the socket that watches the nft table


def test_worker_and_launcher_at_once_stay_excluded(worker: Node, ledger: Ledger) -> None:
    ledger.link("np-test0")
    ledger.table("inet", "nodeplug")
    pods = [ledger.netns() for _ in range(8)]
    launcher = worker.plugins / ".nodeplug" / "exec"

    def one(number: int) -> str:
        import json

        env = environment("ADD", pods[number].path, pods[number].name, str(worker.plugins))
        argv = [launcher, "bridge"] if number % 2 else [worker.plugins / "bridge"]
        result = run(argv, env=env, stdin=json.dumps(BRIDGE).encode()).ok().json()
        return str(result["ips"][0]["address"])

    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(one, range(8)))
    assert len(set(given)) == 8
    for pod in pods:
        assert worker.call("CHECK", {**BRIDGE, "prevResult": {"cniVersion": "1.1.0"}}, pod).code in (0, 1)
        assert worker.call("DEL", BRIDGE, pod).code == 0


THOUSAND = pytest.param(1000, marks=(pytest.mark.stress, pytest.mark.timeout(1800)))


@pytest.mark.parametrize("count", [24, THOUSAND])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_under_load_no_pod_fails_for_good_and_no_address_is_given_twice(
    worker: Node, ledger: Ledger, number: int, count: int
) -> None:
    ledger.link("np-test0")
    ledger.table("inet", "nodeplug")
    pods = [ledger.netns() for _ in range(count)]
    done = threading.Event()

    def restart() -> None:
        while not done.is_set():
            worker.stop(number)
            worker.start()
            done.wait(random.uniform(0.0, 1.0))

    def live(pod: object) -> str:
        for _ in range(20):
            added = worker.call("ADD", BRIDGE, pod)  # type: ignore[arg-type]  # a Space
            if added.code == 0:
                return str(added.json()["ips"][0]["address"])
            assert code(added) == 11, added
            assert worker.call("DEL", BRIDGE, pod).code == 0  # type: ignore[arg-type]  # a Space
        raise AssertionError("it failed for good")

    restarts = threading.Thread(target=restart)
    restarts.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            given = list(pool.map(live, pods))
        assert len(set(given)) == len(pods)
        with ThreadPoolExecutor(6) as pool:
            for ended in pool.map(lambda pod: worker.call("DEL", BRIDGE, pod), pods):
                assert ended.code == 0, ended
    finally:
        done.set()
        restarts.join()
    # Of a file that was being written, kill -9 leaves the temporary name.
    assert worker.call("GC", {**BRIDGE, "cni.dev/valid-attachments": []}).code == 0
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("np") and name != "np-test0"]
    leases = Path("/var/lib/cni/networks/pods")
    assert not [path.name for path in leases.iterdir() if path.name.startswith("10.")]


def test_it_tells_the_service_manager_and_feeds_its_watchdog(node: Node, ledger: Ledger) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ledger.adopt("manager", manager.close)
    path = ledger.directory() / "notify"
    manager.bind(str(path))
    manager.settimeout(30)
    process = node.start(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="200000")
    heard = [manager.recv(4096).decode() for _ in range(3)]
    assert heard[0].startswith("READY=1")
    assert "WATCHDOG=1" in heard
    process.signal(signal.SIGHUP)
    until(lambda: "RELOADING=1" in manager.recv(4096).decode(), "it reloads")
    until(lambda: "READY=1" in manager.recv(4096).decode(), "and is ready again")
    process.signal(signal.SIGTERM)
    until(lambda: manager.recv(4096) == b"STOPPING=1", "it stops")
    assert process.wait() == 0


def test_a_second_worker_on_the_same_sockets_is_refused(worker: Node) -> None:
    first = worker.process
    second = worker.start(wait=False)
    assert second.wait() == 1
    assert "another process holds the name" in second.output()
    worker.process = first
    assert isinstance(wire.ask(str(worker.socket), call_of("VERSION", LOOPBACK, "", "x"), deadline=soon()), Answer)


def test_wrong_settings_are_all_told_and_end_it_for_good(node: Node) -> None:
    node.configure('thread = 3\nrunning = "two"')
    process = node.start(wait=False)
    assert process.wait() == 78
    assert "worker.thread" in process.output() and "worker.running" in process.output()
    node.configure("threads = 8\nqueue = 4\ndrain = 5")


def test_links_that_a_killed_worker_left_in_its_group_are_put_back(node: Node, ledger: Ledger) -> None:
    name = ledger.link("npabcdefghijklm")
    run(["ip", "link", "add", name, "group", str(0x6E70BEEF), "type", "veth", "peer", "name", "far"]).ok()
    node.start()
    shown = run(["ip", "-d", "-j", "link", "show", name]).json()[0]
    assert shown["group"] == "default"
    node.stop()
