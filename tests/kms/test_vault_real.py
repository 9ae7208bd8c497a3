"""The same provider against the real thing, where OpenBao or Vault is installed: its development server on loopback."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.errors import TimedOut
from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer
from nodeplug.kms.contract import Api, CiphertextInvalid, Encrypted, KeyRetired, KeyUnknown, Revoked, Unreachable
from nodeplug.kms.providers.vault import Vault
from tests.child import run, until
from tests.examples import ROOT
from tests.kms.node import Node
from tests.kms.providers import Opened, call
from tests.ledger import Ledger
from tests.needs import needs, transit_server

ROOT_TOKEN = "root-token-of-a-test"
SEED = bytes(range(32))

pytestmark = needs("transit-server")


class Server:
    """The development server and its command line."""

    def __init__(self, ledger: Ledger) -> None:
        self.program = transit_server()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        prefix = "BAO" if self.program.endswith("bao") else "VAULT"
        home = str(ledger.directory())
        self.env = {**os.environ, f"{prefix}_ADDR": self.address, f"{prefix}_TOKEN": ROOT_TOKEN, "HOME": home}
        options = [
            "-dev",
            f"-dev-root-token-id={ROOT_TOKEN}",
            f"-dev-listen-address=127.0.0.1:{port}",
            "-dev-no-store-token",
        ]
        ledger.start([self.program, "server", *options], env=self.env)
        until(lambda: run([self.program, "status"], env=self.env).code == 0, "it is unsealed", timeout=30)
        self.run("secrets", "enable", "transit")
        self.run("auth", "enable", "approle")

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return run([self.program, *arguments], env=self.env, stdin=stdin).ok().stdout


class Real:
    """A transit key of one test on a server, with the page's policy and an AppRole."""

    def __init__(self, server: Server, directory: Path, *, ttl: str = "1h", max_ttl: str = "10h") -> None:
        self.address = server.address
        self.run = server.run
        self.directory = directory
        self.key = f"k8s-{next(_numbers)}"
        self.path = f"transit/keys/{self.key}"
        self.run("write", "-f", self.path)
        self.allow()
        role = f"auth/approle/role/{self.key}"
        times = f"token_ttl={ttl}", f"token_max_ttl={max_ttl}", "secret_id_ttl=1h"
        self.run("write", role, f"token_policies={self.key}", *times)
        self.keep("role_id", self.read(f"{role}/role-id")["role_id"])
        self.keep("secret_id", self.read("-f", f"{role}/secret-id", verb="write")["secret_id"])

    def read(self, *arguments: str, verb: str = "read") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(verb, "-format=json", *arguments))["data"]
        return found

    def keep(self, name: str, value: str) -> str:
        path = self.directory / name
        path.write_text(value)
        path.chmod(0o600)
        return str(path)

    def allow(self, *verbs: str) -> None:
        """The policy of docs/kms.md, or only these verbs of it."""
        policy = (ROOT / "docs" / "kms.md").read_text().split("```hcl\n")[1].split("```")[0]
        kept = [line for line in policy.splitlines() if not verbs or any(f"transit/{verb}/" in line for verb in verbs)]
        text = "\n".join(kept).replace("k8s", self.key)
        self.run("policy", "write", self.key, "-", stdin=text.encode())

    def approle(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "key": self.key,
            "auth": "approle",
            "role_id_file": str(self.directory / "role_id"),
            "secret_id_file": str(self.directory / "secret_id"),
        }


_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(module_ledger: Ledger) -> Server:
    return Server(module_ledger)


@pytest.fixture
def real(server: Server, directory: Path) -> Real:
    return Real(server, directory)


@pytest.fixture
def opened(ledger: Ledger, real: Real) -> Opened:
    return Opened(ledger, Vault, **real.approle())


def test_a_rotation_keeps_older_data_readable_until_the_policy_says_no(opened: Opened, real: Real) -> None:
    old = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, old, call())
    assert reply.key_id == old
    assert reply.size() <= 150
    real.run("write", "-f", f"{real.path}/rotate")
    assert opened.provider.encrypt(SEED, old, call()).ciphertext.startswith(b"vault:v1:")
    new = opened.provider.key_id(call())
    assert new != old
    assert opened.provider.encrypt(SEED, new, call()).ciphertext.startswith(b"vault:v2:")
    assert opened.provider.decrypt(reply, call()) == SEED
    real.run("write", f"{real.path}/config", "min_decryption_version=2")
    with pytest.raises(KeyRetired):
        opened.provider.decrypt(reply, call())


def test_a_changed_request_does_not_decrypt(opened: Opened) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    with pytest.raises(CiphertextInvalid):
        opened.provider.decrypt(reply, call(api=Api.V1BETA1))
    with pytest.raises(CiphertextInvalid):
        opened.provider.decrypt(Encrypted(reply.ciphertext[:-6] + b"AAAAA=", key_id), call())
    for broken in (b"vault:v9:" + reply.ciphertext[9:], b"vault:v1:%%%", b"vault:v1:"):
        with pytest.raises((CiphertextInvalid, KeyUnknown, Revoked)):
            opened.provider.decrypt(Encrypted(broken, key_id), call())


