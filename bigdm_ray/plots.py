"""Draw a run's learning curve and how well it obeys: `python -m bigdm_ray.plots FOLDER... [flags]`.

    python -m bigdm_ray.plots runs/udrl-lunarlander-*                            learning curves, a panel for each task
    python -m bigdm_ray.plots runs/udrl-lunarlander-1 --obedience                asked return against the return obtained
    python -m bigdm_ray.plots runs/udrl-lunarlander-1 --obedience --returns -300,0,100,200,250,300
    python -m bigdm_ray.plots runs/dt-key-to-door-1000-1 --attention             which earlier steps a transformer looks at
    python -m bigdm_ray.plots runs/tt-hopper-medium-1 --prediction               trajectories that a model predicts against the real ones

A learning curve is drawn from the evaluations in metrics.jsonl. Runs that differ in nothing but their seed are one line: the
mean over seeds with its 95 % bootstrap band, each seed interpolated linearly onto common steps; one seed alone carries the
95 % interval of its evaluation episodes. Obedience is Figure 6 of Srivastava et al. 2019: it plays episodes. Grey markers
are the values of that paper; a dotted line is the best return of the run's dataset. Attention is of one played episode, the mean over
layers and heads. A prediction is open loop: the Trajectory Transformer is told the first state and the actions of an episode of its
dataset, and goes on from what it predicted before (Janner, Li, Levine 2021, section 4.1). Each picture has its numbers beside it as
JSON; both go into plots/ of the first FOLDER.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdm_ray.algorithms.dt import DecisionTransformer, Dt
from bigdm_ray.algorithms.tt import TrajectoryModel, Tt
from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import RunFailed, UserError, nearest
from bigdm_ray.evaluate import MODES, command_of, policy_of, write_json
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.planning.beam import Planner
from bigdm_ray.settings import setting, to_json
from bigdm_ray.training.config import Run, read_run
from bigdm_ray.training.evaluation import bootstrap_interval, constant, play
from bigdm_ray.training.run_folder import Loaded, RunFolder, load, versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart."""
GREY = "#808080"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Published:
    """Values read off the figures of Srivastava et al. 2019 (arXiv 1912.02877), means over seeds."""

    curve: tuple[tuple[float, float], ...]  # (environment steps, return), Figures 4 and 5
    obedience: tuple[tuple[float, float], ...]  # (asked, obtained), Figure 6
    asked: tuple[float, ...]  # the returns that are asked for by default


_LANDER = (-300.0, -200.0, -100.0, 0.0, 100.0, 200.0, 250.0, 300.0)
PUBLISHED = {
    "lunarlander": Published(
        ((1e6, 1.5), (2e6, 50.0), (3e6, 77.0), (5e6, 118.0), (7e6, 126.0), (10e6, 141.0)),
        ((-300.0, -390.0), (0.0, -140.0), (100.0, 25.0), (200.0, 205.0), (250.0, 250.0), (300.0, 200.0)),
        _LANDER,
    ),
    "lunarlander-sparse": Published(
        ((0.5e6, 39.0), (1e6, 91.0), (2e6, 116.0), (5e6, 143.0), (10e6, 162.0)),
        ((-300.0, -150.0), (0.0, 22.0), (200.0, 155.0), (300.0, 230.0)),  # the seed that obeys; another hardly reacts
        _LANDER,
    ),
    "takecover": Published(
        ((1e6, 414.0), (5e6, 510.0), (10e6, 546.0)),
        ((0.0, 390.0), (400.0, 515.0), (800.0, 565.0)),
        (0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0),
    ),
}


# --- learning curves


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, ascending by environment steps."""

    folder: Path
    run: Run
    steps: np.ndarray  # [n] float64
    mean: np.ndarray  # [n] float64, of the evaluation's episodes
    low: np.ndarray  # [n] float64, 95 % interval of that mean
    high: np.ndarray


@dataclass(frozen=True)
class Line:
    """One line of a learning curve, from runs that differ in nothing but their seed."""

    label: str
    curves: list[Curve]
    steps: np.ndarray  # [n] float64, common to the runs
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The reports of a run's metrics.jsonl; a last line that is still being written is left out. Raises UserError."""
    if not (folder / "run.json").is_file():
        raise UserError(f"there is no run in {folder}: it holds no run.json")
    path = RunFolder(folder).metrics
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    reports: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            reports.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is not JSON ({error}); remove it and try again") from None
    return reports


