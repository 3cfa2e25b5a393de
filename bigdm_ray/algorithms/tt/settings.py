"""The hyperparameters of the Trajectory Transformer, those of its planner among them."""

from __future__ import annotations

from dataclasses import dataclass

from bigdm_ray.planning.sampling import SearchSettings
from bigdm_ray.settings import setting


@dataclass(frozen=True)
class TtSettings:
    """The defaults are the paper's table for planning."""

    bins: int = setting(100, "bins of each dimension", low=2, high=10_000)
    discretiser: str = setting(
        "quantile",
        "bins that hold equally many values, or that are equally wide",
        choices=("quantile", "uniform"),
    )
    window: int = setting(10, "transitions of a training window", low=2)
    width: int = setting(128, "width of the transformer", low=1, high=65_536)
    layers: int = setting(4, "blocks of the transformer", low=1)
    heads: int = setting(4, "attention heads of each block", low=1)
    positions: str = setting(
        "learned",
        "an embedding of each place, or rotary: distances alone, faster plans",
        choices=("learned", "rotary"),
    )
    dropout: float = setting(
        0.1,
        "share of embeddings, residuals and attention that is dropped in training",
        low=0,
        high=0.9,
    )
    batch_size: int = setting(256, "windows drawn for one learner step", low=1, high=1_000_000)
    stop: bool = setting(
        True, "a stop token is learned behind terminations; without, a plan goes on for ever"
    )
    learning_rate: float = setting(6e-4, "AdamW's learning rate after the warm-up", above=0, high=1)
    weight_decay: float = setting(0.1, "decay of the weights of linear layers", low=0)
    max_norm: float | None = setting(1.0, "gradients are scaled down to this norm", above=0)
    warm_up_steps: int | None = setting(
        None,
        "learner steps over which the learning rate rises to its height; default: an epoch of the "
        "dataset",
        low=0,
    )
    decay_steps: int | None = setting(
        None,
        "learner steps of the cosine that follows, down to a tenth; 0 keeps the height; default: "
        "19 epochs",
        low=0,
    )
    discount: float = setting(0.99, "gamma of values and plans", low=0, high=1)
    action_weight: float = setting(5.0, "weight of action tokens in the loss", low=0)
    reward_weight: float = setting(1.0, "weight of reward tokens in the loss", low=0)
    value_weight: float = setting(1.0, "weight of value tokens in the loss", low=0)
    termination_penalty: float | None = setting(
        None,
        "reward that stands for that of a step at which the episode terminated; none leaves it",
    )
    observed: int = setting(
        0, "only the first so many elements of an observation are seen; 0 for all", low=0
    )
    cells: int = setting(4, "fields, along a side, that a picture is averaged over", low=1)
    letters: int = setting(16, "bytes of a text that are seen", low=1)
    goal: str = setting(
        "none",
        "the goal that is told: none, the episode's last state, or one drawn from the later ones; "
        "when acting, the observation's leaf `goal`",
        choices=("none", "last", "later"),
    )
    goal_steps: int = setting(
        0, "a later goal is reached within so many steps; 0 for any, to the episode's end", low=0
    )
    objective: str = setting(
        "reward",
        "what plan searches for: reward and reward-to-go, the likelihood (imitation), or to be "
        "soon at the goal",
        choices=("reward", "likelihood", "goal"),
    )
    context: int = setting(
        5, "transitions that the planner sees, the one being written included", low=2
    )
    horizon: int = setting(15, "transitions of a plan", low=1)
    beams: int = setting(128, "sequences that are kept at each transition", low=1)
    expansions: int = setting(2, "actions that are tried for each of them", low=1)
    k_obs: int = setting(
        1, "states are drawn from so many most likely tokens; 1 takes the most likely, 0 all", low=0
    )
    k_act: int = setting(20, "actions are drawn from so many most likely tokens; 0 for all", low=0)
    k_rew: int = setting(
        1, "rewards and values are drawn from so many most likely tokens; 0 for all", low=0
    )
    cdf_obs: float = setting(
        0.0,
        "the least likely state tokens that hold this probability together are not drawn",
        low=0,
        high=0.999,
    )
    cdf_act: float = setting(
        0.0,
        "the least likely action tokens that hold this probability together are not drawn",
        low=0,
        high=0.999,
    )
    expected_rewards: bool = setting(
        True, "plans are scored by the expected reward and value, not by those drawn"
    )

    @property
    def search(self) -> SearchSettings:
        """The settings of the planner."""
        return SearchSettings(
            self.horizon,
            self.beams,
            self.expansions,
            self.context,
            self.discount,
            self.k_obs,
            self.k_act,
            self.k_rew,
            self.cdf_obs,
            self.cdf_act,
            self.expected_rewards,
            self.objective == "goal",
        )
