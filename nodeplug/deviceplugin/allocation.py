"""From device ids to what a container gets, and which devices it had better get. Pure: same ids, same answer."""

from collections import Counter
from collections.abc import Mapping, Sequence

from nodeplug.core.errors import NotFound, Refused
from nodeplug.deviceplugin.contract import Allocation, GivenMount, GivenNode, Preference, render
from nodeplug.deviceplugin.settings import Resource
from nodeplug.devices.contract import Device
from nodeplug.devices.ids import base_of, replica_id

_MOST_COMPARED = 100_000
"""Comparisons; a pod's admission waits for them, at two microseconds each."""


def pick(resource: Resource, ids: Sequence[str], devices: Mapping[str, Device]) -> list[Device]:
    """The devices behind `ids`, each once, in order. Raises `NotFound` for an id that is none of ours, `Refused`."""
    if not ids:
        raise Refused(f"{resource.name}: an allocation of no devices")
    shares = resource.share.replicas
    if shares > 1 and resource.share.one_per_container and len(ids) > 1:
        raise Refused(
            f"{resource.name}: a container asked for {len(ids)} shares, which give it no more than one does",
            hint="request 1, or drop one_per_container from the resource's share",
        )
    found: dict[str, Device] = {}
    for id in sorted(ids):
        base, _, number = id.partition("::") if shares > 1 else (id, "", "")
        known = devices.get(base)
        if known is None or (shares > 1 and id not in (replica_id(base, n) for n in _numbers(number, shares))):
            raise NotFound(
                f"{resource.name} has no device {id!r}",
                hint="the kubelet's list is older than the plugin's; the next pod will get another device",
            )
        found[base] = known
    return list(found.values())


def _numbers(text: str, shares: int) -> tuple[int, ...]:
    return (int(text),) if text.isascii() and text.isdigit() and int(text) < shares else ()


def allocate(resource: Resource, devices: Sequence[Device], *, by_cdi: bool) -> Allocation:
    """What a container with these devices gets."""
    env: dict[str, list[str]] = {name: [] for name in resource.env or {}}
    annotations: dict[str, list[str]] = {name: [] for name in resource.annotations or {}}
    addresses: list[str] = []
    nodes: dict[str, GivenNode] = {}
    for index, device in enumerate(devices):
        own = given_nodes(resource, device, index, taken=nodes)
        values = {
            **device.properties,
            "id": device.id,
            "index": str(index),
            "container_path": own[0].container if own else "",
            "host_path": own[0].host if own else "",
        }
        nodes.update((node.container, node) for node in own)
        for name, text in (resource.env or {}).items():
            _once(env[name], render(text, values))
        for name, text in (resource.annotations or {}).items():
            _once(annotations[name], render(text, values))
        if device.properties.get("address"):
            _once(addresses, device.properties["address"])
    if addresses:
        env.setdefault(resource.pcidevice, addresses)
    return Allocation(
        env={name: ",".join(values) for name, values in env.items()},
        nodes=() if by_cdi else tuple(nodes.values()),
        mounts=tuple(GivenMount(mount.host, mount.container, mount.read_only) for mount in resource.mounts),
        annotations={name: ",".join(values) for name, values in annotations.items()},
        cdi=tuple(f"{resource.name}={device.id}" for device in devices) if by_cdi else (),
    )


def given_nodes(
    resource: Resource, device: Device, index: int, *, taken: Mapping[str, GivenNode] | None = None
) -> list[GivenNode]:
    """A device's nodes as a container sees them. A path inside that another host path has already gets a number."""
    used = dict(taken or {})
    found = []
    for position, node in enumerate(device.nodes):
        inside = node.container or node.host
        if resource.container_path and not node.common:
            name = inside.rpartition("/")[2]
            inside = render(
                resource.container_path, {**device.properties, "name": name, "id": device.id, "index": str(index)}
            )
            if position and inside in used:
                inside = f"{inside}.{position}"
        while inside in used and used[inside].host != node.host:
            inside += f"-{index}"
        given = GivenNode(node.host, inside, node.permissions or resource.permissions)
        used[inside] = given
        found.append(given)
    return found


def _once(into: list[str], value: str) -> None:
    if value not in into:
        into.append(value)


def prefer(resource: Resource, wish: Preference, devices: Mapping[str, Device]) -> list[str]:
    """The ids a container had better get, `wish.chosen` first. Never raises: fewer ids are an answer, too.

    numa: from as few memory nodes as possible. packed: shares of devices that are in use already. spread: of those
    that are least so. auto is numa, then spread for shared devices.
    """
    available = set(wish.available)
    chosen = [id for id in dict.fromkeys(wish.chosen) if id in available or not available]
    chosen = chosen[: max(0, wish.size)]
    left = wish.size - len(chosen)
    rest = sorted(available - set(chosen))
    if left <= 0 or not rest:
        return chosen
    free = Counter(base_of(id) for id in rest)
    order = "spread" if resource.prefer == "auto" else resource.prefer
    nodes = _node_order(resource, rest, chosen, left, devices)
    taken = Counter(base_of(id) for id in chosen)
    while left > 0 and rest:
        best = min(rest, key=lambda id: (nodes.get(_node(id, devices), len(nodes)), *_rank(order, id, free, taken)))
        rest.remove(best)
        chosen.append(best)
        free[base_of(best)] -= 1
        taken[base_of(best)] += 1
        left -= 1
        if len(rest) * left > _MOST_COMPARED:
            # Beyond this the choice is not worth a quadratic search: one pass in order of the same rank.
            rest.sort(key=lambda id: (nodes.get(_node(id, devices), len(nodes)), *_rank(order, id, free, taken)))
            return chosen + rest[:left]
    return chosen


def _rank(order: str, id: str, free: Counter[str], taken: Counter[str]) -> tuple[int, int, str]:
    """Smaller is better. What is free of a device tells how much of it is in use."""
    base = base_of(id)
    if order == "packed":
        return -taken[base], free[base], id
    return taken[base], -free[base], id


def _node(id: str, devices: Mapping[str, Device]) -> int:
    device = devices.get(base_of(id))
    return device.numa[0] if device is not None and device.numa else -1


def _node_order(
    resource: Resource, rest: Sequence[str], chosen: Sequence[str], left: int, devices: Mapping[str, Device]
) -> dict[int, int]:
    """Memory nodes by preference: those already chosen from, then one that suffices alone, then the fullest."""
    if resource.prefer not in ("auto", "numa"):
        return {}
    room = Counter(_node(id, devices) for id in rest)
    if set(room) == {-1}:
        return {}
    begun = Counter(_node(id, devices) for id in chosen)
    ranked = sorted(
        room,
        key=lambda node: (
            node == -1,
            -begun[node],
            room[node] < left,
            room[node] if room[node] >= left else -room[node],
        ),
    )
    return {node: place for place, node in enumerate(ranked)}