def read_curve(folder: Path) -> Curve | None:
    """The learning curve of a run, None where nothing has been evaluated yet. Raises UserError."""
    names = ("time/env_steps", "evaluation/return_mean", "evaluation/return_low", "evaluation/return_high")
    rows = [[report[name] for name in names] for report in metrics_of(folder) if all(name in report for name in names)]
    if not rows:
        return None
    columns = np.array(sorted(rows), np.float64).T
    return Curve(folder, read_run(folder), *columns)


def settings_of(run: Run) -> dict[str, Any]:
    """What must be equal for two runs to be seeds of one line, beside algorithm, task and preset."""
    return {**to_json(run.algorithm), "mode": run.evaluations.mode}


def lines_of(curves: list[Curve]) -> dict[str, list[Line]]:
    """The lines of each task, in the order in which their first runs are given. Raises UserError."""
    groups: dict[tuple[str, str, str, str], list[Curve]] = {}
    for curve in curves:
        run = curve.run
        groups.setdefault((run.task, run.algorithm.name, run.preset, json.dumps(settings_of(run))), []).append(curve)
    found: dict[str, list[Line]] = {}
    for key, members in groups.items():
        others = [group[0].run for other, group in groups.items() if other[:3] == key[:3]]
        found.setdefault(key[0], []).append(line_of(members, label(members, others)))
    return found


def label(curves: list[Curve], others: list[Run]) -> str:
    """Algorithm, preset, what differs from `others` of the same preset, and the seeds."""
    run = curves[0].run
    mine = settings_of(run)
    differing = [name for name in mine if any(settings_of(other)[name] != mine[name] for other in others)]
    seeds = sorted({curve.run.seed for curve in curves})
    count = f"seed {seeds[0]}" if len(curves) == 1 else f"{len(curves)} {'seeds' if len(seeds) == len(curves) else 'runs'}"
    named = [f"preset {run.preset}"] if run.preset != "none" else []
    return ", ".join([run.algorithm.name, *named, *(f"{name} {mine[name]}" for name in differing), count])


def line_of(curves: list[Curve], text: str) -> Line:
    """The mean of the curves over the steps that all of them have reached, with its band. Raises UserError."""
    if len(curves) == 1:
        only = curves[0]
        return Line(text, curves, only.steps, only.mean, only.low, only.high)
    steps = common_steps(curves)
    values = np.stack([np.interp(steps, curve.steps, curve.mean) for curve in curves])
    low, high = bootstrap_interval(values)
    return Line(text, curves, steps, values.mean(0), low, high)


def common_steps(curves: list[Curve]) -> np.ndarray:
    """Steps from the latest first evaluation to the earliest last one, as many as the longest curve has. Raises UserError."""
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if first > 1.1 * last:
        late = max(curves, key=lambda curve: float(curve.steps[0]))
        raise UserError(f"{late.folder} is first evaluated at {first:,.0f} steps, after another seed's last evaluation at {last:,.0f}; draw them apart")
    return np.linspace(first, last, max(len(curve.steps) for curve in curves)) if first < last else np.array([last])


def draw_curves(lines: dict[str, list[Line]]) -> Figure:
    """Learning curves, a panel for each task."""
    figure, panels = panelled(len(lines), 6.4, 4.2)
    for axes, (task, here) in zip(panels, lines.items(), strict=True):
        for number, line in enumerate(here):
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(line.steps, line.mean, color=colour, label=line.label, marker="o" if len(line.steps) < 2 else None)
        reach = max(float(line.steps[-1]) for line in here)
        published = [point for point in PUBLISHED[task].curve if point[0] <= 1.05 * reach] if task in PUBLISHED else []
        mark(axes, published, "UDRL, Srivastava et al. 2019 (digitised)")
        axes.set_xlim(0, 1.05 * reach)
        label_axes(axes, task, "environment steps", "mean return of an evaluation")
        axes.xaxis.set_major_formatter(thousands())
    over = {"seeds (bootstrap)" if len(line.curves) > 1 else "the episodes of an evaluation" for here in lines.values() for line in here}
    figure.supxlabel(f"band: 95 % interval of the mean over {', or over '.join(sorted(over, reverse=True))}", fontsize=9, color=GREY)
    return figure


