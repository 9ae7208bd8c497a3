"""The index of holders: it spares reading all leases, and is never believed when somebody else has been there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeplug.cni.ipam.index import Index
from nodeplug.cni.ipam.store import holder_of
from nodeplug.core.naming import digest
from tests.cni.injection import steps_of
from tests.cni.leases import (
    NET,
    Implementation,
    addresses,
    conf,
    expect_truth,
    fill,
    holders,
    leases,
    ours,
    reference,
    refusal,
)
from tests.needs import needs

BOTH = [ours, pytest.param(reference, marks=needs("file:/usr/lib/cni/host-local"))]
SUBNET = "10.1.0.0/16"


def entry(directory: Path, container: str, ifname: str = "eth0") -> Path:
    return directory / ".nodeplug" / NET / digest(holder_of(container, ifname), 26)


def test_a_holder_has_one_entry_with_all_its_addresses(directory: Path) -> None:
    config = conf(directory, ranges=[[{"subnet": SUBNET}], [{"subnet": "fd00::/64"}]])
    ours("ADD", config)
    assert os.readlink(entry(directory, "a")) == "10.1.0.2 fd00::2"
    assert expect_truth(directory)
    ours("DEL", config)
    assert [path.name for path in entry(directory, "a").parent.iterdir()] == ["stamp"]
    assert expect_truth(directory)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
def test_the_steps_of_a_verb_do_not_grow_with_the_leases(verb: str, directory: Path) -> None:
    config = conf(directory, subnet=SUBNET, prevResult={"cniVersion": "1.0.0"})
    seen = []
    for count in (10, 3000):
        fill(directory, [f"10.1.{100 + n // 250}.{n % 250}" for n in range(count)])
        addresses(ours("ADD", config, f"first{count}"))
        ours("ADD", config, "b")
        steps = steps_of(lambda: ours(verb, config, "a" if verb == "ADD" else "b")[0], str(directory))
        seen.append(steps)
        assert expect_truth(directory)
        ours("DEL", config, "a")
        ours("DEL", config, "b")
    assert seen[0] == seen[1]
    assert "os.listdir" not in seen[0]
    assert len(seen[0]) < 20


def test_delete_of_an_unknown_container_reads_no_lease(directory: Path) -> None:
    config = conf(directory, subnet=SUBNET)
    for number in range(5):
        ours("ADD", config, f"c{number}")
    steps = steps_of(lambda: ours("DEL", config, "unknown")[0], str(directory))
    assert steps == ["open", "fcntl.flock", "open"]  # the lock and the stamp


@pytest.mark.parametrize("other", BOTH)
def test_what_another_did_is_seen_at_once(other: Implementation, directory: Path) -> None:
    """Its leases count as duplicates, are freed by our DEL, and those it freed are gone for us too."""
    config = conf(directory, subnet=SUBNET)
    for number in range(20):
        ours("ADD", config, "us")
        other("ADD", config, f"them{number}")
        assert "duplicate" in refusal(ours("ADD", config, f"them{number}"))
        other("DEL", config, "us")
        assert addresses(ours("ADD", config, "us"))
        assert ours("DEL", config, f"them{number}") == (0, None)
        assert ours("DEL", config, "us") == (0, None)
        assert holders(directory) == {}
        assert expect_truth(directory)


def test_a_change_in_the_same_tick_of_the_clock_is_seen(directory: Path) -> None:
    """Times of files come from a clock that moves every few milliseconds; a change right after ours may share its."""
    config = conf(directory, subnet=SUBNET)
    ours("ADD", config, "us")
    for number in range(200):
        ours("DEL", config, f"unknown{number}")
        ours("ADD", config, f"c{number}")
        fill(directory, {f"10.1.200.{number}": f"quick{number}\r\neth0"})
        assert not expect_truth(directory)
        ours("DEL", config, f"quick{number}")
        assert f"10.1.200.{number}" not in leases(directory)


HARMS: list[Callable[[Path], object]] = [
    lambda home: shutil.rmtree(home),
    lambda home: shutil.rmtree(home.parent),
    lambda home: (home / "stamp").unlink(),
    lambda home: (home / "stamp").write_bytes(b""),
    lambda home: (home / "stamp").write_bytes(b"0" * 1000),
    lambda home: [path.unlink() for path in home.iterdir() if not path.exists()],  # as those who tidy up dead links do
    lambda home: (shutil.rmtree(home), home.write_text("a file in its place")),
    lambda home: (shutil.rmtree(home.parent), home.parent.write_text("a file in its place")),
]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("visited", [True, False])
def test_an_index_that_was_harmed_is_rebuilt_or_done_without(
    harm: Callable[[Path], object], visited: bool, directory: Path
) -> None:
    config = conf(directory, subnet=SUBNET)
    for container in "abc":
        ours("ADD", config, container)
    home = directory / ".nodeplug" / NET
    time.sleep(0.02)  # the index's own times are the clock's, which moves every few milliseconds
    harm(home)
    if visited:
        os.utime(directory / NET)
    assert "duplicate" in refusal(ours("ADD", config, "a"))
    ours("DEL", config, "b")
    assert sorted(holders(directory).values()) == ["a eth0", "c eth0"]
    assert addresses(ours("ADD", config, "d"))
    if home.is_dir():
        assert expect_truth(directory)


@pytest.mark.parametrize("target", ["10.1.0.99", "../pods/10.1.0.2", "lock", "", " ", "10.1.0.3", "x" * 3000])
def test_an_entry_that_lies_is_not_believed(target: str, directory: Path) -> None:
    config = conf(directory, subnet=SUBNET)
    for container in "ab":
        ours("ADD", config, container)
    entry(directory, "a").unlink()
    if target:
        entry(directory, "a").symlink_to(target)
    else:
        entry(directory, "a").write_text("no link")
    Index(str(directory / NET), str(directory / ".nodeplug" / NET)).seal()
    assert "10.1.0.2 has been allocated to a" in refusal(ours("ADD", config, "a"))
    assert ours("DEL", config, "a") == (0, None)
    assert holders(directory) == {"10.1.0.3": "b eth0"}
    assert expect_truth(directory)


def test_a_directory_restored_from_a_backup_is_read_anew(directory: Path) -> None:
    config = conf(directory, subnet=SUBNET)
    ours("ADD", config, "a")
    shutil.copytree(directory / NET, directory / "backup")
    times = (directory / NET).stat()
    ours("DEL", config, "a")
    stamp = (directory / ".nodeplug" / NET / "stamp").read_bytes()
    shutil.copy2(directory / "backup" / "10.1.0.2", directory / NET)
    os.utime(directory / NET, ns=(times.st_atime_ns, int(stamp.split()[0])))
    assert "duplicate" in refusal(ours("ADD", config, "a"))


def test_a_network_made_anew_is_not_taken_for_the_old_one(directory: Path) -> None:
    config = conf(directory, subnet=SUBNET)
    ours("ADD", config, "a")
    shutil.rmtree(directory / NET)
    assert addresses(ours("ADD", config, "a")) == ["10.1.0.2/16"]
    assert expect_truth(directory)


def test_the_lease_directorys_time_stays_near_the_truth(directory: Path) -> None:
    """People look at it to see when a network was last used."""
    ours("ADD", conf(directory, subnet=SUBNET))
    assert abs((directory / NET).stat().st_mtime - time.time()) < 60


def test_the_index_takes_a_container_with_more_addresses_than_a_link_can_name(directory: Path) -> None:
    sets = [[{"subnet": f"fd00:1234:5678:9abc:def0:{n:x}::/112"}] for n in range(200)]
    config = conf(directory, ranges=sets)
    assert len(addresses(ours("ADD", config))) == 200
    assert "duplicate" in refusal(ours("ADD", config))
    assert ours("DEL", config) == (0, None)
    assert holders(directory) == {}
