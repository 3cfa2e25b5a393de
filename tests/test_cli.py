import argparse
import ast
import importlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import bigdm_ray
from bigdm_ray import cli
from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import UserError, install, near_names
from bigdm_ray.run import main as run
from bigdm_ray.run import open_home
from bigdm_ray.settings import setting
from bigdm_ray.training.config import configure, parse

FOUND = cli.DOORS
SMALL = (
    "--local --quiet --budget.env-steps 300 --algorithm.hidden 8 --algorithm.batch-size 16"
    " --algorithm.n-updates-per-iter 2 --algorithm.warm-up-episodes 10"
    " --algorithm.episodes-per-iteration 10 --evaluations.every 150 --evaluations.episodes 2"
    " --evaluations.final-episodes 2"
)


def one_error(capsys, *words):
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    for word in words:
        assert word in said.err


def test_doors_are_the_files_that_can_be_run():
    """Every file that ends as a door does, with the beginning of its docstring."""
    found = {}
    for path in sorted(Path(cli.__file__).parent.glob("*.py")):
        source = path.read_text()
        if source.endswith("    raise SystemExit(door(main))\n"):
            about = ast.get_docstring(ast.parse(source)).partition("\n")[0].partition(":")[0]
            found[path.stem] = about.rstrip(".")
            assert callable(importlib.import_module(f"bigdm_ray.{path.stem}").main)
    assert found == FOUND


