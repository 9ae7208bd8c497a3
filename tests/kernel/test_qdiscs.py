"""Traffic control by netlink, with tc(8) as the second opinion."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import links, qdiscs, veths
from nodeplug.kernel.rtnl.qdiscs import INGRESS, ROOT, Bucket, Filter
from tests.needs import needs
from tests.space import Space

T = TypeVar("T")
pytestmark = needs("sandbox", "program:tc", "link:ifb")


def ask(space: Space, function: Callable[[Netlink], T]) -> T:
    def body() -> T:
        with Netlink(NETLINK_ROUTE) as route:
            return function(route)

    return space.call(body)


@pytest.fixture
def pair(netns: Space) -> tuple[int, int]:
    """A veth and an IFB; their indexes."""

    def make(route: Netlink) -> tuple[int, int]:
        messages = veths.add("a", "b", up=True), links.add("i", "ifb", up=True), links.query("a"), links.query("i")
        *_, veth, ifb = route.request(*messages)
        return links.parse(veth or b"").index, links.parse(ifb or b"").index

    return ask(netns, make)


def tc(space: Space, *words: str) -> Any:
    return json.loads(space.run("tc", "-j", *words).ok().stdout or b"[]")


@pytest.mark.parametrize(
    "bucket",
    [
        Bucket(rate=1_000_000, burst=20_000, limit=45_000),
        Bucket(rate=125, burst=1600, limit=1603),
        Bucket(rate=6_000_000_000, burst=1 << 30, limit=qdiscs.LONGEST),
        Bucket(rate=10**12, burst=qdiscs.LONGEST, limit=qdiscs.LONGEST),
    ],
)
def test_a_shaped_link_is_what_tc_and_find_say(netns: Space, pair: tuple[int, int], bucket: Bucket) -> None:
    ask(netns, lambda route: route.request(qdiscs.shape(pair[0], bucket)))
    (shown,) = (item for item in tc(netns, "qdisc", "show", "dev", "a") if item["kind"] == "tbf")
    assert (shown["handle"], shown.get("root"), shown["options"]["rate"]) == ("1:", True, bucket.rate)
    assert shown["options"]["burst"] == pytest.approx(bucket.burst, rel=0.02, abs=64)
    found = ask(netns, lambda route: qdiscs.find(route, pair[0]))
    assert found is not None and found.bucket is not None
    assert (found.kind, found.bucket.rate, found.bucket.limit) == ("tbf", bucket.rate, bucket.limit)
    assert found.ticks == pytest.approx(bucket.ticks, rel=0.001, abs=2)


def test_shaping_anew_replaces_and_deleting_gives_the_default_back(netns: Space, pair: tuple[int, int]) -> None:
    bucket = Bucket(rate=1_000_000, burst=20_000, limit=45_000)
    ask(netns, lambda route: route.request(qdiscs.shape(pair[0], bucket)))
    ask(netns, lambda route: route.request(qdiscs.shape(pair[0], bucket.replace(rate=2_000_000))))
    found = ask(netns, lambda route: qdiscs.find(route, pair[0]))
    assert found is not None and found.bucket is not None and found.bucket.rate == 2_000_000
    ask(netns, lambda route: route.request(qdiscs.delete(pair[0], ROOT)))
    found = ask(netns, lambda route: qdiscs.find(route, pair[0]))
    assert found is not None and (found.kind, found.bucket) != ("tbf", None)
    with pytest.raises(NetlinkError) as caught:
        ask(netns, lambda route: route.request(qdiscs.delete(pair[0], ROOT)))
    assert caught.value.errno in (errno.ENOENT, errno.EINVAL)


def test_a_redirect_is_what_tc_and_redirects_say(netns: Space, pair: tuple[int, int]) -> None:
    veth, ifb = pair
    ask(netns, lambda route: route.request(qdiscs.receive(veth), qdiscs.redirect(veth, ifb)))
    filters = tc(netns, "filter", "show", "dev", "a", "ingress")
    (rule,) = (item for item in filters if "actions" in item.get("options", {}))
    assert (rule["protocol"], rule["pref"], rule["kind"]) == ("all", 1, "u32")
    (action,) = rule["options"]["actions"]
    assert (action["kind"], action["mirred_action"], action["direction"], action["to_dev"]) == (
        "mirred",
        "redirect",
        "egress",
        "i",
    )
    assert action["control_action"] == {"type": "stolen"}
    assert ask(netns, lambda route: qdiscs.filters(route, veth)) == [Filter(kind="u32", to=ifb)]
    at_ingress = ask(netns, lambda route: qdiscs.find(route, veth, INGRESS))
    assert at_ingress is not None and at_ingress.kind == "ingress"
    with pytest.raises(NetlinkError) as caught:
        ask(netns, lambda route: route.request(qdiscs.receive(veth)))
    assert caught.value.errno == errno.EEXIST
    ask(netns, lambda route: route.request(qdiscs.delete(veth, INGRESS)))
    assert ask(netns, lambda route: qdiscs.filters(route, veth)) == []
    assert ask(netns, lambda route: qdiscs.find(route, veth, INGRESS)) is None


def test_what_is_gone_is_none_and_a_rate_of_nothing_is_refused(netns: Space, pair: tuple[int, int]) -> None:
    assert ask(netns, lambda route: qdiscs.find(route, 9999)) is None
    with pytest.raises(NetlinkError):
        ask(netns, lambda route: route.request(qdiscs.shape(pair[0], Bucket(rate=1000, burst=0, limit=0))))
    with pytest.raises(NetlinkError) as caught:
        ask(netns, lambda route: route.request(qdiscs.redirect(pair[0], pair[1])))
    assert caught.value.call == "redirect add"


def test_other_filters_are_told_apart(netns: Space, pair: tuple[int, int]) -> None:
    netns.run("tc", "qdisc", "add", "dev", "a", "ingress").ok()
    rule = "filter add dev a ingress u32 match ip dport 80 0xffff flowid 1:9"
    netns.run("tc", *rule.split()).ok()
    assert ask(netns, lambda route: qdiscs.filters(route, pair[0])) == [Filter(kind="u32", to=0)]
    netns.run("tc", "qdisc", "add", "dev", "b", "clsact").ok()
    found = ask(netns, lambda route: qdiscs.find(route, pair[0] - 1, INGRESS))
    assert found is not None and found.kind == "clsact"


@given(st.binary(max_size=400))
def test_any_bytes_are_a_qdisc_or_a_value_error(data: bytes) -> None:
    try:
        qdiscs.parse(data)
    except ValueError:
        assert len(data) < 20
