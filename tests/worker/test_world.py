"""Whose calls the worker serves, and that it never touches the wrong host."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core import paths
from nodeplug.core.call import Answer
from nodeplug.worker import wire
from nodeplug.worker.wire import Fallback
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space, in_a_thread
from tests.worker.node import BRIDGE, LOOPBACK, Node, call_of, code

pytestmark = needs("sandbox", "program:cc")


@pytest.fixture(scope="module")
def worker(module_ledger: Ledger) -> Iterator[Node]:
    found = Node(module_ledger)
    found.start()
    yield found
    found.stop()


def ask(node: Node, command: str, netns: str, *, opened: str = "", container: str = "c") -> Answer | Fallback:
    """A call by the wire from this thread, with a descriptor of `opened`."""
    call = call_of(command, LOOPBACK, netns, container)
    fd = os.open(opened, os.O_RDONLY) if opened else -1
    try:
        files = {"netns": fd} if fd >= 0 else {}
        return wire.ask(str(node.socket), call.replace(files=files), deadline=time.monotonic() + 10)
    finally:
        if fd >= 0:
            os.close(fd)


def host_lo_is_up() -> bool:
    return bool(Path("/sys/class/net/lo/carrier").read_text().strip() == "1")


def test_a_caller_in_another_network_namespace_runs_its_call_itself(worker: Node, ledger: Ledger) -> None:
    host, pod = ledger.netns(), ledger.netns()
    outcome = host.call(lambda: ask(worker, "ADD", pod.path, opened=pod.path))
    assert isinstance(outcome, Fallback) and outcome.last_words is None
    ledger.link("np-test0")
    ledger.table("inet", "nodeplug")
    result = worker.call("ADD", BRIDGE, pod, netns=host.path).ok().json()
    assert result["interfaces"][0]["name"] == "np-test0"
    assert "np-test0" in host.links()
    assert not Path("/sys/class/net/np-test0").exists()
    assert worker.call("DEL", BRIDGE, pod, netns=host.path).code == 0


def test_a_caller_in_another_mount_namespace_runs_its_call_itself(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()

    def elsewhere() -> Answer | Fallback:
        from nodeplug.kernel import libc

        libc.unshare(0x200)  # CLONE_FS, without which a thread has no mount namespace of its own
        libc.unshare(libc.CLONE_NEWNS)
        return ask(worker, "ADD", pod.path, opened=pod.path)

    assert isinstance(in_a_thread(elsewhere), Fallback)


def test_root_of_a_user_namespace_is_not_heard(worker: Node, ledger: Ledger) -> None:
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "try: s.connect(sys.argv[1]); print(repr(s.recv(1)))\n"
        "except OSError as error: print(type(error).__name__)"
    )
    directory = ledger.directory()
    directory.chmod(0o755)
    script = directory / "s.py"
    script.write_text(program)
    for place in (worker.directory, worker.sockets):
        place.chmod(0o755)
    worker.socket.chmod(0o666)
    rootless = ["unshare", "--user", "--map-root-user", "--net", "/usr/bin/python3", script, str(worker.socket)]
    said = run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *rootless])
    worker.socket.chmod(0o600)
    worker.sockets.chmod(0o700)
    assert said.text in ("b''", "ConnectionResetError"), said


@pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/thread-self/ns/net", "/proc/1/ns/net"])
def test_the_hosts_own_namespace_is_refused_on_add_and_left_alone_on_del(worker: Node, path: str) -> None:
    assert code(worker.call("ADD", LOOPBACK, path, "c")) == 8 or path != "/proc/1/ns/net"
    assert code(worker.call("ADD", LOOPBACK, path, "c")) in (8,)
    assert worker.call("DEL", LOOPBACK, path, "c").code == 0
    assert host_lo_is_up()


def test_a_path_that_means_something_else_in_the_worker_is_sent_back(worker: Node, ledger: Ledger) -> None:
    """The caller opened its own /proc/self/ns/net; there it is the pod's, in the worker it would be the host's."""
    pod = ledger.netns()
    outcome = ask(worker, "ADD", "/proc/self/ns/net", opened=pod.path)
    assert isinstance(outcome, Fallback) and outcome.last_words is None
    assert isinstance(ask(worker, "ADD", "/run/netns/not-there", opened=pod.path), Fallback)
    assert isinstance(ask(worker, "ADD", pod.path, opened=pod.path), Answer)


def test_no_namespace_is_opened_by_its_path_alone(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    run(["ip", "link", "set", "lo", "down"], netns=pod.path).ok()
    outcome = ask(worker, "ADD", pod.path)
    assert isinstance(outcome, Answer)
    assert b'"code": 8' in outcome.stdout and b"could not open" in outcome.stdout
    assert "UP" not in pod.ip("link", "show", "lo")[0]["flags"]


def test_a_reused_pid_never_brings_the_hosts_lo_down(worker: Node, ledger: Ledger) -> None:
    """The sandbox's process has ended, and its number belongs to one of the host's: DEL finds the sandbox gone."""
    sleeper = ledger.start(["sleep", "60"])
    path = f"/proc/{sleeper.pid}/ns/net"
    ended = worker.call("DEL", LOOPBACK, path, "reused")
    assert ended.code == 0
    assert b"taken for gone" in ended.stderr
    assert host_lo_is_up()
    sleeper.end()
    assert worker.call("DEL", LOOPBACK, path, "reused").code == 0


@pytest.mark.parametrize("what", ["/dev/null", "/", "/proc/self/ns/mnt", "/proc/self/ns/pid"])
def test_a_descriptor_of_something_else_is_no_namespace(worker: Node, what: str) -> None:
    outcome = ask(worker, "ADD", os.path.realpath(what) if what in ("/dev/null", "/") else what, opened=what)
    assert isinstance(outcome, Fallback) or b'"code": 8' in outcome.stdout


def test_the_namespaces_of_the_request_must_be_namespaces(worker: Node, ledger: Ledger) -> None:
    import socket
    import struct

    from nodeplug.worker.frames import encode_request

    for pair in (("/dev/null", "/dev/null"), ("/proc/self/ns/mnt", "/proc/self/ns/net")):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(worker.socket))
            fds = [os.open(path, os.O_RDONLY) for path in pair]
            frame = encode_request(call_of("VERSION", LOOPBACK, "", "c"), patience=5)
            connection.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=2i", *fds))])
            for fd in fds:
                os.close(fd)
            assert connection.recv(100) == b""


def bare_root(ledger: Ledger, node: Node) -> tuple[Path, subprocess.Popen[bytes]]:
    """A host without Python: a root of its own with the plugins in it, and a process that keeps its namespaces."""
    root = ledger.directory()
    shim = node.plugins / "loopback"
    program = (
        f"set -e; mount -t tmpfs -o mode=755 tmpfs {root}; cd {root}\n"
        "mkdir -p proc run/netns bin old opt/cni/bin etc var/log tmp sys\n"
        f"mount --rbind /proc proc; mount --rbind /run/netns run/netns; cp {shim} opt/cni/bin/loopback\n"
        f"cp {shim} opt/cni/bin/bridge; cp -a {node.plugins}/.nodeplug opt/cni/bin/; cp /bin/busybox bin/busybox\n"
        "rm opt/cni/bin/.nodeplug/worker.sock; ln -s /run/w/cni.sock opt/cni/bin/.nodeplug/worker.sock\n"
        "pivot_root . old; /bin/busybox umount -l /old; echo ready; exec /bin/busybox sleep 300\n"
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", program]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def end() -> None:
        keeper.kill()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()

    ledger.adopt("host without Python", end)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"ready\n"
    return root, keeper


def on_host(keeper: subprocess.Popen[bytes], command: str, pod: Space, plugin: str = "loopback", **options: object):  # type: ignore[no-untyped-def]
    import json

    config = {**LOOPBACK, "type": plugin, "cni.dev/valid-attachments": []}
    if command == "CHECK":
        config["prevResult"] = {"cniVersion": "1.1.0"}
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.name,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    argv = ["nsenter", "-t", str(keeper.pid), "--mount", f"/opt/cni/bin/{plugin}"]
    return run(argv, env={**env, "PATH": "/usr/bin:/bin"}, stdin=json.dumps(config).encode(), **options)  # type: ignore[arg-type]


def test_a_host_without_python_never_says_that_something_was_done_while_the_worker_is_away(
    module_ledger: Ledger, ledger: Ledger
) -> None:
    node = Node(ledger)
    pod = ledger.netns()
    _root, keeper = bare_root(ledger, node)
    for command in ("ADD", "CHECK", "GC"):
        assert code(on_host(keeper, command, pod)) == 11, command
    assert code(on_host(keeper, "STATUS", pod)) == 50
    began = time.monotonic()
    assert code(on_host(keeper, "DEL", pod)) == 11
    assert time.monotonic() - began > 9  # it went on looking for ten seconds


def test_a_worker_in_a_container_serves_the_host_it_is_for(ledger: Ledger) -> None:
    node = Node(ledger)
    pod = ledger.netns()
    _root, keeper = bare_root(ledger, node)
    node.configure(f'host = "/proc/{keeper.pid}"')
    text = (node.config / "nodeplug.toml").read_text().replace(str(node.sockets), "/run/w")
    (node.config / "nodeplug.toml").write_text(text)
    process = node.start(wait=False)
    socket = Path(f"/proc/{keeper.pid}/root/run/w/cni.sock")
    until(lambda: socket.exists() or not process.running(), "the socket is on the host", timeout=30)
    assert process.running(), process.output()
    run(["ip", "link", "set", "lo", "down"], netns=pod.path).ok()
    assert on_host(keeper, "ADD", pod).ok().json()["interfaces"][0]["sandbox"] == pod.path
    assert "UP" in pod.ip("link", "show", "lo")[0]["flags"]
    assert on_host(keeper, "CHECK", pod).code == 0
    assert on_host(keeper, "DEL", pod).code == 0
    assert Path(f"/proc/{keeper.pid}/root{paths.LOG}/cni.log").exists()  # its files are the host's
    # Whoever is not on that host is not served, though it is where the worker was started.
    assert isinstance(
        wire.ask(str(socket), call_of("VERSION", LOOPBACK, "", "c"), deadline=time.monotonic() + 5), Fallback
    )
    node.stop()
    assert code(on_host(keeper, "STATUS", pod)) == 50


def test_del_on_a_host_without_python_is_done_by_a_worker_that_comes_back(ledger: Ledger) -> None:
    import threading

    node = Node(ledger)
    pod = ledger.netns()
    _root, keeper = bare_root(ledger, node)
    node.configure(f'host = "/proc/{keeper.pid}"')
    text = (node.config / "nodeplug.toml").read_text().replace(str(node.sockets), "/run/w")
    (node.config / "nodeplug.toml").write_text(text)
    codes: list[int] = []
    caller = threading.Thread(target=lambda: codes.append(on_host(keeper, "DEL", pod).code))
    caller.start()
    node.start(wait=False)
    caller.join(30)
    assert codes == [0]
    assert "UP" not in pod.ip("link", "show", "lo")[0]["flags"]
    node.stop()
