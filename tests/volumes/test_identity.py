"""The volume `identity`: what a pod finds in it, who may have it, and what is left of it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from nodeplug.core import document
from nodeplug.core.errors import ConfigInvalid, PermissionRefused, Refused, Unavailable
from nodeplug.kernel import mount
from nodeplug.volumes import state
from nodeplug.volumes.contract import Pod
from nodeplug.volumes.identity import certificates, notes
from nodeplug.volumes.identity.layouts import CREDENTIAL, LAYOUTS, TRUST_BUNDLE
from nodeplug.volumes.identity.volume import IdentityOptions
from nodeplug.volumes.policy import Policy
from nodeplug.volumes.service import Service
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.authorities import DOMAIN
from tests.volumes.identities import DB, WEB, Node
from tests.volumes.test_certificates import verified

pytestmark = needs("sandbox", "program:openssl")

BUNDLE = DOMAIN + TRUST_BUNDLE


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


def names(path: Path) -> set[str]:
    return {each.name for each in path.iterdir() if not each.name.startswith("..")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_its_names_and_the_credential_folder_of_spiffe(node: Node, layout: str) -> None:
    path = node.publish(layout=layout)
    assert names(path) == {CREDENTIAL, BUNDLE, *(LAYOUTS[layout] or ())}
    chain, key, roots = LAYOUTS[layout] or (CREDENTIAL, CREDENTIAL, BUNDLE)
    if LAYOUTS[layout]:
        assert (path / key).read_text() + (path / chain).read_text() == (path / CREDENTIAL).read_text()
        assert (path / roots).read_text() == (path / BUNDLE).read_text()
    certificate = node.top / "chain"
    certificate.write_text((path / chain).read_text())
    verified(path / roots, certificate, at=node.now).ok()


def test_the_credential_bundle_is_what_spiffes_filesystem_delivery_says(node: Node) -> None:
    """Section 2.1: PKCS#8 key first, then the chain in order without the root, and nothing in between."""
    path = node.publish()
    blocks = re.compile(r"-----BEGIN ([A-Z ]+)-----\n(?:[A-Za-z0-9+/=]+\n)+-----END \1-----\n")
    credential, bundle = (path / CREDENTIAL).read_text(), (path / BUNDLE).read_text()
    assert blocks.sub("", credential) == blocks.sub("", bundle) == ""
    assert [each[1] for each in blocks.finditer(credential)] == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    leaf, authority = certificates.read(credential)
    assert certificates.is_signed_by(leaf, authority)
    roots = certificates.read(bundle)
    assert all(each.is_self_signed for each in roots)
    assert not authority.is_self_signed


def test_the_name_is_that_of_namespace_and_service_account(node: Node) -> None:
    node.publish()
    node.publish(DB)
    assert node.note().name == "spiffe://example.org/ns/shop/sa/web"
    assert node.note(DB).name == "spiffe://example.org/ns/shop/sa/db"


def test_it_is_in_memory_and_the_pod_cannot_change_it(node: Node) -> None:
    path = node.publish()
    found = mount.find(str(path))
    assert found is not None
    assert found.fstype in ("tmpfs", "ramfs")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(found.options)
    if found.fstype == "tmpfs":
        assert "noswap" in found.super_options
    with pytest.raises(OSError, match="Read-only"):
        (path / "mine").write_text("")


def test_the_key_is_its_owners_alone_and_the_rest_everyones(node: Node) -> None:
    path = node.publish(layout="tls", uid="1000", gid="2000")
    for name, mode in (("tls.key", 0o400), (CREDENTIAL, 0o400), ("tls.crt", 0o444), ("ca.crt", 0o444)):
        status = (path / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, 1000, 2000)


def test_a_pods_group_may_read_the_key(node: Node) -> None:
    path = node.publish(layout="tls", fs_group=3000)
    status = (path / "tls.key").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o440, 3000)


def test_the_hosts_certificates_come_along_where_they_are_asked_for(node: Node, ledger: Ledger) -> None:
    host = ledger.directory() / "host.pem"
    corporate = Node(ledger).publish(DB)
    host.write_text("# of the company\n" + (corporate / BUNDLE).read_text())
    other = Node(ledger, host_certificates=str(host))
    path = other.publish(systemBundle="true")
    found = certificates.read((path / "ca-certificates.crt").read_text())
    expected = certificates.read(host.read_text() + (path / BUNDLE).read_text())
    assert [each.id for each in found] == [each.id for each in expected]
    assert "ca-certificates.crt" not in names(node.publish())


def test_a_host_without_certificates_is_told_before_the_pod_starts(ledger: Ledger) -> None:
    node = Node(ledger, host_certificates="/nowhere/certs.pem")
    with pytest.raises(Unavailable, match="host_certificates"):
        node.publish(systemBundle="true")
    assert not mount.is_mounted(str(node.target()))
    assert state.ids() == notes.ids() == []


