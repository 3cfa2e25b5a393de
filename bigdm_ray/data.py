"""Datasets and stored episodes: `python -m bigdm_ray.data COMMAND ...`.

    import SOURCE... --folder DATASET   from Minari (minari:mujoco/hopper/medium-v0, or a folder),
                                        D4RL, d3rlpy, npz, Parquet, LeRobot, RLlib, DQN
    export DATASET --to minari|parquet|steps --folder OUT
    record RUN --folder DATASET --episodes 100 --action-noise 0.1
            play a trained run; --random TASK plays at random
    record RUN --folder DATASET --steps 100000 --weights milestones
            from poor to good: every stage of its training
    experts SUITE[/TASK]... --folder ROOT --episodes 1000
            experts that are known (BabyAI's bot, Meta-World's policies, ...), or --from RUN; their
            poor episodes are left out
    merge DATASET... --folder DATASET   one after another
    vocabulary DATASET|FILE... --file FILE.model   pieces of words for `gato`
    list [FOLDER...]   show DATASET --plot
    verify DATASET|RUN|FOLDER   every byte of every shard, and a dataset's content hash

`import`, `record` and `experts` show a bar on a terminal, and go on where they were stopped when
the same command is given again. A shard that `verify` finds unsound is set aside as NAME.corrupt.
Exit codes: 0 all is well, 1 something is unsound or failed, 2 a mistake of the user.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigdm_ray.doors import Parser, door
from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.expert_data import expert_arguments
from bigdm_ray.formats.behaviour import OWN_OR_MODES, Behaviour
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.formats.verifying import strange_shards
from bigdm_ray.formats.writer import stamp, totals
from bigdm_ray.progress import Progress
from bigdm_ray.replay.shard import SUFFIX
from bigdm_ray.replay.store import verify
from bigdm_ray.vocabularies import vocabulary_arguments

if TYPE_CHECKING:
    from bigdm_ray.training.recording import RecordingRequest
from bigdm_ray.cards import BARS, card, count_noun, histogram, plot

OF_RUNS = ("weights", "mode", "action_noise", "epsilon", "desired_return", "desired_horizon")
"""Flags of `record` that a random policy does not understand; None where they are not given."""
MILESTONE_ROWS = 4
"""Episodes of a milestone that are played side by side: each gives few, and none is thrown away
half played."""


# --- import, merge, export


def run_import(given: argparse.Namespace) -> int:
    """`import`: print the card of what was made."""
    from bigdm_ray.formats.importing import import_dataset

    print(card(import_dataset(given.sources, given.folder, given.task, given.steps, given.quiet)))
    return 0


def run_merge(given: argparse.Namespace) -> int:
    """`merge`: datasets only, as one."""
    from bigdm_ray.formats.importing import import_dataset

    for folder in given.datasets:
        Dataset.open(folder)
    print(
        card(
            import_dataset(
                [str(folder) for folder in given.datasets],
                given.folder,
                given.task,
                given.steps,
                given.quiet,
            )
        )
    )
    return 0


def run_export(given: argparse.Namespace) -> int:
    """`export`: say what was written."""
    from bigdm_ray.formats.exporting import export_dataset

    dataset = Dataset.open(given.dataset)
    export_dataset(dataset, given.to, given.folder, given.quiet)
    print(
        f"{given.folder}: {count_noun(dataset.episodes, 'episode')} of {dataset.folder} as"
        f" {given.to}"
    )
    return 0


# --- record


def run_record(given: argparse.Namespace) -> int:
    """`record`: play, and print the card of what was made."""
    from bigdm_ray.training.recording import RecordingRequest, record
    from bigdm_ray.training.rollout import RandomPolicy

    if (given.run is None) == (given.random is None):
        raise UserError("give either the folder of a run, or --random TASK")
    if (given.episodes is None) == (given.steps is None):
        raise UserError("give either --episodes N or --steps N")
    if given.random is not None:
        refused = [flag for flag in OF_RUNS if getattr(given, flag) is not None]
        if refused:
            raise UserError(
                f"--{refused[0].replace('_', '-')} has no meaning for a random policy; leave it out"
            )
        task = find_task(given.random)
        asked = [
            RecordingRequest(
                RandomPolicy(task.signature()),
                task,
                "random",
                episodes=given.episodes,
                steps=given.steps,
                seed=given.seed,
            )
        ]
        source = f"uniformly random actions, seed {given.seed}"
    elif given.weights == "milestones":
        asked = milestones(given)
        source = (
            f"{count_noun(len(asked), 'milestone')} of the run {given.run}, from {asked[0].source}"
            f" on, seed {given.seed}"
        )
    else:
        asked = [
            recording_request(
                given, given.weights or "last", given.episodes, given.steps, given.seed
            )
        ]
        command = asked[0].command or {}
        source = f"{asked[0].source} of the run {given.run}, seed {given.seed}" + "".join(
            f", {n.replace('_', ' ')} {v:g}" for n, v in command.items()
        )
    if slow := asked[0].task.slow_reason():
        print(f"note: {slow}", file=sys.stderr)
    dataset, problems = record(asked, given.folder, source, given.quiet)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(card(dataset))
    return 0


def recording_request(
    given: argparse.Namespace,
    weights: str,
    episodes: int | None,
    steps: int | None,
    seed: int,
    stage: int | None = None,
) -> RecordingRequest:
    """What is to be recorded of a run with these weights."""
    from bigdm_ray.training.acting import command_of, policy_of
    from bigdm_ray.training.loaded import load
    from bigdm_ray.training.recording import ROWS, NoisyPolicy, RecordingRequest
    from bigdm_ray.training.run_folder import RunFolder
    from bigdm_ray.training.zoo import locate

    loaded, home = load(given.run, weights), locate(given.run)
    policy, mode = policy_of(loaded, given.mode or "own")
    sigma, epsilon = given.action_noise or 0.0, given.epsilon or 0.0
    noisy = NoisyPolicy(policy, loaded.signature, sigma, epsilon) if sigma or epsilon else policy
    command = command_of(loaded, given.desired_return, given.desired_horizon)
    who = str(Behaviour(f"{loaded.run.algorithm.name}-{weights}", mode, sigma, epsilon, stage))
    rows = ROWS if stage is None else MILESTONE_ROWS
    made_of = (
        sigma,
        epsilon,
        stamp(home / "run.json"),
        stamp(RunFolder(home).weights(weights)),
    )
    return RecordingRequest(
        noisy, loaded.task, who, loaded.version, command, episodes, steps, seed, rows, made_of
    )


def milestones(given: argparse.Namespace) -> list[RecordingRequest]:
    """A recording of each stage that a run has kept, the oldest first, with equal shares of the
    episodes or steps. Raises UserError."""
    from bigdm_ray.training.run_folder import RunFolder
    from bigdm_ray.training.streams import derived_seed
    from bigdm_ray.training.zoo import locate

    names = RunFolder(locate(given.run)).milestones()
    if not names:
        raise UserError(
            f"{given.run} has kept no milestones; train it with --saves.milestones true"
        )
    if given.episodes is not None and given.episodes < len(names):
        raise UserError(
            f"--episodes is {given.episodes}, but each of the {len(names)} milestones of"
            f" {given.run} needs one"
        )
    out = []
    for stage, name in enumerate(names):
        episodes, steps = (
            None if n is None else (stage + 1) * n // len(names) - stage * n // len(names)
            for n in (given.episodes, given.steps)
        )
        out.append(
            recording_request(
                given, name, episodes, steps, derived_seed(given.seed, "milestone", stage), stage
            )
        )
    return out


# --- list and show


def run_list(given: argparse.Namespace) -> int:
    """`list`: a line for each dataset in the folders and in the folders that they hold."""
    folders = given.folders or [Path("datasets"), Path()]
    missing = [folder for folder in given.folders if not folder.is_dir()]
    if missing:
        raise UserError(f"there is no folder {missing[0]}")
    places = [
        path
        for folder in folders
        if folder.is_dir()
        for path in (folder, *sorted(p for p in folder.iterdir() if p.is_dir()))
    ]
    found = list(dict.fromkeys(path for path in places if (path / CARD).is_file()))
    rows = [("dataset", "task", "episodes", "steps", "return mean", "std")]
    for path in found:
        try:
            one = Dataset.open(path)
            rows.append(
                (
                    str(path),
                    one.task,
                    f"{one.episodes:,}",
                    f"{one.steps:,}",
                    f"{one.return_mean:,.2f}",
                    f"{one.return_std:,.2f}",
                )
            )
        except UserError as error:
            print(error, file=sys.stderr)
    if not found:
        print(f"no datasets in {', '.join(str(folder) for folder in folders)}")
        return 0
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(
                f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
    return 0


def run_show(given: argparse.Namespace) -> int:
    """`show`: the card, how episodes ended, who acted, the returns."""
    dataset = Dataset.open(given.dataset)
    returns, lengths, terminated = dataset.returns()
    print(card(dataset))
    print(
        f"  {'ends':<18}{int(terminated.sum()):,} terminated, {int((~terminated).sum()):,}"
        " truncated"
    )
    print(
        f"  {'length':<18}{lengths.mean():,.1f} on average, {lengths.min():,} to {lengths.max():,}"
    )
    behaviours = {who or "not told": count for who, count in dataset.behaviours().items()}
    for number, (who, count) in enumerate(list(behaviours.items())[:BARS]):
        print(f"  {'' if number else 'who acted':<18}{who}: {count_noun(count, 'episode')}")
    if len(behaviours) > BARS:
        print(f"  {'':<18}and {len(behaviours) - BARS:,} more")
    print("\nreturns, episodes")
    print("\n".join(histogram(returns)))
    if given.plot:
        path = given.dataset / "returns.png"
        plot(dataset, returns, lengths, path)
        print(f"\nplot: {path}")
    return 0


# --- verify


def store_of(folder: Path) -> Path:
    """The folder that holds the shards: FOLDER/store of a run folder, else FOLDER. Raises UserError
    where there are none."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; a run folder, a dataset or a folder of shards is"
            " expected"
        )
    store = folder / "store" if (folder / "store").is_dir() else folder
    if not any(store.glob(f"*{SUFFIX}")):
        aside = len(list(store.glob(f"*{SUFFIX}.corrupt")))
        earlier = f" ({aside} were set aside as *{SUFFIX}.corrupt earlier)" if aside else ""
        raise UserError(
            f"{store} holds no shards{earlier}; a run folder, a dataset or a folder of *{SUFFIX}"
            " files is expected"
        )
    return store


