"""The ring file: refused when it is not as it should be, with the command that mends it, and never lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from nodeplug.core.errors import ConfigInvalid, Error, Malformed, NotFound, Refused, Unavailable, from_os
from nodeplug.kms.contract import Api, CiphertextInvalid
from nodeplug.kms.keyring import cipher, commands, document, transfer
from nodeplug.kms.keyring.evidence import Evidence
from nodeplug.kms.keyring.ring import DESTROY_AFTER, MOST_ENTRIES, SETTLED, Export, Ring, State
from nodeplug.kms.keyring.seals import PassphraseFile, Plain, SystemdCredential
from nodeplug.kms.keyring.store import Opened, RolledBack, Store, new_entry, new_ring
from tests.needs import needs

NOW = 1_800_000_000


@pytest.fixture
def store(directory: Path) -> Store:
    store = Store(str(directory / "ring" / "keyring.json"), Plain())
    commands.init(store, nodes=1, now=NOW)
    return store


def passphrase(directory: Path, text: str = "correct horse battery staple") -> Path:
    path = directory / "passphrase"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def test_a_new_ring_has_one_active_key_and_is_its_owner_s_alone(store: Store) -> None:
    ring = store.load().ring
    assert [ring.state(entry) for entry in ring.entries] == [State.ACTIVE]
    assert os.stat(store.path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(store.path)).st_mode & 0o777 == 0o700


def test_a_second_init_is_refused(store: Store) -> None:
    with pytest.raises(Refused, match="there is a key ring"):
        commands.init(store, nodes=1, now=NOW)


def test_a_ring_of_as_many_keys_as_it_may_have_is_read_back_and_so_is_its_export(store: Store, directory: Path) -> None:
    opened = store.load()
    ring, key = opened.ring, opened.ring_key
    for generation in range(2, MOST_ENTRIES + 1):
        ring = ring.add(new_entry(ring.ring_id, key, generation, NOW), State.RETIRED, NOW)
    every = tuple(range(1, MOST_ENTRIES + 1))
    ring = replace(ring, exports=(Export(NOW, every),) * 50)
    store.save(Opened(ring, key))
    assert os.path.getsize(store.path) < document.LARGEST / 2
    assert len(store.load().ring.entries) == MOST_ENTRIES
    secret = str(passphrase(directory))
    commands.export(store, str(directory / "export"), passphrase_file=secret, now=NOW)
    assert len(transfer.read_export(str(directory / "export"), passphrase_file=secret).ring.entries) == MOST_ENTRIES
    with pytest.raises(Refused, match="the ring holds 1000 keys"):
        commands.add_key(store, now=NOW)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_loosened_permissions_are_refused_with_the_command_that_mends_them(store: Store, mode: int) -> None:
    os.chmod(store.path, mode)
    with pytest.raises(Refused, match=f"chmod 600 {store.path}"):
        store.load()
    os.chmod(store.path, 0o600)
    store.load()


def test_a_loosened_directory_is_refused(store: Store) -> None:
    os.chmod(os.path.dirname(store.path), 0o777)
    with pytest.raises(Refused, match="chmod go-w"):
        store.load()


def test_a_foreign_owner_is_refused(store: Store) -> None:
    os.chown(store.path, 4321, -1)
    with pytest.raises(Refused, match="chown root"):
        store.load()


def test_a_symbolic_link_is_refused(store: Store) -> None:
    os.rename(store.path, store.path + ".elsewhere")
    os.symlink(store.path + ".elsewhere", store.path)
    with pytest.raises(Refused, match="symbolic link"):
        store.load()


def test_a_fifo_does_not_hang(store: Store) -> None:
    os.unlink(store.path)
    os.mkfifo(store.path, 0o600)
    with pytest.raises(Refused, match="regular file"):
        store.load()


def test_a_ring_that_is_not_there_says_what_to_do(store: Store) -> None:
    os.unlink(store.path)
    with pytest.raises(NotFound, match="nodeplug kms init"):
        store.load()


@given(data=st.data())
@limits(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_cut_and_no_changed_byte_is_taken_for_the_ring(store: Store, data: st.DataObject) -> None:
    whole = Path(store.path).read_bytes()
    if data.draw(st.booleans(), "cut"):
        bad = whole[: data.draw(st.integers(0, len(whole) - 2), "at")]
    else:
        at = data.draw(st.integers(0, len(whole) - 1), "at")
        bad = whole[:at] + bytes([data.draw(st.integers(0, 255), "byte")]) + whole[at + 1 :]
    same = False
    try:
        same = json.loads(bad) == json.loads(whole)
    except ValueError:
        pass
    Path(store.path).write_bytes(bad)
    try:
        if same:
            store.load()
        else:
            with pytest.raises((Malformed, ConfigInvalid, Refused)):
                store.load()
    finally:
        Path(store.path).write_bytes(whole)


def test_a_file_put_back_from_a_backup_is_refused(store: Store) -> None:
    backup = Path(store.path).read_bytes()
    commands.add_key(store, now=NOW)
    Path(store.path).write_bytes(backup)
    with pytest.raises(RolledBack, match="accept-rollback"):
        store.load()


def test_a_ring_without_its_note_is_refused_for_it_may_be_an_old_one(store: Store) -> None:
    commands.add_key(store, now=NOW)
    os.unlink(store.seen_path)
    with pytest.raises(RolledBack, match="missing"):
        store.load()


def test_a_crash_between_ring_and_note_is_no_rollback(store: Store) -> None:
    note = Path(store.seen_path).read_bytes()
    commands.add_key(store, now=NOW)
    Path(store.seen_path).write_bytes(note)
    assert len(store.load().ring.entries) == 2
    commands.activate(store, "", confirm="", now=NOW)
    store.load()


def test_a_restored_ring_goes_on_with_a_new_and_higher_generation(store: Store) -> None:
    backup = Path(store.path).read_bytes()
    commands.add_key(store, now=NOW)
    lost, _ = commands.activate(store, "", confirm="", now=NOW)
    Path(store.path).write_bytes(backup)
    _, after = commands.import_(store, "", passphrase_file="", merge=False, accept_rollback=True, now=NOW)
    assert after.active is not None
    assert after.active.generation == 3 == after.highest
    assert after.state(after.entries[0]) is State.DECRYPT_ONLY
    assert after.key_id(after.active) not in {lost.key_id(entry) for entry in lost.entries}
    assert after.revision > lost.revision


def test_a_restored_ring_of_several_nodes_waits_for_the_others(store: Store) -> None:
    commands.set_nodes(store, 3)
    backup = Path(store.path).read_bytes()
    commands.add_key(store, now=NOW)
    Path(store.path).write_bytes(backup)
    _, after = commands.import_(store, "", passphrase_file="", merge=False, accept_rollback=True, now=NOW)
    assert after.active is None
    pending = after.pending()
    assert pending is not None
    assert pending.generation == 3
    ring, _ = commands.activate(store, "", confirm=after.fingerprint, now=NOW)
    assert ring.active is not None


def test_every_change_survives_a_kill_at_any_step(store: Store) -> None:
    script = """
