"""Weights of others, in and out: `python -m bigdm_ray.weights COMMAND ...`.

    import SOURCE --task hopper --folder RUN --data DATASET   a Decision Transformer of Hugging Face
                                                              or of the original repository
    import SOURCE --task hopper --folder RUN --bins FILE      a Trajectory Transformer of the
                                                              original repository or of its cached
                                                              fork
    export RUN --folder OUT                                   a `dt` run in Hugging Face's layout
    pack RUN --folder OUT                                     what it takes to act, and a card, for
                                                              others to have

SOURCE is a folder with model.safetensors and config.json, a .safetensors file, or hf:OWNER/NAME on
the Hub. Only safetensors and JSON are read: a pickle is refused with the line that converts it. The
imported run evaluates like any other, and so do its pictures, but for those of the data that it
learned from, which an import without --data does not know. A `dt` run fine-tunes too
(`run dt TASK --from RUN`), where --data names its episodes; `tt` learns from datasets alone, and
goes on from no other run.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors

from bigdm_ray.algorithms.base import own_flags
from bigdm_ray.algorithms.dt import DecisionTransformer, Dt
from bigdm_ray.algorithms.tt import TrajectoryModel, Tt
from bigdm_ray.doors import Parser, door
from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError, install
from bigdm_ray.formats import checkpoints, decision_transformer, trajectory_transformer
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.exporting import write_folder_whole
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.shard import publish
from bigdm_ray.settings import convert
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Counters
from bigdm_ray.training.config import Run, external_run, origin_of, run_from_json
from bigdm_ray.training.loaded import load
from bigdm_ray.training.packing import pack
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder, save_weights

FOR = {
    "data": "dt",
    "statistics": "dt",
    "return_scale": "dt",
    "context": "dt",
    "target_return": "dt",
    "bins": "tt",
    "preset": "tt",
}
"""The flags of `import` that only one of the two networks has."""
OURS = ("heads", "return-scale", "context", "target-return")
"""Settings of an algorithm that `import` has a flag for; the others are read off the checkpoint."""
OWN = re.compile(r"--algorithm\.([a-z-]+)")
STATISTICS = ("embed_state.standardise.mean", "embed_state.standardise.std")


def import_weights(given: argparse.Namespace) -> int:
    """`import`: make a run folder. The names of the arrays tell which network they are of."""
    source = fetch_source(given.source)
    arrays, config = checkpoints.read_weights(source)
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{given.source} has numbers in {name} that are not finite: weights of a training"
                " that diverged, or a damaged file"
            )
    trajectory = trajectory_transformer.is_state_dict(arrays)
    for name, of in FOR.items():
        if getattr(given, name) is not None and of != ("tt" if trajectory else "dt"):
            raise UserError(
                f"{given.source} is a {'Trajectory' if trajectory else 'Decision'} Transformer,"
                f" which --{name.replace('_', '-')} is not for"
            )
    try:
        if trajectory:
            return import_trajectory(
                given, trajectory_transformer.from_published(given.source, arrays)
            )
        return import_decision(
            given, source, decision_transformer.from_hugging_face(given.source, arrays, config)
        )
    except UserError as error:
        raise type(error)(
            OWN.sub(
                lambda flag: f"--{flag[1]}" if flag[1] in OURS else f"{given.source}'s {flag[1]}",
                str(error),
            )
        ) from None


def import_decision(
    given: argparse.Namespace,
    source: Path,
    found: decision_transformer.DecisionTransformerCheckpoint,
) -> int:
    """A run folder of a Decision Transformer. Raises UserError where it does not fit the task."""
    task = find_task(given.task)
    signature = task.signature()
    fits(given.source, found, given.task, signature)
    heads = convert(int, given.heads or str(found.heads or 1), "heads")
    if found.heads is not None and heads != found.heads:
        raise UserError(
            f"--heads is {heads}, but the config.json of {given.source} says {found.heads}; leave"
            " it out"
        )
    settings = {
        "width": found.width,
        "layers": found.layers,
        "heads": heads,
        "timesteps": found.timesteps,
        **decision_transformer.settings_beside(source),
    }
    settings |= {
        name: value
        for name in ("return_scale", "context", "target_return")
        if (value := getattr(given, name)) is not None
    }
    dataset = Dataset.open(given.data) if given.data else None
    run = external_run(Dt, given.task, "none", own_flags(settings))
    if dataset is not None:
        if dataset.task != task.name:
            raise UserError(
                f"--data {given.data} is of {dataset.task}, but these weights are for {task.name}"
            )
        run = run_from_json(run.to_json() | {"dataset": origin_of(dataset)})
    statistics = given.statistics or (
        decision_transformer.statistics_beside(source) if dataset is None else None
    )
    weights = complete(run, found, signature, dataset, statistics)
    target = run.algorithm.evaluation_command(dataset.store().table) if dataset else {}
    if given.target_return is not None:
        target = {"desired_return": convert(float, given.target_return, "target_return")}
    publish_run(given.folder, run, weights, target)
    asked = "" if target else " --desired-return R"
    print(
        f"{given.folder}: width {found.width}, {found.layers} layers, {heads} heads; score it with:"
        f" python -m bigdm_ray.evaluate {given.folder}{asked}"
    )
    if dataset is None and statistics is None:
        print(
            "its states are not standardised: give --data or --statistics where it was trained on"
            " standardised ones"
        )
    return 0


def import_trajectory(
    given: argparse.Namespace, found: trajectory_transformer.TrajectoryTransformerCheckpoint
) -> int:
    """A run folder of a Trajectory Transformer, which plans as the task's preset says.

    Raises UserError where it does not fit the task.
    """
    if given.bins is None:
        raise UserError(
            f"{given.source} holds no thresholds of its tokens: --bins FILE is expected;"
            f" {trajectory_transformer.PAGE} has the lines that write it"
        )
    heads = convert(int, given.heads or "4", "heads")
    sizes = {
        "width": found.width,
        "layers": found.layers,
        "heads": heads,
        "bins": found.bins,
        "window": found.window,
        "stop": found.stop,
    }
    sizes["context"] = min(Tt.context, found.window)
    run = external_run(Tt, given.task, given.preset, own_flags(sizes))
    signature = find_task(given.task).signature()
    leaves = (*signature.observations.values(), *signature.actions.values())
    if not all(leaf.kind == "tensor" for leaf in leaves):
        raise UserError(
            f"{given.source} sees and acts with numbers alone, which {given.task} does not: a task"
            " of numbers is expected"
        )
    model = run.algorithm.build({run.task: signature})
    assert isinstance(model, TrajectoryModel)
    if found.dims != model.net.dims:
        shown = (
            f"{model.seen.width} of the state, {model.acted.width} of the action, reward and value"
        )
        raise UserError(
            f"{given.source} has transitions of {found.dims} tokens, but those of {given.task} have"
            f" {model.net.dims}: {shown}"
        )
    thresholds = trajectory_transformer.thresholds(given.bins)
    if thresholds.shape != (found.dims, found.bins + 1):
        raise UserError(
            f"--bins {given.bins} holds {list(thresholds.shape)} thresholds, but {found.dims} rows"
            f" of {found.bins + 1} are expected"
        )
    weights = Weights(
        (0, 1), found.arrays | {"bins.edges": trajectory_transformer.edges(thresholds)}
    )
    weights.into(model)
    publish_run(given.folder, run, weights, {})
    print(
        f"{given.folder}: width {found.width}, {found.layers} layers, {heads} heads; score it with:"
        f" python -m bigdm_ray.evaluate {given.folder} --episodes 1"
    )
    return 0


def publish_run(folder: Path, run: Run, weights: Weights, target: dict[str, float]) -> None:
    """A run folder that has these weights at learner step 1: whole, or not at all.

    Before that step a run fits what it fits. Raises UserError where the folder is taken, RunFailed
    where the disk does not take it.
    """
    RunFolder(folder).require_vacant()
    with write_folder_whole(folder) as hidden:
        home = RunFolder(hidden).claim(run, False, exact=True)
        try:
            for which in ("last", "best"):
                save_weights(home, which, weights, target, None)
            learner = {f"model/{name}": values for name, values in weights.arrays.items()}
            checkpoint.write(
                home.checkpoints,
                Counters(learner_step=1),
                [],
                0,
                learner,
                {"": np.zeros((0, 3), np.int64)},
                run.identity,
            )
        finally:
            home.release()
        RunFolder(folder).free()


def fetch_source(source: str) -> Path:
    """Where a source lies on this machine; from the Hub the two files alone. Raises UserError."""
    if not source.startswith("hf:"):
        return Path(source)
    try:
        from huggingface_hub import list_repo_files, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise UserError(
            f"hf: sources need the package huggingface_hub; install it with: {install('datasets')}"
        ) from None
    name = source.removeprefix("hf:")
    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
        pickles = (
            []
            if (folder / "model.safetensors").is_file()
            else sorted(
                file for file in list_repo_files(name) if file.endswith(checkpoints.PICKLES)
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{source} cannot be downloaded ({str(error).splitlines()[0]}); see its name and your"
            " connection"
        ) from None
    if pickles:
        raise UserError(f"{source} holds {pickles[-1]}, {checkpoints.SCRIPT}")
    return folder


def fits(
    source: str,
    found: decision_transformer.DecisionTransformerCheckpoint,
    task: str,
    signature: Signature,
) -> None:
    """Raise UserError where a checkpoint's shapes are not those of the task."""
    actions = list(signature.actions.values())
    bounded = all(
        set(leaf.low or ()) == {-1.0} and set(leaf.high or ()) == {1.0} for leaf in actions
    )
    if not all(leaf.kind == "tensor" for leaf in actions) or not bounded:
        raise UserError(
            f"{source} acts between -1 and 1, which {task} does not: a task with such actions is"
            " expected"
        )
    seen, acted = (
        sum(leaf.size for leaf in signature.observations.values()),
        sum(leaf.size for leaf in actions),
    )
    if (found.seen, found.acted) != (seen, acted):
        raise UserError(
            f"{source} reads {found.seen} numbers and acts with {found.acted}, but {task} shows"
            f" {seen} and takes {acted}"
        )


