"""Extrapolation: what a policy's values promise of its own actions against what they bring.

A critic that is trained on a dataset alone is never told what an action that the data lack would
bring; a policy that follows it prefers the actions that it overrates. So each step of some played
episodes is a point: Q(s, a) of the policy's action against the discounted return that followed.
Beside them stand steps of the dataset, which the critic has seen. For a policy that is told a
return there is no critic of actions: it is the return that it predicts (`dt --algorithm.critic
true`), or the one that it is still asked for.

Where a time limit cut an episode off, its return is known in part: its last steps are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdm_ray.algorithms.base import CriticValues, Memoryless, Policy
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    Picture,
    SweepFlags,
    dataset_of,
    label_axes,
    make_panels,
    make_picture,
    returns_asked,
)
from bigdm_ray.progress import say
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.returns import discounted_returns
from bigdm_ray.training import checkpoint
from bigdm_ray.training.acting import command_of, policy_of, report_head
from bigdm_ray.training.evaluation import constant, play
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.run_folder import RunFolder, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 2000
"""Steps of a kind that are drawn; means are over all."""
EPISODES = 50
"""Episodes of the dataset whose steps stand beside, at most."""
UNKNOWN = 0.05
"""What a reward behind a time limit may count at most for a step to be drawn."""


@dataclass(frozen=True)
class ReturnForecasts:
    """Steps of some episodes: what was promised at each and what followed."""

    promised: np.ndarray  # [m] float64
    obtained: np.ndarray  # [m] float64

    def numbers(self, chance: np.random.Generator) -> dict[str, Any]:
        """Means over all steps, and some of them to draw."""
        shown = chance.permutation(len(self.promised))[:SHOWN]
        return {
            "steps": len(self.promised),
            "promised_mean": float(self.promised.mean()),
            "obtained_mean": float(self.obtained.mean()),
            "promised_too_much": float((self.promised > self.obtained).mean()),
            "promised": self.promised[shown].tolist(),
            "obtained": self.obtained[shown].tolist(),
        }


def known_returns(episode: Episode, discount: float) -> tuple[np.ndarray, np.ndarray]:
    """The discounted return from each step `[T]`, and which steps `[T]` bool it is known of.

    The first step counts always: an episode may be too short for any other.
    """
    length = episode.length
    returns = discounted_returns(episode.rewards, np.array([length]), discount).astype(np.float64)
    unknown = discount ** (length - np.arange(length, dtype=np.float64))
    known = unknown <= max(UNKNOWN, float(unknown[0]))
    return returns, known | episode.terminated | (discount == 1)


def tensors(leaves: Mapping[str, np.ndarray], steps: slice = slice(None)) -> dict[str, Any]:
    """Leaves as tensors of their own memory."""
    return {path: torch.from_numpy(np.array(values[steps])) for path, values in leaves.items()}


@torch.no_grad()
def values_along(judge: CriticValues, episode: Episode) -> np.ndarray:
    """Q(s, a) of the steps of an episode `[T]` float64."""
    seen = tensors(episode.observations, slice(0, episode.length))
    values: np.ndarray = judge.values(seen, tensors(episode.actions)).double().numpy()
    return values


def mean_policy_value(
    judge: CriticValues, policy: Policy, episodes: list[Episode], chance: np.random.Generator
) -> float:
    """The mean Q of a policy's actions in the states of episodes that others have played."""
    values = []
    for episode in episodes:
        seen = {path: np.array(v[:-1]) for path, v in episode.observations.items()}
        n = episode.length
        uniforms = chance.random((n, policy.uniforms), np.float32)
        nothing, first = np.zeros(n, np.float32), np.ones(n, bool)
        acted, _ = policy.act(policy.start(n), seen, nothing, {}, first, uniforms)
        with torch.no_grad():
            values.append(judge.values(tensors(seen), tensors(acted)).double().numpy())
    return float(np.concatenate(values).mean())


def promises(
    value: Callable[[Episode], np.ndarray], episodes: list[Episode], discount: float, whole: bool
) -> ReturnForecasts:
    """The steps of episodes whose return is known; `whole`: what is promised is that of all."""
    promised, obtained = [], []
    for episode in episodes:
        returns, known = known_returns(episode, discount)
        if whole:
            returns = np.full(episode.length, episode.total_return)
        promised.append(value(episode)[known].astype(np.float64))
        obtained.append(returns[known])
    return ReturnForecasts(np.concatenate(promised), np.concatenate(obtained))


