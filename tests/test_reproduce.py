"""reproduce: only missing cells are trained, a stopped cell goes on, tables say what is not run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from making import dataset_of

from bigdm_ray import reproduce
from bigdm_ray.algorithms.base import algorithms
from bigdm_ray.envs import tasks
from bigdm_ray.errors import UserError
from bigdm_ray.reproduce import write_tables
from bigdm_ray.tables.base import SCALES, Grid, find_grid, grids, overviews
from bigdm_ray.tables.folders import TableFolders
from bigdm_ray.tables.markdown import measure_bars, table
from bigdm_ray.tables.peers import peer_file
from bigdm_ray.tables.suites import interquartile_mean
from bigdm_ray.training.config import configure
from bigdm_ray.training.evaluation import stratified_interval

TINY = (
    "--budget.learner-steps",
    "20",
    "--algorithm.hidden",
    "8",
    "--evaluations.episodes",
    "2",
    "--evaluations.final-episodes",
    "2",
    "--evaluations.every",
    "10",
)


def made(row, column, scale):
    return None if (row, column) == ("b", "two") else ("bc", f"toys-{row}", True, TINY)


GRID = Grid(
    "tiny",
    "A tiny table",
    "return",
    ("a", "b"),
    ("one", "two"),
    2,
    made,
    dict.fromkeys(SCALES, "20 learner steps"),
    "nobody",
    {("a", "one"): (7, None)},
)


@pytest.fixture
def shelf(tmp_path):
    dataset_of(tmp_path / "data" / "toys-a")
    return TableFolders(GRID, "quick", tmp_path / "data", tmp_path / "results", tmp_path / "runs")


def test_missing_cells_are_trained_once_and_the_rest_prints_as_not_run(shelf, capsys):
    assert "not run [7]" in table(shelf) and "0 of 6 runs are finished" in table(shelf)
    assert reproduce.fill_missing(shelf, ["one"], 1, local=True) == []
    told = capsys.readouterr().err
    assert "the dataset is missing: toys-b" in told and "2 to train" in told
    files = sorted(shelf.results.glob("*.json"))
    assert [f.name for f in files] == ["a--one--1.json", "a--one--2.json"]
    result = json.loads(files[0].read_text())
    assert (
        result["dataset"]["sha256"]
        and result["learner_steps"] == 20
        and result["flags"] == list(TINY)
    )
    assert {"return_mean", "best_return_mean", "wall_s", "versions", "date", "seed"} <= set(result)
    assert (
        result["settings"]["algorithm"]["hidden"] == [8]
        and result["settings"]["budget"]["learner_steps"] == 20
    )
    stamp = [f.stat().st_mtime_ns for f in files]
    assert reproduce.fill_missing(shelf, ["one"], 1, local=True) == []
    assert "2 of 4 cells are there, 0 to train" in capsys.readouterr().err
    assert stamp == [f.stat().st_mtime_ns for f in files]
    text = table(shelf)
    mean = np.mean([json.loads(f.read_text())["return_mean"] for f in files])
    assert (
        f"{mean:.1f} ± " in text
        and "[7]" in text
        and "| b | not run | none |" in text
        and "2 of 6 runs are finished" in text
    )
    assert "interquartile mean" in text and "fewer than 3 seeds in a row" in text


def test_transformers_are_trained_in_bfloat16_where_that_is_asked_for_and_the_table_says_so(shelf):
    words = "--algorithm.width 8 --algorithm.layers 1 --algorithm.context 2"
    words += " --algorithm.target-return 1 --evaluations.final-episodes 1"
    dt = (*TINY[:2], *words.split())

    def either(row: str, column: str, scale: str):
        return ("bc", "toys-a", True, TINY) if column == "one" else ("dt", "toys-a", True, dt)

    grid = dataclasses.replace(GRID, rows=("a",), seeds=1, make=either)
    low = TableFolders(grid, "quick", shelf.data, shelf.root, shelf.runs, "bf16")
    assert {cell.column: low.run(cell).machines.precision for cell in grid.cells("quick")} == {
        "one": "float32",
        "two": "bf16",
    }
    assert reproduce.fill_missing(low, [], 1, local=True) == []
    found = {f.stem: json.loads(f.read_text())["precision"] for f in low.results.glob("*.json")}
    assert found == {"a--one--1": "float32", "a--two--1": "bf16"}
    plain = TableFolders(grid, "quick", shelf.data, shelf.root, shelf.runs)
    assert "2 of 2 runs are finished.\nTrained with --precision bf16: 1 of these." in table(plain)
    (
        low.results / "a--two--1.json"
    ).unlink()  # it goes on in the precision that its folder began in
    assert {cell.column: plain.run(cell).machines.precision for cell in grid.cells("quick")} == {
        "one": "float32",
        "two": "bf16",
    }
    assert (
        reproduce.fill_missing(plain, [], 1, local=True) == []
        and (low.results / "a--two--1.json").is_file()
    )


def test_where_data_of_a_game_are_missing_the_commands_that_make_them_are_told(tmp_path, capsys):
    """And they are commands: a run of the agent, and a recording of its milestones."""
    from bigdm_ray.data import data_parser

    shelf = TableFolders(
        find_grid("dt-atari"), "quick", tmp_path / "data", tmp_path / "results", tmp_path / "runs"
    )
    assert reproduce.fill_missing(shelf, ["pong", "seed=1"], 1, local=True) == []
    told = capsys.readouterr().err
    assert told.count("the dataset is missing: pong") == 1 and "0 to train" in told
    train, record, _ = told.splitlines()[0].partition("pong: ")[2].replace(";", " &&").split(" && ")
    assert train.startswith("python -m bigdm_ray.run sb3-ppo pong --local")
    flags = train.split()[5:]
    run = configure(
        "sb3-ppo", "pong", [flag for flag in flags[: flags.index("--folder")] if flag != "--local"]
    )
    assert run.saves.milestones and run.budget.minutes == 60
    given = data_parser().parse(record.split()[3:])
    assert (
        str(given.run) == flags[-1] == "runs/pong"
        and given.weights == "milestones"
        and given.folder == tmp_path / "data" / "pong"
    )
    assert "| pong | not run [106.1] |" in table(shelf)


@pytest.mark.parametrize(("name", "rows"), [("percent-bc", 2), ("dt", 3)])
def test_reachers_rows_are_published_stand_apart_and_say_how_their_data_are_made(
    name, rows, tmp_path, capsys
):
    grid = find_grid(name)
    apart = ("reacher-medium", "reacher-medium-replay", "reacher-medium-expert")[:rows]
    assert (
        grid.apart == apart
        and len(grid.averaged_rows) == 9
        and set(grid.rows) == {*grid.averaged_rows, *apart}
    )
    assert grid.published["reacher-medium", "10 %"] == (51.0, None) and grid.published[
        "reacher-medium-replay", "100 %"
    ] == (5.4, None)
    if name == "dt":
        assert [grid.published[row, "DT"][0] for row in apart] == [51.2, 18.0, 89.1]
        assert np.mean(
            [grid.published[row, "DT"][0] for row in grid.averaged_rows]
        ) == pytest.approx(74.7, abs=0.06)
        assert np.mean(
            [grid.published[row, "100 %"][0] for row in grid.averaged_rows]
        ) == pytest.approx(47.7, abs=0.06)
    shelf = TableFolders(grid, "quick", tmp_path, tmp_path / "results", tmp_path / "runs")
    text = table(shelf)
    assert (
        "| reacher-medium-replay | not run" in text
        and "| mean of the 9 rows without reacher-medium, " in text
        and "Reacher-v5" in text
    )
    assert reproduce.fill_missing(shelf, ["reacher", "seed=1"], 1, local=True) == []
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "the dataset is missing: reacher" in line
    ]
    assert len(lines) == rows
    for line in lines:
        for command in line.split(": ", 2)[2].partition(", after")[0].split(" && "):
            understood(command)


def understood(command):
    """Parse a command of a recipe as its door does; what it asks for."""
    from bigdm_ray.data import data_parser

    door, words = command.split()[2], command.split()[3:]
    assert door in ("bigdm_ray.run", "bigdm_ray.data")
    if door == "bigdm_ray.data":
        return data_parser().parse(words)
    run = configure(*words[:2], words[2 : words.index("--folder")])
    assert run.saves.milestones
    return run


def test_batches_of_bail_are_recorded_from_the_stages_of_two_sacs(tmp_path, capsys):
    shelf = TableFolders(
        find_grid("bail"), "quick", tmp_path, tmp_path / "results", tmp_path / "runs"
    )
    assert reproduce.fill_missing(shelf, ["SAC", "seed=1"], 1, local=True) == []
    lines = [
        line.split("missing: ")[1]
        for line in capsys.readouterr().err.splitlines()
        if "the dataset is missing: bail-sac" in line
    ]
    recipes = dict(line.split(": ", 1) for line in lines)
    assert len(recipes) == 10 and "data import SOURCE" in recipes["bail-sac-ant-b1"]
    seeds = set()
    for name in ("bail-sac-hopper-b1", "bail-sac-hopper-b2"):
        train, record = recipes[name].split(" && ")
        sac, recording = understood(train), understood(record)
        seeds.add(sac.seed)
        assert (sac.task, sac.budget.env_steps) == (
            "hopper",
            recording.steps,
        ) and sac.budget.env_steps // sac.saves.every == 20
        assert (
            recording.weights == "milestones"
            and recording.mode == "sample"
            and recording.folder == tmp_path / name
        )
        assert train.endswith(f"--folder {recording.run}")
    assert len(seeds) == 2


def test_decision_transformers_of_reacher_read_windows_of_five(tmp_path):
    dataset_of(tmp_path / "reacher-medium", "reacher", 1)
    cell = next(
        cell
        for cell in find_grid("dt").cells("paper")
        if (cell.row, cell.column) == ("reacher-medium", "DT")
    )
    run = TableFolders(find_grid("dt"), "paper", tmp_path, tmp_path, tmp_path).run(cell)
    assert (
        run.algorithm.context == 5
        and run.algorithm.return_scale == 0.1
        and run.learner_budget == 100_000
    )


@pytest.mark.parametrize(
    ("scale", "steps", "batch"), [("quick", 30_000, 256), ("paper", 200_000, 1000)]
)
def test_the_table_of_bail_clones_with_bails_policy_on_as_many_samples(
    scale, steps, batch, tmp_path
):
    dataset_of(tmp_path / "bail-sac-hopper-b1", "hopper", 1)
    shelf = TableFolders(find_grid("bail"), scale, tmp_path, tmp_path, tmp_path)
    cells = {
        cell.column: cell
        for cell in shelf.grid.cells(scale)
        if (cell.row, cell.seed) == ("SAC Hopper B1", 1)
    }
    bail, bc = shelf.run(cells["BAIL"]), shelf.run(cells["BC"])
    assert bail.learner_budget - bail.algorithm.envelope_steps == bc.learner_budget == steps
    assert (
        bail.algorithm.batch_size == bc.algorithm.batch_size == batch
        and f"BC {steps:,} of {batch:,}" in shelf.grid.budgets[scale]
    )
    assert (bail.algorithm.hidden, bail.algorithm.learning_rate) == (
        bc.algorithm.hidden,
        bc.algorithm.learning_rate,
    )
    assert bc.algorithm.learning_rate_factor(steps, "adam") == 1 and bc.algorithm.best_fraction == 1


def test_the_imitation_table_says_how_many_more_samples_bail_sees(tmp_path):
    dataset_of(tmp_path / "hopper-medium", "hopper", 1)
    for scale in SCALES:
        shelf = TableFolders(find_grid("imitation"), scale, tmp_path, tmp_path, tmp_path)
        cells = {
            cell.column: cell
            for cell in shelf.grid.cells(scale)
            if (cell.row, cell.seed) == ("hopper-medium", 1)
        }
        bail, bc = shelf.run(cells["BAIL"]), shelf.run(cells["BC"])
        policy, cloned = bail.learner_budget - bail.algorithm.envelope_steps, bc.learner_budget
        seen = (
            f"{policy:,} x {bail.algorithm.batch_size:,}",
            f"BC's {cloned:,} x {bc.algorithm.batch_size}",
        )
        note = shelf.grid.notes[1]
        times = policy * bail.algorithm.batch_size // (cloned * bc.algorithm.batch_size)
        assert all(part in note for part in (*seen, f"{times} times BC's"))


def test_a_stopped_cell_goes_on_from_its_checkpoint(shelf):
    cell = GRID.cells("quick")[0]
    run = configure("bc", str(shelf.data / "toys-a"), [*TINY, "--seed", "1", "--saves.every", "10"])
    from bigdm_ray.training.loop import train_local

    def strike(report):
        if report["time/learner_steps"] >= 10 and "evaluation/return_mean" not in report:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_local(run, shelf.folder(cell), listeners=[strike])
    summary = reproduce.train_cell(run.to_json(), str(shelf.folder(cell)))
    assert summary["learner_steps"] == 20
    again = reproduce.train_cell(run.to_json(), str(shelf.folder(cell)))
    assert again["return_mean"] == summary["return_mean"]


def test_words_that_fit_no_cell_are_told(shelf):
    with pytest.raises(UserError, match="--only three fits no cell of tiny; its rows are a, b"):
        reproduce.fill_missing(shelf, ["three"], 1, local=True)


def write(shelf, cell, **more):
    """The file that a finished cell leaves."""
    held = {"sha256": shelf.sha256(cell) or "0" * 64, "return_mean": 2.0} if cell.dataset else None
    fixed = {
        "return_mean": 1.0,
        "normalized_score": None,
        "best_return_mean": 1.5,
        "best_normalized_score": None,
        "dataset": held,
    }
    shelf.results.mkdir(parents=True, exist_ok=True)
    shelf.file(cell).write_text(json.dumps(shelf.request_of(cell) | fixed | more))


@pytest.mark.parametrize(
    "lost",
    [
        "return_mean",
        "best_return_mean",
        "normalized_score",
        "best_normalized_score",
        "dataset",
        "flags",
        "seed",
        "scale",
    ],
)
def test_a_result_that_lacks_a_field_is_told(shelf, lost):
    cell = GRID.cells("quick")[0]
    write(shelf, cell)
    assert "1 of 6 runs are finished" in table(shelf)
    shelf.file(cell).write_text(
        json.dumps(
            {
                name: value
                for name, value in json.loads(shelf.file(cell).read_text()).items()
                if name != lost
            }
        )
    )
    with pytest.raises(UserError, match=f"is not the result of a cell.*{lost}"):
        table(shelf)


@pytest.mark.parametrize(
    "wrong",
    [
        {"return_mean": "7"},
        {"normalized_score": True},
        {"best_return_mean": float("nan")},
        {"dataset": []},
        {"dataset": {"sha256": "a", "return_mean": [1]}},
        {"settings": 3},
        {"settings": {"algorithm": 3}},
        {"task": {}},
    ],
    ids=str,
)
def test_a_result_with_a_value_of_another_kind_is_told(shelf, wrong):
    cell = GRID.cells("quick")[0]
    write(shelf, cell)
    shelf.file(cell).write_text(json.dumps(json.loads(shelf.file(cell).read_text()) | wrong))
    with pytest.raises(UserError, match="is not the result of a cell"):
        table(shelf)


@pytest.mark.parametrize("text", ["{}", "[1]", "7", "{", '{"return_mean": 1}'])
def test_a_file_that_is_no_result_is_told(shelf, text):
    shelf.results.mkdir(parents=True)
    shelf.file(GRID.cells("quick")[0]).write_text(text)
    with pytest.raises(UserError, match="is not the result of a cell"):
        table(shelf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("algorithm", "bail"),
        ("flags", ["--algorithm.hidden", "9"]),
        ("scale", "paper"),
        ("target", "toys-b"),
        ("seed", 2),
        ("dataset", "other"),
    ],
)
def test_a_result_of_other_settings_or_data_counts_as_not_run(shelf, name, value, capsys):
    cell = GRID.cells("quick")[0]
    write(
        shelf,
        cell,
        return_mean=99.0,
        **{name: {"sha256": "1" * 64, "return_mean": 2.0} if value == "other" else value},
    )
    text = table(shelf)
    assert "99.0" not in text and "0 of 6 runs are finished" in text and "not run [7]" in text
    assert f"Outdated, so counted as not run: a--one--1.json (its {name}" in text
    old = shelf.runs / cell.name
    old.mkdir(parents=True)
    (old / "kept.txt").write_text("another run")
    assert reproduce.fill_missing(shelf, ["a one seed=1"], 1, local=True) == []
    assert f"outdated, so not run: {shelf.file(cell)}: its {name}" in capsys.readouterr().err
    assert "Outdated" not in table(shelf) and "1 of 6 runs are finished" in table(shelf)
    assert [path.name for path in old.iterdir()] == ["kept.txt"], (
        "the folder of the other run is left alone"
    )


def test_a_default_that_has_changed_since_outdates_a_result(shelf):
    cell = GRID.cells("quick")[0]
    settings = shelf.run(cell).to_json()
    kept = {name: settings[name] for name in ("algorithm", "budget", "evaluations")}
    write(shelf, cell, settings=kept)
    assert shelf.find_result(cell)[0] and "settings were not kept" not in table(shelf)
    write(shelf, cell)
    assert shelf.find_result(cell)[0] and "Of 1 of these the settings were not kept" in table(shelf)
    later = {name: value for name, value in kept["algorithm"].items() if name != "batch_size"}
    write(shelf, cell, settings=kept | {"algorithm": later})
    assert "batch_size" in kept["algorithm"] and shelf.find_result(cell)[0], (
        "what came later is not compared"
    )
    write(shelf, cell, settings=kept | {"algorithm": kept["algorithm"] | {"learning_rate": 0.5}})
    assert shelf.find_result(cell) == (None, "its algorithm.learning_rate is not today's")
    assert shelf.folder(cell) != shelf.runs / cell.name


def test_whatever_breaks_a_cell_stops_no_other(shelf, monkeypatch, capsys):
    trained = reproduce.train_cell

    def breaks(asked, folder):
        if asked["seed"] == 1:
            raise RuntimeError("shapes do not fit")
        return trained(asked, folder)

    monkeypatch.setattr(reproduce, "train_cell", breaks)
    assert reproduce.fill_missing(shelf, ["a one"], 1, local=True) == [
        "a, one, seed 1: RuntimeError: shapes do not fit"
    ]
    assert "Traceback" in capsys.readouterr().err and [
        path.name for path in shelf.results.iterdir()
    ] == ["a--one--2.json"]


def test_cells_side_by_side_leave_the_same_files(shelf, monkeypatch):
    """What the workers do, done here: the answers come in another order than the jobs."""

    def answers(work, jobs, at_once):
        assert at_once == 2
        yield 1, None, "its worker died"
        yield 0, work(*jobs[0]), ""

    monkeypatch.setattr("bigdm_ray.distributed.map.run_side_by_side", answers)
    assert reproduce.fill_missing(shelf, ["a one"], 2, local=False) == [
        "a, one, seed 2: its worker died"
    ]
    assert [path.name for path in shelf.results.iterdir()] == ["a--one--1.json"]
    assert shelf.find_result(GRID.cells("quick")[0])[0]["seed"] == 1


def test_a_result_counts_where_its_dataset_is_not_at_hand(shelf):
    cell = next(cell for cell in GRID.cells("quick") if cell.row == "b")
    write(shelf, cell, return_mean=5.0)
    assert "| b | 5.0 (1 seed) | none | 2.0 |" in table(shelf)


@pytest.mark.parametrize(
    "flags", [["--budget.learner-steps", "10"], ["--algorithm.hidden", "9"], ["--seed", "99"]]
)
def test_another_run_in_the_folder_of_a_cell_is_not_taken_for_it(shelf, flags):
    from bigdm_ray.training.loop import train_local

    cell = GRID.cells("quick")[0]
    train_local(
        configure("bc", str(shelf.data / "toys-a"), [*TINY, "--seed", "1", *flags]),
        shelf.folder(cell),
    )
    (problem,) = reproduce.fill_missing(shelf, ["a one seed=1"], 1, local=True)
    assert (
        "holds another run than the cell's" in problem
        and "remove that folder to train the cell" in problem
        and str(shelf.folder(cell)) in problem
    )
    assert flags[0].strip("-").replace("learner-steps", "learner_steps") in problem
    assert not shelf.file(cell).exists()


def test_only_what_is_asked_for_is_shown(shelf):
    for cell in GRID.cells("quick"):
        write(shelf, cell, return_mean=10.0 * cell.seed + (cell.column == "two"))
    text = table(shelf, ["two"])
    assert (
        "| a | 16.0" in text
        and "one" not in text.split("|", 1)[1]
        and "| b |" not in text
        and "2 of 2 runs" in text
        and "mean of the rows" not in text
    )
    text = table(shelf, ["seed=2"])
    assert (
        "| a | 20.0 (1 seed) [7] | 21.0 (1 seed) | 2.0 |" in text
        and "| b | 20.0 (1 seed) | none | 2.0 |" in text
    )
    with pytest.raises(UserError, match="--only three fits no cell of tiny"):
        table(shelf, ["three"])


def test_the_door_shows_only_what_is_asked_for(tmp_path, capsys):
    shown = ["percent-bc", "--show", "--results", str(tmp_path), "--data", str(tmp_path)]
    assert reproduce.main([*shown, "--only", "hopper-medium ", "--only", "10 %"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert (
        lines[0] == "|  | 10 % | the data |"
        and len(lines) == 3
        and lines[2].startswith("| hopper-medium | not run [65.9]")
    )
    with pytest.raises(UserError, match="--only nothing fits no cell of percent-bc"):
        reproduce.main([*shown, "--only", "nothing"])
    with pytest.raises(UserError, match="name the TABLE"):
        reproduce.main(["--only", "hopper"])


def test_intervals_are_over_seeds_and_do_not_grow_with_how_much_rows_differ(shelf):
    """Two rows 100 apart, whose seeds agree to 1."""
    grid = dataclasses.replace(GRID, seeds=3)
    three = TableFolders(grid, "quick", shelf.data, shelf.results.parents[1], shelf.runs)
    for cell in grid.cells("quick"):
        write(three, cell, return_mean=100.0 * (cell.row == "b") + cell.seed)
    text = table(three)
    low, high = stratified_interval([np.array([1.0, 2, 3]), np.array([101.0, 102, 103])])
    assert 51 <= low < 52 < high <= 53
    assert f"| one | 6 | 52.0 | {low:.1f} to {high:.1f} |" in text
    assert (
        "| a | 2.0 ± 1.0 (1.0 to 3.0) [7] |" in text
        and "standard deviation over seeds (95 % bootstrap interval of the mean, from 3 seeds on)"
        in text
    )
    raw = TableFolders(
        dataclasses.replace(grid, averages=False),
        "quick",
        shelf.data,
        shelf.results.parents[1],
        shelf.runs,
    )
    assert "| a | 2.0 ± 1.0 (1.0 to 3.0) [7] |" in table(raw) and "mean of the rows" not in table(
        raw
    )
    assert "| a, one | 3 | 2.0 | 1.0 to 3.0 | 2.0 | 1.5 |" in table(
        raw
    ) and "| b, one | 3 | 102.0 | 101.0 to 103.0 | 102.0 | 1.5 |" in table(raw)
    known = dataclasses.replace(grid, published={("a", "one"): (7, 2)})
    assert "[7 ± 2]" in table(
        TableFolders(known, "quick", shelf.data, shelf.results.parents[1], shelf.runs)
    )


def test_rows_that_stand_apart_are_in_no_average_and_print_returns_where_a_task_has_no_score(shelf):
    grid = dataclasses.replace(
        GRID,
        unit="normalised score",
        apart=("b",),
        columns=("one",),
        published={("a", "one"): (7, None), ("b", "one"): (50, None)},
    )
    apart = TableFolders(grid, "quick", shelf.data, shelf.results.parents[1], shelf.runs)
    for cell in grid.cells("quick"):
        write(
            apart,
            cell,
            task="hopper",
            return_mean=-4.0 * cell.seed,
            normalized_score=None if cell.row == "b" else 30.0 + cell.seed,
        )
    text = table(apart)
    assert "| a | 31.5 ± 0.7 [7] |" in text and "| b | return -6.0 ± 2.8 [50] | 2.0 |" in text
    assert "| mean of the 1 rows without b | 31.5 [7.0] |" in text and "| one | 2 | 31.5 |" in text


def test_an_unknown_table_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown table 'percent-cb'.*percent-bc"):
        find_grid("percent-cb")


def test_every_table_with_a_finished_cell_is_a_page(shelf, tmp_path, monkeypatch):
    folders = (tmp_path / "results", tmp_path / "data", tmp_path / "runs")
    monkeypatch.setattr(reproduce, "grids", lambda: {"tiny": GRID})
    assert write_tables(tmp_path / "pages", *folders) == []
    reproduce.fill_missing(shelf, ["one"], 1, local=True)
    for _ in range(2):
        assert write_tables(tmp_path / "pages", *folders) == [tmp_path / "pages" / "tiny.md"]
    text = (tmp_path / "pages" / "tiny.md").read_text()
    assert text.startswith("# `python -m bigdm_ray.reproduce tiny`\n")
    assert text.count("A tiny table") == 1 and "## Scale `quick`" in text


@pytest.mark.parametrize("grid", grids().values(), ids=lambda grid: grid.name)
def test_every_cell_of_every_table_can_be_asked_for(grid, tmp_path):
    assert set(grid.budgets) == set(SCALES) and grid.source
    assert set(grid.published) <= {(r, c) for r in grid.rows for c in grid.columns}
    for scale in SCALES:
        cells = grid.cells(scale)
        assert cells and len({cell.name for cell in cells}) == len(cells)
        for cell in cells:
            assert cell.algorithm in algorithms()
            assert cell.dataset or cell.target in tasks()
            if not cell.dataset and cell.seed == 1:
                configure(cell.algorithm, cell.target, list(cell.flags))


def test_cells_of_the_trajectory_transformer_train_and_plan_as_the_table_says(tmp_path):
    for body in ("hopper", "walker2d", "halfcheetah"):
        dataset_of(tmp_path / body, body, 1)
    grid = find_grid("tt")
    for scale in SCALES:
        for cell in grid.cells(scale):
            if cell.algorithm != "tt" or cell.seed > 1:
                continue
            run = configure(
                cell.algorithm, str(tmp_path / cell.row.partition("-")[0]), list(cell.flags)
            )
            assert run.evaluations.every > run.learner_budget and run.evaluations.mode == "plan"
            kind = cell.column.split()[1]
            assert run.algorithm.termination_penalty == -100 and run.algorithm.discretiser == (
                "quantile" if kind == "rotary" else kind
            )
            assert run.algorithm.positions == ("rotary" if kind == "rotary" else "learned")
            if scale == "quick":
                assert (
                    run.learner_budget,
                    run.algorithm.horizon,
                    run.algorithm.beams,
                    run.evaluations.final_episodes,
                ) == (5000, 5, 32, 10)
                assert run.algorithm.window == run.algorithm.context + (
                    run.algorithm.horizon - 1 if kind == "rotary" else 0
                ), "what a plan sees"
            else:
                longer = cell.row in ("hopper-medium-replay", "walker2d-medium-replay")
                assert (
                    run.learner_budget == (312_500 if longer else 195_000)
                    and run.evaluations.final_episodes == 15
                )
                assert (run.algorithm.horizon == 20) == (cell.row == "walker2d-medium-replay")
    means = [
        np.mean([grid.published[row, column][0] for row in grid.rows])
        for column in grid.columns
        if column != "TT rotary"
    ]
    np.testing.assert_allclose(means, [47.7, 47.8, 36.9, 77.6, 74.7, 72.6, 78.9], atol=0.06)


def test_the_interquartile_mean_cuts_a_quarter_at_each_end():
    assert interquartile_mean([0, 1, 2, 100]) == pytest.approx(1.5)
    assert interquartile_mean([3.0]) == 3.0
    assert interquartile_mean(range(8)) == pytest.approx(3.5)


def test_the_door_lists_the_tables_and_refuses_wrong_flags(capsys):
    assert reproduce.main([]) == 0
    assert "percent-bc" in capsys.readouterr().out
    with pytest.raises(UserError, match="--jobs is 0"):
        reproduce.main(["percent-bc", "--jobs", "0"])


# --- overviews


def finished(folder, grid, scale, row, column, seed, score):
    """A finished cell of a table."""
    cell = next(
        c for c in find_grid(grid).cells(scale) if (c.row, c.column, c.seed) == (row, column, seed)
    )
    write(
        TableFolders(find_grid(grid), scale, folder, folder, folder), cell, normalized_score=score
    )


def bar_of(bars, domain, method):
    return next(one for one in bars if (one.bar.domain, one.bar.method) == (domain, method))


def test_a_bar_is_the_mean_of_its_cells_and_says_how_many_are_there(tmp_path, capsys):
    for row, seed, score in (("1000", 1, 60.0), ("1000", 2, 70.0), ("10000", 1, 91.0)):
        finished(tmp_path, "key-to-door", "quick", row, "DT", seed, score)
    finished(tmp_path, "key-to-door", "quick", "1000", "BC", 1, 3.0)
    finished(tmp_path, "key-to-door", "paper", "10000", "BC", 1, 50.0)  # of another scale
    finished(tmp_path, "tt", "quick", "hopper-medium", "BC", 1, 40.0)
    finished(
        tmp_path, "percent-bc", "quick", "hopper-medium", "100 %", 1, 50.0
    )  # the same cell in the table that goes before
    finished(tmp_path, "imitation", "quick", "hopper-medium-replay", "BC", 1, 10.0)
    finished(tmp_path, "percent-bc", "quick", "walker2d-medium", "10 %", 1, 99.0)  # another column
    bars = measure_bars(overviews()["dt-overview"], "quick", tmp_path, tmp_path)
    assert (
        bar_of(bars, "Key-to-Door", "DT").mean == pytest.approx((65 + 91) / 2)
        and bar_of(bars, "Key-to-Door", "DT").state == ""
    )
    assert (bar_of(bars, "Key-to-Door", "BC").mean, bar_of(bars, "Key-to-Door", "BC").state) == (
        3.0,
        "1 of 2 cells",
    )
    assert bar_of(bars, "OpenAI Gym", "BC").scores == {
        "hopper-medium": 50.0,
        "hopper-medium-replay": 10.0,
    }
    assert (bar_of(bars, "Atari", "DT").mean, bar_of(bars, "Atari", "DT").state) == (
        None,
        "not run",
    )
    assert bar_of(bars, "Atari", "TD learning").state == "none"
    assert (
        reproduce.main(
            ["dt-overview", "--data", str(tmp_path), "--results", str(tmp_path), "--show"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "| Key-to-Door | 78.0 [83.2] | not run [13.2] | 3.0 (1 of 2 cells) [1.5] |" in printed
    assert (
        "| OpenAI Gym | not run [74.7] | not run [63.9] | 30.0 (2 of 9 cells) [47.7] |" in printed
    )
    assert "| Atari | not run [97.9] | none [107.2] | not run [60.9] |" in printed
    assert not (tmp_path / "dt-overview").exists()


def peer_came_to(folder, row, score, seed=1):
    """A peer's result beside the cell of CQL."""
    grid = TableFolders(find_grid("value-based"), "quick", folder, folder, folder)
    (cell,) = (c for c in grid.choose_cells([row, "CQL", f"seed={seed}"]) if c.row == row)
    told = {"peer": "d3rlpy 2.8.1", "sha256": "0" * 64, "normalized_score": score}
    spread = {"return_mean": 1000.0, "return_std": 100.0, "return_episodes": 20}
    peer_file(grid, cell).parent.mkdir(parents=True, exist_ok=True)
    peer_file(grid, cell).write_text(json.dumps(grid.request_of(cell) | told | spread))
    return grid


