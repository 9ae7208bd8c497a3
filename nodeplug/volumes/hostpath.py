"""Directories of the host that a pod names and a rule of policy allows. For the volumes `bind` and `overlay`."""

from __future__ import annotations

import errno
import os

from nodeplug.core.document import Wrong, absolute_path, expects
from nodeplug.core.errors import Error, Refused, doing
from nodeplug.kernel.openat2 import open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Place

_LEADS_OUT = frozenset({errno.ELOOP, errno.EXDEV})


@expects("an absolute path without . and ..")
def plain_path(value: Any, at: Place) -> str:
    """Parser: a path that says where it leads, so that a rule may be compared with it."""
    path = absolute_path(value, at)
    if os.path.normpath(path) != path or path.startswith("//"):
        raise Wrong(f"expected {plain_path.expects}, and no / at its end")
    return path


def open_allowed(root: str, path: str, *, flags: int = os.O_PATH | os.O_DIRECTORY) -> int:
    """Open `path`, which is `root` or below it, so that nothing which is below can make it lead elsewhere.

    The root is whoever runs the node's word and may have links in it; what is below may not, nor be replaced by one
    while this looks. Raises `Refused` for a link, `NotFound` when there is none.
    """
    with doing(f"cannot open {root}, which the node's policy allows"):
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with doing(f"cannot open {path}"):
            return open_beneath(top, path[len(root) :].strip("/"), flags)
    except Error as error:
        reason = error.__cause__
        if isinstance(reason, OSError) and reason.errno in _LEADS_OUT:
            raise Refused(
                f"{path} has a symbolic link in it, below {root}, and could lead anywhere",
                hint="name the path that it really is",
            ) from error
        raise
    finally:
        os.close(top)
