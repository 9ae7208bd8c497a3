"""Keys and certificates as they are made, in the form that X509-SVID asks for. Beside `certificates`, the only module
that imports `cryptography`, in its functions.

A private key is PEM (PKCS#8) inside a `Secret` wherever it leaves a function. Times are seconds since the epoch.
"""

from __future__ import annotations

import os

from nodeplug.core.record import Record
from nodeplug.core.secret import Secret
from nodeplug.volumes.identity import spiffe
from nodeplug.volumes.identity.certificates import Certificate, common_name, load, load_key, load_request, seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificatePublicKeyTypes,
    )
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384

KEY_TYPES = ("ECDSAP256", "ECDSAP384", "ED25519", "RSA3072", "RSA4096")
"""Spelled as Kubernetes spells the key types of pod certificates."""

BACKDATED = 60
"""Seconds that a certificate is valid before it was made: clocks differ."""


class Issued(Record):
    """A new key and its certificate."""

    key: Secret
    certificate: Certificate
    serial: str


def new_key(kind: str) -> Secret:
    """A private key of one of `KEY_TYPES`."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key: CertificateIssuerPrivateKeyTypes
    if kind == "ED25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif kind.startswith("RSA"):
        key = rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("RSA")))
    else:
        key = ec.generate_private_key(ec.SECP384R1() if kind == "ECDSAP384" else ec.SECP256R1())
    return Secret(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))


def sealed(key: Secret, passphrase: Secret | None) -> Secret:
    """The key encrypted by a passphrase (PKCS#8, scrypt or PBKDF2 by the library's choice); as it is without one."""
    from cryptography.hazmat.primitives import serialization as form

    if passphrase is None:
        return key
    how = form.BestAvailableEncryption(passphrase.reveal())
    return Secret(load_key(key).private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, how))


def unsealed(key: Secret, passphrase: Secret | None) -> Secret:
    """The key as `sealed` was given it. Raises ValueError when the passphrase is not the one."""
    from cryptography.hazmat.primitives import serialization as form

    if passphrase is None:
        return key
    try:
        opened = form.load_pem_private_key(key.reveal(), passphrase.reveal())
    except (ValueError, TypeError):
        raise ValueError("it does not open with that passphrase") from None
    return Secret(opened.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))


def self_signed(key: Secret, *, trust_domain: str, now: int, seconds: int, constrained: bool) -> Certificate:
    """A root: it may sign authorities that sign leaves, and no more."""
    label = f"root {_random_hex(4)}"
    builder = _authority(label, trust_domain, now=now, until=now + seconds, path_length=1, constrained=constrained)
    private = load_key(key)
    builder = builder.issuer_name(_name(label, trust_domain))
    return seen(_sign(builder, private.public_key(), private))


def node_authority(
    issuer: Certificate,
    issuer_key: Secret,
    request: str,
    *,
    now: int,
    seconds: int,
    constrained: bool,
) -> Certificate:
    """A node's authority under a root, for the key of its request: it signs leaves only (pathlen 0).

    The name constraint is for the trust domain, and for nothing else: no DNS name and no address, so that whoever
    trusts the root for more than SPIFFE IDs gives a node no web server's name. Raises ValueError where the request is
    none, or is not signed by its own key.
    """
    asked = load_request(request)
    public = asked.public_key()
    label = f"{common_name(asked.subject)[:50]} {_random_hex(4)}"
    until = min(now + seconds, issuer.not_after)
    builder = _authority(label, issuer.trust_domain, now=now, until=until, path_length=0, constrained=constrained)
    return seen(_sign(builder, public, load_key(issuer_key), issuer=load(issuer.pem)))


def leaf(issuer: Certificate, issuer_key: Secret, *, name: spiffe.SpiffeId, kind: str, now: int, until: int) -> Issued:
    """A new key and an X509-SVID for it: one URI and no other name, no subject, and therefore the name critical."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = new_key(kind)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(now=max(now, issuer.not_before + BACKDATED), until=min(until, issuer.not_after))
        .subject_name(x509.Name([]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(name))]), critical=True)
    )
    signed = _sign(builder, load_key(key).public_key(), load_key(issuer_key), issuer=load(issuer.pem))
    return Issued(key=key, certificate=seen(signed), serial=f"{signed.serial_number:032x}")


def request(key: Secret, name: str) -> str:
    """A request (PKCS#10) to sign the public half of `key` for a node of that name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as form

    private = load_key(key)
    asked = x509.CertificateSigningRequestBuilder().subject_name(_name(name, "")).sign(private, _hash_for(private))
    return asked.public_bytes(form.Encoding.PEM).decode("ascii")


def _authority(
    label: str, trust_domain: str, *, now: int, until: int, path_length: int, constrained: bool
) -> x509.CertificateBuilder:
    """What every signing certificate of a trust domain has (X509-SVID sections 3.2 and 4)."""
    from ipaddress import ip_network

    from cryptography import x509

    own = [x509.UniformResourceIdentifier(spiffe.SCHEME + trust_domain)]
    builder = (
        _builder(now=now, until=until)
        .subject_name(_name(label, trust_domain))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName(own), critical=False)
    )
    if not constrained:
        return builder
    nothing_else = [
        x509.DNSName(""),
        x509.IPAddress(ip_network("0.0.0.0/0")),
        x509.IPAddress(ip_network("::/0")),
    ]
    only = x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain)], nothing_else)
    return builder.add_extension(only, critical=True)  # RFC 5280 section 4.2.1.10: a conforming CA marks it so


def _builder(*, now: int, until: int) -> x509.CertificateBuilder:
    from cryptography import x509

    serial = int.from_bytes(os.urandom(16), "big") or 1  # RFC 5280 section 4.1.2.2: positive, at most 20 octets
    return (
        x509.CertificateBuilder()
        .serial_number(serial)
        .not_valid_before(_moment(now - BACKDATED))
        .not_valid_after(_moment(until))
    )


def _sign(
    builder: x509.CertificateBuilder,
    public: CertificatePublicKeyTypes,
    key: CertificateIssuerPrivateKeyTypes,
    *,
    issuer: x509.Certificate | None = None,
) -> x509.Certificate:
    """With the identifiers of both keys, by which verifiers find the way when several roots overlap."""
    from cryptography import x509

    builder = builder.public_key(public).add_extension(
        x509.SubjectKeyIdentifier.from_public_key(public), critical=False
    )
    if issuer is not None:
        builder = builder.issuer_name(issuer.subject)
        theirs = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        named = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(theirs)
        builder = builder.add_extension(named, critical=False)
    return builder.sign(key, _hash_for(key))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _hash_for(key: CertificateIssuerPrivateKeyTypes) -> SHA256 | SHA384 | None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return hashes.SHA384() if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256 else hashes.SHA256()


def _name(common: str, organization: str) -> x509.Name:
    """Distinct for every authority, because paths are built by name. X.520 bounds both at 64 characters."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common[:64])]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64]))
    return x509.Name(parts)


def _random_hex(octets: int) -> str:
    return os.urandom(octets).hex()


def _moment(seconds: int) -> datetime:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)
