"""portmap answers any configuration, and takes back all that it added."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.child import run
from tests.cni.calls import ask, environment
from tests.cni.hostports import Host, Pod
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:nft", "program:conntrack")


@pytest.fixture(scope="module")
def host(module_ledger: Ledger) -> Host:
    return Host.make(module_ledger)


@pytest.fixture(scope="module")
def pod(host: Host) -> Pod:
    return host.pod()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 40), 1 << 40)
    | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("backend", "snat", "masqAll", "markMasqBit", "externalSetMarkChain", "runtimeConfig", "prevResult")


@settings(max_examples=150, deadline=None)
@given(keys=st.dictionaries(st.sampled_from(KEYS), json_values), command=st.sampled_from(["ADD", "DEL", "STATUS"]))
def test_any_configuration_gets_an_answer(pod: Pod, keys: dict[str, Any], command: str) -> None:
    config = {"cniVersion": "1.1.0", "name": "any", "type": "portmap", **keys}
    code, answer, _ = ask("portmap", environment(command, CNI_NETNS=pod.space.path), config)
    assert code in (0, 1)
    if code:
        assert isinstance(answer["code"], int) and answer["msg"]
        assert "a fault of the plugin" not in json.dumps(answer)


mapping = st.fixed_dictionaries(
    {"hostPort": st.integers(0, 70000), "containerPort": st.integers(0, 70000)},
    optional={
        "protocol": st.sampled_from(["tcp", "udp", "sctp", "TCP", "x", ""]),
        "hostIP": st.sampled_from(
            ["", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:1.2.3.4", "127.0.0.1", "x"]
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(mappings=st.lists(mapping, max_size=4))
def test_any_mappings_are_added_and_taken_back_or_refused(host: Host, pod: Pod, mappings: list[dict[str, Any]]) -> None:
    code, answer, _ = host.portmap("ADD", pod, *mappings)
    assert code == 0 or answer["code"] == 7, answer
    if code == 0:
        assert host.portmap("CHECK", pod, *mappings)[0] == 0
    host.delete(pod)
    listed = run(["nft", "list", "table", "inet", "nodeplug"]).text
    assert pod.address not in listed and pod.address6 not in listed
