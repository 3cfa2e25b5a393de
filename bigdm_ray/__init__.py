"""bigdm_ray: policies trained by supervised learning on whole episodes and told at run time what to
achieve.

    import bigdm_ray
    run = bigdm_ray.configure("udrl", "lunarlander", budget={"env_steps": 1_000_000}, seed=2)
    summary = bigdm_ray.train(run, local=True)       # trains, and leaves a run folder
    policy = bigdm_ray.load(summary["folder"]).act() # acts in your own gymnasium loop:
    action = policy(observation, reward)             # one value in, one out; memory inside
    policy.reset(desired_return=200)                 # before the next episode

The names are imported when they are first used, so `import bigdm_ray` costs nothing.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Agent", "Loaded", "Run", "__version__", "configure", "load", "train"]

_HOMES = {
    "Agent": "bigdm_ray.training.agent",
    "Run": "bigdm_ray.training.config",
    "configure": "bigdm_ray.training.config",
    "Loaded": "bigdm_ray.training.loaded",
    "load": "bigdm_ray.training.loaded",
    "train": "bigdm_ray.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigdm_ray' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
