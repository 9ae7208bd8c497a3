"""The AWS provider against moto's KMS on a loopback port."""

from __future__ import annotations

import logging
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer
from nodeplug.kms.contract import Api, CiphertextInvalid, Encrypted, KeyUnknown, Revoked, Throttled, Unreachable
from nodeplug.kms.providers.aws import Aws, _of_reply, key_id_of
from tests.child import until
from tests.kms.node import Node
from tests.kms.providers import Opened, call
from tests.ledger import Ledger

SEED = bytes(range(32))
REGION = "eu-central-1"


@pytest.fixture(scope="module")
def address(module_ledger: Ledger) -> str:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    module_ledger.adopt("moto", server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def admin(address: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-access-key")
    client = botocore.session.get_session().create_client("kms", region_name=REGION, endpoint_url=address)
    ledger.adopt("client", client.close)
    for alias in client.list_aliases()["Aliases"]:
        if alias["AliasName"] == "alias/k8s":
            client.delete_alias(AliasName="alias/k8s")
    client.create_alias(AliasName="alias/k8s", TargetKeyId=client.create_key()["KeyMetadata"]["KeyId"])
    return client


@pytest.fixture
def opened(ledger: Ledger, address: str, admin: Any) -> Opened:
    return Opened(ledger, Aws, key="alias/k8s", region=REGION, endpoint=address)


def test_what_is_encrypted_decrypts_and_the_arn_is_not_shown(opened: Opened, admin: Any) -> None:
    key_id = opened.provider.key_id(call())
    arn = admin.describe_key(KeyId="alias/k8s")["KeyMetadata"]["Arn"]
    assert key_id == key_id_of(arn, "")
    assert arn.rpartition("/")[2] not in key_id
    reply = opened.provider.encrypt(SEED, key_id, call())
    assert reply.key_id == key_id
    assert opened.provider.decrypt(reply, call()) == SEED


def test_another_key_behind_the_alias_is_a_rotation_and_older_data_still_decrypts(
    ledger: Ledger, opened: Opened, admin: Any, address: str
) -> None:
    old = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, old, call())
    before = admin.describe_key(KeyId="alias/k8s")["KeyMetadata"]["Arn"]
    admin.update_alias(AliasName="alias/k8s", TargetKeyId=admin.create_key()["KeyMetadata"]["KeyId"])
    new = opened.provider.key_id(call())
    assert new != old
    assert opened.provider.encrypt(SEED, new, call()).key_id == new
    assert opened.provider.encrypt(SEED, old, call()).key_id == old  # until the new one is published
    assert opened.provider.decrypt(reply, call()) == SEED
    fresh = Opened(ledger, Aws, key="alias/k8s", region=REGION, endpoint=address)
    with pytest.raises(KeyUnknown, match=r"kms\.provider\.decrypt"):
        fresh.provider.decrypt(reply, call())
    told = Opened(ledger, Aws, key="alias/k8s", region=REGION, endpoint=address, decrypt=[before])
    assert told.provider.decrypt(reply, call()) == SEED


def test_a_suffix_makes_a_new_id_for_the_same_key(ledger: Ledger, opened: Opened, address: str) -> None:
    old = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, old, call())
    again = Opened(ledger, Aws, key="alias/k8s", region=REGION, endpoint=address, suffix="2", decrypt_suffixes=[""])
    assert again.provider.key_id(call()) != old
    assert again.provider.decrypt(reply, call()) == SEED


def test_a_multi_region_key_has_one_id_in_all_regions() -> None:
    ids = {key_id_of(f"arn:aws:kms:{region}:1:key/mrk-1", "") for region in ("eu-central-1", "us-east-1")}
    assert len(ids) == 1
    assert key_id_of("arn:aws:kms:a:1:key/1", "") != key_id_of("arn:aws:kms:b:1:key/1", "")


