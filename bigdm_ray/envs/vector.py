"""Vector environments: n rows of which any subset can be reset and stepped, whatever library steps
them.

One contract for EnvPool and for plain gymnasium environments: a row that ended stays still until it
is reset, so no autoreset row ever reaches an episode, and rollout steps living rows only.
`GymnasiumRows` is a loop over environments (gymnasium's SyncVectorEnv cannot step a subset);
`EnvPoolRows` is the fast one.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bigdm_ray.envs.signature import PER_EPISODE, Leaf, Signature, leaves
from bigdm_ray.envs.values import Arrays as Arrays
from bigdm_ray.envs.values import SpaceMismatch, flag_of, leaf_phrase, reader, reward_of, unflatten
from bigdm_ray.errors import RunFailed, UserError

if TYPE_CHECKING:
    import gymnasium

REST_S = 10.0
"""Seconds that an EnvPool's threads are given to come to rest."""


@dataclass(frozen=True)
class Step:
    """What m rows answered: observations `[m, ...]`, rewards `[m]` float32, the two ends `[m]`
    bool, broken rows."""

    observations: Arrays
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    # position among the m rows -> what it raised, or how what it returned does not fit
    failures: dict[int, str] = field(default_factory=dict)
    # whether each row's task is done `[m]` bool, of environments that tell (`info["success"]`)
    success: np.ndarray | None = None

    @property
    def is_sound(self) -> bool:
        """Whether no row failed and every number is finite: the cheap question, for each step."""
        if self.failures or not _finite(self.rewards):
            return False
        return all(_finite(v) for v in self.observations.values() if v.dtype.kind == "f")

    @property
    def any_ended(self) -> bool:
        """Whether any row did."""
        return bool(np.count_nonzero(self.terminated) or np.count_nonzero(self.truncated))

    def problems(self) -> dict[int, str]:
        """What is wrong with which of the rows, one clause each."""
        problems = dict(self.failures)
        for k in np.flatnonzero(~np.isfinite(self.rewards)):
            problems.setdefault(int(k), f"it paid a reward of {self.rewards[k]}")
        for path, values in self.observations.items():
            if values.dtype.kind == "f":
                flat = values.reshape(len(values), -1)
                for k in np.flatnonzero(~np.isfinite(flat).all(1)):
                    got = flat[k][~np.isfinite(flat[k])][0]
                    problems.setdefault(
                        int(k),
                        f"{leaf_phrase(path)} is not finite (it has {got} as {values.dtype})",
                    )
        return problems


def _finite(values: np.ndarray) -> bool:
    return int(np.count_nonzero(np.isfinite(values))) == values.size


class VectorEnv(Protocol):
    """n environments of one task. A row must be reset before its first step and after each end."""

    n: int
    signature: Signature

    def reset(self, rows: np.ndarray) -> Step:
        """Begin a new episode in `rows [m]`; the answer's rewards and ends are zero."""

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """Take `actions` (leaves `[m, ...]`) in `rows [m]`.

        A row that raises is reported, never thrown.
        """

    def reseed(self, seed: int) -> None:
        """From the next resets on, be as if made with this seed (reference environments only)."""

    def frame(self) -> np.ndarray:
        """A picture `[height, width, 3]` uint8 of row 0, where it was made to render."""

    def close(self) -> None:
        """Free what the environments hold."""


def reset_step(m: int, observations: Arrays, failures: dict[int, str] | None = None) -> Step:
    """A Step of m rows without reward or end: the answer to a reset."""
    off = np.zeros(m, bool)
    return Step(observations, np.zeros(m, np.float32), off, off.copy(), failures or {})


class ArrayRows:
    """What tasks of our own that are stepped as arrays share: the time of each row, and chance, row
    i's being that of a reference with `seed + i`."""

    def __init__(self, n: int, seed: int, signature: Signature) -> None:
        self.n = n
        self.signature = signature
        self._t = np.zeros(n, np.int64)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """From the next resets on, be as if made with this seed."""
        self._chance = [np.random.default_rng(seed + i) for i in range(self.n)]

    def frame(self) -> np.ndarray:
        """Videos are made with the gymnasium environment."""
        raise NotImplementedError("these rows do not render; use Task.video_env")

    def close(self) -> None:
        """See VectorEnv: there is nothing to free."""


