"""Which files a pod gets, and what is in them. Pure.

Every layout has the credential folder of SPIFFE's Filesystem Delivery: key and chain in one file, which a reader gets
whole by one open, and the bundle under its trust domain's name. The other names are those that programs look for.
"""

from __future__ import annotations

from nodeplug.core import document
from nodeplug.core.record import Record, key
from nodeplug.core.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CREDENTIAL = "credential-bundle.private-key.pem"
TRUST_BUNDLE = ".spiffe-trust-bundle.pem"
SYSTEM = "ca-certificates.crt"

LAYOUTS: Mapping[str, tuple[str, str, str] | None] = {
    "spiffe": ("svid.pem", "svid_key.pem", "svid_bundle.pem"),
    "tls": ("tls.crt", "tls.key", "ca.crt"),
    "bundle": None,
}
"""Layout -> the names of chain, key and roots, where it has them as files of their own."""


class Credential(Record):
    """A key, the chain from its leaf to the node's authority (the root is no part of it), and all roots, as PEM.

    `name` is the SPIFFE ID, `id` the digest of the leaf and `signer` that of the node's authority.
    """

    name: str = key(document.name)
    trust_domain: str = key(document.name)
    private_key: Secret = key(document.secret)
    chain: str = key(document.name)
    roots: str = key(document.name)
    not_before: int = key(document.integer(0))
    not_after: int = key(document.integer(0))
    serial: str = key(document.name)
    id: str = key(document.name)
    signer: str = key(document.name)


class Content(Record):
    """One file; `private` if it has the key."""

    data: Secret
    private: bool = False


def files_of(credential: Credential, layout: str, *, system: bytes = b"") -> dict[str, Content]:
    """The files by name. `system` is the content of `ca-certificates.crt`, which is left out where it is empty."""
    chain, roots = Content(data=Secret(credential.chain)), Content(data=Secret(credential.roots))
    private = Content(data=credential.private_key, private=True)
    both = Content(data=Secret(credential.private_key.reveal() + credential.chain.encode()), private=True)
    found = {CREDENTIAL: both, credential.trust_domain + TRUST_BUNDLE: roots}
    names = LAYOUTS[layout]
    if names is not None:
        found |= dict(zip(names, (chain, private, roots), strict=True))
    if system:
        found[SYSTEM] = Content(data=Secret(system))
    return found
