"""Sockets are made in safe places, with the right rights, and never over somebody else's."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, Error, Refused
from nodeplug.daemon import listeners
from nodeplug.daemon.listeners import LONGEST_PATH, Place, Published, inherited


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_a_socket_appears_with_its_mode_and_nothing_else_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "a.sock"
    with Published(Place(str(path), mode=0o660)) as name, name.listen():
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert answers(path)
        assert sorted(entry.name for entry in path.parent.iterdir()) == [".a.sock.lock", "a.sock"]
    assert not path.exists()


def test_the_group_is_given_before_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with Published(Place(str(path), mode=0o660, group=12345)) as name, name.listen():
        assert path.stat().st_gid == 12345


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert not answers(path)
    with Published(Place(str(path))) as name, name.listen():
        assert answers(path)


def test_a_socket_somebody_answers_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Refused, match="somebody answers"):
            Published(Place(str(path)))
        assert answers(path)


def test_a_socket_whose_backlog_is_full_counts_as_answered(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(Refused, match="somebody answers"):
            Published(Place(str(path)))
        for client in waiting:
            client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_anything_but_a_socket_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="symbolic link" if kind == "link" else "not a socket"):
        Published(Place(str(path)))
    assert path.is_symlink() or path.exists()


def test_two_holders_of_one_name_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with Published(Place(str(path))), pytest.raises(Refused, match="another process holds"):
        Published(Place(str(path)))
    Published(Place(str(path))).close()


def test_only_our_own_socket_is_unlinked_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    name = Published(Place(str(path)))
    listener = name.listen()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        successor.listen()
        name.close()
        assert answers(path)
    listener.close()


def test_a_killed_holder_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    code = (
        "import os, signal, sys; from nodeplug.daemon.listeners import *;"
        "n = Published(Place(sys.argv[1])); l = n.listen(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.exists()
    with Published(Place(str(path))) as name, name.listen():
        assert answers(path)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_directory_others_may_write_to_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(mode)
    with pytest.raises(Refused, match="chmod go-w"):
        Published(Place(str(loose / "below" / "a.sock")))


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 4321, -1)
    with pytest.raises(Refused, match="uid 4321"):
        Published(Place(str(foreign / "a.sock")))


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="too long"):
        Published(Place("/" + "x" * LONGEST_PATH))
    with pytest.raises(ConfigInvalid, match="absolute"):
        Published(Place("a.sock"))


def test_sockets_of_the_service_manager_are_found_with_their_names_which_may_be_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    code = (
        "import os, sys; from nodeplug.daemon.listeners import inherited;"
        "found = inherited({**os.environ, 'LISTEN_PID': str(os.getpid())}, os.getpid());"
        "print([(name, s.getsockname()) for name, s in found], os.get_inheritable(3))"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        shell = f'exec {sys.executable} -c "{code}" 3<&{listener.fileno()} 4<&{listener.fileno()}'
        done = subprocess.run(
            ["bash", "-c", shell],
            pass_fds=[listener.fileno()],
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "kms:kms"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.strip() == f"[('kms', {str(path)!r}), ('kms', {str(path)!r})] False"


def test_a_socket_that_cannot_be_given_its_name_is_an_error_of_ours(tmp_path: Path) -> None:
    with Published(Place(str(tmp_path / "a.sock"))) as name, pytest.raises(Error, match="mode, group and name"):
        name.publish()  # nothing was bound


def test_another_process_s_sockets_are_not_taken() -> None:
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, os.getpid()) == []
    assert inherited({}, os.getpid()) == []


def test_a_name_for_one_use_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "random.sock"
    with Published(Place(str(path), lock=False)) as name, name.listen():
        assert [entry.name for entry in tmp_path.iterdir()] == ["random.sock"]
    assert list(tmp_path.iterdir()) == []


def test_many_listeners_at_once_leave_the_mask_of_the_process_as_it_was(directory: Path) -> None:
    before = os.umask(0)

    def open_and_close(number: int) -> None:
        for _ in range(50):
            with listeners.private_files():
                (directory / f"{number}").touch()
            assert (directory / f"{number}").stat().st_mode & 0o077 == 0
            (directory / f"{number}").unlink()

    threads = [threading.Thread(target=open_and_close, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.umask(before) == 0


def test_a_mask_that_keeps_others_out_already_is_left_alone(directory: Path) -> None:
    before = os.umask(0o022)
    try:
        with listeners.private_files():
            # What another thread makes in this moment.
            other = threading.Thread(target=lambda: (directory / "d").mkdir(0o755))
            other.start()
            other.join()
            with socket.socket(socket.AF_UNIX) as own:
                own.bind(str(directory / "s"))
        assert (directory / "d").stat().st_mode & 0o777 == 0o755
        assert (directory / "s").stat().st_mode & 0o022 == 0  # to connect takes the right to write
    finally:
        os.umask(before)
