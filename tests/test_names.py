"""Names: public functions are verbs or say what they return, and one public name has one
meaning."""

import ast
import collections
import re
from pathlib import Path

import bigdm_ray

ROOT = Path(bigdm_ray.__file__).parent
IRREGULAR = {
    "begun",
    "blank",
    "bound",
    "broken",
    "built",
    "done",
    "drawn",
    "flat",
    "found",
    "given",
    "gone",
    "grown",
    "heard",
    "held",
    "kept",
    "known",
    "last",
    "left",
    "lost",
    "made",
    "meant",
    "own",
    "quiet",
    "seen",
    "sent",
    "set",
    "shown",
    "shut",
    "slow",
    "sound",
    "spent",
    "still",
    "stood",
    "taken",
    "thought",
    "told",
    "understood",
    "vacant",
    "whole",
    "worn",
    "written",
}
"""Participles and adjectives that do not end in -ed or -ing."""
VERBS_AND_NOUNS = {"cast", "embed", "heading", "pretraining", "read", "reseed", "seed", "setting"}
PAPERS = {"owed", "weighting"}
"""What a paper or the manual for algorithms calls so."""
TWICE = {"main", "obedience", "expert"}
"""Every command has a `main`, every source of demonstrations an `expert`; `plots.obedience` is the
picture of that name for notebooks."""


def definitions(source):
    """The public classes and functions of a module as (name, whether it is a class, its
    methods)."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            inner = node.body if isinstance(node, ast.ClassDef) else []
            methods = [one.name for one in inner if isinstance(one, ast.FunctionDef)]
            yield node.name, isinstance(node, ast.ClassDef), methods


def is_bare_participle(name):
    """Whether a name is one word that says neither what is done nor what comes of it."""
    if "_" in name or name in VERBS_AND_NOUNS | PAPERS:
        return False
    return name in IRREGULAR or re.search("(ed|ing)$", name) is not None


FOUND = {
    path.relative_to(ROOT).as_posix(): list(definitions(path.read_text()))
    for path in sorted(ROOT.rglob("*.py"))
}


def test_no_public_function_is_a_bare_participle():
    assert is_bare_participle("joined") and is_bare_participle("kept")
    assert not is_bare_participle("join") and not is_bare_participle("kept_seed")
    wrong = [
        f"{path}: {name}"
        for path, found in FOUND.items()
        for owner, is_class, methods in found
        for name in (methods if is_class else [owner])
        if is_bare_participle(name)
    ]
    assert not wrong, "name what it does, or what it gives"


def test_no_public_name_stands_in_two_modules():
    where = collections.defaultdict(list)
    for path, found in FOUND.items():
        for name, _, _ in found:
            where[name].append(path)
    assert len(where) > 500
    twice = {name: paths for name, paths in where.items() if len(paths) > 1 and name not in TWICE}
    assert not twice, "one name, one meaning; the same code is one function"
