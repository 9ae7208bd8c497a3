"""CNI, the container network interface: what a plugin's author imports.

from nodeplug.cni import Plugin, Result, run
"""

from nodeplug.cni.contract import (
    AddRequest,
    CheckRequest,
    DelRequest,
    Dns,
    GcRequest,
    Interface,
    IpConfig,
    NetConf,
    Plugin,
    Result,
    Route,
    StatusRequest,
)
from nodeplug.cni.main import run

__all__ = [
    "AddRequest",
    "CheckRequest",
    "DelRequest",
    "Dns",
    "GcRequest",
    "Interface",
    "IpConfig",
    "NetConf",
    "Plugin",
    "Result",
    "Route",
    "StatusRequest",
    "run",
]
