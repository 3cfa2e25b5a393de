"""A run that was killed and resumed equals the one that was not, bit for bit; what cannot be
resumed is told."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import episode

import bigdm_ray
from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.replay import Store
from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.episode import FOREIGN
from bigdm_ray.replay.shard import Shard
from bigdm_ray.replay.store import verify
from bigdm_ray.run import main, overrun_sentence, stop_sentence
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Counters
from bigdm_ray.training.config import Run, configure, read_run
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.loop import RoundResult, Session, train_local
from bigdm_ray.training.metrics import Report
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout_worker import RolloutWorker
from bigdm_ray.training.run_folder import RunFolder

FLAGS = (
    "--algorithm.hidden 16,16 --algorithm.batch-size 32 --algorithm.n-updates-per-iter 5"
    " --algorithm.warm-up-episodes 20 --algorithm.replay-size 60 --evaluations.episodes 4"
    " --evaluations.final-episodes 4 --evaluations.every 1500 --saves.every 1000"
    " --saves.report-every 300 --rollouts.groups 2"
)


class Killed(Exception):
    """Stands for kill -9: nothing in the loop handles it."""


def run_of(task: str, steps: int, flags: str = FLAGS) -> Run:
    return bigdm_ray.configure("udrl", task, [*flags.split(), "--budget.env-steps", str(steps)])


def killed_at(run: Run, folder: Path, steps: int) -> None:
    def strike(report: Report) -> None:
        if report["time/env_steps"] >= steps:
            raise Killed

    with pytest.raises(Killed):
        train_local(run, folder, listeners=[strike])


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(("_per_s", "wall_s", "_ms"))}
        for line in lines
    ]


@pytest.mark.parametrize(
    "task", ["toy-vector", pytest.param("lunarlander", marks=pytest.mark.slow)]
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(task: str, tmp_path: Path) -> None:
    pace = {"toy-vector": 1, "lunarlander": 4}[task]
    flags = (
        FLAGS.replace("1500", str(1500 * pace))
        .replace("1000", str(1000 * pace))
        .replace("300", str(300 * pace))
    )
    run = run_of(task, 4000 * pace, flags)
    train_local(run, tmp_path / "whole")
    killed_at(run, tmp_path / "cut", 1700 * pace)
    killed_again = tmp_path / "cut"
    with pytest.raises(Killed):
        train_local(
            run,
            killed_again,
            resume=True,
            listeners=[
                lambda report: (
                    (_ for _ in ()).throw(Killed)
                    if report["time/env_steps"] >= 2700 * pace
                    else None
                )
            ],
        )
    train_local(run, tmp_path / "cut", resume=True)
    whole, cut = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("whole", "cut")
    )
    assert whole.version == cut.version
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(values, cut.arrays[name], err_msg=name)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    tables = [
        Store(tmp_path / name / "store", run.algorithm.retention()).open().table
        for name in ("whole", "cut")
    ]
    np.testing.assert_array_equal(tables[0].ids, tables[1].ids)
    np.testing.assert_array_equal(tables[0].returns, tables[1].returns)


def test_killed_before_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = run_of("toy-vector", 2000)
    train_local(run, tmp_path / "whole")
    killed_at(run, tmp_path / "cut", 300)
    train_local(run, tmp_path / "cut", resume=True)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")


@pytest.mark.slow
def test_checkpoints_keep_two_and_only_named_shards_stay(tmp_path: Path) -> None:
    run = run_of("toy-vector", 6000)
    train_local(run, tmp_path)
    assert len(checkpoint.complete_checkpoints(tmp_path / "checkpoints")) == 2
    store = Store(tmp_path / "store", run.algorithm.retention()).open()
    living = {ref.name for ref in store.living_shards()}
    on_disk = {path.name for path in (tmp_path / "store").glob("*.arrow")}
    assert on_disk == living | checkpoint.named_shards(tmp_path / "checkpoints")


# --- damage


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of one run: `whole`, and `cut`, which was killed with two checkpoints.

    Copy it before it is changed.
    """
    home, run = tmp_path_factory.mktemp("undamaged"), run_of("toy-vector", 4000)
    train_local(run, home / "whole")
    killed_at(run, home / "cut", 2700)
    return home


