"""Either implementation takes over the other's directory in place: in turn, at once, and in any order of operations."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeplug.cni.ipam.store import Leases
from nodeplug.core.errors import TryAgain
from tests.child import run
from tests.cni.leases import (
    NET,
    REFERENCE,
    Implementation,
    addresses,
    conf,
    executable,
    expect_truth,
    holders,
    leases,
    ours,
    reference,
    refusal,
    variables,
)
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs(f"file:{REFERENCE}")

PAIRS = [(ours, reference), (reference, ours)]
DUAL = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]


@pytest.mark.parametrize(("maker", "taker"), PAIRS, ids=["ours to theirs", "theirs to ours"])
def test_leases_of_one_are_known_checked_and_freed_by_the_other(
    maker: Implementation, taker: Implementation, directory: Path
) -> None:
    config = conf(directory, ranges=DUAL)
    _, result = maker("ADD", config)
    maker("ADD", config, "b")
    assert taker("CHECK", {**config, "prevResult": result}) == (0, None)
    assert "10.1.0.2 has been allocated to a, duplicate" in refusal(taker("ADD", config))
    assert addresses(taker("ADD", config, "c")) == ["10.1.0.4/24", "fd00::4/64"]
    assert "is not available" in refusal(taker("ADD", config, "d", args="IP=10.1.0.3"))
    assert taker("DEL", config) == (0, None)
    assert maker("CHECK", {**config, "prevResult": result})[0] == 1
    assert maker("DEL", config, "c") == (0, None)
    assert addresses(maker("ADD", config, "e")) == ["10.1.0.5/24", "fd00::5/64"]
    assert sorted(set(holders(directory).values())) == ["b eth0", "e eth0"]


def test_both_write_the_same_files(directory: Path) -> None:
    seen = []
    for plugin in (ours, reference):
        home = directory / plugin.__name__
        config = conf(home, ranges=DUAL)
        plugin("ADD", config, "a", "eth0")
        plugin("ADD", config, "b", "net1", args="IP=10.1.0.77")
        plugin("ADD", config, "c")
        plugin("DEL", config, "a")
        seen.append({path.name: path.read_bytes() for path in (home / NET).iterdir()})
    assert seen[0] == seen[1]


def test_the_reference_waits_for_our_lock_and_we_wait_for_its(directory: Path) -> None:
    config = conf(directory, ranges=DUAL)
    answers = []
    with Leases(str(directory), NET, create=True):
        waiting = threading.Thread(target=lambda: answers.append(reference("ADD", config)))
        waiting.start()
        waiting.join(0.3)
        assert (waiting.is_alive(), leases(directory)) == (True, {})
    waiting.join(10)
    assert addresses(answers[0]) == ["10.1.0.2/24", "fd00::2/64"]
    with (
        Held(directory / NET / "lock"),
        pytest.raises(TryAgain, match="held the lock"),
        Leases(str(directory), NET, timeout=0.05),
    ):
        pass


class Held:
    """Another process holds the lock with flock(1)."""

    def __init__(self, path: Path) -> None:
        self._child = subprocess.Popen(
            ["flock", path, "sh", "-c", "echo held; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> None:
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"held\n"

    def __exit__(self, *_: object) -> None:
        self._child.communicate(b"\n")


def at_once(plugins: Sequence[Path | str], command: str, config: object, containers: Sequence[str]) -> list[bytes]:
    """Start a process for each container before waiting for any; their outputs."""
    children = []
    for number, container in enumerate(containers):
        child = subprocess.Popen(
            [plugins[number % len(plugins)]],
            env=variables(command, container, "eth0", ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        children.append(child)
    outputs = []
    for child in children:
        stdout, _ = child.communicate(json.dumps(config).encode(), timeout=60)
        assert child.returncode == 0, stdout
        outputs.append(stdout)
    return outputs


@needs("sandbox")
def test_fifty_processes_of_both_at_once_never_share_an_address(directory: Path) -> None:
    plugins = [executable(directory), REFERENCE]
    data = directory / "data"
    config = conf(data, ranges=[[{"subnet": "10.1.0.0/26"}]])
    containers = [f"c{number}" for number in range(50)]
    outputs = at_once(plugins, "ADD", config, containers)
    given = [json.loads(output)["ips"][0]["address"].removesuffix("/26") for output in outputs]
    assert len(set(given)) == 50
    assert holders(data) == {ip: f"{name} eth0" for ip, name in zip(given, containers, strict=True)}
    # Each is freed by the other implementation, all at once again.
    at_once(plugins[::-1], "DEL", config, containers)
    assert holders(data) == {}
    ours("ADD", config)
    assert expect_truth(data)


@needs("sandbox")
def test_adds_and_deletes_at_once_give_and_free_exactly_their_own(directory: Path) -> None:
    plugin = executable(directory)
    data = directory / "data"
    config = conf(data, ranges=[[{"subnet": "10.1.0.0/26"}]])
    old = [f"old{number}" for number in range(20)]
    at_once([plugin], "ADD", config, old)
    adding = threading.Thread(target=at_once, args=([plugin], "ADD", config, [f"new{n}" for n in range(20)]))
    adding.start()
    at_once([plugin], "DEL", config, old)
    adding.join(60)
    assert sorted(holders(data).values()) == sorted(f"new{n} eth0" for n in range(20))


def test_threads_of_one_process_exclude_each_other_too(directory: Path) -> None:
    """The worker answers from many threads."""
    config = conf(directory, subnet="10.1.0.0/26")
    given: list[str] = []

    def pods(number: int) -> None:
        for turn in range(6):
            given.extend(addresses(ours("ADD", config, f"c{number}-{turn}")))
            if turn % 2:
                assert ours("DEL", config, f"c{number}-{turn - 1}") == (0, None)

    threads = [threading.Thread(target=pods, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(given) == 72
    assert sorted(holders(directory).values()) == sorted(f"c{n}-{turn} eth0" for n in range(12) for turn in (1, 3, 5))
    assert expect_truth(directory)


@needs("sandbox", "file:/usr/lib/cni/bridge")
def test_their_bridge_has_its_addresses_from_our_host_local(netns: Space, ledger: Ledger, directory: Path) -> None:
    executable(directory)
    ledger.link("np-theirs")
    config = {**conf(directory, subnet="10.1.0.0/24"), "bridge": "np-theirs", "isGateway": True}
    env = {**variables("ADD", "a", "eth0", ""), "CNI_NETNS": netns.path, "CNI_PATH": str(directory)}
    done = run(["/usr/lib/cni/bridge"], env=env, stdin=json.dumps(config).encode())
    assert addresses((done.code, done.json())) == ["10.1.0.2/24"]
    assert holders(directory) == {"10.1.0.2": "a eth0"}
    assert run(["/usr/lib/cni/bridge"], env={**env, "CNI_COMMAND": "DEL"}, stdin=json.dumps(config).encode()).code == 0
    assert holders(directory) == {}


# Any order of operations, by either, against a model

HOSTS = 8
containers = st.sampled_from(["a", "b", "c"])
ifnames = st.sampled_from(["eth0", "net1"])
plugins = st.sampled_from([ours, ours, reference])
operations = st.one_of(
    st.tuples(st.just("ADD"), plugins, containers, ifnames, st.none()),
    st.tuples(st.just("ADD"), plugins, containers, ifnames, st.integers(1, HOSTS - 2)),
    st.tuples(st.just("DEL"), plugins, containers, ifnames, st.none()),
    st.tuples(st.just("CHECK"), plugins, containers, ifnames, st.none()),
    st.tuples(st.just("GC"), st.just(ours), containers, ifnames, st.none()),
)


class Model:
    """One network of two range sets, 10.1.0.0/29 and fd00::/126, as the documentation describes it."""

    sets = (
        ("10.1.0.{}", 29, [2, 3, 4, 5, 6]),
        ("fd00::{}", 126, [2, 3]),
    )

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.last = [0, 0]

    def add(self, holder: str, asked: int | None) -> list[str] | None:
        """The addresses, or None when it is refused."""
        if asked == 1:  # the gateway
            return None
        made: list[str] = []
        for number, (form, _, hosts) in enumerate(self.sets):
            names = [form.format(host) for host in hosts]
            mine = any(self.held.get(name) == holder for name in names)
            at = (hosts.index(self.last[number]) + 1) if self.last[number] in hosts else 0
            turn = [host for host in hosts[at:] + hosts[:at] if form.format(host) not in self.held]
            if number == 0 and asked is not None:
                turn, mine = [host for host in turn if host == asked], False
            if mine or not turn:
                for name in made:
                    del self.held[name]
                if made and number:
                    self._lose_the_rest(holder)
                return None
            self.held[form.format(turn[0])] = holder
            self.last[number] = turn[0]
            made.append(form.format(turn[0]))
        return [f"{name}/{prefix}" for name, (_, prefix, _) in zip(made, self.sets, strict=True)]

    def _lose_the_rest(self, holder: str) -> None:
        """Overridden where the reference rolls back more than it did."""

    def delete(self, holder: str) -> None:
        self.held = {name: other for name, other in self.held.items() if other != holder}


class ReferenceModel(Model):
    """The reference rolls back by releasing all of the container's leases, those of its earlier ADD as well."""

    def _lose_the_rest(self, holder: str) -> None:
        self.delete(holder)


