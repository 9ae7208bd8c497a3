"""What a node does about its authority: asks for one, takes it over, replaces it in time.

Every change happens under the store's lock and is on disk when the function returns; killed between two of them, the
next call goes on. `maintain` is what nodeplugd does about it by itself.
"""

from __future__ import annotations

import os

from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid, Refused, TryAgain, doing
from nodeplug.core.record import Record
from nodeplug.core.secret import Secret
from nodeplug.volumes.identity import authority as rules
from nodeplug.volumes.identity import certificates, signing
from nodeplug.volumes.identity.authority import RENEW, Authority, Root, Signer
from nodeplug.volumes.identity.operator import Operator
from nodeplug.volumes.identity.store import ensure_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.identity.certificates import Certificate
    from nodeplug.volumes.identity.operator import Roots
    from nodeplug.volumes.identity.store import Store

LARGEST = 1 << 20
"""Bytes of a file that `accept` reads."""

_KEY = b"-----BEGIN PRIVATE KEY-----"
_KEY_END = b"-----END PRIVATE KEY-----"


class Maintained(Record):
    """What `maintain` found: what it did, what the operator has to do, and in how many seconds to look again."""

    done: tuple[str, ...] = ()
    trouble: str = ""
    after: float | None = None


def init(store: Store, trust_domain: str, *, now: int, root_days: int, node_days: int, constrained: bool) -> Authority:
    """A root and an authority under it, both on this node, which is then alone in its trust domain.

    Raises `Refused` when the node has an authority.
    """
    with store.lock():
        if store.exists():
            raise Refused(
                f"this node has an authority for {store.load().trust_domain} in {store.directory}",
                hint="look at it with `nodeplug identity status`",
            )
        with doing(f"cannot make {store.directory}"):
            ensure_private(store.directory)
        operator = Operator(store.root)
        if operator.exists() and operator.load().trust_domain != trust_domain:
            raise Refused(f"{store.root} has the root of another trust domain", hint="move it away")
        if not operator.exists():  # it does where an earlier attempt was cut short
            operator.init(trust_domain, now=now, days=root_days, key_type="ECDSAP256", constrained=constrained)
        roots = _published(operator.load(), now)
        begun = Authority(trust_domain=trust_domain, sequence=1, roots=roots, alone=True)
        found = _renewed(store, begun, operator, now=now, days=node_days, overlap=0)
        store.save(found)
        return found


def request(store: Store, *, name: str, key_type: str) -> str:
    """A request (PKCS#10) to sign this node's authority; the same key until it is answered."""
    with store.lock():
        key = store.requested()
        if key is None:
            key = signing.new_key(key_type)
            store.set_requested(key)
        return signing.request(key, name or os.uname().nodename)


def accept(store: Store, data: bytes, *, now: int, overlap: int) -> Authority:
    """Take what the operator's machine wrote: roots, and this node's authority if it is among them.

    Roots are added, never replaced (`drop_root` takes one out). Raises `ConfigInvalid` for what cannot be trusted or is
    for another node, `Refused` for another trust domain.
    """
    key, found = _read(data)
    roots = [each for each in found if each.is_self_signed]
    own = [each for each in found if not each.is_self_signed]
    if len(own) > 1:
        raise ConfigInvalid("there is more than one node authority in it", hint="name this node's own file")
    with store.lock():
        before = store.load() if store.exists() else None
        domain = _domain_of(roots, own, before)
        if before is None and not own:
            raise ConfigInvalid(
                "there are roots in it, and no authority for this node, which has none",
                hint="run `nodeplug identity request` here and `nodeplug identity issue-node-ca` where the root is",
            )
        for each in roots:
            _check_root(each, now)
        shown = tuple(_root(each, now) for each in roots)
        after = rules.with_roots(before or Authority(trust_domain=domain, sequence=0, roots=()), shown)
        if own:
            after = _with_own(store, after, own[0], key, now=now, overlap=overlap).replace(alone=False)
        store.save(after)
        if own:
            store.set_requested(None)
        return after


def drop_root(store: Store, root: str, *, now: int) -> Authority:
    """Take a root out of the bundles, now or as soon as nothing that this node signed under it is valid."""
    with store.lock():
        after = rules.without(store.load(), root, now=now)
        store.save(after)
        return after


def maintain(store: Store, *, now: int, node_days: int, overlap: int) -> Maintained:
    """Do what time demands. Raises what reading and writing the store does; cheap when nothing is due."""
    done: list[str] = []
    found = store.load()
    change = rules.next_change(found)
    if found.alone or (change is not None and change <= now) or store.is_untidy(found):
        with store.lock():
            before = store.load()
            found = rules.advance(before, now)
            done = _differences(before, found)
            if found.alone:
                found = _kept_alone(store, found, now=now, days=node_days, overlap=overlap, done=done)
            if found != before:
                store.save(found)
            else:
                store.tidy(found)
    change = rules.next_change(found)
    after = None if change is None else float(max(0, change - now))
    return Maintained(done=tuple(done), trouble=_trouble(found, now), after=after)


def _trouble(found: Authority, now: int) -> str:
    """What only the operator can mend; empty when nothing."""
    signer = found.signer
    if signer is None or found.coming is not None or not rules.is_worn(signer, now):
        return ""
    left = signer.not_after - now
    said = f"expires in {left // 86400} days" if left > 0 else "has expired"
    return f"the node's authority {signer.subject} {said}; {RENEW}"


