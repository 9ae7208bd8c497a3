"""The door, by an author's driver in Python under the kubelet's side: whatever happens, one JSON value and exit 0."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nodeplug.core import paths
from nodeplug.core.errors import NotFound
from nodeplug.harness.kubelet.flexvolume.answer import Failed
from nodeplug.harness.kubelet.flexvolume.call import BARE_ENV, Caller
from nodeplug.harness.kubelet.flexvolume.plugin import OLD_GROUP_KEY, Habits, Plugin
from nodeplug.kernel import mount
from tests.child import run, until
from tests.flexvolume.drivers import MINE, python
from tests.flexvolume.node import POD, Node, volume
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("sandbox", "file:/usr/bin/python3")
LOG = Path(paths.LOG) / "flexvolume.log"
SECRETS = {"password": b"open sesame", "binary": bytes(range(256))}
ENCODED = ("open sesame", "b3BlbiBzZXNhbWU=", "AAECAwQFBgcICQoLDA0ODw")


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


@pytest.fixture
def plugin(node: Node) -> Plugin:
    return node.driver(python(MINE))


def records() -> list[dict[str, object]]:
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


def test_an_authors_driver_is_probed_mounted_and_unmounted(node: Node, plugin: Plugin) -> None:
    assert (plugin.capabilities.attach, plugin.capabilities.fsGroup) == (False, False)
    assert (plugin.capabilities.supportsMetrics, plugin.capabilities.requiresFSResize) == (True, False)
    target = plugin.set_up(POD, volume())
    found = plugin.metrics(POD, "data")
    assert mount.is_mounted(str(target)) and found is not None and found.f_blocks * found.f_frsize == 1 << 20
    plugin.tear_down(POD, "data")
    assert list(node.left()) == []
    assert node.log == []


def test_capabilities_are_all_said(node: Node, plugin: Plugin) -> None:
    said = json.loads(node.last.output)["capabilities"]
    assert set(said) == {"attach", "selinuxRelabel", "supportsMetrics", "fsGroup", "requiresFSResize"}


@pytest.mark.parametrize("env", [BARE_ENV, {"PATH": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}])
def test_it_needs_nothing_of_the_environment(ledger: Ledger, env: dict[str, str]) -> None:
    node = Node(ledger, caller=Caller(env=env))
    plugin = node.driver(python(MINE))
    plugin.set_up(POD, volume())
    plugin.tear_down(POD, "data")


def test_whatever_a_driver_and_its_children_print_is_not_heard(node: Node, plugin: Plugin) -> None:
    plugin.set_up(POD, volume(options={"size": "1Mi", "mode": "loud"}))
    assert node.last.output == b'{"status":"Success"}\n'
    plugin.tear_down(POD, "data")


@pytest.mark.parametrize("verb", ["", "waitfordetach", "--help", "MOUNT", "attach", "getvolumename"])
def test_a_verb_it_does_not_have_is_not_supported(node: Node, plugin: Plugin, verb: str) -> None:
    done = node.caller.execute(plugin.executable, [verb, "{}", "node1"])
    assert done.code == 0
    assert json.loads(done.output)["status"] == ("Not supported" if verb else "Failure")


def test_without_any_argument_it_says_what_it_is_and_still_in_json(node: Node, plugin: Plugin) -> None:
    done = node.caller.execute(plugin.executable, [])
    assert "its verbs are init, getvolumename" in json.loads(done.output)["message"]


def test_an_option_that_is_none_is_refused_with_the_nearest_one(plugin: Plugin) -> None:
    with pytest.raises(Failed, match=r"options\.sise: no such key; did you mean size\?") as raised:
        plugin.set_up(POD, volume(options={"sise": "1Mi", "mode": "lout"}))
    assert 'options.mode: expected one of "plain"' in raised.value.message  # all problems at once
    assert "options.size: required, but missing" in raised.value.message


def test_a_message_names_a_call_that_the_log_knows(plugin: Plugin) -> None:
    with pytest.raises(Failed) as raised:
        plugin.set_up(POD, volume(options={}))
    call = raised.value.message.rpartition("(call ")[2].rstrip(")")
    (record,) = [found for found in records() if f"(call {call})" in str(found.get("message"))]
    assert record["op"] == "mine mount" and record["id"] == f"{POD.uid}/data" and record["outcome"] == "error"


def test_getvolumename_leaves_no_line_in_the_log(node: Node, plugin: Plugin) -> None:
    before = len(records())
    node.caller.execute(plugin.executable, ["getvolumename", "{}"])
    assert len(records()) == before


def test_a_driver_that_goes_wrong_is_a_failure_that_names_the_place_and_no_secret(node: Node, plugin: Plugin) -> None:
    with pytest.raises(Failed, match=r"RuntimeError: it went wrong with \[secret\].*at .*mine:\d+") as raised:
        plugin.set_up(POD, volume(options={"size": "1Mi", "mode": "wrong"}, secrets=SECRETS))
    everything = raised.value.message + LOG.read_text() + "\n".join(node.log)
    assert not any(secret in everything for secret in ENCODED)
    assert list(node.left()) == []


def test_a_driver_that_mounted_nothing_has_not_succeeded(plugin: Plugin) -> None:
    with pytest.raises(Failed, match="says that it mounted, and nothing is mounted on"):
        plugin.set_up(POD, volume(options={"size": "1Mi", "mode": "nothing"}))


def test_both_group_keys_are_understood(ledger: Ledger) -> None:
    body = MINE.replace("mount.tmpfs(request.target,", "assert request.fs_group == 4711; mount.tmpfs(request.target,")
    for habits in (Habits(), Habits(group_key=OLD_GROUP_KEY)):
        node = Node(ledger, habits=habits)
        plugin = node.driver(python(body))
        pod = dataclasses.replace(POD, fs_group=4711)
        plugin.set_up(pod, volume())
        plugin.tear_down(pod, "data")


def test_a_bind_mount_that_an_older_kubelet_does_not_see_is_mounted_once(ledger: Ledger) -> None:
    node = Node(ledger, habits=Habits(statx=False))
    body = MINE.replace("mount.tmpfs(request.target, size=request.options.size)", "mount.bind('/etc', request.target)")
    plugin = node.driver(python(body))
    for _ in range(3):
        plugin.set_up(POD, volume())
    assert len(node.mounts()) == 1
    plugin.tear_down(POD, "data")


def test_secrets_are_hidden_in_the_command_line_soon_after_the_start(node: Node, plugin: Plugin) -> None:
    document = {"size": "1Mi", "mode": "slow", "kubernetes.io/secret/password": "b3BlbiBzZXNhbWU="}
    target = plugin.directory(POD, "data")
    target.mkdir(parents=True)
    argv = [plugin.executable, "mount", target, json.dumps(document)]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env={})
    try:
        # A person sees what it does.
        until(lambda: b"mount" in shown(child.pid) and b"b3Bl" not in shown(child.pid), "it is hidden")
    finally:
        child.kill()
        child.wait()


def test_a_call_with_secrets_is_not_dumped_nor_traced_by_its_own_user() -> None:
    program = (
        f"import os, sys; sys.path.insert(0, {str(CHECKOUT)!r}); from nodeplug.flexvolume import process;"
        "owner = lambda: os.stat('/proc/self/environ').st_uid;"
        "before = owner(); process.forbid_dumps(); print(before, owner())"
    )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-IS", "-c", program]
    assert run(nobody).ok().text == "65534 0"  # proc(5): it belongs to root once it cannot be dumped


def shown(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_driver_that_does_not_end_is_answered_for_and_its_children_are_ended(ledger: Ledger) -> None:
    node = Node(ledger)
    marks = ledger.directory()
    body = MINE.replace(
        "import time\n            time.sleep(3600)",
        f"import subprocess\n            subprocess.run(['sh', '-c', 'echo $$ > {marks}/pid; exec sleep 3600'])",
    )
    shorter = "from nodeplug.flexvolume import dispatch, main as _main\ndispatch.LIMIT, _main._GRACE = 0.6, 0.2\n"
    plugin = node.driver(python(shorter + body))
    with pytest.raises(Failed, match="did not end in time"):
        plugin.set_up(POD, volume(options={"size": "1Mi", "mode": "slow"}))
    pid = int((marks / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), "the child ended")


def test_the_limits_leave_the_kubelet_its_two_minutes() -> None:
    from nodeplug.flexvolume import dispatch
    from nodeplug.flexvolume import main as flex_main
    from nodeplug.worker import launcher

    alone = dispatch.LIMIT + flex_main._GRACE
    assert launcher.PATIENCE["flexvolume"] + alone <= 105
    assert launcher.PATIENCE["flexvolume"] > dispatch.LIMIT + launcher.GREETING  # a worker's own end comes first


def test_a_reader_that_has_gone_does_no_harm(node: Node, plugin: Plugin) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([plugin.executable, "init"], stdout=write, env={}, check=False)
    os.close(write)
    assert done.returncode == 0


def test_settings_that_are_wrong_fail_a_mount_and_not_what_ends_it(node: Node, plugin: Plugin, ledger: Ledger) -> None:
    """A pod whose volume could not be unmounted would stay Terminating until somebody mends a file."""
    target = plugin.set_up(POD, volume())
    settings = Path(paths.ETC) / "nodeplug.toml"
    settings.write_text("[volumes]\nopem = []\n")
    ledger.adopt("settings", lambda: settings.unlink(missing_ok=True))
    plugin.tear_down(POD, "data")
    assert not target.exists()


def test_an_exit_by_the_drivers_own_will_is_a_failure(ledger: Ledger) -> None:
    node = Node(ledger)
    plugin = node.driver(python(MINE.replace("raise RuntimeError(", "raise SystemExit(")))
    with pytest.raises(Failed, match="SystemExit"):
        plugin.set_up(POD, volume(options={"size": "1Mi", "mode": "wrong"}))


def test_killed_it_leaves_the_kubelet_to_try_again(node: Node, plugin: Plugin) -> None:
    target = plugin.directory(POD, "data")
    target.mkdir(parents=True)
    document = json.dumps({"size": "1Mi", "mode": "slow"})
    child = subprocess.Popen([plugin.executable, "mount", target, document], stdout=subprocess.PIPE, env={})
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    assert child.communicate()[0] == b""
    plugin.set_up(POD, volume())
    plugin.tear_down(POD, "data")


# What a node may lack


@pytest.mark.parametrize("limit", ["--nofile=5", "--nofile=8", "--nproc=0"])
def test_without_descriptors_or_threads_it_still_answers(node: Node, plugin: Plugin, limit: str) -> None:
    done = run(["prlimit", limit, plugin.executable, "mount", node.root / "nowhere", '{"size": "1Mi"}'], env={})
    assert done.code == 0 and json.loads(done.stdout)["status"] in ("Failure", "Success"), done
    assert done.stderr == b""


def test_a_log_that_cannot_be_written_changes_nothing(plugin: Plugin, ledger: Ledger) -> None:
    full = Path(paths.LOG)
    mount.tmpfs(str(full), size=4096, flags=mount.MS_RDONLY)
    ledger.adopt("log", lambda: mount.unmount(str(full)))
    assert mount.is_mounted(str(plugin.set_up(POD, volume())))
    plugin.tear_down(POD, "data")


def test_a_driver_that_cannot_even_be_made_is_a_failure(ledger: Ledger) -> None:
    node = Node(ledger)
    body = MINE.replace(
        "    options = Options\n", "    options = Options\n    def __init__(self): raise OSError(28, 'full')\n"
    )
    with pytest.raises(NotFound):
        node.driver(python(body))
    assert "OSError" in node.log[0] and "full" in node.log[0]


def test_an_installation_that_is_broken_says_so_in_json(ledger: Ledger) -> None:
    directory = ledger.directory()
    (directory / "nodeplug").mkdir()
    broken = directory / "tmpfs"
    broken.write_text((CHECKOUT / "bin/nodeplug-flexvolume").read_text())
    broken.chmod(0o755)
    done = run([broken, "mount", "/nowhere", '{"kubernetes.io/secret/k": "b3BlbiBzZXNhbWU="}'], env={})
    assert done.code == 0 and done.stderr == b""
    assert (
        done.json()["message"] == "nodeplug cannot run here: ModuleNotFoundError: No module named 'nodeplug.flexvolume'"
    )
