"""IFBs of the reference's bandwidth. Their names tell nobody of whom they are, but one that is in use has a link whose
packets are redirected to it: the end of a pod's veth, which goes with the pod.
"""

from __future__ import annotations

import errno

from nodeplug.cni.reference import names
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.rtnl import links, qdiscs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nodeplug.cni.contract import Attachment
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link


def unused(host: Netlink, network: str, valid: Collection[Attachment]) -> list[Link]:
    """Those that nothing is redirected to, and that are of no attachment in `valid`. Raises `NetlinkError`."""
    kept = {names.ifb(network, attachment.container) for attachment in valid}
    found = [link for link in links.dump(host, kind="ifb") if names.is_ifb(link.name) and link.name not in kept]
    if not found:
        return []
    used = {filter.to for link in links.dump(host, kind="veth") for filter in _filters(host, link)}
    return [link for link in found if link.index not in used]


def _filters(host: Netlink, link: Link) -> list[qdiscs.Filter]:
    try:
        return qdiscs.filters(host, link.index)
    except NetlinkError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
            return []  # it is gone, or nothing looks at what it receives
        raise
