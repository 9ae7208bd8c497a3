"""`ipMasq`: what pods send beyond their own subnet leaves with the host's address, by nodeplug's own nft table.

Shared by the plugins that give pods an address. Removing needs the attachment's identity and nothing else.
"""

from __future__ import annotations

from nodeplug.cni.filter import plan
from nodeplug.cni.filter.index import Index, Owner
from nodeplug.core.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.cni.contract import AddRequest, AttachmentRequest, CheckRequest, GcRequest, Request, Result
    from nodeplug.cni.filter.table import Filtering
    from nodeplug.core.inet import Net


def _table(request: Request) -> Filtering:
    from nodeplug.cni.filter.table import filtering

    return filtering(warn=request.warn)


def add(request: AddRequest, addresses: Iterable[Net]) -> None:
    """Masquerade these addresses of the pod, each with the prefix length of its subnet."""
    with _table(request) as table:
        table.add(Owner.of(request.attachment, request.netns), plan.masquerade(request.network, addresses))


def remove(request: AttachmentRequest) -> bool:
    """Whether there was anything to remove. Raises the errors of `nodeplug.core.errors`."""
    if not Index().has(request.attachment.identity, plan.MASQUERADE):
        return False
    with _table(request) as table:
        table.remove(request.attachment, plan.MASQUERADE)
    return True


def check(request: CheckRequest) -> None:
    """Raise `Refused` when one of the pod's addresses would leave as it is."""
    share = plan.masquerade(request.network, of_pod(request.prev_result, request.ifname))
    with _table(request) as table:
        missing = table.missing(request.attachment, share)
    if missing:
        raise Refused(
            f"what {request.attachment} sends is not masqueraded: {'; '.join(missing)}",
            hint="`nodeplug cni repair` makes the table again",
        )


def collect(request: GcRequest) -> None:
    """Remove what belongs to the network and to none of its valid attachments."""
    with _table(request) as table:
        table.collect(request.network, request.valid)


def usable(request: Request) -> None:
    """Raise `Unavailable` or `PermissionRefused` where nf_tables is not to be had."""
    with _table(request) as table:
        table.usable()


def of_pod(result: Result, ifname: str) -> list[Net]:
    """The addresses that the result puts on the pod's interface of that name."""
    inside = {n for n, interface in enumerate(result.interfaces) if interface.sandbox and interface.name == ifname}
    return [ip.address for ip in result.ips if ip.interface in inside]
