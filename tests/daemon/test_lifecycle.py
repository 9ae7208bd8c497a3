"""Signals become events, the service manager hears what it should, the drain is bounded."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from nodeplug.core import errors
from nodeplug.daemon.lifecycle import EXIT_CONFIG, EXIT_FAILED, EXIT_TRY_AGAIN, Event, Lifecycle, drain, exit_code


def manager(tmp_path: Path) -> tuple[dict[str, str], socket.socket]:
    path = str(tmp_path / "notify")
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    peer.bind(path)
    peer.settimeout(10)
    return {"NOTIFY_SOCKET": path}, peer


def test_signals_arrive_as_events_in_order() -> None:
    with Lifecycle({}) as life:
        os.kill(os.getpid(), signal.SIGHUP)
        assert life.wait(10) is Event.RELOAD
        assert not life.must_stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert life.wait(10) is Event.STOP
        assert life.must_stop
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_wait_is_bounded_and_another_thread_can_end_it() -> None:
    with Lifecycle({}) as life:
        assert life.wait(0.01) is None
        threading.Timer(0.05, life.post, [Event.RELOAD]).start()
        assert life.wait(10) is Event.RELOAD


def test_the_service_manager_hears_each_state(tmp_path: Path) -> None:
    environ, peer = manager(tmp_path)
    with peer, Lifecycle(environ) as life:
        life.ready("serving 2 keys\nand more")
        assert peer.recv(4096) == b"READY=1\nSTATUS=serving 2 keys and more"
        life.reloading()
        assert peer.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        life.stopping()
        assert peer.recv(4096) == b"STOPPING=1"


def test_the_watchdog_is_fed_while_the_daemon_is_alive_and_no_longer(tmp_path: Path) -> None:
    environ, peer = manager(tmp_path)
    alive = [True]
    with peer, Lifecycle({**environ, "WATCHDOG_USEC": "40000"}, alive=lambda: alive[0]) as life:
        assert life.wait(0.1) is None
        assert peer.recv(4096) == b"WATCHDOG=1"
        alive[0] = False
        peer.setblocking(False)
        try:
            while True:
                peer.recv(4096)
        except BlockingIOError:
            pass
        assert life.wait(0.1) is None
        try:
            heard = peer.recv(4096)
        except BlockingIOError:
            heard = b""
        assert heard == b""


def test_a_service_manager_that_is_gone_is_no_failure() -> None:
    with Lifecycle({"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "x"}) as life:
        life.ready()


def test_the_drain_gives_each_step_what_is_left() -> None:
    given: list[float] = []
    assert drain(5.0, given.append, given.append)
    assert 5.0 >= given[0] >= given[1] > 0
    late: list[float] = []
    assert not drain(0.0, lambda _: threading.Event().wait(0.01), late.append)
    assert late == [0.0]


def test_exit_codes_say_whether_another_start_helps() -> None:
    assert exit_code(errors.Malformed("x")) == EXIT_CONFIG
    assert exit_code(errors.TryAgain("x")) == EXIT_TRY_AGAIN
    assert exit_code(errors.Unavailable("x")) == EXIT_FAILED
    assert exit_code(ValueError("x")) == EXIT_FAILED


def test_a_hardened_process_leaves_no_core_and_hides_its_memory() -> None:
    code = (
        "import resource; from nodeplug.daemon.hygiene import harden; from nodeplug.kernel import libc;"
        "missed = [sentence for sentence in harden(libc) if 'memory is not locked' not in sentence];"
        "print(resource.getrlimit(resource.RLIMIT_CORE), libc.prctl(3, 0), missed)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 0) 0 []"
