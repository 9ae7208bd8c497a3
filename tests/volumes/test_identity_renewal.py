"""Certificates are replaced in time, by a clock that stands until it is moved, whatever fails and whoever is killed."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from nodeplug.core import files
from nodeplug.core.chore import is_kept
from nodeplug.core.secret import Secret
from nodeplug.kernel import mount
from nodeplug.volumes import service
from nodeplug.volumes.identity import certificates, notes, renewal
from nodeplug.volumes.identity import node as rules
from nodeplug.volumes.identity.layouts import CREDENTIAL
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.volumes.authorities import DAY, HOUR, Domain
from tests.volumes.identities import DB, WEB, Node
from tests.volumes.test_certificates import verified
from tests.volumes.test_identity import BUNDLE
from tests.worker.node import Node as Worker

pytestmark = needs("sandbox", "program:openssl")

PR_GET_DUMPABLE = 3


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


def shown(path: Path) -> str:
    return (path / CREDENTIAL).read_text()


def test_nothing_is_done_before_half_of_a_life_and_something_soon_after(node: Node) -> None:
    path = node.publish()
    before = shown(path)
    wanted, troubles = node.turn(after=HOUR * 0.44)
    assert (shown(path), troubles) == (before, {})
    assert wanted is not None
    assert 0 < wanted <= HOUR * 0.11 + 1
    node.turn(after=HOUR * 0.56)
    assert shown(path) != before
    assert node.note().made == node.now + int(HOUR * 0.56)
    again, _ = node.turn(after=HOUR * 0.56)
    assert again is not None
    assert HOUR * 0.44 <= again <= HOUR * 0.56


def test_each_volume_has_a_time_of_its_own(node: Node) -> None:
    for number in range(8):
        pod = WEB.replace(uid=f"uid-{number}")
        node.publish(pod)
    times = {note.renew for note in notes.every()[0]}
    assert len(times) > 4
    assert max(times) - min(times) <= HOUR * 0.1 + 1


def test_key_and_chain_change_together_and_verify(node: Node) -> None:
    path = node.publish(layout="tls")
    before = (path / "tls.key").read_text()
    node.turn(after=HOUR)
    assert (path / "tls.key").read_text() != before
    assert (path / "tls.key").read_text() + (path / "tls.crt").read_text() == shown(path)
    verified(path / "ca.crt", path / "tls.crt", at=node.now + HOUR).ok()
    key = load_pem_private_key((path / "tls.key").read_bytes(), None)
    assert load_pem_x509_certificate((path / "tls.crt").read_bytes()).public_key() == key.public_key()


def test_a_restart_loses_nothing(node: Node) -> None:
    """Each turn here is a new chore, as after a restart; a hundred of them keep a certificate valid for two days."""
    path = node.publish()
    after = 0.0
    while after < 2 * DAY:
        wanted, troubles = node.turn(after=after)
        assert troubles == {}
        assert wanted is not None
        verified(path / BUNDLE, path / "svid.pem", at=int(node.now + after)).ok()
        after += max(wanted, 1.0)


def test_while_it_fails_the_old_pair_stays_and_attempts_come_ever_later(node: Node) -> None:
    path = node.publish()
    before = shown(path)
    (document,) = (node.top / "ca").glob("authority.json")
    kept = document.read_bytes()
    document.write_text("{")
    after, pauses = HOUR * 0.56, []
    for _ in range(10):
        wanted, troubles = node.turn(after=after)
        assert wanted is not None
        assert "cannot be replaced" in troubles[str(path)]
        assert shown(path) == before
        pauses.append(wanted)
        early, again = node.turn(after=after + wanted / 2)
        assert again == troubles | again, "it is told of between attempts too"
        assert early is not None
        after += wanted
    assert pauses[0] < 7
    assert all(later > 1.4 * sooner for sooner, later in itertools.pairwise(pauses[:5]))
    assert all(200 <= pause <= 302 for pause in pauses[-3:])
    document.write_bytes(kept)
    wanted, troubles = node.turn(after=after)
    assert troubles == {}
    assert shown(path) != before
    assert node.note().failures == 0


def test_what_has_expired_is_told_and_still_replaced_when_it_can_be(node: Node) -> None:
    path = node.publish()
    os.rename(node.top / "ca", node.top / "away")
    _, troubles = node.turn(after=HOUR * 2)
    assert "has expired" in troubles[str(path)]
    assert "nodeplug identity init" in troubles[str(path)]
    os.rename(node.top / "away", node.top / "ca")
    _, troubles = node.turn(after=HOUR * 2 + 60)
    assert troubles == {}
    verified(path / BUNDLE, path / "svid.pem", at=node.now + HOUR * 2 + 60).ok()


def test_a_clock_that_was_set_back_is_not_waited_for(node: Node) -> None:
    """A certificate of the future would be refused by everyone until then."""
    path = node.publish()
    node.turn(after=3 * DAY)
    node.turn(after=DAY)
    verified(path / BUNDLE, path / "svid.pem", at=node.now + DAY).ok()


def test_new_roots_are_shown_to_every_pod_at_once(ledger: Ledger) -> None:
    domain = Domain(ledger.directory())
    node = Node(ledger, domain)
    paths = [node.publish(), node.publish(DB)]
    domain.operator.prepare(now=domain.now)
    rules.accept(node.store, domain.roots(), now=node.now, overlap=DAY)
    node.turn()
    for path in paths:
        assert len(certificates.read((path / BUNDLE).read_text())) == 2


def test_through_a_change_of_the_root_every_two_pods_know_each_other_at_every_hour(ledger: Ledger) -> None:
    """Alone, with a root of twelve days: what one shows, the other's bundle verifies, all the time."""
    node = Node(ledger)
    shutil.rmtree(node.top / "ca")
    rules.init(node.store, "example.org", now=node.now, root_days=12, node_days=6, constrained=True)
    node.settings["volumes"]["identity"]["node_days"] = 6
    web, db = node.publish(ttl="24h"), node.publish(DB, ttl="1h")
    roots = set()
    for hour in range(0, 24 * 13, 4):
        after = hour * HOUR
        _, troubles = node.turn(after=after)
        assert troubles == {}
        for mine, theirs in ((web, db), (db, web)):
            verified(theirs / BUNDLE, mine / "svid.pem", at=node.now + after).ok()
        roots |= {each.id for each in certificates.read((web / BUNDLE).read_text())}
    assert len(roots) == 2


