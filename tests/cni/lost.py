"""CNI_NETNS as a runtime may give it for DEL when it has lost a pod: none, or a path that is not the pod's."""

from __future__ import annotations

from pathlib import Path

from tests.space import HERE, Space


def without_a_name(_pod: Space, _directory: Path) -> str:
    return ""


def ended(pod: Space, _directory: Path) -> str:
    """The namespace's name goes, and the namespace with it."""
    pod.remove()
    return pod.path


def elsewhere(_pod: Space, _directory: Path) -> str:
    """The namespace is there, under another name."""
    return "/run/netns/gone"


def a_plain_file(_pod: Space, directory: Path) -> str:
    (directory / "netns").write_text("")
    return str(directory / "netns")


def the_hosts(_pod: Space, _directory: Path) -> str:
    return HERE.path
