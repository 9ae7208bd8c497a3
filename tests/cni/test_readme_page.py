"""docs/cni/README.md: each plugin once in its table, with a page."""

from __future__ import annotations

import re

from nodeplug.cni.dispatch import IPAM, PLUGINS
from tests.sandbox import CHECKOUT


def test_every_plugin_is_once_in_the_table() -> None:
    text = (CHECKOUT / "docs" / "cni" / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (?:interface|chained|addresses) \|", text, re.MULTILINE)
    assert sorted(rows) == sorted((*PLUGINS, *IPAM))