def shards_of(folder: Path) -> list[set[str]]:
    """The shards that each kept checkpoint names, the oldest first."""
    return [
        {told["name"] for told in json.loads((path / "state.json").read_text())["shards"]}
        for path in checkpoint.complete_checkpoints(folder / "checkpoints")
    ]


def copied(undamaged: Path, to: Path) -> Path:
    return Path(shutil.copytree(undamaged / "cut", to / "cut"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 4
    path.write_bytes(data)


def same_run(undamaged: Path, folder: Path) -> None:
    """Both came to the same weights and reports."""
    whole, cut = (
        Weights.load(path / "weights" / "last.safetensors")
        for path in (undamaged / "whole", folder)
    )
    assert whole.version == cut.version
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(values, cut.arrays[name], err_msg=name)
    assert numbers(undamaged / "whole") == numbers(folder)


@pytest.mark.parametrize("damage", ["torn", "decayed and verified"])
@pytest.mark.slow
def test_a_damaged_shard_of_the_newest_checkpoint_sends_the_run_back_to_the_one_before(
    damage: str, undamaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(undamaged, tmp_path)
    before, newest = (path.name for path in checkpoint.complete_checkpoints(folder / "checkpoints"))
    older, newer = shards_of(folder)
    shard = folder / "store" / min(newer - older)
    if damage == "torn":
        os.truncate(shard, 300)
    else:
        flip(shard)
        assert len(verify(folder / "store")[2]) == 1
    summary = train_local(run_of("toy-vector", 4000), folder, resume=True)
    told = capsys.readouterr().err
    assert (
        told.count("\n") == 1
        and f"goes on from {before}, not from {newest}" in told
        and str(shard) in told
    )
    assert any(f"not from {newest}" in problem for problem in summary["problems"])
    assert shard.with_name(f"{shard.name}.corrupt").exists()
    same_run(undamaged, folder)


def test_damage_to_all_checkpoints_is_told_and_nothing_is_unlinked(
    undamaged: Path, tmp_path: Path
) -> None:
    folder = copied(undamaged, tmp_path)
    for names in shards_of(folder):
        os.truncate(folder / "store" / max(names), 300)
    there = {path.name.removesuffix(".corrupt") for path in (folder / "store").glob("*.arrow")}
    for _ in range(2):
        with pytest.raises(
            RunFailed,
            match=(
                r"no checkpoint in .* is whole .*put the shards back from a copy, or begin in"
                r" another --folder"
            ),
        ) as told:
            train_local(run_of("toy-vector", 4000), folder, resume=True)
        assert (
            "\n" not in str(told.value)
            and len(checkpoint.complete_checkpoints(folder / "checkpoints")) == 2
        )
        assert {
            path.name.removesuffix(".corrupt") for path in (folder / "store").iterdir()
        } >= there
    for aside in (folder / "store").glob("*.corrupt"):
        shutil.copy(undamaged / "cut" / "store" / aside.stem, folder / "store")
    train_local(run_of("toy-vector", 4000), folder, resume=True)
    same_run(undamaged, folder)


def test_a_resume_spares_what_the_older_checkpoint_needs(undamaged: Path, tmp_path: Path) -> None:
    folder = copied(undamaged, tmp_path)
    older, newer = shards_of(folder)
    assert older - newer, "nothing is at stake"

    def strike(report: Report) -> None:
        raise Killed

    with pytest.raises(Killed):
        train_local(run_of("toy-vector", 4000), folder, resume=True, listeners=[strike])
    assert {path.name for path in (folder / "store").glob("*.arrow")} >= older | newer
    shutil.rmtree(checkpoint.complete_checkpoints(folder / "checkpoints")[-1])
    train_local(run_of("toy-vector", 4000), folder, resume=True)
    same_run(undamaged, folder)
    left = {path.name for path in (folder / "store").glob("*.arrow")}
    store = Store(folder / "store", run_of("toy-vector", 4000).algorithm.retention()).open()
    living = {ref.name for ref in store.living_shards()}
    assert left == living | checkpoint.named_shards(folder / "checkpoints")


def test_an_asynchronous_resume_names_damaged_shards_and_counts_what_is_left(
    undamaged: Path, tmp_path: Path
) -> None:
    from bigdm_ray.training.start import count_stored

    folder, run = copied(undamaged, tmp_path), run_of("toy-vector", 4000)
    sound, damage = count_stored(run, RunFolder(folder))
    assert damage == [] and sound.counters.env_steps > 2000
    shard = folder / "store" / max(shards_of(folder)[-1])
    os.truncate(shard, 300)
    for why in ("not a whole Arrow file", f"set aside as {shard.name}.corrupt"):
        found, (sentence,) = count_stored(run, RunFolder(folder))
        assert (
            str(shard) in sentence
            and why in sentence
            and re.search(r"without \d+ episodes of its last checkpoint", sentence)
        )
        assert found.living == sound.living and found.counters == sound.counters


def test_an_asynchronous_resume_counts_what_came_since_whoever_played_it(tmp_path: Path) -> None:
    """Budgets go by arrival: episodes of clients, whose ids may be of any number, count once."""
    from bigdm_ray.training.start import count_stored

    run, home = run_of("toy-vector", 4000), RunFolder(tmp_path)
    store = Store(home.store, run.algorithm.retention())

    def added(*ids: tuple[int, int, int]) -> list[int]:
        receipt = store.add([episode(id, 3) for id in ids])
        serials: list[int] = receipt.added.serials.tolist()
        return serials

    counters = Counters(round=2, env_steps=9, episodes=3)
    counters.arrive(added((0, 0, 0), (1_000_000, FOREIGN, 0)))
    late = added((1, 0, 0))  # stored, but the driver has not heard of it
    counters.arrive(added((7, FOREIGN, 0)))
    assert (counters.arrived, counters.arrived_ahead, late) == (2, [3], [2])
    living, shards = {"": store.table.ids}, store.living_shards()
    checkpoint.write(home.checkpoints, counters, shards, 0, {}, living, run.identity)
    added((7, FOREIGN, 1), (3, 0, 0), (0, FOREIGN, 5))
    found, damage = count_stored(run, home)
    assert (found.counters.episodes, found.counters.env_steps, damage) == (3 + 4, 9 + 12, [])
    assert found.counters.round == 4 and (found.counters.arrived, found.counters.arrived_ahead) == (
        7,
        [],
    )
    checkpoint.write(home.checkpoints, found.counters, shards, 0, {}, living, run.identity)
    again, _ = count_stored(run, home)
    assert again.counters == found.counters


def test_a_resume_by_an_older_version_is_refused_and_changes_nothing(
    undamaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever shard is of a newer version: one of the checkpoint, or one that came after it."""
    from bigdm_ray.training.start import count_stored

    folder, run = copied(undamaged, tmp_path), run_of("toy-vector", 4000)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SCHEMA_VERSION", shards.SCHEMA_VERSION + 1)
        later = next(iter((folder / "store").glob("*.arrow")))
        episodes = [Shard.open(later).episode(0)]
        named = folder / "store" / max(shards_of(folder)[-1])
        before = named.read_bytes()
        for path in (folder / "store" / "episodes-0009999.arrow", named):
            path.write_bytes(shards.encode(episodes))
            there = sorted(path.name for path in (folder / "store").iterdir())
            patch.setattr(shards, "SCHEMA_VERSION", shards.SCHEMA_VERSION - 1)
            for resume in (
                lambda: train_local(run, folder, resume=True),
                lambda: count_stored(run, RunFolder(folder)),
            ):
                with pytest.raises(shards.NewerShard, match=rf"{path.name} .*: update bigdm_ray$"):
                    resume()
                assert there == sorted(path.name for path in (folder / "store").iterdir())
            path.unlink()
            named.write_bytes(before)
            patch.setattr(shards, "SCHEMA_VERSION", shards.SCHEMA_VERSION + 1)
    train_local(run, folder, resume=True)


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a path": lambda state: state["shards"].append("../../victim.txt"),
    "a path to a shard": lambda state: state["shards"].append("../../victim.arrow"),
    "a path in a reference": lambda state: state["shards"].append(
        {"name": "../../victim.arrow", "size": 1, "crc": 1}
    ),
    "a reference without a size": lambda state: state["shards"].append({"name": "a.arrow"}),
    "shards that are a text": lambda state: state.update(shards="episodes-0000000.arrow"),
    "shards that are numbers": lambda state: state.update(shards=[1]),
    "a counter that is a text": lambda state: state["counters"].update(round="3"),
    "a counter that is negative": lambda state: state["counters"].update(env_steps=-1),
    "a counter that is a list": lambda state: state["counters"].update(learner_step=[3]),
    "rounds that are texts": lambda state: state["counters"].update(open_rounds=["1"]),
    "a time that is no number": lambda state: state["counters"].update(wall_s=None),
    "an integer that is huge": lambda state: state["counters"].update(episodes=10**400),
    "an unknown counter": lambda state: state["counters"].update(lives=9),
    "an offset that is negative": lambda state: state.update(metrics_offset=-5),
    "no counters": lambda state: state.pop("counters"),
    "an identity that is a list": lambda state: state.update(identity=[]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_whose_values_are_of_a_wrong_kind_is_one_sentence(
    wrong: str, undamaged: Path, tmp_path: Path
) -> None:
    folder, victims = (
        copied(undamaged, tmp_path),
        [tmp_path / f"victim.{e}" for e in ("txt", "arrow")],
    )
    for victim in victims:
        victim.write_text("mine")
    changed(checkpoint.complete_checkpoints(folder / "checkpoints")[-1], WRONG[wrong])
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"cannot be read .*; remove that folder to go on") as told:
        train_local(run_of("toy-vector", 4000), folder, resume=True)
    assert "\n" not in str(told.value) and all(v.read_text() == "mine" for v in victims)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "torn", ["", "{", "[" * 100_000, '{"schema_version": 1, "shards": [".."]}']
)
def test_a_torn_older_checkpoint_is_set_aside_and_the_run_goes_on(
    torn: str, undamaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(undamaged, tmp_path)
    older = checkpoint.complete_checkpoints(folder / "checkpoints")[0]
    (older / "state.json").write_text(torn)
    train_local(run_of("toy-vector", 4000), folder, resume=True)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{older} is set aside as {older.name}.corrupt" in told
    same_run(undamaged, folder)


def test_what_killed_writers_left_in_a_run_folder_goes_with_the_resume(
    undamaged: Path, tmp_path: Path
) -> None:
    folder = copied(undamaged, tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [
        folder / place / f".{name}.{ended.pid}.tmp"
        for place, name in (
            (".", "summary.json"), ("weights", "last.safetensors"), ("store", "e-1.arrow"),
            ("checkpoints", "save-000003"), ("checkpoints", "save-000000.old"),
        )
    ]  # fmt: skip
    for path in left[:3]:
        path.write_bytes(b"half")
    for path in left[3:]:
        path.mkdir()
        (path / "learner.safetensors").write_bytes(b"half")
    train_local(run_of("toy-vector", 4000), folder, resume=True)
    same_run(undamaged, folder)
    assert not list(folder.rglob("*.tmp"))


def test_a_folder_with_what_a_killed_beginning_left_is_free(tmp_path: Path) -> None:
    run, folder = run_of("toy-vector", 1500), tmp_path / "run"
    (folder / "store").mkdir(parents=True)
    for name in (".lock", ".store.lock", ".run.json.99999.tmp"):
        (folder / name).touch()
    RunFolder(folder).claim(run, resume=False, exact=True).release()
    assert not list(folder.glob("*.tmp"))
    for name in ("notes.txt", "store/episodes-0000000.arrow"):
        other = tmp_path / name.replace("/", "-")
        (other / name).parent.mkdir(parents=True)
        (other / name).touch()
        with pytest.raises(UserError, match="is not empty and holds no run"):
            RunFolder(other).claim(run, resume=False, exact=True)


def test_weights_of_a_run_that_an_older_version_was_killed_in_can_be_gone_on_from(
    undamaged: Path, tmp_path: Path
) -> None:
    folder = copied(undamaged, tmp_path)
    best = folder / "weights" / "best.safetensors"
    replace(Weights.load(best), command=None, score=None).save(best)  # its JSON was to come next
    train_local(run_of("toy-vector", 4000), folder, resume=True)
    same_run(undamaged, folder)


def test_what_cannot_be_resumed_is_told(tmp_path: Path) -> None:
    run = run_of("toy-vector", 1500)
    with pytest.raises(UserError, match="there is no run in"):
        train_local(run, tmp_path / "none", resume=True)
    train_local(run, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        train_local(run, tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        train_local(run_of("toy-image", 1500), tmp_path / "run", resume=True)
    other = bigdm_ray.configure(
        "udrl", "toy-vector", [*FLAGS.split(), "--budget.env-steps", "1500", "--seed", "2"]
    )
    with pytest.raises(UserError, match="seed is 1, here 2"):
        train_local(other, tmp_path / "run", resume=True)
    newest = checkpoint.complete_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    with pytest.raises(UserError, match="choose another --folder"):
        checkpoint.read(newest, {"algorithm": "bc", "task": "toy-vector"})
    (newest / "learner.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        train_local(run, tmp_path / "run", resume=True)


def test_folder_and_resume_alone_go_on_with_what_the_folder_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS.split(), "--budget.env-steps", "1500", "--seed", "7", "--quiet"]
    folder = str(tmp_path / "run")
    assert main(["udrl", "toy-vector", "--local", "--folder", folder, *flags]) == 0
    before = read_run(tmp_path / "run")
    more = ["--budget.env-steps", "2500", "--quiet"]
    assert main(["--resume", "--folder", folder, *more]) == 0  # in this process, as it began
    assert read_run(tmp_path / "run") == before
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["env_steps"] >= 2500
    capsys.readouterr()
    assert door(main, ["--resume", "--folder", str(tmp_path / "none")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_resume_waits_for_the_writer_that_a_killed_driver_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("toy-vector", 2000)
    home = RunFolder(tmp_path / "run").claim(run, resume=False, exact=True)
    home.release()
    writer = home.hold_store()
    monkeypatch.setattr("bigdm_ray.training.run_folder.STORE_WAIT_S", 0.1)
    with pytest.raises(RunFailed, match="still being written by another process"):
        RunFolder(tmp_path / "run").claim(run, resume=True, exact=True)
    monkeypatch.setattr("bigdm_ray.training.run_folder.STORE_WAIT_S", 60.0)
    ends = time.monotonic() + 0.3
    threading.Timer(0.3, writer.close).start()
    again = RunFolder(tmp_path / "run").claim(run, resume=True, exact=True)
    assert writer.closed and time.monotonic() >= ends
    again.hold_store().close()
    again.release()


def test_ctrl_c_promises_what_resume_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = [
        "udrl",
        "toy-vector",
        *FLAGS.split(),
        "--budget.env-steps",
        "4000",
        "--local",
        "--quiet",
        "--folder",
        str(folder),
    ]
    played = Session.note_round

    def interrupted(session: Session, round: RoundResult) -> None:
        played(session, round)
        if session.counters.env_steps >= at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "note_round", interrupted)
    at = 300
    assert main(flags) == 130
    assert (
        capsys.readouterr().err
        == f"stopped before the first checkpoint; --folder {folder} --resume begins anew\n"
    )
    assert any((folder / "store").iterdir())
    run_json = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run_json | {"loop": "asynchronous"}))
    assert stop_sentence(folder).endswith("--resume begins anew, with the episodes that are stored")
    (folder / "run.json").write_text(json.dumps(run_json))
    at = 1500
    assert main([*flags, "--resume"]) == 130
    told = capsys.readouterr().err
    goes_on = f"stopped; --folder {folder} --resume goes on from the last checkpoint"
    found = re.fullmatch(
        rf"{re.escape(goes_on)}, at environment step ([\d,]+); the last report was at ([\d,]+)\n",
        told,
    )
    assert found is not None, told
    counters = checkpoint.SavedState.read(
        checkpoint.complete_checkpoints(folder / "checkpoints")[-1]
    ).counters
    assert found[1] == f"{counters.env_steps:,}" and int(found[2].replace(",", "")) > 1000
    assert stop_sentence(tmp_path / "none") == "stopped before the run began"


@pytest.mark.parametrize("where", ["warm-up", "play", "store", "learn", "report"])
def test_a_stop_before_the_first_checkpoint_saves_where_it_stands(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being played is left out, what is being stored is counted, a learner step is
    whole."""
    folder = tmp_path / "run"
    words = (
        f"udrl toy-vector {FLAGS} --saves.every 100000 --budget.env-steps 1500 --local --quiet "
        f"--rollouts.groups 1 --algorithm.replay-size 1000 --folder {folder}"
    )
    flags = words.split()
    at = {"warm-up": 0, "play": 3, "store": 3, "learn": 20, "report": 0}[where]
    owner, verb = {
        "learn": (Learner, "_take_step"),
        "store": (Store, "add"),
        "report": (Session, "report"),
    }.get(where, (RolloutWorker, "play"))
    do, calls = getattr(owner, verb), itertools.count()

    def doing(*arguments: Any, **more: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return do(*arguments, **more)

    monkeypatch.setattr(owner, verb, doing)
    assert door(main, flags) == 143
    told = capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    saves = checkpoint.complete_checkpoints(folder / "checkpoints")
    if where == "warm-up":
        assert "begins anew" in told and not saves
    else:
        counters = checkpoint.SavedState.read(saves[-1]).counters
        store = Store(folder / "store", run_of("toy-vector", 1).retention, write=False).open()
        assert counters.env_steps == store.table.lengths.sum() > 0
        found = {
            "round": counters.round,
            "learner_step": counters.learner_step,
            "reports": counters.reports,
        }
        name, value = {
            "play": ("round", 3),
            "store": ("round", 4),
            "learn": ("learner_step", 21),
            "report": ("reports", counters.env_steps // 300),
        }[where]
        assert found[name] == value > 0
        assert f"at environment step {counters.env_steps:,}" in told
    assert main([*flags, "--resume"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] >= 1500 and summary["incarnation"] == (where != "warm-up")


def test_a_run_is_refused_before_its_header_which_says_from_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    flags = f"udrl toy-vector {FLAGS} --budget.env-steps 500 --local --folder {folder}".split()
    assert door(main, [*flags, "--resume"]) == 2
    assert door(main, [*flags, "--device", "cuda:77"]) == 2
    assert not folder.exists()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("error: ") for line in told)
    assert door(main, flags) == 0
    told = capsys.readouterr().err
    assert "plays toy-vector and learns from it, beginning from nothing, in this process" in told
    assert door(main, flags) == 2
    assert capsys.readouterr().err.startswith(f"error: --folder {folder} already holds a run")
    counters = checkpoint.SavedState.read(
        checkpoint.complete_checkpoints(folder / "checkpoints")[-1]
    ).counters
    assert door(main, [*flags, "--budget.env-steps", "700", "--resume"]) == 0
    told = capsys.readouterr().err
    assert f"learns from it, going on from environment step {counters.env_steps:,}, in" in told


def test_a_budget_that_one_round_goes_far_beyond_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"udrl toy-vector {FLAGS} --local --quiet --folder {tmp_path}/run --env-steps"
    assert door(main, [*flags.split(), "20"]) == 0
    told = capsys.readouterr().err
    assert "environment steps were played for a budget of 20: episodes are played to their" in told
    assert overrun_sentence(run_of("toy-vector", 1000), 1100) is None
    assert door(main, [*flags.split(), "10", "--resume"]) == 0
    assert "were played" not in capsys.readouterr().err, "this call has played nothing"
    several = configure("udrl", tasks=["toy-vector", "toy-image"], budget={"env_steps": 10})
    told = overrun_sentence(several, 5000)
    assert told is not None and told.endswith("at a time, at first 100 at random")


def test_ctrl_c_before_the_beginning_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(session: Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "begin", interrupted)
    words = (
        f"udrl toy-vector {FLAGS} --budget.env-steps 1000 --local --quiet --folder {tmp_path}/run"
    )
    assert main(words.split()) == 130
    assert capsys.readouterr().err == "stopped before the run began\n"
    assert not (tmp_path / "run").exists()


def test_an_extended_budget_goes_on_from_a_finished_run(tmp_path: Path) -> None:
    first = train_local(run_of("toy-vector", 1500), tmp_path)
    more = train_local(run_of("toy-vector", 3000), tmp_path, resume=True)
    assert more["env_steps"] >= 3000 > first["env_steps"]
    assert more["learner_steps"] > first["learner_steps"]


def test_a_finished_run_that_is_resumed_comes_to_the_same_and_adds_nothing(
    undamaged: Path, tmp_path: Path
) -> None:
    """As after a kill between its last checkpoint and the removal of the one before the last
    two."""
    folder = Path(shutil.copytree(undamaged / "whole", tmp_path / "whole"))
    (folder / "summary.json").unlink()
    (folder / "weights" / "last.safetensors").unlink()
    saves = [path.name for path in checkpoint.complete_checkpoints(folder / "checkpoints")]
    shutil.copytree(folder / "checkpoints" / saves[0], folder / "checkpoints" / "save-000001")
    train_local(run_of("toy-vector", 4000), folder, resume=True)
    same_run(undamaged, folder)
    assert [path.name for path in checkpoint.complete_checkpoints(folder / "checkpoints")] == saves
    summaries = [
        json.loads((path / "summary.json").read_text()) for path in (undamaged / "whole", folder)
    ]
    assert summaries[0]["return_mean"] == summaries[1]["return_mean"]


def test_a_run_from_before_its_preset_said_more_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its run.json knows of no standardisation; the preset of its task has it today."""
    folder = tmp_path / "run"
    flags = ["--algorithm.warm-up-episodes", "5", "--algorithm.hidden", "8"]
    flags += ["--algorithm.n-updates-per-iter", "2", "--evaluations.final-episodes", "2"]
    words = ["udrl", "toy-vector", "--local", "--quiet", "--folder", str(folder), *flags]
    begun = ["--preset", "none", "--budget.env-steps", "60"]
    assert door(main, [*words, *begun]) == 0
    before = json.loads((folder / "run.json").read_text())
    assert before["algorithm"].pop("standardise") is False
    (folder / "run.json").write_text(json.dumps(before))
    longer = [*words, "--resume", "--budget.env-steps", "400"]
    assert door(main, [*longer, "--algorithm.standardise", "true"]) == 2, "that is another run"
    assert door(main, longer) == 0
    assert not read_run(folder).algorithm.standardise
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] >= 400
