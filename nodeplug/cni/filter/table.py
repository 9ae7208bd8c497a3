"""The one table in the kernel and its index on disk, changed together.

Whoever finds the table or a set missing makes it again, with the elements of all attachments that live, in one
transaction. Everything here may be killed at any point and called again; an element belongs to the identity in its
comment, and nobody removes another's. Raises the errors of `nodeplug.core.errors`.
"""

from __future__ import annotations

import errno

from nodeplug.cni.filter import layout
from nodeplug.cni.filter.claims import Claims
from nodeplug.cni.filter.index import Holding, Index, Owner
from nodeplug.cni.filter.layout import TABLE
from nodeplug.cni.filter.removal import delete_owned, drop_chain
from nodeplug.core import company
from nodeplug.core.errors import Error, PermissionRefused, TryAgain, Unavailable, from_os
from nodeplug.kernel.netlink import NetlinkError, netfilter
from nodeplug.kernel.nft import elements, messages
from nodeplug.kernel.nft.elements import Element
from nodeplug.kernel.nft.expressions import JUMP
from nodeplug.kernel.nft.wire import INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.filter.gates import Gate
    from nodeplug.cni.filter.plan import Entry, Share
    from nodeplug.kernel.netlink import Message, Netlink

_ATTEMPTS = 8
_RESTORE_ATTEMPTS = 64


def filtering(*, warn: Callable[[str], None], index: Index | None = None) -> Filtering:
    """The table of the network namespace the thread is in, for a block.

    The socket's end waits for the kernel to free what was deleted (about 15 ms, by whomever); it is closed as late as
    this, and kept where another call may come.
    """
    return Filtering(index or Index(), warn=warn)