def test_a_bar_of_bootstrapping_waits_for_a_peer_that_comes_to_the_same(tmp_path):
    def bar():
        bars = measure_bars(overviews()["dt-overview"], "quick", tmp_path, tmp_path)
        return bar_of(bars, "OpenAI Gym", "TD learning")

    for seed, score in ((1, 40.0), (2, 44.0)):
        finished(tmp_path, "value-based", "quick", "hopper-medium", "CQL", seed, score)
    assert (bar().mean, bar().state) == (None, "no peer comes to the same")
    peer_came_to(tmp_path, "hopper-medium", 60.0)
    shelf = peer_came_to(tmp_path, "hopper-medium", 62.0, seed=2)
    assert bar().mean is None
    (line,) = (line for line in table(shelf).splitlines() if "d3rlpy" in line)
    assert line == (
        "| hopper-medium, CQL | 42.0 ± 2.0 (2 seeds) "
        "| 61.0 ± 1.0 (d3rlpy 2.8.1, 2 seeds) | -19.0 | apart |"
    )
    peer_came_to(tmp_path, "hopper-medium", 45.0)
    peer_came_to(tmp_path, "hopper-medium", 46.0, seed=2)
    assert (bar().mean, bar().state) == (42.0, "1 of 9 cells")
    assert "| -3.5 | alike |" in table(shelf)
    finished(tmp_path, "value-based", "quick", "walker2d-medium", "CQL", 1, 50.0)
    assert bar().mean is None  # a row of ours that no peer was run on
    peer_came_to(tmp_path, "walker2d-medium", 49.0)
    path = peer_file(shelf, shelf.choose_cells(["walker2d-medium", "CQL", "seed=1"])[0])
    whole = json.loads(path.read_text())
    for wrong in ({}, whole | {"return_episodes": 0}, whole | {"target": 7, "task": None}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="is not the result of a peer"):
            table(shelf)


