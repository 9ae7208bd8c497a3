"""The same provider against the real thing, where OpenBao or Vault is installed: its development server on loopback."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from nodeplug.kms.contract import Api, CiphertextInvalid, Encrypted, KeyRetired
from nodeplug.kms.providers.vault import Vault
from tests.child import run, until
from tests.kms.providers import Opened, call
from tests.ledger import Ledger
from tests.needs import needs

ROOT_TOKEN = "root-token-of-a-test"
SEED = bytes(range(32))

pytestmark = needs("transit-server")


class Real:
    """The development server and its command line."""

    def __init__(self, ledger: Ledger) -> None:
        self.program = shutil.which("bao") or shutil.which("vault") or ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        prefix = "BAO" if self.program.endswith("bao") else "VAULT"
        self.env = {**os.environ, f"{prefix}_ADDR": self.address, f"{prefix}_TOKEN": ROOT_TOKEN}
        options = [
            "-dev",
            f"-dev-root-token-id={ROOT_TOKEN}",
            f"-dev-listen-address=127.0.0.1:{port}",
            "-dev-no-store-token",
        ]
        ledger.start([self.program, "server", *options], env=self.env)
        until(lambda: run([self.program, "status"], env=self.env).code == 0, "it is unsealed", timeout=30)
        self.run("secrets", "enable", "transit")
        self.run("write", "-f", "transit/keys/k8s")

    def run(self, *arguments: str) -> None:
        run([self.program, *arguments], env=self.env).ok()


@pytest.fixture
def real(ledger: Ledger) -> Real:
    return Real(ledger)


@pytest.fixture
def opened(ledger: Ledger, real: Real, directory: Path) -> Opened:
    token = directory / "token"
    token.write_text(ROOT_TOKEN)
    token.chmod(0o600)
    return Opened(ledger, Vault, address=real.address, key="k8s", token_file=str(token))


def test_a_rotation_keeps_older_data_readable_until_the_policy_says_no(opened: Opened, real: Real) -> None:
    old = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, old, call())
    assert reply.key_id == old
    assert reply.size() <= 150
    real.run("write", "-f", "transit/keys/k8s/rotate")
    assert opened.provider.encrypt(SEED, old, call()).ciphertext.startswith(b"vault:v1:")
    new = opened.provider.key_id(call())
    assert new != old
    assert opened.provider.encrypt(SEED, new, call()).ciphertext.startswith(b"vault:v2:")
    assert opened.provider.decrypt(reply, call()) == SEED
    real.run("write", "transit/keys/k8s/config", "min_decryption_version=2")
    with pytest.raises(KeyRetired):
        opened.provider.decrypt(reply, call())


def test_a_changed_request_does_not_decrypt(opened: Opened) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    with pytest.raises(CiphertextInvalid):
        opened.provider.decrypt(reply, call(api=Api.V1BETA1))
    with pytest.raises(CiphertextInvalid):
        opened.provider.decrypt(Encrypted(reply.ciphertext[:-6] + b"AAAAA=", key_id), call())