class Filtering:
    """See `filtering`."""

    def __init__(self, index: Index, *, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._index = index

    def __enter__(self) -> Table:
        try:
            self._loan = company.present().lend(netfilter)
            netlink = self._loan.__enter__()
        except OSError as error:
            raise from_os(error, "cannot reach nf_tables") from error
        return Table(netlink, self._index, warn=self._warn)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loan.__exit__(kind, error, trace)


class Table:
    """See the module. `warn` is told a sentence where something unexpected was mended."""

    def __init__(self, netlink: Netlink, index: Index, *, warn: Callable[[str], None]) -> None:
        self._netlink = netlink
        self._index = index
        self._claims = Claims(index)
        self._warn = warn
        self._restored: list[Holding] = []

    def add(self, owner: Owner, share: Share) -> None:
        """Put the share into effect, in place of what that part of the attachment had.

        Raises `Refused` when another attachment has one of its host ports.
        """
        holding = Holding(owner=owner, share=share)
        try:
            self._put(holding)
        finally:
            self._take_back_removed()
        if share.claims:
            from nodeplug.cni.filter import flows

            self._flows(flows.arrived, share)

    def _put(self, holding: Holding) -> None:
        share = holding.share
        with _Named("cannot add to"), self._index.attachment(holding.identity):
            before = self._index.read(holding.identity, share.part)
            with self._index.contended(holding.locks | (before.locks if before else frozenset())):
                contested = self._claims.contested(holding)
                if before is not None:
                    self._withdraw(before)
                for claim, holder in contested:
                    self._evict(claim, holder)
                self._index.write(holding)
                try:
                    self._claims.take(holding)
                    self._insert(holding)
                except BaseException as error:
                    self._undo(holding, error)
                    raise

    def remove(self, attachment: Attachment, part: str) -> bool:
        """Take the share out of effect; False when the attachment has none of that part."""
        identity = attachment.identity
        with _Named("cannot remove from"), self._index.attachment(identity):
            holding = self._index.read(identity, part)
            if holding is None:
                self._index.drop(identity, part)  # what cannot be read is of no more use
                return False
            with self._index.contended(holding.locks):
                self._withdraw(holding)
        if holding.share.flows:
            from nodeplug.cni.filter import flows

            self._flows(flows.left, holding.share)
        return True

    def missing(self, attachment: Attachment, share: Share) -> list[str]:
        """What of the share is not in effect, as sentences; empty when all is as `add` left it."""
        from nodeplug.cni.filter import inspection

        with _Named("cannot read"):
            return inspection.missing(
                self._netlink, self._index, Holding(owner=Owner(attachment=attachment), share=share)
            )

    def whole(self) -> bool:
        """Whether all rules are there and as many elements as the attachments that live should have."""
        from nodeplug.cni.filter import inspection

        with _Named("cannot read"):
            return inspection.whole(self._netlink, self._index)

    def repair(self) -> int:
        """Make the whole table again from the index, whatever became of it. Returns how many shares it holds."""
        with _Named("cannot restore"):
            held = self._restore(whole=True)
            live = [holding for holding in self._index.holdings() if not holding.owner.gone()]
        self._take_back_removed()
        families = {
            subnet.net.family for holding in live for subnet in holding.share.subnets if subnet.kind == layout.FORWARD
        }
        if families:
            self.open_gates(sorted(families))
        return held

    def collect(self, network: str, valid: frozenset[Attachment]) -> int:
        """Remove what belongs to the network and to none of `valid`. Returns how many shares and stray elements.

        It goes on after an error, and raises the first one at the end.
        """
        from nodeplug.cni.filter import collection

        removed = 0
        failures: list[Error] = []
        with _Named("cannot read"):
            invalid = [h for h in self._index.holdings(network) if h.owner.attachment not in valid]
        for holding in invalid:
            try:
                removed += self.remove(holding.owner.attachment, holding.share.part)
            except Error as error:
                failures.append(error)
        try:
            with _Named("cannot clean"):
                removed += collection.strays(self._netlink, self._index, network, valid)
                collection.empty_subnets(self._netlink, self._index, network)
                self._claims.sweep()
                self._index.sweep()
        except Error as error:
            failures.append(error)
        for failure in failures:
            raise failure
        return removed

    def usable(self) -> None:
        """Raise `Unavailable` or `PermissionRefused` when nf_tables cannot be used here. Reads one number."""
        with _Named("cannot read"):
            messages.generation(self._netlink)

    def ensure_loopback_guard(self) -> None:
        """Make sure that packets of 127.0.0.0/8 from outside are dropped: before route_localnet goes on anywhere."""
        with _Named("cannot read"):
            wanted = {rule.title for rule in layout.rules() if rule.chain == layout.RAW}
            standing = {rule.comment for rule in messages.rules(self._netlink, INET, TABLE, layout.RAW)}
            if not wanted <= standing:
                self._warn(
                    f"the chain {layout.RAW} of the nft table inet {TABLE} was damaged; the table was made again"
                )
                self._restore(whole=True)
        self._take_back_removed()

    def warn_of_forwarding(self, share: Share) -> None:
        """Warn where the host's own policy would drop what the share translates."""
        from nodeplug.cni.filter.forward import dropped

        with _Named("cannot read"):
            sentence = dropped(self._netlink, share.families)
        if sentence:
            self._warn(sentence)

    def open_gates(self, families: Iterable[int], *, admin: str = "") -> None:
        """Let marked packets through every base chain that drops forwarded ones, see `gates`.

        `admin` is the administrator's own chain of iptables', asked before. Warns of a chain that cannot be opened.
        """
        from nodeplug.cni.filter import gates, opening

        with _Named("cannot read what drops beside"):
            closed = [gate for gate in gates.find(self._netlink, families, admin=admin) if not gate.is_open]
            if closed:
                opening.open_all(self._netlink, families, admin=admin, lock=self._index.gates(), warn=self._warn)

    def closed_gates(self, families: Iterable[int], *, admin: str = "") -> list[Gate]:
        """The base chains that drop forwarded packets and do not let marked ones through. Read-only."""
        from nodeplug.cni.filter import gates

        with _Named("cannot read what drops beside"):
            return [gate for gate in gates.find(self._netlink, families, admin=admin) if not gate.is_open]

    def obstacle(self, gate: Gate) -> str:
        """Why a closed gate cannot be opened; empty where `open_gates` would. Read-only."""
        from nodeplug.cni.filter import opening

        return gate.obstacle or opening.lacking(gate)

    def _insert(self, holding: Holding) -> None:
        """Add the elements; restore the table where it is missing, replace what another left behind."""
        wanted = {(entry.set, entry.key): entry for entry in holding.share.entries}
        replaced: dict[tuple[str, bytes], Entry] = {}
        for _ in range(_ATTEMPTS):
            if holding.share.conditions:
                from nodeplug.cni.filter import conditions

                self._restore()
                conditions.compile_chain(holding)
            deletes = [*replaced.values()]
            adds = [*wanted.values()]
            change = [message for entry in deletes for message in _delete(entry)]
            change += [message for entry in adds for message in add_entry(entry, holding.comment, exclusive=True)]
            refused = messages.attempt(self._netlink, change)
            if not refused:
                return
            lacking = False
            for error in refused:
                deleting = error.index < len(deletes)
                entry = deletes[error.index] if deleting else adds[error.index - len(deletes)]
                if error.errno == errno.ENOENT and deleting:
                    del replaced[(entry.set, entry.key)]
                elif error.errno == errno.ENOENT:
                    lacking = True
                elif error.errno == errno.EEXIST and not deleting:
                    self._settle(entry, holding, wanted, replaced)
                else:
                    raise error
            if lacking:
                self._restore()
        raise TryAgain(f"the nft table inet {TABLE} kept changing while elements were added")

    def _settle(
        self,
        entry: Entry,
        holding: Holding,
        wanted: dict[tuple[str, bytes], Entry],
        replaced: dict[tuple[str, bytes], Entry],
    ) -> None:
        """An element of that key is there: leave it if it is ours as it should be, else replace it."""
        (found,) = elements.get_elements(self._netlink, INET, [(TABLE, entry.set, entry.key)])
        if found is None:
            return
        if found == element(entry, holding.comment):
            del wanted[(entry.set, entry.key)]
            return
        replaced[(entry.set, entry.key)] = entry
        if not found.comment.startswith(f"{holding.identity} "):
            self._warn(f"replaced what {found.comment or 'somebody'} had left in {entry.set} of the nft table {TABLE}")

    def _withdraw(self, holding: Holding) -> None:
        delete_owned(self._netlink, holding.identity, holding.share.entries)
        if holding.share.conditions:
            drop_chain(self._netlink, holding.identity)
        for claim in holding.share.claims:
            self._claims.release(holding.identity, claim)
        self._index.drop(holding.identity, holding.share.part)

    def _undo(self, holding: Holding, error: BaseException) -> None:
        try:
            self._withdraw(holding)
        except Exception as undoing:
            error.add_note(f"while undoing: {undoing}")

    def _evict(self, claim: str, holder: Holding) -> None:
        """Take one host port from a pod that is gone."""
        lost = [entry for entry in holder.share.entries if entry.claim == claim]
        delete_owned(self._netlink, holder.identity, lost)
        self._claims.release(holder.identity, claim)
        self._warn(
            f"host port {claim.replace('/', ' on ')} was still held by {holder.owner.attachment}, "
            f"whose namespace {holder.owner.netns_path} is gone; it was taken over"
        )

    def _flows(self, forget: Callable[[Netlink, Share], int], share: Share) -> None:
        """The rules stand; flows of before are a lesser matter."""
        try:
            forget(self._netlink, share)
        except OSError as error:
            self._warn(f"flows tracked before this change were not forgotten: {error}")

    def _take_back_removed(self) -> None:
        """What was removed while the table was restored may be back by that, and its file is gone.

        A removal takes the elements first and the file last, and holds its attachment all the while: whoever has that
        after the restoration sees which it was. So no other attachment may be held here.
        """
        restored, self._restored = self._restored, []
        for holding in restored:
            try:
                with _Named("cannot clean"), self._index.attachment(holding.identity):
                    if not self._index.has(holding.identity, holding.share.part):
                        delete_owned(self._netlink, holding.identity, holding.share.entries)
            except Error as error:
                self._warn(f"what {holding.owner.attachment} had may be left for GC: {error}")

    def _restore(self, *, whole: bool = False) -> int:
        """Make what is missing, or everything, with the elements of all attachments that live.

        Bound to the state of the ruleset that was looked at: if any transaction came between, it looks again. So what
        another call adds meanwhile is either on disk already or goes into the restored table.
        """
        from nodeplug.cni.filter import restoring

        for _ in range(_RESTORE_ATTEMPTS):
            generation = messages.generation(self._netlink)
            present = {found.name for found in messages.sets(self._netlink, INET, TABLE)}
            everything = whole or not present >= layout.SETS
            live = [holding for holding in self._index.holdings() if not holding.owner.gone()]
            change = restoring.messages_for(live, frozenset() if everything else present)
            try:
                messages.commit(self._netlink, change, generation=generation)
            except NetlinkError as error:
                if error.errno == errno.ERESTART:
                    continue
                raise
            self._restored += live
            if everything:
                restoring.conditions(self._netlink, live, self._warn)
            return len(live)
        raise TryAgain(f"the nft ruleset kept changing while the table inet {TABLE} was restored")


def element(entry: Entry, comment: str) -> Element:
    """An entry as the kernel has it."""
    verdict = (JUMP, entry.chain) if entry.chain else None
    return Element(key=entry.key, data=entry.data, verdict=verdict, comment=comment)


def add_entry(entry: Entry, comment: str, *, exclusive: bool = False) -> list[Message]:
    """What adds an entry; with `exclusive` EEXIST where one of that key is."""
    return elements.add_elements(INET, TABLE, entry.set, [element(entry, comment)], exclusive=exclusive)


def _delete(entry: Entry) -> list[Message]:
    return elements.delete_elements(INET, TABLE, entry.set, [entry.key])


class _Named:
    """Says which table and what to do, for what the kernel or the disk refused in a block."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NetlinkError):
            reason = f"{self._doing} the nft table inet {TABLE}: {error}"
            if error.errno == errno.EPERM:
                hint = "CNI plugins need CAP_NET_ADMIN in the host's namespace"
                raise PermissionRefused(reason, hint=hint) from error
            hint = f"`nft list table inet {TABLE}` shows it, `nodeplug cni repair` makes it again"
            raise Unavailable(reason, hint=hint) from error
        if isinstance(error, OSError):
            raise from_os(error, f"{self._doing} the nft table inet {TABLE} and its index") from error
