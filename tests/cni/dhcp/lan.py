"""A network with DHCP servers on it: a bridge in a namespace of its own, pods and hosts plugged into it.

`Dnsmasq` is the real server. `Faulty` is a small one for what that cannot do: silence, refusals, nonsense. It writes
and reads the wire by itself, from the RFCs and not from our code.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nodeplug.cni.ipam.dhcp import store
from nodeplug.cni.ipam.dhcp.lease import Lease
from tests.child import Process, run, until
from tests.ledger import Ledger
from tests.space import HERE, Space

SERVER = "10.5.0.1"
DIRECTORY = Path("/var/lib/nodeplug/dhcp")
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = range(1, 8)
_COOKIE = b"\x63\x82\x53\x63"
_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_BINDTODEVICE = 25


class Lan:
    """`space` is where the servers are; its link `lan0` is the bridge, with their address."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.space = ledger.netns()
        self._plugs = 0
        for command in ("link add lan0 type bridge", f"address add {SERVER}/24 dev lan0", "link set lan0 up"):
            self.space.run("ip", *command.split()).ok()

    def plug(self, space: Space, name: str) -> None:
        """Give a namespace a link to the network, which is down as an attachment's is at first."""
        self._plugs += 1
        port = f"port{self._plugs}"
        self.space.run("ip", "link", "add", port, "master", "lan0", "type", "veth", "peer", "name", "new").ok()
        there = space.name if space is not HERE else str(os.getpid())
        self.space.run("ip", "link", "set", "new", "name", name, "netns", there).ok()
        self.space.run("ip", "link", "set", port, "up").ok()

    def pod(self, ifname: str = "eth0") -> Space:
        found = self.ledger.netns()
        self.plug(found, ifname)
        return found

    def uplink(self, name: str = "np-up0", *, master: str = "") -> str:
        """A link of the host to the network, up; a port of the bridge `master` where that is given."""
        self.ledger.link(name)
        self.plug(HERE, name)
        if master:
            run(["ip", "link", "set", name, "master", master]).ok()
        run(["ip", "link", "set", name, "up"]).ok()
        return name


class Dnsmasq:
    """dnsmasq on the network, until `stop()`. `more` are its options."""

    def __init__(self, lan: Lan, *more: str, range: str = "10.5.0.10,10.5.0.99", lasts: str = "1h") -> None:
        self.lan = lan
        self.file = lan.ledger.directory() / "leases"
        self._argv = [
            "dnsmasq",
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
            "--log-dhcp",
            "--no-ping",
            "--interface=lan0",
            "--bind-interfaces",
            f"--dhcp-leasefile={self.file}",
            f"--dhcp-range={range},255.255.255.0,{lasts}",
            f"--pid-file={self.file}.pid",
            *more,
        ]
        self.process: Process = self.start()

    def start(self) -> Process:
        self.process = self.lan.ledger.start(self._argv, netns=self.lan.space.path)
        until(lambda: "sockets bound" in self.process.output(), "dnsmasq serves")
        return self.process

    def stop(self) -> None:
        self.process.end()

    def leases(self) -> dict[str, bytes]:
        """Address -> client identifier, as it remembers them."""
        if not self.file.exists():
            return {}
        rows = [line.split() for line in self.file.read_text().splitlines()]
        return {row[2]: bytes.fromhex(row[4].replace(":", "")) for row in rows if len(row) == 5}

    def heard(self, what: str) -> int:
        """How many messages of that name (DHCPRELEASE ...) its log tells of."""
        return self.process.output().count(f"{what}(lan0)")