def compare(loaded: Loaded, asked: SweepFlags) -> dict[str, Any]:
    """Play episodes; what was promised at each step, and what followed: numbers of the picture.

    Raises UserError for a policy that values nothing, and RunFailed.
    """
    run, model, algorithm = loaded.run, loaded.model, loaded.run.algorithm
    policy, mode = policy_of(loaded, asked.mode)
    seed = run.seed if asked.seed is None else asked.seed
    if asked.returns and len(asked.returns) > 1:
        raise UserError(
            "--extrapolation draws episodes that are asked for one return, but --returns has "
            f"{len(asked.returns)}"
        )
    command = command_of(loaded, asked.returns[0] if asked.returns else None)
    dataset = dataset_of(run)
    store = None if dataset is None else dataset.store()

    def kept() -> Mapping[str, np.ndarray]:
        last = checkpoint.last_checkpoint(RunFolder(loaded.folder).checkpoints, run.identity)
        if asked.weights != "last" or last is None:
            raise UserError(
                f"the critics of {algorithm.name} lie in the last checkpoint of {loaded.folder}, "
                "which belongs to its last weights; leave --weights out, and keep checkpoints/"
            )
        return last.learner

    judge = algorithm.judge(model, store, kept)
    if judge is None and "desired_return" not in algorithm.commands:
        raise UserError(
            f"the {algorithm.name} policy of {loaded.folder} neither values actions nor is told a "
            "return; a run of bcq, bear, brac, cql, dcql, iql, sac, dt or udrl is expected"
        )
    expected = algorithm.return_estimator(model)
    say(f"playing {asked.episodes:,} episodes of {run.task}")
    commands = constant(command, asked.episodes)
    played = play(policy, loaded.task, commands, asked.episodes, seed, "extrapolation", 0)
    if not played.episodes:
        raise RunFailed(
            f"no episode of {run.task} could be played to its end: {played.problems[0]}"
        )

    def value(episode: Episode) -> np.ndarray:
        if judge is not None:
            return values_along(judge, episode)
        if expected is not None:
            return expected(episode)
        return returns_asked(policy, command, episode.rewards, loaded.task.max_return)

    discount = 1.0 if judge is None else judge.discount
    whole = algorithm.whole_returns
    own = promises(value, played.episodes, discount, whole)
    chance, data, elsewhere = np.random.default_rng(seed), None, None
    if store is not None and (judge is not None or expected is not None):
        which = chance.permutation(len(store.table))[:EPISODES]
        episodes = [store.episode(int(position)) for position in which]
        data = promises(value, episodes, discount, whole).numbers(chance)
        if judge is not None and isinstance(policy, Memoryless):
            elsewhere = mean_policy_value(judge, policy, episodes, chance)
    return {
        "folder": str(loaded.folder),
        "label": f"{algorithm.name}, {loaded.folder.name}",
        **report_head(loaded, asked.weights, mode, seed),
        "command": command,
        "promise": "Q(s, a)" if judge else "predicted return" if expected else "asked return",
        "discount": discount,
        "return_mean": float(np.mean([episode.total_return for episode in played.episodes])),
        "return_episodes": len(played.episodes),
        "own": own.numbers(chance),
        "data": data,
        "own_actions_in_data": elsewhere,  # mean Q of them; that of the data's is in `data`
        "versions": versions(),
    }


def draw_promises(found: list[dict[str, Any]]) -> Figure:
    """What was promised against what followed, a panel for each run."""
    figure, panels = make_panels(len(found), 4.8, 4.4)
    for axes, here in zip(panels, found, strict=True):
        kinds = [("data", "steps of the data", COLOURS[1]), ("own", "own actions", COLOURS[0])]
        ends = []
        for name, text, colour in kinds:
            if here[name] is not None:
                obtained, promised = here[name]["obtained"], here[name]["promised"]
                axes.scatter(
                    obtained,
                    promised,
                    s=5,
                    alpha=0.5,
                    color=colour,
                    rasterized=True,
                    label=f"{text}: {here[name]['promised_mean']:,.4g} promised, "
                    f"{here[name]['obtained_mean']:,.4g} followed",
                )
                ends += [min(obtained), max(obtained)]
        line = [min(ends), max(ends)]
        axes.plot(line, line, color=GREY, linestyle="--", linewidth=1.2, label="kept to the letter")
        of = "return" if here["discount"] == 1 else f"return, discount {here['discount']:g},"
        title = f"{here['label']}: return {here['return_mean']:,.4g}"
        label_axes(axes, title, f"{of} that followed", here["promise"])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), markerscale=2.5)
    return figure


def extrapolation(folders: list[Path], out: Path | None, asked: SweepFlags) -> None:
    """Play and draw what the values of runs promise and bring. Raises UserError and RunFailed."""
    found = make_picture(
        folders, out, asked, "extrapolation", "comparisons", compare, draw_promises
    )
    for here in found:
        print(f"  {here['label']}: {here['promise']}, mean return {here['return_mean']:,.1f}")
        for name, text in (("own", "own actions, played"), ("data", "actions of the data")):
            if here[name] is not None:
                told = here[name]
                print(
                    f"    {text:<22}promised {told['promised_mean']:,.2f}, "
                    f"followed {told['obtained_mean']:,.2f}, "
                    f"too much at {told['promised_too_much']:.0%} of {told['steps']:,} steps"
                )
        if here["own_actions_in_data"] is not None:
            print(f"    {'own actions, in data':<22}promised {here['own_actions_in_data']:,.2f}")


PICTURE = Picture(
    "extrapolation",
    "draw what critics (or predicted and asked returns) promise of a policy's own actions against "
    "what they bring",
    extrapolation,
    SweepFlags,
)