def test_a_version_that_no_longer_encrypts_gives_way_to_the_newest(opened: Opened, real: Real) -> None:
    old = opened.provider.key_id(call())
    real.run("write", "-f", f"{real.path}/rotate")
    real.run("write", f"{real.path}/config", "min_encryption_version=2")
    assert opened.provider.encrypt(SEED, old, call()).key_id != old


@pytest.mark.parametrize("kind", ["chacha20-poly1305", "rsa-2048", "aes128-gcm96"])
def test_other_kinds_of_keys_encrypt_too(ledger: Ledger, real: Real, kind: str) -> None:
    real.run("write", f"transit/keys/{kind}", f"type={kind}")
    token = real.keep("token", ROOT_TOKEN)
    opened = Opened(ledger, Vault, address=real.address, key=kind, token_file=token)
    reply = opened.provider.encrypt(SEED, opened.provider.key_id(call()), call())
    assert opened.provider.decrypt(reply, call()) == SEED
    assert len(reply.ciphertext) <= 1024


def test_a_token_that_is_taken_away_costs_one_login_and_no_failed_call(opened: Opened, real: Real) -> None:
    key_id = opened.provider.key_id(call())
    real.run("write", "-f", "auth/token/revoke-orphan", f"token={_token(opened)}")
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
    assert opened.value("nodeplug_kms_vault_logins_total", outcome="ok") == 2


def _token(opened: Opened) -> str:
    assert isinstance(opened.inner, Vault)
    return opened.inner._login.token(call()).reveal().decode()


def test_the_token_is_renewed_and_replaced_before_its_end(ledger: Ledger, server: Server, directory: Path) -> None:
    real = Real(server, directory, ttl="4s", max_ttl="8s")
    opened = Opened(ledger, Vault, **real.approle())
    key_id = opened.provider.key_id(call())
    until(lambda: opened.value("nodeplug_kms_vault_renewals_total", outcome="ok") >= 1, "it is renewed", timeout=20)
    until(lambda: opened.value("nodeplug_kms_vault_logins_total", outcome="ok") >= 2, "it is replaced", timeout=20)
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
    assert opened.value("nodeplug_kms_vault_logins_total", outcome="failed") == 0


def test_a_policy_without_encrypt_is_revoked_access_and_costs_no_login_for_each_call(
    opened: Opened, real: Real
) -> None:
    key_id = opened.provider.key_id(call())
    real.allow("keys", "decrypt")
    for _ in range(10):
        with pytest.raises(Revoked, match="permission denied"):
            opened.provider.encrypt(SEED, key_id, call())
    assert opened.value("nodeplug_kms_vault_logins_total", outcome="ok") <= 2
    real.allow()
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


def test_a_wrong_secret_id_is_a_refused_login(ledger: Ledger, real: Real) -> None:
    real.keep("secret_id", "no-such-secret")
    opened = Opened(ledger, Vault, **real.approle())
    with pytest.raises(Revoked, match="login was refused"):
        opened.provider.key_id(call())


def test_sealed_is_unreachable_with_the_hint_to_unseal(ledger: Ledger, directory: Path) -> None:
    real = Real(Server(ledger), directory)
    opened = Opened(ledger, Vault, **real.approle())
    key_id = opened.provider.key_id(call())
    real.run("operator", "seal")
    with pytest.raises((Unreachable, TimedOut), match="sealed"):
        opened.provider.encrypt(SEED, key_id, call(0.5))


def test_a_deleted_key_is_revoked_and_one_made_again_is_another_key(opened: Opened, real: Real) -> None:
    old = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, old, call())
    real.run("write", f"{real.path}/config", "deletion_allowed=true")
    real.run("delete", real.path)
    with pytest.raises(Revoked):
        opened.provider.key_id(call())
    time.sleep(1.1)  # a version is known by the second in which it was made
    real.run("write", "-f", real.path)
    assert opened.provider.key_id(call()) != old
    with pytest.raises((KeyUnknown, CiphertextInvalid)):
        opened.provider.decrypt(reply, call())


def test_an_api_server_lives_through_a_rotation_and_a_restart_of_both(ledger: Ledger, real: Real) -> None:
    keys = "\n".join(f'{name} = "{value}"' for name, value in real.approle().items())
    node = Node(ledger, provider=f'type = "vault"\n{keys}\n')
    node.start()
    etcd = Etcd()
    api = ApiServer(str(node.socket), etcd, clock=Clock(speed=60))
    ledger.adopt("API server", api.stop)
    api.start()
    api.write("/registry/secrets/a/1", b"before")
    old = api.key_id
    real.run("write", "-f", f"{real.path}/rotate")
    assert node.process is not None
    node.process.signal(1)
    until(lambda: api.key_id not in ("", old), "the new version is used", timeout=60)
    api.write("/registry/secrets/a/2", b"after")
    node.kill()
    node.start()
    api.restart()
    assert api.read_all() == {"/registry/secrets/a/1": b"before", "/registry/secrets/a/2": b"after"}
    assert api.migrate() == 1
