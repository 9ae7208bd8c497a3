"""What a node knows of its trust domain: the roots that verifiers get, and who signs. Values and rules; no I/O.

A root is published before anything is signed under it, for `overlap` seconds, and stays in the bundles until the last
leaf below it has expired: whoever verifies has the root of whatever is shown to him, though he reads his bundle but
once in the life of a certificate of his own.

    accept  root B, signer under B        B in every bundle; the old signer, under A, signs on
    + overlap                             the new one signs; A has a time to go
    + the longest life of a leaf          A leaves the bundles

A signer under a root that has been published long enough signs at once: what the old one signed has its chain with it.
"""

from __future__ import annotations

from nodeplug.core import document
from nodeplug.core.errors import NotFound, Refused, Unavailable
from nodeplug.core.record import Record, key

SHORTEST_TTL = 600
LONGEST_TTL = 86400
"""Seconds that a leaf lives, at least and at most."""

HOW = (
    "on the node, run `nodeplug identity init --trust-domain NAME`, or `nodeplug identity request` and have it signed "
    "under a root that several nodes share (docs/identity.md)"
)
RENEW = "run `nodeplug identity request`, have it signed, and `nodeplug identity accept` what comes back"

SKEW = 300
"""Seconds by which the clocks of two nodes may differ."""


class Root(Record):
    """A root in the bundles. `since` is when this node began to show it, `signed` when it last changed from signing
    under it (0: never), `until` when it stops to show it (0: not decided)."""

    id: str = key(document.name)
    pem: str = key(document.name)
    not_after: int = key(document.integer(0))
    since: int = key(document.integer(0))
    signed: int = key(document.integer(0), default=0)
    until: int = key(document.integer(0), default=0)


class Signer(Record):
    """The node's own authority. `key_id` is the digest of its public key, by which its private key is found."""

    id: str = key(document.name)
    key_id: str = key(document.name)
    pem: str = key(document.name)
    subject: str = key(document.text)
    root: str = key(document.name)
    not_before: int = key(document.integer(0))
    not_after: int = key(document.integer(0))
    since: int = key(document.integer(0))
    """When it signs from, at the earliest."""


class Authority(Record):
    """All of it. `coming` is a signer whose root is not known everywhere yet; `sequence` grows with every change of the
    roots, as that of a SPIFFE bundle has to; `alone` means that no other node signs in the trust domain."""

    trust_domain: str = key(document.name)
    sequence: int = key(document.integer(0))
    roots: tuple[Root, ...] = key(document.array(document.nested(Root)))
    signer: Signer | None = key(document.nested(Signer), default=None)
    coming: Signer | None = key(document.nested(Signer), default=None)
    alone: bool = key(document.boolean, default=False)

    def find(self, root: str) -> Root | None:
        return next((each for each in self.roots if each.id == root), None)

    @property
    def keys(self) -> frozenset[str]:
        """The private keys that are needed."""
        return frozenset(each.key_id for each in (self.signer, self.coming) if each is not None)


def with_roots(authority: Authority, roots: tuple[Root, ...]) -> Authority:
    """With these in the bundles too; one that is there already stays as it is, and none goes."""
    known = {each.id for each in authority.roots}
    new = tuple(each for each in roots if each.id not in known)
    return authority.replace(roots=authority.roots + new, sequence=authority.sequence + 1) if new else authority


def with_signer(authority: Authority, signer: Signer, *, now: int, overlap: int) -> Authority:
    """With a signer that takes over as soon as its root has been published for `overlap` seconds.

    The first one has nobody to wait for, nor has one under the root of the present one. Raises `Refused` where its root
    is not among the authority's, or goes.
    """
    root = authority.find(signer.root)
    if root is None or root.until:
        raise Refused(f"the root {signer.root} of that node CA is not, or no longer, in this node's bundle")
    waits = authority.signer is not None and authority.signer.root != root.id
    since = max(now, root.since + overlap) if waits else now
    return advance(authority.replace(coming=signer.replace(since=since)), now)


def advance(authority: Authority, now: int) -> Authority:
    """What the time that has passed makes of it; the same value when nothing."""
    found = authority
    if found.coming is not None and found.coming.since <= now:
        before, now_on = found.signer, found.coming
        found = found.replace(signer=now_on, coming=None)
        if before is not None and before.root != now_on.root:
            until = now + LONGEST_TTL + SKEW if found.alone else 0
            roots = (each.replace(signed=now, until=until) if each.id == before.root else each for each in found.roots)
            found = found.replace(roots=tuple(roots))
    kept = tuple(each for each in found.roots if not each.until or each.until > now)
    return found.replace(roots=kept, sequence=found.sequence + 1) if len(kept) < len(found.roots) else found


def without(authority: Authority, root: str, *, now: int) -> Authority:
    """Let a root go once the last leaf that this node may have signed under it has expired.

    Raises `NotFound`, and `Refused` while the node signs under it or is about to.
    """
    found = authority.find(root)
    if found is None:
        known = ", ".join(each.id for each in authority.roots)
        raise NotFound(f"there is no root {root} in this node's bundle", hint=f"there are {known}")
    for signer in (authority.signer, authority.coming):
        if signer is not None and signer.root == root:
            raise Refused(
                f"the node's authority {signer.subject} is under the root {root}",
                hint="accept one under another root first (nodeplug identity request)",
            )
    until = max(now, found.signed + LONGEST_TTL + SKEW if found.signed else 0)
    roots = tuple(each.replace(until=until) if each.id == root else each for each in authority.roots)
    return advance(authority.replace(roots=roots), now)


def next_change(authority: Authority) -> int | None:
    """When `advance` will next have something to do."""
    times = [each.until for each in authority.roots if each.until]
    if authority.coming is not None:
        times.append(authority.coming.since)
    return min(times, default=None)


def is_worn(signer: Signer, now: int) -> bool:
    """Whether two thirds of its life are behind it, so that it should have a successor."""
    return signer.not_after - now <= (signer.not_after - signer.not_before) // 3


def end_of_leaf(authority: Authority, *, now: int, ttl: int) -> int:
    """When a leaf signed now ends: not after its signer, nor its root. Raises `Unavailable` where that is too soon."""
    signer = authority.signer
    if signer is None:
        raise Unavailable("this node has no authority to sign with", hint=HOW)
    root = authority.find(signer.root)
    ends = min(now + ttl, signer.not_after, root.not_after if root is not None else 0)
    if ends - now < SHORTEST_TTL:
        raise Unavailable(f"the node's authority {signer.subject} has expired, or is about to", hint=RENEW)
    return ends