class GymnasiumRows:
    """n gymnasium environments stepped one after another: slow, exact, and the one that scores are
    measured on.

    Row i is seeded with `seed + i` at its first reset and runs on from there. An environment that
    raises is reported as a failure of its row and made anew before the row's next reset, with a
    seed that follows from the seed, the row, and how often it has failed: so what follows a failure
    repeats, too. One whose answer does not fit its spaces fails too, and plays on after its next
    reset.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], n: int, seed: int) -> None:
        self.n = n
        self._make = make
        self.reseed(seed)
        self._envs = [make() for _ in range(n)]
        self._observation_space = self._envs[0].observation_space
        self._action_space = self._envs[0].action_space
        once = self._envs[0].metadata.get(PER_EPISODE, ())
        self.signature = Signature.of(self._observation_space, self._action_space, once)
        self._read = reader(self._observation_space)

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        seen, failures = [], {}
        for k, i in enumerate(rows):
            try:
                seed, self._seeds[i] = self._seeds[i], None
                observation, _ = self._envs[i].reset(seed=seed)
                seen.append(self._read(observation))
            except SpaceMismatch as error:
                failures[k] = str(error)
                seen.append(zero_step(self.signature.observations))
            except Exception as error:  # noqa: BLE001  (an environment is foreign code: any error is a failure of its row)
                failures[k] = self._failed(i, error)
                seen.append(zero_step(self.signature.observations))
        return reset_step(len(rows), stack(seen), failures)

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv."""
        m = len(rows)
        rewards, terminated, truncated = (
            np.zeros(m, np.float32),
            np.zeros(m, bool),
            np.zeros(m, bool),
        )
        success = np.zeros(m, bool)
        tells = False
        seen, failures = [], {}
        for k, i in enumerate(rows):
            action = unflatten(
                self._action_space, {path: values[k] for path, values in actions.items()}
            )
            try:
                observation, reward, over, cut, info = self._envs[i].step(action)
                rewards[k] = reward_of(reward)
                terminated[k], truncated[k] = flag_of(over, "terminated"), flag_of(cut, "truncated")
                if (told := info.get("success")) is not None:
                    success[k], tells = flag_of(told, "success"), True
                seen.append(self._read(observation))
            except SpaceMismatch as error:
                failures[k] = str(error)
                seen.append(zero_step(self.signature.observations))
            except Exception as error:  # noqa: BLE001  (as above)
                failures[k] = self._failed(i, error)
                seen.append(zero_step(self.signature.observations))
        told_of = success if tells else None
        return Step(stack(seen), rewards, terminated, truncated, failures, told_of)

    def env(self, row: int) -> gymnasium.Env[Any, Any]:
        """The environment of a row as it stands, to look into."""
        return self._envs[row]

    def _failed(self, i: int, error: Exception) -> str:
        why = f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # it is broken already
            self._envs[i].close()
        try:
            self._envs[i] = self._make()
        except Exception as again:  # noqa: BLE001  (as above)
            raise RunFailed(
                f"an environment that failed ({why}) could not be made anew"
                f" ({type(again).__name__}: {again})"
            ) from None
        self._failed_times[i] += 1
        seeds = np.random.SeedSequence([self._seed, i, self._failed_times[i]])
        self._seeds[i] = int(seeds.generate_state(1)[0] & 0x7FFFFFFF)
        return why

    def reseed(self, seed: int) -> None:
        """From the next resets on, be as if made with this seed."""
        self._seed = seed
        self._seeds: list[int | None] = [seed + i for i in range(self.n)]
        self._failed_times = [0] * self.n

    def frame(self) -> np.ndarray:
        """See VectorEnv."""
        return np.asarray(self._envs[0].render())

    def close(self) -> None:
        """See VectorEnv."""
        for env in self._envs:
            env.close()