def test_the_hosts_certificates_are_followed(ledger: Ledger) -> None:
    host = ledger.directory() / "host.pem"
    one, other = (Domain(ledger.directory()).roots() for _ in range(2))
    host.write_bytes(one)
    node = Node(ledger, host_certificates=str(host))
    path = node.publish(systemBundle="true")
    node.turn()
    before = shown(path)
    host.write_bytes(one + other)
    node.turn()
    assert shown(path) != before
    assert len(certificates.read((path / "ca-certificates.crt").read_text())) == 3


def test_an_operators_authority_that_wears_out_is_in_trouble_by_name(ledger: Ledger) -> None:
    domain = Domain(ledger.directory())
    node = Node(ledger, domain)
    assert node.turn(after=59 * DAY)[1] == {}
    assert "nodeplug identity request" in node.turn(after=61 * DAY)[1]["authority"]


def test_nothing_is_looked_for_where_nobody_uses_identities(node: Node) -> None:
    none = node.top / "none"
    node.settings["volumes"]["identity"]["directory"] = str(none)
    assert node.turn() == (None, {})
    assert not none.exists()


def test_the_note_of_a_publish_that_was_killed_goes(node: Node) -> None:
    node.publish()
    note = node.note()
    notes.write(note.replace(id="left", renew=0))
    _, troubles = node.turn()
    assert notes.ids() == [note.id]
    assert troubles == {}


def test_a_note_that_cannot_be_read_is_told_of_and_the_others_are_kept(node: Node) -> None:
    path = node.publish()
    before = shown(path)
    Path(notes.DIRECTORY, "broken.json").write_text("{")
    _, troubles = node.turn(after=HOUR)
    assert list(troubles) == ["broken"]
    assert shown(path) != before


def test_a_volume_whose_mount_is_gone_is_in_trouble_and_does_not_stop_the_others(node: Node) -> None:
    gone, there = node.publish(), node.publish(DB)
    before = shown(there)
    mount.unmount(str(gone))
    _, troubles = node.turn(after=HOUR)
    assert "no nodeplug.dev/identity is mounted" in troubles[str(gone)]
    assert shown(there) != before


