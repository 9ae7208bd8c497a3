"""Whether the pod that a request names can be the one it is for. For volumes that give something by the pod's name.

Options that a pod's author writes come after the kubelet's own and can put others in their place; the target is the
kubelet's choice, and has the pod's uid in it. Pure.
"""

from __future__ import annotations

from nodeplug.core.errors import ConfigInvalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Request

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")
_LONGEST = 253  # of a Kubernetes name


def ensure_own(request: Request) -> None:
    """Raise `ConfigInvalid` where the request is for another pod than it says."""
    uid = request.pod.uid
    if not is_name(uid) or f"/pods/{uid}/" not in request.target:
        raise ConfigInvalid(
            f"volume {request.volume} is said to be for the pod {uid!r}, and its target is {request.target}",
            hint="it is given to the pod whose directory it is mounted in; options must not name another",
        )


def is_name(text: str) -> bool:
    """Whether it can be a name of Kubernetes, and so a step of a path."""
    return 0 < len(text) <= _LONGEST and _ALLOWED.issuperset(text) and text.strip(".") != ""
