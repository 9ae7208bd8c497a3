"""Files that appear whole, locks the kernel frees: under kill -9, a full disk and a file system without O_TMPFILE."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nodeplug.core import files
from nodeplug.core.errors import Malformed, TryAgain
from tests.child import run
from tests.ledger import Ledger

ROOT = str(Path(__file__).resolve().parents[2])


def test_write_atomic_replaces_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    files.write_atomic(str(path), b"one", 0o600)
    files.write_atomic(str(path), b"two", 0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.needs("sandbox")
def test_a_full_disk_leaves_the_old_content_and_no_rest(ledger: Ledger) -> None:
    directory = ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(directory)]).ok()
    path = directory / "state"
    files.write_atomic(str(path), b"old")
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(str(path), b"x" * 65536)
    with pytest.raises(OSError, match="No space left"):
        files.create_whole(str(directory / "other"), b"x" * 65536)
    assert path.read_bytes() == b"old"
    assert list(directory.iterdir()) == [path]


def test_create_whole_never_overwrites(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    assert files.create_whole(path, b"a\r\neth0", 0o600)
    assert not files.create_whole(path, b"b")
    assert Path(path).read_bytes() == b"a\r\neth0"
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.needs("sandbox")
def test_create_whole_works_where_there_are_no_unnamed_files(ledger: Ledger) -> None:
    """An overlay file system over one without O_TMPFILE is rare; FUSE and old NFS are not. ramfs stands for them."""
    directory = ledger.directory()
    run(["mount", "-t", "ramfs", "ramfs", str(directory)]).ok()
    path = str(directory / "lease")
    assert files.create_whole(path, b"a")
    assert not files.create_whole(path, b"b")
    assert os.listdir(directory) == ["lease"]


def test_a_reader_never_sees_a_file_that_is_not_whole(tmp_path: Path) -> None:
    """A writer is killed at random moments; whatever is there is one whole content."""
    path = tmp_path / "state"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nodeplug.core import files\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    files.write_atomic(sys.argv[2], (str(n % 10) * 5000).encode(), durable=False)\n"
    )
    for attempt in range(8):
        writer = subprocess.Popen([sys.executable, "-c", code, ROOT, str(path)])
        time.sleep(0.1 + attempt * 0.013)
        writer.kill()
        writer.wait()
        if path.exists():
            content = path.read_bytes()
            assert content == content[:1] * 5000


def test_a_temporary_file_is_abandoned_when_its_writer_has_ended(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from nodeplug.core import files\n"
        "sys.addaudithook(lambda event, _: event == 'os.rename' and os.kill(os.getpid(), signal.SIGKILL))\n"
        "files.write_atomic(sys.argv[2], b'x')\n"
    )
    subprocess.run([sys.executable, "-c", code, ROOT, str(tmp_path / "state")], check=False)
    (left,) = os.listdir(tmp_path)
    assert files.is_abandoned(left)
    assert not files.is_abandoned(f".state.{os.getpid():x}-1~")
    assert not any(files.is_abandoned(name) for name in ("state", ".state~", ".state.x-1~", "state.1-1~", ".a.1-1"))


def test_a_file_longer_than_its_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 100)
    assert files.read_bounded(str(path), 100) == b"x" * 100
    with pytest.raises(Malformed, match="larger than 99 bytes"):
        files.read_bounded(str(path), 99)


def test_one_byte_of_a_lock_excludes_threads_and_all_of_it_excludes_every_byte(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "lock")
    with files.range_lock(path, "a"):
        with files.range_lock(path, "b", timeout=0.05):
            pass
        for key in ("a", None):
            with pytest.raises(TryAgain, match="has held the lock"), files.range_lock(path, key, timeout=0.05):
                pass
    with files.range_lock(path, None), pytest.raises(TryAgain), files.range_lock(path, "a", timeout=0.05):
        pass


def test_several_keys_are_held_at_once_by_one_caller(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with files.range_lock(path, ["b", "a", "b"]):
        for key in ("a", "b", ["c", "a"]):
            with pytest.raises(TryAgain), files.range_lock(path, key, timeout=0.05):
                pass
        with files.range_lock(path, ["c", "d"], timeout=0.05):
            pass
    with files.range_lock(path, ("a", "b"), timeout=0.05):
        pass


def test_callers_that_name_the_same_keys_in_different_orders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")

    def often(keys: list[str]) -> None:
        for _ in range(200):
            with files.range_lock(path, keys, timeout=20):
                pass

    threads = [threading.Thread(target=often, args=(keys,)) for keys in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_waiter_gets_the_lock_when_its_holder_is_done(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    order = []

    def wait() -> None:
        with files.range_lock(path, "a", timeout=10):
            order.append("second")

    with files.range_lock(path, "a"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.05)
        order.append("first")
    waiter.join(10)
    assert order == ["first", "second"]


def test_the_kernel_frees_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from nodeplug.core import files\n"
        "with files.range_lock(sys.argv[2], 'a'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, ROOT, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(TryAgain), files.range_lock(path, "a", timeout=0.05):
        pass
    holder.kill()
    holder.communicate()
    with files.range_lock(path, "a", timeout=5):
        pass


def test_ensure_directory_makes_parents_and_keeps_modes(tmp_path: Path) -> None:
    files.ensure_directory(str(tmp_path / "a" / "b"), 0o700)
    (tmp_path / "a" / "b").chmod(0o711)
    files.ensure_directory(str(tmp_path / "a" / "b"), 0o700)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o711


def test_flock_excludes_whoever_uses_flock_and_is_free_once_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    fd = files.flock(path, 0o750)
    assert os.stat(path).st_mode & 0o777 == 0o750 & ~_umask()
    assert run(["flock", "-n", path, "true"]).code == 1
    with pytest.raises(TryAgain, match="held the lock"):
        files.flock(path, timeout=0.01)
    os.close(fd)
    assert run(["flock", "-n", path, "true"]).code == 0


def test_flock_is_taken_on_the_file_that_is_there_and_not_on_an_unlinked_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = files.flock(path)
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(files.flock(path)))
    waiter.start()
    time.sleep(0.05)
    os.unlink(path)
    os.close(first)
    waiter.join(10)
    try:
        assert os.path.samestat(os.fstat(got[0]), os.stat(path))
    finally:
        os.close(got[0])


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_whether_a_lock_is_held_can_be_asked_without_taking_it(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    assert not files.is_locked(path, "a")
    assert not os.path.exists(path)
    with files.range_lock(path, "a"):
        assert files.is_locked(path, "a")
        assert not files.is_locked(path, "b")
    assert not files.is_locked(path, "a")
    with files.range_lock(path, None):
        assert files.is_locked(path, "a")
