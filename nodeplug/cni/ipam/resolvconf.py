"""resolv.conf(5), as far as a CNI result has room for it."""

from __future__ import annotations

from nodeplug.cni.contract import Dns
from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid, Malformed, Unavailable

_LARGEST = 64 << 10


def read(path: str) -> Dns:
    """Raises `Unavailable` when the file cannot be read, `ConfigInvalid` when it is no such file."""
    try:
        text = files.read_bounded(path, _LARGEST).decode()
    except OSError as error:
        raise Unavailable(
            f"cannot read the resolvConf {path}: {error.strerror}", hint="mend ipam.resolvConf, or put the file there"
        ) from None
    except (Malformed, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"ipam.resolvConf names {path}, which is no resolv.conf: {error}") from None
    return parse(text)


def parse(text: str) -> Dns:
    """The name servers, domain, search list and options; what else the file says is left out.

    As the reference plugin reads it: the last `domain` wins, `search` and `options` add up, a comment is a line of its
    own.
    """
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] == "domain":
            domain = words[1]
        elif words[0] == "search":
            search += words[1:]
        elif words[0] == "options":
            options += words[1:]
    return Dns(nameservers=tuple(servers), domain=domain, search=tuple(search), options=tuple(options))
