"""Real devices of this machine, and real runtimes that open them: containerd by device nodes, podman by CDI."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from nodeplug.harness.runtime import image
from nodeplug.harness.runtime.containerd import IMAGE, Containerd
from tests.child import Finished, run, until
from tests.deviceplugin.conftest import RESOURCE, Node
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import REFERENCE, bridge, conflist
from tests.real.node import Node as RuntimeNode

pytestmark = needs("sandbox")
REAL = {"sys": "/sys", "dev": "/dev"}


@pytest.fixture(scope="module")
def runtime(module_ledger: Ledger) -> Containerd:
    directory = module_ledger.directory()
    return RuntimeNode(module_ledger, REFERENCE, conflist(bridge(directory / "leases")), directory).runtime


OPENERS = {
    "loop": ("/dev/loop0", "dd if={path} of=/dev/null bs=1 count=0"),
    "fuse": ("/dev/fuse", ": < {path}"),
    "tun": ("/dev/net/tun", ": < {path}"),
    "kvm": ("/dev/kvm", ": < {path}"),
    "tty": ("/dev/tty5", ": < {path}"),
}


@pytest.mark.parametrize("kind", OPENERS)
@needs("program:containerd", "program:runc", f"file:{REFERENCE}/bridge")
def test_a_container_with_the_allocation_opens_the_device_and_one_without_cannot(
    node: Node, runtime: Containerd, kind: str
) -> None:
    path, command = OPENERS[kind]
    if not os.path.exists(path):
        pytest.skip(f"needs file:{path}: {path} does not exist")
    node.configure(node.resource(match=[{"path": path}]), directories=REAL)
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
    devices = [(spec.host_path, spec.container_path, spec.permissions) for spec in given.devices]
    shell = ("/bin/sh", "-c", command.format(path=path))
    spec = runtime.spec(f"dev-{kind}")
    pod = runtime.cri.run_pod(spec)
    try:
        with_it = runtime.cri.run_container(pod, spec, image=IMAGE, name="with", devices=devices)
        opened = runtime.cri.execute(with_it, *shell)
        without = runtime.cri.run_container(pod, spec, image=IMAGE, name="without")
        major, minor = os.major(os.stat(path).st_rdev), os.minor(os.stat(path).st_rdev)
        letter = "b" if stat.S_ISBLK(os.stat(path).st_mode) else "c"
        # Every container may make and open tun by runc's default rules; it only has no node.
        make = (
            shell[2]
            if kind == "tun"
            else f"mkdir -p $(dirname {path}); mknod {path} {letter} {major} {minor} 2>/dev/null; {shell[2]}"
        )
        refused = runtime.cri.execute(without, "/bin/sh", "-c", make)
    finally:
        runtime.cri.stop_pod(pod)
        runtime.cri.remove_pod(pod)
    assert opened.status == 0, opened.stderr
    assert refused.status != 0


@needs("program:containerd", "program:runc", f"file:{REFERENCE}/bridge")
def test_a_device_under_another_number_is_found_by_the_answer_of_before(node: Node, runtime: Containerd) -> None:
    """The kubelet replays the first answer: its link leads to the node of today."""
    node.configure(
        node.resource(match=[{"udev": {"properties": {"ID_SERIAL": "A1"}}}]), directories={"dev": str(node.dev)}
    )
    udev, sysfs = node.top / "udev", node.top / "sys"
    udev.mkdir()

    def plug(name: str, minor: int) -> None:
        node.mknod(name, minor, major=1)
        place = sysfs / "devices" / name
        place.mkdir(parents=True)
        (place / "uevent").write_text(f"DEVNAME={name}\n")
        (sysfs / "dev/char").mkdir(parents=True, exist_ok=True)
        (sysfs / "dev/char" / f"1:{minor}").symlink_to(place)
        (udev / f".c1:{minor}").write_text("E:ID_SERIAL=A1\n")
        os.rename(udev / f".c1:{minor}", udev / f"c1:{minor}")

    plug("zeroA", 5)
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
        ((host, inside),) = [(spec.host_path, spec.container_path) for spec in given.devices]
        assert os.path.realpath(host) == str(node.dev / "zeroA")
        (udev / "c1:5").unlink()
        os.unlink(node.dev / "zeroA")
        until(lambda: not os.path.lexists(host), "the link of a device that is gone to be gone")
        plug("nullB", 3)
        kubelet.wait(RESOURCE, allocatable=1)
        assert os.path.realpath(host) == str(node.dev / "nullB")
        again = kubelet.start_container("default/p", "c")[RESOURCE]
        assert [spec.host_path for spec in again.devices] == [host]
        spec = runtime.spec("replug")
        pod = runtime.cri.run_pod(spec)
        try:
            container = runtime.cri.run_container(pod, spec, image=IMAGE, name="c", devices=[(host, inside, "rw")])
            told = runtime.cri.execute(container, "/bin/sh", "-c", f"ls -l {inside}")
        finally:
            runtime.cri.stop_pod(pod)
            runtime.cri.remove_pod(pod)
        assert b"1,   3" in told.stdout or b"1, 3" in told.stdout.replace(b"  ", b" "), told


@needs("program:containerd", "program:runc", f"file:{REFERENCE}/bridge")
def test_a_runtime_without_cdi_is_asked_and_given_device_nodes(node: Node, runtime: Containerd) -> None:
    node.mknod("a")
    node.configure(node.resource(cdi=True), directories={"runtime": str(runtime.socket)})
    version = runtime.cri.version()[1]
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
    if version.lstrip("v").startswith("1.6"):
        assert given.devices and not given.cdi_devices
        assert any("does not know CDI" in line and "falls back" in line for line in node.log)
    else:
        assert bool(given.devices) != bool(given.cdi_devices)


@needs("program:podman", "program:runc")
def test_podman_opens_what_the_cdi_file_names(node: Node) -> None:
    node.mknod("terminal", 5, major=4)  # one that no container may open by default
    node.cdi = Path("/run/cdi")
    # podman reads /etc/cdi and /var/run/cdi; the latter is this sandbox's /run/cdi.
    node.ledger.adopt("cdi", lambda: subprocess.run(["rm", "-rf", "/run/cdi"], check=True))
    node.configure(node.resource(cdi="always", permissions="r", gid=4242, container_path="/dev/given"))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
        (name,) = [device.name for device in given.cdi_devices]
        podman = Podman(node)
        shown = podman.run(["--device", name], ": < /dev/given && stat -c %g:%t:%T /dev/given")
        written = podman.run(["--device", name], ": > /dev/given")
        without = podman.run([], ": < /dev/given")
    assert shown.ok().text == "4242:4:5"
    assert written.code != 0, "written to, although the permissions say r"
    assert without.code != 0


class Podman:
    """podman with all its state below the test's directory."""

    def __init__(self, node: Node) -> None:
        self.top = node.top / "podman"
        root = self.top / "rootfs"
        for name in ("bin", "dev", "proc", "sys", "etc", "run", "tmp"):
            (root / name).mkdir(parents=True)
        busybox = Path(image.busybox())
        target = root / "bin/busybox"
        target.write_bytes(busybox.read_bytes())
        target.chmod(0o755)
        for tool in ("sh", "head", "od", "stat", "cat", "echo"):
            (root / "bin" / tool).symlink_to("busybox")
        self.root = root

    def run(self, options: list[str], command: str) -> Finished:
        places = [
            "--root",
            str(self.top / "root"),
            "--runroot",
            str(self.top / "runroot"),
            "--tmpdir",
            str(self.top / "tmp"),
        ]
        # crun refuses the hybrid cgroup layout of some machines; runc takes it.
        argv = [
            "podman",
            "--runtime",
            shutil.which("runc") or "runc",
            *places,
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
            "--storage-driver=vfs",
            "run",
        ]
        argv += [
            "--rm",
            "--network=none",
            "--log-driver=none",
            "--security-opt=seccomp=unconfined",
        ]
        return run([*argv, *options, "--rootfs", str(self.root), "/bin/sh", "-c", command], timeout=60)


