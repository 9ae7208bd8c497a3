"""What the reference plugins bridge and ptp left in netfilter for attachments that ours delete or collect."""

from __future__ import annotations

from nodeplug.cni.reference import census, masquerade, spoofing
from nodeplug.core.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nodeplug.cni.contract import Attachment


def remove_rules(attachment: Attachment, addresses: Collection[bytes] = ()) -> None:
    """Remove them, whichever version made them; none there is success. `addresses` are packed, as far as known."""
    steps = Steps()
    steps.run(lambda: masquerade.remove(attachment, addresses))
    steps.run(lambda: spoofing.remove(attachment))
    steps.close()


def collect_rules(network: str, valid: Collection[Attachment]) -> None:
    """Remove those of the network's attachments that are not in `valid`; of MAC guards, those of gone ports."""
    steps = Steps()
    steps.run(lambda: masquerade.collect(network, valid))
    steps.run(lambda: spoofing.collect(valid))
    steps.run(lambda: census.conclude(now=True))
    steps.close()