@given(st.lists(operations, max_size=25))
@settings(deadline=None, max_examples=60)
def test_any_order_of_operations_by_either_does_as_the_model(
    done: list[tuple[str, Implementation, str, str, int | None]],
) -> None:
    model = Model()
    with tempfile.TemporaryDirectory(prefix="np-") as path:
        directory = Path(path)
        (directory / NET).mkdir()
        config = conf(path, ranges=[[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/126"}]])
        for verb, plugin, container, ifname, asked in done:
            holder = f"{container} {ifname}"
            if verb == "ADD":
                model.__class__ = ReferenceModel if plugin is reference else Model
                wanted = model.add(holder, asked)
                args = f"IP=10.1.0.{asked}" if asked else ""
                code, answer = plugin("ADD", config, container, ifname, args=args)
                assert (None if code else [ip["address"] for ip in answer["ips"]]) == wanted
            elif verb == "CHECK":
                previous = {**config, "prevResult": {"cniVersion": "1.0.0"}}
                assert (plugin(verb, previous, container, ifname)[0] == 0) == (holder in model.held.values())
            elif verb == "DEL":
                assert plugin(verb, config, container, ifname) == (0, None)
                model.delete(holder)
            else:
                valid = [{"containerID": container, "ifname": ifname}]
                ours("GC", {**config, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid})
                model.held = {name: other for name, other in model.held.items() if other == holder}
            assert holders(directory) == model.held
            if plugin is ours:
                expect_truth(directory)


def test_a_lock_file_made_by_either_serves_both(directory: Path) -> None:
    for first, second in PAIRS:
        home = directory / first.__name__
        first("ADD", conf(home, ranges=DUAL))
        second("ADD", conf(home, ranges=DUAL), "b")
        assert run(["flock", "-n", home / NET / "lock", "true"]).code == 0
        assert len(leases(home)) == 4
