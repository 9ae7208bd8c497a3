"""Where a certificate is made: in this process, or in a child whose interpreter can; and what is noted of it."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from nodeplug.core.errors import Refused, TimedOut, Unavailable
from nodeplug.volumes.identity import child, issuing, node
from nodeplug.volumes.identity.issuing import Ask, Interpreter
from nodeplug.volumes.identity.store import Store
from tests.child import run, until
from tests.sandbox import CHECKOUT
from tests.volumes.authorities import DAY, HOUR, Domain, written
from tests.volumes.test_certificates import verified

ASK = Ask(name="spiffe://example.org/ns/shop/sa/web", ttl=HOUR, key_type="ECDSAP256")
HERE = Interpreter(python=sys.executable, path=str(CHECKOUT))
# What an executed plugin is: the system's interpreter, without site-packages.
EXECUTED = ["/usr/bin/python3", "-IS", "-c"]


@pytest.fixture
def domain(directory: Path) -> Domain:
    return Domain(directory)


def executed(store: Store, log: Path) -> str:
    """An executed plugin that asks for a certificate and says where its modules came from."""
    return f"""
import sys
sys.path.insert(0, {str(CHECKOUT)!r})
from nodeplug.core.errors import Error
from nodeplug.volumes.identity.issuing import Ask, issue
from nodeplug.volumes.identity.store import Store
ask = Ask(name={ASK.name!r}, ttl={ASK.ttl}, key_type={ASK.key_type!r})
try:
    made = issue(Store({store.directory!r}), ask, now=0, log={str(log)!r})
except Error as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
assert not any(name.startswith("cryptography") for name in sys.modules)
print(made.chain + made.roots)
"""


def test_an_executed_plugin_has_its_certificate_made_by_the_noted_interpreter(domain: Domain) -> None:
    store = domain.node("a")
    issuing.note_interpreter(store, path=str(CHECKOUT))
    done = run([*EXECUTED, executed(store, domain.directory / "log")]).ok()
    (domain.directory / "chain").write_text(done.text + "\n")
    (domain.directory / "roots").write_bytes(domain.roots())
    verified(domain.directory / "roots", domain.directory / "chain", at=domain.now).ok()
    assert len((domain.directory / "log").read_text().splitlines()) == 1


def test_without_a_note_the_error_says_what_to_run(domain: Domain) -> None:
    done = run([*EXECUTED, executed(domain.node("a"), domain.directory / "log")])
    assert done.code == 1
    assert b"Unavailable: it is not known which Python" in done.stderr
    assert b"nodeplug identity status" in done.stderr


def test_without_an_authority_the_error_says_how_to_get_one(domain: Domain) -> None:
    done = run([*EXECUTED, executed(Store(str(domain.directory / "none")), domain.directory / "log")])
    assert b"nodeplug identity init --trust-domain" in done.stderr
    with pytest.raises(Unavailable, match="nodeplug identity init --trust-domain"):
        issuing.issue(Store(str(domain.directory / "none")), ASK, now=0, log=str(domain.directory / "log"))


def test_a_noted_interpreter_that_is_gone_is_named(domain: Domain) -> None:
    store = domain.node("a")
    with pytest.raises(Unavailable, match=r"/gone/python.*nodeplug identity status"):
        child.issue(HERE.replace(python="/gone/python"), store.directory, ASK, log="/x/log", timeout=20)


def test_an_interpreter_without_the_package_says_so(domain: Domain) -> None:
    store = domain.node("a")
    without = domain.directory / "python"
    without.write_text('#!/bin/sh\nshift\nexec /usr/bin/python3 -IS "$@"\n')
    without.chmod(0o755)
    with pytest.raises(Unavailable, match="cryptography"):
        child.issue(HERE.replace(python=str(without)), store.directory, ASK, log="/x/log", timeout=20)


def test_what_the_child_refuses_is_raised_here_as_it_was_there(domain: Domain) -> None:
    store = domain.node("a")
    foreign = ASK.replace(name="spiffe://other.org/a")
    with pytest.raises(Refused, match=r"other\.org"):
        child.issue(HERE, store.directory, foreign, log=str(domain.directory / "log"), timeout=20)


def test_a_child_that_hangs_is_ended(domain: Domain) -> None:
    hangs = domain.directory / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    hangs.chmod(0o755)
    with pytest.raises(TimedOut):
        child.issue(HERE.replace(python=str(hangs)), domain.node("a").directory, ASK, log="/x/log", timeout=0.2)


def test_the_child_is_hardened_before_it_reads_a_key_and_its_argv_has_no_secret(domain: Domain) -> None:
    """It waits for its order, and meanwhile it is looked at."""
    import subprocess

    argv = [sys.executable, "-I", "-c", issuing.PROGRAM, str(CHECKOUT)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        limits = Path(f"/proc/{process.pid}/limits")
        until(lambda: "Max core file size        0 " in limits.read_text(), "it has no core dump")
        # A process that cannot be dumped belongs to root, whoever runs it; as root its dumpability is not to be read.
        assert process.poll() is None
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"PRIVATE" not in arguments and b"spiffe" not in arguments
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_line_is_noted_for_each_certificate_and_no_key(domain: Domain) -> None:
    store = domain.node("a")
    log = domain.directory / "issued.jsonl"
    made = [domain.credential(store, volume="v", pod="shop/web-1", uid="u-1", why=why) for why in ("publish", "renew")]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["serial"] for line in lines] == [each.serial for each in made]
    assert lines[0] == {
        "ts": domain.now,
        "serial": made[0].serial,
        "id": made[0].id,
        "name": "spiffe://example.org/ns/shop/sa/web",
        "not_before": made[0].not_before,
        "not_after": made[0].not_after,
        "signer": made[0].signer,
        "why": "publish",
        "pod": "shop/web-1",
        "uid": "u-1",
        "volume": "v",
    }
    assert "PRIVATE" not in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_the_log_of_what_was_issued_is_bounded(domain: Domain) -> None:
    store = domain.node("a")
    log = domain.directory / "issued.jsonl"
    log.write_bytes(b"x" * (8 << 20))
    domain.credential(store)
    assert log.stat().st_size < 4096
    assert (domain.directory / "issued.jsonl.1").stat().st_size == 8 << 20


def test_a_full_disk_of_logs_takes_nobody_his_identity(domain: Domain) -> None:
    store = domain.node("a")
    os.mkdir(domain.directory / "issued.jsonl")
    assert domain.credential(store).serial


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_key_that_is_lost_is_told_of_and_not_looked_for_for_ever(domain: Domain, harm: str) -> None:
    store = domain.node("a")
    (key,) = Path(store.directory).glob("*.key")
    if harm == "gone":
        key.unlink()
    else:
        key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(Unavailable, match="nodeplug identity request"):
        domain.credential(store)


def test_while_the_authority_changes_every_ask_is_answered(domain: Domain) -> None:
    """The old key may be gone just when it is wanted."""
    store = domain.node("a")
    failed: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                domain.credential(store)
            except Exception as error:
                failed.append(error)
                return

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for _ in range(60):
        domain.accept(store)
    stop.set()
    for thread in asking:
        thread.join()
    assert failed == []
    node.maintain(store, now=domain.now, node_days=30, overlap=DAY)
    made = domain.credential(store)
    _key, chain, roots = written(made, domain.directory / "pod")
    verified(roots, chain, at=domain.now).ok()