class Heard:
    """A message that came to a server."""

    def __init__(self, data: bytes, sender: tuple[str, int]) -> None:
        fields = _HEADER.unpack_from(data)
        self.xid, self.seconds, self.broadcast = fields[4], fields[5], bool(fields[6] & 0x8000)
        self.ciaddr, self.chaddr = socket.inet_ntoa(fields[7]), fields[11][: fields[2]]
        self.sender = sender
        self.options: dict[int, bytes] = {}
        assert data[_HEADER.size : _HEADER.size + 4] == _COOKIE
        at = _HEADER.size + 4
        while data[at] != 255:
            if data[at]:
                self.options[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
                at += 1 + data[at + 1]
            at += 1
        self.type = self.options[53][0]

    def __repr__(self) -> str:
        return f"<{self.type} from {self.sender} ciaddr {self.ciaddr}>"


def reply(
    heard: Heard,
    kind: int,
    address: str,
    options: Mapping[int, bytes] = {},  # only read
    *,
    server: str = SERVER,
    xid: int | None = None,
    chaddr: bytes | None = None,
) -> bytes:
    """A server's message."""
    mac = heard.chaddr if chaddr is None else chaddr
    header = _HEADER.pack(
        *(2, 1, len(mac), 0, heard.xid if xid is None else xid, 0, 0),
        *(bytes(4), socket.inet_aton(address), bytes(4), bytes(4)),
        *(mac.ljust(16, b"\0"), b"", b""),
    )
    found = {53: bytes((kind,)), 54: socket.inet_aton(server), **options}
    return header + _COOKIE + b"".join(bytes((code, len(v))) + v for code, v in found.items()) + b"\xff"


class Faulty:
    """A server that does as `answer(heard)` says: it returns messages to send. Without one it leases `address`.

    `lasts`, `t1`, `t2` are its seconds; `silent` has it say nothing, `nak` refuse every request.
    """

    def __init__(self, lan: Lan, *, server: str = SERVER, **more: Any) -> None:
        self.server = server
        self.address = "10.5.0.50"
        self.lasts = 3600
        self.t1 = self.t2 = 0
        self.options: dict[int, bytes] = {1: b"\xff\xff\xff\0", 3: socket.inet_aton(SERVER)}
        self.silent = self.nak = False
        self.answer: Callable[[Heard], list[bytes]] = self.lease
        self.heard: list[Heard] = []
        for name, value in more.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self._lan = lan
        self._socket = lan.space.call(self._open)
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="faulty DHCP server", daemon=True)
        self._thread.start()
        lan.ledger.adopt("faulty DHCP server", self.stop)

    def _open(self) -> socket.socket:
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        found.setsockopt(socket.SOL_SOCKET, _BINDTODEVICE, b"lan0")
        found.bind(("0.0.0.0", 67))
        return found

    def stop(self) -> None:
        if self._wake >= 0:
            os.write(self._woken, b"!")
            self._thread.join()
            self._socket.close()
            os.close(self._wake)
            os.close(self._woken)
            self._wake = -1

    def lease(self, heard: Heard) -> list[bytes]:
        times = {51: self.lasts, 58: self.t1, 59: self.t2}
        options = {**{code: value.to_bytes(4, "big") for code, value in times.items() if value}, **self.options}
        if heard.type == DISCOVER:
            return [reply(heard, OFFER, self.address, options, server=self.server)]
        if heard.type == REQUEST and self.nak:
            return [reply(heard, NAK, "0.0.0.0", {56: b"not today\n"}, server=self.server)]
        chosen = heard.options.get(54, socket.inet_aton(self.server))
        if heard.type == REQUEST and chosen == socket.inet_aton(self.server):
            return [reply(heard, ACK, self.address, options, server=self.server)]
        return []

    def count(self, kind: int) -> int:
        return sum(heard.type == kind for heard in self.heard)

    def _serve(self) -> None:
        while True:
            ready = select.select([self._wake, self._socket], [], [])[0]
            if self._wake in ready:
                return
            data, sender = self._socket.recvfrom(4096)
            heard = Heard(data, sender)
            self.heard.append(heard)
            if self.silent:
                continue
            to = (heard.ciaddr if heard.ciaddr != "0.0.0.0" else "255.255.255.255", 68)
            for message in self.answer(heard):
                try:
                    self._socket.sendto(message, to)
                except OSError:
                    pass  # the pod has lost the address that it asked from


def leases() -> list[Lease]:
    """Those on disk, by address."""
    found = [lease for lease in store.Leases(str(DIRECTORY)).all() if isinstance(lease, Lease)]
    return sorted(found, key=lambda lease: lease.address.value)


def the_lease() -> Lease:
    """The only one."""
    (found,) = leases()
    return found


def rewrite(**changes: Any) -> Lease:
    """Change the only lease on disk, as time or somebody else would; times are relative to now."""
    from nodeplug.cni.ipam.dhcp.lease import uptime

    moments = {name: value + uptime() for name, value in changes.items() if name in ("renew", "rebind", "expires")}
    changes.update(moments)
    if "renew" in moments:
        changes.setdefault("next", moments["renew"])
    found = the_lease().replace(**changes)
    store.Leases(str(DIRECTORY)).write(found)
    return found


def ipv4(space: Space, ifname: str = "eth0") -> set[str]:
    """The addresses of a pod's link."""
    found = space.ip("-4", "address", "show", "dev", ifname)
    return {f"{one['local']}/{one['prefixlen']}" for link in found for one in link.get("addr_info", ())}


def default_routes(space: Space) -> set[str]:
    return {one["gateway"] for one in space.ip("route", "show", "default") if "gateway" in one}


def dumped(path: Path) -> Any:
    return json.loads(path.read_text())