def curves_json(lines: dict[str, list[Line]]) -> dict[str, Any]:
    """The numbers of the learning curves."""

    def one(line: Line) -> dict[str, Any]:
        runs = {"folders": [str(curve.folder) for curve in line.curves], "seeds": [curve.run.seed for curve in line.curves]}
        numbers = {"env_steps": line.steps, "return_mean": line.mean, "return_low": line.low, "return_high": line.high}
        return {"label": line.label, **runs, **{name: values.tolist() for name, values in numbers.items()}}

    return {"schema_version": SCHEMA_VERSION, "tasks": {task: [one(line) for line in here] for task, here in lines.items()}}


# --- obedience


@dataclass(frozen=True)
class Sweep:
    """What is played for the obedience picture."""

    returns: tuple[float, ...] = setting((), "returns to ask for, joined by commas; default: from the task's low to its highest", low=-1e9, high=1e9)
    episodes: int = setting(20, "episodes for each return", low=1, high=100_000)
    mode: str = setting("own", "how the policy acts; own: as in the run's own evaluations", choices=MODES)
    weights: str = setting("last", "which weights", choices=("last", "best"))
    seed: int | None = setting(None, "seed of environments and actions; default: the run's", low=0, high=2**31 - 1)


def default_returns(loaded: Loaded) -> tuple[float, ...]:
    """Nine returns from what random episodes get to what the task can pay (the paper's for its tasks). Raises UserError."""
    task = loaded.task
    if task.name in PUBLISHED:
        return PUBLISHED[task.name].asked
    reports = metrics_of(loaded.folder)
    played = [report["play/return_mean"] for report in reports if "play/return_mean" in report]
    scored = [report["evaluation/return_max"] for report in reports if "evaluation/return_max" in report]
    low = task.reference_returns[0] if task.reference_returns else min(played, default=math.nan)
    high = task.max_return if task.max_return is not None else max(scored, default=math.nan)
    if not low < high:
        raise UserError(f"what {task.name} pays is not known from {loaded.folder}; give --returns, as in --returns 0,50,100")
    return tuple(float(f"{value:.3g}") for value in np.linspace(low, high, 9))


