"""FlexVolume calls through the warm worker: never a success the kubelet cannot see, whatever becomes of the worker."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core import files, paths
from nodeplug.core.call import Answer, Call
from nodeplug.harness.kubelet.flexvolume.answer import Failed
from nodeplug.harness.kubelet.flexvolume.plugin import Volume
from nodeplug.kernel import libc, mount
from nodeplug.volumes.contract import volume_id
from nodeplug.volumes.service import LOCK
from nodeplug.worker import wire
from nodeplug.worker.wire import Fallback
from tests.child import Process, run, until
from tests.flexvolume.node import POD
from tests.flexvolume.warm import DAEMON, TMPFS, Node
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import in_a_thread

pytestmark = needs("sandbox", "program:cc")
SECRET = Volume("key", "nodeplug.dev/secret", secrets={"password": b"open sesame"})
ENCODED = "b3BlbiBzZXNhbWU="
LOG = Path(paths.LOG) / "flexvolume.log"


@pytest.fixture(params=["c", "python"])
def node(ledger: Ledger, request: pytest.FixtureRequest) -> Iterator[Node]:
    found = Node(ledger, kind=request.param)
    found.start()
    yield found
    assert found.process is not None
    if found.process.running():
        assert found.stop() == 0


@pytest.fixture
def shimmed(ledger: Ledger) -> Iterator[Node]:
    found = Node(ledger)
    found.start()
    yield found
    assert found.process is not None
    if found.process.running():
        assert found.stop() == 0


def test_a_volume_is_mounted_and_unmounted_by_the_worker(node: Node) -> None:
    node.kubelet.refresh()
    target = node.mount()
    found = mount.find(str(target))
    assert found is not None and found.fstype == "tmpfs"
    (target / "file").write_text("x")
    node.unmount()
    assert not target.exists()
    assert node.served("ok") >= 3 and node.served("foreign") == 0
    assert node.kubelet.caller.journal.lines == []


def test_failures_are_the_same_words_as_without_it(shimmed: Node) -> None:
    with pytest.raises(Failed, match=r"options\.sise: no such key; did you mean size\?"):
        shimmed.mount(Volume("data", "nodeplug.dev/tmpfs", {"sise": "1Mi"}))
    assert shimmed.served("error") == 1


def test_nothing_is_ever_mounted_where_the_kubelet_cannot_see_it(shimmed: Node) -> None:
    """The worker of a unit with PrivateMounts, or in a container: its mounts would be its own."""
    shimmed.stop()
    process = shimmed.start("unshare", "--mount", "--propagation", "private", "--")
    target = shimmed.mount()
    assert mount.is_mounted(str(target))
    own = Path(f"/proc/{process.pid}/mountinfo").read_text()
    assert str(shimmed.root) not in own
    shimmed.unmount()
    assert not target.exists() and str(shimmed.root) not in Path(f"/proc/{process.pid}/mountinfo").read_text()
    assert shimmed.served("foreign") >= 2 and shimmed.served("ok") == 0


def test_a_caller_in_another_mount_namespace_runs_its_call_itself(shimmed: Node) -> None:
    def elsewhere() -> Answer | Fallback:
        libc.unshare(0x200)  # CLONE_FS, without which a thread has no mount namespace of its own
        libc.unshare(libc.CLONE_NEWNS)
        target = str(shimmed.root / "pods/u/volumes/nodeplug.dev~tmpfs/data")
        call = Call(contract="flexvolume", name="tmpfs", argv=("mount", target, '{"size": "1Mi"}'), env={}, files={})
        return wire.ask(str(shimmed.socket), call, deadline=10 + os.times().elapsed)

    outcome = in_a_thread(elsewhere)
    assert isinstance(outcome, Fallback) and outcome.last_words is None


def test_a_worker_that_only_says_that_it_mounted_is_not_believed(ledger: Ledger) -> None:
    """Were its namespace taken for the caller's by mistake, the caller's own look is the last to tell."""
    import socket as sockets
    import time

    from nodeplug.core.call import LastWords
    from nodeplug.flexvolume import lastwords
    from nodeplug.worker.wire import receive, send_answer, send_last_words

    for kind in ("c", "python"):
        node = Node(ledger, kind=kind)  # type: ignore[arg-type]  # these are its values
        node.kubelet.refresh()
        node.sockets.mkdir()
        listener = sockets.socket(sockets.AF_UNIX)
        ledger.adopt("listener", listener.close)
        listener.bind(str(node.socket))
        listener.listen()

        def serve(listener: sockets.socket = listener) -> None:
            connection, _ = listener.accept()
            with connection:
                soon = time.monotonic() + 10
                request = receive(connection, contract="flexvolume", deadline=soon)
                words = lastwords.last_words(request.call)
                assert isinstance(words, LastWords) and not words.yourself
                send_last_words(connection, words, deadline=soon)
                said = Answer(code=0, stdout=b'{"status":"Success"}\n', mounted=request.call.argv[1])
                send_answer(connection, said, deadline=soon)
                request.close()

        liar = threading.Thread(target=serve)
        liar.start()
        with pytest.raises(Failed, match="ended before it could answer; the kubelet tries again"):
            node.mount()
        liar.join(10)


def test_killed_over_a_mount_it_is_a_failure_and_the_next_attempt_succeeds(shimmed: Node) -> None:
    shimmed.kubelet.refresh()
    outcome: list[str] = []
    target = shimmed.kubelet.find(TMPFS.driver).directory(POD, "data")

    def attempt() -> None:
        try:
            shimmed.mount()
            outcome.append("success")
        except Failed as error:
            outcome.append(error.message)

    with files.range_lock(LOCK, volume_id(str(target))):
        caller = threading.Thread(target=attempt)
        caller.start()
        assert shimmed.process is not None
        until(lambda: waits(shimmed.process), "the worker has the call")
        shimmed.stop(signal.SIGKILL)
        caller.join(20)
    assert "ended before it could answer" in outcome[0]
    assert not target.exists()
    assert mount.is_mounted(str(shimmed.mount()))
    shimmed.unmount()


def waits(process: Process | None) -> bool:
    """Whether it has the volumes' lock file open: it is where a call waits."""
    assert process is not None
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            if os.readlink(fd) == LOCK:
                return True
        except OSError:
            continue
    return False


