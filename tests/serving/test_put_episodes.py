"""Episodes from outside in a live run: durable once acknowledged, there once, counted."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from helpers_serving import Swallowing, free_port, loaded_of, serving
from making import played

import bigdm_ray
from bigdm_ray.algorithms.base import find_algorithm
from bigdm_ray.client import PolicyError, connect
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Store
from bigdm_ray.replay.episode import FOREIGN, EpisodeId
from bigdm_ray.run import main
from bigdm_ray.serving.sessions import Refused
from bigdm_ray.serving.settings import ServerSettings
from bigdm_ray.training import checkpoint
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.outside import Outside, RunOver

SMALL = (
    "--algorithm.hidden 8 --algorithm.batch-size 16 --algorithm.n-updates-per-iter 2"
    " --algorithm.warm-up-episodes 4 --algorithm.episodes-per-iteration 2 --budget.env-steps 400"
    " --evaluations.every 1000 --evaluations.final-episodes 1 --saves.every 200"
    " --rollouts.own false"
)
GUIDE = Path(bigdm_ray.__file__).parents[1] / "docs" / "serving.md"


def run_of(flags="", task="toy-vector", algorithm="udrl"):
    return bigdm_ray.configure(algorithm, task, [*SMALL.split(), *flags.split()])


def sent(count, client=9, first=0, task="toy-vector"):
    """Episodes of a client."""
    return [
        dataclasses.replace(episode, id=EpisodeId(client, FOREIGN, number))
        for number, episode in enumerate(played(task, count, seed=first).episodes, first)
    ]


def counters_of(folder):
    saved = checkpoint.complete_checkpoints(folder / "checkpoints")[-1]
    return json.loads((saved / "state.json").read_text())["counters"]


def feed(outside, episodes, task="toy-vector"):
    """Offer episodes from another thread; what became of each."""
    told = []

    def offer():
        for episode in episodes:
            try:
                outside.offer(task, episode).result(60)
                told.append("stored")
            except RunOver:
                told.append("over")

    thread = threading.Thread(target=offer)
    thread.start()
    return thread, told


def test_a_run_learns_from_what_others_play_alone(tmp_path):
    outside, episodes = Outside(), sent(60)
    thread, told = feed(outside, [*episodes[:20], *episodes[:20], *episodes[20:]])
    summary = train_local(run_of(), tmp_path / "run", outside=outside)
    thread.join(60)
    count = summary["episodes"]
    assert 0 < count < 60 and "over" in told
    assert told[: count + 20] == ["stored"] * (count + 20), "twenty came twice"
    assert summary["env_steps"] == sum(one.length for one in episodes[:count])
    assert summary["learner_steps"] == run_of().algorithm.owed(0, count)
    store = Store(tmp_path / "run" / "store").open()
    ids = [tuple(one) for one in store.table.ids.tolist()]
    assert ids == [(9, FOREIGN, number) for number in range(count)]
    assert counters_of(tmp_path / "run")["outside"] == {
        "9": {"arrived": count, "arrived_ahead": []}
    }


def test_what_was_counted_is_not_stored_again_though_its_shard_is_gone(tmp_path):
    """A small store has evicted it, a save has unlinked it, and the run was resumed."""
    run, folder = run_of("--algorithm.replay-size 3"), tmp_path / "run"
    episodes = sent(60)
    outside = Outside()
    thread, told = feed(outside, episodes)
    first = train_local(run, folder, outside=outside)
    thread.join(60)
    here = {tuple(one) for one in Store(folder / "store").open().table.ids.tolist()}
    counted = first["episodes"]
    gone = [one for one in episodes[:counted] if tuple(one.id) not in here]
    assert gone, "nothing is at stake"
    more = dataclasses.replace(run.budget, env_steps=first["env_steps"] + 1)
    outside = Outside()
    thread, told = feed(outside, [*gone, *episodes[counted:]])
    longer = dataclasses.replace(run, budget=more)
    second = train_local(longer, folder, resume=True, outside=outside)
    thread.join(60)
    assert told[: len(gone)] == ["stored"] * len(gone)
    assert second["episodes"] == counted + 1
    assert second["env_steps"] == first["env_steps"] + episodes[counted].length


def test_own_rollouts_and_those_of_others_are_counted_together(tmp_path):
    run = run_of("--rollouts.own true")
    outside, episodes = Outside(), sent(5)
    futures = [outside.offer("toy-vector", one) for one in episodes]
    summary = train_local(run, tmp_path / "run", outside=outside)
    assert all(future.result(0) is None for future in futures)
    table = Store(tmp_path / "run" / "store").open().table
    own = table.ids[:, 1] != FOREIGN
    assert (own.sum(), (~own).sum()) == (summary["episodes"] - 5, 5)
    assert summary["env_steps"] == table.lengths.sum()
    assert outside.told.weights.version[1] > 0


def test_several_tasks_take_episodes_each(tmp_path):
    flags = [*SMALL.split(), "--algorithm.warm-up-episodes", "2"]
    run = bigdm_ray.configure("udrl", flags=flags, tasks=["toy-vector", "toy-memory"])
    outside = Outside()
    for number in range(30):
        for task, client in (("toy-vector", 1), ("toy-memory", 2)):
            outside.offer(task, sent(1, client, number, task)[0])
    summary = train_local(run, tmp_path / "run", outside=outside)
    counters = counters_of(tmp_path / "run")
    assert summary["episodes"] == 60 and {*counters["outside"]} == {"1", "2"}
    assert {task: one["episodes"] for task, one in counters["tasks"].items()} == {
        "toy-vector": 30,
        "toy-memory": 30,
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("udrl toy-vector --local --rollouts.own false", "give --serve HOST:PORT"),
        ("udrl toy-vector --machines.lock-step true --serve 0", "leave one of them out"),
        ("ppo toy-vector --serve 0", "ppo is trained by another library"),
        ("udrl toy-vector --serve here", "HOST:PORT is expected"),
        ("udrl toy-vector --serve 0.0.0.0:0", "a token is expected"),
        ("udrl toy-vector --serve 0 --serve.max-episodes 0", "--serve.max-episodes is 0"),
        ("udrl toy-vector --serve 0 --serve.nonsense 0", "unknown setting serve.'nonsense'"),
        ("udrl toy-vector --serve.max-episodes 3", "is given without --serve HOST:PORT"),
    ],
)
def test_what_does_not_go_with_serving_is_one_sentence(words, why, tmp_path, capsys):
    folder = tmp_path / "run"
    assert door(main, [*words.split(), "--folder", str(folder), "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and why in said.err
    assert not folder.exists()


def test_a_server_without_a_run_takes_none():
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    with serving(loaded) as client:
        with pytest.raises(PolicyError, match="takes no episodes: no run learns there"):
            client.put(None)
        client.description.takes_episodes = True
        mine = client.start(record=True)
        mine(np.zeros(3))
        client.put(mine.episode(np.zeros(3), 1.0, True))
        with pytest.raises(PolicyError, match="no run learns here") as told:
            client.flush(60)
        assert told.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_refused_episode_is_told_and_the_others_are_stored():
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    with serving(loaded, takes=Swallowing()) as client:
        mine = client.start(record=True)
        mine(np.zeros(3))
        good = mine.episode(np.zeros(3), 1.0, True)
        bad = mine.episode(np.zeros(3), float("nan"), True)
        client.put(good)
        assert client.flush(60) == 1
        client.put(bad)
        with pytest.raises(PolicyError, match="its reward at step 0 is not finite"):
            client.flush(60)
        client.put(good)
        assert client.flush(60) == 2


def test_episodes_under_way_have_a_limit():
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    gate, entered = threading.Event(), []

    class Slow:
        async def put(self, task, episode):
            import asyncio

            entered.append(episode.id.number)
            await asyncio.to_thread(gate.wait, 60)
            if episode.id.number == 1:
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "not this one")

    with serving(loaded, takes=Slow(), max_episodes=2) as client:
        mine = client.start(record=True)
        mine(np.zeros(3))
        for _ in range(5):
            client.put(mine.episode(np.zeros(3), 1.0, True))
        with pytest.raises(PolicyError, match="5 episodes are not durable yet"):
            client.flush(0.3)
        assert entered == [0, 1]
        gate.set()
        with pytest.raises(PolicyError, match="not this one"):
            client.flush(60)
        assert client.flush(60) == 4


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.S)


@pytest.mark.slow
def test_the_loop_of_the_guide_fine_tunes_a_decision_transformer(tmp_path):
    """In another process, as the page has it, on a small run."""
    data = tmp_path / "data"
    small = "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 5"
    small += " --algorithm.batch-size 8"
    words = f"record --random cartpole --episodes 20 --seed 3 --folder {data} --quiet"
    from bigdm_ray.data import main as data_door

    assert door(data_door, words.split()) == 0
    before = bigdm_ray.configure(
        "dt", str(data), f"{small} --budget.learner-steps 20 --evaluations.episodes 1".split()
    )
    train_local(before, tmp_path / "before")
    (code,) = [block for block in blocks("python") if "client.put" in block]
    port = free_port()
    assert code.count("127.0.0.1:50051") == 1 and code.count("CartPole-v1") == 1
    script = tmp_path / "loop.py"
    script.write_text(code.replace("127.0.0.1:50051", f"127.0.0.1:{port}"))
    flags = f"{small} --rollouts.own false --algorithm.updates-per-episode 2"
    flags += " --budget.env-steps 250 --evaluations.every 1000 --evaluations.final-episodes 1"
    run = bigdm_ray.configure("dt", "cartpole", flags.split(), start=tmp_path / "before")
    played_by = []

    def play():
        until_there(port)
        played_by.append(subprocess.run([sys.executable, script], capture_output=True, text=True))

    thread = threading.Thread(target=play)
    thread.start()
    serve = ServerSettings(address=f"{port}")
    summary = bigdm_ray.train(run, tmp_path / "run", local=True, quiet=True, serve=serve)
    thread.join(120)
    assert played_by[0].returncode == 0, played_by[0].stderr
    told = played_by[0].stdout  # by the server, or where it was gone in the middle of a step
    # whichever comes first: what it puts, what it asks next, or the end of its stream
    ends = ("the run is over", "the server is about to end", "the server has ended")
    assert any(end in told for end in ends)
    assert summary["learner_steps"] == 20 + 2 * summary["episodes"]
    table = Store(tmp_path / "run" / "store").open().table
    sources = table.ids[:, 1] == FOREIGN
    assert (table.ids[sources, 0] > 0).sum() == summary["episodes"] > 0
    last = Store(tmp_path / "run" / "store").open().episode(len(table) - 1)
    assert last.source == "dt" and last.command["desired_return"] > 0
    assert last.version[1] > 20, "it was played by newer weights than the run began with"


def until_there(port):
    """Wait for a server."""
    import time

    until = time.monotonic() + 120
    while True:
        try:
            connect(f"127.0.0.1:{port}").close()
            return
        except PolicyError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
def test_a_killed_run_has_every_acknowledged_episode_once(kills, tmp_path):
    from tests.kills.outside import agrees, kill_and_count

    found = kill_and_count(tmp_path / "run", kills)
    assert agrees(found), found
    assert found["sent"] > kills


@pytest.mark.ray
def test_a_run_on_ray_takes_episodes_beside_its_own(tmp_path):
    flags = "--rollouts.own true --actors 1 --budget.env-steps 900"
    run, port = run_of(flags), free_port()
    done = []

    def play():
        until_there(port)
        env = find_task("toy-vector").env(None)
        with connect(f"127.0.0.1:{port}") as client:
            mine = client.start(record=True)
            try:
                for episode in range(10_000):
                    observation, _ = env.reset(seed=episode)
                    reward, ended = None, False
                    while not ended:
                        step = env.step(mine(observation, reward))
                        observation, reward, terminated, truncated, _ = step
                        ended = terminated or truncated
                    client.put(mine.episode(observation, reward, terminated))
                    done.append(client.flush(60))
                    mine.reset(newest=True)
            except PolicyError as error:
                done.append(str(error))

    thread = threading.Thread(target=play)
    thread.start()
    summary = bigdm_ray.train(run, tmp_path / "run", quiet=True, serve=f"{port}")
    thread.join(60)
    count = max(one for one in done if isinstance(one, int))
    table = Store(tmp_path / "run" / "store").open().table
    others = int((table.ids[:, 1] == FOREIGN).sum())
    assert others >= count > 0 and len(table) == summary["episodes"] > others
    assert summary["env_steps"] == table.lengths.sum()


def test_a_resumed_run_must_be_served_again(tmp_path, capsys):
    outside, folder = Outside(), tmp_path / "run"
    thread, _ = feed(outside, sent(60))
    train_local(run_of(), folder, outside=outside)
    thread.join(60)
    with pytest.raises(UserError, match="give --serve HOST:PORT"):
        train_local(run_of(), folder, resume=True)
    words = ["--resume", "--folder", str(folder), "--local", "--quiet"]
    assert door(main, words) == 2
    assert "give --serve HOST:PORT" in capsys.readouterr().err
