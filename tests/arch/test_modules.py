"""What one execution of a plugin imports, compared with a checked-in list: each module costs every pod its start.

To add a command: a test below and `tests/arch/modules/NAME.txt`. A failure prints the lines to add or to drop, in case
they are meant.
"""

from __future__ import annotations

import json
from typing import Any

from tests.arch.imports import allowed, called_as, loaded
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "file:/usr/bin/python3")


def cni(ledger: Ledger, command: str, conf: dict[str, Any]) -> list[str]:
    """What the plugin `conf["type"]` imports to answer `command` about a fresh pod."""
    directory, pod = ledger.directory(), ledger.netns()
    env = {"CNI_CONTAINERID": pod.name, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path, "CNI_PATH": str(directory)}
    script = called_as(conf["type"], "nodeplug-cni", directory)
    document = json.dumps({"cniVersion": "1.0.0", "name": "arch", **conf}).encode()
    ledger.adopt("attachment", lambda: run([script], env={**env, "CNI_COMMAND": "DEL"}, stdin=document).ok())
    return loaded(script, env={**env, "CNI_COMMAND": command}, stdin=document)


def compare(name: str, found: list[str]) -> None:
    listed = set(allowed(name))
    new = [module for module in found if module not in listed]
    assert not new, f"{name} imports what its list does not have:\n" + "\n".join(new)
    unused = sorted(module for module in listed - set(found) if not module.startswith("_"))
    assert not unused, f"{name}: the list has what is no longer imported:\n" + "\n".join(unused)


def test_loopback_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    compare("cni-loopback-add", cni(ledger, "ADD", {"type": "loopback"}))


def test_host_local_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    conf = {"type": "host-local", "ipam": {"subnet": "10.1.0.0/24", "dataDir": str(ledger.directory())}}
    compare("cni-host-local-add", cni(ledger, "ADD", conf))


def test_static_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    conf = {"type": "static", "ipam": {"addresses": [{"address": "10.1.0.5/24"}]}}
    compare("cni-static-add", cni(ledger, "ADD", conf))


def test_bridge_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    """With masquerade and addresses of our own: what most nodes run."""
    ledger.link("cni0")
    ledger.table("inet", "nodeplug")
    ipam = {"type": "host-local", "dataDir": str(ledger.directory()), "ranges": [[{"subnet": "10.88.0.0/24"}]]}
    conf = {"type": "bridge", "isDefaultGateway": True, "ipMasq": True, "ipam": ipam}
    cni(ledger, "ADD", conf)  # the first pod of a node makes the bridge and the table
    compare("cni-bridge-add", cni(ledger, "ADD", conf))
