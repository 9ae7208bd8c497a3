"""The caller's side, by shell drivers that do things wrong: each rule of the kubelet's is seen to bite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, NotFound
from nodeplug.harness.kubelet.flexvolume.answer import Failed, NotSupported, Panic, Unreadable
from nodeplug.harness.kubelet.flexvolume.call import BARE_ENV, Caller, ExecFailed, Hung
from nodeplug.harness.kubelet.flexvolume.mounts import KubeletFailed
from nodeplug.harness.kubelet.flexvolume.plugin import OLD_GROUP_KEY, Habits, Volume
from nodeplug.kernel import mount
from tests.child import run
from tests.flexvolume import drivers
from tests.flexvolume.drivers import SHELL, shell
from tests.flexvolume.node import POD, Node, volume
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox")
SUCCESS = """echo '{"status": "Success"}'"""
SECRET = {"password": b"open sesame"}
ENCODED = "b3BlbiBzZXNhbWU="


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


def test_a_driver_in_shell_mounts_and_unmounts(node: Node) -> None:
    plugin = node.driver(SHELL)
    target = plugin.set_up(POD, volume())
    assert target == node.root / f"pods/{POD.uid}/volumes/example.org~mine/data"
    assert mount.is_mounted(str(target))
    assert plugin.set_up(POD, volume()) == target
    assert node.caller.journal.verbs() == ["init", "mount"]  # what is mounted is not mounted again
    plugin.tear_down(POD, "data")
    plugin.tear_down(POD, "data")
    assert node.caller.journal.verbs() == ["init", "mount", "unmount"]  # what does not exist is not unmounted
    assert list(node.left()) == []


def test_stderr_counts_as_output(node: Node) -> None:
    with pytest.raises(Unreadable, match="invalid character 'w'"):
        node.driver(shell(mount=f"echo warning >&2; {SUCCESS}; exit 0")).set_up(POD, volume())
    assert "warning" in node.log[-1]  # all of it is logged


@pytest.mark.parametrize(
    ("text", "error", "leaks"),
    [
        (f"{SUCCESS}; exit 0", None, False),
        ("""echo '{"status": "Failure", "message": "full"}'; exit 0""", Failed, False),
        (f"{SUCCESS}; exit 1", ExecFailed, False),
        ("""echo '{"status": "Failure"}'; exit 1""", Failed, True),
        ("echo oops; exit 1", Unreadable, True),
        ("exit 0", Unreadable, False),
        ("kill -9 $$", Unreadable, True),
    ],
)
def test_exit_code_and_status_make_the_outcome_and_what_is_logged(
    node: Node, text: str, error: type[Exception] | None, leaks: bool
) -> None:
    plugin = node.driver(shell(mount=text))
    if error is None:
        plugin.set_up(POD, volume(secrets=SECRET))
    else:
        with pytest.raises(error):
            plugin.set_up(POD, volume(secrets=SECRET))
    assert bool(node.caller.journal.leaks([ENCODED])) == leaks


def test_what_is_not_supported_is_remembered_until_the_next_probe(node: Node) -> None:
    plugin = node.driver(SHELL)
    for _ in range(3):
        assert plugin.volume_name(volume()) == "data"
    assert node.caller.journal.verbs() == ["init", "getvolumename"]
    plugin.executable.chmod(0o755)
    node.prober.find("example.org/mine").volume_name(volume())
    assert node.caller.journal.verbs() == ["init", "getvolumename", "init", "getvolumename"]


def test_a_volume_name_is_thrown_away_and_complained_of_each_time(node: Node) -> None:
    named = """echo '{"status": "Success", "volumeName": "other"}'; exit 0"""
    plugin = node.driver(shell(getvolumename=named))
    assert [plugin.volume_name(volume()) for _ in range(2)] == ["data", "data"]
    assert node.caller.journal.verbs() == ["init", "getvolumename", "getvolumename"]
    assert len(node.log) == 2


def test_a_mount_that_is_not_supported_binds_the_nodes_mount_without_read_only(node: Node, ledger: Ledger) -> None:
    plugin = node.driver(shell(mount="""echo '{"status": "Not supported"}'; exit 0"""))
    shared = plugin.device_directory("data")
    assert shared == node.root / "plugins/kubernetes.io/flexvolume/example.org/mine/mounts/data"
    shared.mkdir(parents=True)
    (shared / "file").write_text("x")
    target = plugin.set_up(POD, volume(read_only=True))
    (target / "file").write_text("y")
    plugin.tear_down(POD, "data")
    assert (shared / "file").read_text() == "y"


def test_a_failed_mount_loses_its_directory(node: Node) -> None:
    with pytest.raises(Failed):
        node.driver(shell(mount="""echo '{"status": "Failure"}'; exit 0""")).set_up(POD, volume())
    assert list(node.left()) == []


def test_a_half_made_mount_passes_for_success_on_the_next_attempt(node: Node) -> None:
    """Why a driver has to take everything back."""
    plugin = node.driver(shell(mount="""mount -t tmpfs half "$2"; echo '{"status": "Failure"}'; exit 0"""))
    with pytest.raises(Failed):
        plugin.set_up(POD, volume())
    assert mount.is_mounted(str(plugin.set_up(POD, volume())))
    assert node.caller.journal.verbs() == ["init", "mount"]
    plugin.tear_down(POD, "data")


def test_files_left_behind_keep_a_pod_terminating(node: Node) -> None:
    plugin = node.driver(shell(mount=f'echo x > "$2/file"; {SUCCESS}; exit 0', unmount=f"{SUCCESS}; exit 0"))
    target = plugin.set_up(POD, volume())
    with pytest.raises(KubeletFailed, match="directory not empty"):
        plugin.tear_down(POD, "data")
    (target / "file").unlink()
    plugin.tear_down(POD, "data")


@pytest.mark.parametrize(("statx", "again"), [(False, True), (True, False)])
def test_older_kubelets_take_a_bind_mount_for_none(ledger: Ledger, statx: bool, again: bool) -> None:
    node = Node(ledger, habits=Habits(statx=statx))
    source = ledger.directory()
    plugin = node.driver(shell(mount=f'mount --bind {source} "$2"; {SUCCESS}; exit 0'))
    plugin.set_up(POD, volume())
    plugin.set_up(POD, volume())
    assert (node.caller.journal.verbs().count("mount") == 2) == again
    while node.mounts():
        mount.unmount(node.mounts()[-1])


def test_the_kubelet_gives_a_volume_to_the_pods_group_unless_told_not_to(node: Node, ledger: Ledger) -> None:
    import dataclasses

    pod = dataclasses.replace(POD, fs_group=4711)
    target = node.driver(SHELL).set_up(pod, volume())
    assert (target.stat().st_gid, target.stat().st_mode & 0o2070) == (4711, 0o2070)
    init = """echo '{"status": "Success", "capabilities": {"attach": false, "fsGroup": false}}'; exit 0"""
    other = node.driver(shell(init=init), "other")
    assert other.set_up(pod, volume("example.org/other")).stat().st_gid == 0
    other.tear_down(pod, "data")
    node.prober.find("example.org/mine").tear_down(pod, "data")


@pytest.mark.parametrize("key", [OLD_GROUP_KEY, "kubernetes.io/mounterArgs.FsGroup"])
def test_what_is_sent_with_a_mount(ledger: Ledger, key: str) -> None:
    import dataclasses
    import json

    node = Node(ledger, habits=Habits(group_key=key))
    record = ledger.directory() / "argv"
    plugin = node.driver(shell(mount=f'printf "%s\\n" "$@" > {record}; {SUCCESS}; exit 0'))
    pod = dataclasses.replace(POD, fs_group=7)
    target = plugin.set_up(pod, volume(secrets=SECRET, fs_type="xfs", read_only=True))
    verb, path, document = record.read_text().splitlines()
    assert (verb, path) == ("mount", str(target))
    assert json.loads(document) == {
        "kubernetes.io/fsType": "xfs",
        "kubernetes.io/readwrite": "ro",
        "kubernetes.io/pvOrVolumeName": "data",
        "kubernetes.io/pod.name": "web",
        "kubernetes.io/pod.namespace": "shop",
        "kubernetes.io/pod.uid": POD.uid,
        "kubernetes.io/serviceAccount.name": "till",
        "kubernetes.io/secret/password": ENCODED,
        key: "7",
        "size": "1Mi",
    }


def test_a_volumes_own_options_win_over_whatever_else_is_sent(node: Node) -> None:
    """Which is why option names of the kubelet's must never get past the API server."""
    import json

    document = json.loads(node.driver(SHELL).document(volume(options={"key": "mine"}), {"key": "the kubelet's"}))
    assert document["key"] == "mine"


