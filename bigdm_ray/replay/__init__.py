"""Replay: whole episodes in memory-mapped Arrow shards, and the windows that are drawn from them.

Knows no torch.
"""

from bigdm_ray.replay.episode import Episode, EpisodeId
from bigdm_ray.replay.mixture import Mixture, Source
from bigdm_ray.replay.store import Retention, Store, Table
from bigdm_ray.replay.windows import View, Windows

__all__ = [
    "Episode",
    "EpisodeId",
    "Mixture",
    "Retention",
    "Source",
    "Store",
    "Table",
    "View",
    "Windows",
]
