"""docs/identity.md and docs/volumes/identity.md: the commands run in their order, tables are as the code has them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nodeplug.core import document, paths
from nodeplug.volumes.identity.layouts import CREDENTIAL, LAYOUTS, SYSTEM, TRUST_BUNDLE
from nodeplug.volumes.identity.volume import IdentityOptions
from tests.child import Finished, run
from tests.examples import ROOT, examples
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:openssl")

AUTHORITY = Path(paths.VAR, "ca")
PAGE = examples("identity.md")


def script(text: str, directory: Path) -> Finished:
    env = {**os.environ, "PATH": f"{ROOT / 'bin'}:{os.environ['PATH']}"}
    return run(["sh", "-ex"], stdin=text.encode(), cwd=directory, env=env)


@pytest.fixture
def place(ledger: Ledger) -> Path:
    ledger.adopt("authority", lambda: shutil.rmtree(AUTHORITY, ignore_errors=True))
    return ledger.directory()


def test_a_single_node_is_set_up_by_one_command(place: Path) -> None:
    done = script(PAGE["alone.sh"], place).ok()
    assert "lab.example.org" in done.text and "alone" in done.text
    again = script(PAGE["alone.sh"], place)
    assert again.code == 1
    assert b"nodeplug identity status" in again.stderr


def test_a_node_gets_its_authority_under_a_root_that_is_elsewhere(place: Path) -> None:
    for name in ("root.sh", "request.sh", "issue.sh", "accept.sh"):
        done = script(PAGE[name], place).ok()
    assert "node-a" in done.text
    pem, _, bundle = script(PAGE["bundle.sh"], place).ok().text.partition("{")
    assert pem.count("BEGIN CERTIFICATE") == 1
    assert len(json.loads("{" + bundle)["keys"]) == 1
    assert not list(AUTHORITY.glob("request.key"))
    assert "PRIVATE" not in (place / "node-a.pem").read_text()


def test_the_root_is_rolled_by_the_steps_of_the_page(place: Path) -> None:
    settings = Path(paths.ETC, "nodeplug.toml")
    for name in ("root.sh", "request.sh", "issue.sh", "accept.sh"):
        script(PAGE[name], place).ok()
    roll = "nodeplug identity roll-root --root ./root"
    script(
        f"{roll}\nnodeplug identity bundle --root ./root > roots.pem\nnodeplug identity accept roots.pem", place
    ).ok()
    early = script(roll, place)
    assert early.code == 75
    assert b"less than 24 hours" in early.stderr
    settings.write_text('[volumes.identity]\noverlap = "0s"\n')
    try:
        script(f"{roll}\n{PAGE['request.sh']}{PAGE['issue.sh']}{PAGE['accept.sh']}", place).ok()
        done = script(f"{roll} --all-nodes-changed", place).ok()
        drop = done.text.rsplit("nodeplug identity drop-root ", 1)[1].split()[0]
        assert "leaves the bundles at" in script(f"nodeplug identity drop-root {drop}", place).ok().text
    finally:
        settings.unlink()


def test_a_sealed_root_asks_for_its_passphrase(place: Path) -> None:
    (place / "pass").write_text("open sesame\n")
    (place / "pass").chmod(0o600)
    sealed = "nodeplug identity {} --root ./root --passphrase-file pass"
    script(sealed.format("init-root --trust-domain example.org"), place).ok()
    refused = script("nodeplug identity issue-node-ca --root ./root --node a --out a.pem", place)
    assert refused.code == 2
    assert b"sealed" in refused.stderr
    script(sealed.format("issue-node-ca --node a --out a.pem"), place).ok()
    assert (place / "a.pem").stat().st_mode & 0o777 == 0o600
    script("nodeplug identity accept a.pem && nodeplug identity status --json", place).ok()


@pytest.mark.parametrize("domain", ["Example.org", "a b", "", "x" * 256])
def test_a_trust_domain_that_is_none_is_refused(place: Path, domain: str) -> None:
    env = {**os.environ, "PATH": f"{ROOT / 'bin'}:{os.environ['PATH']}"}
    done = run(["nodeplug", "identity", "init", "--trust-domain", domain], env=env)
    assert done.code == 2
    assert b"--trust-domain" in done.stderr
    assert not AUTHORITY.exists()


def test_the_page_of_the_volume_has_every_option_and_every_file() -> None:
    page = (ROOT / "docs" / "volumes" / "identity.md").read_text()
    assert document.reference(IdentityOptions).strip() in page
    for names in LAYOUTS.values():
        for name in names or ():
            assert f"`{name}`" in page
    for name in (CREDENTIAL, TRUST_BUNDLE, SYSTEM):
        assert name in page
