"""Bundles: what verifiers need, in the forms they read. Pure but for `host_certificates`, which reads the host's."""

from __future__ import annotations

from nodeplug.core import files
from nodeplug.core.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.volumes.identity.certificates import Certificate

USUAL = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Red Hat, Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
"""Where distributions keep all certificates they trust in one file."""

LARGEST = 4 << 20
"""Bytes of a file of certificates."""

REFRESH_HINT = 3600
"""Seconds; SPIFFE Trust Domain and Bundle section 4.1.2."""

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_END = b"-----END CERTIFICATE-----"


def blocks(data: bytes) -> list[bytes]:
    """The certificates in PEM text, unread, without what stands between them, each with a newline at its end."""
    found = []
    for part in data.split(_BEGIN)[1:]:
        body, end, _rest = part.partition(_END)
        if end:
            found.append(_BEGIN + body.replace(b"\r", b"") + _END + b"\n")
    return found


def merged(*parts: bytes) -> bytes:
    """All certificates of some PEM texts, each once, in their order."""
    return b"".join(dict.fromkeys(block for part in parts for block in blocks(part)))


def host_certificates(path: str = "") -> bytes:
    """What the host trusts, as PEM: the file at `path`, or the first of the usual ones. Raises `Unavailable`."""
    for each in (path,) if path else USUAL:
        try:
            found = files.read_bounded(each, LARGEST)
        except OSError:
            continue
        if blocks(found):
            return found
    raise Unavailable(
        f"the host has no certificates that it trusts in {path or ', '.join(USUAL)}",
        hint="install ca-certificates, or name the file as host_certificates in [volumes.identity]",
    )


def as_jwks(certificates: Iterable[Certificate], sequence: int) -> dict[str, object]:
    """A SPIFFE bundle (X509-SVID section 6.1): one JWK for each root, with the certificate and without a key id."""
    keys = [_jwk(each) for each in certificates]
    return {"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH_HINT}


def _jwk(certificate: Certificate) -> dict[str, object]:
    from base64 import b64encode

    from nodeplug.volumes.identity.certificates import der, public_parameters

    shown = b64encode(der(certificate)).decode("ascii")
    return {"use": "x509-svid", **public_parameters(certificate), "x5c": [shown]}
