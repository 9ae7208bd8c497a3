"""host-local on a node that fails it: killed at any step, a full or read-only disk, no descriptors, a right withheld.

What holds throughout: no address is given twice, none is lost once DEL or GC has come, no lease is half written.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.child import run
from tests.cni.injection import failing_at, killed_at, steps_of
from tests.cni.leases import (
    NET,
    addresses,
    conf,
    executable,
    expect_truth,
    fill,
    holders,
    leases,
    ours,
    refusal,
    variables,
)

DUAL = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]
SCENES = ["fresh", "used", "visited", "legacy", "empty"]


def scene(name: str, directory: Path) -> None:
    """What is there before the verb."""
    config = conf(directory, ranges=DUAL)
    if name != "fresh":
        ours("ADD", config, "other")
    if name in ("visited", "legacy"):
        fill(directory, {"10.1.0.3": "visitor\r\neth0", "10.1.0.4": "old"})
    if name == "legacy":
        fill(directory, {"10.1.0.5": "a"})
    if name == "empty":
        fill(directory, {"10.1.0.3": "", "fd00::3": ""})


def whole(directory: Path) -> None:
    """No lease is half written; the index says no more than is so."""
    for name, content in leases(directory).items():
        assert content.decode() in ("other\r\neth0", "a\r\neth0", "visitor\r\neth0", "old", "a", ""), name
    expect_truth(directory)


def verb(command: str, directory: Path) -> Callable[[], int]:
    config: dict[str, Any] = conf(directory, version="1.1.0", ranges=DUAL)
    if command == "GC":
        config["cni.dev/valid-attachments"] = [
            {"containerID": c, "ifname": "eth0"} for c in ("other", "visitor", "old")
        ]
    return lambda: ours(command, config)[0]


def expect_all_in_order(directory: Path) -> None:
    """After the runtime's DEL the container has nothing, a new one gets what it should, and GC leaves what is valid."""
    config = conf(directory, ranges=DUAL)
    before = {name: holder for name, holder in holders(directory).items() if holder and not holder.startswith("a")}
    assert ours("DEL", config) == (0, None)
    assert ours("DEL", config) == (0, None)
    after = holders(directory)
    assert {name: holder for name, holder in after.items() if holder} == before
    given = addresses(ours("ADD", config))
    assert not {ip.partition("/")[0] for ip in given} & set(before)
    assert verb("GC", directory)() == 0
    assert holders(directory) == before
    assert expect_truth(directory)


