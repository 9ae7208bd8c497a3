"""FlexVolume verbs as whole processes, beside a shell driver with jq as the public examples are, in turns.

"worker, C shim" is the static program in front of nodeplugd, "worker, launcher" is Python in front of it, "in process"
is Python without a worker. docs/performance/flexvolume.md has the recorded run.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from nodeplug.kernel import mount
from tests.bench.report import Report
from tests.bench.storm import Execution, storm
from tests.bench.timer import Round, Watch, measure
from tests.flexvolume.warm import Node
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = [needs("sandbox", "program:cc", "program:jq"), pytest.mark.timeout(1800)]
ROUNDS = int(os.environ.get("ROUNDS", "60"))
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
BASELINE, SHIM, LAUNCHER, ALONE = "sh + jq", "worker, C shim", "worker, launcher", "in process"
TARGETS = {("mount", SHIM): 0.25, ("unmount", SHIM): 0.25, ("mount", ALONE): 1.0, ("unmount", ALONE): 1.0}

# Ours, in the style of the public examples: an option a jq, a look whether it is mounted, mount(8).
SHELL = """#!/bin/sh
usage() { echo "Invalid usage" >&2; exit 1; }
log() { echo "$1"; }
ismounted() {
    MOUNTED=$(findmnt -n "$1" 2>/dev/null | cut -d' ' -f1)
    [ "$MOUNTED" = "$1" ]
}
domount() {
    SIZE=$(echo "$2" | jq -r '.size')
    MODE=$(echo "$2" | jq -r '.mode // "0777"')
    RW=$(echo "$2" | jq -r '.["kubernetes.io/readwrite"]')
    if ismounted "$1"; then log '{"status": "Success"}'; exit 0; fi
    mkdir -p "$1" >/dev/null 2>&1
    if ! mount -t tmpfs -o "$RW,nosuid,nodev,noexec,size=$SIZE,mode=$MODE" tmpfs "$1" >/dev/null 2>&1; then
        log '{"status": "Failure", "message": "Failed to mount"}'; exit 1
    fi
    log '{"status": "Success"}'; exit 0
}
dounmount() {
    if ! ismounted "$1"; then log '{"status": "Success"}'; exit 0; fi
    if ! umount "$1" >/dev/null 2>&1; then
        log '{"status": "Failure", "message": "Failed to unmount"}'; exit 1
    fi
    log '{"status": "Success"}'; exit 0
}
case "$1" in
init) log '{"status": "Success", "capabilities": {"attach": false}}'; exit 0 ;;
mount) shift; domount "$@" ;;
unmount) shift; dounmount "$@" ;;
*) log '{"status": "Not supported"}'; exit 0 ;;
esac
"""
DOCUMENT = {
    "kubernetes.io/fsType": "",
    "kubernetes.io/readwrite": "rw",
    "kubernetes.io/pvOrVolumeName": "",
    "kubernetes.io/pod.name": "web",
    "kubernetes.io/pod.namespace": "shop",
    "kubernetes.io/pod.uid": "bench",
    "kubernetes.io/serviceAccount.name": "till",
}


@dataclass
class Contender:
    """A driver's executable and the directory that its pods are below."""

    executable: Path
    root: Path
    count: int = 0

    def target(self, driver: str = "tmpfs") -> Path:
        self.count += 1
        made = self.root / f"pods/bench/volumes/nodeplug.dev~{driver}/v{self.count}"
        made.mkdir(parents=True, mode=0o750)
        return made

    def mounting(self, target: Path, **options: str) -> list[str]:
        document = {**DOCUMENT, "kubernetes.io/pvOrVolumeName": target.name, **options}
        return [str(self.executable), "mount", str(target), json.dumps(document, separators=(",", ":"))]

    def both(self, watch: Watch) -> None:
        """One mount and one unmount, and what the kubelet does around them."""
        target = self.target()
        done = watch.run("mount", self.mounting(target, size="1048576"), env=ENV)
        assert json.loads(done.stdout)["status"] == "Success" and os.path.ismount(target)
        done = watch.run("unmount", [self.executable, "unmount", target], env=ENV)
        assert json.loads(done.stdout)["status"] == "Success"
        if target.exists():
            target.rmdir()


