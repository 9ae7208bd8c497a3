"""FlexVolume drivers in a directory that a kubelet watches: no moment in which it finds less than a working driver."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, NotFound, Refused
from nodeplug.harness.kubelet.flexvolume.call import Caller
from nodeplug.harness.kubelet.flexvolume.prober import Prober
from nodeplug.ops import kubelet, shim
from nodeplug.ops.cli import door
from nodeplug.ops.flexplaces import Drivers
from nodeplug.ops.place import Door
from tests.child import run, until
from tests.flexvolume.drivers import SHELL
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("sandbox", "program:cc")
FLEX = door("flexvolume")
NAMES = sorted(FLEX.names)


class Place:
    """A plugin directory, a store, and a kubelet that watches."""

    def __init__(self, ledger: Ledger) -> None:
        top = ledger.directory()
        self.exec, self.store = top / "exec", top / "store"
        self.drivers = Drivers(self.exec, store=self.store)
        self.ledger = ledger
        self.top = top
        self.kubelet = self.start()

    def start(self) -> Prober:
        """A kubelet that has looked at what is there."""
        prober = Prober(self.exec, caller=Caller(), root=self.top / "kubelet")
        self.ledger.adopt("prober", prober.close)
        prober.refresh()
        return prober

    def errors(self) -> list[str]:
        return [probed.error for probed in self.kubelet.probed if probed.error]

    def loaded(self) -> list[str]:
        self.kubelet.refresh()
        return sorted(self.kubelet.plugins)


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def what(changes: list[object]) -> dict[str, str]:
    return {change.name: change.what for change in changes}  # type: ignore[attr-defined]  # Change


def test_drivers_are_loaded_by_a_kubelet_that_runs_without_one_failed_init(place: Place) -> None:
    assert what(place.drivers.install(FLEX)) == dict.fromkeys(NAMES, "installed")
    assert place.loaded() == [f"nodeplug.dev/{name}" for name in NAMES]
    assert place.errors() == [] and place.kubelet.queued == {}
    assert not any(plugin.capabilities.attach for plugin in place.kubelet.plugins.values())


def test_a_drivers_directory_has_the_executable_and_a_link_and_never_anything_else(place: Place) -> None:
    place.drivers.install(FLEX, kind="auto")
    plugin = place.exec / "nodeplug.dev~tmpfs"
    place.loaded()
    run([plugin / "tmpfs", "getvolumename", "{}"]).ok()
    assert sorted(entry.name for entry in plugin.iterdir()) == [".nodeplug", "tmpfs"]
    assert os.readlink(plugin / ".nodeplug") == str(place.store / ".nodeplug")
    assert sorted(entry.name for entry in place.exec.iterdir()) == [f"nodeplug.dev~{name}" for name in NAMES]
    assert place.kubelet.queued == {}  # and no call has changed anything in it


@pytest.mark.parametrize("kind", ["c", "python"])
def test_calls_and_upgrades_of_the_store_are_not_seen_by_the_kubelet_at_all(place: Place, kind: shim.Kind) -> None:
    place.drivers.install(FLEX, kind=kind)
    place.kubelet = place.start()  # which has seen all there was, hidden or not
    newer = Door(FLEX.launcher, (*FLEX.parts, "pb"), FLEX.module, FLEX.names, FLEX.socket, FLEX.absent)
    assert set(what(place.drivers.install(newer, kind=kind)).values()) == {"current"}
    assert place.kubelet.queued == {}


def test_a_new_shim_is_renamed_over_and_probed_once_more(place: Place) -> None:
    place.drivers.install(FLEX, kind="python")
    place.loaded()
    assert set(what(place.drivers.install(FLEX, kind="c")).values()) == {"updated"}
    assert [probed.error for probed in place.kubelet.refresh()] == [""] * len(NAMES)
    assert place.kubelet.queued == {} and place.errors() == []


def test_same_install_again_changes_nothing(place: Place) -> None:
    place.drivers.install(FLEX)
    place.loaded()
    assert set(what(place.drivers.install(FLEX)).values()) == {"current"}
    assert place.kubelet.queued == {}


def test_only_those_named_are_installed_and_the_others_are_upgraded_with_them(place: Place) -> None:
    assert what(place.drivers.install(FLEX, only=["tmpfs"], kind="python")) == {"tmpfs": "installed"}
    assert what(place.drivers.install(FLEX, only=["secret"], kind="c")) == {"secret": "installed", "tmpfs": "updated"}
    assert place.loaded() == ["nodeplug.dev/secret", "nodeplug.dev/tmpfs"]
    with pytest.raises(ConfigInvalid, match="no such plugin: nfs"):
        place.drivers.install(FLEX, only=["nfs"])


def test_uninstall_makes_the_kubelet_forget_them_and_leaves_nothing(place: Place) -> None:
    place.drivers.install(FLEX)
    place.loaded()
    assert what(place.drivers.uninstall()) == dict.fromkeys(NAMES, "removed")
    assert place.loaded() == [] and place.kubelet.queued == {} and place.errors() == []
    assert list(place.exec.iterdir()) == [] and not place.store.exists()
    with pytest.raises(NotFound, match="nothing of nodeplug is installed"):
        place.drivers.uninstall()


def test_uninstall_is_refused_while_volumes_are_published_and_lists_them(place: Place) -> None:
    place.drivers.install(FLEX, only=["tmpfs"])
    target = place.top / "kubelet/pods/a-pod/volumes/nodeplug.dev~tmpfs/data"
    target.mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", target]).ok()
    with pytest.raises(Refused, match="1 volumes of these drivers are published: a-pod/tmpfs/data"):
        place.drivers.uninstall()
    assert place.loaded() == ["nodeplug.dev/tmpfs"]
    run(["umount", target]).ok()
    place.drivers.uninstall()


def test_a_foreign_driver_is_refused_before_anything_changes_and_kept_with_replace(place: Place) -> None:
    theirs = place.exec / "nodeplug.dev~tmpfs"
    theirs.mkdir()
    (theirs / "tmpfs").write_text(SHELL)
    (theirs / "tmpfs").chmod(0o751)
    with pytest.raises(Refused, match="are not nodeplug's: tmpfs"):
        place.drivers.install(FLEX)
    assert [entry.name for entry in place.exec.iterdir()] == ["nodeplug.dev~tmpfs"]
    assert what(place.drivers.install(FLEX, only=["tmpfs"], replace=True)) == {"tmpfs": "replaced"}
    assert what(place.drivers.install(FLEX, only=["tmpfs"])) == {"tmpfs": "current"}
    assert what(place.drivers.uninstall()) == {"tmpfs": "restored"}
    assert (theirs / "tmpfs").read_text() == SHELL and stat.S_IMODE((theirs / "tmpfs").stat().st_mode) == 0o751
    assert [entry.name for entry in theirs.iterdir()] == ["tmpfs"]
    (theirs / "tmpfs").unlink()
    theirs.rmdir()
    theirs.symlink_to("/nowhere")
    with pytest.raises(Refused, match="not nodeplug's: tmpfs"):
        place.drivers.install(FLEX, replace=True)


def test_an_executable_that_others_put_over_ours_stays_theirs(place: Place) -> None:
    place.drivers.install(FLEX, only=["tmpfs"])
    executable = place.exec / "nodeplug.dev~tmpfs" / "tmpfs"
    executable.unlink()
    executable.write_text(SHELL)
    with pytest.raises(Refused, match="tmpfs"):
        place.drivers.install(FLEX)
    assert what(place.drivers.uninstall()) == {"tmpfs": "left"}
    assert executable.read_text() == SHELL


def test_two_directories_share_a_store_until_the_last_is_given_up(place: Place, ledger: Ledger) -> None:
    other = Drivers(ledger.directory() / "exec", store=place.store)
    place.drivers.install(FLEX, only=["tmpfs"])
    other.install(FLEX, only=["tmpfs"])
    place.drivers.uninstall()
    assert run([other.path / "nodeplug.dev~tmpfs/tmpfs", "init"]).ok().json()["status"] == "Success"
    other.uninstall()
    assert not place.store.exists()


def test_another_file_system_gets_a_copy(ledger: Ledger) -> None:
    place = Place(ledger)
    run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", place.exec]).ok()
    place.kubelet = place.start()
    place.drivers.install(FLEX, only=["tmpfs"], kind="c")
    assert place.loaded() == ["nodeplug.dev/tmpfs"] and place.errors() == []
    place.drivers.uninstall()


def test_a_directory_where_nothing_could_run_is_refused(ledger: Ledger) -> None:
    place = Place(ledger)
    run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755,noexec", "tmpfs", place.exec]).ok()
    with pytest.raises(Refused, match="mounted noexec"):
        place.drivers.install(FLEX)
    run(["mount", "-o", "remount,exec,mode=777", place.exec]).ok()
    place.exec.chmod(0o777)
    with pytest.raises(Refused, match="may be written by everyone"):
        place.drivers.install(FLEX)


def test_two_installs_at_once_both_succeed(place: Place) -> None:
    failures: list[BaseException] = []

    def install() -> None:
        try:
            Drivers(place.exec, store=place.store).install(FLEX)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=install) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(place.loaded()) == len(NAMES) and place.errors() == []


CALLS = ("rename", "symlink", "link", "mkdir", "unlink", "rmdir")


def killed(place: Place, operation: str, call: str, number: int) -> bool:
    """Install or uninstall, killed at the `number`th `call` below the plugin directory; whether it came to that."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(CHECKOUT)!r})
