"""Drawing ahead: same bits, never past a fit or the end of a bout; errors and signals come out."""

import dataclasses
import gc
import os
import signal
import threading

import numpy as np
import pytest
from making import played, same_arrays, small, soon, stored

from bigdm_ray.algorithms.base import find_algorithm
from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.envs import find_task
from bigdm_ray.replay import EpisodeId, Mixture, Store
from bigdm_ray.replay.rotating import RotatingStore
from bigdm_ray.training import prefetch
from bigdm_ray.training.config import configure
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights
from bigdm_ray.training.prefetch import AGAIN, BLOCK, BLOCKS, PrefetchTrial

TASK = "toy-mixed"
SIGNATURE = find_task(TASK).signature()


def learner_of(algorithm=None, names=(TASK,), **more):
    return Learner(algorithm or small(Udrl), dict.fromkeys(names, SIGNATURE), 3, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("store"), TASK, 40)


@pytest.fixture
def always(monkeypatch):
    """Everything that may be drawn ahead is."""
    monkeypatch.setattr(PrefetchTrial, "prefetch_next", True)


class Watched:
    """A source in front of a store: it notes which thread draws for a step, and may act first."""

    def __init__(self, store, before=lambda step: None):
        self._store, self._before, self.drawn = store, before, []

    def draw(self, view, rng, size, rank=0, world=1, turn=0):
        self.drawn.append((turn, threading.current_thread().name.startswith("draw")))
        self._before(turn)
        return self._store.draw(view, rng, size, rank, world, turn)


@pytest.mark.parametrize(
    "name", ["udrl", "awr", "bail", pytest.param("dt", marks=pytest.mark.slow), "tt"]
)
def test_it_is_equal_bit_for_bit_over_bouts_fits_and_new_episodes(name, tmp_path, monkeypatch):
    more = {"envelope_steps": 5} if name == "bail" else {}

    def trained(way, folder):
        monkeypatch.setattr(PrefetchTrial, "prefetch_next", way)
        store, learner = stored(folder, TASK, 12), learner_of(small(find_algorithm(name), **more))
        metrics = []
        for number, steps in enumerate((4, 1, 0, 4)):
            metrics.append(learner.update({TASK: store}, steps).metrics)
            episode = store.episode(number)
            store.add([dataclasses.replace(episode, id=EpisodeId(1, 0, number))])
        return metrics, learner.state()

    (plain, state), (other, same) = (trained(way, tmp_path / str(way)) for way in (False, True))
    assert plain == other
    same_arrays(state, same)


def test_a_store_that_takes_turns_and_a_mixture_are_equal_too(store, tmp_path, monkeypatch):
    """Of two stores, of which one is drawn from twice as often, in a way of its own."""

    class Both(Udrl):
        def build(self, signatures):
            return super().build({TASK: signatures["b"]})

        def views(self, signatures, step):
            view = self.view(step)
            return {"a": view, "b": dataclasses.replace(view, weight="length")}

        def collate_several(self, windows):
            parts = [super(Both, self).collate({name: found}) for name, found in windows.items()]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    parts = Store(tmp_path / "b")
    for number in range(6):  # a shard each
        episodes = played(TASK, 4, number + 1).episodes
        ids = [EpisodeId(number, 0, i) for i in range(4)]
        parts.add([dataclasses.replace(e, id=i) for e, i in zip(episodes, ids, strict=True)])
    states = []
    for way in (False, True):
        monkeypatch.setattr(PrefetchTrial, "prefetch_next", way)
        sources = {"a": store, "b": RotatingStore(tmp_path / "b", 1, turn=2).open()}
        learner = learner_of(small(Both), names=("a", "b"), mixture=Mixture({"a": 1.0, "b": 2.0}))
        for steps in (4, 3):
            learner.update(sources, steps)
        states.append(learner.state())
    same_arrays(*states)


def test_a_run_in_lock_step_is_the_same_with_it(tmp_path, monkeypatch):
    """Of which every bout is drawn ahead, between rounds of new episodes and through a save."""
    flags = "--seed 3 --algorithm.hidden 8 --algorithm.batch-size 16 --evaluations.episodes 2"
    flags += " --algorithm.n-updates-per-iter 4 --evaluations.final-episodes 2 --budget.env-steps"
    run = configure("udrl", "toy-vector", [*flags.split(), "1200"])
    weights = []
    for way in (False, True):
        monkeypatch.setattr(PrefetchTrial, "prefetch_next", way)
        summary = train_local(run, tmp_path / str(way))
        assert summary["learner_steps"] > 8
        weights.append(Weights.load(tmp_path / str(way) / "weights" / "last.safetensors").arrays)
    same_arrays(*weights)


def test_nothing_is_drawn_ahead_of_a_fit_or_past_the_end_of_a_bout(store, always):
    events = []

    class Fitted(Udrl):
        def fits(self, step):
            return step % 4 == 0

        def fit(self, model, stores, step):
            events.append(("fit", step))

    source = Watched(store, lambda step: events.append(("draw", step)))
    learner = learner_of(small(Fitted))
    learner.update({TASK: source}, 6)
    assert [step for kind, step in events if kind == "draw"] == list(range(6))
    learner.update({TASK: source}, 5)
    assert events.index(("fit", 4)) < events.index(("draw", 4))
    assert events.index(("fit", 8)) < events.index(("draw", 8))
    here = [step for step, in_thread in source.drawn if not in_thread]
    assert here == [0, 4, 6, 8]  # the others were drawn in the thread