def test_options_may_not_take_the_place_of_the_kubelets_keys() -> None:
    with pytest.raises(ConfigInvalid, match="reserved keys"):
        Volume("data", "example.org/mine", {"kubernetes.io/pod.namespace": "kube-system"})


def test_attached_volumes_go_through_the_whole_chain_with_the_orders_of_the_code(ledger: Ledger) -> None:
    node = Node(ledger)
    record = ledger.directory() / "argv"
    say = f'echo "$@" >> {record}'
    plugin = node.driver(
        shell(
            init="""echo '{"status": "Success"}'; exit 0""",
            attach=f"""{say}; echo '{{"status": "Success", "device": "/dev/sdx"}}'; exit 0""",
            waitforattach=f"""{say}; echo '{{"status": "Success", "device": "/dev/sdy"}}'; exit 0""",
            isattached=f"""{say}; echo '{{"status": "Success", "attached": false}}'; exit 0""",
            mountdevice=f'{say}; mount -t tmpfs device "$2"; {SUCCESS}; exit 0',
            unmountdevice=f'{say}; umount "$2"; {SUCCESS}; exit 0',
            detach=f"{say}; {SUCCESS}; exit 0",
            expandvolume=f"{say}; {SUCCESS}; exit 0",
            expandfs=f"{say}; {SUCCESS}; exit 0",
        )
    )
    wanted = volume(options={})
    device = plugin.wait_for_attach(wanted, plugin.attach(wanted, "node1"))
    assert device == "/dev/sdy"
    assert not plugin.is_attached(wanted, "node1")
    shared = plugin.mount_device(wanted, device)
    plugin.mount_device(wanted, device)  # mounted already: not asked for
    assert plugin.expand_volume(wanted, 2, 1) == 2
    plugin.expand_fs(wanted, device, shared, 2, 1)
    plugin.unmount_device("data")
    plugin.unmount_device("data")
    plugin.detach(wanted, "node1")
    document = '{"kubernetes.io/fsType":"","kubernetes.io/pvOrVolumeName":"data","kubernetes.io/readwrite":"rw"}'
    assert record.read_text().splitlines() == [
        f"attach {document} node1",
        f"waitforattach /dev/sdx {document}",
        f"isattached {document} node1",
        f"mountdevice {shared} /dev/sdy {document}",
        f"expandvolume {document} {shared} 2 1",
        f"expandfs {document} /dev/sdy {shared} 2 1",
        f"unmountdevice {shared}",
        "detach data node1",
    ]


