"""The PKCS#11 provider on a real token, SoftHSM 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest

from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer
from nodeplug.kms.contract import Api, CiphertextInvalid, Encrypted, KeyUnknown, Provider, Revoked, Unreachable
from nodeplug.kms.providers.pkcs11 import Pkcs11
from tests.child import run, until
from tests.kms.node import Node
from tests.kms.providers import Opened, call
from tests.ledger import Ledger
from tests.needs import needs

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
SEED = bytes(range(32))

pytestmark = needs(f"file:{MODULE}", "program:softhsm2-util", "program:pkcs11-tool")


class Hsm:
    """A token in a directory."""

    def __init__(self, directory: Path) -> None:
        self.tokens = directory / "tokens"
        self.tokens.mkdir()
        self.conf = directory / "softhsm2.conf"
        self.conf.write_text(f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.pin_file = directory / "pin"
        self.pin_file.write_text("1234\n")
        self.pin_file.chmod(0o600)
        self.tool("softhsm2-util", "--init-token", "--free", "--label", "kms", "--pin", "1234", "--so-pin", "5678")

    def tool(self, *argv: str) -> bytes:
        return run(argv, env={**os.environ, "SOFTHSM2_CONF": str(self.conf)}).ok().stdout

    def add_key(self, label: str, number: str) -> None:
        self.tool(
            *("pkcs11-tool", "--module", MODULE, "--token-label", "kms", "--pin", "1234"),
            *("--keygen", "--key-type", "AES:32", "--label", label, "--id", number),
        )

    def settings(self, **more: object) -> dict[str, object]:
        return {"module": MODULE, "token": "kms", "pin_file": str(self.pin_file), "key": "k8s-1", **more}

    def remove(self) -> None:
        self.tokens.rename(self.tokens.with_name("away"))

    def put_back(self) -> None:
        self.tokens.with_name("away").rename(self.tokens)


@pytest.fixture
def hsm(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Hsm:
    hsm = Hsm(directory)
    hsm.add_key("k8s-1", "01")
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.conf))
    return hsm


@pytest.fixture
def open_(ledger: Ledger, hsm: Hsm) -> Callable[..., Provider]:
    return lambda **more: Opened(ledger, Pkcs11, **hsm.settings(**more)).provider


@pytest.mark.parametrize("mechanism", ["gcm", "wrap"])
def test_what_is_encrypted_decrypts_and_is_small(open_: Callable[..., Provider], mechanism: str) -> None:
    provider = open_(mechanism=mechanism)
    key_id = provider.key_id(call())
    assert "k8s-1" not in key_id
    reply = provider.encrypt(SEED, key_id, call())
    assert reply.size() <= 150
    assert provider.decrypt(reply, call()) == SEED
    assert open_(mechanism="gcm").decrypt(reply, call()) == SEED  # the form tells, not the settings


@pytest.mark.parametrize("mechanism", ["gcm", "wrap"])
@pytest.mark.parametrize("change", ["api", "first", "wrapped", "last", "short", "form", "annotation"])
def test_a_changed_request_does_not_decrypt(open_: Callable[..., Provider], mechanism: str, change: str) -> None:
    provider = open_(mechanism=mechanism)
    key_id = provider.key_id(call())
    reply = provider.encrypt(SEED, key_id, call())
    data = bytearray(reply.ciphertext)
    annotations = {}
    if change == "first":
        data[0] ^= 3
    elif change == "wrapped":
        data[10] ^= 1
    elif change == "last":
        data[-1] ^= 1
    elif change == "short":
        del data[5:]
    elif change == "form":
        data[0] = 9
    elif change == "annotation":
        annotations = {"a.example": b"x"}
    with pytest.raises(CiphertextInvalid):
        provider.decrypt(
            Encrypted(bytes(data), key_id, annotations), call(api=Api.V1BETA1 if change == "api" else Api.V2)
        )
    assert provider.decrypt(reply, call()) == SEED  # and the sessions are well


def test_rotation_to_another_label_keeps_the_older_one_for_reading(open_: Callable[..., Provider], hsm: Hsm) -> None:
    old = open_()
    reply = old.encrypt(SEED, old.key_id(call()), call())
    hsm.add_key("k8s-2", "02")
    new = open_(key="k8s-2", decrypt=["k8s-1"])
    assert new.key_id(call()) != reply.key_id
    assert new.decrypt(reply, call()) == SEED
    with pytest.raises(KeyUnknown, match=r"kms\.provider\.decrypt"):
        open_(key="k8s-2").decrypt(reply, call())


def test_another_key_under_an_old_label_is_another_key(open_: Callable[..., Provider], hsm: Hsm) -> None:
    first = open_()
    key_id = first.key_id(call())
    first.close()
    hsm.tool(
        *("pkcs11-tool", "--module", MODULE, "--token-label", "kms", "--pin", "1234"),
        *("--delete-object", "--type", "secrkey", "--label", "k8s-1"),
    )
    hsm.add_key("k8s-1", "01")
    assert open_().key_id(call()) != key_id


def test_a_token_removed_is_unreachable_and_back_it_is_used_again(open_: Callable[..., Provider], hsm: Hsm) -> None:
    provider = open_()
    key_id = provider.key_id(call())
    reply = provider.encrypt(SEED, key_id, call())
    hsm.remove()
    with pytest.raises(Unreachable):
        provider.encrypt(SEED, key_id, call(0.3))
    with pytest.raises(Unreachable):
        provider.decrypt(reply, call(0.3))
    hsm.put_back()

    def works() -> bool:
        try:
            return provider.decrypt(reply, call()) == SEED
        except Unreachable:
            return False

    until(works, "the token is used again")


def test_a_logout_behind_our_back_is_healed_by_a_new_login(ledger: Ledger, hsm: Hsm) -> None:
    opened = Opened(ledger, Pkcs11, **hsm.settings())
    key_id = opened.provider.key_id(call())
    assert isinstance(opened.inner, Pkcs11)
    with opened.inner._token.borrow(call()) as session:
        session.session.close()
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


def test_a_wrong_pin_is_tried_once_until_the_file_changes(ledger: Ledger, hsm: Hsm) -> None:
    opened = Opened(ledger, Pkcs11, **hsm.settings())
    hsm.pin_file.write_text("9999\n")
    with pytest.raises(Revoked, match="PinIncorrect"):
        opened.provider.key_id(call())
    for _ in range(20):
        with pytest.raises(Revoked, match="not tried again"):
            opened.provider.key_id(call())
    flags = hsm.tool("pkcs11-tool", "--module", MODULE, "--list-token-slots")
    assert b"locked" not in flags
    hsm.pin_file.write_text("1234\n")
    assert opened.provider.key_id(call())


def test_a_pin_file_open_to_others_is_refused(open_: Callable[..., Provider], hsm: Hsm) -> None:
    hsm.pin_file.chmod(0o644)
    with pytest.raises(Revoked, match="chmod 600"):
        open_().key_id(call())


def test_a_pin_file_that_is_not_there_is_a_lack_of_access_and_not_something_not_found(
    open_: Callable[..., Provider], hsm: Hsm
) -> None:
    hsm.pin_file.unlink()
    with pytest.raises(Revoked, match="is not there"):
        open_().key_id(call())


def test_a_provider_closed_while_a_call_is_in_the_module_leaves_the_module_alone(ledger: Ledger, hsm: Hsm) -> None:
    opened = Opened(ledger, Pkcs11, **hsm.settings())
    key_id = opened.provider.key_id(call())
    assert isinstance(opened.inner, Pkcs11)
    with opened.inner._token.borrow(call()) as session:
        opened.inner.close()
        label = session.keys[session.active][pkcs11.Attribute.LABEL]
    assert label == "k8s-1"
    opened.inner.close()
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id  # and nothing keeps it from opening again


@pytest.mark.parametrize(
    "more, kind, said",
    [
        ({"token": "other"}, Unreachable, "no one token"),
        ({"key": "none"}, Revoked, "no AES key"),
        ({"module": "/nonexistent.so"}, Unreachable, "cannot be loaded"),
    ],
)
def test_what_is_missing_is_named(
    open_: Callable[..., Provider], more: dict[str, str], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        open_(**more).key_id(call(0.3))


def test_many_threads_share_the_token(open_: Callable[..., Provider]) -> None:
    provider = open_()
    key_id = provider.key_id(call())

    def both(number: int) -> bool:
        plaintext = number.to_bytes(32, "big")
        return provider.decrypt(provider.encrypt(plaintext, key_id, call(10)), call(10)) == plaintext

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(both, range(400)))


def test_an_api_server_lives_on_a_token_that_goes_and_comes(ledger: Ledger, hsm: Hsm) -> None:
    lines = "".join(f'{name} = "{value}"\n' for name, value in hsm.settings().items())
    node = Node(ledger, provider=f'type = "pkcs11"\n{lines}')
    node.start(SOFTHSM2_CONF=str(hsm.conf))
    etcd = Etcd()
    api = ApiServer(str(node.socket), etcd, clock=Clock(speed=60.0))
    ledger.adopt("API server", api.stop)
    api.start()
    values = {f"/registry/secrets/a/{number}": str(number).encode() for number in range(10)}
    for path, value in values.items():
        api.write(path, value)
    hsm.remove()
    assert not api.healthz()
    hsm.put_back()
    api.restart()
    until(lambda: api.key_id, "a state again")
    assert api.read_all() == values
    assert node.process is not None
    assert "1234" not in node.process.output()


def test_check_says_on_the_command_line_whether_the_token_works(ledger: Ledger, hsm: Hsm) -> None:
    lines = "".join(f'{name} = "{value}"\n' for name, value in hsm.settings().items())
    node = Node(ledger, provider=f'type = "pkcs11"\n{lines}')
    command = [sys.executable, "-I", "bin/nodeplug-kms", "--config", str(node.config), "--check"]
    environ = {**os.environ, "SOFTHSM2_CONF": str(hsm.conf)}
    good = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert good.stdout.startswith("ok: np1-p11-")
    hsm.remove()
    bad = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "the module" in bad.stdout