def complete(
    run: Run,
    found: decision_transformer.DecisionTransformerCheckpoint,
    signature: Signature,
    dataset: Dataset | None,
    statistics: Path | None,
) -> Weights:
    """The checkpoint's arrays with the statistics of the states: those of the data, those given, or
    none. Raises UserError."""
    model = run.algorithm.build({run.task: signature})
    if dataset is not None:
        run.learned_algorithm.fit(model, {run.task: dataset.store()}, 0)
    arrays = {
        name: value.numpy() for name, value in model.state_dict().items() if name in STATISTICS
    }
    if statistics is not None:
        try:
            given = read_json(statistics)
            with np.errstate(over="ignore"):  # told below, as not finite
                arrays = {
                    name: np.array(given[key], np.float32).reshape(found.seen)
                    for name, key in zip(STATISTICS, ("mean", "std"), strict=True)
                }
            if not all(np.isfinite(values).all() for values in arrays.values()):
                raise ValueError("not all are finite")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{statistics} is not {{"mean": [...], "std": [...]}} with {found.seen} numbers'
                f" each ({error})"
            ) from None
    # step 1: what a run fits before its first step is there
    weights = Weights((0, 1), found.arrays | arrays)
    weights.into(model)
    return weights


def export_weights(given: argparse.Namespace) -> int:
    """`export`: a folder that Hugging Face's `DecisionTransformerModel.from_pretrained` loads, and
    the statistics beside it."""
    loaded = load(given.run, given.which)
    algorithm, model = loaded.run.algorithm, loaded.model
    if not isinstance(algorithm, Dt) or not isinstance(model, DecisionTransformer):
        raise UserError(
            f"{given.run} is of {algorithm.name}; only dt has a layout that others read"
        )
    if algorithm.critic:
        raise UserError(
            f"{given.run} predicts returns in place of being told them (--algorithm.critic), which"
            " Hugging Face's Decision Transformer does not"
        )
    plain = algorithm.positions == "timesteps" and algorithm.returns == "each"
    if not plain or algorithm.stochastic or model.embed_state.images.width:
        raise UserError(
            f"{given.run} is a Decision Transformer with a stochastic policy, other positions,"
            " no tokens for returns, or images, which Hugging Face's has not"
        )
    fits(
        str(given.run),
        decision_transformer.DecisionTransformerCheckpoint({}, 0, 0, 0, 0, *sizes(model)),
        loaded.run.task,
        loaded.signature,
    )
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    out, config = decision_transformer.to_hugging_face(
        arrays, algorithm.heads, algorithm.dropout, algorithm.context
    )
    try:
        given.folder.parent.mkdir(parents=True, exist_ok=True)
        taken = given.folder.exists() and any(given.folder.iterdir())
    except OSError as error:
        raise UserError(
            f"--folder {given.folder} cannot be made ({error.strerror}); choose another"
        ) from None
    if taken:
        raise UserError(f"--folder {given.folder} is not empty; choose another")
    named = dict(zip(("mean", "std"), (arrays[name].tolist() for name in STATISTICS), strict=True))
    statistics = {**named, "return_scale": algorithm.return_scale}
    with write_folder_whole(given.folder) as hidden:
        publish(hidden / "model.safetensors", save_safetensors(out, {"format": "pt"}))
        for name, told in (("config.json", config), ("statistics.json", statistics)):
            publish(hidden / name, json.dumps(told, indent=1).encode())
    print(
        f"{given.folder}: model.safetensors, config.json, and statistics.json (states are"
        f" standardised, returns scaled by {algorithm.return_scale:g})"
    )
    return 0


