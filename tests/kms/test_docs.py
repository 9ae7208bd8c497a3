"""docs/kms.md: every example in it runs, every step of it works on nodes, every setting stands in it."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from nodeplug.core import document
from nodeplug.harness.apiserver.client import V2
from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer
from nodeplug.kms import settings
from nodeplug.kms.providers import table
from tests.child import Finished, run, until
from tests.examples import ROOT, examples
from tests.kms.node import COMMAND, Node
from tests.ledger import Ledger
from tests.needs import needs

PAGE = "kms.md"


class Operator:
    """Runs the page's shell examples on a node: /root is the node's directory, `nodeplug` knows its settings."""

    def __init__(self, node: Node, etcd: Etcd | None = None) -> None:
        self.node = node
        bin_ = node.directory / "bin"
        bin_.mkdir()
        (bin_ / "nodeplug").write_text(
            f'#!/bin/sh\nverb=$2; shift 2\nexec {sys.executable} -I {COMMAND} kms "$verb" --config {node.config} "$@"\n'
        )
        (bin_ / "etcdctl").write_text(f"#!/bin/sh\nexec cat {node.directory}/dump.json\n")
        for program in bin_.iterdir():
            program.chmod(0o755)
        self.etcd = etcd

    def run(self, name: str, **variables: str) -> Finished:
        if self.etcd is not None:
            (self.node.directory / "dump.json").write_bytes(self.etcd.dump())
        text = examples(PAGE)[name].replace("/root/", f"{self.node.directory}/")
        path = f"{self.node.directory}/bin:{os.environ['PATH']}"
        command = ["sh", "-euc", f"exec </dev/null\n{text}"]
        return run(command, env={**os.environ, "PATH": path, **variables})

    def carry(self, other: Operator, *names: str) -> None:
        for name in names:
            target = other.node.directory / name
            target.write_bytes((self.node.directory / name).read_bytes())
            target.chmod(0o600)


def test_the_settings_of_a_new_cluster_and_the_api_server_s_fit_together() -> None:
    found = examples(PAGE)
    kms = document.decode(settings.KmsSettings, tomllib.loads(found["kms.toml"])["kms"])
    provider, _ = settings.provider_settings(kms, "kms.toml")
    assert provider.__name__ == "Local"
    for entry in yaml.safe_load(found["encryption.yaml"])["resources"][0]["providers"]:
        if "kms" in entry:
            assert entry["kms"]["endpoint"] == f"unix://{kms.socket}"
            assert entry["kms"]["apiVersion"] == "v2"


@pytest.mark.parametrize("name", ["pkcs11.toml", "vault.toml", "aws.toml"])
def test_the_settings_of_each_remote_provider_are_valid(name: str) -> None:
    keys = tomllib.loads(examples(PAGE)[name])["kms"]["provider"]
    kind = keys.pop("type")
    document.decode(table.find(kind).Settings, keys)


def test_every_setting_stands_on_the_page_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / PAGE).read_text()
    rows = set(page.splitlines())
    for record in (settings.KmsSettings, *(table.find(kind).Settings for kind in table.TYPES)):
        for line in document.reference(record).splitlines():
            assert line in rows or not line.startswith("| `"), f"docs/kms.md lacks: {line}"


def test_the_example_provider_serves_an_api_server(ledger: Ledger) -> None:
    node = Node(ledger, provider="")
    node.config.write_text(re.sub(r"\[kms.provider\].*", "[kms.provider]\n", node.config.read_text(), flags=re.DOTALL))
    script = node.directory / "shift"
    script.write_text(examples(PAGE)["shift"])
    process = ledger.start(
        [sys.executable, str(script), "--config", str(node.config)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    until(lambda: node.answers() or not process.running(), "the socket answers", timeout=20)
    api = ApiServer(str(node.socket), Etcd(), clock=Clock(speed=60.0))
    ledger.adopt("API server", api.stop)
    api.start()
    assert api.failures == []
    api.write("/registry/x", b"x")
    api.restart()
    assert api.read("/registry/x") == b"x"


def test_an_example_provider_is_found_by_its_name_too(ledger: Ledger) -> None:
    node = Node(ledger, provider='type = "shift_example:Shift"\n')
    (node.directory / "shift_example.py").write_text(examples(PAGE)["shift"])
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{node.directory}"}
    script = "from nodeplug.kms.main import main; main()"
    process = ledger.start([sys.executable, "-c", script, "--config", str(node.config)], env=environ)
    until(lambda: node.answers() or not process.running(), "the socket answers", timeout=20)
    client = V2(str(node.socket))
    ledger.adopt("client", client.close)
    assert client.status().key_id == "shift-1"


def test_a_backup_of_one_node_restores_it(ledger: Ledger, node: Node) -> None:
    operator = Operator(node)
    operator.run("backup.sh").ok()
    fresh = Node(ledger)
    other = Operator(fresh)
    operator.carry(other, "kms-passphrase", "kms-backup.json")
    (fresh.directory / "kms-2.json").write_bytes((fresh.directory / "kms-backup.json").read_bytes())
    other.run("lost-one.sh").ok()
    assert fresh.ring().fingerprint == node.ring().fingerprint


def test_a_rotation_on_three_nodes_step_by_step(ledger: Ledger) -> None:
    etcd = Etcd()
    nodes = [Node(ledger) for _ in range(3)]
    operators = [Operator(node, etcd) for node in nodes]
    first, others = operators[0], operators[1:]
    first.run("several-cp1.sh").ok()
    for other in others:
        first.carry(other, "kms-passphrase", "kms-1.json")
        other.run("several-others.sh").ok()
    apis = []
    for node in nodes:
        node.start()
        api = ApiServer(str(node.socket), etcd, clock=Clock(speed=60.0))
        ledger.adopt("API server", api.stop)
        api.start()
        apis.append(api)
    for number, api in enumerate(apis):
        api.write(f"/registry/secrets/a/{number}", b"x")
    old = nodes[0].active()

    first.run("rotate-1-cp1.sh").ok()
    for other in others:
        first.carry(other, "kms-2.json")
        other.run("rotate-2-others.sh").ok()
    shown = {
        match.group(1)
        for operator in operators
        if (match := re.search(r"fingerprint +(\S+)", operator.node.kms("status").ok().text))
    }
    assert len(shown) == 1
    for operator in operators:
        operator.run("rotate-3-all.sh", FINGERPRINT=next(iter(shown))).ok()
    new = nodes[0].active()
    until(lambda: all(api.key_id == new for api in apis), "all API servers use the new key", timeout=20)
    apis[0].migrate()
    assert f"{old} decrypt-only 0" in " ".join(first.run("verify.sh").ok().text.split())

    early = first.run("rotate-5-all.sh", OLD=old, NEW=new)
    assert b"take a dump in" in early.stderr
    # An hour later: the ring's own times are moved, not the clock.
    for node in nodes:
        _age(node, 3700)
    for operator in operators:
        operator.run("rotate-5-all.sh", OLD=old, NEW=new).ok()
    for api in apis:
        api.restart()
        assert len(api.read_all()) == 3

    # One node loses its ring.
    lost = nodes[1]
    lost.kill()
    for name in lost.keyring.parent.iterdir():
        name.unlink()
    operators[1].run("lost-one.sh").ok()
    assert lost.ring().fingerprint == nodes[0].ring().fingerprint


def _age(node: Node, seconds: int) -> None:
    from dataclasses import replace

    from nodeplug.kms.keyring.ring import Standing
    from nodeplug.kms.keyring.store import Opened

    store = node.store()
    with store.lock():
        opened = store.load()
        aged = {n: Standing(item.state, item.since - seconds) for n, item in opened.ring.standings.items()}
        store.save(Opened(replace(opened.ring, standings=aged), opened.ring_key))


def test_a_ring_put_back_from_a_backup_goes_on_as_the_page_says(node: Node) -> None:
    operator = Operator(node)
    backup = node.keyring.read_bytes()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    node.keyring.write_bytes(backup)
    assert node.kms("status").code == 1
    operator.run("restored.sh").ok()
    assert node.active().split("-")[2] == "3"


def test_the_units_and_the_manifest_agree_with_the_settings(directory: Path) -> None:
    service = (ROOT / "systemd" / "nodeplug-kms.service").read_text()
    listener = (ROOT / "systemd" / "nodeplug-kms.socket").read_text()
    assert f"ListenStream={settings.SOCKET}\n" in listener
    assert f"--config {settings.CONFIG}\n" in service
    for unit in (service, listener):
        assert "Before=kubelet.service" in unit
    pod = yaml.safe_load((ROOT / "deploy" / "kms" / "static-pod.yaml").read_text())
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["nodeplug-kms", "--config", settings.CONFIG]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        os.path.dirname(settings.CONFIG),
        os.path.dirname(settings.SOCKET),
        "/var/lib/nodeplug/kms",
    }


@needs("sandbox", "program:systemd-analyze")
def test_systemd_reads_the_units(directory: Path) -> None:
    for name in ("nodeplug-kms.service", "nodeplug-kms.socket"):
        text = (ROOT / "systemd" / name).read_text().replace("/opt/nodeplug/bin/nodeplug-kms", "/bin/true")
        (directory / name).write_text(text)
    done = run(["systemd-analyze", "verify", str(directory / "nodeplug-kms.service")])
    Path("/run/systemd/systemd-units-load").unlink(missing_ok=True)  # left by systemd-analyze
    assert done.code == 0, done.stderr
    assert done.stderr == b""
