"""The volume `bind`: a directory of the host that the node's policy allows. A hostPath that cannot be led astray."""

from __future__ import annotations

import os

from nodeplug.core.errors import doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount, mount
from nodeplug.volumes.contract import Health, Plan, Step, Volume
from nodeplug.volumes.hostpath import open_allowed, plain_path
from nodeplug.volumes.options import flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Grant, Node, Published, Request, Work
    from nodeplug.volumes.policy import Policy

_DELETED = "//deleted"  # what mountinfo shows behind the path of a directory that is gone


class BindOptions(Record):
    """What a pod may ask for."""

    path: str = key(plain_path, help="the host's directory, at or below a root that a rule allows")
    exec: bool = key(flag, default=False, help="its files may be executed")


class HostDirectory(Step):
    """A copy of the mount that `path` is in, seen from there; what is mounted below does not come along."""

    root: str
    path: str
    attributes: int

    def do(self, work: Work) -> None:
        directory = open_allowed(self.root, self.path)
        try:
            with doing(f"cannot bind {self.path}"):
                work.keep("volume", fsmount.clone(directory))
                # Of this mount and not of the host's; and what either side mounts later is not the other's to see.
                fsmount.set_attributes(work.fd("volume"), on=self.attributes, private=True)
        finally:
            os.close(directory)


class Bind(Volume):
    """See `contract.Volume`. Owners and labels of the host's files are never touched, whatever the pod's fsGroup."""

    name = "bind"
    options = BindOptions
    ownership = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        return policy.grant(request, wanted=(request.options.path,))

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        options: BindOptions = request.options
        attributes = fsmount.NOSUID | fsmount.NODEV
        attributes |= 0 if options.exec else fsmount.NOEXEC
        attributes |= fsmount.RDONLY if request.read_only else 0
        return Plan(steps=(HostDirectory(root=grant.roots[0], path=options.path, attributes=attributes),))

    def health(self, published: Published) -> Health:
        there = mount.find(published.target)
        if there is not None and there.root.endswith(_DELETED):
            return Health(ok=False, reason=f"the host's directory {published.options['path']} has been removed")
        return Health(ok=True)
