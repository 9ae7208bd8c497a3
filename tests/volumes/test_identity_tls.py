"""Mutual TLS between pods by the files they are given, under two nodes' authorities of one root."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from nodeplug.volumes.identity.layouts import CREDENTIAL
from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.authorities import DOMAIN, Domain
from tests.volumes.identities import DB, WEB, Node
from tests.volumes.test_identity import BUNDLE

pytestmark = needs("sandbox", "program:openssl")

PORT = 4443


class Pods:
    """Two pods on two nodes, and one of a stranger who calls his trust domain the same."""

    def __init__(self, ledger: Ledger) -> None:
        domain = Domain(ledger.directory())
        self.web = Node(ledger, domain, name="node-a").publish(WEB, layout="tls")
        self.db = Node(ledger, domain, name="node-b").publish(DB, layout="tls")
        stranger = Domain(ledger.directory(), DOMAIN)
        self.stranger = Node(ledger, stranger, name="node-a").publish(WEB, layout="tls")
        other = Domain(ledger.directory(), "other.org")
        self.other = Node(ledger, other, name="node-c").publish(WEB, layout="tls")


@pytest.fixture(scope="module")
def pods(module_ledger: Ledger) -> Pods:
    return Pods(module_ledger)


def context(path: Path, *, server: bool) -> ssl.SSLContext:
    """As a program in the pod would make it: own key and chain, peers by the bundle, names by the program."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    found.check_hostname = False
    found.verify_mode = ssl.CERT_REQUIRED
    found.load_cert_chain(path / "tls.crt", path / "tls.key")
    found.load_verify_locations(path / "ca.crt")
    return found


def met(server: Path, client: Path) -> tuple[object, object]:
    """What each side says: the other's names, or why it would not talk."""
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(20)
    seen: dict[bool, object] = {}

    def talk(*, as_server: bool) -> None:
        with ends[as_server] as end:
            try:
                made = context(server if as_server else client, server=as_server)
                with made.wrap_socket(end, server_side=as_server) as wrapped:
                    wrapped.sendall(b"hello")
                    assert wrapped.recv(5) == b"hello"
                    peer = wrapped.getpeercert()
                    assert peer is not None
                    seen[as_server] = peer["subjectAltName"]
            except (ssl.SSLError, OSError) as error:
                seen[as_server] = getattr(error, "verify_message", "") or type(error).__name__

    other = threading.Thread(target=talk, kwargs={"as_server": True})
    other.start()
    talk(as_server=False)
    other.join()
    return seen[True], seen[False]


def test_two_pods_of_two_nodes_know_each_other_by_name(pods: Pods) -> None:
    theirs = (
        (("URI", "spiffe://example.org/ns/shop/sa/web"),),
        (("URI", "spiffe://example.org/ns/shop/sa/db"),),
    )
    assert met(pods.db, pods.web) == theirs
    assert met(pods.web, pods.db) == theirs[::-1]


@pytest.mark.parametrize("who", ["stranger", "other"])
def test_a_self_made_authority_and_another_trust_domain_are_refused_by_both_sides(pods: Pods, who: str) -> None:
    foreign = getattr(pods, who)
    _, client = met(foreign, pods.web)
    assert client == "unable to get local issuer certificate"
    server, _ = met(pods.web, foreign)
    assert server in ("unable to get local issuer certificate", "SSLEOFError", "SSLError", "ConnectionResetError")


def test_openssl_reads_the_single_file_for_both_sides(pods: Pods, ledger: Ledger) -> None:
    server = ["openssl", "s_server", "-accept", f"127.0.0.1:{PORT}", "-Verify", "4", "-verify_return_error", "-quiet"]
    process = ledger.start(
        [*server, "-cert", pods.db / CREDENTIAL, "-cert_chain", pods.db / CREDENTIAL, "-CAfile", pods.db / BUNDLE]
    )
    until(lambda: _listens() or not process.running(), "it listens")
    client = ["openssl", "s_client", "-connect", f"127.0.0.1:{PORT}", "-verify_return_error", "-verify", "4"]
    files = ["-cert", pods.web / CREDENTIAL, "-cert_chain", pods.web / CREDENTIAL, "-CAfile", pods.web / BUNDLE]
    done = run([*client, *files], stdin=b"Q\n").ok()
    assert b"Verification: OK" in done.stdout
    foreign = ["-cert", pods.stranger / CREDENTIAL, "-cert_chain", pods.stranger / CREDENTIAL]
    refused = run([*client, *foreign, "-CAfile", pods.stranger / BUNDLE], stdin=b"Q\n")
    assert refused.code != 0
    assert b"unable to get local issuer certificate" in refused.stderr + refused.stdout


def _listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0
