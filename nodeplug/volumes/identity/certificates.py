"""Certificates, requests and keys as they are read. Beside `signing`, the only module that imports `cryptography`.

In its functions only, so that nothing pays for it that signs nothing. Digests are of SHA-256, 32 hexadecimal digits;
times are seconds since the epoch. Raises ValueError for what cannot be read.
"""

from __future__ import annotations

from nodeplug.core.record import Record
from nodeplug.volumes.identity import spiffe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificatePublicKeyTypes,
    )

    from nodeplug.core.secret import Secret

_BEGIN = b"-----BEGIN CERTIFICATE-----"
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


def can_sign() -> bool:
    """Whether this process has `cryptography`."""
    try:
        import cryptography  # noqa: F401  # it is asked for, no more
    except ImportError:
        return False
    return True


def load_all() -> None:
    """Import all that signing needs, for a process that is about to leave the files it came from."""
    from cryptography import exceptions, x509  # noqa: F401  # so that they are there
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: F401  # likewise
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: F401  # likewise
    from cryptography.x509 import oid  # noqa: F401  # likewise


def read(text: str) -> tuple[Certificate, ...]:
    """Every certificate in PEM text, whatever stands between them. Raises ValueError."""
    from cryptography import x509

    data = text.encode()
    if _BEGIN not in data:
        raise ValueError("there is no certificate in it")
    if data.count(_BEGIN) > _MOST:
        raise ValueError(f"there are more than {_MOST} certificates in it")
    return tuple(seen(found) for found in x509.load_pem_x509_certificates(data))


def der(certificate: Certificate) -> bytes:
    """The certificate without PEM's armour."""
    from cryptography.hazmat.primitives import serialization as form

    return load(certificate.pem).public_bytes(form.Encoding.DER)


def public_parameters(certificate: Certificate) -> dict[str, str]:
    """The public key as the parameters of a JWK (RFC 7518 section 6, RFC 8037)."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    public = load(certificate.pem).public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        numbers, size = public.public_numbers(), (public.key_size + 7) // 8
        x, y = (_base64url(number.to_bytes(size, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": f"P-{public.key_size}", "x": x, "y": y}
    if isinstance(public, rsa.RSAPublicKey):
        n, e = (_base64url(_octets(number)) for number in (public.public_numbers().n, public.public_numbers().e))
        return {"kty": "RSA", "n": n, "e": e}
    raw = public.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(raw)}


def _octets(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _base64url(data: bytes) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def is_signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether `issuer` signed it, and is the one it names."""
    from cryptography.exceptions import InvalidSignature

    try:
        load(certificate.pem).verify_directly_issued_by(load(issuer.pem))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def read_request(text: str) -> tuple[str, str]:
    """(the node's name, the key's id) in a request. Raises ValueError as `node_authority` does."""
    asked = load_request(text)
    return common_name(asked.subject), _key_id(asked.public_key())


def key_id(key: Secret) -> str:
    """The digest of the public half, as in `Certificate.key_id`."""
    return _key_id(load_key(key).public_key())


def seen(found: x509.Certificate) -> Certificate:
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


def load(pem: str) -> x509.Certificate:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())


def load_request(text: str) -> x509.CertificateSigningRequest:
    from cryptography import x509

    try:
        asked = x509.load_pem_x509_csr(text.encode())
    except ValueError:
        raise ValueError("it is no request to sign a certificate (PKCS#10, PEM)") from None
    if not asked.is_signature_valid:
        raise ValueError("the request is not signed by its own key")
    return asked


def common_name(name: x509.Name) -> str:
    from cryptography.x509.oid import NameOID

    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else "node"


def load_key(key: Secret) -> CertificateIssuerPrivateKeyTypes:
    from cryptography.hazmat.primitives import serialization as form

    try:
        return form.load_pem_private_key(key.reveal(), None)  # type: ignore[return-value]  # we make no others
    except (ValueError, TypeError):
        raise ValueError("the private key cannot be read") from None
