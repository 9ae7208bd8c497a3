"""Plugins asked about pods: the network's configuration, the call, and what became of pod and host.

Most tests ask in this process, which is quick; `Network.executable` runs the launcher as a runtime does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links
from tests.child import Finished, run
from tests.cni.calls import ask, environment
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT
from tests.space import HERE, Space

REFERENCE = "/usr/lib/cni"
RANGES = {4: [{"subnet": "10.88.0.0/24"}], 6: [{"subnet": "fd88::/64"}]}


def host_local(*families: int, **more: Any) -> dict[str, Any]:
    """An `ipam` with one range of each family."""
    return {"type": "host-local", "ranges": [RANGES[family] for family in families or (4,)], **more}


def static(*addresses: str, **more: Any) -> dict[str, Any]:
    """An `ipam` that gives these addresses; "10.0.0.2/24,10.0.0.1" has a gateway."""
    found = [dict(zip(("address", "gateway"), text.split(","), strict=False)) for text in addresses]
    return {"type": "static", "addresses": found, **more}


class Network:
    """One plugin's configuration, and calls with it. `plugins` is the directory of our executables."""

    def __init__(self, ledger: Ledger, **config: Any) -> None:
        self.config = {"cniVersion": "1.1.0", "name": "pods", **config}
        self.ledger = ledger
        self.leases_in = ledger.directory()
        if self.config.get("ipam", {}).get("type") == "host-local":
            self.config["ipam"] = {"dataDir": str(self.leases_in), **self.config["ipam"]}
        self.plugins = ledger.directory()
        for name in {str(self.config["type"]), "host-local", "static"}:
            (self.plugins / name).symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
        ledger.link(str(self.config.get("bridge", "cni0")))

    def env(self, command: str, pod: Space | None, **variables: str | None) -> dict[str, str]:
        netns = {} if pod is None else {"CNI_NETNS": pod.path, "CNI_CONTAINERID": pod.name}
        return environment(command, **{"CNI_PATH": f"{self.plugins}:{REFERENCE}", **netns, **variables})

    def ask(
        self, command: str, pod: Space | None = None, extra: Any = None, **variables: str | None
    ) -> tuple[int, Any]:
        """(exit code, stdout as JSON). `extra` are keys of the configuration for this call."""
        config = {**self.config, **(extra or {})}
        code, answer, _ = ask(str(config["type"]), self.env(command, pod, **variables), config)
        return code, answer

    def warnings(self, command: str, pod: Space, extra: Any = None) -> str:
        """stderr of a call that succeeds."""
        code, answer, stderr = ask(str(self.config["type"]), self.env(command, pod), {**self.config, **(extra or {})})
        assert code == 0, answer
        return stderr

    def add(self, pod: Space, extra: Any = None, **variables: str | None) -> dict[str, Any]:
        """The result of an ADD that succeeds; the ledger deletes what the test does not."""
        self.ledger.adopt(f"attachment of {pod.name}", lambda: self.ask("DEL", pod, extra, **variables))
        code, answer = self.ask("ADD", pod, extra, **variables)
        assert code == 0, answer
        return answer  # type: ignore[no-any-return]  # JSON

    def delete(self, pod: Space, extra: Any = None, **variables: str | None) -> None:
        code, answer = self.ask("DEL", pod, extra, **variables)
        assert (code, answer) == (0, None)

    def check(self, pod: Space, result: Any, extra: Any = None, **variables: str | None) -> None:
        code, answer = self.ask("CHECK", pod, {"prevResult": result, **(extra or {})}, **variables)
        assert (code, answer) == (0, None)

    def refused(self, command: str, pod: Space | None = None, extra: Any = None, **variables: str | None) -> Any:
        """The error object of a call that fails."""
        code, answer = self.ask(command, pod, extra, **variables)
        assert code == 1, answer
        return answer

    def leases(self) -> set[str]:
        """The addresses that host-local has given and not taken back."""
        directory = self.leases_in / str(self.config["name"])
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
        return {name for name in names if not name.startswith(("lock", "last_"))}

    def stdin(self, extra: Any = None) -> bytes:
        return json.dumps({**self.config, **(extra or {})}).encode()

    def executable(self, command: str, pod: Space | None, extra: Any = None, **variables: str | None) -> Finished:
        """The same by the launcher, in a process of its own."""
        program, env = self.plugins / str(self.config["type"]), self.env(command, pod, **variables)
        return run([program], env=env, stdin=self.stdin(extra), timeout=60)


def link(name: str, space: Space = HERE) -> links.Link | None:
    """The link of that name in a namespace, as the kernel has it."""

    def look() -> links.Link | None:
        with Netlink(NETLINK_ROUTE) as route:
            return links.find(route, name)

    return space.call(look)


def host_links() -> set[str]:
    """The host's links, lo apart."""
    return HERE.links() - {"lo"}


def addresses(space: Space, ifname: str = "eth0") -> set[str]:
    """What somebody gave the link: `10.0.0.2/24`; link-local ones apart."""
    (found,) = space.ip("address", "show", "dev", ifname)
    return {f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"] if a["scope"] != "link"}


def routes(space: Space, family: int = 4) -> dict[str, Any]:
    """The routes of the main table by destination."""
    return {route["dst"]: route for route in space.ip(f"-{family}", "route", "show")}


def setting(space: Space, *key: str) -> str:
    """A value below /proc/sys, as a process inside sees it."""
    return space.call(lambda: Path("/proc/sys", *key).read_text().strip())
