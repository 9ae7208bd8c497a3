"""The pages: every link leads somewhere, and the first example a newcomer copies works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.child import run
from tests.examples import ROOT, examples

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link may name on the page: its headings, as they are written in links."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_readmes_plugin_is_one(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text(examples("../README.md")["mine"])
    mine.chmod(0o755)
    done = run([mine], env={"PYTHONPATH": str(ROOT), "CNI_COMMAND": "VERSION"}).ok()
    assert done.json()["cniVersion"] == "1.1.0"
