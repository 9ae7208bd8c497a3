"""The kubelet's device plugin contract: any device on the node as a schedulable resource.

    contract.py       what a resource is (settings) and what an allocation answers; no I/O
    protocol.py       the only module that knows the messages, both ways
    allocation.py     device ids to an allocation; preferred devices
    cdi.py            CDI spec files
    registration.py   the kubelet's directory, both registration flows, one thread for each resource
    serve.py          the gRPC services of one resource
    daemon.py         all resources of a process, reload, health, metrics
    main.py, cli.py   the executable; the commands `nodeplug device ...`

An author's plugin is a `Source` and a call of `run`; see docs/deviceplugin.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nodeplug.deviceplugin.contract import Device, Node, Source
    from nodeplug.deviceplugin.main import run

__all__ = ["Device", "Node", "Source", "run"]


def __getattr__(name: str) -> Any:
    """Load on use: reading the contract must not load gRPC."""
    if name == "run":
        from nodeplug.deviceplugin.main import run

        return run
    if name in ("Device", "Node", "Source"):
        from nodeplug.deviceplugin import contract

        return getattr(contract, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