@pytest.fixture(scope="module")
def contenders(module_ledger: Ledger) -> Iterator[dict[str, Contender]]:
    directory = module_ledger.directory()
    script = directory / "tmpfs"
    script.write_text(SHELL)
    script.chmod(0o755)
    shim, launcher, alone = (Node(module_ledger, kind=kind) for kind in ("c", "python", "python"))  # type: ignore[arg-type]  # kinds
    for node in (shim, launcher):
        node.start()
    found = {BASELINE: Contender(script, directory / "kubelet")}
    for name, node in ((SHIM, shim), (LAUNCHER, launcher), (ALONE, alone)):
        found[name] = Contender(node.exec / "nodeplug.dev~tmpfs" / "tmpfs", node.root)
    yield found
    for node in (shim, launcher):
        node.stop()


def version(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0]


def told(report: Report, title: str) -> None:
    print()
    print(report.markdown(title=title, command="make bench", versions={"jq": version("jq", "--version")}))


def bench_tmpfs(contenders: dict[str, Contender]) -> None:
    report = measure({name: each.both for name, each in contenders.items()}, rounds=ROUNDS)
    told(report, "tmpfs, one call at a time")
    for (label, name), target in TARGETS.items():
        found = report.ratio(label, name)
        print(f"target {label}, {name}: {target:.2f}, found {found:.3f}, {'met' if found <= target else 'MISSED'}")


def bench_init(contenders: dict[str, Contender]) -> None:
    """What a kubelet calls at each probe."""

    def one(each: Contender) -> Round:
        return lambda watch: watch.run("init", [each.executable, "init"], env=ENV)

    told(measure({name: one(each) for name, each in contenders.items()}, rounds=ROUNDS), "init")


@pytest.mark.needs("loop", "program:mkfs.ext4")
def bench_loop(contenders: dict[str, Contender], ledger: Ledger) -> None:
    """1 GiB of ext4 in a sparse image: made, mounted; beside mkfs.ext4 and mount by hand."""
    directory = ledger.directory()

    def bare(watch: Watch) -> None:
        image, target = directory / "image", directory / "target"
        target.mkdir(exist_ok=True)
        script = f"truncate -s 1G {image} && mkfs.ext4 -q -F {image} && mount -o loop {image} {target}"
        watch.run("publish", ["/bin/sh", "-c", script], env=ENV)
        subprocess.run(["umount", target], check=True)
        image.unlink()

    def ours(name: str) -> Round:
        each = contenders[name]
        contender = Contender(each.executable.parent.parent / "nodeplug.dev~loop" / "loop", each.root)

        def one(watch: Watch) -> None:
            target = contender.target("loop")
            done = watch.run("publish", contender.mounting(target, size="1Gi"), env=ENV)
            assert json.loads(done.stdout)["status"] == "Success", done.stdout
            subprocess.run([contender.executable, "unmount", target], check=True, capture_output=True)

        return one

    rounds = {"mkfs.ext4 + mount": bare, SHIM: ours(SHIM), ALONE: ours(ALONE)}
    report = measure(rounds, rounds=max(5, ROUNDS // 3))
    told(report, "loop, 1 GiB of ext4, sparse")
    found = report.ratio("publish", SHIM)
    print(f"target publish, {SHIM}: 1.30, found {found:.3f}, {'met' if found <= 1.3 else 'MISSED'}")


def bench_storm(contenders: dict[str, Contender]) -> None:
    """100 publishes, 16 at once, and as many unpublishes."""
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(5):
        for name, each in contenders.items():
            targets = [each.target() for _ in range(100)]
            up = [Execution(each.mounting(target, size="262144"), ENV, os.devnull) for target in targets]
            down = [Execution([str(each.executable), "unmount", str(t)], ENV, os.devnull) for t in targets]
            taken.setdefault(("mount", name), []).append(storm(up, at_once=16))
            assert all(mount.is_mounted(str(target)) for target in targets)
            taken.setdefault(("unmount", name), []).append(storm(down, at_once=16))
            assert not any(mount.is_mounted(str(target)) for target in targets)
    print("\nstorm of 100, 16 at once: median seconds\n\n| what | who | s | ratio |\n|---|---|---:|---:|")
    for (label, name), found in taken.items():
        ratio = median(found) / median(taken[(label, BASELINE)])
        print(f"| {label} | {name} | {median(found):.3f} | {ratio:.3f} |")
