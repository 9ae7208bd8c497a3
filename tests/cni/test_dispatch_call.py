"""What a plugin reads of its call: the variables each command needs, and stdin only where a configuration is due."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni import AddRequest, Plugin, Result
from nodeplug.cni.contract import DelegateFailed
from nodeplug.core import errors
from tests.child import Finished, run
from tests.cni.calls import COMMANDS, VERSIONS, ask, environment
from tests.needs import needs
from tests.sandbox import CHECKOUT

CONFIG = {"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": []}
PREVIOUS = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]}
NEEDED = {
    "ADD": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
    "CHECK": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
    "DEL": ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
    "GC": ["CNI_PATH"],
    "STATUS": ["CNI_PATH"],
    "VERSION": [],
}
VARIABLES = NEEDED["ADD"]


class Quiet(Plugin):
    name = "quiet"
    needs_netns = False


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("absent", [None, ""], ids=["absent", "empty"])
def test_a_command_needs_its_variables_and_no_other(command: str, absent: str | None) -> None:
    config = {**CONFIG, **({"prevResult": PREVIOUS} if command == "CHECK" else {})}
    for variable in VARIABLES:
        code, answer, _ = ask(Quiet, environment(command, **{variable: absent}), config)
        if variable in NEEDED[command]:
            assert (code, answer["code"]) == (1, 4)
            assert answer["msg"] == f"required env variables [{variable}] missing"
        else:
            assert code == 0, answer
    code, answer, _ = ask(Quiet, environment(command, **dict.fromkeys(VARIABLES, absent)), config)
    if NEEDED[command]:
        assert answer["msg"] == f"required env variables [{','.join(NEEDED[command])}] missing", "all of them at once"
    else:
        assert code == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "VERSION"])
@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("", ("0.2.0", "1.1.0")),
        ("0.4.0", ("0.2.0", "0.3.1")),
        ("1.1.0", ("0.4.0", "1.0.0")),
        ("1.1.0", ("no version",)),
        ("no version", ("0.4.0", "1.1.0")),
    ],
    ids=["none given, not of 0.1.0", "not of 0.4.0", "not of 1.1.0", "of nothing that is one", "none that is one"],
)
def test_a_version_that_the_plugin_lacks_is_refused_by_every_command(
    command: str, version: str, supported: tuple[str, ...]
) -> None:
    class Limited(Quiet):
        versions = supported

    code, answer, _ = ask(Limited, environment(command), {**CONFIG, "cniVersion": version, "prevResult": PREVIOUS})
    assert (code, answer["code"], answer["msg"]) == (1, 1, "incompatible CNI versions")
    assert answer["details"] == f'config is "{version or "0.1.0"}", plugin supports [{" ".join(supported)}]'


def test_an_error_with_a_code_is_passed_on_unchanged_and_any_other_is_wrapped() -> None:
    def failing(error: Exception) -> Any:
        class Failing(Quiet):
            def add(self, request: AddRequest) -> Result:
                raise error

        code, answer, _ = ask(Failing, environment("ADD"), CONFIG)
        assert code == 1
        return answer

    told = {"cniVersion": "1.1.0", "code": 1234, "msg": "banana", "details": "of the address manager"}
    assert failing(DelegateFailed("banana", code=1234, details="of the address manager")) == told
    answer = failing(errors.Refused("it is taken", hint="ask its holder"))
    assert (answer["code"], answer["msg"], answer["details"]) == (100, "it is taken", "ask its holder")
    answer = failing(ZeroDivisionError("banana"))
    assert (answer["code"], "banana" in answer["msg"]) == (999, True)


# As a process


@pytest.fixture
def loopback(directory: Path) -> Path:
    path = directory / "loopback"
    path.symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
    return path


@pytest.fixture
def silence() -> Iterator[int]:
    """The reading end of a pipe in which nothing ever comes, nor its end."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def by_descriptor(program: Path, stdin: int, **env: str) -> Finished:
    done = subprocess.run([program], stdin=stdin, capture_output=True, env=env, timeout=30, check=False)
    return Finished((str(program),), done.returncode, done.stdout, done.stderr)


@needs("sandbox")
def test_version_needs_no_variable_and_reads_no_stdin(loopback: Path, silence: int) -> None:
    done = by_descriptor(loopback, silence, CNI_COMMAND="VERSION")
    assert (done.code, done.json()) == (0, {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)})


@needs("sandbox")
def test_without_a_command_the_program_says_what_it_is_and_reads_no_stdin(loopback: Path, silence: int) -> None:
    done = by_descriptor(loopback, silence)
    assert (done.code, done.stdout) == (0, b"")
    assert b"loopback" in done.stderr and b"CNI protocol versions supported: 0.1.0" in done.stderr


@needs("sandbox")
def test_without_a_command_a_name_that_is_no_plugin_of_ours_is_an_error(loopback: Path) -> None:
    done = run([loopback.rename(loopback.with_name("lopback"))], env={})
    assert (done.code, done.json()["code"]) == (1, 7)
    assert "nodeplug has no CNI plugin 'lopback'" in done.json()["msg"]


@needs("sandbox")
def test_stdin_that_cannot_be_read_is_told(loopback: Path) -> None:
    with open(os.devnull, "wb") as only_for_writing:
        done = by_descriptor(loopback, only_for_writing.fileno(), **environment("ADD"))
    assert (done.code, done.json()["code"]) == (1, 5)
    assert done.json()["msg"] == "cannot read stdin: Bad file descriptor"