def test_without_any_verb_of_attaching_the_defaults_stand(node: Node) -> None:
    plugin = node.driver(SHELL)
    wanted = volume()
    assert plugin.attach(wanted, "node1") == ""
    assert plugin.wait_for_attach(wanted, "/dev/given") == "/dev/given"
    assert plugin.is_attached(wanted, "node1")
    plugin.detach(wanted, "node1")
    assert not mount.is_mounted(str(plugin.mount_device(wanted, "")))
    assert plugin.expand_volume(wanted, 2, 1) == 2
    with pytest.raises(NotSupported):
        plugin.expand_fs(wanted, "", node.root, 2, 1)


def test_only_waiting_for_an_attachment_has_a_timeout(node: Node) -> None:
    plugin = node.driver(shell(waitforattach="exec sleep 60"))
    with pytest.raises(ExecFailed, match="timeout"):
        plugin.wait_for_attach(volume(), "/dev/sdx", timeout=0.2)


def test_a_driver_that_never_ends_is_found_out(ledger: Ledger) -> None:
    node = Node(ledger, caller=Caller(patience=0.5))
    with pytest.raises(Hung, match=r"mine mount had not ended after 0\.5 s"):
        node.driver(shell(mount="sleep 60")).set_up(POD, volume())


def test_a_child_that_keeps_the_output_open_is_found_out(node: Node) -> None:
    with pytest.raises(Hung, match="keeps its output open"):
        node.driver(shell(mount=f"sleep 60 & {SUCCESS}; exit 0")).set_up(POD, volume())


def test_null_capabilities_end_the_kubelet(node: Node) -> None:
    with pytest.raises(Panic, match="nil pointer"):
        node.driver(shell(init="""echo '{"status": "Success", "capabilities": null}'; exit 0"""))


def test_a_controller_managers_environment_is_bare(ledger: Ledger) -> None:
    node = Node(ledger, caller=Caller(env=BARE_ENV))
    record = ledger.directory() / "env"
    program = f"#!/usr/bin/python3 -IS\nimport os\nopen({str(record)!r}, 'w').write(' '.join(os.environ))\n"
    drivers.place(node.plugins, "bare", program + 'print(\'{"status": "Success"}\')\n')
    node.prober.find("example.org/bare")
    assert set(record.read_text().split()) <= {"LC_CTYPE"}  # which Python makes for itself


# The prober


def names(node: Node) -> list[tuple[str, str]]:
    return [(probed.name, probed.operation) for probed in node.prober.refresh()]