def test_an_overview_leaves_its_picture_and_its_numbers(tmp_path):
    assert reproduce.main(["dt-overview", "--data", str(tmp_path), "--results", str(tmp_path)]) == 0
    finished(tmp_path, "dt", "paper", "hopper-medium", "DT", 1, 60.0)
    page = tmp_path / "pages" / "dt-overview.md"
    assert (
        reproduce.main(
            [
                "dt-overview",
                "--data",
                str(tmp_path),
                "--results",
                str(tmp_path),
                "--scale",
                "paper",
                "--tables",
                str(page.parent),
            ]
        )
        == 0
    )
    for scale in SCALES:
        assert (
            (tmp_path / "dt-overview" / scale / "overview.png")
            .read_bytes()
            .startswith(b"\x89PNG\r\n\x1a\n")
        )
    bars = json.loads((tmp_path / "dt-overview" / "paper" / "overview.json").read_text())["bars"]
    (gym,) = [bar for bar in bars if (bar["domain"], bar["method"]) == ("OpenAI Gym", "DT")]
    assert (gym["mean"], gym["published"], gym["state"], gym["scores"]) == (
        60.0,
        74.7,
        "1 of 9 cells",
        {"hopper-medium": 60.0},
    )
    text = page.read_text()
    assert (
        "reproduce dt-overview`" in text
        and "## Scale `paper`" in text
        and "60.0 (1 of 9 cells) [74.7]" in text
        and "dt-overview --scale quick" not in text
    )
    with pytest.raises(UserError, match="leave --only out"):
        reproduce.main(
            ["dt-overview", "--data", str(tmp_path), "--results", str(tmp_path), "--only", "hopper"]
        )
    with pytest.raises(UserError, match=r"unknown table 'dt-overviw'.*dt-overview"):
        find_grid("dt-overviw")


