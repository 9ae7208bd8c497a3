"""Seventeen things that people complained of with FlexVolume drivers, and that cannot happen with these."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core import paths
from nodeplug.core.errors import Error, Unavailable
from nodeplug.harness.kubelet.flexvolume.answer import Failed, NotSupported
from nodeplug.harness.kubelet.flexvolume.call import Caller
from nodeplug.harness.kubelet.flexvolume.plugin import Volume
from nodeplug.harness.kubelet.flexvolume.prober import Prober
from nodeplug.kernel import libc, mount
from nodeplug.ops.cli import door
from nodeplug.ops.flexplaces import Drivers
from tests.child import run
from tests.flexvolume.installed import Node, volume
from tests.flexvolume.node import POD
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:cc")
TMPFS = volume("tmpfs", size="1Mi")
SECRET = Volume("keys", "nodeplug.dev/secret", secrets={"password": b"open sesame"})
ENCODED = ("open sesame", "b3BlbiBzZXNhbWU=")
LOG = Path(paths.LOG) / "flexvolume.log"


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    return Node(module_ledger)


@pytest.fixture(autouse=True)
def _nothing_is_left(node: Node) -> Iterator[None]:
    yield
    assert node.mounts() == [] and list(node.root.glob("pods/*/volumes/*/*")) == []
    assert node.log == [] or node.start() is not None


def test_1_no_program_of_the_host_is_needed_and_one_that_is_missing_is_named(node: Node, ledger: Ledger) -> None:
    """jq was missing on CoreOS, in images, on PATH (k/k#47066, #38793, coreos/bugs#1706)."""
    node.start(Caller(env={"PATH": "/nowhere"}))
    for wanted in (TMPFS, SECRET):
        node.mount(wanted)
        node.unmount(wanted)
    node.start()
    root = ledger.directory()
    hidden = f"mount -t tmpfs -o ro none /usr/sbin; exec {node.plugin('loop').executable} mount {root}/v"
    done = run(["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{hidden} \'{{"size":"16Mi"}}\''])
    assert done.code == 0 and "mkfs.ext4" in done.json()["message"] and "e2fsprogs" in done.json()["message"]


def test_2_a_controller_managers_bare_image_can_run_it(node: Node, ledger: Ledger) -> None:
    """init ran in a distroless image, without shell, jq or bash (juliohm/kubernetes-cifs#13, kubeadm#2135)."""
    image = ledger.directory()
    shutil.copytree(node.exec, image / "exec", symlinks=True)
    done = run(["/usr/sbin/chroot", image, "/exec/nodeplug.dev~tmpfs/tmpfs", "init"], env={})
    assert (done.code, done.json(), done.stderr) == (0, {"status": "Not supported"}, b"")  # not loaded, and no noise


def test_3_nothing_but_the_answer_is_ever_written(node: Node, ledger: Ledger) -> None:
    """Warnings of tools broke the JSON (azure-kv#81, #83); `echo -ne` under dash did (k/k#54494)."""
    node.allow(ledger, "bind", roots="/etc")
    for wanted in (TMPFS, SECRET, volume("loop", size="16Mi"), volume("bind", read_only=True, path="/etc")):
        try:
            node.mount(dataclasses.replace(wanted, fs_type="ext4"))
        except Failed:
            pass
        node.unmount(wanted)
    for done in node.kubelet.caller.journal.executed:
        assert isinstance(json.loads(done.output), dict) and done.output.count(b"\n") == 1 and done.code == 0
    node.start()


def test_4_no_install_upgrade_or_uninstall_is_ever_probed_in_vain(ledger: Ledger) -> None:
    """ "unexpected end of JSON input", over and over (calico#3833, #4308, rke2#234, bottlerocket#2413)."""
    top = ledger.directory()
    drivers = Drivers(top / "exec", store=top / "store")
    kubelet = Prober(top / "exec", root=top / "kubelet")
    ledger.adopt("prober", kubelet.close)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            kubelet.refresh()

    looking = threading.Thread(target=look)
    looking.start()
    for kind in ("c", "python", "c"):
        drivers.install(door("flexvolume"), only=["tmpfs", "secret"], kind=kind)  # type: ignore[arg-type]  # kinds
    done.set()
    looking.join()
    kubelet.refresh()
    assert set(kubelet.plugins) == {"nodeplug.dev/tmpfs", "nodeplug.dev/secret"}
    drivers.uninstall()  # an init that runs at this very moment is the kubelet's own race with a file that goes
    kubelet.refresh()
    assert [probed.error for probed in kubelet.probed if probed.error] == []
    assert kubelet.queued == {} and kubelet.plugins == {}


def test_5_a_directory_that_was_wiped_or_cannot_be_written_is_no_riddle(ledger: Ledger) -> None:
    """Read-only, elsewhere, or emptied by a reboot (typhoon#57, rook#1501, kubespray#4726, k/k#57353, kubeadm#2212)."""
    node = Node(ledger)
    node.kubelet.refresh()
    for entry in node.exec.iterdir():
        shutil.rmtree(entry)
    node.kubelet.refresh()
    assert node.kubelet.plugins == {}
    assert {change.what for change in node.drivers.install(door("flexvolume"))} == {"installed"}
    node.kubelet.refresh()
    assert "nodeplug.dev/tmpfs" in node.kubelet.plugins
    fixed = ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs", fixed]).ok()
    with pytest.raises(Unavailable, match=r"cannot install into .*Read-only file system"):
        Drivers(fixed, store=ledger.directory() / "store").install(door("flexvolume"))


def test_6_drivers_are_found_whenever_they_come_and_whenever_the_kubelet_does(ledger: Ledger) -> None:
    """Not found after an install or a reboot (rook#1850, #3297, k/k#83803, #68070)."""
    top = ledger.directory()
    kubelet = Prober(top / "exec", root=top / "kubelet")
    ledger.adopt("prober", kubelet.close)
    kubelet.refresh()
    Drivers(top / "exec", store=top / "store").install(door("flexvolume"), only=["tmpfs"])
    assert kubelet.find("nodeplug.dev/tmpfs")
    again = Prober(top / "exec", root=top / "kubelet")
    ledger.adopt("prober", again.close)
    assert again.find("nodeplug.dev/tmpfs")


def test_7_secrets_are_in_no_log_no_argument_and_no_message(node: Node) -> None:
    """In the kubelet's log with every failure (azure-kv#125, k/k#81130)."""
    with pytest.raises(Failed) as raised:
        node.mount(dataclasses.replace(SECRET, options={"mode": "open sesame"}))
    node.mount(SECRET)
    node.unmount(SECRET)
    lines = [line for line in node.log if not line.startswith("mount command failed")]
    assert lines == [] and all(done.code == 0 for done in node.kubelet.caller.journal.executed)
    everything = raised.value.message + "\n".join(node.log) + LOG.read_text()
    assert not any(secret in everything for secret in ENCODED)
    state = "".join(path.read_text(errors="replace") for path in Path("/run/nodeplug").rglob("*") if path.is_file())
    assert not any(secret in state for secret in ENCODED)
    node.start()


def test_8_no_pod_stays_terminating(node: Node) -> None:
    """Unmounted already, busy, dead (fstab/cifs#10, k/k#54831, #67132, azure PR#91, nerdalize#407)."""
    plugin = node.plugin("tmpfs")
    target = node.mount(TMPFS)
    with (target / "busy").open("w"):
        node.unmount(TMPFS)
    target.mkdir()  # as it was found after a reboot
    node.unmount(TMPFS)
    if Path("/dev/fuse").exists():
        target = plugin.directory(POD, "dead")
        target.mkdir()
        fuse(target, alive=False)
        node.unmount(volume("tmpfs", "dead"))


def fuse(target: Path, *, alive: bool) -> int:
    """A FUSE mount whose server has gone, or is there and never answers."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc.mount("server", str(target), "fuse", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
    if not alive:
        os.close(fd)
    return fd


def test_9_a_mount_that_failed_leaves_no_directory(node: Node) -> None:
    """Orphaned pod directories (k/k#49383, #80972, #60987, #66945, #71400, #82215, longhorn#485)."""
    for wanted in (
        volume("tmpfs", size="8192Gi"),
        volume("tmpfs", size="x"),
        volume("loop", size="8192Gi"),
        volume("loop", size="4Ki"),
        volume("bind", path="/no/such/path"),
        volume("overlay", lower="/etc", size="1Mi"),
    ):
        with pytest.raises(Failed):
            node.mount(wanted)
        assert node.mounts() == [] and list(node.root.glob("pods/*/volumes/*/*")) == []
    node.start()


@pytest.mark.needs("file:/dev/fuse")
def test_10_a_server_that_never_answers_holds_nobody_up(node: Node) -> None:
    """A hung NFS wedged the kubelet (k/k#31272, #90593, #101622, #72048, kubelet#43, csi-driver-nfs#1271)."""
    target = node.plugin("tmpfs").directory(POD, "hung")
    target.mkdir(parents=True)
    fd = fuse(target, alive=True)  # whoever looks into it now waits for ever
    began = time.monotonic()
    try:
        done = node.kubelet.caller.execute(node.plugin("tmpfs").executable, ["unmount", str(target)])
    finally:
        os.close(fd)
    assert json.loads(done.output) == {"status": "Success"}
    assert time.monotonic() - began < 60
    node.unmount(volume("tmpfs", "hung"))


def test_11_after_a_reboot_it_is_mounted_again(node: Node) -> None:
    """k/k#51982, #50677, #52397, #102567."""
    target = node.mount(TMPFS)
    mount.unmount(str(target))
    shutil.rmtree("/run/nodeplug/volumes")
    node.start()
    assert mount.is_mounted(str(node.mount(TMPFS)))
    node.unmount(TMPFS)


def test_12_what_happened_is_in_one_log_under_the_number_that_the_pods_event_has(node: Node) -> None:
    """Invisible logs (oci-flex#104, dotmesh#284, longhorn-manager PR#80); too many (ubiquity-k8s PR#158)."""
    with pytest.raises(Failed) as raised:
        node.mount(volume("tmpfs", size="x"))
    number = raised.value.message.rpartition("(call ")[2].rstrip(")")
    lines = [json.loads(line) for line in LOG.read_text().splitlines()]
    (line,) = [line for line in lines if number in line.get("message", "")]
    assert (line["op"], line["pod"]["namespace"], line["pod"]["name"]) == ("tmpfs mount", "shop", "web")
    count = len(lines)
    for _ in range(3):
        node.plugin("tmpfs").volume_name(TMPFS)
        node.start()
    assert not [line for line in LOG.read_text().splitlines()[count:] if "getvolumename" in line]


@pytest.mark.needs("loop")
def test_13_how_full_a_volume_is_can_be_seen_and_is_limited(node: Node) -> None:
    """No metrics (k/k#67400); no quota on local volumes (k/k#13479)."""
    for wanted, size in ((TMPFS, 1 << 20), (volume("loop", "disk", size="16Mi"), 16 << 20)):
        node.mount(wanted)
        found = node.kubelet.find(wanted.driver).metrics(POD, wanted.name)
        assert found is not None and size * 0.5 < found.f_blocks * found.f_frsize <= size
        node.unmount(wanted)


def test_14_a_volumes_group_is_set_when_it_is_made_and_not_entry_by_entry(node: Node, ledger: Ledger) -> None:
    """Minutes of chown, and the wrong group (k/k#68680); the key's second name."""
    host = ledger.directory()
    for n in range(200):
        (host / str(n)).touch()
    node.allow(ledger, "bind", roots=str(host))
    before = [entry.lstat().st_ctime_ns for entry in host.iterdir()]
    pod = dataclasses.replace(POD, fs_group=4711)
    node.mount(volume("bind", path=str(host)), pod)
    assert [entry.lstat().st_ctime_ns for entry in host.iterdir()] == before
    node.unmount(volume("bind"), pod)
    target = node.mount(SECRET, pod)
    assert not node.plugin("secret").capabilities.fsGroup
    assert (target / "password").stat().st_gid == 4711
    node.unmount(SECRET, pod)


def test_15_nothing_is_attached_so_nothing_is_attached_twice(node: Node) -> None:
    """rook#1082, #1214, #3580; and two pods whose volumes have one name share nothing."""
    node.kubelet.refresh()
    for plugin in node.kubelet.plugins.values():
        assert not plugin.capabilities.attach
        with pytest.raises(NotSupported):
            node.kubelet.caller.call(plugin.executable, "attach", "{}", "node1")
    other = dataclasses.replace(POD, name="other", uid="another-uid")
    first, second = node.mount(TMPFS), node.mount(TMPFS, other)
    (first / "mine").touch()
    assert list(second.iterdir()) == []
    node.unmount(TMPFS)
    assert mount.is_mounted(str(second))
    node.unmount(TMPFS, other)


def test_16_no_container_ever_writes_to_the_nodes_own_disk_in_a_volumes_place(node: Node) -> None:
    """k/k#109955: the mount was missing, and nobody noticed."""
    with pytest.raises(Failed):
        node.mount(volume("tmpfs", size="x"))
    assert not node.plugin("tmpfs").directory(POD, "data").exists()
    target = node.mount(TMPFS)
    run(["umount", target]).ok()  # somebody takes it away below a running pod
    assert stat.S_IMODE(target.stat().st_mode) == 0  # and what is then seen there is closed to all but root
    node.unmount(TMPFS)
    node.start()


def test_17_who_may_have_what_is_the_nodes_to_say(node: Node, ledger: Ledger) -> None:
    """allowedFlexVolumes knew drivers only, and went with PodSecurityPolicy."""
    wanted = volume("bind", read_only=True, path="/etc")
    with pytest.raises(Failed, match=r"\[\[volumes\.allow\]\]"):
        node.mount(wanted)
    node.allow(ledger, "bind", roots="/etc")
    node.mount(wanted)
    node.unmount(wanted)
    with pytest.raises(Error):
        node.mount(volume("bind", path="/usr"))
    node.start()
