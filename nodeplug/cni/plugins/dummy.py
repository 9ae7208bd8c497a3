"""dummy: a pod has a link that leads nowhere, for addresses that are to be the pod's own and always up."""

from __future__ import annotations

from nodeplug.cni.contract import Dns, NetConf, Plugin
from nodeplug.cni.plugins import addressing, podcommands
from nodeplug.cni.plugins.keys import dns
from nodeplug.core.record import key
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, Result, StatusRequest

KIND = "dummy"


class DummyConf(NetConf):
    dns: Dns | None = key(dns, default=None, help="takes the place of the address manager's; so does an empty list")


class Dummy(Plugin):
    name = "dummy"
    config = DummyConf

    def add(self, request: AddRequest) -> Result:
        addressing.require_manager(request)
        return podcommands.add(
            request, KIND, lambda pod, name: pod.request(links.add(name, KIND)), dns=request.config.dns
        )

    def delete(self, request: DelRequest) -> None:
        podcommands.delete(request, KIND)

    def check(self, request: CheckRequest) -> None:
        addressing.require_manager(request)
        podcommands.check(request, KIND)

    def gc(self, request: GcRequest) -> None:
        podcommands.collect(request, KIND)

    def status(self, request: StatusRequest) -> None:
        addressing.require_manager(request)
        podcommands.status(request, KIND)