from pathlib import Path
from nodeplug.ops.cli import door
from nodeplug.ops.flexplaces import Drivers
left = {number}
def dying(call):
    def wrapped(*arguments, **more):
        global left
        if any(str(argument).startswith({str(place.exec)!r}) for argument in arguments[:2]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return wrapped
os.{call} = dying(os.{call})
drivers = Drivers(Path({str(place.exec)!r}), store=Path({str(place.store)!r}))
drivers.install(door("flexvolume"), only=["tmpfs"]) if {operation == "install"} else drivers.uninstall()
"""
    done = run([sys.executable, "-c", program])
    assert done.code in (0, -signal.SIGKILL), done.stderr
    return done.code != 0


def steps() -> Iterator[tuple[str, str, int]]:
    for call, most in (("mkdir", 1), ("symlink", 1), ("link", 1), ("rename", 2)):
        yield from (("install", call, number) for number in range(1, most + 1))
    for call, most in (("unlink", 4), ("rmdir", 1)):
        yield from (("uninstall", call, number) for number in range(1, most + 1))


@pytest.mark.parametrize(("operation", "call", "number"), list(steps()))
@pytest.mark.parametrize("restarted", [False, True])
def test_killed_at_any_step_the_next_install_finishes_and_no_kubelet_probes_in_vain(
    ledger: Ledger, operation: str, call: str, number: int, restarted: bool
) -> None:
    place = Place(ledger)
    if operation == "uninstall":
        place.drivers.install(FLEX, only=["tmpfs"])
        place.loaded()
    assert killed(place, operation, call, number)
    if restarted:  # it has seen the leftovers, and watches them
        place.kubelet = place.start()
    place.kubelet.refresh()
    place.drivers.install(FLEX, only=["tmpfs"])
    assert place.loaded() == ["nodeplug.dev/tmpfs"]
    assert place.kubelet.queued == {}
    place.drivers.uninstall()
    assert place.loaded() == [] and place.kubelet.queued == {}
    assert list(place.exec.iterdir()) == []
    # A kubelet that starts between the two halves of an uninstall finds a directory without its executable, once.
    assert len(place.errors()) <= 1


def test_a_killed_install_is_undone_by_uninstall(place: Place) -> None:
    assert killed(place, "install", "rename", 2)
    assert what(place.drivers.uninstall()) == {"tmpfs": "removed"}
    assert list(place.exec.iterdir()) == []
    assert place.loaded() == [] and place.kubelet.queued == {} and place.errors() == []


# A host without Python, and a controller manager


def test_without_worker_and_python_a_driver_is_loaded_and_fails_only_what_it_cannot_do(place: Place) -> None:
    """One that was not loaded would not be there when the worker is, and pods could not end."""
    place.drivers.install(FLEX, kind="c", only=["tmpfs", "bind"])
    (place.store / ".nodeplug" / "exec").unlink()
    with_python = Place(place.ledger)
    with_python.drivers.install(FLEX, kind="c", only=["tmpfs", "bind"])
    place.kubelet.refresh()
    with_python.kubelet.refresh()
    for name in ("nodeplug.dev/bind", "nodeplug.dev/tmpfs"):
        found, wanted = (each.kubelet.plugins[name].capabilities for each in (place, with_python))
        assert found == wanted
    tmpfs = place.exec / "nodeplug.dev~tmpfs/tmpfs"
    assert run([tmpfs, "getvolumename", "{}"]).ok().json() == {"status": "Not supported"}
    done = run([tmpfs, "mount", "/nowhere", "{}"]).ok()
    assert done.json()["status"] == "Failure" and "worker cannot be reached" in done.json()["message"]
    assert place.errors() == []
    place.drivers.uninstall()
    with_python.drivers.uninstall()


def test_a_controller_manager_that_has_the_directory_alone_does_not_load_them_and_is_quiet(place: Place) -> None:
    place.drivers.install(FLEX, kind="c")
    away = place.store.rename(place.top / "elsewhere")
    manager = Prober(place.exec, caller=Caller(env={}))
    place.ledger.adopt("prober", manager.close)
    manager.refresh()
    assert manager.plugins == {} and manager.refresh() == []  # a failure at the start is not tried again
    assert [line for line in manager.caller.journal.lines if "driver call failed" in line] == []
    away.rename(place.store)
    place.drivers.uninstall()


# Finding the directory


def process(proc: Path, pid: int, *argv: str, files: dict[str, str] | None = None) -> None:
    """A process as /proc shows it, with files below its root."""
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in argv))
    for path, text in (files or {}).items():
        file = proc / str(pid) / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


CONFIG = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nnested:\n  volumePluginDir: /no\n"


@pytest.mark.parametrize(
    ("argv", "files", "path", "by"),
    [
        (["kubelet"], {}, kubelet.DEFAULT, "the default, which the kubelet that runs as process 7 does not change"),
        (["/usr/bin/kubelet", "--volume-plugin-dir=/a"], {}, "/a", "--volume-plugin-dir of the kubelet"),
        (["kubelet", "--v=2", "-volume-plugin-dir", "/a"], {}, "/a", "process 7"),
        (
            ["kubelet", "--config=/etc/k.yaml"],
            {"etc/k.yaml": CONFIG + 'volumePluginDir: "/b"  # here\n'},
            "/b",
            "volumePluginDir in /etc/k.yaml",
        ),
        (["kubelet", "--config=/k"], {"k": CONFIG + "volumePluginDir: /with space\n"}, "/with space", "in /k"),
        (["kubelet", "--config=/k"], {"k": '{"volumePluginDir": "/json"}'}, "/json", "in /k"),
        (["kubelet", "--config=/k"], {"k": CONFIG}, kubelet.DEFAULT, "the default"),
        (["kubelet", "--config=/k"], {}, kubelet.DEFAULT, "the default"),
        (
            ["kubelet", "--config=/k", "--volume-plugin-dir=/flag"],
            {"k": "volumePluginDir: /file\n"},
            "/flag",
            "--volume-plugin-dir",
        ),
        (
            ["kubelet", "--config=/k", "--config-dir", "/d"],
            {
                "k": "volumePluginDir: /file\n",
                "d/10.conf": "volumePluginDir: /10\n",
                "d/20.conf": "volumePluginDir: '/20'\n",
            },
            "/20",
            "in /d/20.conf",
        ),
        (["/usr/local/bin/k3s server", "--kubelet-arg=volume-plugin-dir=/k3s"], {}, "/k3s", "process 7"),
        (["rke2", "agent", "--kubelet-arg", "volume-plugin-dir=/rke2"], {}, "/rke2", "process 7"),
        (["hyperkube", "kubelet", "--volume-plugin-dir", "/h"], {}, "/h", "process 7"),
    ],
)
def test_the_kubelets_directory_is_found_by_what_it_was_told(
    directory: Path, argv: list[str], files: dict[str, str], path: object, by: str
) -> None:
    process(directory, 3, "sshd", "--volume-plugin-dir=/not/this")
    process(directory, 7, *argv, files=files)
    (directory / "self").mkdir()
    found = kubelet.plugin_directory(directory)
    assert (str(found.path), by in found.by) == (str(path), True), found


def test_without_a_kubelet_it_is_the_default(directory: Path) -> None:
    assert kubelet.plugin_directory(directory) == kubelet.Found(
        kubelet.DEFAULT, "the kubelet's default, for none runs here"
    )


def test_the_command_finds_the_directory_by_a_kubelet_that_runs(place: Place, ledger: Ledger) -> None:
    program = ledger.directory() / "kubelet"
    program.write_text("import time\ntime.sleep(60)\n")
    start = (
        f"import os; os.execv({sys.executable!r}, ['kubelet', {str(program)!r}, '--volume-plugin-dir={place.exec}'])"
    )
    running = ledger.start([sys.executable, "-c", start])
    until(lambda: Path(f"/proc/{running.pid}/cmdline").read_bytes().startswith(b"kubelet\0"), "it runs")
    command = [CHECKOUT / "bin/nodeplug"]
    done = run([*command, "install", "flexvolume", "--store", place.store, "--only", "tmpfs", "--json"]).ok().json()
    assert done["directory"] == str(place.exec) and done["plugins"] == {"tmpfs": "installed"}
    assert done["found"] == f"--volume-plugin-dir of the kubelet that runs as process {running.pid}"
    said = run([*command, "uninstall", "flexvolume", "--store", place.store]).ok().text
    assert "removed" in said and f"{place.exec} (--volume-plugin-dir of the kubelet" in said
