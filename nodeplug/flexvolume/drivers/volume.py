"""Every driver of ours: a back-end of `nodeplug.volumes`, by its name.

In the worker an operation counts as waiting from its beginning to its end: most of it is the kernel's work, which may
take as long as a disk or a server does, and must not hold up the calls of other contracts.
"""

from __future__ import annotations

from nodeplug.core import company
from nodeplug.core.errors import Error
from nodeplug.flexvolume.contract import Capabilities, Driver
from nodeplug.volumes import service
from nodeplug.volumes.contract import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.core.record import Record
    from nodeplug.flexvolume.contract import ExpandFsRequest, MountRequest, UnmountRequest
    from nodeplug.flexvolume.contract import Request as FlexRequest
    from nodeplug.volumes.contract import Volume
    from nodeplug.volumes.policy import Policy


def capabilities(kind: type[Volume]) -> Capabilities:
    """What the kubelet is told of a back-end. It never attaches, so no controller manager has to know the driver."""
    return Capabilities(
        attach=False,
        selinux_relabel=not kind.ownership,
        fs_group=not kind.ownership,
        supports_metrics=True,
        requires_fs_resize=kind.resizes,
    )


class VolumeDriver(Driver):
    """The driver of the back-end `name`. `policy` may be the error for which there is none."""

    def __init__(self, name: str, policy: Policy | Error | None) -> None:
        self.name = name
        self._policy = policy

    # Looked up when they are wanted: what ends a volume needs none of them.
    @property
    def options(self) -> type[Record]:  # type: ignore[override]  # nobody sets it
        return service.implementation(self.name).options

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # likewise
        return capabilities(service.implementation(self.name))

    def mount(self, request: MountRequest) -> None:
        wanted = Request(
            driver=self.name,
            volume=request.volume,
            target=request.target,
            options=request.options,
            read_only=request.read_only,
            fs_group=request.fs_group,
            fs_type=request.fs_type,
            pod=request.pod,
            secrets=request.secrets,
        )
        with company.present().waiting():
            self._service(request).publish(wanted)

    def unmount(self, request: UnmountRequest) -> None:
        # Whatever the settings are: a pod whose volume stays can never end.
        volumes = service.Service(timeout=request.left(), warn=request.warn)
        with company.present().waiting():
            volumes.unpublish(request.target)

    def expand_fs(self, request: ExpandFsRequest) -> None:
        with company.present().waiting():
            self._service(request).resize(request.directory, request.new_size)

    def _service(self, request: FlexRequest) -> service.Service:
        if isinstance(self._policy, Error):
            raise self._policy
        return service.Service(self._policy, timeout=request.left(), warn=request.warn)
