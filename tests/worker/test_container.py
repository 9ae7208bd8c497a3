"""deploy/cni and deploy/image: the manifests say what the worker needs, and the pod's script works on a bare host."""

from __future__ import annotations

import re
import signal
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeplug.core import paths
from nodeplug.core.config import section
from nodeplug.worker.settings import WorkerSettings
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import Space
from tests.worker.host import ENTRY, PLUGINS, BareHost, Container
from tests.worker.node import code

DEPLOY = CHECKOUT / "deploy"
CONTAINERFILE = (DEPLOY / "image" / "Containerfile").read_text()
SETTINGS = (DEPLOY / "cni" / "nodeplug.toml").read_text()
BRIDGE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "bridge",
    "bridge": "br-host",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/16"},
}
FOREIGN = """#!/bin/sh
echo "$CNI_COMMAND" >> /var/log/foreign
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.7.7/16", "gateway": "10.9.0.1"}]}'
fi
if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'; fi
"""
OLD = '#!/bin/sh\necho "{\\"code\\": 99, \\"msg\\": \\"old $CNI_COMMAND\\"}"; exit 1\n'

bare = needs("sandbox", "program:cc", "program:nft", "file:/bin/busybox")


def manifest(name: str = "daemonset.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "cni" / name).read_text())
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifest()["spec"]["template"]["spec"]
    return found


def settings() -> WorkerSettings:
    found: WorkerSettings = section(WorkerSettings, tomllib.loads(SETTINGS), "worker", "nodeplug.toml")
    return found


def test_the_daemonset_has_one_worker_on_each_node_before_any_pod_has_a_network() -> None:
    update = manifest()["spec"]["updateStrategy"]
    assert update == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert pod()["priorityClassName"] == "system-node-critical"
    assert (pod()["hostNetwork"], pod()["hostPID"]) == (True, True)
    assert {"operator": "Exists"} in pod()["tolerations"]
    assert pod()["automountServiceAccountToken"] is False
    (container,) = pod()["containers"]
    assert container["securityContext"]["privileged"] is True
    labels = manifest()["spec"]["template"]["metadata"]["labels"]
    assert manifest()["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_what_the_manifest_says_and_what_the_settings_say_is_the_same() -> None:
    (container,) = pod()["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["NODEPLUG_HOST"] == settings().host == "/proc/1"
    address, _, port = settings().health.listen.rpartition(":")
    for probe in ("livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["host"], asked["port"]) == (address, int(port))
    assert pod()["terminationGracePeriodSeconds"] > settings().drain
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted["settings"] == paths.ETC
    assert set(mounted) == {volume["name"] for volume in pod()["volumes"]}
    (config,) = manifest("kustomization.yaml")["configMapGenerator"]
    (volume,) = (volume for volume in pod()["volumes"] if volume["name"] == "settings")
    assert volume["configMap"]["name"] == config["name"]
    for name in (*manifest("kustomization.yaml")["resources"], *config["files"]):
        assert (DEPLOY / "cni" / name).is_file()


def test_the_script_reads_the_variables_that_the_manifest_sets() -> None:
    (container,) = pod()["containers"]
    read = set(re.findall(r"\$\{(NODEPLUG_\w+)", ENTRY.read_text()))
    assert {entry["name"] for entry in container["env"]} <= read
    assert set(re.findall(r"^#   (NODEPLUG_\w+)", ENTRY.read_text(), re.MULTILINE)) == read
    assert container["command"] == [ENTRY.name]


def test_the_image_is_made_of_what_there_is_and_has_what_the_manifests_run() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE):
        for source in sources.split():
            assert (CHECKOUT / source).exists(), source
    assert f"COPY deploy/image/{ENTRY.name} /opt/nodeplug/bin/{ENTRY.name}" in CONTAINERFILE
    assert "ENV PATH=/opt/nodeplug/bin:" in CONTAINERFILE
    assert ENTRY.stat().st_mode & 0o111
    inside = {path.name for path in (CHECKOUT / "bin").iterdir()} | {ENTRY.name}
    images = set()
    for file in DEPLOY.rglob("*.yaml"):
        for image, program in re.findall(r'image: (\S+)\n.*\n +command: \["([^"]+)"', file.read_text()):
            images.add(image)
            assert program in inside, file
    assert len(images) == 1 and f"-t {images.pop()} " in CONTAINERFILE


@pytest.fixture
def host(ledger: Ledger) -> BareHost:
    return BareHost(ledger)


@pytest.fixture
def container(ledger: Ledger, host: BareHost) -> Container:
    text = SETTINGS.replace('"/proc/1"', f'"{host.process}"')
    return Container(ledger, host, text + "\n[worker.collect]\nenabled = false\n")


def socket(host: BareHost) -> Path:
    return host.path("/run/nodeplug/worker/cni.sock")


def serve(container: Container, **more: str) -> None:
    process = container.start(**more)
    until(lambda: socket(container.host).exists() or not process.running(), "the worker is on the host", timeout=60)
    assert process.running(), process.output()


def stop(container: Container) -> None:
    assert container.process is not None
    container.process.signal(signal.SIGTERM)
    assert container.process.wait() == 0


def status_of(host: BareHost, path: str) -> int:
    """The HTTP status of a page, asked for on the host as the kubelet does; 0 while nobody serves it."""

    def ask() -> int:
        try:
            with urllib.request.urlopen(f"http://{settings().health.listen}{path}", timeout=5) as answer:
                return int(answer.status)
        except OSError:
            return 0

    return host.space.call(ask)


@bare
def test_pods_of_a_host_without_python_get_their_network_from_the_container(
    container: Container, host: BareHost, ledger: Ledger
) -> None:
    one, other = ledger.netns(), ledger.netns()
    serve(container)
    assert {"bridge", "portmap", "host-local"} <= {path.name for path in host.path(PLUGINS).iterdir()}
    assert not host.path(f"{PLUGINS}/.nodeplug/exec").is_symlink()
    assert {path.name for path in host.path(f"{PLUGINS}/.nodeplug/lib").iterdir()} == {"shim"}
    for path in ("/livez", "/readyz"):
        until(lambda path=path: status_of(host, path) == 200, f"{path} is well")  # type: ignore[misc]  # bound now

    # Leases, links, rules and logs are the host's.
    result = host.call("ADD", BRIDGE, one).ok().json()
    assert result["ips"][0]["address"] == "10.9.0.2/16"
    assert host.path("/var/lib/cni/networks/pods/10.9.0.2").exists()
    assert {"br-host", "lo"} < host.space.links()
    assert "10.9.0.2" in host.space.run("nft", "list", "table", "inet", "nodeplug").ok().text
    assert host.path(f"{paths.LOG}/cni.log").exists()
    assert host.call("CHECK", {**BRIDGE, "prevResult": result}, one).code == 0

    # So are address managers of others, which run on its root.
    host.write(f"{PLUGINS}/foreign", FOREIGN)
    foreign = {**BRIDGE, "ipam": {"type": "foreign"}}
    assert host.call("ADD", foreign, other).ok().json()["ips"][0]["address"] == "10.9.7.7/16"
    assert host.call("DEL", foreign, other).code == 0
    assert host.path("/var/log/foreign").read_text().split() == ["ADD", "DEL"]
    assert host.call("DEL", BRIDGE, one).code == 0
    assert not host.path("/var/lib/cni/networks/pods/10.9.0.2").exists()
    assert host.space.links() == {"lo", "br-host"}
    stop(container)


@bare
def test_while_the_container_is_away_nothing_is_said_to_be_done_and_what_was_asked_is_done_after(
    container: Container, host: BareHost, ledger: Ledger
) -> None:
    pod, other = ledger.netns(), ledger.netns()
    serve(container)
    result = host.call("ADD", BRIDGE, pod).ok().json()
    stop(container)
    assert not socket(host).exists()
    for command in ("ADD", "CHECK", "GC"):
        config = {**BRIDGE, "prevResult": result, "cni.dev/valid-attachments": []}
        assert code(host.call(command, config, pod if command == "CHECK" else other)) == 11, command
    assert code(host.call("STATUS", BRIDGE, other)) == 50
    began = time.monotonic()
    assert code(host.call("DEL", BRIDGE, pod)) == 11
    assert time.monotonic() - began > 9
    assert host.path("/var/lib/cni/networks/pods/10.9.0.2").exists()
    serve(container)
    assert container.process is not None and "current" in container.process.output()
    assert host.call("DEL", BRIDGE, pod).code == 0
    assert not host.path("/var/lib/cni/networks/pods/10.9.0.2").exists()
    stop(container)


@bare
def test_foreign_plugins_are_put_aside_when_that_is_asked_for_and_come_back_with_the_last_pod(
    container: Container, host: BareHost, ledger: Ledger
) -> None:
    pod: Space = ledger.netns()
    host.write(f"{PLUGINS}/bridge", OLD)
    refused = container.start()
    assert refused.wait() == 1
    assert "files that are not nodeplug's: bridge" in refused.output()
    serve(container, NODEPLUG_REPLACE="yes", NODEPLUG_ONLY="bridge,host-local")
    assert {path.name for path in host.path(PLUGINS).iterdir()} == {".nodeplug", "bridge", "host-local"}
    result = host.call("ADD", BRIDGE, pod).ok().json()
    command = ("uninstall", "cni", "--host", host.process, "--dest", PLUGINS)
    said = container.nodeplug(*command)
    assert said.code == 1 and f"pods/{pod.name}/eth0 (bridge)" in said.stderr.decode()
    container.nodeplug(*command, "--drain").ok()
    assert host.call("ADD", BRIDGE, pod).json()["msg"] == "old ADD"
    assert host.call("DEL", {**BRIDGE, "prevResult": result}, pod).code == 0
    assert host.path(f"{PLUGINS}/bridge").read_text() == OLD
    container.nodeplug(*command).ok()
    assert {path.name for path in host.path(PLUGINS).iterdir()} == {"bridge"}
    stop(container)


@bare
def test_a_container_that_may_not_enter_the_host_says_what_it_needs(container: Container) -> None:
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "nodeplug"]
    done = run(
        [*command, "install", "cni", "--host", container.host.process, "--dest", PLUGINS], env=container.environ()
    )
    assert done.code == 1
    assert b"the container must be privileged" in done.stderr
    assert list(container.host.path(PLUGINS).iterdir()) == []