class TestReaders:
    """Who reads while files are swapped: 10,000 times each."""

    READS = 10_000
    SWAPS = 20

    def _while_replacing(self, node: Node, read: Callable[[], object]) -> int:
        """How often the files were swapped meanwhile."""
        ended = threading.Event()
        swaps = 0

        def swap() -> None:
            nonlocal swaps
            while not ended.is_set():
                with files.range_lock(service.LOCK, node.note().id):
                    place = renewal.Place(
                        directory=str(node.top / "ca"), log=str(node.top / "log"), host_certificates="", python=""
                    )
                    renewal.replace(node.note(), place, now=node.now, timeout=20.0)
                swaps += 1
                ended.wait(0.02)  # or one open might meet so many that its generation is gone: they come by the hour

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            reads = 0
            while reads < self.READS or swaps <= self.SWAPS:
                read()
                reads += 1
        finally:
            ended.set()
            thread.join()
        return swaps

    def test_the_single_file_is_never_torn(self, node: Node) -> None:
        path = node.publish()
        seen = set()

        def read() -> None:
            text = shown(path)
            assert text.startswith("-----BEGIN PRIVATE KEY-----")
            assert text.endswith("-----END CERTIFICATE-----\n")
            seen.add(text)

        self._while_replacing(node, read)
        assert len(seen) >= self.SWAPS
        assert all(fits(text) for text in seen)

    def test_who_opens_data_once_gets_a_pair_that_fits(self, node: Node) -> None:
        path = node.publish(layout="tls")
        seen = set()

        def read() -> None:
            data = os.open(path / "..data", os.O_RDONLY | os.O_DIRECTORY)
            try:
                seen.add("".join(_read(data, name) for name in ("tls.key", "tls.crt")))
            finally:
                os.close(data)

        self._while_replacing(node, read)
        assert len(seen) >= self.SWAPS
        assert all(fits(text) for text in seen)

    def test_two_opens_may_tear_and_how_often_is_measured(self, node: Node) -> None:
        """What docs/volumes/identity.md warns of; no reader is ever without a file."""
        path = node.publish(layout="tls")
        pairs: list[str] = []
        swaps = self._while_replacing(
            node, lambda: pairs.append((path / "tls.key").read_text() + (path / "tls.crt").read_text())
        )
        distinct = set(pairs)
        torn = {pair for pair in distinct if not fits(pair)}
        rate = sum(pair in torn for pair in pairs) / len(pairs)
        print(f"{len(pairs)} reads, {swaps} swaps, {rate:.4%} torn")
        assert len(distinct) >= self.SWAPS


def _read(directory: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def fits(text: str) -> bool:
    """Whether the key is that of the first certificate."""
    end = "-----END PRIVATE KEY-----\n"
    key, chain = text[: text.index(end) + len(end)], text[text.index(end) + len(end) :]
    return certificates.key_id(Secret(key)) == certificates.read(chain)[0].key_id


class TestNodeplugd:
    """The chore in its own process."""

    @pytest.fixture
    def worker(self, ledger: Ledger, node: Node) -> Worker:
        found = Worker(ledger)
        text = f'[volumes.identity]\ndirectory = "{node.top}/ca"\nlog = "{node.top}/issued.jsonl"\n'
        (found.config / "conf.d").mkdir()
        (found.config / "conf.d" / "volumes.toml").write_text(text)
        return found

    def test_it_replaces_what_is_due_when_it_is_told_and_after_kill_9(self, node: Node, worker: Worker) -> None:
        path = node.publish()
        worker.start()
        until(lambda: is_kept("identity"), "the chore is kept")
        for _ in range(3):
            before = shown(path)
            notes.write(node.note().replace(renew=1))
            until(lambda before=before: shown(path) != before, "it is replaced")  # type: ignore[misc]  # bound now
            assert worker.stop(9) == -9
            worker.start()
        until(lambda: node.service.health(str(path)).ok, "it is well")

    def test_it_notes_which_interpreter_signs(self, node: Node, worker: Worker) -> None:
        worker.start()
        until((node.top / "ca" / "python").exists, "it is noted")

    def test_it_cannot_be_dumped(self) -> None:
        """Keys are in its memory while it signs."""
        script = (
            f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
            "from nodeplug.kernel import libc\n"
            "from nodeplug.worker import main\n"
            "main._prepare_process()\n"
            f"print(libc.prctl({PR_GET_DUMPABLE}, 0))\n"
        )
        assert run([sys.executable, "-I", "-c", script]).ok().text == "0"


def test_where_no_note_can_be_written_the_certificate_is_replaced_all_the_same(node: Node) -> None:
    path = node.publish()
    note = node.note()
    mount.tmpfs(notes.DIRECTORY, size=1 << 16, inodes=2)
    try:
        notes.write(note)
        before = shown(path)
        wanted, troubles = node.turn(after=HOUR)
        assert "No space left" in troubles[str(path)]
        assert wanted is not None
        assert shown(path) != before
    finally:
        mount.unmount(notes.DIRECTORY)
    assert node.turn(after=HOUR)[1] == {}
