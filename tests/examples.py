"""The examples in the pages of docs/: fenced blocks, found by the file name their fence gives them.

A fence like  ```python file=pod-mtu  names an example that a test runs; blocks without a name show output or fragments.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w+) file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: str) -> dict[str, str]:
    """{file name: text} of the named examples on a page, given as its path below docs/."""
    return {name: text for _language, name, text in _FENCE.findall((ROOT / "docs" / page).read_text())}
