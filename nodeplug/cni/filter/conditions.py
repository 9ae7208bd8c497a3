"""Host ports with conditions: a chain for each attachment that has any, compiled by nft itself.

Conditions are an administrator's own words, in nft's language or iptables'; they are rare, so `nft` runs for them, and
for them alone. Iptables' are translated once, by iptables-translate.
"""

from __future__ import annotations

from nodeplug.cni.filter.layout import TABLE
from nodeplug.core import child
from nodeplug.core.errors import ConfigInvalid, NotFound, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeplug.cni.filter.index import Holding

_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_TIMEOUT = 10.0
_FORBIDDEN = ";#\\"


def is_iptables(tokens: Sequence[str]) -> bool:
    """Whether these are iptables' words: its first is an option or a negation, which none of nft's is."""
    return bool(tokens) and tokens[0][:1] in ("-", "!")


def words(tokens: Sequence[str], path: str) -> str:
    """Conditions in nft's own language, as one match. Raises `ConfigInvalid` naming `path` in the configuration."""
    text = " ".join(tokens)
    bad = sorted({char for char in text if char in _FORBIDDEN or not char.isprintable()})
    if bad or text.count("{") != text.count("}") or text.count('"') % 2:
        what = f"holds {', '.join(map(repr, bad))}" if bad else "has an unmatched brace or quote"
        raise ConfigInvalid("a condition cannot be used", problems=((path, f"{what}; it must be matches of one rule"),))
    return text


def translated(tokens: Sequence[str], family: int, protocol: str, path: str) -> tuple[str, ...]:
    """Conditions in iptables' language, as matches of nft's of which one has to be met (`-s A,B` gives two).

    Raises `ConfigInvalid` naming `path` when iptables-translate cannot say them in nft's.
    """
    tool, table = ("iptables-translate", "ip") if family == 4 else ("ip6tables-translate", "ip6")
    command = [tool, "-A", "FORWARD", "-p", protocol, *tokens, "-j", "ACCEPT"]
    try:
        done = child.run(command, env=_ENV, timeout=_TIMEOUT)
    except NotFound as error:
        raise Unavailable(
            f"{path} is in iptables' language and {tool} is not installed",
            hint="install iptables, or write the condition in nft's language",
        ) from error
    # nft 'add rule ip filter FORWARD ip saddr 10.0.0.0/8 counter accept'; what it cannot say comes back behind a #.
    head, tail = f"nft 'add rule {table} filter FORWARD ", " counter accept'"
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if done.code != 0 or not lines or not all(line.startswith(head) and line.endswith(tail) for line in lines):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = f" ({said[0]})" if said else ""
        raise ConfigInvalid(
            "a condition cannot be used",
            problems=((path, f"{tool} has no nft form for {' '.join(tokens)!r}{reason}"),),
            hint='write it in nft\'s language, such as ["ip", "saddr", "10.0.0.0/8"]',
        )
    return tuple(words([line[len(head) : -len(tail)]], path) for line in lines)


def compile_chain(holding: Holding) -> None:
    """Make the attachment's own chain, or make it anew. The table must be there.

    Raises `ConfigInvalid` with nft's complaint when it does not take the rules, `Unavailable` when nft is not there.
    """
    name = holding.identity
    script = [f"add chain inet {TABLE} {name}", f"flush chain inet {TABLE} {name}"]
    for condition in holding.share.conditions:
        for rule in condition.rules:
            script.append(f'add rule inet {TABLE} {name} {rule} comment "{holding.comment[:127]}"')
    try:
        done = child.run(["nft", "-f", "-"], env=_ENV, stdin="\n".join(script).encode() + b"\n", timeout=_TIMEOUT)
    except NotFound as error:
        raise Unavailable(
            "portmap's conditions need the program nft, which is not installed", hint="install nftables"
        ) from error
    if done.code != 0:
        said = done.stderr.decode("utf-8", "replace").strip()[:2000]
        raise ConfigInvalid(
            f"nft does not take the conditions: {said}", hint="conditionsV4 and conditionsV6 are matches of one rule"
        )
