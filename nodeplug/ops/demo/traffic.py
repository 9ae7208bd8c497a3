"""Who can reach whom, shown by what comes back: each server says its name and the address it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error, Refused
from nodeplug.ops.demo import outside, who

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.ops.demo.pods import Pod, Pods


@dataclass(frozen=True)
class Place:
    """Where one may ask from: `ask(address, port)` returns what a server answered."""

    name: str
    ask: Callable[[str, int], str]


@dataclass(frozen=True)
class Exchange:
    """A question from a place to an address, and how the answer must begin."""

    place: Place
    target: str
    address: str
    port: int
    wanted: str

    def run(self) -> tuple[str, str, str]:
        """From, to, what came back. Raises `Refused` when it is not what must come."""
        to = f"{self.target}, {self.address}:{self.port}"
        try:
            said = self.place.ask(self.address, self.port)
        except Error as error:
            raise Refused(f"{self.place.name} to {to}: {error}") from error
        if not said.startswith(self.wanted):
            raise Refused(f"{self.place.name} to {to}: {said!r} came back, not {self.wanted!r}")
        return self.place.name, to, said


def exchanges(pods: Pods, running: dict[str, Pod], *, gateway: str, port: int) -> list[Exchange]:
    """What the demo shows. The node and the machine outside serve on `port`; `gateway` is the node for its pods."""

    def pod(name: str) -> Place:
        return Place(f"pod {name}", lambda address, port: pods.fetch(running[name], address, port))

    web, api, job = running["web"], running["api"], running["job"]
    node = Place("the node", who.fetch)
    far = Place("outside", lambda address, port: who.fetch(address, port, outside.PATH))
    return [
        Exchange(pod("api"), "pod web", web.address, 80, f"web answers {api.address}"),
        Exchange(pod("web"), "pod job", job.address, 80, f"job answers {web.address}"),
        Exchange(pod("job"), "the node", gateway, port, f"node answers {job.address}"),
        Exchange(node, "pod api", api.address, 80, f"api answers {gateway}"),
        Exchange(pod("job"), "outside", outside.ADDRESS, port, f"outside answers {outside.NODE}"),
        Exchange(far, "hostPort of web", outside.NODE, web.host_port, f"web answers {outside.ADDRESS}"),
        Exchange(node, "hostPort of web", "127.0.0.1", web.host_port, "web answers"),
        Exchange(pod("job"), "hostPort of api", outside.NODE, api.host_port, "api answers"),
        Exchange(pod("web"), "its own hostPort", outside.NODE, web.host_port, "web answers"),
    ]
