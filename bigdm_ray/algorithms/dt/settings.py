"""The hyperparameters of the Decision Transformer."""

from __future__ import annotations

from dataclasses import dataclass

from bigdm_ray.settings import setting


@dataclass(frozen=True)
class DtSettings:
    """The defaults are those of the paper's Gym experiments (appendix, table 9) and its code."""

    context: int = setting(20, "steps in a window (K)", low=1, high=100_000)
    acting_context: int = setting(
        0, "steps that the policy looks back on when it acts; 0: as many as in training", low=0
    )
    width: int = setting(128, "width of the transformer", low=1, high=65_536)
    layers: int = setting(3, "blocks of the transformer", low=1, high=1_000)
    heads: int = setting(1, "attention heads", low=1, high=65_536)
    dropout: float = setting(
        0.1,
        "share of activations and attention weights that are dropped in training",
        low=0,
        high=0.9,
    )
    positions: str = setting(
        "timesteps",
        "what tells tokens apart in time: the episode's step, as in Gym; place in the window and "
        "its first step, as in Atari; nothing, as in ODT",
        choices=("timesteps", "window", "none"),
    )
    timesteps: int = setting(
        1000,
        "steps of an episode that have an embedding; later ones share the last",
        low=1,
        high=10_000_000,
    )
    returns: str = setting(
        "each",
        "a token for the return-to-go of each step, or none: the newest one scales and shifts what "
        "the action is read from, so that sequences are a third shorter",
        choices=("each", "newest"),
    )
    frame_stack: int = setting(
        1, "frames of an image observation that make one state", low=1, high=64
    )
    whole_episodes: bool = setting(
        False,
        "windows begin at the first step of an episode, for contexts that hold whole episodes",
    )
    batch_size: int = setting(64, "windows drawn for one learner step", low=1, high=1_000_000)
    optimizer: str = setting("adamw", "AdamW, or LAMB as in ODT", choices=("adamw", "lamb"))
    learning_rate: float = setting(1e-4, "learning rate after the warm-up", above=0, high=1)
    weight_decay: float = setting(1e-4, "weight decay", low=0)
    decay_matrices_only: bool = setting(
        False, "whether weight decay spares biases, norms and embeddings, as in Atari"
    )
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", above=0, high=1)
    max_norm: float = setting(0.25, "norm that gradients are cut down to", above=0)
    warm_up_steps: int = setting(
        10_000, "learner steps over which the learning rate rises to its value", low=0
    )
    cosine_steps: int = setting(
        0,
        "learner step at which a cosine has brought the learning rate down to a tenth; 0 keeps it",
        low=0,
    )
    return_scale: float = setting(
        0.001,
        "fixed factor on returns-to-go; 0 hides them, which is cloning, as in the paper's Atari "
        "columns",
        low=0,
    )
    target_return: float | None = setting(
        None, "return that evaluations ask for; default: the best of the data", low=-1e9, high=1e9
    )
    critic: bool = setting(
        False,
        "predict at each state the return that is to come, in place of being told it (section "
        "5.5); the policy is then a clone",
    )
    delayed_reward: bool = setting(
        False,
        "pay all reward at the episode's end: the return-to-go is the whole return, and is held",
    )
    best_fraction: float = setting(
        1.0,
        "only the best episodes by return that hold at most this share of all time steps; at least "
        "one",
        above=0,
        high=1,
    )
    stochastic: bool = setting(
        False,
        "squashed Gaussian policy with a bound on its entropy, as in ODT; for continuous actions",
    )
    initial_temperature: float = setting(0.1, "weight of the entropy at the beginning", above=0)
    temperature_rate: float = setting(1e-4, "learning rate of that weight", above=0)
    cached: bool = setting(
        False, "keep keys and values when acting: faster, and exact only until the window slides"
    )
    explore_factor: float = setting(
        2.0, "online: the target return times this is asked for when exploring", above=0, high=1e6
    )
    replay_size: int = setting(1000, "online: episodes kept, the newest", low=1)
    warm_up_episodes: int = setting(
        20,
        "online: episodes of random actions before learning, where the run begins from nothing",
        low=1,
    )
    updates_per_episode: int = setting(300, "online: learner steps owed for an episode", low=1)
    episodes_per_iteration: int = setting(
        1, "online: episodes played between two bouts of learning", low=1
    )