@pytest.mark.parametrize("change", ["api", "byte", "annotation"])
def test_a_changed_request_does_not_decrypt(opened: Opened, change: str) -> None:
    key_id = opened.provider.key_id(call())
    reply = opened.provider.encrypt(SEED, key_id, call())
    bad, api = {
        "api": (reply, Api.V1BETA1),
        "byte": (Encrypted(reply.ciphertext[:-1] + b"\0", key_id), Api.V2),
        "annotation": (Encrypted(reply.ciphertext, key_id, {"a.example": b"x"}), Api.V2),
    }[change]
    with pytest.raises(CiphertextInvalid):
        opened.provider.decrypt(bad, call(api=api))


def test_a_disabled_key_is_revoked_and_well_again_when_enabled(opened: Opened, admin: Any) -> None:
    key_id = opened.provider.key_id(call())
    admin.disable_key(KeyId=admin.describe_key(KeyId="alias/k8s")["KeyMetadata"]["KeyId"])
    with pytest.raises(Revoked, match="Disabled"):
        opened.provider.key_id(call())
    admin.enable_key(KeyId=admin.describe_key(KeyId="alias/k8s")["KeyMetadata"]["KeyId"])
    assert opened.provider.key_id(call()) == key_id


def test_a_key_that_is_not_there_is_revoked(ledger: Ledger, address: str, admin: Any) -> None:
    with pytest.raises(Revoked, match="NotFoundException"):
        Opened(ledger, Aws, key="alias/none", region=REGION, endpoint=address).provider.key_id(call())


def test_an_endpoint_that_is_gone_is_unreachable(ledger: Ledger, admin: Any) -> None:
    opened = Opened(ledger, Aws, key="alias/k8s", region=REGION, endpoint="http://127.0.0.1:1", timeout="300ms")
    with pytest.raises(Unreachable):
        opened.provider.key_id(call(0.5))


def test_no_credentials_is_said_so(ledger: Ledger, address: str, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    opened = Opened(ledger, Aws, key="alias/k8s", region=REGION, endpoint=address)
    with pytest.raises(Revoked, match="no credentials"):
        opened.provider.key_id(call())


@pytest.mark.parametrize(
    "code, status, kind",
    [
        ("ThrottlingException", 400, Throttled),
        ("LimitExceededException", 400, Throttled),
        ("", 429, Throttled),
        ("DisabledException", 400, Revoked),
        ("KMSInvalidStateException", 400, Revoked),
        ("AccessDeniedException", 400, Revoked),
        ("ExpiredTokenException", 400, Revoked),
        ("InvalidCiphertextException", 400, CiphertextInvalid),
        ("IncorrectKeyException", 400, CiphertextInvalid),
        ("KMSInternalException", 500, Unreachable),
        ("DependencyTimeoutException", 503, Unreachable),
        ("KeyUnavailableException", 500, Unreachable),
    ],
)
def test_each_answer_of_aws_has_its_kind(code: str, status: int, kind: type[Exception]) -> None:
    reply: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(_of_reply(ClientError(reply, "Encrypt"))) is kind


def test_an_api_server_lives_through_a_rotation(ledger: Ledger, address: str, admin: Any) -> None:
    node = Node(ledger, provider=f'type = "aws"\nkey = "alias/k8s"\nregion = "{REGION}"\nendpoint = "{address}"\n')
    node.start()
    etcd = Etcd()
    api = ApiServer(str(node.socket), etcd, clock=Clock(speed=60.0))
    ledger.adopt("API server", api.stop)
    api.start()
    values = {f"/registry/secrets/a/{number}": str(number).encode() for number in range(10)}
    for path, value in values.items():
        api.write(path, value)
    first = api.key_id
    admin.update_alias(AliasName="alias/k8s", TargetKeyId=admin.create_key()["KeyMetadata"]["KeyId"])
    assert node.process is not None
    node.process.signal(1)
    until(lambda: api.key_id != first, "the new key is published")
    api.migrate()
    api.restart()
    assert api.read_all() == values
    assert "the-secret-access-key" not in node.process.output()
