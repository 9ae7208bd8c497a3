"""The volume secret: files in memory, changed together, and nowhere else a trace of what is in them."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.kernel import mount
from nodeplug.volumes import state
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes import faults
from tests.volumes.places import MIB, Place, seen

pytestmark = needs("sandbox")

TOKEN = "Zk3-never-to-be-seen-Qx9"


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def test_each_key_is_a_file_laid_out_as_the_kubelet_does(place: Place) -> None:
    at = Path(place.service.publish(place.request("secret", secrets={"user": "root", "password": "x"})).target)
    assert (at / "user").read_text() == "root" and (at / "password").read_text() == "x"
    assert os.readlink(at / "user") == "..data/user"
    generation = os.readlink(at / "..data")
    assert generation.startswith("..20") and sorted(os.listdir(at / generation)) == ["password", "user"]
    found = seen(str(at))
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(found.options)
    assert found.source == "nodeplug.dev/secret"
    assert found.fstype == "ramfs" or "noswap" in found.super_options
    for change in (lambda: (at / "new").touch(), lambda: (at / "user").unlink()):
        with pytest.raises(OSError, match="Read-only"):
            change()
    place.service.unpublish(str(at))
    assert place.remains() == []


@pytest.mark.parametrize(
    ("options", "group", "expected"),
    [
        ({}, None, (0o444, 0, 0)),
        ({"mode": "0400", "uid": "7", "gid": "8"}, None, (0o400, 7, 8)),
        ({"mode": "0400"}, 2000, (0o440, 0, 2000)),
    ],
)
def test_owner_and_rights_are_those_asked_for(
    place: Place, options: dict[str, str], group: int | None, expected: tuple[int, int, int]
) -> None:
    at = place.service.publish(place.request("secret", secrets={"a": "x"}, fs_group=group, **options)).target
    found = os.stat(f"{at}/a")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == expected
    assert stat.S_IMODE(os.stat(at).st_mode) == 0o755
    place.service.unpublish(at)


def test_only_the_keys_asked_for_become_files(place: Place) -> None:
    at = place.service.publish(place.request("secret", secrets={"a": "1", "b": "2", "c": "3"}, keys="a,c")).target
    assert sorted(name for name in os.listdir(at) if not name.startswith("..")) == ["a", "c"]
    place.service.unpublish(at)


def test_a_missing_secret_and_a_missing_key_are_told_by_name(place: Place) -> None:
    for none in (None, {}):
        with pytest.raises(ConfigInvalid, match="names no secret, or one that is empty; set secretRef"):
            place.service.publish(place.request("secret", secrets=none))
    with pytest.raises(ConfigInvalid, match="has no c, d; it has a, b") as caught:
        place.service.publish(place.request("secret", secrets={"a": TOKEN, "b": TOKEN}, keys="a,c,d"))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("name", ["..", "..data", "a/b", "", ".", "x" * 256, "a\0b"])
def test_a_key_that_is_no_file_name_is_refused(place: Place, name: str) -> None:
    with pytest.raises(ConfigInvalid, match="name of a file"):
        place.service.publish(place.request("secret", secrets={name: TOKEN}))
    assert place.remains() == []


def test_the_same_again_with_another_secret_swaps_the_files_together(place: Place) -> None:
    """Readers all the while: each sees the files of one generation, and none that is missing."""
    at = Path(place.service.publish(place.request("secret", secrets={"a": "0", "b": "0"})).target)
    device = seen(str(at)).device
    stop = threading.Event()
    torn = []
    reads = 0

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            try:
                opened = os.open(at / "..data", os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # it led to a generation that went before it was reached
            try:
                pair = []
                for name in ("a", "b"):
                    fd = os.open(name, os.O_RDONLY, dir_fd=opened)
                    pair.append(os.read(fd, 10))
                    os.close(fd)
                if pair[0] != pair[1]:
                    torn.append(pair)
                reads += 1
            except FileNotFoundError:
                pass  # its generation went while it was reading: it opens `..data` again
            finally:
                os.close(opened)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 100):
        place.service.publish(place.request("secret", secrets={"a": str(number), "b": str(number)}))
    stop.set()
    reader.join()
    assert torn == [] and reads > 0
    assert (at / "a").read_text() == (at / "b").read_text() == "99"
    place.service.publish(place.request("secret", secrets={"b": "new", "c": "new"}))
    assert sorted(name for name in os.listdir(at) if not name.startswith("..")) == ["b", "c"]
    assert seen(str(at)).device == device and "ro" in seen(str(at)).options
    assert len(os.listdir(at)) == 5, "this generation and the last one, ..data and two names"
    place.service.unpublish(str(at))


def test_a_secret_of_a_mebibyte_fits_and_can_be_replaced(place: Place) -> None:
    for content in ("a", "b"):
        at = place.service.publish(place.request("secret", secrets={"large": content * MIB})).target
        assert Path(at, "large").read_text() == content * MIB
    place.service.unpublish(at)


def test_a_kernel_that_cannot_leave_a_tmpfs_unswapped_gets_a_ramfs(place: Place) -> None:
    """Before Linux 6.4 tmpfs refuses the option: EINVAL, for the last one that is given."""
    request = place.request("secret", secrets={"a": "x"})
    calls = faults.calls_of(lambda: place.service.publish(request))
    if seen(request.target).fstype == "tmpfs":
        place.service.unpublish(request.target)
        options = [number for number, name in enumerate(calls) if name == "fsconfig"]
        assert faults.failing_at(options[-2], errno.EINVAL, lambda: place.service.publish(request))
    assert seen(request.target).fstype == "ramfs" and Path(request.target, "a").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        Path(request.target, "new").touch()
    place.service.unpublish(request.target)


def test_what_it_held_is_overwritten_when_it_goes(place: Place, ledger: Ledger) -> None:
    at = place.service.publish(place.request("secret", secrets={"a": TOKEN})).target
    fd = os.open(f"{at}/a", os.O_RDONLY)
    ledger.adopt("file", lambda: os.close(fd))
    place.service.unpublish(at)
    assert os.pread(fd, 100, 0) == bytes(len(TOKEN))


def everywhere() -> list[str]:
    """Every place of the node where the token is to be seen, but for this process and the files themselves."""
    token = TOKEN.encode()
    found = []
    for top in ("/run", "/var/lib/nodeplug", "/var/log/nodeplug", "/etc/nodeplug"):
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if f"{folder}/{name}" not in ("/run/.cgroup",)]
            for name in names:
                path = Path(folder, name)
                if path.is_file() and "nodeplug.dev~secret" not in folder and token in path.read_bytes():
                    found.append(str(path))
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        for name in ("cmdline", "environ", "mountinfo"):
            try:
                if token in (process / name).read_bytes():
                    found.append(f"{process / name}")
            except OSError:
                pass
    return found


@pytest.mark.parametrize("driver", ["secret", "loop", "tmpfs", "overlay"])
def test_a_secret_is_in_no_state_log_argument_variable_or_mount_option(place: Place, driver: str) -> None:
    """Also where a volume has no use for the secret that came with the request."""
    options = {"secret": {}, "loop": {"size": "8Mi"}, "tmpfs": {"size": "1Mi"}}
    lower = {"lower": str(place.directory("lower")), "size": "8Mi", "upper": "loop"}
    request = place.request(driver, secrets={"a": TOKEN}, **options.get(driver, lower))
    assert TOKEN not in repr(request)
    stop = threading.Event()
    seen_: list[str] = []

    def look() -> None:
        while not stop.is_set():
            seen_.extend(everywhere())

    looker = threading.Thread(target=look)
    looker.start()
    published = place.service.publish(request)
    stop.set()
    looker.join()
    assert TOKEN not in repr(published) and seen_ + everywhere() == []
    assert TOKEN not in repr(place.service.published()) and TOKEN not in repr(mount.mounts())
    place.service.unpublish(request.target)
    assert everywhere() == [] and place.warnings == []


def test_no_failure_of_any_call_says_what_is_secret(place: Place, directory: Path) -> None:
    request = place.request("secret", secrets={"a": TOKEN})
    told = directory / "told"

    def publish() -> None:
        try:
            place.service.publish(request)
        except Error as error:
            notes = getattr(error, "__notes__", ())
            told.write_text(
                f"{told.read_text() if told.exists() else ''}{error!r} {error} {notes} {error.__cause__!r}\n"
            )
            raise

    count = len(faults.calls_of(publish))
    place.service.unpublish(request.target)
    for number in range(count):
        faults.failing_at(number, errno.EIO, publish)
        place.service.unpublish(request.target)
    assert told.read_text().count("\n") > count // 2
    assert TOKEN not in told.read_text()
    assert state.ids() == []