def pack_weights(given: argparse.Namespace) -> int:
    """`pack`: a small folder that `load` and `evaluate` open as they open a run's."""
    card = pack(given.run, given.folder, given.which, given.description)
    size = sum(file.stat().st_size for file in given.folder.rglob("*") if file.is_file())
    score = card["score"]
    print(
        f"{given.folder}: {card['algorithm']} on {card['task']}, {card['parameters']:,} parameters,"
        f" {size / 2**20:.2f} MiB, return {score['return_mean']:.1f} over"
        f" {score['return_episodes']} episodes"
    )
    return 0


def sizes(model: DecisionTransformer) -> tuple[int, int]:
    """Numbers that a network reads and acts with."""
    return model.embed_state.linear.in_features, model.embed_action.linear.in_features


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(
        prog="python -m bigdm_ray.weights",
        description="Weights of others, in and out.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=Parser, required=True
    )
    one = commands.add_parser(
        "import",
        help="a Decision or Trajectory Transformer checkpoint as a run folder",
        allow_abbrev=False,
    )
    one.add_argument(
        "source", metavar="SOURCE", help="a folder, a .safetensors file, or hf:OWNER/NAME"
    )
    one.add_argument("--task", required=True, help="the task it is for")
    one.add_argument("--folder", required=True, type=Path, help="the run folder to make")
    one.add_argument(
        "--data",
        type=Path,
        metavar="DATASET",
        help="dt: take the mean and deviation of states from this dataset",
    )
    one.add_argument(
        "--statistics",
        type=Path,
        metavar="FILE",
        help=(
            'dt: or from {"mean": [...], "std": [...]} as JSON (default: statistics.json beside it)'
        ),
    )
    one.add_argument(
        "--heads",
        help="attention heads, where there is no config.json (default: 1 for dt, 4 for tt)",
    )
    one.add_argument(
        "--return-scale", metavar="X", help="dt: factor on returns-to-go (default: 0.001)"
    )
    one.add_argument("--context", metavar="K", help="dt: steps that it looks back on (default: 20)")
    one.add_argument("--target-return", metavar="R", help="dt: return that evaluations ask for")
    one.add_argument(
        "--bins",
        type=Path,
        metavar="FILE",
        help='tt: thresholds of its tokens, {"thresholds": [[...], ...]} as JSON or safetensors',
    )
    one.add_argument(
        "--preset", metavar="NAME", help="tt: how it plans, a preset of the task (default: default)"
    )
    one.set_defaults(call=import_weights)
    two = commands.add_parser(
        "export", help="a dt run in Hugging Face's layout", allow_abbrev=False
    )
    two.add_argument("run", type=Path, metavar="RUN")
    two.add_argument("--folder", required=True, type=Path, help="the folder to make")
    two.add_argument(
        "--which", choices=("last", "best"), default="last", help="which weights (default: last)"
    )
    two.set_defaults(call=export_weights)
    three = commands.add_parser(
        "pack",
        help="run.json, summary, card and weights of a run that was scored, without its episodes",
        allow_abbrev=False,
    )
    three.add_argument("run", type=Path, metavar="RUN")
    three.add_argument("--folder", required=True, type=Path, help="the folder to make")
    three.add_argument(
        "--which", choices=("last", "best"), default="last", help="which weights (default: last)"
    )
    three.add_argument("--description", default="", metavar="TEXT", help="a sentence for the card")
    three.set_defaults(call=pack_weights)
    given = parser.parse(arguments)
    torch.set_num_threads(1)
    code: int = given.call(given)
    return code


if __name__ == "__main__":
    raise SystemExit(door(main))
