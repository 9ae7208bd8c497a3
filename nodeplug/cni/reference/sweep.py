"""An address that is given to a new pod, on a node that has something of the reference plugins': nothing of the pod
that had it before may lead to the new one, or speak for it.

A DEL that was killed, or that the runtime made without the port mappings, leaves the reference's rules behind; the
address is free all the same. Called with every address that is given there, before the pod has it.
"""

from __future__ import annotations

from nodeplug.cni.reference import census, firewall, hostports, masquerade
from nodeplug.core.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


def free(addresses: Collection[bytes]) -> None:
    """Remove what the reference's rules say of these addresses. Raises errors of the house."""
    steps = Steps()
    steps.run(lambda: hostports.free(addresses))
    steps.run(lambda: masquerade.free(addresses))
    steps.run(lambda: firewall.free(addresses))
    steps.run(census.conclude)
    steps.close()