def test_killed_over_an_unmount_the_launcher_goes_on_with_it(shimmed: Node) -> None:
    target = shimmed.mount()
    with files.range_lock(LOCK, volume_id(str(target))):
        caller = threading.Thread(target=shimmed.unmount)
        caller.start()
        until(lambda: waits(shimmed.process), "the worker has the call")
        shimmed.stop(signal.SIGKILL)
    caller.join(30)
    assert not target.exists()


def test_without_a_worker_everything_is_as_with_it(ledger: Ledger) -> None:
    node = Node(ledger)
    target = node.mount()
    assert mount.is_mounted(str(target))
    node.start()  # and the other one ends what the one began
    node.without_launcher()
    node.unmount()
    assert not target.exists()
    assert node.stop() == 0


def test_secrets_are_in_no_log_and_no_command_line_and_reach_the_volume(shimmed: Node) -> None:
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = entry.read_bytes()
                except OSError:
                    continue
                if ENCODED.encode() in line or b"open sesame" in line:
                    seen.append(line)

    shimmed.kubelet.refresh()
    watcher = threading.Thread(target=look)
    watcher.start()
    target = shimmed.mount(SECRET)
    assert (target / "password").read_text() == "open sesame"
    with pytest.raises(Failed) as raised:
        shimmed.mount(dataclasses.replace(SECRET, name="other", options={"mode": "loud"}))
    shimmed.unmount(SECRET)
    done.set()
    watcher.join()
    assert shimmed.process is not None
    everything = "\n".join(
        [raised.value.message, shimmed.process.output(), LOG.read_text(), *shimmed.kubelet.caller.journal.lines]
    )
    assert ENCODED not in everything and "open sesame" not in everything
    # What the kubelet itself puts there is there until the shim's first instructions, and no longer.
    assert all(b"nodeplug.dev~secret/secret" in line for line in seen)


def test_a_launcher_that_runs_a_call_with_secrets_does_not_have_them_in_its_command_line(ledger: Ledger) -> None:
    node = Node(ledger)
    plugin = node.kubelet.find(SECRET.driver)
    target = plugin.directory(POD, "key")
    target.mkdir(parents=True)
    document = json.dumps({"kubernetes.io/secret/password": ENCODED})
    with files.range_lock(LOCK, volume_id(str(target))):
        child = subprocess.Popen([plugin.executable, "mount", target, document], stdout=subprocess.PIPE, env={})
        line = Path(f"/proc/{child.pid}/cmdline")
        until(lambda: b"python3" in line.read_bytes(), "the launcher runs")
        assert ENCODED.encode() not in line.read_bytes() and line.read_bytes().endswith(b"\0secret\0-\0")
    assert json.loads(child.communicate(timeout=20)[0]) == {"status": "Success"}
    node.unmount(SECRET)