def run_verify(given: argparse.Namespace) -> int:
    """`verify`: print a line for each problem and a summary; the exit code. Raises UserError."""
    store = store_of(given.folder)
    with Progress(f"verifying {store}", units=""):
        sound, episodes, problems, aside = verify(store)
    if (store / CARD).is_file():
        dataset = Dataset.open(store)
        problems += strange_shards(store, dataset.signature) + card_problems(dataset, episodes)
    elif (signature := played_signature(store.parent)) is not None:
        problems += strange_shards(store, signature)
    for problem in problems:
        print(problem)
    print(
        f"{store}: {count_noun(sound, 'sound shard')} with {count_noun(episodes, 'episode')},"
        f" {aside} set aside"
    )
    return 1 if problems else 0


def played_signature(folder: Path) -> Signature | None:
    """What the task of a run shows and takes; None where there is no run, or its task cannot be
    made."""
    if not (folder / "run.json").is_file():
        return None
    from bigdm_ray.training.config import read_run

    try:
        return find_task(read_run(folder).task).signature()
    except UserError:
        return None


def card_problems(dataset: Dataset, episodes: int) -> list[str]:
    """What the card of a dataset says that its content does not."""
    if episodes != dataset.episodes:
        return [
            f"{dataset.folder / CARD} says {dataset.episodes:,} episodes where {episodes:,} are"
            " sound; import the dataset anew"
        ]
    if (found := dataset.content_hash()) != dataset.sha256:
        return [
            f"{dataset.folder / CARD} says the content hash {dataset.sha256} where it is {found};"
            " import the dataset anew"
        ]
    returns, lengths, _ = dataset.returns()
    real = {"steps": int(lengths.sum()), **totals(returns)}
    wrong = [
        name
        for name, value in real.items()
        if not math.isclose(getattr(dataset, name), value, rel_tol=1e-9, abs_tol=1e-9)
    ]
    problems = [
        f"{dataset.folder / CARD} says {name} {getattr(dataset, name):g} where it is"
        f" {real[name]:g}; import the dataset anew"
        for name in wrong
    ]
    if why := dataset.misfit():
        problems.append(
            f"{dataset.folder / CARD} says the task {dataset.task}, but {why}; import the dataset"
            " anew"
        )
    return problems


