"""Installing plugins into a directory that a runtime reads while it is done."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodeplug.cni.dispatch import IPAM, PLUGINS
from nodeplug.core.errors import ConfigInvalid, Error, NotFound, PermissionRefused, Refused, TryAgain, Unavailable
from nodeplug.ops import stage
from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory
from nodeplug.ops.place import Door
from tests.child import Finished, run, until
from tests.ledger import Ledger
from tests.needs import needs

CNI = door("cni")
TWO = Door(CNI.launcher, CNI.parts, CNI.module, ("loopback", "second"))
NAME = "loopback"


def what(changes: list[object]) -> dict[str, str]:
    return {change.name: change.what for change in changes}  # type: ignore[attr-defined]  # Change


def ask(plugin: Path, **env: str) -> Finished:
    return run([plugin], env={"CNI_COMMAND": "VERSION", **env})


def contents(directory: Path) -> dict[str, object]:
    return {
        str(path.relative_to(directory)): (path.lstat().st_ino, path.lstat().st_mtime_ns, os.path.realpath(path))
        for path in directory.rglob("*")
    }


def test_every_plugin_of_the_door_is_a_file_that_answers(directory: Path) -> None:
    changes = Directory(directory / "bin").install(CNI)
    assert what(changes) == dict.fromkeys(sorted({*PLUGINS, *IPAM}), "installed")
    for change in changes:
        plugin = directory / "bin" / change.name
        assert stat.S_IMODE(plugin.stat().st_mode) == 0o755
        assert ask(plugin).ok().json()["supportedVersions"][-1] == "1.1.0"
    assert len({(directory / "bin" / change.name).stat().st_ino for change in changes}) == 1


def test_installed_plugin_needs_nothing_but_its_directory(directory: Path) -> None:
    Directory(directory).install(CNI, only=[NAME])
    program = (
        "import sys, nodeplug.cni.main; print([m.__file__ for m in sys.modules.values() if 'nodeplug' in repr(m)])"
    )
    launched = directory / NAME
    text = launched.read_text().partition("from nodeplug.cni.main import main\n")[0] + program
    launched.unlink()
    launched.write_text(text)
    launched.chmod(0o755)
    files = run([launched], env={}, cwd="/").ok().text
    assert str(stage.Path(os.path.realpath(directory / ".nodeplug/lib"))) in files
    assert "/site-packages/" not in files and str(Path(__file__).parents[2]) not in files


def test_byte_code_is_used_without_a_look_at_the_source(directory: Path) -> None:
    Directory(directory).install(CNI, only=[NAME])
    for source in (directory / ".nodeplug/lib/nodeplug/core").resolve().glob("*.py"):
        source.write_text("raise SystemExit('the source was read')")
    assert ask(directory / NAME).code == 0


def test_symlink_to_an_installed_plugin_works_under_its_own_name(directory: Path) -> None:
    Directory(directory / "real").install(CNI, only=[NAME])
    link = directory / NAME
    link.symlink_to(directory / "real" / NAME)
    assert ask(link).code == 0


def test_same_install_again_changes_nothing(directory: Path) -> None:
    Directory(directory).install(CNI)
    before = contents(directory)
    assert set(what(Directory(directory).install(CNI)).values()) == {"current"}
    assert contents(directory) == before


def test_only_those_named_are_installed_and_the_others_are_upgraded_with_them(directory: Path) -> None:
    Directory(directory).install(TWO, only=["second"])
    assert {path.name for path in directory.iterdir()} == {".nodeplug", "second"}
    assert what(Directory(directory).install(TWO, only=[NAME])) == {NAME: "installed", "second": "current"}
    with pytest.raises(ConfigInvalid, match="no such plugin: third, fourth; there are loopback, second"):
        Directory(directory).install(TWO, only=["third", NAME, "fourth"])


def test_upgrade_swaps_one_link_and_keeps_the_copy_before(directory: Path) -> None:
    place = Directory(directory)
    place.install(CNI)
    copies = []
    for parts in (("core", "kernel", "cni", "daemon"), ("core", "kernel", "cni", "pb")):
        place.install(Door(CNI.launcher, parts, CNI.module, CNI.names))
        copies.append(os.readlink(directory / ".nodeplug/lib"))
        assert ask(directory / NAME).code == 0
    assert {f"versions/{path.name}" for path in (directory / ".nodeplug/versions").iterdir()} == set(copies)


def test_plugin_that_runs_during_an_upgrade_goes_on_with_the_copy_it_began_with(directory: Path) -> None:
    place = Directory(directory)
    place.install(CNI)
    first = os.path.realpath(directory / ".nodeplug/lib")
    reader, writer = os.pipe()
    running = subprocess.Popen(
        [directory / NAME], stdin=reader, stdout=subprocess.PIPE, env={"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}
    )
    os.close(reader)
    until(lambda: first in Path(f"/proc/{running.pid}/maps").read_text() or _reads_stdin(running.pid), "it runs")
    place.install(Door(CNI.launcher, (*CNI.parts, "daemon"), CNI.module, CNI.names))
    os.write(writer, b'{"cniVersion": "1.1.0", "name": "n", "type": "loopback"}')
    os.close(writer)
    stdout, _ = running.communicate(timeout=20)
    assert (running.returncode, stdout) == (0, b"")


def _reads_stdin(pid: int) -> bool:
    return "pipe_read" in Path(f"/proc/{pid}/stack").read_text()


def test_foreign_file_of_a_plugins_name_is_refused_before_anything_changes(directory: Path) -> None:
    (directory / NAME).write_text("theirs")
    (directory / "second").symlink_to("elsewhere")
    with pytest.raises(Refused, match="files that are not nodeplug's: loopback, second; --replace"):
        Directory(directory).install(TWO)
    assert (directory / NAME).read_text() == "theirs"
    assert not (directory / ".nodeplug/lib").exists()


def test_replaced_files_are_kept_and_put_back_by_uninstall(directory: Path) -> None:
    (directory / NAME).write_text("theirs")
    (directory / NAME).chmod(0o751)
    (directory / "second").symlink_to("elsewhere")
    (directory / "other").write_text("not concerned")
    place = Directory(directory)
    assert what(place.install(TWO, replace=True)) == {NAME: "replaced", "second": "replaced"}
    assert ask(directory / NAME).code == 0
    assert what(place.install(TWO)) == {NAME: "current", "second": "current"}
    assert what(place.uninstall()) == {NAME: "restored", "second": "restored"}
    assert (directory / NAME).read_text() == "theirs"
    assert stat.S_IMODE((directory / NAME).stat().st_mode) == 0o751
    assert os.readlink(directory / "second") == "elsewhere"
    assert {path.name for path in directory.iterdir()} == {NAME, "second", "other"}


def test_directory_of_a_plugins_name_is_refused_even_with_replace(directory: Path) -> None:
    (directory / NAME).mkdir()
    with pytest.raises(Refused, match="they are directories"):
        Directory(directory).install(CNI, replace=True)


def test_file_that_others_put_over_ours_stays_theirs(directory: Path) -> None:
    place = Directory(directory)
    place.install(TWO)
    (directory / NAME).unlink()
    (directory / NAME).write_text("an upgrade of theirs")
    with pytest.raises(Refused, match="loopback"):
        place.install(TWO)
    assert what(place.uninstall()) == {"second": "removed"}
    assert {path.name for path in directory.iterdir()} == {NAME}


def test_newer_foreign_file_is_the_one_that_comes_back(directory: Path) -> None:
    place = Directory(directory)
    (directory / NAME).write_text("old")
    place.install(CNI, only=[NAME], replace=True)
    (directory / NAME).unlink()
    (directory / NAME).write_text("new")
    place.install(CNI, only=[NAME], replace=True)
    place.uninstall()
    assert (directory / NAME).read_text() == "new"


def test_uninstall_where_nothing_is_installed_says_so(directory: Path) -> None:
    with pytest.raises(NotFound, match="nothing of nodeplug is installed"):
        Directory(directory).uninstall()
    with pytest.raises(NotFound, match="there is no directory"):
        Directory(directory / "missing").uninstall()


def test_two_installs_at_once_both_succeed(directory: Path) -> None:
    failures: list[BaseException] = []

    def install() -> None:
        try:
            Directory(directory).install(CNI)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=install) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ask(directory / NAME).code == 0
    assert not list((directory / ".nodeplug").rglob("*.part"))


def test_install_that_waits_for_another_gives_up_with_its_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeplug.ops.place._PATIENCE", 0.1)
    with Directory(directory).locked(), pytest.raises(TryAgain, match="another install"):
        Directory(directory).install(CNI)


@needs("root")
@pytest.mark.parametrize(
    ("calls", "name"),
    [(calls, name) for name in ("rename", "symlink", "link", "mkdir") for calls in (1, 2, 3)],
)
def test_install_that_is_killed_at_any_step_leaves_a_working_directory_and_is_finished_by_the_next(
    directory: Path, calls: int, name: str
) -> None:
    (directory / NAME).write_text("#!/bin/sh\nexit 0\n")
    (directory / NAME).chmod(0o755)
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory
from nodeplug.ops.place import Door
left = {calls}
def dying(call):
    def wrapped(*arguments, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return wrapped
os.{name} = dying(os.{name})
cni = door("cni")
two = Door(cni.launcher, cni.parts, cni.module, ("loopback", "second"))
Directory(Path({str(directory)!r})).install(two, replace=True)
"""
    killed = run([sys.executable, "-c", program])
    assert killed.code in (0, -signal.SIGKILL), killed.stderr
    assert ask(directory / NAME).code == 0
    Directory(directory).install(TWO, replace=True)
    for plugin in (NAME, "second"):
        assert b"nodeplug" in (directory / plugin).read_bytes()
    assert ask(directory / NAME).ok().json()
    left_over = {path.name for path in (directory / ".nodeplug").iterdir()}
    assert left_over == {"exec", "kept", "lib", "manifest.json", "versions"}
    assert what(Directory(directory).uninstall()) == {NAME: "restored", "second": "removed"}
    assert (directory / NAME).read_text() == "#!/bin/sh\nexit 0\n"


