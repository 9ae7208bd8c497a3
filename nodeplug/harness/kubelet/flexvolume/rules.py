"""The rules that `check` tries, in order. Each is a function that adds findings; False ends the trial."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error
from nodeplug.harness.kubelet.flexvolume import answer
from nodeplug.harness.kubelet.flexvolume.call import BARE_ENV, Hung
from nodeplug.harness.kubelet.flexvolume.check import POD
from nodeplug.kernel import libc, mount

if TYPE_CHECKING:
    from pathlib import Path

    from nodeplug.harness.kubelet.flexvolume.check import Bench, Verdict
    from nodeplug.harness.kubelet.flexvolume.plugin import Volume

_SLOW = 10.0
_MOMENTS = 5


def it_is_loaded(bench: Bench) -> bool:
    try:
        found = bench.load().capabilities
    except Error as error:
        bench.say("init", "fault", f"the kubelet does not load it, and tries again with every volume: {error}")
        return False
    said = ", ".join(name for name, value in vars(found).items() if value) or "none"
    bench.say("init", "ok", f"capabilities: {said}")
    try:
        bench.load(BARE_ENV)
    except Error as error:
        bench.say("init without an environment", "fault", f"as some controller managers call it: {error}")
    if found.attach:
        bench.say("attach", "note", "it says that it attaches, so controller managers must be able to run it too")
    return True


def unknown_verbs_are_not_supported(bench: Bench) -> None:
    status = _call(bench, "no-such-verb", "{}")
    if isinstance(status, answer.NotSupported):
        bench.say("unknown verbs", "ok", "not supported")
    else:
        bench.say(
            "unknown verbs", "fault", f'the answer must be "Not supported", for newer kubelets may have more: {status}'
        )


def a_volume_has_no_name_of_its_own(bench: Bench) -> None:
    status = _call(bench, "getvolumename", bench.load().document(bench.volume("data")))
    if isinstance(status, answer.NotSupported):
        bench.say("getvolumename", "ok", "not supported")
    else:
        bench.say(
            "getvolumename",
            "note",
            "the kubelet throws the name away, asks all the time, and logs a complaint each time",
        )


def a_volume_is_mounted(bench: Bench) -> bool:
    plugin = bench.load()
    try:
        target = plugin.set_up(POD, bench.volume("data"))
    except Error as error:
        bench.say("mount", "fault", f"{error} (options are given by --option NAME=VALUE)")
        return False
    if mount.is_mounted(str(target)):
        bench.say("mount", "ok", f"{_found(target)}")
    else:
        bench.say("mount", "fault", "success, and nothing is mounted: the container would write to the node's own disk")
    return True


def it_can_be_used(bench: Bench) -> None:
    plugin = bench.load()
    target = plugin.directory(POD, "data")
    try:
        (target / "nodeplug-check").write_text("x")
        (target / "nodeplug-check").unlink()
        bench.say("writing", "ok", "a file was written and removed")
    except OSError as error:
        bench.say("writing", "note", f"a file cannot be written: {error.strerror}")
    if plugin.capabilities.supportsMetrics:
        found = plugin.metrics(POD, "data")
        size = found.f_blocks * found.f_frsize if found is not None else 0
        bench.say("metrics", "ok" if size else "note", f"statfs says {size} bytes")
    else:
        bench.say("metrics", "note", "supportsMetrics is false, so nobody sees how full the volume is")


def the_same_mount_again(bench: Bench) -> None:
    """As kubelets do that take a bind mount within a file system for none."""
    plugin = bench.load()
    target = plugin.directory(POD, "data")
    before = _layers(target)
    status = _mount(bench, target, bench.volume("data"))
    if isinstance(status, Error):
        bench.say("mount again", "fault", f"a mount that is there must be success: {status}")
    elif _layers(target) != before:
        bench.say("mount again", "fault", f"{_layers(target)} mounts lie on each other now; an unmount takes one away")
    else:
        bench.say("mount again", "ok", "success, and still one mount")


def the_volume_is_unmounted(bench: Bench) -> None:
    plugin = bench.load()
    target = plugin.directory(POD, "data")
    try:
        plugin.tear_down(POD, "data")
    except Error as error:
        bench.say("unmount", "fault", f"the pod would stay Terminating: {error}")
        return
    if mount.is_mounted(str(target)):
        bench.say("unmount", "fault", "success, and it is still mounted")
    else:
        bench.say("unmount", "ok", "the directory is empty or gone")


def what_is_not_mounted_is_unmounted(bench: Bench) -> None:
    """After a reboot the directories are there and the mounts are not."""
    target = bench.load().directory(POD, "rebooted")
    target.mkdir(parents=True)
    for what, expected in (("a directory without a mount", target), ("a missing directory", target.with_name("gone"))):
        status = _call(bench, "unmount", str(expected))
        if isinstance(status, Error):
            bench.say("unmount after a reboot", "fault", f"{what} must be success, or pods stay Terminating: {status}")
        else:
            bench.say("unmount after a reboot", "ok", f"{what} is success")


def a_foreign_mount_is_not_taken_for_ours(bench: Bench) -> None:
    target = bench.load().directory(POD, "foreign")
    target.mkdir(parents=True)
    mount.tmpfs(str(target), size=1 << 16)
    status = _mount(bench, target, bench.volume("foreign"))
    if not isinstance(status, Error) and _layers(target) == 1:
        bench.say("foreign mount", "fault", "success, though something else is mounted there: a pod would get that")
    else:
        bench.say("foreign mount", "ok", "it is not taken for the volume")
    _call(bench, "unmount", str(target))


def what_fails_leaves_nothing(bench: Bench) -> None:
    target = bench.load().directory(POD, "wrong")
    try:
        bench.load().set_up(POD, bench.volume("wrong", nosuchoption="x"))
    except answer.Failed as error:
        code = bench.caller.journal.executed[-1].code
        left = mount.is_mounted(str(target)) or target.exists()
        bench.say(
            "failure", "ok" if not left else "fault", f"{error}" + ("; and it left something behind" if left else "")
        )
        if code != 0:
            bench.say(
                "exit status", "fault", f"{code} with a failure: the kubelet then logs all arguments, secrets too"
            )
    except Error as error:
        bench.say("failure", "fault", str(error))
    else:
        bench.say("failure", "note", "an option that is none is not refused, so a mistyped one does nothing")
        bench.load().tear_down(POD, "wrong")


def read_only_is_kept(bench: Bench) -> None:
    import dataclasses

    plugin = bench.load()
    volume = dataclasses.replace(bench.volume("readonly"), read_only=True)
    try:
        target = plugin.set_up(POD, volume)
    except Error as error:
        bench.say("read-only", "note", f"it cannot be mounted so: {error}")
        return
    try:
        (target / "nodeplug-check").write_text("x")
        bench.say("read-only", "fault", "asked for read-only, and it can be written")
    except OSError as error:
        bench.say("read-only", "ok" if error.errno == errno.EROFS else "note", error.strerror or "")
    plugin.tear_down(POD, "readonly")


def killed_in_the_middle_it_recovers(bench: Bench) -> None:
    """The kubelet restarts, memory runs out: the next attempt has to succeed, and its end to leave nothing."""
    plugin = bench.load()
    target = plugin.directory(POD, "killed")
    began = time.monotonic()
    plugin.set_up(POD, bench.volume("killed"))
    took = time.monotonic() - began
    plugin.tear_down(POD, "killed")
    for n in range(_MOMENTS):
        target.mkdir(parents=True, exist_ok=True)
        argv = [str(plugin.executable), "mount", str(target), _mount_document(bench, bench.volume("killed"))]
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(bench.caller.env),
            start_new_session=True,
        )
        time.sleep(took * n / _MOMENTS)
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        try:
            plugin.set_up(POD, bench.volume("killed"))
            if _layers(target) != 1:
                bench.say("killed", "fault", f"{_layers(target)} mounts after the next attempt")
                return
            plugin.tear_down(POD, "killed")
        except Error as error:
            bench.say("killed", "fault", f"after {took * n / _MOMENTS * 1000:.0f} ms, and the next attempt: {error}")
            return
    bench.say("killed", "ok", f"at {_MOMENTS} moments of a mount, and the next attempt succeeded")


def a_dead_mount_is_unmounted(bench: Bench) -> None:
    """A FUSE server or a remote one that has gone: every look at the directory fails."""
    target = bench.load().directory(POD, "dead")
    target.mkdir(parents=True)
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        bench.say("dead mount", "skipped", "there is no /dev/fuse here")
        return
    try:
        libc.mount("dead", str(target), "fuse", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
    except OSError as error:
        bench.say("dead mount", "skipped", f"FUSE cannot be mounted here: {error.strerror}")
        return
    finally:
        os.close(fd)
    try:
        bench.load().tear_down(POD, "dead")
        bench.say("dead mount", "ok", "it is taken away")
    except Error as error:
        bench.say("dead mount", "fault", f"the pod would stay Terminating: {error}")


ALL = (
    it_is_loaded,
    unknown_verbs_are_not_supported,
    a_volume_has_no_name_of_its_own,
    a_volume_is_mounted,
    it_can_be_used,
    the_same_mount_again,
    the_volume_is_unmounted,
    what_is_not_mounted_is_unmounted,
    a_foreign_mount_is_not_taken_for_ours,
    what_fails_leaves_nothing,
    read_only_is_kept,
    killed_in_the_middle_it_recovers,
    a_dead_mount_is_unmounted,
)


def look_back(bench: Bench) -> None:
    """What was to be seen all the while."""
    eyes, journal = bench.eyes, bench.caller.journal
    leaks = [f"the arguments of {' '.join(line)[:120]}" for line in sorted(eyes.command_lines)]
    leaks += [str(path) for path in eyes.logs_with_secrets()]
    leaks += ["the kubelet's log"] * any(eyes.seen_in(line.encode()) for line in journal.lines)
    leaks += ["what it answered"] * any(eyes.seen_in(done.output) for done in journal.executed)
    if leaks:
        bench.say("secrets", "fault", f"a secret is to be seen in {'; '.join(leaks)}")
    else:
        bench.say("secrets", "ok", "in no child's arguments, no answer and no log that was looked into")
    changed = eyes.changes()
    if changed:
        bench.say(
            "its directory", "fault", f"{', '.join(changed)} changed: the kubelet calls init for each change there"
        )
    else:
        bench.say("its directory", "ok", "nothing was written there")
    codes = sorted({done.code for done in journal.executed if done.code})
    if codes:
        bench.say(
            "exit status", "fault", f"{', '.join(map(str, codes))}: with a failure the kubelet then logs all arguments"
        )
    else:
        bench.say("exit status", "ok", "0 always")
    slowest = max(journal.executed, key=lambda done: done.seconds, default=None)
    if slowest is not None:
        verdict: Verdict = "note" if slowest.seconds > _SLOW else "ok"
        bench.say(
            "time", verdict, f"{slowest.argv[1]} took {slowest.seconds:.2f} s, the longest of {len(journal.executed)}"
        )


def _call(bench: Bench, verb: str, *arguments: str) -> answer.Status | Error:
    """One verb, whatever the kubelet remembers of it. A driver that hangs is told of at once."""
    try:
        return bench.caller.call(bench.place / bench.name, verb, *arguments)
    except Hung:
        raise
    except Error as error:
        return error


def _mount(bench: Bench, target: Path, volume: Volume) -> answer.Status | Error:
    return _call(bench, "mount", str(target), _mount_document(bench, volume))


def _mount_document(bench: Bench, volume: Volume) -> str:
    return bench.load().mount_document(POD, volume)


def _layers(target: Path) -> int:
    return sum(found.point == os.path.realpath(target) for found in mount.mounts())


def _found(target: Path) -> str:
    found = mount.find(str(target))
    return f"{found.fstype} of {found.source}" if found is not None else "nothing"
