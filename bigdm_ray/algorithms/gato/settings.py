"""The hyperparameters of the generalist."""

from __future__ import annotations

from dataclasses import dataclass

from bigdm_ray.settings import setting


@dataclass(frozen=True)
class GatoSettings:
    """The defaults are a network of less than 3 million parameters that two processor cores
    train."""

    input: str = setting(
        "leaves",
        "what is a token of an observation: a leaf of it, as a vector, or, as in the paper, an"
        " element",
        choices=("leaves", "tokens"),
    )
    context: int = setting(16, "steps in a window, at most", low=1, high=100_000)
    window_tokens: int = setting(
        512, "tokens of a window, at most; where a step has many, a window has fewer steps", low=1
    )
    mu_law: bool = setting(
        False,
        "whether elements that are tokens are squashed by mu-law, as in the paper, and not measured"
        " in deviations of the task's data",
    )
    text_pieces: int = setting(
        40, "pieces of a text that are read; what is longer is cut", low=1, high=100_000
    )
    width: int = setting(192, "width of the transformer", low=1, high=65_536)
    layers: int = setting(4, "blocks of the transformer", low=1, high=1_000)
    heads: int = setting(6, "attention heads", low=1, high=65_536)
    bins: int = setting(256, "bins of a continuous element of an action", low=2, high=65_536)
    elements: int = setting(
        64, "elements of a vector that make one token; a longer one makes several", low=1, high=4096
    )
    vocabulary: str = setting(
        "small",
        "SentencePiece vocabulary of missions and tasks' names: `small`, which is shipped,"
        " `mistral`, or a FILE.model",
    )
    feed_actions: bool = setting(
        False,
        "whether the actions of earlier steps are read; a policy that is shown them tends to"
        " repeat them",
    )
    prompts: float = setting(
        0.25,
        "share of sequences that begin with steps of another episode of the same task and source",
        low=0,
        high=1,
    )
    prompt_steps: int = setting(4, "steps of a prompt, at most", low=1, high=100_000)
    dropout: float = setting(
        0.0, "share of activations and attention weights that are dropped", low=0, high=0.9
    )
    batch_size: int = setting(64, "windows drawn for one learner step", low=1, high=1_000_000)
    learning_rate: float = setting(5e-4, "learning rate after the warm-up", above=0, high=1)
    weight_decay: float = setting(0.1, "weight decay of matrices", low=0)
    max_norm: float = setting(1.0, "norm that gradients are cut down to", above=0)
    warm_up_steps: int = setting(
        500, "learner steps over which the learning rate rises to its value", low=0
    )
    cosine_steps: int = setting(
        0,
        "learner step at which a cosine has brought the learning rate down to a tenth; 0 keeps it",
        low=0,
    )
    cached: bool = setting(True, "whether keys and values of earlier steps are kept while it acts")
