"""Pages for readers: links lead somewhere, the README stays short, no page uses words of this
house."""

from __future__ import annotations

import ast
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
    "docs/serving.md",
    "docs/datasets.md",
    "docs/decision_transformer.md",
    "docs/trajectory_transformer.md",
    "docs/baselines.md",
    "docs/offline_baselines.md",
    "docs/many_tasks.md",
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


def classes() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """What each class of the package, by name, defines; and its bases."""
    members: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for path in (ROOT / "bigdm_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            names = members.setdefault(node.name, set())
            above = bases.setdefault(node.name, set())
            above |= {ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases}
            for one in ast.walk(node):
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                    names.add(one.name)
                elif isinstance(one, ast.AnnAssign):
                    names.add(ast.unparse(one.target).rpartition(".")[2])
                elif isinstance(one, ast.Assign):
                    names |= {ast.unparse(target).rpartition(".")[2] for target in one.targets}
    return members, bases


def test_classes_that_the_tree_names_are_there() -> None:
    """A bracket of the table that begins with a list of names tells which classes a file has."""
    members, _ = classes()
    tree = (ROOT / "docs/design.md").read_text().partition("## The tree")[2].partition("Floors,")[0]
    lists = re.findall(r"\(([A-Z]\w+(?:[,;] [A-Z]\w+)*)[);:]", tree)
    named = {name for one in lists for name in re.split("[,;] ", one)}
    assert {"ExternalAlgorithm", "Signature", "OverviewBar"} <= named
    assert not named - members.keys()


def test_methods_that_pages_name_are_there() -> None:
    members, bases = classes()

    def has(kind: str, name: str) -> bool:
        above = bases.get(kind, set()) - {kind}
        return name in members.get(kind, ()) or any(has(one, name) for one in above)

    assert has("Online", "ask") and not has("Algorithm", "ask")
    named = re.compile(r"`([A-Z]\w*[a-z]\w*)\.(_?[a-z]\w*)(?:\([^`]*\))?`")
    for page in PAGES:
        for kind, name in named.findall(page.read_text()):
            if kind in members or page.name == "tour.md":
                assert has(kind, name), f"{page.name} names {kind}.{name}, which is not there"