def each_step(command: str, name: str, directory: Path) -> Iterator[tuple[int, Path, Callable[[], int]]]:
    """For each step of the verb its number, a directory with that scene, and the verb to be called there."""
    steps: list[str] | None = None
    number = 0
    while steps is None or number <= len(steps):
        home = directory / str(number)
        home.mkdir()
        scene(name, home)
        if command != "ADD":
            ours("ADD", conf(home, ranges=DUAL))
        call = verb(command, home)
        if steps is None:
            steps = steps_of(call, str(home))
            shutil.rmtree(home)
        else:
            yield number, home, call
            number += 1


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("command", ["ADD", "DEL", "GC"])
def test_killed_before_any_step_it_leaves_what_delete_and_gc_put_in_order(
    command: str, name: str, directory: Path
) -> None:
    died = []
    for step, home, call in each_step(command, name, directory):
        died.append(killed_at(step, call, str(home)))
        whole(home)
        killed_at(step // 2, verb("DEL", home), str(home))
        whole(home)
        expect_all_in_order(home)
    assert died == [True] * (len(died) - 1) + [False]
    assert len(died) > 5


@pytest.mark.parametrize("name", ["used", "visited"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("command", ["ADD", "DEL", "GC"])
def test_a_step_that_fails_leaves_no_half_of_an_allocation(
    command: str, error: int, name: str, directory: Path
) -> None:
    for step, home, call in each_step(command, name, directory):
        before = holders(home)
        code = failing_at(step, error, call, str(home))
        assert code in (0, 1)
        whole(home)
        after = holders(home)
        if command == "ADD":
            added = {key: holder for key, holder in after.items() if before.get(key) != holder}
            assert sorted(added.values()) == ([] if code else ["a eth0", "a eth0"])
        elif code == 0:
            assert "a eth0" not in after.values()
        expect_all_in_order(home)


def test_five_hundred_operations_killed_anywhere_give_no_address_twice_and_lose_none(directory: Path) -> None:
    """A runtime with twelve containers and as many addresses more; it repeats a DEL that died, sometimes much later."""
    chance = random.Random(15763)
    config = conf(directory, ranges=[[{"subnet": "10.1.0.0/27"}]])
    (directory / NET).mkdir()
    live: dict[str, str] = {}
    dying: set[str] = set()
    kills = 0
    for _ in range(500):
        container = f"c{chance.randrange(12)}"
        if container in dying or container in live:
            if killed_at(chance.randrange(24), lambda c=container: ours("DEL", config, c)[0], str(directory)):  # type: ignore[misc]
                kills += 1
                dying.add(container)
                live.pop(container, None)
            else:
                dying.discard(container)
                live.pop(container, None)
                assert f"{container} eth0" not in holders(directory).values()
        elif killed_at(chance.randrange(24), lambda c=container: ours("ADD", config, c)[0], str(directory)):  # type: ignore[misc]
            kills += 1
            dying.add(container)
        else:
            mine = [name for name, holder in holders(directory).items() if holder == f"{container} eth0"]
            assert len(mine) == 1, "an ADD that was not killed has succeeded"
            assert mine[0] not in live.values()
            live[container] = mine[0]
        found = holders(directory)
        for holder, address in live.items():
            assert found[address] == f"{holder} eth0"
        assert set(found.values()) <= {f"{name} eth0" for name in (*live, *dying)}
        expect_truth(directory)
    assert kills > 100
    valid = [{"containerID": name, "ifname": "eth0"} for name in live]
    assert ours("GC", {**config, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}) == (0, None)
    assert holders(directory) == {address: f"{name} eth0" for name, address in live.items()}
    assert expect_truth(directory)


# The real thing


@pytest.mark.needs("sandbox")
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_where_the_disk_ends_an_add_succeeds_or_leaves_nothing(kind: str, directory: Path) -> None:
    run(["mount", "-t", kind, "-o", "size=64k,nr_inodes=24", kind, directory]).ok()
    config = conf(directory, ranges=DUAL)
    addresses(ours("ADD", config, "first"))
    room = 0 if kind == "ramfs" else os.statvfs(directory).f_bfree
    outcomes = set()
    for left in range(min(room, 8), -1, -1):
        ballast = directory / "ballast"
        if kind == "tmpfs":
            ballast.write_bytes(bytes((room - left) * 4096))
        code, answer = ours("ADD", config)
        outcomes.add(code)
        if code:
            assert "No space left on device" in answer["msg"]
            assert "free space, or inodes" in answer["details"]
            assert answer["code"] == 5
            assert set(holders(directory).values()) == {"first eth0"}
            assert ours("STATUS", {**config, "cniVersion": "1.1.0"})[0] in (0, 1)
        # DEL needs no room.
        assert ours("DEL", config) == (0, None)
        assert set(holders(directory).values()) == {"first eth0"}
        ballast.unlink(missing_ok=True)
        assert addresses(ours("ADD", config))
        assert ours("DEL", config) == (0, None)
    assert outcomes == ({0} if kind == "ramfs" else {0, 1})


@pytest.mark.needs("sandbox")
def test_where_the_inodes_end_an_add_succeeds_or_leaves_nothing(directory: Path) -> None:
    run(["mount", "-t", "tmpfs", "-o", "nr_inodes=40", "tmpfs", directory]).ok()
    config = conf(directory, ranges=DUAL)
    addresses(ours("ADD", config, "first"))
    codes = []
    for number in range(40):
        codes.append(ours("ADD", config, f"c{number}")[0])
        mine = [holder for holder in holders(directory).values() if holder == f"c{number} eth0"]
        assert len(mine) == (0 if codes[-1] else 2)
    assert codes == sorted(codes)
    assert 0 < sum(codes) < 40
    code, error = ours("STATUS", {**config, "cniVersion": "1.1.0"})
    if os.statvfs(directory).f_ffree == 0:
        assert (code, error["code"]) == (1, 50)
        assert "is full" in error["msg"]
    for number in range(40):
        assert ours("DEL", config, f"c{number}") == (0, None)
    assert set(holders(directory).values()) == {"first eth0"}


@pytest.mark.needs("sandbox")
def test_a_read_only_directory_is_told_and_nothing_hangs(directory: Path) -> None:
    run(["mount", "-t", "tmpfs", "tmpfs", directory]).ok()
    config = conf(directory, ranges=DUAL)
    _, result = ours("ADD", config)
    run(["mount", "-o", "remount,ro", directory]).ok()
    for command, container in (("ADD", "b"), ("DEL", "a")):
        code, error = ours(command, config, container)
        assert (code, error["code"]) == (1, 5)
        assert f"in {directory}/pods: Read-only file system" in error["msg"]
        assert error["details"] == "make that file system writable, or name another ipam.dataDir"
    assert ours("CHECK", {**config, "prevResult": result}) == (0, None)
    assert ours("DEL", config, "unknown") == (0, None)
    code, error = ours("STATUS", {**config, "cniVersion": "1.1.0"})
    assert (code, error["code"]) == (1, 50)
    assert "cannot be written" in error["msg"]
    code, error = ours("ADD", conf(directory / "new", ranges=DUAL))
    assert (code, error["code"]) == (1, 5)
    run(["mount", "-o", "remount,rw", directory]).ok()
    assert ours("DEL", config) == (0, None)
    assert holders(directory) == {}


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_without_descriptors_a_verb_succeeds_or_leaves_all_as_it_was(command: str, directory: Path) -> None:
    config = conf(directory, ranges=DUAL)
    ours("ADD", config, "other")
    codes = []
    for spare in range(8):
        if command == "DEL":
            ours("ADD", config)
        before = holders(directory)

        def with_few(spare: int = spare) -> int:
            used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
            # Numbers below the highest one may be free: take them first.
            while os.open("/dev/null", os.O_RDONLY) < used:
                pass
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + spare,) * 2)
            return ours(command, config)[0]

        code = failing_at(-1, 0, with_few, "nothing")
        codes.append(code)
        assert code in (0, 1)
        after = holders(directory)
        if code:
            assert after == before
        else:
            assert ("a eth0" in after.values()) == (command == "ADD")
        expect_truth(directory)
        assert ours("DEL", config) == (0, None)
    assert codes[0] == 1
    assert codes[-1] == 0


@pytest.mark.needs("sandbox")
def test_without_the_right_to_write_add_says_so(directory: Path) -> None:
    (directory / NET).mkdir(mode=0o755)
    directory.chmod(0o755)
    plugin = executable(directory)
    outcome = run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", plugin],
        env=variables("ADD", "a", "eth0", ""),
        stdin=json.dumps(conf(directory, ranges=DUAL)).encode(),
    )
    assert (outcome.code, outcome.json()["code"]) == (1, 5)
    assert f"cannot lock the leases in {directory}/pods: Permission denied" in outcome.json()["msg"]


@pytest.mark.parametrize("place", ["file", "file/below", "pods-is-file"])
def test_a_file_where_a_directory_should_be_is_told(place: str, directory: Path) -> None:
    (directory / "file").write_text("")
    (directory / NET).write_text("")
    data = directory if place == "pods-is-file" else directory / place
    said = refusal(ours("ADD", conf(data, ranges=DUAL)))
    assert "cannot lock the leases" in said
    assert "Not a directory" in said or "File exists" in said


def test_a_lease_that_cannot_be_freed_keeps_no_other_from_it(directory: Path) -> None:
    config = conf(directory, ranges=DUAL)
    ours("ADD", config, "probe")
    unlink = steps_of(lambda: ours("DEL", config, "probe")[0], str(directory)).index("os.remove")
    ours("ADD", config)
    assert failing_at(unlink, errno.EPERM, lambda: ours("DEL", config)[0], str(directory)) == 1
    assert holders(directory) == {"10.1.0.3": "a eth0"}
    assert ours("DEL", config) == (0, None)
    assert holders(directory) == {}
