"""The Vault provider against a server of the transit API: logins, rotation, troubles told apart."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nodeplug.core.errors import ConfigInvalid, TimedOut
from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer
from nodeplug.kms.contract import (
    Api,
    Call,
    CiphertextInvalid,
    Encrypted,
    KeyRetired,
    KeyUnknown,
    Revoked,
    Throttled,
    Unreachable,
)
from nodeplug.kms.providers.vault import Vault
from tests.child import until
from tests.kms.node import Node
from tests.kms.providers import Opened, call
from tests.kms.vault_server import TransitKey, VaultServer
from tests.ledger import Ledger

SEED = bytes(range(32))


@pytest.fixture
def server(ledger: Ledger) -> VaultServer:
    server = VaultServer()
    ledger.adopt("vault", server.close)
    return server


def private(path: Path, text: str) -> str:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


def approle(server: VaultServer, directory: Path) -> dict[str, Any]:
    return {
        "address": server.address,
        "key": "k8s",
        "auth": "approle",
        "role_id_file": private(directory / "role", "the role"),
        "secret_id_file": private(directory / "secret", "the secret"),
    }


@pytest.fixture
def opened(ledger: Ledger, server: VaultServer, directory: Path) -> Opened:
    return Opened(ledger, Vault, **approle(server, directory))


def test_what_is_encrypted_decrypts_and_is_small(opened: Opened) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    assert reply.key_id == key_id
    assert key_id.startswith("np1-vt-")
    assert reply.size() <= 150
    assert opened.provider.decrypt(reply, call()) == SEED


def test_the_version_comes_from_the_ciphertext_and_no_second_call_is_made(opened: Opened, server: VaultServer) -> None:
    before = opened.provider.key_id(call())
    server.requests.clear()
    server.keys["k8s"].rotate()
    reply = opened.provider.encrypt(SEED, before, call())
    assert reply.key_id == before
    assert reply.ciphertext.startswith(b"vault:v1:")
    assert server.requests == [("POST", "transit/encrypt/k8s")]
    after = opened.provider.key_id(call())
    assert after != before
    assert opened.provider.encrypt(SEED, after, call()).ciphertext.startswith(b"vault:v2:")
    assert opened.provider.decrypt(reply, call()) == SEED


def test_a_version_that_no_longer_encrypts_gives_way_to_the_newest(opened: Opened, server: VaultServer) -> None:
    old = opened.provider.key_id(call())
    server.keys["k8s"].rotate()
    server.keys["k8s"].min_encryption = 2
    reply = opened.provider.encrypt(SEED, old, call())  # before anybody has looked at the key again
    assert reply.key_id == opened.provider.key_id(call()) != old
    assert opened.provider.decrypt(reply, call()) == SEED


def test_a_key_made_again_under_the_same_name_is_another_key(
    ledger: Ledger, server: VaultServer, directory: Path
) -> None:
    first = Opened(ledger, Vault, **approle(server, directory)).provider
    key_id = first.key_id(call())
    reply = first.encrypt(SEED, key_id, call())
    server.keys["k8s"] = TransitKey()
    server.keys["k8s"].versions.append((os.urandom(32), 1))
    second = Opened(ledger, Vault, **approle(server, directory)).provider
    assert second.key_id(call()) != key_id
    with pytest.raises(KeyUnknown):
        second.decrypt(reply, call())


@pytest.mark.parametrize("change", ["api", "version", "byte", "other", "text", "annotation"])
def test_a_changed_request_does_not_decrypt(opened: Opened, server: VaultServer, change: str) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    server.keys["k8s"].rotate()
    newer = opened.provider.key_id(call())
    text = reply.ciphertext
    bad, api = {
        "api": (reply, Api.V1BETA1),
        "version": (Encrypted(text.replace(b":v1:", b":v2:"), newer), Api.V2),
        "byte": (Encrypted(text[:-6] + b"AAAAA=", key_id), Api.V2),
        "other": (Encrypted(text, newer), Api.V2),
        "text": (Encrypted(b"\xff" * 30, key_id), Api.V2),
        "annotation": (Encrypted(text, key_id, {"a.example": b"x"}), Api.V2),
    }[change]
    with pytest.raises(CiphertextInvalid):
        opened.provider.decrypt(bad, call(api=api))


def test_an_old_version_is_retired_by_policy(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    server.keys["k8s"].rotate()
    server.keys["k8s"].min_decryption = 2
    opened.provider.key_id(call())
    with pytest.raises(KeyRetired, match="min_decryption_version"):
        opened.provider.decrypt(reply, call())


# Troubles.


def test_sealed_throttled_refused_and_gone_are_told_apart(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    server.sealed = True
    with pytest.raises(Unreachable, match="sealed"):
        opened.provider.encrypt(SEED, key_id, call(0.3))
    server.sealed = False
    server.throttle = 1000
    with pytest.raises(Throttled):
        opened.provider.encrypt(SEED, key_id, call(0.5))
    server.throttle = 0
    server.credentials["secret_id"] = "another"
    server.refuse_tokens()
    with pytest.raises(Revoked, match="login was refused"):
        opened.provider.encrypt(SEED, key_id, call())
    server.credentials["secret_id"] = "the secret"
    del server.keys["k8s"]
    with pytest.raises(Revoked):
        opened.provider.key_id(call())
    server.close()
    with pytest.raises(Unreachable):
        opened.provider.encrypt(SEED, key_id, call(0.5))
    kinds = {
        kind: opened.value("nodeplug_kms_backend_errors_total", operation="encrypt", kind=kind)
        for kind in ("unreachable", "throttled", "revoked")
    }
    assert all(count >= 1 for count in kinds.values()), kinds
    server.close = lambda: None  # type: ignore[method-assign]  # it is


def test_a_moment_of_trouble_is_bridged_within_the_deadline(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    server.broken = 2
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
    server.throttle = 2
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
    assert opened.value("nodeplug_kms_backend_retries_total", operation="encrypt") == 4


def test_a_server_that_never_answers_costs_no_more_than_the_deadline(ledger: Ledger, directory: Path) -> None:
    silent = ledger.echo()  # accepts, and says nothing of HTTP
    keys = approle(type("S", (), {"address": f"http://127.0.0.1:{silent.port}"})(), directory)  # type: ignore[arg-type]
    opened = Opened(ledger, Vault, **keys, timeout="200ms")
    with pytest.raises((Unreachable, TimedOut)):
        opened.provider.key_id(call(1.0))


def test_an_answer_that_comes_a_byte_at_a_time_is_not_waited_for(
    ledger: Ledger, server: VaultServer, directory: Path
) -> None:
    opened = Opened(ledger, Vault, **approle(server, directory), timeout="300ms")
    key_id = opened.provider.key_id(call())
    server.drip = 0.1
    began = time.monotonic()
    with pytest.raises((Unreachable, TimedOut)):
        opened.provider.encrypt(SEED, key_id, call(2.0))
    server.drip = 0.0
    assert time.monotonic() - began < 10  # all of it would take a minute
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


def test_after_many_failures_calls_fail_at_once_and_then_recover(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    server.sealed = True

    def broken() -> bool:
        with pytest.raises((Unreachable, TimedOut)):
            opened.provider.encrypt(SEED, key_id, call(0.2))
        return opened.value("nodeplug_kms_breaker_open") == 1

    until(broken, "the breaker opens")
    asked = len(server.requests)
    with pytest.raises(Unreachable, match="did not answer the last"):
        opened.provider.encrypt(SEED, key_id, call())
    assert len(server.requests) == asked
    server.sealed = False

    def works() -> bool:
        try:
            return opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
        except (Unreachable, TimedOut):
            return False

    until(works, "the breaker closes")
    assert opened.value("nodeplug_kms_breaker_open") == 0


def test_equal_decrypts_in_flight_are_one(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    server.requests.clear()
    server.delay = 0.3
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: opened.provider.decrypt(reply, call()), range(10)))
    assert answers == [SEED] * 10
    assert server.requests.count(("POST", "transit/decrypt/k8s")) == 1
    assert opened.value("nodeplug_kms_joined_decrypts_total") == 9


def test_no_more_calls_than_the_cap_are_under_way(ledger: Ledger, server: VaultServer, directory: Path) -> None:
    opened = Opened(ledger, Vault, **approle(server, directory), concurrency=3)
    key_id = opened.provider.key_id(call())
    server.delay = 0.05
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: opened.provider.encrypt(SEED, key_id, call(10)), range(24)))
    assert server.most_under_way == 3


def test_a_connection_closed_while_idle_is_no_failure(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    server.drop_connections()
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


def test_callers_that_give_up_while_they_wait_say_nothing_about_the_backend(opened: Opened) -> None:
    key_id = opened.provider.key_id(call())
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        waiting = iter([False])  # asked once before the wait for a turn, and again after it
        gone = Call(Api.V2, "uid", time.monotonic() + 3.0, lambda waiting=waiting: next(waiting, True))
        with pytest.raises(TimedOut):
            opened.provider.encrypt(SEED, key_id, gone)
        time.sleep(0.05)
    assert opened.value("nodeplug_kms_breaker_open") == 0
    assert opened.value("nodeplug_kms_backend_errors_total", operation="encrypt", kind="slow") == 0
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


# Logins.


def test_a_refused_token_costs_one_login_and_no_failed_call(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    for _ in range(3):
        server.refuse_tokens()
        assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
    assert opened.value("nodeplug_kms_vault_logins_total", outcome="ok") == 4


def test_a_policy_that_says_no_costs_no_login_for_each_call(opened: Opened, server: VaultServer) -> None:
    key_id = opened.provider.key_id(call())
    server.denied = "encrypt"
    for _ in range(20):
        with pytest.raises(Revoked, match="permission denied"):
            opened.provider.encrypt(SEED, key_id, call())
    assert opened.value("nodeplug_kms_vault_logins_total", outcome="ok") <= 2
    server.denied = ""
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


@pytest.mark.parametrize("file", ["role", "secret"])
def test_a_credential_that_cannot_be_read_is_a_lack_of_access_and_not_something_not_found(
    ledger: Ledger, server: VaultServer, directory: Path, file: str
) -> None:
    opened = Opened(ledger, Vault, **approle(server, directory))
    (directory / file).unlink()
    with pytest.raises(Revoked, match="is not there"):
        opened.provider.key_id(call())
    private(directory / file, f"the {file}")
    assert opened.provider.key_id(call())


def test_the_token_is_renewed_while_that_lengthens_it_and_replaced_before_its_end(
    ledger: Ledger, server: VaultServer, directory: Path
) -> None:
    server.ttl, server.max_ttl = 4.0, 7.0
    opened = Opened(ledger, Vault, **approle(server, directory))
    key_id = opened.provider.key_id(call())
    until(lambda: opened.value("nodeplug_kms_vault_renewals_total", outcome="ok") >= 1, "it is renewed", timeout=15)
    until(lambda: opened.value("nodeplug_kms_vault_logins_total", outcome="ok") >= 2, "it is replaced", timeout=15)
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id
    assert not any(path == "refused" for _, path in server.requests)
    assert opened.value("nodeplug_kms_vault_token_seconds") > 0


def test_a_token_file_is_read_again_when_its_token_is_refused(
    ledger: Ledger, server: VaultServer, directory: Path
) -> None:
    path = directory / "token"
    opened = Opened(ledger, Vault, address=server.address, key="k8s", token_file=private(path, server.new_token()))
    key_id = opened.provider.key_id(call())
    server.refuse_tokens()
    path.write_text(server.new_token())
    assert opened.provider.encrypt(SEED, key_id, call()).key_id == key_id


def test_a_jwt_file_logs_in(ledger: Ledger, server: VaultServer, directory: Path) -> None:
    path = directory / "jwt"
    path.write_text("the.j.wt")
    opened = Opened(ledger, Vault, address=server.address, key="k8s", auth="jwt", role="kms", jwt_file=str(path))
    assert opened.provider.key_id(call())


def certificate(directory: Path, name: str, issuer: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """A key and certificate in PEM files name.key and name.crt; signed by `issuer`, else by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("vault.example")]
            ),
            critical=False,
        )
        .sign(issuer[0] if issuer else key, hashes.SHA256())
    )
    (directory / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key, made


def test_a_client_certificate_logs_in_over_tls(ledger: Ledger, directory: Path) -> None:
    ca = certificate(directory, "ca")
    certificate(directory, "server", ca)
    certificate(directory, "client", ca)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(directory / "server.crt", directory / "server.key")
    tls.load_verify_locations(directory / "ca.crt")
    tls.verify_mode = ssl.CERT_REQUIRED
    server = VaultServer(tls=tls)
    ledger.adopt("vault", server.close)
    keys = {
        "address": server.address,
        "key": "k8s",
        "auth": "cert",
        "cert_file": str(directory / "client.crt"),
        "key_file": str(directory / "client.key"),
    }
    opened = Opened(ledger, Vault, **keys, ca_file=str(directory / "ca.crt"))
    key_id = opened.provider.key_id(call())
    assert opened.provider.decrypt(opened.provider.encrypt(SEED, key_id, call()), call()) == SEED
    named = Opened(ledger, Vault, **keys, ca_file=str(directory / "ca.crt"), server_name="vault.example")
    assert named.provider.key_id(call()) == key_id
    for more in ({}, {"ca_file": str(directory / "ca.crt"), "server_name": "other.example"}):
        wrong = Opened(ledger, Vault, **keys, **more)
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            wrong.provider.key_id(call(0.5))


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"address": "http://vault.example:8200"}, "not encrypted"),
        ({"address": "vault:8200"}, "no address"),
        ({"address": "https://x", "auth": "approle"}, "role_id_file"),
        ({"address": "https://x", "auth": "jwt", "jwt_file": "/x"}, "role"),
        ({"address": "https://x", "auth": "cert", "cert_file": "/nonexistent"}, "cannot be read"),
        ({"address": "https://x", "auth": "kerberos"}, "auth"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(ledger: Ledger, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        Opened(ledger, Vault, key="k8s", **keys)


def test_no_secret_is_in_any_error(ledger: Ledger, server: VaultServer, directory: Path) -> None:
    opened = Opened(ledger, Vault, **approle(server, directory))
    key_id = opened.provider.key_id(call())
    tokens = list(server.tokens)
    said = []
    for spoil in ("sealed", "tokens", "key"):
        if spoil == "sealed":
            server.sealed = True
        elif spoil == "tokens":
            server.sealed = False
            server.credentials["secret_id"] = "changed"
            server.refuse_tokens()
        else:
            server.credentials["secret_id"] = "the secret"
            del server.keys["k8s"]
        with pytest.raises((Unreachable, Revoked)) as failed:
            opened.provider.encrypt(SEED, key_id, call(0.2))
        said.append(repr(failed.value) + str(failed.value))
    text = " ".join([*said, *opened.notes])
    assert not any(secret in text for secret in [*tokens, "the secret", SEED.hex()])


# The daemon with it.


def test_an_api_server_lives_through_a_rotation_an_outage_and_a_refused_token(
    ledger: Ledger, server: VaultServer
) -> None:
    node = Node(ledger)
    files = approle(server, node.directory)
    node.provider = 'type = "vault"\n' + "".join(f'{name} = "{value}"\n' for name, value in files.items())
    node.write_config()
    node.start()
    etcd = Etcd()
    api = ApiServer(str(node.socket), etcd, clock=Clock(speed=60.0))
    ledger.adopt("API server", api.stop)
    api.start()
    values = {f"/registry/secrets/a/{number}": str(number).encode() for number in range(20)}
    for path, value in values.items():
        api.write(path, value)
    first = api.key_id
    server.sealed = True
    time.sleep(0.5)
    assert not api.healthz()  # Status is answered from memory
    server.sealed = False
    server.keys["k8s"].rotate()
    assert node.process is not None
    node.process.signal(1)
    until(lambda: api.key_id != first, "the new version is published")
    assert all("Status named" not in failure for failure in api.failures)
    api.migrate()
    server.refuse_tokens()
    api.restart()
    assert api.read_all() == values
    log = node.process.output()
    assert "the secret" not in log
    assert "hvs." not in log


def test_the_daemon_starts_without_its_backend_and_becomes_well_with_it(ledger: Ledger, server: VaultServer) -> None:
    server.sealed = True
    node = Node(ledger)
    files = approle(server, node.directory)
    node.provider = 'type = "vault"\n' + "".join(f'{name} = "{value}"\n' for name, value in files.items())
    node.write_config()
    process = node.start()
    assert "503" in node.page("/readyz").splitlines()[0]
    assert "sealed" in node.page("/readyz")
    assert "200" in node.page("/livez").splitlines()[0]
    server.sealed = False
    until(lambda: "200" in node.page("/readyz").splitlines()[0], "it is well", timeout=20)
    assert process.running()


def test_a_status_never_waits_for_a_backend_that_hangs(ledger: Ledger, server: VaultServer) -> None:
    from nodeplug.harness.apiserver.client import V2

    node = Node(ledger)
    files = approle(server, node.directory)
    node.provider = 'type = "vault"\n' + "".join(f'{name} = "{value}"\n' for name, value in files.items())
    node.write_config()
    node.start()
    client = V2(str(node.socket))
    ledger.adopt("client", client.close)
    good = client.encrypt("u", SEED)
    server.delay = 2.0
    waiting = [threading.Thread(target=lambda: _quietly(lambda: client.decrypt("u", good))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    until(lambda: server.under_way, "the backend is asked")
    for _ in range(50):
        assert client.status().healthz == "ok"
    assert server.under_way  # fifty answers, and the backend has not given its one
    for thread in waiting:
        thread.join()


def _quietly(act: Any) -> None:
    from nodeplug.harness.apiserver.client import CallFailed

    try:
        act()
    except CallFailed:
        pass