class TestRefused:
    """Who gets none, and what is said."""

    def test_without_a_rule_the_lines_that_would_allow_it_are_told(self, node: Node) -> None:
        service = Service(document.decode(Policy, {"identity": node.settings["volumes"]["identity"]}))
        with pytest.raises(PermissionRefused) as caught:
            service.publish(node.request())
        for line in ("[[volumes.allow]]", 'driver = "identity"', 'namespaces = ["shop"]', 'service_accounts = ["web"]'):
            assert line in caught.value.hint

    def test_without_an_authority_the_command_is_told(self, ledger: Ledger) -> None:
        node = Node(ledger)
        settings = {**node.settings["volumes"], "identity": {"directory": str(node.top / "none")}}
        with pytest.raises(Unavailable, match="nodeplug identity init --trust-domain"):
            Service(document.decode(Policy, settings)).publish(node.request())

    @pytest.mark.parametrize("uid", ["", "another", DB.uid, f"../{WEB.uid}"])
    def test_another_pods_name_is_not_taken(self, node: Node, uid: str) -> None:
        """Options that a pod's author writes may come after the kubelet's and take their place."""
        forged = node.request().replace(pod=WEB.replace(uid=uid, namespace="kube-system"))
        with pytest.raises(ConfigInvalid, match="options must not name another"):
            node.service.publish(forged)

    @pytest.mark.parametrize("pod", [{"namespace": ""}, {"namespace": "a/b"}, {"service_account": "../admin"}])
    def test_a_name_that_is_none_is_refused(self, node: Node, pod: dict[str, str]) -> None:
        with pytest.raises(ConfigInvalid, match="cannot be an identity"):
            node.service.publish(node.request().replace(pod=WEB.replace(**pod)))

    def test_a_longer_life_than_the_node_gives(self, ledger: Ledger) -> None:
        with pytest.raises(PermissionRefused, match="1800 s at most"):
            Node(ledger, longest="30m").publish(ttl="1h")

    @pytest.mark.parametrize(
        "options",
        [{"ttl": "9m"}, {"ttl": "25h"}, {"layout": "pem"}, {"keyType": "RSA1024"}, {"trustDomain": "evil.org"}],
    )
    def test_options_that_are_none(self, options: dict[str, str]) -> None:
        with pytest.raises(ConfigInvalid):
            document.decode(IdentityOptions, options)


def test_the_same_again_changes_nothing_while_nothing_is_due(node: Node) -> None:
    path = node.publish()
    before = (path / CREDENTIAL).read_bytes()
    node.publish()
    assert (path / CREDENTIAL).read_bytes() == before


def test_the_same_again_replaces_what_is_overdue_though_no_nodeplugd_runs(node: Node) -> None:
    path = node.publish()
    before = (path / CREDENTIAL).read_bytes()
    notes.write(node.note().replace(renew=1))
    node.publish()
    assert (path / CREDENTIAL).read_bytes() != before
    assert node.note().renew > node.now


def test_other_options_on_a_live_volume_are_refused(node: Node) -> None:
    node.publish()
    with pytest.raises(Refused, match="unpublished first"):
        node.publish(layout="tls")


def test_nothing_is_left_and_the_key_is_overwritten_when_the_volume_goes(node: Node) -> None:
    path = node.publish(layout="tls")
    with (path / "tls.key").open("rb", 0) as held, (path / CREDENTIAL).open("rb", 0) as both:
        assert held.read(10) == b"-----BEGIN"
        node.service.unpublish(str(path))
        held.seek(0)
        assert set(held.read()) == {0}
        assert set(both.read()) == {0}
    assert not mount.is_mounted(str(path))
    assert state.ids() == notes.ids() == []
    assert node.service.collect(apply=False) == ()
    node.service.unpublish(str(path))


def test_no_secret_is_in_state_notes_log_or_messages(node: Node) -> None:
    path = node.publish(layout="tls")
    secret = (path / "tls.key").read_text().splitlines()[1]
    ours = [Path("/run/nodeplug"), node.top]
    found = [file for top in ours for file in top.rglob("*") if file.is_file() and not file.is_relative_to(path)]
    assert len(found) > 4
    for file in found:
        assert secret not in file.read_text(errors="replace"), file
    assert secret not in repr(node.service.published()) + "".join(node.warnings)


def test_health_says_that_nobody_replaces_the_certificate(node: Node) -> None:
    path = str(node.publish())
    assert "nodeplugd does not run" in node.service.health(path).reason
    assert any("nobody replaces the certificate" in warning for warning in node.warnings)
    notes.write(node.note().replace(not_after=1, error="the disk is full"))
    assert node.service.health(path).reason == "its certificate has expired: the disk is full"


def test_many_pods_have_each_their_own(node: Node) -> None:
    pods = [Pod(namespace="shop", name=f"p-{n}", uid=f"uid-{n}", service_account=f"sa-{n % 3}") for n in range(20)]
    keys = set()
    for pod in pods:
        path = node.publish(pod)
        keys.add((path / CREDENTIAL).read_bytes())
        assert node.note(pod).name.endswith(f"/sa-{pods.index(pod) % 3}")
    assert len(keys) == 20
    assert len((node.top / "issued.jsonl").read_text().splitlines()) == 20
    for pod in pods:
        node.service.unpublish(str(node.target(pod)))
    assert os.listdir(notes.DIRECTORY) == []
