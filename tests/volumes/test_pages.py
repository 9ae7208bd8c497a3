"""The pages of docs/volumes: tables as the code has them, and pods whose volumes are published as they stand."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeplug.core import config, document
from nodeplug.core.secret import Secret
from nodeplug.volumes.contract import Pod, Request
from nodeplug.volumes.policy import Policy
from nodeplug.volumes.service import Service, implementation
from tests.examples import ROOT, examples
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import Place

PAGES = ["bind", "loop", "overlay", "secret", "tmpfs"]


@pytest.mark.parametrize("driver", PAGES)
def test_the_page_has_every_option(driver: str) -> None:
    table = document.reference(implementation(driver).options).strip()
    assert table in (ROOT / "docs" / "volumes" / f"{driver}.md").read_text(), (
        f"docs/volumes/{driver}.md lacks:\n{table}"
    )


def test_the_page_has_every_setting() -> None:
    table = document.reference(Policy, "volumes").strip()
    assert table in (ROOT / "docs" / "volumes" / "README.md").read_text(), f"docs/volumes/README.md lacks:\n{table}"


def test_the_settings_of_the_pages_are_valid() -> None:
    for page in ["README", *PAGES]:
        for name, text in examples(f"volumes/{page}.md").items():
            if name.endswith(".toml"):
                assert config.section(Policy, tomllib.loads(text), "volumes", page).allow


@needs("sandbox", "loop", "overlay")
@pytest.mark.parametrize("driver", PAGES)
def test_the_pages_pod_gets_its_volume(driver: str, ledger: Ledger) -> None:
    found = examples(f"volumes/{driver}.md")
    manifest = yaml.safe_load(found["pod.yaml"])
    policy = config.section(Policy, tomllib.loads(found.get("nodeplug.toml", "")), "volumes", driver)
    place = Place(ledger)
    (volume,) = manifest["spec"]["volumes"]
    flex = volume["flexVolume"]
    assert flex["driver"] == f"nodeplug.dev/{driver}"
    pod = Pod(
        namespace=manifest["metadata"]["namespace"],
        name=manifest["metadata"]["name"],
        uid="uid",
        service_account=manifest["spec"].get("serviceAccountName", "default"),
    )
    request = Request(
        driver=driver,
        volume=volume["name"],
        target=place.target(driver, volume["name"], pod),
        options=document.decode(implementation(driver).options, flex["options"]),
        read_only=flex.get("readOnly", False),
        fs_group=manifest["spec"].get("securityContext", {}).get("fsGroup"),
        fs_type=flex.get("fsType", ""),
        pod=pod,
        secrets=secrets_of(found),
    )
    service = Service(policy.replace(loop=place.policy.loop))
    service.publish(request)
    at = Path(request.target)
    assert service.health(request.target).ok
    if driver == "secret":
        assert sorted(name for name in os.listdir(at) if not name.startswith("..")) == ["password", "user"]
        assert (at / "password").read_text() == "correct horse battery staple"
    elif not request.read_only:
        (at / "mine").touch()
    service.unpublish(request.target)
    assert place.remains() == []


def secrets_of(found: dict[str, str]) -> dict[str, Secret] | None:
    if "secret.yaml" not in found:
        return None
    secret: dict[str, Any] = yaml.safe_load(found["secret.yaml"])
    assert secret["type"] == "nodeplug.dev/secret", "the kubelet gives a driver secrets of its own type only"
    return {name: Secret(value) for name, value in secret["stringData"].items()}
