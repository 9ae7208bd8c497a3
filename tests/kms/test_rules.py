"""The harness's API server refuses what a real one refuses: each rule broken by a plugin of our own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from nodeplug.harness.apiserver import rules
from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.server import ApiServer, WriteRefused
from nodeplug.pb.kms import v2_pb2
from tests.ledger import Ledger


class Plugin:
    """Right in everything, but for what a test changes in `status`, `reply` or `seed`."""

    def __init__(self, path: str) -> None:
        self.status = v2_pb2.StatusResponse(version="v2", healthz="ok", key_id="k1")
        self.reply: Callable[[bytes], v2_pb2.EncryptResponse] = lambda seed: v2_pb2.EncryptResponse(
            ciphertext=seed[::-1], key_id=self.status.key_id
        )
        self.seed: Callable[[bytes], bytes] = lambda ciphertext: ciphertext[::-1]

        def serialized(answer: Callable[[bytes], v2_pb2.EncryptResponse]) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(lambda data, _: answer(data).SerializeToString())

        handlers = {
            "Status": grpc.unary_unary_rpc_method_handler(lambda _data, _context: self.status.SerializeToString()),
            "Encrypt": serialized(lambda data: self.reply(v2_pb2.EncryptRequest.FromString(data).plaintext)),
            "Decrypt": grpc.unary_unary_rpc_method_handler(
                lambda data, _: v2_pb2.DecryptResponse(
                    plaintext=self.seed(v2_pb2.DecryptRequest.FromString(data).ciphertext)
                ).SerializeToString()
            ),
        }
        self.server = grpc.server(
            ThreadPoolExecutor(2),
            handlers=[grpc.method_handlers_generic_handler("v2.KeyManagementService", handlers)],
        )
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()


@pytest.fixture
def plugin(ledger: Ledger) -> tuple[Plugin, ApiServer]:
    path = str(ledger.socket_path())
    plugin = Plugin(path)
    ledger.adopt("plugin", lambda: plugin.server.stop(0).wait())
    api = ApiServer(path, Etcd(), clock=Clock(speed=0.001))  # it does not poll by itself
    ledger.adopt("API server", api.stop)
    return plugin, api


def annotated(**annotations: bytes) -> Callable[[bytes], v2_pb2.EncryptResponse]:
    names = {name.replace("__", "."): value for name, value in annotations.items()}
    return lambda seed: v2_pb2.EncryptResponse(ciphertext=seed, key_id="k1", annotations=names)


@pytest.mark.parametrize(
    "rule, status",
    [
        ("status-version-known", {"version": "v3"}),
        ("status-version-known", {"version": ""}),
        ("status-healthy", {"healthz": "OK"}),
        ("status-key-id-present", {"key_id": ""}),
        ("status-key-id-short", {"key_id": "k" * 1025}),
    ],
)
def test_a_status_that_breaks_a_rule(plugin: tuple[Plugin, ApiServer], rule: str, status: dict[str, str]) -> None:
    bad, api = plugin
    for name, value in status.items():
        setattr(bad.status, name, value)
    assert not api.probe()
    assert api.failures[-1].startswith(rule)
    with pytest.raises(WriteRefused):
        api.write("/registry/x", b"")


def test_a_status_that_changes_its_version(plugin: tuple[Plugin, ApiServer]) -> None:
    bad, api = plugin
    assert api.probe()
    bad.status.version = "v2beta1"
    assert not api.probe()
    assert api.failures[-1].startswith("status-version-constant")
    api.write("/registry/x", b"the old state coasts")
    api.restart()
    assert api.key_id == "k1"  # a new process takes the other version


REPLIES: list[tuple[str, Callable[[bytes], v2_pb2.EncryptResponse]]] = [
    ("encrypt-key-id-present", lambda seed: v2_pb2.EncryptResponse(ciphertext=seed)),
    ("encrypt-key-id-short", lambda seed: v2_pb2.EncryptResponse(ciphertext=seed, key_id="k" * 1025)),
    ("encrypt-key-id-of-status", lambda seed: v2_pb2.EncryptResponse(ciphertext=seed, key_id="k2")),
    ("encrypt-ciphertext-size", lambda _seed: v2_pb2.EncryptResponse(key_id="k1")),
    ("encrypt-ciphertext-size", lambda _seed: v2_pb2.EncryptResponse(ciphertext=bytes(1025), key_id="k1")),
    ("encrypt-annotation-names", annotated(onelabel=b"x")),
    ("encrypt-annotation-names", annotated(Upper__example=b"x")),
    ("encrypt-annotation-names", annotated(under_score__example=b"x")),
    ("encrypt-annotations-size", annotated(a__example=bytes(32768))),
]


@pytest.mark.parametrize("rule, reply", REPLIES)
def test_an_encrypt_that_breaks_a_rule(
    plugin: tuple[Plugin, ApiServer], rule: str, reply: Callable[[bytes], v2_pb2.EncryptResponse]
) -> None:
    bad, api = plugin
    bad.reply = reply
    assert not api.probe()
    assert api.failures[-1].startswith(rule)
    assert api.key_id == ""


def test_a_seed_that_comes_back_too_short(plugin: tuple[Plugin, ApiServer]) -> None:
    bad, api = plugin
    assert api.probe()
    api.write("/registry/x", b"x")
    bad.seed = lambda _ciphertext: bytes(16)
    api.restart()
    with pytest.raises(rules.RuleBroken, match="decrypt-seed-size"):
        api.read("/registry/x")


def test_a_right_plugin_breaks_none(plugin: tuple[Plugin, ApiServer]) -> None:
    good, api = plugin
    good.reply = lambda seed: v2_pb2.EncryptResponse(
        ciphertext=seed[::-1], key_id="k1", annotations={"a.example": b"x", "a.example.": b"y"}
    )
    assert api.probe()
    api.write("/registry/x", b"x")
    api.restart()
    assert api.read("/registry/x") == b"x"


def test_every_rule_is_broken_by_some_test_above() -> None:
    broken = {rule for rule, _ in REPLIES} | {
        "status-version-known",
        "status-version-constant",
        "status-healthy",
        "status-key-id-present",
        "status-key-id-short",
    }
    assert broken == {*rules.STATUS, *rules.ENCRYPT}


@pytest.mark.parametrize(
    "name, good",
    [
        ("a.example", True),
        ("a.example.", True),
        ("a-b.c", True),
        ("a", False),
        ("-a.example", False),
        ("a..b", False),
        ("a" * 63 + ".b", True),
        ("a" * 64 + ".b", False),
        (".".join(["a" * 60] * 5), False),
        ("", False),
    ],
)
def test_domain_names(name: str, good: bool) -> None:
    assert rules.is_domain_name(name) is good