@pytest.mark.parametrize("overview", overviews().values(), ids=lambda overview: overview.name)
def test_every_bar_of_every_overview_is_made_of_cells_that_there_are(overview):
    """Its column holds all its rows; the published number is the mean of the published cells."""
    assert (
        len({(bar.domain, bar.method) for bar in overview.bars})
        == len(overview.bars)
        == len(overview.domains) * len(overview.methods)
    )
    for bar in overview.bars:
        if bar.column is None:
            continue
        grid, column = find_grid(bar.column[0]), bar.column[1]
        for scale in SCALES:
            assert {cell.row for cell in grid.cells(scale) if cell.column == column} >= set(
                bar.rows
            )
        assert np.mean([grid.published[row, column][0] for row in bar.rows]) == pytest.approx(
            bar.published, abs=0.06
        )


def test_a_run_that_another_table_has_finished_counts_and_is_not_trained_again(tmp_path, capsys):
    dataset_of(tmp_path / "data" / "hopper-medium", "hopper", 1)
    shelves = {
        name: TableFolders(
            find_grid(name), "quick", tmp_path / "data", tmp_path / "results", tmp_path / "runs"
        )
        for name in ("percent-bc", "imitation", "dt")
    }
    cells = {
        name: next(
            cell
            for cell in shelf.grid.cells("quick")
            if (cell.row, cell.column, cell.seed) == ("hopper-medium", column, 1)
        )
        for (name, shelf), column in zip(shelves.items(), ("100 %", "BC", "100 %"), strict=True)
    }
    write(shelves["percent-bc"], cells["percent-bc"], normalized_score=71.0)
    for name in ("imitation", "dt"):
        assert shelves[name].find_result(cells[name]) == (
            shelves["percent-bc"].find_result(cells["percent-bc"])[0],
            "",
        )
        assert (
            reproduce.fill_missing(
                shelves[name], ["hopper-medium ", cells[name].column, "seed=1"], 1, local=True
            )
            == []
        )
        assert "1 of 1 cells are there, 0 to train" in capsys.readouterr().err
        assert "| hopper-medium | 71.0 (1 seed)" in table(
            shelves[name], ["hopper-medium ", cells[name].column]
        )
    write(shelves["imitation"], cells["imitation"], normalized_score=12.0)
    assert shelves["imitation"].find_result(cells["imitation"])[0]["normalized_score"] == 12.0, (
        "its own goes before"
    )
    assert shelves["dt"].find_result(
        next(
            cell
            for cell in shelves["dt"].grid.cells("quick")
            if cell.seed == 2 and cell.run[:4] == cells["dt"].run[:4]
        )
    ) == (None, "")
    write(shelves["imitation"], cells["imitation"], normalized_score=12.0, flags=["--other"])
    assert shelves["imitation"].find_result(cells["imitation"])[0]["normalized_score"] == 71.0, (
        "where its own is outdated, the other's"
    )
    for name in ("percent-bc", "imitation"):
        write(
            shelves[name],
            cells[name],
            normalized_score=12.0,
            dataset={"sha256": "1" * 64, "return_mean": 2.0},
        )
    assert shelves["dt"].find_result(cells["dt"]) == (None, "")
    assert "its dataset is not that in" in shelves["imitation"].find_result(cells["imitation"])[1]


@pytest.mark.parametrize("grid", grids().values(), ids=lambda grid: grid.name)
def test_every_finished_cell_that_is_shipped_stays_valid(grid, tmp_path):
    results = Path(__file__).parent.parent / "docs" / "results"
    for scale in SCALES:
        shipped = TableFolders(grid, scale, tmp_path / "data", results, tmp_path / "runs")
        for cell in grid.cells(scale):
            if shipped.file(cell).is_file():
                found, why = shipped.find_result(cell)
                assert found is not None, f"{cell.name}: {why}"