def sweep(loaded: Loaded, asked: Sweep) -> dict[str, Any]:
    """Play the episodes of a sweep; its numbers. Raises UserError, and RunFailed where a return's episodes all fail."""
    if not loaded.run.algorithm.commands:
        raise UserError(f"{loaded.run.algorithm.name} takes no command, so {loaded.folder} has no obedience to draw")
    policy, mode = policy_of(loaded, asked.mode)
    seed = loaded.run.seed if asked.seed is None else asked.seed
    commands = [command_of(loaded, value) for value in sorted(set(asked.returns or default_returns(loaded)))]
    count = len(commands) * asked.episodes
    columns = {name: np.repeat(np.array([command[name] for command in commands], np.float32), asked.episodes) for name in commands[0]}
    print(f"playing {count:,} episodes of {loaded.run.task}", file=sys.stderr)
    played = play(policy, loaded.task, columns, count, seed, "obedience", 0)
    obtained: list[list[float]] = [[] for _ in commands]
    for episode in played.episodes:
        obtained[episode.id.number // asked.episodes].append(episode.total_return)
    if not all(obtained):
        raise RunFailed(f"no episode of {loaded.run.task} could be played to its end for one of the returns: {played.problems[0]}")
    return {
        "folder": str(loaded.folder),
        "algorithm": loaded.run.algorithm.name,
        "task": loaded.run.task,
        "preset": loaded.run.preset,
        "run_seed": loaded.run.seed,
        "weights": asked.weights,
        "version": list(loaded.version),
        "mode": mode,
        "seed": seed,
        "data_best": data_best(loaded),
        "points": [point(command, np.array(returns)) for command, returns in zip(commands, obtained, strict=True)],
        "versions": versions(),
    }


def dataset_of(run: Run) -> Dataset | None:
    """The dataset that a run learned from, where it still lies there."""
    if run.dataset is None or not (Path(run.dataset.folder) / CARD).is_file():
        return None
    return Dataset.open(Path(run.dataset.folder))


def data_best(loaded: Loaded) -> float | None:
    """The best return of the dataset that a run, or the one that it started from, learned from."""
    before = loaded.run.start
    dataset = dataset_of(read_run(Path(before.folder)) if before and (Path(before.folder) / "run.json").is_file() else loaded.run)
    return None if dataset is None else float(dataset.store(0).table.returns.max())


def point(command: dict[str, float], returns: np.ndarray) -> dict[str, Any]:
    """One point of a sweep."""
    return {**command, "return_mean": float(returns.mean()), "return_std": float(returns.std()), "return_episodes": len(returns), "returns": returns.tolist()}


def draw_obedience(sweeps: list[dict[str, Any]]) -> Figure:
    """Asked return against obtained return, a panel for each run."""
    figure, panels = panelled(len(sweeps), 5.4, 5.0)
    for axes, here in zip(panels, sweeps, strict=True):
        asked, mean, spread = (np.array([p[name] for p in here["points"]]) for name in ("desired_return", "return_mean", "return_std"))
        low, high = asked.min(), asked.max()
        axes.plot([low, high], [low, high], color=GREY, linewidth=1.2, linestyle="--", label="obtained = asked")
        text = f"mean ± std of {here['points'][0]['return_episodes']} episodes"
        axes.errorbar(asked, mean, spread, color=COLOURS[0], marker="o", markersize=5, capsize=3, elinewidth=1.2, label=text)
        if here.get("data_best") is not None:
            axes.axvline(here["data_best"], color=GREY, linewidth=1.2, linestyle=":", label="best of the data")
        published = PUBLISHED[here["task"]].obedience if here["task"] in PUBLISHED else ()
        mark(axes, [pair for pair in published if low <= pair[0] <= high], "UDRL, Srivastava et al. 2019 (digitised)")
        label_axes(axes, f"{here['algorithm']} on {here['task']}, seed {here['run_seed']}", "desired return", "return obtained")
    return figure


# --- attention


def look(loaded: Loaded, asked: Sweep) -> dict[str, Any]:
    """Play episodes, take the best, and see which steps each of its steps looked at. Raises UserError for a policy without attention."""
    model, algorithm = loaded.model, loaded.run.algorithm
    if not isinstance(model, DecisionTransformer) or not isinstance(algorithm, Dt) or algorithm.frame_stack > 1:
        raise UserError(f"the {algorithm.name} policy of {loaded.folder} has no attention over single observations to draw; a dt run is expected")
    policy, mode = policy_of(loaded, asked.mode)
    seed = loaded.run.seed if asked.seed is None else asked.seed
    command = command_of(loaded, asked.returns[0] if asked.returns else None)
    print(f"playing {asked.episodes:,} episodes of {loaded.run.task}", file=sys.stderr)
    played = play(policy, loaded.task, constant(command, asked.episodes), asked.episodes, seed, "attention", 0)
    if not played.episodes:
        raise RunFailed(f"no episode of {loaded.run.task} could be played to its end: {played.problems[0]}")
    best = max(played.episodes, key=lambda episode: episode.total_return)
    last = slice(max(0, best.length - algorithm.context), best.length)
    told = np.float32(command["desired_return"]) - np.concatenate([[0], np.cumsum(best.rewards)[:-1] * (not algorithm.delayed_reward)])
    seen, acted = ({p: torch.from_numpy(np.array(v[last]))[None] for p, v in leaves.items()} for leaves in (best.observations, best.actions))
    times = torch.arange(last.start, last.stop)[None]
    with torch.no_grad():
        found = model.attention(seen, acted, torch.from_numpy(told[last].astype(np.float32))[None], times)
    return {
        "folder": str(loaded.folder),
        "task": loaded.run.task,
        "run_seed": loaded.run.seed,
        "mode": mode,
        "seed": seed,
        "command": command,
        "return": best.total_return,
        "first_step": last.start,
        "rewards": best.rewards[last].tolist(),
        "attention": found[:, 0].mean((0, 1)).tolist(),  # [looking step][step looked at]
        "versions": versions(),
    }


def draw_attention(looks: list[dict[str, Any]]) -> Figure:
    """Steps against the steps that they look at, a panel for each run."""
    figure, panels = panelled(len(looks), 6.2, 5.0)
    for axes, here in zip(panels, looks, strict=True):
        values, first = np.array(here["attention"]), here["first_step"]
        end = first + len(values)
        shown = np.ma.masked_array(values, np.triu(np.ones_like(values), 1) > 0)
        image = axes.imshow(shown, origin="lower", extent=(first, end, first, end), cmap="viridis", vmax=float(np.quantile(values[values > 0], 0.995)))
        figure.colorbar(image, ax=axes, label="share of attention")
        axes.grid(visible=False)
        axes.set_title(f"{here['task']}, seed {here['run_seed']}: an episode of return {here['return']:.3g}")
        axes.set_xlabel("step looked at")
        axes.set_ylabel("step that acts")
    return figure


# --- prediction

STEPS = 100
"""Steps that are predicted: those of the paper's figure of long horizons."""
SHOWN = 4
"""Elements of the state that are drawn."""


def predict(loaded: Loaded, asked: Sweep) -> dict[str, Any]:
    """What the model predicts of some episodes of the run's dataset, and what really happened: numbers of the picture.

    Each of `asked.episodes` starts is a step drawn from those that STEPS more follow, or from the longest episodes' beginnings where there is none.
    Errors are root mean squares over the elements of the state, each in units of its standard deviation over the dataset; `still` is the
    error of a prediction that nothing moves. Raises UserError for a run that is no tt run, or whose dataset is gone.
    """
    model, algorithm, dataset = loaded.model, loaded.run.algorithm, dataset_of(loaded.run)
    if not isinstance(model, TrajectoryModel) or not isinstance(algorithm, Tt):
        raise UserError(f"the {algorithm.name} policy of {loaded.folder} predicts no states to draw; a tt run is expected")
    if dataset is None:
        origin = loaded.run.dataset
        raise UserError(f"the dataset that {loaded.folder} learned from does not lie at {origin.folder if origin else 'any place'} any more; put it there")
    store = dataset.store()
    seed = loaded.run.seed if asked.seed is None else asked.seed
    steps = min(STEPS, int(store.table.lengths.max()))
    chance = np.random.default_rng(seed)
    where = np.flatnonzero(store.table.lengths >= steps)
    free = store.table.lengths[where] - steps + 1
    drawn = np.sort(chance.choice(int(free.sum()), min(asked.episodes, int(free.sum())), replace=False))
    chosen = np.searchsorted(np.cumsum(free), drawn, side="right")
    begins = drawn - (np.cumsum(free) - free)[chosen]
    states, actions, goals = [], [], []
    for position, begin in zip(where[chosen].tolist(), begins.tolist(), strict=True):
        episode = store.episode(position)
        seen = {path: torch.from_numpy(np.array(values[begin : begin + steps + 1])) for path, values in episode.observations.items()}
        acted = {path: torch.from_numpy(np.array(values[begin : begin + steps])) for path, values in episode.actions.items()}
        states.append(model.seen.rows(seen))
        actions.append(model.acted.rows(acted))
        last = {path: torch.from_numpy(np.array(values[-1])) for path, values in episode.observations.items()}
        goals.append(model.states(last))
    real, bins, width = torch.stack(states), model.bins, model.seen.width
    tokens = bins.encode(torch.stack(actions), slice(width, width + model.acted.width))
    planner = Planner(model.net, bins, width, model.acted.width, dataclasses.replace(algorithm.search, context=algorithm.window))
    past = tokens.new_zeros(len(real), 0, model.net.dims)
    found = planner.follow(past, bins.encode(real[:, 0], slice(0, width)), tokens, torch.stack(goals) if model.asked is not None else None)
    told = bins.decode(found, slice(0, width)).numpy()
    truth = real[:, 1:].numpy()
    spread = truth.reshape(-1, width).std(0)
    moving = np.flatnonzero(spread > 0)

    def error(guess: np.ndarray) -> list[float]:
        apart = ((guess - truth)[..., moving] / spread[moving]) ** 2
        return [float(value) for value in np.sqrt(apart.mean((0, 2)))]

    shown = moving[:: max(1, -(-len(moving) // SHOWN))][:SHOWN]
    return {
        "folder": str(loaded.folder),
        "task": loaded.run.task,
        "run_seed": loaded.run.seed,
        "seed": seed,
        "version": list(loaded.version),
        "starts": [[int(p), int(b)] for p, b in zip(where[chosen], begins, strict=True)],  # [position of the episode in the dataset, step]
        "elements": shown.tolist(),
        "real": truth[0][:, shown].T.tolist(),  # of the first start: [element][step]
        "predicted": told[0][:, shown].T.tolist(),
        "error": error(told),  # [step]
        "still": error(np.broadcast_to(real[:, :1].numpy(), truth.shape)),
        "versions": versions(),
    }


def draw_prediction(predictions: list[dict[str, Any]]) -> Figure:
    """Real and predicted elements of the state, and the error by step: a row of panels for each run."""
    from matplotlib.figure import Figure

    across = max(len(here["elements"]) for here in predictions) + 1
    figure = Figure(figsize=(3.8 * across, 3.2 * len(predictions)), layout="constrained")
    for row, here in enumerate(predictions):
        steps = np.arange(1, len(here["error"]) + 1)
        for column, element in enumerate(here["elements"]):
            axes = figure.add_subplot(len(predictions), across, row * across + column + 1)
            axes.plot(steps, here["real"][column], color=GREY, label="real")
            axes.plot(steps, here["predicted"][column], color=COLOURS[0], label="predicted")
            label_axes(axes, f"{here['task']}: element {element} of the state", "steps ahead", "")
        axes = figure.add_subplot(len(predictions), across, row * across + len(here["elements"]) + 1)
        axes.plot(steps, here["still"], color=GREY, linestyle="--", label="nothing moves")
        axes.plot(steps, here["error"], color=COLOURS[0], label=f"predicted, {len(here['starts'])} starts")
        label_axes(axes, f"seed {here['run_seed']}: error", "steps ahead", "standard deviations")
    return figure


# --- drawing


def panelled(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of this size in inches, at most three in a row."""
    from matplotlib.figure import Figure

    across = min(count, 3)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, number + 1) for number in range(count)]


def mark(axes: Axes, points: list[tuple[float, float]], text: str) -> None:
    """Draw published values as thin grey markers."""
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, linestyle="none", marker="D", markersize=5, markerfacecolor="none", markeredgecolor=GREY, markeredgewidth=1, label=text)


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, legend."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc="best")


def thousands() -> Any:
    """Ticks as 250k and 1.5M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


# --- the door


def target(out: Path | None, first: Path, name: str) -> Path:
    """The picture's file: --out itself where it ends as a picture does, NAME.png in it, or in plots/ of the first folder. Raises UserError."""
    kinds = [".png", ".pdf", ".svg"]
    folder = out or first / "plots"
    path = folder / f"{name}.png"
    if out is not None and out.suffix and not out.is_dir():
        if out.suffix.lower() not in kinds:
            raise UserError(f"--out {out} ends in {out.suffix}, but a folder or one of {', '.join(kinds)} is expected{nearest(out.suffix, kinds)}")
        path = out
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be made ({error.strerror}); give another --out") from None
    return path


def write(figure: Figure, numbers: dict[str, Any], path: Path) -> None:
    """Write the picture, and its numbers beside it as JSON. Raises RunFailed."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror}; make its folder writable or free some space") from None
    write_json(path.with_suffix(".json"), numbers)
    print(f"picture: {path}, its numbers: {path.with_suffix('.json')}")


def learning(folders: list[Path], out: Path | None) -> None:
    """Draw the learning curves of run folders. Raises UserError where none of them has been evaluated."""
    import matplotlib

    read = {folder: read_curve(folder) for folder in folders}
    curves = [curve for curve in read.values() if curve is not None]
    if not curves:
        raise UserError("none of these runs has been evaluated yet, so there is no curve; wait, or train with a smaller --evaluations.every")
    for folder in (folder for folder, curve in read.items() if curve is None):
        print(f"note: {folder} has not been evaluated yet and is left out", file=sys.stderr)
    path = target(out, folders[0], "learning_curve")
    lines = lines_of(curves)
    with matplotlib.rc_context(STYLE):
        write(draw_curves(lines), curves_json(lines), path)
    for task, here in lines.items():
        for line in here:
            print(f"  {task}: {line.label}: {line.mean[-1]:,.1f} ({line.low[-1]:,.1f} to {line.high[-1]:,.1f}) at {line.steps[-1]:,.0f} steps")


Numbers = list[dict[str, Any]]


def pictured(
    folders: list[Path], out: Path | None, asked: Sweep, name: str, key: str, of: Callable[[Loaded, Sweep], dict[str, Any]], draw: Callable[[Numbers], Figure]
) -> Numbers:
    """Take the numbers of each run folder and draw them together as the picture `name`; the numbers, which lie beside it under `key`."""
    import matplotlib

    runs = [load(folder, asked.weights) for folder in folders]
    path = target(out, folders[0], name)
    found = [of(loaded, asked) for loaded in runs]
    with matplotlib.rc_context(STYLE):
        write(draw(found), {"schema_version": SCHEMA_VERSION, key: found}, path)
    return found


def obedience(folders: list[Path], out: Path | None, asked: Sweep) -> None:
    """Play and draw the sweeps of run folders. Raises UserError and RunFailed."""
    for here in pictured(folders, out, asked, "obedience", "sweeps", sweep, draw_obedience):
        for p in here["points"]:
            print(f"  {here['task']}, seed {here['run_seed']}: asked {p['desired_return']:,.1f}, obtained {p['return_mean']:,.1f} +- {p['return_std']:,.1f}")


def attention(folders: list[Path], out: Path | None, asked: Sweep) -> None:
    """Draw what the transformers of run folders look at. Raises UserError and RunFailed."""
    pictured(folders, out, asked, "attention", "looks", look, draw_attention)


def prediction(folders: list[Path], out: Path | None, asked: Sweep) -> None:
    """Draw what the models of run folders predict of their datasets. Raises UserError and RunFailed."""
    for here in pictured(folders, out, asked, "prediction", "predictions", predict, draw_prediction):
        first, last, count = here["error"][0], here["error"][-1], len(here["error"])
        print(f"  {here['task']}, seed {here['run_seed']}: error {first:.3f} after 1 step, {last:.3f} after {count} (standard deviations of the data)")


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(
        prog="python -m bigdm_ray.plots", description="Draw learning curves, obedience to commands, attention, or predicted trajectories.", allow_abbrev=False
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="run folders; those that differ in nothing but their seed are one line")
    parser.add_argument("--out", metavar="X", type=Path, help="folder or file (.png, .pdf, .svg); default: plots/ in the first FOLDER")
    parser.add_argument(
        "--obedience", action="store_true", help="draw asked return against obtained return; the flags below belong to this and the pictures that follow"
    )
    parser.add_argument("--attention", action="store_true", help="draw which earlier steps a Decision Transformer looks at in the best of some episodes")
    parser.add_argument("--prediction", action="store_true", help="draw the trajectories that a tt run predicts against the real ones of its dataset")
    parser.add_settings(Sweep)
    given = parser.parse(arguments)
    asked = parser.settings(Sweep, given)
    folders = list({folder.resolve(): folder for folder in given.folders}.values())
    pictures = {"obedience": obedience, "attention": attention, "prediction": prediction}
    wanted = [name for name in pictures if getattr(given, name)]
    if len(wanted) > 1:
        raise UserError(f"--{wanted[0]} and --{wanted[1]} are two pictures; ask for one of them")
    if wanted:
        pictures[wanted[0]](folders, given.out, asked)
    elif asked != Sweep():
        raise UserError("--returns, --episodes, --mode, --weights and --seed belong to other pictures; give --obedience, --attention or --prediction too")
    else:
        learning(folders, given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(door(main))