def test_directories_are_drivers_and_nothing_else_is(node: Node) -> None:
    drivers.place(node.plugins, "mine", SHELL)
    (node.plugins / ".hidden").mkdir()
    (node.plugins / "file").write_text("")
    (node.plugins / "link").symlink_to(node.plugins / "example.org~mine")
    bare = node.plugins / "bare"
    bare.mkdir()
    (bare / "bare").write_text(SHELL)
    (bare / "bare").chmod(0o755)
    node.prober.refresh()
    assert set(node.prober.plugins) == {"example.org/mine", "bare"}


def test_a_driver_that_comes_is_found_without_a_restart_and_one_that_goes_forgotten(node: Node) -> None:
    with pytest.raises(NotFound, match="no volume plugin matched"):
        node.prober.find("example.org/mine")
    plugin = node.driver(SHELL)
    plugin.executable.unlink()
    with pytest.raises(NotFound):
        node.prober.find("example.org/mine")
    assert node.prober.queued == {}


def test_any_change_below_a_drivers_directory_is_another_init(node: Node) -> None:
    plugin = node.driver(SHELL)
    directory = plugin.executable.parent
    for change in (
        lambda: (directory / "driver.log").write_text("x"),
        lambda: plugin.executable.chmod(0o700),
        lambda: (directory / "__pycache__").mkdir(),
        lambda: (directory / "__pycache__" / "x.pyc").write_text(""),
    ):
        change()
        assert names(node) == [("example.org~mine", "add or update")]
    (directory / ".lock").write_text("x")
    assert names(node) == []


def test_a_driver_that_fails_its_init_is_tried_and_logged_with_every_look_up(node: Node) -> None:
    node.prober.refresh()
    (node.plugins / "example.org~late").mkdir()  # and its file comes later
    for _ in range(3):
        assert names(node) == [("example.org~late", "add or update")]
    assert len([line for line in node.log if line.startswith("Error dynamically probing")]) == 3
    drivers.place(node.directory / "elsewhere", "late", SHELL).rename(node.plugins / "example.org~late" / "late")
    assert node.prober.find("example.org/late")
    assert names(node) == []


def test_a_directory_that_is_renamed_away_is_not_forgotten_but_fails_for_ever(node: Node) -> None:
    node.driver(SHELL)
    (node.plugins / "example.org~mine").rename(node.directory / "away")
    assert names(node) == [("example.org~mine", "add or update")]
    assert names(node) == [("example.org~mine", "add or update")]
    assert "example.org/mine" in node.prober.plugins


def test_a_hidden_directory_that_is_there_at_the_start_is_watched_and_then_probed_for_ever(node: Node) -> None:
    """Why nodeplug keeps nothing but a link in a driver's directory, and nothing at all beside them."""
    hidden = node.plugins / ".private" / "versions"
    hidden.mkdir(parents=True)
    node.prober.refresh()
    (hidden / "file").write_text("")
    for _ in range(2):
        assert names(node) == [(".private", "add or update")]
    assert node.prober.probed[-1].error


def test_a_plugin_directory_that_is_removed_is_made_again_and_watched(node: Node) -> None:
    node.prober.refresh()
    os.rmdir(node.plugins)
    node.prober.refresh()
    assert node.plugins.is_dir()
    assert node.driver(SHELL)


def test_a_file_that_is_renamed_over_a_driver_is_probed_once_and_works_all_the_time(node: Node) -> None:
    plugin = node.driver(SHELL)
    fresh = plugin.executable.with_name(".mine.new")
    fresh.write_text(SHELL)
    fresh.chmod(0o755)
    assert names(node) == []
    fresh.rename(plugin.executable)
    assert names(node) == [("example.org~mine", "add or update")]


def test_a_corrupt_mount_is_unmounted_all_the_same(node: Node) -> None:
    """A dead FUSE server: every look at it fails, and the driver is called without one."""
    plugin = node.driver(shell(unmount=f'umount -l "$2"; {SUCCESS}; exit 0'))
    target = plugin.directory(POD, "data")
    target.mkdir(parents=True)
    fd = os.open("/dev/fuse", os.O_RDWR) if Path("/dev/fuse").exists() else -1
    if fd < 0:
        pytest.skip("needs file:/dev/fuse: this kernel has no FUSE")
    mounting = f"mount -i -t fuse -o fd={fd},rootmode=40000,user_id=0,group_id=0 dead {target}"
    run(["sh", "-c", mounting], pass_fds=[fd]).ok()
    os.close(fd)  # and with it the server is gone
    with pytest.raises(OSError, match="not connected"):
        os.stat(target)
    plugin.tear_down(POD, "data")
    assert list(node.left()) == []