def test_help_has_a_line_for_each_door(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    for name, about in FOUND.items():
        assert about and "`" not in about
        assert [line.split(maxsplit=1) for line in printed if line.startswith(f"    {name} ")] == [
            [name, about]
        ]


def loaded_after(*arguments):
    """The top-level modules that a fresh interpreter holds after this door."""
    code = (
        "import sys; from bigdm_ray.cli import main\n"
        f"try: main({list(arguments)})\nexcept SystemExit: pass\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    loaded = loaded_after("--help")
    assert "bigdm_ray" in loaded
    assert not loaded & {"torch", "ray", "numpy", "matplotlib", "gymnasium", "pyarrow"}


def test_the_help_of_a_door_imports_little_but_torch():
    """Formats of datasets, pictures and simulators wait until they are needed."""
    heavy = {"ray", "matplotlib", "gymnasium", "pyarrow.compute", "h5py", "minari", "envpool"}
    for words in (["run", "--help"], ["run", "udrl", "cartpole", "--help"], ["evaluate", "--help"]):
        loaded = loaded_after(*words)
        assert "torch" in loaded and not loaded & heavy, words


def test_a_door_is_opened_with_the_arguments_after_its_name(monkeypatch):
    given = []
    monkeypatch.setattr(
        importlib.import_module("bigdm_ray.data"),
        "main",
        lambda arguments: given.append(arguments) or 7,
    )
    assert cli.main(["data", "verify", "--help", "x"]) == 7
    assert given == [["verify", "--help", "x"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evalute"], ["'evalute'", "'evaluate'"]),
        ([], ["command is expected", "run"]),
        (["--hlep"], ["'--hlep'"]),
    ],
)
def test_an_unknown_door_is_one_sentence(capsys, arguments, words):
    assert cli.main(arguments) == 2
    one_error(capsys, *words)


def test_a_users_mistake_inside_a_door_is_one_sentence(capsys, tmp_path):
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    one_error(capsys, str(tmp_path), "run.json")


def test_the_end_of_a_command_looks_for_no_cycles() -> None:
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from bigdm_ray.cli import main; main(['--help'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.endswith("True\n")


def test_version():
    done = subprocess.run(
        [sys.executable, "-m", "bigdm_ray.cli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"bigdm_ray {bigdm_ray.__version__}\n")


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("bigdm")
    if not script.is_file():
        pytest.skip("bigdm_ray is not installed in this environment")
    done = subprocess.run([script, "evalute"], capture_output=True, text=True)
    assert done.returncode == 2 and "'evaluate'" in done.stderr


@pytest.mark.parametrize("name", [name for name in FOUND if name != "cli"])
def test_every_door_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code in (0, None)
    assert f"bigdm_ray.{name}" in capsys.readouterr().out


def test_train_evaluate_draw_and_verify_through_the_script(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main(["run", "udrl", "toy-vector", "--folder", folder, *SMALL.split()]) == 0
    assert cli.main(["evaluate", folder, "--episodes", "3"]) == 0
    assert cli.main(["plots", folder]) == 0
    assert cli.main(["data", "verify", folder]) == 0
    assert len(json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]) == 3
    assert (tmp_path / "run" / "plots" / "learning_curve.png").is_file()
    told = capsys.readouterr().out
    assert "set aside" in told and re.search(
        r"best weights [\d.]+, asked for [\d.]+; normalised score -?[\d.]+, best weights", told
    )


# --- the parser


@dataclass(frozen=True)
class Flags:
    much: float | None = setting(None, "how much, in % of all", low=-5)
    list: tuple[float, ...] = setting((), "numbers")
    widths: tuple[int, ...] = setting((8,), "layers")
    layers: tuple[int, ...] = setting((8,), "layers, or none", empty=True)
    kind: str = setting("a", "which", choices=("a", "b"))


@pytest.fixture
def parser():
    made = Parser(prog="prog", allow_abbrev=False)
    made.add_argument("folder")
    made.add_argument("--loud", action="store_true")
    made.add_settings(Flags)
    return made


def flags(parser, *arguments):
    return parser.settings(Flags, parser.parse([*arguments]))


def test_flags_are_the_fields(parser):
    assert flags(parser, "x") == Flags()
    assert flags(parser, "x", "--much", "2", "--kind", "b") == Flags(2.0, (), kind="b")
    assert flags(parser, "x", "--list", "1,2.5") == Flags(None, (1.0, 2.5))
    assert flags(parser, "x", "--list", ",", "--layers", ",") == Flags(None, (), layers=())


@pytest.mark.parametrize("text", ["-300,0,100", "-.5", "-1e-3,-2"])
def test_a_value_may_begin_with_a_minus_sign(parser, text):
    expected = tuple(float(part) for part in text.split(","))
    assert flags(parser, "x", "--list", text).list == expected
    assert flags(parser, f"--list={text}", "x").list == expected
    assert parser.parse(["--much", "-3", "--loud", "x"]) == argparse.Namespace(
        folder="x", loud=True, much="-3", list=None, widths=None, layers=None, kind=None
    )


def test_flags_stand_anywhere(parser):
    expected = flags(parser, "x", "--much", "-2", "--loud", "--list", "-1,2")
    for line in (
        "--much -2 x --loud --list -1,2",
        "--much=-2 --loud x --list=-1,2",
        "--loud --list -1,2 --much -2 x",
        "--loud --list -1,2 --much -2 -- x",
    ):
        assert flags(parser, *line.split()) == expected
        assert parser.parse(line.split()).loud
    assert parser.parse(["--loud", "--", "-x"]).folder == "-x"


@pytest.fixture
def commands():
    made = Parser(prog="prog", allow_abbrev=False)
    several = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    join = several.add_parser("join", allow_abbrev=False)
    join.add_argument("parts", nargs="+")
    join.add_argument("--out", required=True)
    join.add_argument("--quiet", action="store_true")
    show = several.add_parser("show", allow_abbrev=False)
    show.add_argument("parts", nargs="*")
    show.add_argument("--plot", action="store_true")
    return made


def test_flags_stand_before_a_command_and_between_its_words(commands):
    expected = argparse.Namespace(command="join", parts=["a", "b"], out="o", quiet=True)
    for line in (
        "join a b --out o --quiet",
        "--out o join --quiet a b",
        "--quiet --out=o join a b",
        "join a --out o b --quiet",
        "--quiet join a --out o b",
    ):
        assert commands.parse(line.split()) == expected
    assert commands.parse(["--plot", "show"]).parts == []
    assert commands.parse(["show", "a", "--plot", "b"]).parts == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--out o join a --quit", "'--quit'; did you mean '--quiet'.*`prog join --help`"),
        ("--plot join a --out o", "unknown argument '--plot'.*`prog join --help`"),
        ("--out o", "required: COMMAND"),
        ("--out o jion a", "invalid choice: 'jion'"),
        ("join a --out", "--out: expected one argument"),
        ("join a --out --quiet", "--out: expected one argument"),
    ],
)
def test_a_wrong_line_with_a_command_is_told(commands, line, told):
    with pytest.raises(UserError, match=told):
        commands.parse(line.split())


def test_a_commands_help_may_be_asked_for_anywhere(commands, capsys):
    for line in ("--help join", "join --help", "--out o join a --help", "--quit join -h"):
        with pytest.raises(SystemExit) as left:
            commands.parse(line.split())
        assert left.value.code == 0 and "prog join" in capsys.readouterr().out


def test_flags_of_a_run_stand_anywhere():
    pairs = [["--algorithm.batch-size", "64"], ["--actors", "4"], ["--quiet"], ["--saves.every=7"]]
    pairs += [["--algorithm.length-cost", "0"], ["--local"], ["--folder", "f"]]
    expected = parse(["udrl", "cartpole", *(word for pair in pairs for word in pair)])
    assert expected.run.machines.actors == 4 and expected.run.algorithm.batch_size == 64
    assert expected.local and expected.quiet and expected.folder == Path("f")
    for first in range(len(pairs) + 1):
        for second in range(first, len(pairs) + 1):
            line = [*pairs[:first], ["udrl"], *pairs[first:second], ["cartpole"], *pairs[second:]]
            assert parse([word for pair in line for word in pair]) == expected, line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--lcoal udrl cartpole", "'--lcoal'; did you mean '--local'"),
        ("udrl --lcoal cartpole", "'--lcoal'; did you mean '--local'"),
        ("--algorithm.hiden 8 udrl cartpole", "did you mean '--algorithm.hidden'"),
        ("--algorithm.batch-size 64 udlr cartpole", "unknown algorithm 'udlr'"),
        ("--algorithm.beams 3 udrl cartpole", "unknown argument '--algorithm.beams'"),
        ("--algorithm.beams 3", "an ALGORITHM and a TASK are expected"),
        ("udrl --machines.lock-step cartpole", "'cartpole', but true or false is expected"),
        ("udrl --actors --local cartpole", "expected one argument"),
        ("udrl --actors -4 cartpole", "--machines.actors is -4, but at least 1"),
        ("udrl cartpole --actors", "expected one argument"),
    ],
)
def test_a_wrong_line_of_a_run_is_told(line, told):
    with pytest.raises(UserError) as error:
        parse(line.split())
    assert told in str(error.value)


@pytest.mark.parametrize(
    "line",
    ["--help udrl cartpole", "--seed 2 udrl cartpole --help", "udrl --actors 2 -h cartpole"],
)
def test_the_help_of_a_run_may_be_asked_for_anywhere(line, capsys):
    with pytest.raises(SystemExit) as left:
        parse(line.split())
    told = capsys.readouterr().out
    assert left.value.code == 0 and "--algorithm.hidden" in told
    assert "--algorithm.beams" not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--muhc", "1"], "'--muhc'; did you mean '--much'"),
        (["x", "--muhc=1"], "'--muhc'; did you mean '--much'"),
        (["x", "y"], "unknown argument 'y'"),
        (["x", "--much", "-6"], "--much is -6.0, but at least -5 is expected"),
        (["x", "--much", "-inf"], "--much is -inf, but a finite number"),
        (["x", "--much"], "expected one argument"),
        (["x", "--list", "1,b"], "--list is 'b', but"),
        (["x", "--widths", ","], "--widths is empty, but at least one value"),
        (["x", "--kind", "c"], "--kind is 'c', but one of a, b"),
        ([], "folder"),
    ],
)
def test_a_wrong_flag_is_a_users_mistake(parser, arguments, words):
    with pytest.raises(UserError) as error:
        flags(parser, *arguments)
    assert words in str(error.value)