# --- the command line


def parse_whole_number(text: str) -> int:
    """A whole number, at least 1, with thousands separated by underscores at will."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def seed(text: str) -> int:
    """A seed."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{value} is not an integer from 0 to 2147483647")
    return value


def share(text: str) -> float:
    """A probability."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} does not lie from 0 to 1")
    return value


def parse_amount(text: str) -> float:
    """A finite number, not below 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a finite number from 0 up")
    return value


def data_parser() -> Parser:
    """The commands and their flags."""
    parser = Parser(
        prog="python -m bigdm_ray.data",
        description="Datasets and stored episodes.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    imports = commands.add_parser(
        "import", help="make a dataset of foreign episodes", allow_abbrev=False
    )
    imports.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a file, a folder, or minari:NAMESPACE/NAME-v0; several are joined in this order",
    )
    imports.set_defaults(act=run_import)

    merge = commands.add_parser("merge", help="join datasets into one", allow_abbrev=False)
    merge.add_argument(
        "datasets", metavar="DATASET", nargs="+", type=Path, help="datasets, in this order"
    )
    merge.set_defaults(act=run_merge)

    for joins in (imports, merge):
        joins.add_argument(
            "--task",
            metavar="TASK",
            help=(
                "the task of the episodes, where the source does not say it; `none`: no environment"
            ),
        )
        joins.add_argument(
            "--steps",
            metavar="N",
            type=parse_whole_number,
            help="take of each source the first whole episodes that together reach N steps",
        )

    export = commands.add_parser(
        "export", help="write a dataset in a format that others read", allow_abbrev=False
    )
    export.add_argument("dataset", metavar="DATASET", type=Path, help="a dataset")
    export.add_argument(
        "--to",
        metavar="FORMAT",
        required=True,
        help="minari (HDF5), parquet (an episode a row) or steps (a step a row, for RLlib)",
    )
    export.set_defaults(act=run_export)

    records = commands.add_parser(
        "record", help="play a trained run, or at random, and keep the episodes", allow_abbrev=False
    )
    records.add_argument("run", metavar="RUN", nargs="?", type=Path, help="a run folder")
    records.add_argument(
        "--random", metavar="TASK", help="play this task with uniformly random actions instead"
    )
    records.add_argument(
        "--episodes", metavar="N", type=parse_whole_number, help="episodes to keep"
    )
    records.add_argument(
        "--steps",
        metavar="N",
        type=parse_whole_number,
        help="whole episodes until they reach N steps",
    )
    records.add_argument(
        "--action-noise",
        metavar="SIGMA",
        type=parse_amount,
        help="deviation of Gaussian noise, an action's box being [-1, 1] (default: 0)",
    )
    records.add_argument(
        "--epsilon",
        metavar="E",
        type=share,
        help="share of steps with a uniformly random action (default: 0)",
    )
    records.add_argument(
        "--mode",
        choices=OWN_OR_MODES,
        help="how the policy acts; own: as in the run's evaluations (default)",
    )
    records.add_argument(
        "--weights",
        choices=("last", "best", "milestones"),
        help="which weights; milestones: all that were kept (default: last)",
    )
    records.add_argument(
        "--desired-return",
        metavar="X",
        type=float,
        help="return to ask for; default: what the run's own evaluation asked for",
    )
    records.add_argument(
        "--desired-horizon",
        metavar="X",
        type=float,
        help="steps to ask for; default: what the run's own evaluation asked for",
    )
    records.set_defaults(act=run_record)

    experts = commands.add_parser(
        "experts", help="record experts of known tasks, a dataset a task", allow_abbrev=False
    )
    expert_arguments(experts, parse_whole_number)
    for plays in (records, experts):
        plays.add_argument(
            "--seed",
            metavar="S",
            type=seed,
            default=1,
            help="seed of environments and actions (default: 1)",
        )

    for makes in (imports, merge, export, records):
        makes.add_argument(
            "--folder", metavar="FOLDER", type=Path, required=True, help="the folder to make"
        )
    for shows in (imports, merge, export, records, experts):
        shows.add_argument("--quiet", action="store_true", help="no progress bar")

    pieces = commands.add_parser(
        "vocabulary", help="make the pieces of words that `gato` reads", allow_abbrev=False
    )
    vocabulary_arguments(pieces)

    lists = commands.add_parser("list", help="a line for each dataset", allow_abbrev=False)
    lists.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help="where to look; default: datasets and this folder",
    )
    lists.set_defaults(act=run_list)

    show = commands.add_parser(
        "show", help="card, ends, who acted, distribution of returns", allow_abbrev=False
    )
    show.add_argument("dataset", metavar="DATASET", type=Path, help="a dataset")
    show.add_argument("--plot", action="store_true", help="also write DATASET/returns.png")
    show.set_defaults(act=run_show)

    check = commands.add_parser(
        "verify",
        help="read every byte of every shard and set aside those that are not sound",
        allow_abbrev=False,
    )
    check.add_argument(
        "folder", metavar="FOLDER", type=Path, help="a run folder, a dataset, or a folder of shards"
    )
    check.set_defaults(act=run_verify)
    return parser


def main(arguments: list[str]) -> int:
    """The door."""
    given = data_parser().parse(arguments)
    code: int = given.act(given)
    return code


if __name__ == "__main__":
    raise SystemExit(door(main))