@needs("sandbox")
def test_full_disk_and_read_only_file_system_are_said_and_change_nothing(ledger: Ledger) -> None:
    top = ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "size=200k,mode=755", "tmpfs", top]).ok()
    with pytest.raises(Unavailable, match=r"cannot install into .*: No space left on device.*; the disk is full"):
        Directory(top).install(CNI)
    assert not list(top.glob("loopback")) and not list(top.rglob("*.part"))
    run(["mount", "-o", "remount,ro", top]).ok()
    with pytest.raises(Unavailable, match=r"Read-only file system.*; the file system is read-only"):
        Directory(top / "new").install(CNI)


@needs("sandbox")
def test_file_system_without_exec_is_refused(ledger: Ledger) -> None:
    top = ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "tmpfs", top]).ok()
    with pytest.raises(Refused, match="mounted noexec"):
        Directory(top).install(CNI)


@needs("root")
def test_directory_that_others_may_write_is_refused(directory: Path) -> None:
    directory.chmod(0o777)
    with pytest.raises(Refused, match="may be written by everyone"):
        Directory(directory).install(CNI)
    directory.chmod(0o755)
    (directory / ".nodeplug").mkdir()
    os.chown(directory / ".nodeplug", 1000, 1000)
    for operation in (lambda: Directory(directory).install(CNI), Directory(directory).uninstall):
        with pytest.raises(PermissionRefused, match="belongs to user 1000"):
            operation()


