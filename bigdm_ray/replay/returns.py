"""Returns over whole episodes, many episodes at a time: discounted, TD(lambda), and BAIL's
continued ones.

Episodes are handled in groups of bounded size, so that a dataset larger than memory streams
through. Recursions run backwards over time for all episodes of a group at once; they are added up
in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bigdm_ray.replay.store import Store

GROUP_STEPS = 200_000


@dataclass(frozen=True)
class EpisodeGroup:
    """Some whole episodes, one after the other."""

    observations: dict[str, np.ndarray]  # leaf path -> [sum of (T + 1), ...]
    rewards: np.ndarray  # [sum of T] float32
    lengths: np.ndarray  # [n] int64
    terminated: np.ndarray  # [n] bool


def episode_groups(store: Store, steps: int = GROUP_STEPS) -> Iterator[EpisodeGroup]:
    """The living episodes in the order of the table, in groups of about so many steps."""
    ends = store.table.ends
    for numbers in np.split(np.arange(len(ends)), np.flatnonzero(np.diff(ends // steps)) + 1):
        if len(numbers):
            episodes = [store.episode(int(i)) for i in numbers]
            seen = {
                path: np.concatenate([e.observations[path] for e in episodes])
                for path in episodes[0].observations
            }
            terminated = np.array([e.terminated for e in episodes])
            yield EpisodeGroup(
                seen,
                np.concatenate([e.rewards for e in episodes]),
                store.table.lengths[numbers],
                terminated,
            )


def pad_episodes(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`[sum of lengths]` as `[n, longest]` float64, zeros behind each end."""
    out = np.zeros((len(lengths), int(lengths.max())))
    out[np.arange(out.shape[1]) < lengths[:, None]] = values
    return out


def unpad_episodes(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The inverse of `pad_episodes`, float32."""
    flat: np.ndarray = rows[np.arange(rows.shape[1]) < lengths[:, None]].astype(np.float32)
    return flat


def discounted_returns(rewards: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted Monte-Carlo returns of each step, nothing added behind the end: `[sum of T]`
    float32."""
    rows = pad_episodes(rewards, lengths)
    for t in range(rows.shape[1] - 2, -1, -1):
        rows[:, t] += gamma * rows[:, t + 1]
    return unpad_episodes(rows, lengths)


def td_lambda(
    group: EpisodeGroup, values: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """TD(lambda) returns, and V, of each step acted on: both `[sum of T]` float32.

    `values [sum of (T + 1)]` are V of all observations; V is 0 behind an episode that terminated
    (Peng et al. 2019, section 3.2).
    """
    lengths = group.lengths
    after = pad_episodes(values, lengths + 1)
    here = np.arange(len(lengths))
    after[here, lengths] *= ~group.terminated
    rewards = pad_episodes(group.rewards, lengths)
    returns = np.zeros_like(rewards)
    running = after[here, lengths]
    for t in range(rewards.shape[1] - 1, -1, -1):
        inside = t < lengths
        step = rewards[:, t] + gamma * ((1 - lam) * after[:, t + 1] + lam * running)
        running = np.where(inside, step, running)
        returns[:, t] = running
    return unpad_episodes(returns, lengths), unpad_episodes(after[:, :-1], lengths)


def normalised_weights(advantages: np.ndarray, temperature: float, clip: float) -> np.ndarray:
    """min(exp(A / temperature), clip) of advantages of mean 0 and deviation 1: `[m]` float32
    (xbpeng/awr, learning/awr_agent.py)."""
    scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-5) / temperature
    weights: np.ndarray = np.minimum(np.exp(np.minimum(scaled, 60.0)), clip).astype(np.float32)
    return weights


def continued_returns(group: EpisodeGroup, gamma: float) -> np.ndarray:
    """BAIL's returns `[sum of T]` float32: an episode that a time limit cut off goes on as from the
    state most like its last.

    Chen et al. 2020 and their code (main_get_mcret.py, which takes any episode of 1000 steps for
    one that was cut off): with n steps left, gamma^n times the return from the state nearest to the
    last one, sought among the first n + 1 states, of which so much is cut off that as many terms
    remain as the episode has steps. An episode that terminated has its plain returns.
    """
    out = discounted_returns(group.rewards, group.lengths, gamma)
    start, seen = 0, 0
    for length, terminated in zip(group.lengths.tolist(), group.terminated.tolist(), strict=True):
        if not terminated:
            states = np.concatenate(
                [
                    v[seen : seen + length + 1].reshape(length + 1, -1)
                    for v in group.observations.values()
                ],
                1,
            )
            out[start : start + length] += _gain(out[start : start + length], states, gamma)
        start, seen = start + length, seen + length + 1
    return out


def _gain(returns: np.ndarray, states: np.ndarray, gamma: float) -> np.ndarray:
    """What follows the end of one episode, seen from each of its steps: `[T]`."""
    length = len(returns)
    distance = ((states[:-1].astype(np.float64) - states[-1]) ** 2).sum(1)
    nearer = np.append(True, distance[1:] < np.minimum.accumulate(distance)[:-1])
    # of the first t + 1 states
    nearest = np.maximum.accumulate(np.where(nearer, np.arange(length), 0))
    left = length - np.arange(length)  # steps left at each step, 1 at the last
    match = nearest[np.minimum(left, length - 1)]
    later = match + (length - left)  # where the terms beyond the limit begin
    cut = np.where(
        later < length, gamma ** float(length) * returns[np.minimum(later, length - 1)], 0.0
    )
    gain: np.ndarray = gamma**left * returns[match] - cut
    return gain
