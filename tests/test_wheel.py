"""The wheel builds, and what it holds runs outside the checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = (
    "--local --quiet --budget.env-steps 1000 --algorithm.hidden 16,16 --algorithm.batch-size 16"
    " --algorithm.n-updates-per-iter 2 --evaluations.final-episodes 2"
)


@pytest.mark.slow
def test_the_wheel_installs_and_runs_outside_the_checkout(tmp_path: Path) -> None:
    def run(*command: str, **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(ROOT),
    )
    (wheel,) = (tmp_path / "dist").glob("bigdm_ray-*.whl")
    site = tmp_path / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    )
    where = run(
        sys.executable, "-c", "import bigdm_ray; print(bigdm_ray.__file__)", PYTHONPATH=str(site)
    ).strip()
    assert Path(where).is_relative_to(site)
    out = run(
        sys.executable,
        "-m",
        "bigdm_ray.run",
        "udrl",
        "toy-vector",
        *TINY.split(),
        "--folder",
        "run",
        PYTHONPATH=str(site),
    )
    assert "summary: run/summary.json" in out
    assert (tmp_path / "run" / "weights" / "last.safetensors").is_file()
    told = run(sys.executable, "-m", "bigdm_ray.data", "verify", "run", PYTHONPATH=str(site))
    assert ", 0 set aside" in told and not told.startswith("run/store: 0 sound")
    assert (site / "bin" / "bigdm").is_file(), "the console script is part of the wheel"


def test_what_is_imported_is_declared() -> None:
    """Every package that a file imports, and no other library brings it by chance: `pip install`
    gets it, with an extra or without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        each
        for extra, needs in project["optional-dependencies"].items()
        if extra != "dev"
        for each in needs
    ]
    declared = {
        re.sub("[-_.]+", "-", re.split(r"[\[<>=~! ]", each)[0]).lower()
        for each in [*project["dependencies"], *extras]
    }
    known, missing = packages_distributions(), []
    for path in sorted((ROOT / "bigdm_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for top in (
                {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"bigdm_ray"}
            ):
                if (
                    not {re.sub("[-_.]+", "-", found).lower() for found in known.get(top, [])}
                    & declared
                ):
                    missing.append(f"{path.relative_to(ROOT)}: {top}")
    assert not missing
