"""The demo from end to end: three pods, their traffic, one deleted, one lost and collected, and what is left: nothing.

Runs inside `harness.enclosure`, so that everything it makes ends with it.
"""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodeplug.core.errors import Error, Refused
from nodeplug.ops.demo import containerd, outside, remains, traffic, who
from nodeplug.ops.demo.ours import OurPods

if TYPE_CHECKING:
    from nodeplug.ops.demo.pods import Pod, Pods
    from nodeplug.ops.demo.show import Show
    from nodeplug.ops.place import Door

DIRECTORY = Path("/run/demo")
NETWORK = "demo"
BRIDGE = "np-demo"
GATEWAY = "10.244.7.1"
PORT = 8000  # of the servers that are in no pod

CONFIGURATION: dict[str, Any] = {
    # containerd 1.6 reads the first key alone; newer runtimes, and `nodeplug cni gc`, take the newest they know.
    "cniVersion": "1.0.0",
    "cniVersions": ["1.0.0", "1.1.0"],
    "name": NETWORK,
    "plugins": [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.7.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def run(show: Show, *, door: Door, own_runtime: bool) -> int:
    """Play it; returns 0 when all was as it should be. Everything is removed at the end, however it ends.

    Raises the errors of what it uses, and `Refused` where something is not as it should be.
    """
    began = time.monotonic()
    show.title("nodeplug demo", "in namespaces of its own: this node's network is not touched")
    with ExitStack() as stack:
        try:
            _play(show, stack, door, own_runtime=own_runtime)
        finally:
            # Clearing away is not to be stopped half-way; it has bounds of its own.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    show.console.print(f"\n[bold green]done[/] in {time.monotonic() - began:.0f} s; nothing is left of it on this node")
    return 0


def _play(show: Show, stack: ExitStack, door: Door, *, own_runtime: bool) -> None:
    plugins = _install(show, door)
    pods = _start(show, stack, plugins, own_runtime=own_runtime)
    stack.enter_context(outside.machine(PORT))
    stack.callback(who.Who("node", PORT).close)
    before = remains.look()
    running = _run_pods(show, pods)
    at_most = remains.new(before, but=BRIDGE)
    _traffic(show, pods, running)
    _delete(show, pods, running["job"])
    _lose(show, pods, running["api"])
    _collect(show, pods, plugins, running["api"])
    _still_works(show, running["web"])
    with show.step("the last pod deleted, the runtime stopped"):
        pods.delete(running["web"])
        pods.close()
    _prove(show, at_most, remains.new(before, but=BRIDGE))


def _install(show: Show, door: Door) -> Path:
    from nodeplug.ops.install import Directory

    plugins = DIRECTORY / "bin"
    with show.step("plugins installed") as step:
        changes = Directory(plugins).install(door)
        step.said = ", ".join(change.name for change in changes)
    conf_dir = DIRECTORY / "net.d"
    conf_dir.mkdir()
    (conf_dir / "10-demo.conflist").write_text(json.dumps(CONFIGURATION, indent=2))
    return plugins


def _start(show: Show, stack: ExitStack, plugins: Path, *, own_runtime: bool) -> Pods:
    conf_dir = DIRECTORY / "net.d"
    if not own_runtime:
        absent = containerd.missing()
        if not absent:
            theirs = containerd.ContainerdPods(DIRECTORY / "c", plugins=plugins, conf_dir=conf_dir)
            stack.callback(theirs.close)
            try:
                with show.step("runtime started") as step:
                    step.said = theirs.start()
                return theirs
            except Error as error:
                theirs.close()
                absent = str(error)
        show.note(f"no containerd here ({absent}): the same on nodeplug's own runtime")
    ours = OurPods(plugins=plugins, conf_dir=conf_dir)
    stack.callback(ours.close)
    with show.step("runtime started") as step:
        step.said = ours.start()
    return ours


def _run_pods(show: Show, pods: Pods) -> dict[str, Pod]:
    wanted = {"web": 8080, "api": 8081, "job": 0}
    with show.step("three pods started at once"), ThreadPoolExecutor(len(wanted)) as pool:
        running = dict(zip(wanted, pool.map(pods.run, wanted, wanted.values()), strict=True))
    rows = [
        (pod.name, pod.address, f"{pod.host_port} -> 80" if pod.host_port else "", f"{pod.seconds:.2f} s")
        for pod in running.values()
    ]
    show.table(("pod", "address", "hostPort", "sandbox and network"), rows)
    return running


def _traffic(show: Show, pods: Pods, running: dict[str, Pod]) -> None:
    with show.step("traffic, by what came back"):
        rows = [each.run() for each in traffic.exchanges(pods, running, gateway=GATEWAY, port=PORT)]
    show.table(("from", "to", "what came back"), rows)


def _delete(show: Show, pods: Pods, pod: Pod) -> None:
    before = remains.look()
    with show.step(f"pod {pod.name} deleted") as step:
        pods.delete(pod)
        gone = {kind: before[kind] - names for kind, names in remains.look().items()}
        step.said = "gone: " + ", ".join(f"{kind} {len(names)}" for kind, names in gone.items() if names)
        _must_be_gone(pod)


def _must_be_gone(pod: Pod) -> None:
    left = [f"{kind} {', '.join(names)}" for kind, names in remains.of(pod).items() if names]
    if left:
        raise Refused(f"pod {pod.name} left {'; '.join(left)}")


def _lose(show: Show, pods: Pods, pod: Pod) -> None:
    with show.step(f"pod {pod.name} killed behind the runtime's back, its namespace and record with it"):
        pods.lose(pod)
    rows = [(kind, name) for kind, names in remains.of(pod).items() for name in sorted(names)]
    if not rows:
        raise Refused(f"pod {pod.name} left nothing, so there is nothing to collect")
    show.table(("what it left", ""), rows)


def _collect(show: Show, pods: Pods, plugins: Path, lost: Pod) -> None:
    from nodeplug.ops.main import run as nodeplug

    words = ["cni", "gc", "--conf", str(DIRECTORY / "net.d"), "--path", str(plugins), *pods.living()]
    show.command(["nodeplug", *words])
    if nodeplug(words) != 0:
        raise Refused("gc was not complete")
    _must_be_gone(lost)
    show.console.print()


def _still_works(show: Show, pod: Pod) -> None:
    with show.step(f"pod {pod.name} goes on") as step:
        step.said = who.fetch(outside.NODE, pod.host_port, outside.PATH)
        if not step.said.startswith(pod.name):
            raise Refused(f"hostPort {pod.host_port} answers {step.said!r}")


def _prove(show: Show, at_most: remains.Remains, left: remains.Remains) -> None:
    rows = [(kind, str(len(at_most[kind])), str(len(names)), ", ".join(sorted(names))) for kind, names in left.items()]
    show.table(("what pods leave on a node", "with three pods", "now", ""), rows)
    show.note(f"The bridge and {remains.rules()} nft rules stay: they belong to the network and not to a pod.")
    if any(left.values()):
        raise Refused("something is left of the pods")