class EnvPoolRows:
    """n EnvPool environments of one thread, with its traps kept inside.

    Observation leaves are those that EnvPool has, by their paths; there is one action leaf.

    Its spaces are not used (low bounds are wrong): the signature comes from gymnasium. Rows are
    reset by id, so the row that its NEXT_STEP autoreset would add never appears. Seeds are fixed
    when it is made and its state cannot be saved, so whoever needs to repeat it makes it again. A
    raised error cannot be told to a row: all rows fail.
    """

    def __init__(
        self, env_id: str, n: int, seed: int, signature: Signature, **options: Any
    ) -> None:
        import envpool

        self.n = n
        self._id = env_id
        self.signature = signature
        if len(signature.actions) != 1:
            raise UserError(
                f"EnvPool's {env_id} is given one action leaf, but the task has "
                f"{', '.join(map(repr, signature.actions))}; leave `fast` out of it"
            )
        (self._action_path, self._action) = next(iter(signature.actions.items()))
        self._new = functools.partial(
            envpool.make, env_id, "gymnasium", num_envs=n, num_threads=1, **options
        )
        self._seed = seed % 2**31
        self._env: Any = None
        self._threads: set[str] = set()
        self._make()

    def _make(self) -> None:
        before = threads()
        made = self._new(seed=self._seed)
        self._threads = threads() - before
        with (
            warnings.catch_warnings()
        ):  # it builds its own spaces when they are first looked at, and warns of their precision
            warnings.simplefilter("ignore")
            shown, _ = leaves(made.observation_space), made.action_space
        self._env, known = made, self.signature.observations
        if shown.keys() != known.keys() and (len(shown) > 1 or len(known) > 1):
            self.close()
            raise UserError(
                f"EnvPool's {self._id} observes {', '.join(map(repr, shown))}, but "
                f"{', '.join(map(repr, known))} is expected, as the task's reference has it; "
                "leave `fast` out of it"
            )

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        try:
            observations, _ = self._env.reset(rows.astype(np.int32))
        except (RuntimeError, ValueError) as error:
            return self._failed(len(rows), error)
        seen = self._read(observations)
        for path, leaf in self.signature.observations.items():
            if seen[path].shape[1:] != leaf.shape:  # of a pool, they are the same for ever
                why = f"{leaf_phrase(path)} has the shape {seen[path].shape[1:]}"
                return self._nothing(len(rows), f"{why}, but {leaf.shape} is expected")
        return reset_step(len(rows), seen)

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv."""
        action = actions[self._action_path].astype(self._action.dtype, copy=False)
        try:
            observations, rewards, terminated, truncated, info = self._env.step(
                action, rows.astype(np.int32)
            )
        except (RuntimeError, ValueError) as error:
            return self._failed(len(rows), error)
        seen = self._read(observations)
        success = None if "success" not in info else np.asarray(info["success"]) > 0
        paid = rewards.astype(np.float32, copy=False)
        return Step(seen, paid, terminated, truncated, success=success)

    def _read(self, observations: Any) -> Arrays:
        """EnvPool's observations, an array or arrays within dicts, by path, as the leaves are."""
        known = self.signature.observations
        if not isinstance(observations, dict):
            observations = {path: observations for path in known}
        out: Arrays = {}
        for path, leaf in known.items():
            values: Any = observations.get(path)
            if values is None:  # it lies deeper
                values = functools.reduce(operator.getitem, path.split("/"), observations)
            if leaf.kind == "image" and values.shape[1:] == (*leaf.shape[1:], leaf.shape[0]):
                values = np.moveaxis(values, -1, 1)
            out[path] = values.astype(leaf.dtype, copy=False)
        return out

    def _failed(self, m: int, error: Exception) -> Step:
        """All rows fail, and are made anew with other seeds."""
        self._seed = (self._seed + self.n) % 2**31
        self._leave()
        self._make()
        return self._nothing(m, f"{type(error).__name__}: {error}")

    def _nothing(self, m: int, why: str) -> Step:
        """The failure of m rows."""
        return reset_step(
            m, stack([zero_step(self.signature.observations)] * m), dict.fromkeys(range(m), why)
        )

    def reseed(self, seed: int) -> None:
        """EnvPool fixes its seeds when it is made."""
        raise NotImplementedError("EnvPool rows cannot be seeded again; make them anew")

    def frame(self) -> np.ndarray:
        """EnvPool rows do not render; videos are made with gymnasium's environment."""
        raise NotImplementedError("EnvPool rows do not render; use Task.video_env")

    def close(self) -> None:
        """See VectorEnv."""
        if self._env is not None:
            self._env.close()
            self._leave()

    def _leave(self) -> None:
        """Let go of the pool, once its threads are at rest.

        One of them makes buffers ahead, and its destructor takes one more after telling it to quit:
        it waits for ever if that thread has just made its last, and was interrupted before it
        looked whether to go on. With all buffers made, the thread sleeps.
        """
        until = time.monotonic() + REST_S
        while not threads_rest(self._threads) and time.monotonic() < until:
            time.sleep(0.001)
        self._env = None


def threads() -> set[str]:
    """The threads of this process, where Linux tells them."""
    with contextlib.suppress(OSError):
        return {path.name for path in Path("/proc/self/task").iterdir()}
    return set()


def threads_rest(names: set[str]) -> bool:
    """Whether these threads of this process sleep, or have ended."""
    for thread in names:
        with contextlib.suppress(OSError):
            if (
                Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
                != "S"
            ):
                return False
    return True


class PayAtEnd:
    """All reward of an episode is withheld and paid as one sum at its last step (Srivastava et al.
    2019, section 3.4)."""

    def __init__(self, inner: VectorEnv) -> None:
        self.n = inner.n
        self.signature = inner.signature
        self._inner = inner
        self._owed = np.zeros(inner.n, np.float64)

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        self._owed[rows] = 0.0
        return self._inner.reset(rows)

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv."""
        step = self._inner.step(rows, actions)
        self._owed[rows] += step.rewards
        paid = np.where(step.terminated | step.truncated, self._owed[rows], 0.0).astype(np.float32)
        return replace(step, rewards=paid)

    def reseed(self, seed: int) -> None:
        """See VectorEnv."""
        self._inner.reseed(seed)

    def frame(self) -> np.ndarray:
        """See VectorEnv."""
        return self._inner.frame()

    def close(self) -> None:
        """See VectorEnv."""
        self._inner.close()


def envpool_rows(env_id: str, **options: Any) -> Callable[[int, int, Signature], VectorEnv]:
    """A `Task.fast` that makes `EnvPoolRows` of an EnvPool id."""

    def make(n: int, seed: int, signature: Signature) -> VectorEnv:
        return EnvPoolRows(env_id, n, seed, signature, **options)

    return make


def zero_step(leaves: dict[str, Leaf]) -> Arrays:
    """Zeros in the shape of one step."""
    return {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def stack(steps: list[Arrays]) -> Arrays:
    """Dicts of arrays as one dict of arrays with a new first axis."""
    return {path: np.stack([step[path] for step in steps]) for path in steps[0]} if steps else {}
