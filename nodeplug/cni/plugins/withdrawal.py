"""What a plugin that joins a pod to the host by a veth takes back: the link, the address, the masquerading.

DEL and an ADD that finds what a killed one left have the same steps.
"""

from __future__ import annotations

import os

from nodeplug.core import paths
from nodeplug.core.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.contract import AttachmentRequest


def withdraw(
    request: AttachmentRequest,
    disconnect: Callable[[], object],
    *,
    besides: Callable[[], object] | None = None,
    foreign: bool,
) -> None:
    """All that the attachment has; with `foreign` also the rules of one that the reference plugin made.

    Each step is tried, and the first error is raised at the end; an address is released only once no link has it. The
    link comes first: while the kernel frees it, some 15 ms, the rest is done.
    """
    steps = Steps()
    gone = steps.run(disconnect)
    if gone and request.ipam is not None:
        steps.run(request.ipam.delete)
    if besides is not None:
        steps.run(besides)
    own = True

    def unmasquerade() -> None:
        nonlocal own
        from nodeplug.cni.plugins import masquerade

        own = masquerade.remove(request)

    steps.run(unmasquerade)
    if foreign and not own:
        from nodeplug.cni.plugins import podaddresses
        from nodeplug.cni.plugins.bridge import takeover

        steps.run(lambda: takeover.remove_rules(request.attachment, podaddresses.packed(request.prev_result)))
    steps.close()


def may_be_foreign(*, ruled: bool) -> bool:
    """Whether the reference plugin's rules are worth looking for, which takes other programs. `ruled` is whether the
    configuration asks for any; without, they are looked for only until a node is known to have none.
    """
    return ruled or not os.path.lexists(paths.NO_REFERENCE)