def test_a_veth_comes_and_goes_by_the_kernels_own_events(node: Node) -> None:
    node.configure(node.resource(match=[{"netdev": {"name": "npv*"}}]), rescan=3600, directories=REAL)
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=0, allocatable=0)
        run(["ip", "link", "add", "npv0", "type", "veth", "peer", "name", "npv1"]).ok()
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        assert set(kubelet.devices(RESOURCE)) == {"npv0", "npv1"}
        kubelet.admit("default/p", "c", {RESOURCE: 1})
        (mine,) = kubelet.held("default/p", "c", RESOURCE)
        space = node.ledger.netns()
        run(["ip", "link", "set", mine, "netns", space.name]).ok()
        until(
            lambda: plugin.discovery.publisher(RESOURCE).current.by_id[mine].healthy, "the pod's interface to be well"
        )
        run(["ip", "link", "delete", "npv0" if mine == "npv1" else "npv1"]).ok()
        kubelet.remove_pod("default/p")
        kubelet.wait(RESOURCE, capacity=0, allocatable=0, timeout=30)
    node.ledger.link("npv0")


def test_a_tap_is_a_network_device_too(node: Node) -> None:
    node.configure(node.resource(match=[{"netdev": {"name": "nptap*"}}]), rescan=3600, directories=REAL)
    node.ledger.link("nptap0")
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=0, allocatable=0)
        run(["ip", "tuntap", "add", "nptap0", "mode", "tap"]).ok()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)


def test_a_synthetic_event_makes_a_rule_look_again(node: Node) -> None:
    """The machine's own PCI functions, asked for by address; an event for one is answered without a full look."""
    functions = sorted(os.listdir("/sys/bus/pci/devices"))
    if not functions:
        pytest.skip("needs file:/sys/bus/pci: no PCI function")
    node.configure(node.resource(match=[{"pci": {"address": "*"}}]), rescan=3600, directories=REAL)
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=len(functions))
        assert set(kubelet.devices(RESOURCE)) == set(functions)
        before = plugin.registry.get_sample_value("nodeplug_deviceplugin_scan_seconds_count", {"trigger": "event"}) or 0
        Path(f"/sys/bus/pci/devices/{functions[0]}/uevent").write_text("change")
        until(
            lambda: (
                (
                    plugin.registry.get_sample_value("nodeplug_deviceplugin_scan_seconds_count", {"trigger": "event"})
                    or 0
                )
                > before
            ),
            "a look because of the event",
        )