def _kept_alone(store: Store, found: Authority, *, now: int, days: int, overlap: int, done: list[str]) -> Authority:
    """The authority with root and signer replaced as far as it is time. Each step finds what the last one left."""
    operator = Operator(store.root)
    roots = operator.load()
    operator.tidy(roots)
    active = roots.find(roots.active)
    if not roots.coming and now - active.not_before >= (active.not_after - active.not_before) * 2 // 3:
        roots = operator.prepare(now=now)
        done.append(f"made the next root {roots.coming}")
    new = tuple(each for each in _published(roots, now) if each.id in (roots.active, roots.coming))
    found = rules.with_roots(found, new)
    coming = found.find(roots.coming)
    if coming is not None and coming.since + overlap <= now:
        roots = operator.activate(now=now, overlap=0)
        done.append(f"root {roots.active} signs from now on")
    signer = found.signer
    wanted = signer is None or signer.root != roots.active or rules.is_worn(signer, now)
    if found.coming is None and wanted:
        found = _renewed(store, found, operator, now=now, days=days, overlap=overlap)
        done.append(f"made the node's authority {(found.coming or found.signer or signer).subject}")  # type: ignore[union-attr]  # one is there
    shown = {each.id for each in found.roots}
    if any(each.id not in shown for each in roots.roots):
        try:
            operator.drop(now=now, used=now)
        except TryAgain:
            pass  # it is the coming one, which the next run shows
    return found


def _renewed(store: Store, found: Authority, operator: Operator, *, now: int, days: int, overlap: int) -> Authority:
    key = signing.new_key("ECDSAP256")
    signed = operator.sign(signing.request(key, os.uname().nodename), now=now, days=days)
    return _with_own(store, found, signed.certificate, key, now=now, overlap=overlap)


def _with_own(
    store: Store, found: Authority, own: Certificate, key: Secret | None, *, now: int, overlap: int
) -> Authority:
    """With a signer whose key is given, or is that of the request."""
    root = next((each for each in found.roots if _signed(own, each)), None)
    if root is None:
        raise ConfigInvalid(
            f"the node authority {own.subject} is signed by no root that is in the file or on this node",
            hint="take the file that `nodeplug identity issue-node-ca` wrote as it is",
        )
    if not own.is_authority or own.path_length != 0:
        raise ConfigInvalid(f"{own.subject} may not sign leaves and nothing but leaves (CA:TRUE, pathlen:0)")
    if own.not_after <= now or own.not_before > now + rules.SKEW:
        raise ConfigInvalid(f"the node authority {own.subject} is not valid now", hint="compare the clocks of both")
    if key is None:
        key = store.key(own.key_id) if own.key_id in found.keys else store.requested()
    if key is None or certificates.key_id(key) != own.key_id:
        raise ConfigInvalid(
            f"the node authority {own.subject} is not for this node's request",
            hint="name the file that was made from this node's own `nodeplug identity request`",
        )
    store.add_key(own.key_id, key)
    signer = Signer(
        id=own.id,
        key_id=own.key_id,
        pem=own.pem,
        subject=own.subject,
        root=root.id,
        not_before=own.not_before,
        not_after=own.not_after,
        since=now,
    )
    return rules.with_signer(found, signer, now=now, overlap=overlap)


def _read(data: bytes) -> tuple[Secret | None, tuple[Certificate, ...]]:
    if len(data) > LARGEST:
        raise ConfigInvalid(f"the file has more than {LARGEST} bytes")
    _before, begin, rest = data.partition(_KEY)
    body, end, _after = rest.partition(_KEY_END)
    key = Secret(begin + body + end + b"\n") if begin and end else None
    try:
        return key, certificates.read(data.decode("utf-8", "replace"))
    except ValueError as error:
        raise ConfigInvalid(f"the file cannot be taken: {error}") from None


def _domain_of(roots: list[Certificate], own: list[Certificate], before: Authority | None) -> str:
    domains = {each.trust_domain for each in (*roots, *own)}
    if len(domains) != 1 or "" in domains:
        raise ConfigInvalid(
            "its certificates are not those of one trust domain: each must have the one name spiffe://TRUST-DOMAIN"
        )
    (domain,) = domains
    if before is not None and domain != before.trust_domain:
        raise Refused(f"it is for the trust domain {domain}, and this node is in {before.trust_domain}")
    return domain


def _check_root(root: Certificate, now: int) -> None:
    if not root.is_authority or not certificates.is_signed_by(root, root):
        raise ConfigInvalid(f"the root {root.subject} is no authority, or not signed by itself")
    if root.not_after <= now:
        raise ConfigInvalid(f"the root {root.subject} has expired")


def _signed(own: Certificate, root: Root) -> bool:
    return certificates.is_signed_by(own, certificates.read(root.pem)[0])


def _root(found: Certificate, now: int) -> Root:
    return Root(id=found.id, pem=found.pem, not_after=found.not_after, since=now)


def _published(roots: Roots, now: int) -> tuple[Root, ...]:
    return tuple(Root(id=each.id, pem=each.pem, not_after=each.not_after, since=now) for each in roots.roots)


def _differences(before: Authority, after: Authority) -> list[str]:
    said = []
    if after.signer is not None and after.signer != before.signer:
        said.append(f"the node's authority {after.signer.subject} signs from now on")
    gone = {each.id for each in before.roots} - {each.id for each in after.roots}
    return [*said, *(f"root {root} has left the bundles" for root in sorted(gone))]


def read_file(path: str) -> bytes:
    """What `accept` takes, from a file. Raises `ConfigInvalid`."""
    try:
        return files.read_bounded(path, LARGEST)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from None
