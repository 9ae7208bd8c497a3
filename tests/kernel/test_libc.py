"""The C library's calls: errors that name the call and its object, arguments that arrive whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from nodeplug.kernel import libc
from tests.needs import needs

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
PR_GET_TIMERSLACK = 30


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        (lambda: libc.setns(-1, libc.CLONE_NEWNET), errno.EBADF, "setns: Bad file descriptor: 'fd -1'"),
        (lambda: libc.unshare(1), errno.EINVAL, "unshare: Invalid argument: 'flags 0x1'"),
        (lambda: libc.mount("x", "/absent", "", 0x1000), errno.ENOENT, "mount: No such file or directory: '/absent'"),
        (lambda: libc.umount2("/absent", 0), errno.ENOENT, "umount2: No such file or directory: '/absent'"),
        (lambda: libc.prctl(-1, 0), errno.EINVAL, "prctl: Invalid argument: 'option -1'"),
        (lambda: libc.mlockall(0), errno.EINVAL, "mlockall: Invalid argument: 'flags 0x0'"),
        (lambda: libc.inotify_init1(1), errno.EINVAL, "inotify_init1: Invalid argument: 'flags 0x1'"),
        (lambda: libc.inotify_add_watch(-1, "/", 1), errno.EBADF, "inotify_add_watch: Bad file descriptor: '/'"),
        (lambda: libc.inotify_rm_watch(-1, 3), errno.EBADF, "inotify_rm_watch: Bad file descriptor: 'watch 3'"),
        (lambda: libc.open_tree(-100, "/absent", 1), errno.ENOENT, "open_tree: No such file or directory: '/absent'"),
        (lambda: libc.open_tree(-1, "", 0x1000), errno.EBADF, "open_tree: Bad file descriptor: 'fd -1'"),
        (lambda: libc.move_mount(-1, -100, "/tmp", 4), errno.EBADF, "move_mount: Bad file descriptor: '/tmp'"),
        (lambda: libc.fsopen("absent", 0), errno.ENODEV, "fsopen: No such device: 'absent'"),
        (lambda: libc.fsconfig(-1, 1, "key", "x", 0), errno.EINVAL, "fsconfig: Invalid argument: 'key'"),
        (lambda: libc.fsmount(-1, 0, 0), errno.EBADF, "fsmount: Bad file descriptor: 'fd -1'"),
        (lambda: libc.fspick(-100, "/absent", 0), errno.ENOENT, "fspick: No such file or directory: '/absent'"),
        (
            lambda: libc.openat2(-100, "/absent", bytes(24)),
            errno.ENOENT,
            "openat2: No such file or directory: '/absent'",
        ),
        (
            lambda: libc.mount_setattr(-1, "", 0x1000, b"\1" + bytes(31)),
            errno.EBADF,
            "mount_setattr: Bad file descriptor: 'fd -1'",
        ),
        (lambda: libc.fallocate(-1, 0, 0, 1), errno.EBADF, "fallocate: Bad file descriptor: 'fd -1'"),
    ],
)
@needs("root")
def test_a_failed_call_names_itself_and_its_object(call: object, number: int, words: str) -> None:
    with pytest.raises(OSError) as caught:
        call()  # type: ignore[operator]  # one of the above
    assert caught.value.errno == number
    assert str(caught.value) == f"[Errno {number}] {words}"


def test_a_path_is_not_cut_at_a_nul() -> None:
    for call in (
        lambda: libc.umount2("/etc\0/absent", 0),
        lambda: libc.mount("/etc\0", "/absent", "", 0),
        lambda: libc.mount("/etc", "/absent", "", 0, "a\0b"),
        lambda: libc.inotify_add_watch(-1, "/etc\0", 1),
    ):
        with pytest.raises(ValueError, match="NUL"):
            call()


def test_an_error_does_not_repeat_the_mount_options() -> None:
    with pytest.raises(OSError) as caught:
        libc.mount("//server/share", "/absent", "cifs", 0, "password=secret")
    assert "secret" not in str(caught.value)


def test_long_arguments_arrive_whole() -> None:
    before = libc.prctl(PR_GET_TIMERSLACK, 0)
    libc.prctl(PR_SET_TIMERSLACK, 123456789)
    assert libc.prctl(PR_GET_TIMERSLACK, 0) == 123456789
    libc.prctl(PR_SET_TIMERSLACK, before)


def test_each_thread_sees_its_own_errno() -> None:
    numbers: list[int | None] = []

    def fail(path: str) -> None:
        for _ in range(200):
            try:
                libc.umount2(path, 0)
            except OSError as error:
                numbers.append(error.errno)

    threads = [threading.Thread(target=fail, args=(path,)) for path in ("/absent", "/etc/passwd/x")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(numbers), key=str) == sorted({errno.ENOENT, errno.ENOTDIR}, key=str)
    assert numbers.count(errno.ENOENT) == numbers.count(errno.ENOTDIR) == 200


def test_nothing_foreign_is_loaded_before_the_first_call_and_never_all_of_ctypes() -> None:
    script = (
        "import sys\n"
        "from nodeplug.kernel import libc, netns, mount, inotify, sysctl, netlink\n"
        "assert not {'_ctypes', 'ctypes'} & set(sys.modules)\n"
        "libc.prctl(30, 0)\n"
        "assert 'ctypes' not in sys.modules\n"
    )
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {checkout!r})\n{script}"], check=True
    )


def test_a_library_that_is_held_is_there_later_and_one_that_is_not_there_is_said() -> None:
    assert libc.hold("libc.so.6")
    assert not libc.hold("libno-such-thing.so.1")
