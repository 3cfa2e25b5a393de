"""Algorithms and suites of installed packages, modules of the folder at hand,
`python -m bigdm_ray`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bigdm_ray

SUITE = """
import gymnasium
from bigdm_ray.envs import Task
TASKS = {
    "NAME": Task(
        "NAME", lambda mode: gymnasium.make("CartPole-v1", render_mode=mode), about="its own"
    )
}
"""
ALGORITHM = """
from dataclasses import dataclass
from bigdm_ray.algorithms.bc import Bc
@dataclass(frozen=True)
class Own(Bc):
    name = "NAME"
ALGORITHM = Own
"""


def installed(site, suite, algorithm):
    """A package as pip leaves it."""
    (site / "ownpack").mkdir(parents=True)
    (site / "ownpack" / "__init__.py").write_text("")
    (site / "ownpack" / "suite.py").write_text(suite)
    (site / "ownpack" / "learns.py").write_text(algorithm)
    info = site / "ownpack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ownpack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[bigdm_ray.envs]\nown = ownpack.suite\n[bigdm_ray.algorithms]\nown = ownpack.learns\n"
    )


def python(site, *arguments, cwd=None):
    paths = os.pathsep.join([str(Path(bigdm_ray.__file__).parents[1]), str(site)])
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_a_package_adds_a_suite_and_an_algorithm(tmp_path):
    installed(
        tmp_path, SUITE.replace("NAME", "own-task"), ALGORITHM.replace("NAME", "own-algorithm")
    )
    done = python(
        tmp_path,
        "-c",
        "from bigdm_ray.algorithms import find_algorithm\nfrom bigdm_ray.envs import"
        " find_task\nprint(find_task('own/own-task').signature().actions[''].choices,"
        " find_algorithm('own-algorithm'))",
    )
    assert done.stdout == "(2,) <class 'ownpack.learns.Own'>\n", done.stderr


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        (
            SUITE.replace("NAME", "cartpole"),
            "'cartpole' may be 'classic/cartpole' or 'own/cartpole'",
        ),
        ("import nothing_of_the_kind", "cannot be imported (ModuleNotFoundError: No module named"),
    ],
)
def test_a_package_that_cannot_be_had_is_one_sentence(tmp_path, suite, says):
    installed(tmp_path, suite, "")
    done = python(tmp_path, "-m", "bigdm_ray", "data", "record", "--random", "cartpole",
                  "--episodes", "1", "--folder", str(tmp_path / "x"))  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    assert ("entry point 'own' of ownpack" in done.stderr) == ("imported" in says)


def test_a_method_of_a_package_under_its_old_name_is_refused(tmp_path):
    old = ALGORITHM.replace("NAME", "own-algorithm").replace(
        "ALGORITHM =", "    def prelude(self):\n        return None\nALGORITHM ="
    )
    installed(tmp_path, SUITE.replace("NAME", "own-task"), old)
    done = python(tmp_path, "-m", "bigdm_ray", "run", "own-algorithm", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "Own.prelude(), which is pretraining() now; rename it" in done.stderr


def test_bigdm_finds_modules_of_the_folder_at_hand_and_is_a_module_too(tmp_path):
    (tmp_path / "here_alone.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Here-v0', CartPoleEnv, max_episode_steps=5)\n"
    )
    script = "import sys; sys.path[0] = '/'; from bigdm_ray.cli import main; sys.exit(main())"
    for number, how in enumerate((("-c", script), ("-m", "bigdm_ray"))):
        done = python(
            "", *how, "data", "record", "--random", "here_alone:Here-v0?sutton_barto_reward=true",
            "--episodes", "1", "--folder", f"made{number}", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "here_alone:Here-v0?sutton_barto_reward=true" in done.stdout
