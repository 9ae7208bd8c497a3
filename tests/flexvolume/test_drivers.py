"""nodeplug's drivers as the kubelet mounts them: what it is told of each, and what never happens to a host's files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from nodeplug.harness.kubelet.flexvolume.answer import Failed
from nodeplug.harness.kubelet.flexvolume.call import BARE_ENV, Caller
from nodeplug.harness.kubelet.flexvolume.plugin import OLD_GROUP_KEY, Habits, Volume
from nodeplug.kernel import mount
from tests.child import run
from tests.flexvolume.installed import Node, volume
from tests.flexvolume.node import POD
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:cc")
GROUP = dataclasses.replace(POD, fs_group=4711)


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    return Node(module_ledger)


@pytest.fixture(scope="module")
def host(module_ledger: Ledger) -> Path:
    """A directory of the host with files of several owners."""
    top = module_ledger.directory() / "host"
    (top / "below").mkdir(parents=True)
    for name, owner, mode in (("root", 0, 0o600), ("below/other", 1000, 0o644), ("below/all", 7, 0o777)):
        (top / name).write_text(name)
        os.chown(top / name, owner, owner)
        (top / name).chmod(mode)
    (top / "link").symlink_to("below/other")
    return top


def inodes(top: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        status = path.lstat()
        found[str(path.relative_to(top))] = (
            status.st_ino, status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns, status.st_ctime_ns,
        )  # fmt: skip
    return found


def test_none_attaches_and_those_that_show_the_hosts_files_or_set_owners_keep_the_kubelet_off(node: Node) -> None:
    node.kubelet.refresh()
    loaded = {name.rpartition("/")[2]: plugin.capabilities for name, plugin in node.kubelet.plugins.items()}
    assert not any(found.attach for found in loaded.values())
    assert all(found.supportsMetrics for found in loaded.values())
    for name in ("bind", "overlay", "secret", "identity"):
        assert (loaded[name].fsGroup, loaded[name].selinuxRelabel) == (False, False), name
    assert node.log == []


def test_fs_group_on_a_bind_volume_leaves_every_inode_of_the_host_as_it_was(
    node: Node, ledger: Ledger, host: Path
) -> None:
    node.allow(ledger, "bind", roots=str(host))
    before = inodes(host)
    target = node.mount(volume("bind", path=str(host)), GROUP)
    assert (target / "below/other").read_text() == "below/other"
    node.unmount(volume("bind"), GROUP)
    assert inodes(host) == before


@pytest.mark.parametrize("habits", [Habits(), Habits(group_key=OLD_GROUP_KEY)])
def test_fs_group_reaches_a_volume_of_its_own(node: Node, habits: Habits) -> None:
    node.start(habits=habits)
    target = node.mount(volume("tmpfs", size="1Mi"), GROUP)
    assert (target.stat().st_gid, target.stat().st_mode & 0o2070) == (4711, 0o2070)
    node.unmount(volume("tmpfs"), GROUP)
    node.start()


def test_read_only_is_honoured(node: Node, ledger: Ledger, host: Path) -> None:
    node.allow(ledger, "bind", roots=str(host))
    for wanted in (volume("tmpfs", read_only=True, size="1Mi"), volume("bind", read_only=True, path=str(host))):
        target = node.mount(wanted)
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "file").write_text("x")
        node.unmount(wanted)


@pytest.mark.needs("loop")
def test_a_loop_volume_has_its_limit_its_metrics_and_its_end(node: Node) -> None:
    wanted = volume("loop", size="16Mi")
    target = node.mount(wanted)
    found = node.plugin("loop").metrics(POD, "data")
    assert found is not None and 8 << 20 < found.f_blocks * found.f_frsize <= 16 << 20
    with pytest.raises(OSError, match="No space left"), (target / "file").open("wb") as file:
        for _ in range(17):
            file.write(bytes(1 << 20))
            file.flush()
    node.unmount(wanted)
    assert not target.exists() and not list(Path("/var/lib/nodeplug/volumes").rglob("*.img"))


def test_a_secret_volume_has_what_the_kubelet_sent(node: Node) -> None:
    wanted = Volume("keys", "nodeplug.dev/secret", secrets={"password": b"open sesame", "binary": bytes(range(256))})
    target = node.mount(wanted, GROUP)
    assert (target / "password").read_bytes() == b"open sesame"
    assert (target / "binary").read_bytes() == bytes(range(256))
    node.unmount(wanted, GROUP)


@pytest.mark.needs("overlay")
def test_an_overlay_volume_shows_the_host_and_keeps_what_is_changed_to_itself(
    node: Node, ledger: Ledger, host: Path
) -> None:
    node.allow(ledger, "overlay", roots=str(host))
    before = inodes(host)
    wanted = volume("overlay", lower=str(host), size="1Mi")
    target = node.mount(wanted, GROUP)
    (target / "root").write_text("changed")
    (target / "below/all").unlink()
    node.unmount(wanted, GROUP)
    assert inodes(host) == before


@pytest.mark.parametrize("driver", ["bind", "overlay", "identity"])
def test_without_a_rule_it_is_refused_with_the_lines_that_would_allow_it(node: Node, host: Path, driver: str) -> None:
    options = {"bind": {"path": str(host)}, "overlay": {"lower": str(host), "size": "1Mi"}, "identity": {}}[driver]
    with pytest.raises(Failed) as raised:
        node.mount(volume(driver, **options))
    message = raised.value.message
    assert "[[volumes.allow]]" in message and f'driver = "{driver}"' in message and 'namespaces = ["shop"]' in message
    assert node.mounts() == []


def test_a_repeat_is_success_and_another_volume_in_its_place_is_not(ledger: Ledger) -> None:
    node = Node(ledger)
    node.start(habits=Habits(statx=False))
    plugin, wanted = node.plugin("tmpfs"), volume("tmpfs", size="1Mi")
    target = node.mount(wanted)
    for _ in range(2):
        document = plugin.mount_document(POD, wanted)
        assert node.kubelet.caller.call(plugin.executable, "mount", str(target), document).status == "Success"
    assert len(node.mounts()) == 1
    with pytest.raises(Failed, match="published with other options"):
        other = plugin.mount_document(POD, volume("tmpfs", size="2Mi"))
        node.kubelet.caller.call(plugin.executable, "mount", str(target), other)
    node.unmount(wanted)


def test_another_mount_in_its_place_is_never_taken_for_the_volume(node: Node) -> None:
    plugin = node.plugin("tmpfs")
    target = plugin.directory(POD, "foreign")
    target.mkdir(parents=True)
    mount.tmpfs(str(target), size=1 << 16)
    with pytest.raises(Failed, match=r"is mounted at .*, and is no volume of this request"):
        document = plugin.mount_document(POD, volume("tmpfs", "foreign", size="1Mi"))
        node.kubelet.caller.call(plugin.executable, "mount", str(target), document)
    node.unmount(volume("tmpfs", "foreign"))
    assert not target.exists()


def test_after_a_reboot_live_pods_are_mounted_again_and_dead_ones_end(node: Node) -> None:
    """Mounts and /run are gone, directories are there, and the kubelet knows a volume by its path alone."""
    live, dead = volume("tmpfs", "live", size="1Mi"), volume("tmpfs", "dead", size="1Mi")
    for wanted in (live, dead):
        mount.unmount(str(node.mount(wanted)))
    run(["sh", "-c", "rm -rf /run/nodeplug/volumes"]).ok()
    node.start()
    node.unmount(dead)
    target = node.mount(live)
    assert mount.is_mounted(str(target))
    node.unmount(live)
    assert not list(node.root.glob("pods/*/volumes/*/*"))


def test_controller_managers_load_them_too_where_python_is(node: Node) -> None:
    node.start(Caller(env=BARE_ENV))
    node.kubelet.refresh()
    assert len(node.kubelet.plugins) == len(list(node.exec.iterdir())) and node.log == []
    node.start()


@pytest.mark.needs("loop")
def test_a_persistent_volume_that_grew_is_grown_on_the_node(node: Node) -> None:
    wanted = volume("tmpfs", "grown", size="1Mi")
    target = node.mount(wanted)
    plugin = node.plugin("tmpfs")
    assert plugin.expand_volume(wanted, 2 << 20, 1 << 20) == 2 << 20  # not supported, which counts as done
    plugin.expand_fs(wanted, "", target, 2 << 20, 1 << 20)
    found = plugin.metrics(POD, "grown")
    assert found is not None and found.f_blocks * found.f_frsize == 2 << 20
    node.unmount(wanted)
