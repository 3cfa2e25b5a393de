"""Pages for readers: links lead somewhere, the README stays short, no page uses words of this house."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/tables/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOR_USERS = (
    "README.md",
    "docs/reference.md",
    "docs/acting.md",
    "docs/datasets.md",
    "docs/decision_transformer.md",
    "docs/trajectory_transformer.md",
    "docs/baselines.md",
    "docs/offline_baselines.md",
    "docs/results.md",
    "docs/lecture.md",
)
PRIVATE = re.compile(
    r"\b(houses?|floors?|crew|stations?|bench)\b|(?<!key.to.)(?<!the )doors?\b", re.I
)


def anchors(page: Path) -> set[str]:
    """What a link to the page may name behind `#`, as code hosts make it of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("name", FOR_USERS)
def test_pages_for_users_have_no_words_of_this_house(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not PRIVATE.findall(text)
