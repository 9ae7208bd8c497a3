"""Certificates as others read them: openssl's own verification, and each rule of X509-SVID."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeplug.core.errors import ConfigInvalid, PermissionRefused, Refused, Unavailable
from nodeplug.core.secret import Secret
from nodeplug.volumes.identity import bundles, certificates, node, signing, spiffe
from nodeplug.volumes.identity.issuing import Ask, issue_here
from nodeplug.volumes.identity.operator import Operator
from nodeplug.volumes.identity.store import Store
from tests.child import Finished, run
from tests.needs import needs
from tests.volumes.authorities import DAY, DOMAIN, HOUR, Domain, written

pytestmark = needs("program:openssl")


def verified(roots: Path, chain: Path, *, at: int, purpose: str = "sslclient") -> Finished:
    """What openssl says of the first certificate in `chain`, the others being untrusted."""
    strict = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(at)]
    return run([*strict, "-CAfile", roots, "-untrusted", chain, chain])


@pytest.fixture
def domain(directory: Path) -> Domain:
    return Domain(directory)


@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
@pytest.mark.parametrize("key_type", ["ECDSAP256", "ECDSAP384", "ED25519", "RSA3072"])
def test_openssl_verifies_a_leaf_of_each_kind_for_both_sides(domain: Domain, key_type: str, purpose: str) -> None:
    made = domain.credential(domain.node("a"), key_type=key_type)
    _key, chain, roots = written(made, domain.directory / "pod")
    verified(roots, chain, at=domain.now, purpose=purpose).ok()


def test_a_leaf_is_what_the_specification_asks_for(domain: Domain) -> None:
    made = domain.credential(domain.node("a"))
    leaf, authority = x509.load_pem_x509_certificates(made.chain.encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier("spiffe://example.org/ns/shop/sa/web")]
    assert list(leaf.subject) == []
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.value.ca, basic.critical) == (False, True)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.crl_sign
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.issuer == authority.subject
    times = (leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())
    assert times == (domain.now - signing.BACKDATED, domain.now + HOUR)


def test_a_nodes_authority_is_bound_to_leaves_of_its_trust_domain(domain: Domain) -> None:
    store = domain.node("a")
    signer = store.load().signer
    assert signer is not None
    authority = x509.load_pem_x509_certificate(signer.pem.encode())
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.value.ca, basic.value.path_length, basic.critical) == (True, 0, True)
    limits = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert limits.value.permitted_subtrees == [x509.UniformResourceIdentifier(DOMAIN)]
    own = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(own) == [x509.UniformResourceIdentifier("spiffe://example.org")]
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature


def test_serial_numbers_are_of_128_random_bits_and_keys_are_new_each_time(domain: Domain) -> None:
    store = domain.node("a")
    made = [domain.credential(store) for _ in range(50)]
    serials = [int(each.serial, 16) for each in made]
    assert len(set(serials)) == 50
    assert max(serials).bit_length() > 120
    assert len({each.private_key.reveal() for each in made}) == 50
    assert len({certificates.read(each.chain)[0].key_id for each in made}) == 50


def test_openssl_refuses_a_leaf_of_another_trust_domain_though_the_node_signed_it(domain: Domain) -> None:
    """The name constraint stops even a node whose authority was stolen."""
    store = domain.node("a")
    signer = store.load().signer
    assert signer is not None
    (issuer,) = certificates.read(signer.pem)
    foreign = spiffe.parse("spiffe://other.org/ns/shop/sa/web")
    until = domain.now + HOUR
    made = signing.leaf(issuer, store.key(signer.key_id), name=foreign, kind="ECDSAP256", now=domain.now, until=until)
    chain, roots = domain.directory / "chain", domain.directory / "roots"
    chain.write_text(made.certificate.pem + signer.pem)
    roots.write_bytes(domain.roots())
    refused = verified(roots, chain, at=domain.now)
    assert refused.code != 0
    assert b"permitted subtree violation" in refused.stderr


def test_openssl_refuses_what_a_self_made_authority_signed(domain: Domain) -> None:
    mine = Domain(domain.directory / "mine", DOMAIN)
    made = mine.credential(mine.node("a"))
    _key, chain, _roots = written(made, domain.directory / "pod")
    roots = domain.directory / "roots"
    roots.write_bytes(domain.roots())
    assert b"unable to get local issuer certificate" in verified(roots, chain, at=domain.now).stderr


def test_openssl_refuses_an_authority_below_a_nodes(domain: Domain) -> None:
    store = domain.node("a")
    signer = store.load().signer
    assert signer is not None
    (issuer,) = certificates.read(signer.pem)
    key = signing.new_key("ECDSAP256")
    below = signing.node_authority(
        issuer,
        store.key(signer.key_id),
        signing.request(key, "below"),
        now=domain.now,
        seconds=DAY,
        constrained=True,
    )
    name = spiffe.parse("spiffe://example.org/a")
    leaf = signing.leaf(below, key, name=name, kind="ECDSAP256", now=domain.now, until=domain.now + HOUR)
    chain, roots = domain.directory / "chain", domain.directory / "roots"
    chain.write_text(leaf.certificate.pem + below.pem + signer.pem)
    roots.write_bytes(domain.roots())
    assert b"path length constraint exceeded" in verified(roots, chain, at=domain.now).stderr


def test_a_certificate_ends_by_the_clock_of_whoever_verifies_it(domain: Domain) -> None:
    """Expiry with a clock that stands: nothing here waits."""
    made = domain.credential(domain.node("a"), ttl=600)
    _key, chain, roots = written(made, domain.directory / "pod")
    verified(roots, chain, at=domain.now + 599).ok()
    assert b"certificate has expired" in verified(roots, chain, at=domain.now + 601).stderr
    verified(roots, chain, at=domain.now - 59).ok()
    assert b"not yet valid" in verified(roots, chain, at=domain.now - 61).stderr


def test_a_leaf_never_outlives_its_authority(domain: Domain) -> None:
    store = domain.node("a", days=1)
    domain.now += DAY - HOUR
    assert domain.credential(store, ttl=HOUR * 2).not_after == domain.now + HOUR
    domain.now += HOUR - 500
    with pytest.raises(Unavailable, match="nodeplug identity request"):
        domain.credential(store)


def test_a_trust_domain_can_do_without_name_constraints(domain: Domain) -> None:
    plain = Domain(domain.directory / "plain", constrained=False)
    made = plain.credential(plain.node("a"))
    for each in x509.load_pem_x509_certificates((made.chain + made.roots).encode()):
        with pytest.raises(x509.ExtensionNotFound):
            each.extensions.get_extension_for_class(x509.NameConstraints)
    _key, chain, roots = written(made, domain.directory / "pod")
    verified(roots, chain, at=domain.now).ok()


def test_every_root_in_overlap_is_in_the_bundle_and_verifies_what_is_under_it(domain: Domain) -> None:
    store = domain.node("a")
    old = domain.credential(store)
    domain.operator.prepare(now=domain.now)
    node.accept(store, domain.roots(), now=domain.now, overlap=DAY)
    domain.now += DAY
    domain.operator.activate(now=domain.now, overlap=DAY)
    domain.accept(store)
    new = domain.credential(store)
    assert new.signer != old.signer
    _key, chain, roots = written(new, domain.directory / "new")
    verified(roots, chain, at=domain.now).ok()
    domain.now -= DAY
    _key, chain, _roots = written(old, domain.directory / "old")
    verified(roots, chain, at=domain.now).ok()


class TestAccepting:
    """What a node takes from a file, and what it does not."""

    def test_an_authority_that_another_root_signed_is_refused(self, domain: Domain) -> None:
        store = domain.node("a")
        mine = Domain(domain.directory / "mine", DOMAIN)
        forged = mine.operator.sign(node.request(store, name="a", key_type="ECDSAP256"), now=mine.now, days=9)
        before = store.load()
        with pytest.raises(ConfigInvalid, match="signed by no root"):
            node.accept(store, forged.certificate.pem.encode(), now=domain.now, overlap=DAY)
        assert store.load() == before

    def test_another_trust_domain_is_refused(self, domain: Domain) -> None:
        store = domain.node("a")
        other = Domain(domain.directory / "other", "other.org")
        with pytest.raises(Refused, match=r"other\.org"):
            node.accept(store, other.roots(), now=domain.now, overlap=DAY)

    def test_another_nodes_authority_is_refused(self, domain: Domain) -> None:
        store = domain.node("a")
        theirs = domain.operator.sign_new("b", now=domain.now, days=9, key_type="ECDSAP256").replace(key=None)
        with pytest.raises(ConfigInvalid, match="not for this node's request"):
            node.accept(store, theirs.pem.encode(), now=domain.now, overlap=DAY)

    def test_a_file_with_its_own_key_needs_no_request(self, domain: Domain) -> None:
        store = Store(str(domain.directory / "given"))
        made = domain.operator.sign_new("given", now=domain.now, days=9, key_type="ECDSAP384")
        node.accept(store, made.pem.encode(), now=domain.now, overlap=DAY)
        assert domain.credential(store).signer == made.certificate.id

    def test_the_same_file_twice_changes_nothing(self, domain: Domain) -> None:
        store = Store(str(domain.directory / "twice"))
        asked = node.request(store, name="twice", key_type="ECDSAP256")
        file = domain.operator.sign(asked, now=domain.now, days=9).pem.encode()
        first = node.accept(store, file, now=domain.now, overlap=DAY)
        again = node.accept(store, file, now=domain.now, overlap=DAY)
        assert (again.signer, again.roots, again.sequence) == (first.signer, first.roots, first.sequence)

    def test_a_leaf_is_no_authority(self, domain: Domain) -> None:
        store = domain.node("a")
        made = domain.credential(store)
        with pytest.raises(ConfigInvalid):
            node.accept(store, made.chain.encode(), now=domain.now, overlap=DAY)

    def test_what_has_expired_is_refused(self, domain: Domain) -> None:
        store = domain.node("a")
        signed = domain.operator.sign(node.request(store, name="a", key_type="ECDSAP256"), now=domain.now, days=1)
        with pytest.raises(ConfigInvalid, match="not valid now"):
            node.accept(store, signed.pem.encode(), now=domain.now + 2 * DAY, overlap=DAY)

    @pytest.mark.parametrize("file", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
    def test_what_is_no_certificate_is_told(self, domain: Domain, file: bytes) -> None:
        with pytest.raises(ConfigInvalid, match="cannot be taken"):
            node.accept(domain.node("a"), file, now=domain.now, overlap=DAY)


class TestKeys:
    """Private keys stay private."""

    def test_every_key_and_its_directory_are_for_their_owner_only(self, domain: Domain) -> None:
        store = domain.node("a")
        node.request(store, name="a", key_type="ECDSAP256")
        keys = [*domain.directory.glob("*/*.key")]
        assert len(keys) == 3
        for path in keys:
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700

    def test_a_key_that_others_could_read_is_not_used(self, domain: Domain) -> None:
        store = domain.node("a")
        (key,) = Path(store.directory).glob("*.key")
        key.chmod(0o640)
        with pytest.raises(PermissionRefused, match="others may reach it"):
            domain.credential(store)
        key.chmod(0o600)
        Path(store.directory).chmod(0o750)
        with pytest.raises(PermissionRefused, match="others may reach it"):
            domain.credential(store)

    def test_a_key_that_is_not_needed_any_more_is_gone(self, domain: Domain) -> None:
        store = domain.node("a")
        (before,) = Path(store.directory).glob("*.key")
        domain.accept(store)
        (after,) = Path(store.directory).glob("*.key")
        assert after.name != before.name

    def test_a_sealed_root_opens_with_its_passphrase_only(self, directory: Path) -> None:
        sealed = Operator(str(directory / "root"), passphrase=Secret("right"))
        sealed.init(DOMAIN, now=1_700_000_000, days=100, key_type="ECDSAP256", constrained=True)
        assert b"ENCRYPTED" in next((directory / "root").glob("*.key")).read_bytes()
        request = signing.request(signing.new_key("ECDSAP256"), "a")
        sealed.sign(request, now=1_700_000_000, days=9)
        for wrong in (None, Secret("wrong")):
            with pytest.raises(ConfigInvalid):
                Operator(str(directory / "root"), passphrase=wrong).sign(request, now=1_700_000_000, days=9)

    def test_no_value_shows_the_key_it_holds(self, domain: Domain) -> None:
        made = domain.credential(domain.node("a"))
        assert "PRIVATE" not in repr(made) + str(made)


def test_a_name_of_another_trust_domain_is_not_signed(domain: Domain) -> None:
    store = domain.node("a")
    for name in ("spiffe://other.org/ns/a/sa/b", "spiffe://example.org"):
        ask = Ask(name=name, ttl=HOUR, key_type="ECDSAP256")
        with pytest.raises(Refused):
            issue_here(store, ask, now=domain.now, log=str(domain.directory / "log"))


def test_a_request_that_was_tampered_with_is_refused(domain: Domain) -> None:
    good = signing.request(signing.new_key("ECDSAP256"), "a")
    lines = good.splitlines()
    swapped = {"A": "B"}.get(lines[-2][8], "A")
    lines[-2] = lines[-2][:8] + swapped + lines[-2][9:]
    for request in ("", "nothing", "\n".join(lines) + "\n", "x" * 70_000):
        with pytest.raises(ConfigInvalid):
            domain.operator.sign(request, now=domain.now, days=9)


def test_a_spiffe_bundle_has_one_key_for_each_root_and_grows_in_sequence(domain: Domain) -> None:
    store = domain.node("a")
    before = store.load()
    domain.operator.prepare(now=domain.now)
    after = node.accept(store, domain.roots(), now=domain.now, overlap=DAY)
    assert after.sequence > before.sequence
    roots = [each for root in after.roots for each in certificates.read(root.pem)]
    found = bundles.as_jwks(roots, after.sequence)
    keys = found["keys"]
    assert isinstance(keys, list)
    assert len(keys) == 2
    for jwk, root in zip(keys, roots, strict=True):
        assert (jwk["use"], jwk["kty"], jwk["crv"]) == ("x509-svid", "EC", "P-256")
        assert "kid" not in jwk
        (shown,) = jwk["x5c"]
        assert shown.replace("\n", "") in root.pem.replace("\n", "")


@pytest.mark.parametrize("key_type", ["ECDSAP256", "ECDSAP384", "ED25519", "RSA3072"])
def test_a_jwk_holds_the_key_of_its_certificate(key_type: str) -> None:
    key = signing.new_key(key_type)
    root = signing.self_signed(key, trust_domain=DOMAIN, now=1_700_000_000, seconds=DAY, constrained=True)
    found = certificates.public_parameters(root)
    expected = {"EC": ["crv", "x", "y"], "RSA": ["n", "e"], "OKP": ["crv", "x"]}[found["kty"]]
    assert list(found) == ["kty", *expected]


def test_bundles_are_merged_without_repeats_and_without_what_stands_between(domain: Domain) -> None:
    first, second = (Domain(domain.directory / name).roots() for name in ("x", "y"))
    mixed = b"# a comment\r\n" + first.replace(b"\n", b"\r\n") + b"junk" + second + first
    assert bundles.merged(mixed, second) == first + second


def test_the_hosts_certificates_are_found_or_missed_by_name(domain: Domain) -> None:
    path = domain.directory / "host.pem"
    with pytest.raises(Unavailable, match="host_certificates"):
        bundles.host_certificates(str(path))
    path.write_bytes(domain.roots())
    assert bundles.host_certificates(str(path)) == domain.roots()


def test_two_authorities_never_share_a_name(domain: Domain) -> None:
    """Paths are built by name: two of one name would be taken for each other."""
    again = Domain(domain.directory / "again")
    made = [each.credential(each.node("a")) for each in (domain, again)]
    shown = [each for one in made for each in certificates.read(one.chain + one.roots) if each.subject]
    assert len({each.subject for each in shown}) == len(shown) == 4