def test_nothing_is_drawn_ahead_where_episodes_are_noted_first(tmp_path, always):
    """BAIL's selection is made by a fit: its first policy step is not drawn before."""
    algorithm = small(find_algorithm("bail"), envelope_steps=3)
    store, learner = stored(tmp_path, TASK, 12), learner_of(algorithm)
    assert not learner._ready({TASK: store}, 0)
    learner.update({TASK: store}, 2)
    assert learner._ready({TASK: store}, 2) and not learner._ready({TASK: store}, 3)
    store.add([dataclasses.replace(store.episode(0), id=EpisodeId(1, 0, 0))])
    assert not learner._ready({TASK: store}, 2)


def test_what_is_raised_in_the_thread_comes_out_at_its_step_and_the_learner_goes_on(store, always):
    def broken(step):
        if step == 3 and not mended:
            raise ValueError("no step may be drawn")

    mended = []
    source, learner, plain = Watched(store, broken), learner_of(), learner_of()
    with pytest.raises(ValueError, match="no step may be drawn"):
        learner.update({TASK: source}, 6)
    assert learner.step == 3 and source.drawn[-1] == (3, True)
    mended.append(True)
    learner.update({TASK: source}, 3)
    plain.update({TASK: store}, 6)
    same_arrays(plain.state(), learner.state())


def test_an_error_of_a_step_waits_for_the_thread_and_forgets_its_draw(store, always):
    began, go = threading.Event(), threading.Event()

    class Failing(Udrl):
        def loss(self, model, batch, step):
            if step == 1 and not go.is_set():
                assert began.wait(60)
                threading.Timer(0.05, go.set).start()
                raise ValueError("of the step")
            return super().loss(model, batch, step)

    def slowly(step):
        if step == 2 and not go.is_set():
            began.set()
            assert go.wait(60)

    source, learner = Watched(store, slowly), learner_of(small(Failing))
    with pytest.raises(ValueError, match="of the step"):
        learner.update({TASK: source}, 6)
    assert go.is_set() and learner.step == 1
    learner.update({TASK: source}, 2)
    assert [step for step, _ in source.drawn] == [0, 1, 2, 1, 2]


def test_a_signal_while_the_learner_waits_for_the_thread_is_raised(store, always):
    def stop(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)

    source, learner = Watched(store, stop), learner_of()
    with pytest.raises(KeyboardInterrupt):
        learner.update({TASK: source}, 4)
    assert learner.step <= 2 and source.drawn[-1] == (2, True)


def test_the_thread_ends_with_the_learner(store, always):
    def there():
        return {thread for thread in threading.enumerate() if thread.name.startswith("draw")}

    before, learner = there(), learner_of()
    learner.update({TASK: store}, 3)
    assert len(there() - before) == 1
    learner.update({TASK: store}, 3)
    assert len(there() - before) == 1
    del learner
    gc.collect()
    assert soon(lambda: not there() - before, 60)


# --- whether it pays


def steps_of(trial, count, plain=1.0, with_thread=1.0, drawing=0.3):
    """Take steps as the learner does; in which of them the next one was drawn ahead."""
    ways, before = [], False
    for _ in range(count):
        begun = trial.prefetch_next
        way = begun if begun == before else None
        trial.note(way, with_thread if begun else plain, 0.0 if before else drawing)
        ways.append(begun)
        before = begun
    return ways


@pytest.mark.parametrize(
    ("with_thread", "drawing", "tried", "kept"),
    [
        (0.8, 0.3, True, True),
        (1.2, 0.3, True, False),
        (0.99, 0.3, True, False),
        (0.8, 0.02, False, False),
    ],
)
def test_the_faster_way_stays_and_is_tried_anew_later(with_thread, drawing, tried, kept):
    trial = PrefetchTrial()
    ways = steps_of(trial, BLOCK + AGAIN, 1.0, with_thread, drawing)
    assert any(ways[: BLOCK * (BLOCKS + 1)]) == tried and set(ways[-100:]) == {kept}
    if tried:  # what was the slower way is the faster one now
        ways = steps_of(trial, AGAIN, with_thread, 1.0, drawing)
        assert set(ways[-100:]) == {with_thread > 1}


def test_bouts_of_one_step_never_draw_ahead(store, monkeypatch):
    monkeypatch.setattr(prefetch, "SHARE", 0.0)
    monkeypatch.setattr(prefetch, "BLOCKS", 2)
    source, learner = Watched(store), learner_of()
    for _ in range(BLOCK * 3 + 2):
        learner.update({TASK: source}, 1)
    assert (
        not any(in_thread for _, in_thread in source.drawn)
        and not learner._prefetcher.trial.prefetch_next
    )


def test_every_task_has_the_one_view_unless_the_algorithm_says_otherwise():
    algorithm = small(Udrl)
    views = algorithm.views({"a": SIGNATURE, "b": SIGNATURE}, 5)
    assert views == {"a": algorithm.view(5), "b": algorithm.view(5)}