def test_percent_signs_are_printed(parser):
    assert "in % of all" in parser.format_help()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--learnrate", "--algorithm.learning-rate"),
        ("--bs", "--algorithm.batch-size"),
        ("--env-stepps", "--budget.env-steps"),
        ("--learning_rate", "--algorithm.learning-rate"),
        ("--timesteps", "--budget.env-steps"),
        ("--qwzk", None),
        ("--teapot", None),
    ],
)
def test_names_are_suggested_where_they_are_near_alone(word, meant):
    known = ["--algorithm.learning-rate", "--algorithm.batch-size", "--budget.env-steps"]
    known += ["--evaluations.every", "--folder", "--quiet", "--machines.device"]
    assert near_names(word, known)[:1] == ([] if meant is None else [meant])
    assert near_names("--lr", known) == ["--algorithm.learning-rate"]


def test_a_flag_near_nothing_is_told_without_a_list(capsys):
    assert door(run, ["udrl", "toy-vector", "--qwzk", "1"]) == 2
    assert (
        capsys.readouterr().err
        == "error: unknown argument '--qwzk' (`python -m bigdm_ray.run --help` explains the"
        " arguments)\n"
    )


@pytest.mark.parametrize(
    ("called", "prog"),
    [
        ("/usr/bin/bigdm", "bigdm run"),
        ("/x/bigdm_ray/__main__.py", "python -m bigdm_ray run"),
        ("/x/bigdm_ray/run.py", "python -m bigdm_ray.run"),
    ],
)
def test_help_says_the_name_that_it_was_called_by(called, prog, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [called, "run", "--help"])
    with pytest.raises(SystemExit):
        run(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {prog} [")


@pytest.mark.parametrize(
    ("told", "command"),
    [
        (None, "pip install 'bigdm-ray[box2d]'"),
        (
            {"url": "file:///home/me/bigdm%20ray", "dir_info": {"editable": True}},
            "pip install -e '/home/me/bigdm ray[box2d]'",
        ),
        ({"url": "file:///a/b", "dir_info": {}}, "pip install '/a/b[box2d]'"),
        ({"url": "https://x/y.whl"}, "pip install 'bigdm-ray[box2d] @ https://x/y.whl'"),
    ],
)
def test_an_extra_is_installed_as_the_package_was(told, command, monkeypatch):
    class Distribution:
        @staticmethod
        def read_text(name):
            return None if told is None else json.dumps(told)

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution)
    assert install("box2d") == command


def test_the_default_folder_numbers_itself(tmp_path, monkeypatch):
    """Also where runs begin together; a resume goes on with the last, and what stayed empty
    goes."""
    monkeypatch.chdir(tmp_path)
    made = configure("udrl", "toy-vector")

    def begun(_):
        with open_home(made, None, False) as path:
            (path / "run.json").write_text("{}")
            return str(path)

    with ThreadPoolExecutor(4) as pool:
        paths = sorted(pool.map(begun, range(4)))
    first = "runs/udrl-toy-vector-1"
    assert paths == [first, f"{first}-run2", f"{first}-run3", f"{first}-run4"]
    with open_home(made, None, True) as path:
        assert str(path) == f"{first}-run4"
    with open_home(made, None, False) as path:
        assert path.is_dir() and str(path) == f"{first}-run5"
    assert not path.exists()
    with open_home(made, "mine", False) as path:
        assert str(path) == "mine" and not path.exists()