import os, signal, sys
from nodeplug.kms.keyring import commands
from nodeplug.kms.keyring.seals import Plain
from nodeplug.kms.keyring.store import Store
left = int(sys.argv[2])
def counted(call):
    def wrapper(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper
for name in ("open", "write", "fsync", "rename", "unlink", "fchmod"):
    setattr(os, name, counted(getattr(os, name)))
commands.add_key(Store(sys.argv[1], Plain()), now=1)
"""
    ring_directory = Path(store.path).parent
    original = ring_directory.with_name("original")
    shutil.copytree(ring_directory, original)
    for steps in range(200):
        done = subprocess.run([sys.executable, "-c", script, store.path, str(steps)], check=False)
        ring = store.load().ring
        assert len(ring.entries) in (1, 2)
        assert ring.active is not None
        if done.returncode == 0:
            break
        # The next change works, whatever was left, and leaves no trace of the killed one.
        if len(ring.entries) == 1:
            commands.add_key(store, now=NOW)
        else:
            commands.activate(store, "", confirm="", now=NOW)
        assert not [name for name in os.listdir(ring_directory) if name.endswith("~") and "keyring.json." in name[:14]]
        shutil.rmtree(ring_directory)
        shutil.copytree(original, ring_directory)
    else:
        pytest.fail("the writer never came to its end")
    assert steps > 5


@needs("sandbox")
def test_a_full_disk_changes_nothing_and_says_so(directory: Path) -> None:
    small = directory / "small"
    small.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(small)], check=True)
    store = Store(str(small / "keyring.json"), Plain())
    commands.init(store, nodes=1, now=NOW)
    (small / "ballast").write_bytes(b"")
    try:
        with (small / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
    except OSError:
        pass
    before = Path(store.path).read_bytes()
    with pytest.raises(Unavailable, match="No space left"):
        commands.add_key(store, now=NOW)
    assert Path(store.path).read_bytes() == before
    (small / "ballast").unlink()
    commands.add_key(store, now=NOW)
    assert len(store.load().ring.entries) == 2


class FullForNotes(Store):
    """A disk that takes the ring and then nothing more."""

    full = True

    def _note(self, ring_key: bytes, ring: Ring) -> None:
        if self.full:
            raise from_os(OSError(errno.ENOSPC, "No space left on device"), f"cannot write {self.seen_path}")
        super()._note(ring_key, ring)


def test_a_disk_that_fills_between_ring_and_note_says_that_the_ring_is_changed(store: Store) -> None:
    commands.add_key(store, now=NOW)
    full = FullForNotes(store.path, Plain())
    with pytest.raises(Unavailable, match=r"the ring is changed, but .*No space left"):
        commands.activate(full, "", confirm="", now=NOW)
    active = full.load().ring.active
    assert active is not None
    assert active.generation == 2
    full.full = False
    commands.activate(full, "2", confirm="", now=NOW)
    commands.add_key(full, now=NOW)


def test_another_command_at_work_is_waited_for_and_then_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeplug.kms.keyring.store._BUSY", 0.05)
    with store.lock(), pytest.raises(Error, match="lock"):
        commands.add_key(store, now=NOW)


# Seals.


def test_a_passphrase_seals_and_another_one_does_not_open(directory: Path) -> None:
    file = passphrase(directory)
    store = Store(str(directory / "ring" / "keyring.json"), PassphraseFile(str(file)))
    commands.init(store, nodes=1, now=NOW)
    opened = store.load()
    assert opened.ring_key.hex() not in Path(store.path).read_text()
    commands.add_key(store, now=NOW)
    assert store.load().ring_key == opened.ring_key
    file.write_text("something else altogether\n")
    with pytest.raises(Refused, match="does not open this ring"):
        store.load()


@pytest.mark.parametrize("text", ["short", ""])
def test_a_short_passphrase_is_refused_with_a_way_to_make_a_good_one(directory: Path, text: str) -> None:
    store = Store(str(directory / "keyring.json"), PassphraseFile(str(passphrase(directory, text))))
    with pytest.raises(Refused, match="/dev/urandom"):
        commands.init(store, nodes=1, now=NOW)
    assert not os.path.exists(store.path)


def test_a_passphrase_file_open_to_others_is_refused(directory: Path) -> None:
    file = passphrase(directory)
    file.chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        PassphraseFile(str(file)).prepare()


def test_another_seal_than_the_settings_say_is_named(store: Store, directory: Path) -> None:
    with pytest.raises(ConfigInvalid, match="plain"):
        Store(store.path, PassphraseFile(str(passphrase(directory)))).load()


def test_a_seal_with_absurd_parameters_is_not_computed(directory: Path) -> None:
    parameters = cipher.passphrase_parameters()
    for change in ({"n": 1 << 30}, {"n": 2}, {"r": 10**9}, {"salt": ""}, {"kdf": "none"}, {"n": "x"}):
        with pytest.raises(cipher.Damaged):
            cipher.passphrase_key(b"x" * 16, {**parameters, **change})


@needs("sandbox", "program:systemd-creds")
def test_a_systemd_credential_seals_for_commands_and_for_the_service(directory: Path) -> None:
    # The host's own secret is not ours to make: systemd-creds finds an empty /var/lib/systemd here.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib/systemd"], check=True)
    try:
        credential = directory / "etc" / "kms.cred"
        store = Store(str(directory / "ring" / "keyring.json"), SystemdCredential(str(credential), "host"))
        commands.init(store, nodes=1, now=NOW)
        ring_key = store.load().ring_key
        assert ring_key.hex() not in Path(store.path).read_text()
        assert credential.stat().st_mode & 0o777 == 0o600
        # What LoadCredentialEncrypted= does for the service.
        inside = directory / "credentials"
        inside.mkdir()
        subprocess.run(
            ["systemd-creds", "decrypt", "--name=nodeplug-kms", str(credential), str(inside / "nodeplug-kms")],
            check=True,
            capture_output=True,
        )
        served = Store(store.path, SystemdCredential("/nonexistent", "host", str(inside)))
        assert served.load().ring_key == ring_key
        (inside / "nodeplug-kms").write_bytes(bytes(32))
        with pytest.raises(Refused, match="does not open this ring"):
            served.load()
    finally:
        subprocess.run(["umount", "/var/lib/systemd"], check=True)


def test_a_credential_that_is_not_there_names_the_command(store: Store) -> None:
    with pytest.raises(NotFound, match="nodeplug kms init"):
        SystemdCredential("/nonexistent/cred").open({}, "00" * 16)


# Export and import.


def test_an_export_carries_all_keys_to_another_node_under_its_own_seal(store: Store, directory: Path) -> None:
    file, target = passphrase(directory), directory / "export.json"
    commands.add_key(store, now=NOW)
    commands.export(store, str(target), passphrase_file=str(file), now=NOW)
    opened = store.load()
    assert opened.ring_key.hex() not in target.read_text()
    other = Store(str(directory / "other" / "keyring.json"), PassphraseFile(str(file)))
    _, ring = commands.import_(
        other, str(target), passphrase_file=str(file), merge=False, accept_rollback=False, now=NOW
    )
    assert ring.fingerprint == opened.ring.fingerprint
    assert ring.nodes == 2
    assert other.load().material() == opened.material()
    # The entries are the same bytes on both nodes.
    shared = [document.parse(Path(path).read_bytes(), "")["shared"] for path in (store.path, other.path)]
    assert shared[0] == shared[1]


def test_an_export_is_never_overwritten(store: Store, directory: Path) -> None:
    target = directory / "export.json"
    target.write_text("older")
    with pytest.raises(Refused, match="exists"):
        commands.export(store, str(target), passphrase_file=str(passphrase(directory)), now=NOW)
    assert target.read_text() == "older"


def test_an_import_over_a_ring_needs_merge(store: Store, directory: Path) -> None:
    file, target = passphrase(directory), directory / "export.json"
    commands.export(store, str(target), passphrase_file=str(file), now=NOW)
    with pytest.raises(Refused, match="--merge"):
        commands.import_(store, str(target), passphrase_file=str(file), merge=False, accept_rollback=False, now=NOW)


@pytest.mark.parametrize("damage", ["cut", "kind", "passphrase", "byte"])
def test_a_bad_export_changes_nothing(store: Store, directory: Path, damage: str) -> None:
    file, target = passphrase(directory), directory / "export.json"
    commands.export(store, str(target), passphrase_file=str(file), now=NOW)
    before = Path(store.path).read_bytes()
    text = target.read_text()
    if damage == "cut":
        target.write_text(text[: len(text) // 2])
    elif damage == "kind":
        target.write_text('{"kind": "other"}')
    elif damage == "passphrase":
        file.write_text("something else altogether\n")
    else:
        target.write_text(text.replace('"revision": 1', '"revision": 9'))
    with pytest.raises((Malformed, Refused)):
        commands.import_(store, str(target), passphrase_file=str(file), merge=True, accept_rollback=False, now=NOW)
    assert Path(store.path).read_bytes() == before


def test_an_export_of_the_same_ring_id_but_another_key_is_not_merged(store: Store, directory: Path) -> None:
    file, target = passphrase(directory), directory / "export.json"
    opened = store.load()
    stranger = new_ring(nodes=1, now=NOW)
    forged = type(opened)(opened.ring.__class__(opened.ring.ring_id, 1, (), {}, 0), stranger.ring_key)
    other = Store(str(directory / "other" / "keyring.json"), Plain())
    transfer.export(other, forged, str(target), passphrase_file=str(file), now=NOW)
    with pytest.raises(Refused, match="another key"):
        commands.import_(store, str(target), passphrase_file=str(file), merge=True, accept_rollback=False, now=NOW)


def test_a_destroyed_key_lives_on_in_its_export_and_comes_back_from_there(store: Store, directory: Path) -> None:
    file, target = passphrase(directory), directory / "export.json"
    name = store.load().ring.key_id(store.load().ring.entries[0])
    commands.add_key(store, now=NOW)
    commands.activate(store, "", confirm="", now=NOW)
    material = store.load().material()[name]
    later = NOW + SETTLED
    proof = Evidence(float(later), {store.load().ring.key_id(store.load().ring.entries[1]): 1})
    commands.retire(store, name, proof, everywhere="", now=later)
    much_later = later + DESTROY_AFTER
    with pytest.raises(Refused, match="no export"):
        commands.destroy(store, name, now=much_later)
    commands.export(store, str(target), passphrase_file=str(file), now=later)
    with pytest.raises(Refused, match="89 days"):
        commands.destroy(store, name, now=much_later - 1)
    ring, _ = commands.destroy(store, name, now=much_later)
    assert ring.entries[0].wrapped == b""
    assert material.hex() not in Path(store.path).read_text()
    assert name not in commands.checker(store.load())
    commands.import_(store, str(target), passphrase_file=str(file), merge=True, accept_rollback=False, now=much_later)
    commands.reinstate(store, name, now=much_later)
    assert store.load().material()[name] == material


# Messages.

BOUND = cipher.bind(Api.V2, "np1-x-1-y", "00" * 16)


@given(plaintext=st.binary(min_size=1, max_size=4096))
def test_what_is_encrypted_decrypts(plaintext: bytes) -> None:
    key = cipher.MessageKey(cipher.new_key())
    assert key.decrypt(key.encrypt(plaintext, BOUND), BOUND) == plaintext


@given(at=st.integers(0, 80), bit=st.integers(0, 7))
def test_any_changed_bit_is_noticed(at: int, bit: int) -> None:
    key = cipher.MessageKey(bytes(32))
    data = bytearray(key.encrypt(bytes(32), BOUND))
    assert len(data) == 81
    data[at] ^= 1 << bit
    with pytest.raises(CiphertextInvalid):
        key.decrypt(bytes(data), BOUND)


@pytest.mark.parametrize(
    "other",
    [
        cipher.bind(Api.V1BETA1, "np1-x-1-y", "00" * 16),
        cipher.bind(Api.V2, "np1-x-2-y", "00" * 16),
        cipher.bind(Api.V2, "np1-x-1-y", "01" * 16),
    ],
)
def test_a_message_belongs_to_its_api_key_and_ring(other: bytes) -> None:
    key = cipher.MessageKey(bytes(32))
    with pytest.raises(CiphertextInvalid):
        key.decrypt(key.encrypt(b"x", BOUND), other)


def test_the_format_is_hkdf_expand_and_aes_gcm_by_an_independent_hand() -> None:
    data = cipher.MessageKey(b"k" * 32).encrypt(b"plaintext", BOUND)
    assert data[0] == 1
    own = HKDFExpand(SHA256(), 32, b"nodeplug kms message 1\0" + data[1:33]).derive(b"k" * 32)
    assert AESGCM(own).decrypt(bytes(12), data[33:], BOUND) == b"plaintext"
    for label in (b"", b"x", b"nodeplug" * 20):
        assert cipher._expand(b"k" * 32, label) == HKDFExpand(SHA256(), 32, label).derive(b"k" * 32)
