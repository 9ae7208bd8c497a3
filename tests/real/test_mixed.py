"""Chains of our plugins and the reference's, in every mixture, and leases of each released by the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeplug.harness.runtime.cache import Attachment
from nodeplug.harness.runtime.cri import Port
from nodeplug.harness.runtime.runtime import Runtime
from nodeplug.ops.demo import who
from nodeplug.ops.demo.who import Who
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import GATEWAY, PORTMAP, REFERENCE, Node, bridge, conflist, install, leases, silent, start_worker
from tests.space import Space

pytestmark = needs("sandbox", f"file:{REFERENCE}/bridge", "program:nft", "program:iptables")
NAMES = ("bridge", "host-local", "portmap")
MIXTURES = [
    (),
    ("bridge",),
    ("host-local",),
    ("portmap",),
    ("bridge", "host-local"),
    ("bridge", "portmap"),
    ("host-local", "portmap"),
    NAMES,
]


@dataclass
class Bench:
    """One test's plugin directories and leases."""

    ledger: Ledger
    directory: Path

    def runtime(self, *theirs: str, way: str = "launcher") -> Runtime:
        """Our runtime over plugins of which `theirs` are the reference's."""
        plugins = self.directory / f"bin-{way}-{'-'.join(theirs)}"
        if not plugins.is_dir():
            install(plugins, theirs=theirs, way=way)
        return Runtime([plugins], cache_directory=self.directory / "cache")

    def pod(self) -> tuple[Space, Attachment]:
        """A namespace with a server on port 80 and hostPort 8080."""
        space = self.ledger.netns()
        mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
        server = Who("pod", 80, space.path)
        self.ledger.adopt("server", server.close)
        return space, Attachment(space.name, netns=space.path, capability_args={"portMappings": [mapping]})

    @property
    def network(self) -> object:
        return conflist(bridge(self.leases, hairpinMode=True), PORTMAP)

    @property
    def leases(self) -> Path:
        return self.directory / "leases"


@pytest.fixture
def bench(ledger: Ledger) -> Bench:
    ledger.link("cni0")
    for path in ("ip nat", "ip6 nat", "ip filter", "ip6 filter", "inet nodeplug"):
        ledger.table(*path.split())
    return Bench(ledger, ledger.directory())


@pytest.mark.parametrize("theirs", MIXTURES, ids=lambda theirs: "+".join(theirs) or "none")
def test_chain_with_some_of_the_references_plugins_works(bench: Bench, theirs: tuple[str, ...]) -> None:
    runtime = bench.runtime(*theirs)
    space, attachment = bench.pod()
    result = runtime.add(bench.network, attachment)
    (address,) = result.addresses("eth0")
    assert leases(bench.leases) == {address}
    assert who.fetch(address, 80) == f"pod answers {GATEWAY}"
    assert who.fetch("127.0.0.1", 8080).startswith("pod answers")
    assert who.fetch(GATEWAY, 8080, space.path).startswith("pod answers")
    if "portmap" not in theirs:  # the reference's 1.1.1 fails its own CHECK of a v4 pod
        runtime.check(bench.network, attachment)
    runtime.delete(bench.network, attachment)
    assert leases(bench.leases) == set()
    assert silent("127.0.0.1", 8080)
    assert space.links() == {"lo"}


@needs("program:cc")
def test_each_mixture_works_through_shim_and_worker(bench: Bench) -> None:
    start_worker(bench.ledger)
    for theirs in MIXTURES[:-1]:
        runtime = bench.runtime(*theirs, way="worker")
        space, attachment = bench.pod()
        (address,) = runtime.add(bench.network, attachment).addresses("eth0")
        assert leases(bench.leases) == {address}
        assert who.fetch(address, 80) == f"pod answers {GATEWAY}"
        assert who.fetch("127.0.0.1", 8080).startswith("pod answers")
        runtime.delete(bench.network, attachment)
        assert leases(bench.leases) == set()
        assert silent("127.0.0.1", 8080)
        assert space.links() == {"lo"}


@pytest.mark.parametrize("first", [(), NAMES], ids=["ours first", "theirs first"])
def test_pods_of_one_are_deleted_by_the_other(bench: Bench, first: tuple[str, ...]) -> None:
    second = () if first else NAMES
    space, attachment = bench.pod()
    # Without ipMasq: the reference's 1.1.1 fails a DEL whose masquerade chain it does not find.
    network = conflist(bridge(bench.leases, ipMasq=False), PORTMAP)
    bench.runtime(*first).add(network, attachment)
    bench.runtime(*second).delete(network, attachment)
    assert leases(bench.leases) == set()
    assert space.links() == {"lo"}
    bench.runtime(*first).delete(network, attachment)  # which has rules in its own form to take away


@pytest.mark.parametrize("first", [(), NAMES], ids=["ours first", "theirs first"])
def test_addresses_of_one_are_not_given_out_by_the_other(bench: Bench, first: tuple[str, ...]) -> None:
    second = () if first else NAMES
    network = conflist(bridge(bench.leases))
    made = []
    for theirs in (first, second, first, second):
        space = bench.ledger.netns()
        attachment = Attachment(space.name, netns=space.path)
        made.append((theirs, attachment, bench.runtime(*theirs).add(network, attachment).addresses("eth0")))
    assert len({addresses for _, _, addresses in made}) == 4
    assert len(leases(bench.leases)) == 4
    for theirs, attachment, _ in made:
        bench.runtime(*theirs).delete(network, attachment)
    assert leases(bench.leases) == set()


@needs("program:containerd", "program:runc")
@pytest.mark.parametrize("theirs", [("bridge",), ("host-local", "portmap")], ids="+".join)
def test_mixed_chain_serves_pods_under_containerd(ledger: Ledger, theirs: tuple[str, ...]) -> None:
    directory = ledger.directory()
    network = conflist(bridge(directory / "leases", hairpinMode=True), PORTMAP)
    node = Node(ledger, install(directory / "bin", theirs=theirs), network, directory)
    pods = node.run_all({"web": (Port(8080, 80),), "job": ()})
    web, job = (node.address(pods[name]) for name in ("web", "job"))
    assert node.ask(pods["job"], web, 80) == f"web answers {job}"
    assert who.fetch("127.0.0.1", 8080).startswith("web answers")
    node.delete_all(pods.values())
    assert node.leases() == set()
    assert silent("127.0.0.1", 8080)
