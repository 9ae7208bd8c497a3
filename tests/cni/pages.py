"""The commands of a page that calls plugins by hand, run as the page shows them, from the node's own namespace.

A page's life.sh makes network namespaces and attaches them; wherever it stops, the ledger takes back what it made.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.child import Finished, run
from tests.examples import examples
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT

_CONFLIST = "10-pods.conflist"


def live(page: str, ledger: Ledger, *, capabilities: str = "") -> Finished:
    """Run `life.sh` of the page with its 10-pods.conflist and plugins installed for it; the first failure ends it.

    `capabilities` is what the page's calls pass as `--cap-args`, for the clean-up.
    """
    directory = ledger.directory()
    ledger.link("cni0")
    ledger.table("inet", "nodeplug")
    found = examples(page)
    (directory / _CONFLIST).write_text(found[_CONFLIST])
    env = {**os.environ, "PATH": f"{CHECKOUT / 'bin'}:{os.environ['PATH']}"}
    nodeplug, plugins = CHECKOUT / "bin" / "nodeplug", directory / "bin"
    run([nodeplug, "install", "cni", "--dest", str(plugins)], env=env).ok()
    for name in re.findall(r"^ip netns add (\S+)$", found["life.sh"], re.MULTILINE):
        arguments = ["--path", str(plugins), "--conf", _CONFLIST, "--netns", name]
        arguments += ["--cap-args", capabilities] if capabilities else []
        ledger.adopt(f"netns {name} of {page}", lambda name=name: _remove(name))
        ledger.adopt(
            f"attachment of {name} of {page}",
            lambda name=name, arguments=arguments: _detach(name, [str(nodeplug), "cni", "del", *arguments], directory),
        )
    commands = found["life.sh"].replace(" --conf", f" --path {plugins} --conf")
    return run(["sh", "-ex"], stdin=commands.encode(), cwd=directory, env=env)


def _detach(name: str, command: list[str], directory: Path) -> None:
    if Path("/run/netns", name).exists():
        run(command, cwd=directory).ok()


def _remove(name: str) -> None:
    if Path("/run/netns", name).exists():
        run(["ip", "netns", "delete", name]).ok()
