"""What the tests of foreign libraries share: tiny runs through the doors, and trainers outside of a
run."""

import json

from making import played

from bigdm_ray.baselines.base import TrainerContext
from bigdm_ray.envs import find_task
from bigdm_ray.evaluate import main as evaluate
from bigdm_ray.formats.writer import Writer
from bigdm_ray.run import main as run
from bigdm_ray.training.loaded import load

FEW = ["--quiet", "--evaluations.episodes", "2", "--evaluations.final-episodes", "4"]


def trained(folder, text, *more):
    """The summary of a small run through the door."""
    assert run([*text.split(), "--folder", str(folder), *FEW, *more]) == 0
    return json.loads((folder / "summary.json").read_text())


def evaluated(folder, *more):
    """The content of evaluation.json, through the door."""
    assert evaluate([str(folder), "--episodes", "4", *more]) == 0
    return json.loads((folder / "evaluation.json").read_text())


def reports(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def context(task, seed=1, budget=1000, **more):
    return TrainerContext(find_task(task), seed, budget, "cpu", **more)


def built(algorithm, task, trainer):
    """Our network with what a trainer has trained."""
    from bigdm_ray.training.params import Weights

    model = algorithm.build({task: find_task(task).signature()})
    Weights((0, 0), trainer.weights()).into(model)
    return model.eval()


def whole(folder, name, steps):
    """Assert that a run folder is an ordinary one, and that it scores alike when it is opened
    again."""
    for part in (
        "run.json",
        "summary.json",
        "weights/last.safetensors",
        "weights/best.safetensors",
    ):
        assert (folder / part).is_file(), part
    assert list((folder / "tensorboard").iterdir()) and list(
        (folder / "checkpoints").glob("save-*/learner.safetensors")
    )
    assert not [
        path
        for path in folder.rglob("*")
        if path.suffix in (".pkl", ".pt", ".pth", ".zip", ".pickle")
    ]
    loaded = load(folder)
    assert (
        loaded.run.algorithm.name == name and loaded.version[1] == loaded.summary["learner_steps"]
    )
    last = [report for report in reports(folder) if "time/wall_s" in report][-1]
    assert last["time/learner_steps"] == loaded.summary["learner_steps"] > 0
    assert loaded.summary["env_steps" if loaded.run.dataset is None else "learner_steps"] >= steps
    assert [name for report in reports(folder) for name in report if name.startswith("train/")]
    first, again = evaluated(folder), evaluated(folder)
    assert first["returns"] == again["returns"] and len(first["returns"]) == 4
    return loaded


def dataset(folder, task, count, policy=None):
    """A dataset of episodes of a random (or given) policy."""
    writer = Writer(folder, {}, task, find_task(task).signature())
    writer.add(played(task, count, policy=policy).episodes)
    return writer.finish(folder.name, "made up", {})
