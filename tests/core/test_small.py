"""The small rooms of core: errors, undo, secrets, settings, names, children."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from nodeplug.core import child, config, errors
from nodeplug.core.document import array, integer, nested, text
from nodeplug.core.errors import ConfigInvalid, Internal, NotFound, PermissionRefused, Refused, TimedOut, Unavailable
from nodeplug.core.naming import identity, link_name_fault
from nodeplug.core.record import Record, key
from nodeplug.core.secret import Secret
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from tests.child import until

ENV = {"PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, PermissionRefused),
        (errno.ENOSPC, Unavailable),
        (errno.EROFS, Unavailable),
        (errno.ENOENT, NotFound),
        (errno.ETIMEDOUT, TimedOut),
        (errno.EEXIST, Refused),
    ],
)
def test_a_system_error_becomes_what_the_caller_should_do(number: int, kind: type[errors.Error]) -> None:
    error = errors.from_os(OSError(number, os.strerror(number), "/x"), "cannot write the lease")
    assert type(error) is kind
    assert str(error) == f"cannot write the lease: {os.strerror(number)} [/x]"


def test_a_block_says_what_it_was_doing_when_a_system_call_failed() -> None:
    with (
        pytest.raises(PermissionRefused) as caught,
        errors.doing("cannot make the link", hints={errno.EPERM: "it needs CAP_NET_ADMIN"}),
    ):
        raise PermissionError(errno.EPERM, "Operation not permitted", "eth0")
    assert str(caught.value) == "cannot make the link: Operation not permitted [eth0]; it needs CAP_NET_ADMIN"
    with pytest.raises(ValueError, match="other"), errors.doing("cannot make the link"):
        raise ValueError("other")
    with errors.doing("cannot make the link"):
        pass


def test_codes_are_looked_up_by_ancestry() -> None:
    table: dict[type[BaseException], int] = {errors.Error: 1, ConfigInvalid: 7}
    assert errors.code_of(errors.Malformed("x"), table) == 7
    assert errors.code_of(Internal("x"), table) == 1
    with pytest.raises(KeyError):
        errors.code_of(ValueError(), table)


def test_an_error_is_a_sentence_with_its_hint_and_problems() -> None:
    error = ConfigInvalid("bad", problems=[("$.a", "wrong"), ("$.b", "worse")], hint="mend it")
    assert str(error) == "bad; mend it: $.a: wrong; $.b: worse"


def test_undo_runs_backwards_unless_committed() -> None:
    done: list[int] = []
    with pytest.raises(ValueError), Undo() as undo:
        undo.push(lambda: done.append(1))
        undo.push(lambda: done.append(2))
        raise ValueError
    assert done == [2, 1]
    with Undo() as undo:
        undo.push(lambda: done.append(3))
        undo.commit()
    assert done == [2, 1]


def test_a_reverse_that_fails_stops_no_other_and_hides_no_error() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("gone")

    with pytest.raises(ValueError) as caught, Undo() as undo:
        undo.push(lambda: done.append(1))
        undo.push(fail)
        raise ValueError("first")
    assert done == [1]
    assert caught.value.__notes__ == ["while undoing: gone"]
    with pytest.raises(OSError, match="gone"), Undo() as undo:
        undo.push(fail)


def test_every_step_is_tried_and_the_first_error_raised_at_the_end() -> None:
    done: list[int] = []

    def fail(words: str) -> None:
        raise OSError(words)

    steps = Steps()
    assert steps.run(lambda: done.append(1))
    assert not steps.run(lambda: fail("one"))
    assert not steps.run(lambda: fail("two"))
    assert steps.run(lambda: done.append(2))
    with pytest.raises(OSError, match="one") as caught:
        steps.close()
    assert caught.value.__notes__ == ["and then: two"]
    assert done == [1, 2]
    Steps().close()


def test_a_secret_is_not_shown_by_any_common_way() -> None:
    secret = Secret("hunter2")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r:>20}", "%s" % secret, repr({"a": [secret]})]  # noqa: UP031  # the third common way
    assert not any("hunter2" in text for text in shown)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.copy(secret)
    assert secret.reveal() == b"hunter2"
    assert secret == Secret(b"hunter2")
    assert secret != Secret("other")


def test_names_derive_from_identity_and_fit_an_interface() -> None:
    name = identity("net", "container", "eth0")
    assert name == identity("net", "container", "eth0")
    assert len(name) == 15
    assert name.startswith("np")
    assert set(name[2:]) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert len({name, identity("net", "container", "eth1"), identity("netc", "ontainer", "eth0")}) == 3


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a b", "a\u2003b", "x" * 16, "\u00e9" * 8])
def test_what_the_kernel_takes_as_no_links_name_is_told(name: str) -> None:
    assert link_name_fault(name)
    assert not link_name_fault("eth0.100")


class Share(Record):
    replicas: int = key(integer(1), default=1)


class Door(Record):
    name: str = key(text, default="")
    resource: tuple[Share, ...] = key(array(nested(Share)), default=())


def test_settings_merge_by_file_and_lists_of_tables_are_joined(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "nodeplug.toml").write_text('[door]\nname = "a"\n[[door.resource]]\nreplicas = 2\n')
    (tmp_path / "conf.d" / "20.toml").write_text('[door]\nname = "c"\n')
    (tmp_path / "conf.d" / "10.toml").write_text('[door]\nname = "b"\n[[door.resource]]\nreplicas = 3\n')
    (tmp_path / "conf.d" / ".hidden.toml").write_text("not toml")
    (tmp_path / "conf.d" / "README").write_text("not toml")
    found = config.section(Door, config.load(str(tmp_path)), "door", str(tmp_path))
    assert found == Door(name="c", resource=(Share(replicas=2), Share(replicas=3)))


def test_a_node_without_settings_has_the_defaults(tmp_path: Path) -> None:
    assert config.section(Door, config.load(str(tmp_path / "none")), "door", "none") == Door()


def test_bad_settings_name_the_file_and_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "nodeplug.toml"
    path.write_text("[door\n")
    with pytest.raises(ConfigInvalid, match=r"nodeplug\.toml is not TOML"):
        config.load(str(tmp_path))
    path.write_text('[door]\nnaem = "x"\nresource = [{replicas = 0}]\n')
    with pytest.raises(ConfigInvalid) as caught:
        config.section(Door, config.load(str(tmp_path)), "door", str(path))
    assert str(path) in str(caught.value)
    assert dict(caught.value.problems) == {
        "door.naem": "no such key; did you mean name?",
        "door.resource[0].replicas": "expected a whole number, 1 or more, got 0",
    }


def test_a_child_gets_stdin_and_gives_both_streams() -> None:
    done = child.run(["sh", "-c", "cat; echo oops >&2; exit 3"], env=ENV, stdin=b"x" * 300_000, timeout=20)
    assert (done.code, done.stdout, done.stderr) == (3, b"x" * 300_000, b"oops\n")


def test_a_child_that_does_not_read_or_end_is_killed_with_its_group(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    with pytest.raises(TimedOut, match="killed"):
        child.run(["sh", "-c", f"sleep 60 & echo $! > {mark}; wait"], env=ENV, stdin=b"x" * 300_000, timeout=0.5)
    grandchild = int(mark.read_text())
    until(lambda: has_ended(grandchild), "the grandchild ends")


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_child_that_writes_without_end_is_stopped() -> None:
    with pytest.raises(Refused, match="more than 1000 bytes"):
        child.run(["yes"], env=ENV, timeout=20, limit=1000)


def test_a_child_that_cannot_start_says_why() -> None:
    with pytest.raises(NotFound, match="cannot run /no/such"):
        child.run(["/no/such"], env=ENV, timeout=1)
    with pytest.raises(PermissionRefused, match="cannot run"):
        child.run([str(Path(__file__))], env=ENV, timeout=1)


def test_a_child_has_the_descriptors_it_is_given_and_no_others() -> None:
    reader, writer = os.pipe()
    script = "import os, sys; os.write(int(sys.argv[1]), b'here')"
    child.run([sys.executable, "-c", script, str(writer)], env=ENV, timeout=20, fds=(writer,))
    assert os.read(reader, 100) == b"here"
    assert child.run([sys.executable, "-c", script, str(writer)], env=ENV, timeout=20).code == 1
    os.close(reader)
    os.close(writer)


def test_a_child_leaves_no_descriptor_behind() -> None:
    before = os.listdir("/proc/self/fd")
    child.run([sys.executable, "-c", "pass"], env=ENV, timeout=20)
    assert os.listdir("/proc/self/fd") == before
