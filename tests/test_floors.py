"""The floors of the house (docs/design.md, "the tree"): who may import whom, where Ray and torch
may stand, and no pickle."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bigdm_ray

ROOT = Path(bigdm_ray.__file__).parent
REPOSITORY = ROOT.parent
# anyone may import these
HELPERS = {
    "bigdm_ray",
    "bigdm_ray.errors",
    "bigdm_ray.jsons",
    "bigdm_ray.plugins",
    "bigdm_ray.settings",
    "bigdm_ray.doors",
    "bigdm_ray.stopping",
    "bigdm_ray.progress",
}
FLOORS = [
    {"envs", "replay"},
    {"models"},
    {"formats", "tokens"},
    {"planning"},
    {"algorithms"},
    {"baselines"},
    {"training"},
    {"tables", "experts"},
    {"distributed", "serving", "pictures"},
    {"doors", "tuning"},
]
RANK = {folder: rank for rank, floor in enumerate(FLOORS) for folder in floor}
RAY_MAY_STAND_IN = {"distributed", "baselines", "tuning"}


def files():
    found = {path: folder_of(path) for path in sorted(ROOT.rglob("*.py"))}
    return found | {path: "tuning" for path in sorted((REPOSITORY / "tuning").rglob("*.py"))}


def folder_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "doors"


def imports(source):
    """Every module that a source imports, inside functions and for type checking included, as
    (line, dotted name)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not used here"
            yield node.lineno, node.module or ""
            if node.module in (
                "bigdm_ray",
                "torch",
            ):  # `from bigdm_ray import x`: x may be a folder
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_exists(dotted):
    path = REPOSITORY / dotted.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def floor_violations(folder, source):
    """What a file of `folder` (`doors` for the package's own files) imports from a floor that is
    not below its own."""
    wrong = []
    for line, name in imports(source):
        parts = name.split(".")
        if parts[0] != "bigdm_ray" or name in HELPERS or not module_exists(name):
            continue
        target = parts[1] if (ROOT / parts[1]).is_dir() else "doors"
        if target not in RANK or (target != folder and RANK[target] >= RANK[folder]):
            wrong.append(f"line {line} imports {name}")
    return wrong


def ray_violations(folder, source):
    if folder in RAY_MAY_STAND_IN:
        return []
    return [
        f"line {line} imports {name}"
        for line, name in imports(source)
        if name.split(".")[0] == "ray"
    ]


def pickle_violations(source):
    bad = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle"}
    wrong = [
        f"line {line} imports {name}"
        for line, name in imports(source)
        if set(name.split(".")) & bad
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        call = ast.unparse(node.func)
        if call == "torch.load" and given.get("weights_only") is not True:
            wrong.append(f"line {node.lineno}: torch.load without weights_only=True")
        if given.get("allow_pickle", False) is not False or call == "torch.save":
            wrong.append(f"line {node.lineno}: {call} pickles")
    return wrong


FILES = files()


def arrows():
    """Which modules of the package each imports: at its head, in functions and for type
    checking."""
    known = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        known[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for module, path in known.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= inner & known.keys() or {node.module}
        found[module] = (names & known.keys()) - {module}
    return found


def circle(arrows):
    """Modules that lead from one of them back to it, in turn; empty where there is no circle."""
    left = {module: set(others) for module, others in arrows.items()}
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    way = [min(left)] if left else []
    while way and way[-1] not in way[:-1]:
        way.append(min(left[way[-1]] & left.keys()))
    return way[way.index(way[-1]) :] if way else []


def test_no_file_of_the_package_leads_back_to_itself():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    found = arrows()
    assert len(found) > 100 and any(len(others) > 5 for others in found.values())
    assert not circle(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_keeps_to_its_floor(path):
    folder, source = FILES[path], path.read_text()
    assert folder in RANK, f"folder {folder!r} is not on any floor of the design"
    assert not floor_violations(folder, source)
    assert not ray_violations(folder, source)
    assert not pickle_violations(source)
    if folder == "replay":
        assert not [name for _, name in imports(source) if name.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    ("folder", "source", "allowed"),
    [
        ("algorithms", "from bigdm_ray.training.learner import Learner", False),
        ("algorithms", "def f():\n    import bigdm_ray.training", False),
        ("algorithms", "from bigdm_ray import training", False),
        ("envs", "from bigdm_ray.replay import Store", False),
        ("models", "from bigdm_ray.run import train", False),
        ("training", "from bigdm_ray.distributed.loop import x", False),
        ("pictures", "from bigdm_ray.evaluate import x", False),
        ("pictures", "from bigdm_ray.training.loaded import load", True),
        ("replay", "from bigdm_ray.errors import UserError", True),
        ("training", "from bigdm_ray import __version__", True),
        ("algorithms", "from bigdm_ray.algorithms.base import Algorithm", True),
        ("distributed", "from bigdm_ray.training.loop import loop", True),
    ],
)
def test_the_floors_are_told_apart(folder, source, allowed):
    assert bool(floor_violations(folder, source)) is not allowed


def test_ray_and_pickle_are_seen():
    assert ray_violations("training", "def f():\n    from ray.util import x")
    assert not ray_violations("distributed", "import ray")
    assert not ray_violations("training", "import raylib")
    for source in (
        "import pickle",
        "import ray.cloudpickle",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ):
        assert pickle_violations(source), source
    assert not pickle_violations("torch.load(f, weights_only=True)")


def modules_after(code, tmp_path):
    """The top-level modules that a fresh interpreter holds after some code."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code
            + "\nimport sys; print('MODULES', *sorted({m.split('.')[0] for m in sys.modules}))",
        ],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("MODULES")[1].split())


def test_looking_at_tasks_and_replay_costs_no_torch_ray_or_simulator(tmp_path):
    held = modules_after(
        "import bigdm_ray, bigdm_ray.replay, bigdm_ray.envs; bigdm_ray.envs.tasks()", tmp_path
    )
    assert not held & {"torch", "ray", "envpool", "gymnasium", "vizdoom", "cv2", "matplotlib"}


def test_how_a_policy_may_act_is_written_once():
    """In a place that imports no torch, so that `data --help` need not."""
    assert [
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if '"sample", "mean", "plan"' in path.read_text()
    ] == ["formats/behaviour.py"]


@pytest.mark.slow
def test_a_local_run_never_imports_ray(tmp_path):
    code = (
        "import bigdm_ray.training.loop\nfrom bigdm_ray.run import main\nflags = '--local --quiet"
        " --folder run --budget.env-steps 250 --algorithm.warm-up-episodes 10"
        " --algorithm.episodes-per-iteration 5 --algorithm.n-updates-per-iter 2 --evaluations.every"
        " 100 --evaluations.episodes 2 --evaluations.final-episodes 2 --saves.every 100'\nassert"
        " main(['udrl', 'toy-vector', *flags.split()]) == 0"
    )
    code += "\nfrom bigdm_ray.evaluate import main\nassert main(['run', '--episodes', '2']) == 0"
    held = modules_after(code, tmp_path)
    assert "ray" not in held
    assert "torch" in held, "nothing was trained"
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert (tmp_path / "run" / "summary.json").is_file()
