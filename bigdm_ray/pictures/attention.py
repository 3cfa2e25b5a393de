"""Attention: which earlier steps a Decision Transformer looks at, in the best of some played
episodes; the mean over layers and heads.

It is one pass over the last steps that the policy looks back on, all of the episode where it is
shorter: the last row is what the last action was chosen by; a row before it sees the steps that the
picture begins with, where the policy then saw earlier ones too. Of a run with a critic
(`--algorithm.critic true`) the return that it predicts at each step is drawn over it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdm_ray.algorithms.dt import DecisionTransformer, Dt
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.pictures.base import Picture, SweepFlags, make_panels, make_picture, returns_asked
from bigdm_ray.progress import say
from bigdm_ray.training.acting import command_of, policy_of
from bigdm_ray.training.evaluation import constant, play
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.run_folder import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def observe_attention(loaded: Loaded, asked: SweepFlags) -> dict[str, Any]:
    """Play episodes, take the best, and see which steps each of its steps looked at.

    Raises UserError for a policy without attention.
    """
    model, algorithm = loaded.model, loaded.run.algorithm
    if (
        not isinstance(model, DecisionTransformer)
        or not isinstance(algorithm, Dt)
        or (algorithm.frame_stack > 1 and model.embed_state.images.width)
    ):
        raise UserError(
            f"the {algorithm.name} policy of {loaded.folder} has no attention over single"
            " observations to draw; a dt run is expected"
        )
    policy, mode = policy_of(loaded, asked.mode)
    seed = loaded.run.seed if asked.seed is None else asked.seed
    if asked.returns and len(asked.returns) > 1:
        raise UserError(
            "--attention draws episodes that are asked for one return, but --returns has"
            f" {len(asked.returns)}"
        )
    context = algorithm.acting_context or algorithm.context
    command = command_of(loaded, asked.returns[0] if asked.returns else None)
    say(f"playing {asked.episodes:,} episodes of {loaded.run.task}")
    played = play(
        policy, loaded.task, constant(command, asked.episodes), asked.episodes, seed, "attention", 0
    )
    if not played.episodes:
        raise RunFailed(
            f"no episode of {loaded.run.task} could be played to its end: {played.problems[0]}"
        )
    best = max(played.episodes, key=lambda episode: episode.total_return)
    last = slice(max(0, best.length - context), best.length)
    told = returns_asked(policy, command, best.rewards, loaded.task.max_return)
    seen, acted = (
        {p: torch.from_numpy(np.array(v[last]))[None] for p, v in leaves.items()}
        for leaves in (best.observations, best.actions)
    )
    times = torch.arange(last.start, last.stop)[None]
    shown = (seen, acted, torch.from_numpy(told[last])[None], times)
    with torch.no_grad():
        found = model.attention(*shown)
        predicted = (
            []
            if model.critic is None
            else (model.criticise(model.embed(*shown))[0] / algorithm.return_scale).tolist()
        )
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
        "predicted": predicted,  # return to come, where the run has a critic
        "attention": found[:, 0].mean((0, 1)).tolist(),  # [looking step][step looked at]
        "versions": versions(),
    }


def draw_attention(looks: list[dict[str, Any]]) -> Figure:
    """Steps against the steps that they look at, a panel for each run."""
    figure, panels = make_panels(len(looks), 6.2, 5.0)
    for axes, here in zip(panels, looks, strict=True):
        values, first = np.array(here["attention"]), here["first_step"]
        end = first + len(values)
        shown = np.ma.masked_array(values, np.triu(np.ones_like(values), 1) > 0)
        image = axes.imshow(
            shown,
            origin="lower",
            extent=(first, end, first, end),
            cmap="viridis",
            vmax=float(np.quantile(values[values > 0], 0.995)),
        )
        figure.colorbar(image, ax=axes, label="share of attention")
        axes.grid(visible=False)
        axes.set_title(
            f"{here['task']}, seed {here['run_seed']}: an episode of return {here['return']:.3g}"
        )
        if here["predicted"]:
            over = axes.twiny()
            over.plot(
                here["predicted"], np.arange(first, end) + 0.5, color="tab:red", linewidth=1.5
            )
            over.set_xlabel("predicted return to come (red)")
            over.grid(visible=False)
            axes.set_xlim(first, end)
        axes.set_xlabel("step looked at")
        axes.set_ylabel("step that acts")
    return figure


def attention(folders: list[Path], out: Path | None, asked: SweepFlags) -> None:
    """Draw what the transformers of run folders look at. Raises UserError and RunFailed."""
    make_picture(folders, out, asked, "attention", "looks", observe_attention, draw_attention)


PICTURE = Picture(
    "attention",
    "draw which earlier steps a Decision Transformer looks at in the best of some episodes",
    attention,
    SweepFlags,
)
