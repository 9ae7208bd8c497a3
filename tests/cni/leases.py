"""host-local called by hand, ours and the reference, and its directory looked at: for the tests of host-local."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nodeplug.cni.ipam.index import Index
from nodeplug.core.naming import digest
from tests.child import run
from tests.cni.calls import ask, environment
from tests.sandbox import CHECKOUT

REFERENCE = "/usr/lib/cni/host-local"
NET = "pods"

Implementation = Callable[..., tuple[int, Any]]


def conf(directory: Path | str, network: str = NET, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    """A configuration; `keys` go into `ipam`, but for `runtimeConfig`, `args` and `prevResult`."""
    top = {name: keys.pop(name) for name in ("runtimeConfig", "args", "prevResult") if name in keys}
    ipam = {"type": "host-local", "dataDir": str(directory), **keys}
    return {"cniVersion": version, "name": network, "type": "bridge", "ipam": ipam, **top}


def variables(command: str, container: str, ifname: str, args: str) -> dict[str, str]:
    return environment(command, CNI_CONTAINERID=container, CNI_IFNAME=ifname, CNI_ARGS=args or None)


def ours(
    command: str, config: object, container: str = "a", ifname: str = "eth0", *, args: str = ""
) -> tuple[int, Any]:
    """(exit code, answer), in this process."""
    code, answer, _ = ask("host-local", variables(command, container, ifname, args), config)
    return code, answer


def reference(
    command: str, config: object, container: str = "a", ifname: str = "eth0", *, args: str = ""
) -> tuple[int, Any]:
    """The same by the reference plugin."""
    done = run([REFERENCE], env=variables(command, container, ifname, args), stdin=json.dumps(config).encode())
    return done.code, json.loads(done.stdout) if done.stdout else None


def executable(directory: Path) -> Path:
    """Our host-local as a file that a runtime can execute."""
    path = directory / "host-local"
    path.symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
    return path


def addresses(answer: tuple[int, Any]) -> list[str]:
    """The addresses of a successful ADD."""
    code, result = answer
    assert code == 0, result
    return [ip["address"] for ip in result["ips"]]


def refusal(answer: tuple[int, Any]) -> str:
    """Message and details of an error."""
    code, error = answer
    assert code == 1, error
    return f"{error['msg']} {error.get('details', '')}"


def leases(directory: Path, network: str = NET) -> dict[str, bytes]:
    """Name -> content of every file but the lock and the last addresses; nothing where there is no directory."""
    found = {}
    for path in (directory / network).glob("*"):
        if path.name != "lock" and not path.name.startswith("last_reserved_ip."):
            found[path.name] = path.read_bytes()
    return found


def holders(directory: Path, network: str = NET) -> dict[str, str]:
    """Address -> container and interface."""
    return {name: " ".join(content.decode().split()) for name, content in leases(directory, network).items()}


def fill(directory: Path, contents: Mapping[str, str | bytes] | Sequence[str], network: str = NET) -> None:
    """Leases as if somebody else had made them."""
    (directory / network).mkdir(exist_ok=True)
    named = contents if isinstance(contents, Mapping) else {name: f"{name}-holder\r\neth0" for name in contents}
    for name, content in named.items():
        (directory / network / name).write_bytes(content.encode() if isinstance(content, str) else content)


def expect_truth(directory: Path, network: str = NET) -> bool:
    """What the index says of itself is so: when it is current it has each lease, and no other. Whether it is."""
    home = directory / ".nodeplug" / network
    if not Index(str(directory / network), str(home)).is_current():
        return False
    wanted: dict[str, set[str]] = {}
    for name, content in leases(directory, network).items():
        wanted.setdefault(digest(os.fsdecode(content.strip(b" \t\r\n\v\f\0")), 26), set()).add(name)
    found = {entry.name: set(os.readlink(entry).split(" ")) for entry in home.iterdir() if entry.name != "stamp"}
    assert found == wanted
    return True
