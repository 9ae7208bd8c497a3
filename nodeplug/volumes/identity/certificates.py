"""All cryptography of identities: keys, certificates, requests, in the form that X509-SVID asks for.

The only module that imports `cryptography`, and in its functions only. A private key is PEM (PKCS#8) inside a `Secret`
wherever it leaves a function. Times are seconds since the epoch. Raises ValueError for what cannot be read.
"""

from __future__ import annotations

import os

from nodeplug.core.record import Record
from nodeplug.core.secret import Secret
from nodeplug.volumes.identity import spiffe

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

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_END = b"-----END CERTIFICATE-----"
_MOST = 1000  # certificates in one file; hosts have some 150


class Certificate(Record):
    """What is to be known of a certificate. `id` and `key_id` are digests (SHA-256, 32 hexadecimal digits) of all of it
    and of its public key; `trust_domain` is empty unless its one name is that of a SPIFFE authority; `path_length` is
    -1 where it is not bounded."""

    id: str
    key_id: str
    subject: str
    trust_domain: str
    is_authority: bool
    is_self_signed: bool
    path_length: int
    not_before: int
    not_after: int
    pem: str


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


def key_id(key: Secret) -> str:
    """The digest of the public half, as in `Certificate.key_id`."""
    return _key_id(_private(key).public_key())


def self_signed(key: Secret, *, trust_domain: str, now: int, seconds: int, constrained: bool) -> Certificate:
    """A root: it may sign authorities that sign leaves, and no more."""
    label = f"root {_random_hex(4)}"
    builder = _authority(label, trust_domain, now=now, until=now + seconds, path_length=1, constrained=constrained)
    private = _private(key)
    builder = builder.issuer_name(_name(label, trust_domain))
    return _seen(_sign(builder, private.public_key(), private))


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
    asked = _request(request)
    public = asked.public_key()
    label = f"{_common_name(asked.subject)[:50]} {_random_hex(4)}"
    until = min(now + seconds, issuer.not_after)
    builder = _authority(label, issuer.trust_domain, now=now, until=until, path_length=0, constrained=constrained)
    return _seen(_sign(builder, public, _private(issuer_key), issuer=_load(issuer.pem)))


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
    signed = _sign(builder, _private(key).public_key(), _private(issuer_key), issuer=_load(issuer.pem))
    return Issued(key=key, certificate=_seen(signed), serial=f"{signed.serial_number:032x}")


def request(key: Secret, name: str) -> str:
    """A request (PKCS#10) to sign the public half of `key` for a node of that name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as form

    private = _private(key)
    asked = x509.CertificateSigningRequestBuilder().subject_name(_name(name, "")).sign(private, _hash_for(private))
    return asked.public_bytes(form.Encoding.PEM).decode("ascii")


def read_request(text: str) -> tuple[str, str]:
    """(the node's name, the key's id) in a request. Raises ValueError as `node_authority` does."""
    asked = _request(text)
    return _common_name(asked.subject), _key_id(asked.public_key())


def read(text: str) -> tuple[Certificate, ...]:
    """Every certificate in PEM text, whatever stands between them. Raises ValueError."""
    from cryptography import x509

    data = text.encode()
    if _BEGIN not in data:
        raise ValueError("there is no certificate in it")
    if data.count(_BEGIN) > _MOST:
        raise ValueError(f"there are more than {_MOST} certificates in it")
    return tuple(_seen(found) for found in x509.load_pem_x509_certificates(data))


def blocks(data: bytes) -> list[bytes]:
    """The certificates in PEM text, unread, each with a newline at its end."""
    found = []
    for part in data.split(_BEGIN)[1:]:
        body, end, _rest = part.partition(_END)
        if end:
            found.append(_BEGIN + body.replace(b"\r", b"") + _END + b"\n")
    return found


def der(certificate: Certificate) -> bytes:
    """The certificate without PEM's armour."""
    from cryptography.hazmat.primitives import serialization as form

    return _load(certificate.pem).public_bytes(form.Encoding.DER)


def public_numbers(certificate: Certificate) -> dict[str, str | int]:
    """The public key's parameters as a JWK has them (RFC 7518 section 6), numbers as they are."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    public = _load(certificate.pem).public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        numbers = public.public_numbers()
        return {"kty": "EC", "crv": f"P-{public.key_size}", "x": numbers.x, "y": numbers.y}
    if isinstance(public, rsa.RSAPublicKey):
        return {"kty": "RSA", "n": public.public_numbers().n, "e": public.public_numbers().e}
    raw = public.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": int.from_bytes(raw, "big")}


def is_signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether `issuer` signed it, and is the one it names."""
    from cryptography.exceptions import InvalidSignature

    try:
        _load(certificate.pem).verify_directly_issued_by(_load(issuer.pem))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


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


def _seen(found: x509.Certificate) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as form

    own = found.extensions
    try:
        basic = own.get_extension_for_class(x509.BasicConstraints).value
        is_authority, path_length = basic.ca, basic.path_length
    except x509.ExtensionNotFound:
        is_authority, path_length = False, None
    try:
        names = own.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    return Certificate(
        id=found.fingerprint(hashes.SHA256()).hex()[:32],
        key_id=_key_id(found.public_key()),
        subject=found.subject.rfc4514_string(),
        trust_domain=_domain_of(uris),
        is_authority=is_authority,
        is_self_signed=found.issuer == found.subject,
        path_length=-1 if path_length is None else path_length,
        not_before=int(found.not_valid_before_utc.timestamp()),
        not_after=int(found.not_valid_after_utc.timestamp()),
        pem=found.public_bytes(form.Encoding.PEM).decode("ascii"),
    )


def _domain_of(uris: list[str]) -> str:
    try:
        name = spiffe.parse(uris[0]) if len(uris) == 1 else None
    except ValueError:
        return ""
    return name.trust_domain if name is not None and not name.path else ""


def _key_id(key: CertificatePublicKeyTypes) -> str:
    from hashlib import sha256

    from cryptography.hazmat.primitives import serialization as form

    return sha256(key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:32]


def _private(key: Secret) -> CertificateIssuerPrivateKeyTypes:
    from cryptography.hazmat.primitives import serialization as form

    try:
        return form.load_pem_private_key(key.reveal(), None)  # type: ignore[return-value]  # we make no others
    except (ValueError, TypeError):
        raise ValueError("the private key cannot be read") from None


def _load(pem: str) -> x509.Certificate:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())


def _request(text: str) -> x509.CertificateSigningRequest:
    from cryptography import x509

    try:
        asked = x509.load_pem_x509_csr(text.encode())
    except ValueError:
        raise ValueError("it is no request to sign a certificate (PKCS#10, PEM)") from None
    if not asked.is_signature_valid:
        raise ValueError("the request is not signed by its own key")
    return asked


def _common_name(name: x509.Name) -> str:
    from cryptography.x509.oid import NameOID

    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else "node"


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
