"""What the worker shows of itself, where the settings ask for it; and the unit it is started by."""

from __future__ import annotations

import configparser
import http.client
import re
import socket
from pathlib import Path

from nodeplug.worker.settings import ChoresSettings, CollectSettings, HealthSettings, LogSettings, WorkerSettings
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.worker.node import LOOPBACK, Node

UNIT = CHECKOUT / "systemd" / "nodeplugd.service"


class Local(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def fetch(path: Path, page: str) -> tuple[int, str]:
    connection = Local(path)
    try:
        connection.request("GET", page)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def value(page: str, name: str, **labels: str) -> float:
    for line in page.splitlines():
        if line.startswith(name) and all(f'{key}="{text}"' in line for key, text in labels.items()):
            return float(line.rpartition(" ")[2])
    return 0.0


@needs("sandbox", "program:cc")
def test_calls_are_counted_by_their_outcome_and_refusals_by_their_reason(ledger: Ledger) -> None:
    node = Node(ledger)
    pages = node.directory / "health.sock"
    node.configure(f'[worker.health]\nlisten = "{pages}"')
    node.start()
    until(pages.exists, "its pages are served")  # which come after its sockets
    pod = ledger.netns()
    node.call("ADD", LOOPBACK, pod).ok()
    assert node.call("ADD", {**LOOPBACK, "cniVersion": "9.9.9"}, pod).code == 1
    assert node.call("ADD", LOOPBACK, pod, netns=pod.path).code == 1  # run by the launcher, and refused there
    with socket.socket(socket.AF_UNIX) as nonsense:
        nonsense.connect(str(node.socket))
        nonsense.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        nonsense.settimeout(10)
        try:
            assert nonsense.recv(1) == b""
        except ConnectionResetError:
            pass
    until(pages.exists, "the pages are served")
    until(lambda: value(fetch(pages, "/metrics")[1], "nodeplug_worker_refused_total", why="malformed") == 1, "counted")
    page = fetch(pages, "/metrics")[1]
    for outcome in ("ok", "error", "foreign"):
        assert value(page, "nodeplug_worker_requests_total", contract="cni", outcome=outcome) == 1, outcome
    assert value(page, "nodeplug_worker_seconds_count", contract="cni") == 3
    assert value(page, "nodeplug_worker_seconds_bucket", le="+Inf") == 3
    assert "nodeplug_build_info" in page
    assert fetch(pages, "/readyz")[0] == 200
    assert node.stop() == 0


@needs("sandbox", "program:cc")
def test_without_being_asked_it_shows_nothing_and_loads_nothing_for_it(ledger: Ledger) -> None:
    node = Node(ledger)
    process = node.start()
    listening = run(["ss", "-xlH"]).text + run(["ss", "-tlH"]).text
    assert [line for line in listening.splitlines() if str(node.directory) in line or "tcp" in line] == [
        line for line in listening.splitlines() if str(node.socket.parent) in line
    ]
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "grpc" not in mapped and "prometheus" not in mapped
    assert node.stop() == 0


def test_the_unit_gives_it_no_mount_namespace_and_leaves_proc_sys_alone() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    unit.read(UNIT)
    service = set(unit["Service"])
    makes_one = re.compile(
        r"Private(Tmp|Devices|Mounts|Users|Network|IPC)|Protect\w+|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths"
        r"|TemporaryFileSystem|Bind(ReadOnly)?Paths|Root(Directory|Image)|MountAPIVFS|DynamicUser|JoinsNamespaceOf"
        r"|MountFlags|ExtensionImages|NetworkNamespacePath|(State|Cache|Logs|Configuration)Directory|LoadCredential"
    )
    assert not [option for option in service if makes_one.fullmatch(option)]
    assert unit["Service"]["Type"] == "notify"
    assert {"WatchdogSec", "ExecReload", "TimeoutStopSec"} <= service
    assert float(unit["Service"]["TimeoutStopSec"]) > WorkerSettings().drain


def test_the_page_has_every_setting() -> None:
    page = (CHECKOUT / "docs" / "worker.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    told = {
        name
        for line in page.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z._]+)`", line.split("|")[1])
    }
    parts = {"health": HealthSettings, "log": LogSettings, "collect": CollectSettings, "chores": ChoresSettings}
    wanted = {name for name in WorkerSettings._keys if name not in parts}
    wanted |= {f"{part}.{name}" for part, settings in parts.items() for name in settings._keys}
    assert told == wanted