def test_a_new_policy_is_taken_up_by_reload(shimmed: Node) -> None:
    bind = Volume("logs", "nodeplug.dev/bind", {"path": "/etc"}, read_only=True)
    with pytest.raises(Failed, match=r"may not have a bind volume(.|\n)*\[\[volumes\.allow\]\](.|\n)*namespaces"):
        shimmed.mount(bind)
    settings = Path(paths.ETC) / "nodeplug.toml"
    shimmed.ledger.adopt("settings", lambda: settings.unlink(missing_ok=True))
    settings.write_text('[[volumes.allow]]\ndriver = "bind"\nnamespaces = ["shop"]\nroots = ["/etc"]\n')
    assert shimmed.process is not None
    shimmed.process.signal(signal.SIGHUP)

    def mounted() -> bool:
        try:
            return shimmed.mount(bind).is_dir()
        except Failed:
            return False

    until(mounted, "the policy holds")
    assert (shimmed.kubelet.find(bind.driver).directory(POD, "logs") / "passwd").exists()
    shimmed.unmount(bind)


def test_a_worker_in_a_container_mounts_on_the_host_it_is_for(ledger: Ledger) -> None:
    """A host without Python: its kubelet has the shim alone, the worker's files and mounts are the host's."""
    node = Node(ledger)
    root = ledger.directory()
    program = (
        f"set -e; mount -t tmpfs -o mode=755 tmpfs {root}; cd {root}\n"
        "mkdir -p proc run bin old exec/nodeplug.dev~tmpfs etc var/log var/lib tmp sys kubelet store\n"
        f"mount --rbind /proc proc; cp {node.exec}/nodeplug.dev~tmpfs/tmpfs exec/nodeplug.dev~tmpfs/tmpfs\n"
        f"cp -a {node.store}/.nodeplug store/; cp /bin/busybox bin/busybox\n"
        "rm store/.nodeplug/worker.sock; ln -s /run/w/flexvolume.sock store/.nodeplug/worker.sock\n"
        "ln -s /store/.nodeplug exec/nodeplug.dev~tmpfs/.nodeplug\n"
        "pivot_root . old; /bin/busybox umount -l /old; echo ready; exec /bin/busybox sleep 300\n"
    )
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", program], stdout=subprocess.PIPE
    )

    def end() -> None:
        keeper.kill()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()

    ledger.adopt("host without Python", end)
    assert keeper.stdout is not None and keeper.stdout.readline() == b"ready\n"

    def call(*argv: str) -> dict[str, object]:
        inside = ["nsenter", "-t", str(keeper.pid), "--mount", "/exec/nodeplug.dev~tmpfs/tmpfs", *argv]
        found = run(inside, env={"PATH": "/usr/bin:/bin"}).ok().json()
        assert isinstance(found, dict)
        return found

    target = "/kubelet/pods/u/volumes/nodeplug.dev~tmpfs/data"
    assert call("init")["status"] == "Success"
    assert "worker cannot be reached" in str(call("mount", target, '{"size": "1Mi"}')["message"])
    node.configure(f'host = "/proc/{keeper.pid}"')
    text = (node.config / "nodeplug.toml").read_text().replace(str(node.sockets), "/run/w")
    (node.config / "nodeplug.toml").write_text(text.partition("[worker.health]")[0])
    process = ledger.start([sys.executable, "-I", DAEMON, "--config", node.config])
    there = Path(f"/proc/{keeper.pid}/root")
    until(lambda: (there / "run/w/flexvolume.sock").exists() or not process.running(), "it listens", timeout=30)
    assert process.running(), process.output()
    assert call("mount", target, '{"size": "1Mi"}') == {"status": "Success"}
    assert f" {target} " in Path(f"/proc/{keeper.pid}/mountinfo").read_text()
    assert str(target) not in Path("/proc/self/mountinfo").read_text()
    assert call("unmount", target) == {"status": "Success"}
    assert f" {target} " not in Path(f"/proc/{keeper.pid}/mountinfo").read_text()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_volume_that_takes_its_time_does_not_hold_up_other_calls(ledger: Ledger) -> None:
    """What the kernel flushes when a disk's volume is unmounted may take seconds, and there are two turns for all."""
    from nodeplug.core import company
    from nodeplug.flexvolume.contract import UnmountRequest
    from nodeplug.flexvolume.drivers.volume import VolumeDriver

    class Watched(company.Company):
        waited = 0

        def waiting(self):  # type: ignore[no-untyped-def]  # as the base class has it
            self.waited += 1
            return super().waiting()

    seat = Watched()

    def call() -> None:
        company.join(seat)
        request = UnmountRequest(
            deadline=1e18, warn=lambda _: None, target=f"{ledger.directory()}/gone", pod_uid="", volume=""
        )
        VolumeDriver("tmpfs", None).unmount(request)

    in_a_thread(call)
    assert seat.waited > 0