@needs("root", "program:setpriv")
def test_directory_of_somebody_else_asks_for_its_owner(directory: Path) -> None:
    directory.chmod(0o755)
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from nodeplug.ops.main import run
sys.exit(run(["install", "cni", "--dest", {str(directory)!r}]))
"""
    done = run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", program])
    assert done.code == 77, done.stderr
    assert b"Permission denied" in done.stderr and b"usually root" in done.stderr


def test_interpreter_that_will_not_do_is_named(directory: Path) -> None:
    for path, said in [("/no/python", "No such file"), ("/bin/true", "is no Python")]:
        with pytest.raises(Error, match=said):
            Directory(directory).install(CNI, python=Path(path))
    old = directory / "old"
    old.write_text("#!/bin/sh\necho cpython-39 3 9\n")
    old.chmod(0o755)
    with pytest.raises(Unavailable, match=r"is Python 3\.9; plugins need 3\.11"):
        Directory(directory).install(CNI, python=old)
    link = directory / "python"
    link.symlink_to("/usr/bin/python3")
    Directory(directory / "bin").install(CNI, python=link)
    assert (directory / "bin" / NAME).read_bytes().startswith(f"#!{link} -IS\n".encode())
    assert ask(directory / "bin" / NAME).code == 0


def test_manifest_that_is_not_ours_is_an_error(directory: Path) -> None:
    place = Directory(directory)
    place.install(CNI)
    for text in ("{", "[]", '{"launchers": 1}'):
        (directory / ".nodeplug/manifest.json").write_text(text)
        with pytest.raises(Unavailable, match=r"manifest\.json"):
            place.install(CNI)


def test_umask_does_not_hide_the_plugins_from_others(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        Directory(directory / "bin").install(CNI)
    finally:
        os.umask(before)
    for path in [directory / "bin", *(directory / "bin").rglob("*")]:
        if not path.is_symlink() and path.name != "kept":
            wanted = 0o555 if path.is_dir() else 0o444
            assert path.stat().st_mode & wanted == wanted, path


def test_command_prints_a_table_or_json(directory: Path) -> None:
    command = [Path(__file__).parents[2] / "bin/nodeplug"]
    done = run([*command, "install", "cni", "--dest", directory / "bin", "--only", NAME, "--json"]).ok()
    assert done.json() == {"directory": str(directory / "bin"), "plugins": {NAME: "installed"}}
    assert "current" in run([*command, "install", "cni", "--dest", directory / "bin", "--only", NAME]).ok().text
    assert "removed" in run([*command, "uninstall", "cni", "--dest", directory / "bin"]).ok().text
    again = run([*command, "uninstall", "cni", "--dest", directory / "bin", "--json"])
    assert again.code == 1
    assert json.loads(again.stdout)["error"] == "NotFound"
    assert run([*command, "uninstall", "cni", "--dest", directory / "bin"]).stderr.startswith(b"error: nothing of")


def test_errors_of_the_system_keep_their_meaning() -> None:
    from nodeplug.ops.place import advice

    assert "read-only" in advice(OSError(errno.EROFS, "x"))
    assert advice(OSError(errno.EIO, "x")) == ""
