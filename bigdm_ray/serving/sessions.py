"""Sessions: rows of a policy's memory that act for clients, in one thread and few forward passes.

A session is a row of a `Pool`, the memory of all that act alike: the same version of weights, task
and mode. One thread does all that touches torch. When it is idle, what comes is acted on at once;
while it works, what comes waits and goes together: one forward pass for each pool. So a batch is as
large as the load makes it, and nobody waits for a clock.

One thing is done elsewhere: where a step is quick (`QUICK_S`), the thread is idle, and nobody else
has just acted, the event loop acts itself. Two hops between threads take up to 0.1 ms.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import numpy as np
import torch

from bigdm_ray.algorithms.base import State, put, take
from bigdm_ray.envs.values import Arrays
from bigdm_ray.replay.episode import Episode
from bigdm_ray.serving.served import Served
from bigdm_ray.training.streams import rng

T = TypeVar("T")
QUICK_S = 4e-3
"""Seconds of a step that the event loop may take itself: others' messages wait for so long."""
ALONE_S = 5e-3
"""Seconds since another client acted after which one counts as alone."""
ID_BYTES = 16
"""Of a session's name, which is drawn so that nobody guesses it."""


class Refused(Exception):
    """What a client asked for and does not get: gRPC's status, and one sentence."""

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class Pool:
    """The memory of sessions that act alike. All but `__init__` runs in the engine's thread."""

    def __init__(self, served: Served, task: str, mode: str) -> None:
        """Raises UserError for a mode that the algorithm has not."""
        self.served, self.task, self.mode = served, task, mode
        self.policy = served.policy(task, mode)
        self.signature = served.by_task[task].signature
        self._max_return = served.by_task[task].task.max_return
        self._state: State = {}
        self._size = 0
        self._free: list[int] = []
        names = served.trained.run.algorithm.commands
        self._asked = {name: np.zeros(0, np.float32) for name in names}
        self._left = {name: np.zeros(0, np.float32) for name in names}
        self._prompts: dict[int, Episode] = {}
        self.step_s = 1.0  # what a step takes, lately

    def join(self, command: dict[str, float], prompt: Episode | None) -> int:
        """A row for a session. Raises UserError for a prompt that the policy cannot read."""
        part = self.policy.start(1, None if prompt is None else [prompt])
        if not self._free:
            self._grow(max(1, 2 * self._size))
        row = self._free.pop()
        put(self._state, np.array([row]), part)
        self.ask(row, command)
        if prompt is not None:
            self._prompts[row] = prompt
        return row

    def _grow(self, size: int) -> None:
        state = self.policy.start(size)
        if self._size:
            put(state, np.arange(self._size), self._state)
        for columns in (self._asked, self._left):
            for name, values in columns.items():
                columns[name] = np.append(values, np.zeros(size - self._size, np.float32))
        self._free += range(size - 1, self._size - 1, -1)
        self._state, self._size = state, size

    def ask(self, row: int, command: dict[str, float]) -> None:
        """Have a row's episodes begin with another command from now on."""
        for name, values in self._asked.items():
            values[row] = command.get(name, 0.0)

    def leave(self, row: int) -> None:
        """A session has ended."""
        self._prompts.pop(row, None)
        self._free.append(row)

    def act(
        self,
        rows: np.ndarray,
        observations: Arrays,
        rewards: np.ndarray,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> Arrays:
        """Actions of some rows; where it fails nothing has changed."""
        began = time.perf_counter()
        left = {name: values[rows] for name, values in self._left.items()}
        if not first.all():
            left = self.policy.after(left, rewards, self._max_return)
        commands = left
        if first.any():
            commands = {n: np.where(first, self._asked[n][rows], v) for n, v in left.items()}
        for row in rows[first].tolist() if self._prompts else ():
            if row in self._prompts:  # it is shown again
                put(self._state, np.array([row]), self.policy.start(1, [self._prompts[row]]))
        actions, state = self.policy.act(
            take(self._state, rows), observations, rewards, commands, first, uniforms
        )
        put(self._state, rows, state)
        for name, values in commands.items():
            self._left[name][rows] = values
        self.step_s += 0.1 * (time.perf_counter() - began - self.step_s)
        return actions


def leave_all(places: Sequence[tuple[Pool, int]]) -> None:
    """Let go of rows."""
    for pool, row in places:
        pool.leave(row)


@dataclass(eq=False)
class ActingSession:
    """A session: a row of a pool, its chance, and what holds for its episode."""

    id: bytes
    pool: Pool
    row: int
    chance: np.random.Generator
    command: dict[str, float]
    goal: Arrays  # [1, ...] by path
    first: bool = True  # the next action is the first of an episode
    busy: bool = False
    seen: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class ActCall:
    """A request for actions of sessions, checked: one row each."""

    sessions: list[ActingSession]
    observations: Arrays
    rewards: np.ndarray
    first: np.ndarray

    def __post_init__(self) -> None:
        self.rows = np.array([one.row for one in self.sessions])
        self.done: asyncio.Future[Arrays] | None = None  # where it waits for the thread


class Engine:
    """The thread that does the work, and what waits for it."""

    def __init__(self, threads: int = 1) -> None:
        torch.set_num_threads(threads)  # it is of each thread
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[ActCall] = []
        self._called = self._busy = False
        self._running = 0  # what `run` was given and is not done
        self._last: tuple[Pool | None, int] = None, -1  # who acted last
        self._other = 0.0  # when somebody acted after somebody else
        self._thread = threading.Thread(
            target=self._serve, args=(threads,), name="bigdm-policy", daemon=True
        )
        self._thread.start()

    def _serve(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while (work := self._work.get()) is not None:
            work()

    def close(self) -> None:
        """End the thread, when it has done what waits."""
        self._work.put(None)
        self._thread.join()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have the thread do something: its answer, or what it raised."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._running += 1

        def done() -> None:
            try:
                answer = work()
            except Exception as error:  # noqa: BLE001  (whoever waits is told)
                self._loop.call_soon_threadsafe(self._ran, future, None, error)
            else:
                self._loop.call_soon_threadsafe(self._ran, future, answer, None)

        self._work.put(done)
        return future

    def _ran(self, future: asyncio.Future[T], answer: T | None, error: Exception | None) -> None:
        self._running -= 1
        _settle(future, answer, error)

    async def act(self, call: ActCall) -> Arrays:
        """Act for a request, with all that come before the thread is free again."""
        if self._may_act(call):
            ((_, answer),) = act_together([call])
            if isinstance(answer, Exception):
                raise answer
            return answer
        call.done = self._loop.create_future()
        self._waiting.append(call)
        if not self._busy and not self._called:
            self._called = True
            self._loop.call_soon(self._hand_over)
        return await call.done

    def _may_act(self, call: ActCall) -> bool:
        """Whether the thread need not be woken: see the module."""
        one, now = call.sessions[0], time.monotonic()
        if self._last != (one.pool, one.row):
            self._other = now
        self._last = one.pool, one.row
        if self._busy or self._called or self._running or now - self._other <= ALONE_S:
            return False
        return one.pool.step_s < QUICK_S and all(s.pool is one.pool for s in call.sessions)

    def _hand_over(self) -> None:
        self._called = False
        if not self._waiting or self._busy:
            return
        calls, self._waiting, self._busy = self._waiting, [], True

        def work() -> None:
            answers = act_together(calls)
            self._loop.call_soon_threadsafe(self._handed_back, answers)

        self._work.put(work)

    def _handed_back(self, answers: list[tuple[ActCall, Arrays | Exception]]) -> None:
        self._busy = False
        for call, answer in answers:
            assert call.done is not None
            if isinstance(answer, Exception):
                _settle(call.done, None, answer)
            else:
                _settle(call.done, answer, None)
        self._hand_over()


def _settle(future: asyncio.Future[T], answer: T | None, error: Exception | None) -> None:
    if future.done():  # nobody waits any more
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)  # type: ignore[arg-type]


def act_together(calls: Sequence[ActCall]) -> list[tuple[ActCall, Arrays | Exception]]:
    """The actions of each request, one forward pass for each pool; or what went wrong with it."""
    if len(calls) == 1 and len({one.pool for one in calls[0].sessions}) == 1:
        ((_, alone),) = _answers(calls[0].sessions[0].pool, [Share(calls[0], None)])
        return [(calls[0], alone)]
    shares: dict[Pool, list[Share]] = {}
    for call in calls:
        pools = dict.fromkeys(one.pool for one in call.sessions)
        for pool in pools:
            mine = [at for at, one in enumerate(call.sessions) if one.pool is pool]
            shares.setdefault(pool, []).append(Share(call, mine if len(pools) > 1 else None))
    answers: dict[ActCall, list[tuple[Share, Arrays]]] = {call: [] for call in calls}
    failed: dict[ActCall, Exception] = {}
    for pool, together in shares.items():
        for share, answer in _answers(pool, together):
            if isinstance(answer, Exception):
                failed[share.call] = answer
            else:
                answers[share.call].append((share, answer))
    return [(call, failed.get(call) or _whole(call, answers[call])) for call in calls]


@dataclass(frozen=True)
class Share:
    """The rows of a request that one pool acts for; None: all."""

    call: ActCall
    rows: list[int] | None

    def of(self, values: np.ndarray) -> np.ndarray:
        """Of values of all rows those that are its own."""
        return values if self.rows is None else values[self.rows]

    @property
    def sessions(self) -> list[ActingSession]:
        """Whose rows these are."""
        return [self.call.sessions[at] for at in self.rows] if self.rows else self.call.sessions


def _answers(pool: Pool, shares: list[Share]) -> list[tuple[Share, Arrays | Exception]]:
    """Act for all at once; where that fails for each by itself, so that a fault is one's own."""
    try:
        actions = _act(pool, shares)
    except Exception as error:  # noqa: BLE001  (it is told to whom it concerns)
        if len(shares) == 1:
            return [(shares[0], error)]
        return [one for share in shares for one in _answers(pool, [share])]
    found: list[tuple[Share, Arrays | Exception]] = []
    at = 0
    for share in shares:
        end = at + len(share.sessions)
        found.append((share, {path: values[at:end] for path, values in actions.items()}))
        at = end
    return found


def _act(pool: Pool, shares: list[Share]) -> Arrays:
    def joined(pick: Callable[[ActCall], np.ndarray]) -> np.ndarray:
        parts = [share.of(pick(share.call)) for share in shares]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def seen(path: str) -> np.ndarray:
        return joined(lambda call: call.observations[path])

    drawn = [
        one.chance.random((1, pool.policy.uniforms), np.float32)
        for share in shares
        for one in share.sessions
    ]
    return pool.act(
        joined(lambda call: call.rows),
        {path: seen(path) for path in pool.signature.observations},
        joined(lambda call: call.rewards),
        joined(lambda call: call.first),
        drawn[0] if len(drawn) == 1 else np.concatenate(drawn),
    )


def _whole(call: ActCall, parts: list[tuple[Share, Arrays]]) -> Arrays:
    if len(parts) == 1:
        return parts[0][1]
    out: Arrays = {}
    for share, actions in parts:
        for path, values in actions.items():
            whole = out.setdefault(
                path, np.zeros((len(call.rows), *values.shape[1:]), values.dtype)
            )
            whole[share.rows] = values
    return out


class Sessions:
    """The sessions that there are, by their names."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most = engine, most
        self._by_id: dict[bytes, ActingSession] = {}
        self._pools: dict[tuple[Served, str, str], Pool] = {}
        self._joining = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, ids: Sequence[bytes]) -> list[ActingSession]:
        """Those of these names, none of which is acting. Raises Refused."""
        if not ids or len(set(ids)) < len(ids):
            which = "a session is named twice" if ids else "no session is named"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"{which}; each is expected once")
        found = [self._by_id[id] for id in ids if id in self._by_id]
        if len(found) < len(ids):
            why = "a session is not known here: it has ended, or was idle for too long; start anew"
            raise Refused(grpc.StatusCode.NOT_FOUND, why)
        if any(one.busy for one in found):
            why = "a session is acting already; wait for its answer before you send the next"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, why)
        return found

    def check_room(self, count: int) -> None:
        """Raise Refused where so many more sessions are too many."""
        if len(self._by_id) + self._joining + count > self._most:
            why = f"there are {len(self._by_id)} sessions, of {self._most} at most; end some"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, why)

    async def start(
        self,
        served: Served,
        task: str,
        mode: str,
        commands: Sequence[dict[str, float]],
        seed: int | None,
        goal: Arrays,
        prompt: Episode | None,
    ) -> list[ActingSession]:
        """New sessions, one for each command. `goal` has a row for each.

        Raises Refused where there are too many, UserError for a mode or a prompt that is not taken.
        """
        self.check_room(len(commands))
        pool = self._pool(served, task, mode)
        self._joining += len(commands)
        try:
            rows = await self._engine.run(lambda: [pool.join(one, prompt) for one in commands])
        finally:
            self._joining -= len(commands)
        seed = secrets.randbits(62) if seed is None else seed
        made = [
            ActingSession(
                secrets.token_bytes(ID_BYTES),
                pool,
                row,
                rng(seed, "evaluate", at),
                command,
                {path: values[at : at + 1] for path, values in goal.items()},
            )
            for at, (row, command) in enumerate(zip(rows, commands, strict=True))
        ]
        self._by_id |= {one.id: one for one in made}
        return made

    def _pool(self, served: Served, task: str, mode: str) -> Pool:
        """The memory of what acts so; that of versions without a session is let go of."""
        used = {one.pool for one in self._by_id.values()}
        self._pools = {key: pool for key, pool in self._pools.items() if pool in used}
        return self._pools.setdefault((served, task, mode), Pool(served, task, mode))

    async def restart(
        self,
        sessions: Sequence[ActingSession],
        served: Served | None,
        commands: Sequence[dict[str, float]],
        goal: Arrays,
        prompt: Episode | None,
    ) -> None:
        """Have sessions begin a new episode, with other commands; with these weights where they
        are given. Raises UserError for a prompt that is not taken."""
        before = [(one.pool, one.row) for one in sessions]

        def work() -> list[tuple[Pool, int]]:
            places = []
            for one, command in zip(sessions, commands, strict=True):
                pool = one.pool
                if served is not None and served is not pool.served:
                    pool = pools[pool.task, pool.mode]
                elif prompt is None:
                    pool.ask(one.row, command)
                    places.append((pool, one.row))
                    continue
                places.append((pool, pool.join(command, prompt)))
            return places

        kinds = {(one.pool.task, one.pool.mode) for one in sessions}
        pools = {} if served is None else {kind: self._pool(served, *kind) for kind in kinds}
        for one in sessions:
            one.busy = True
        try:
            places = await self._engine.run(work)
        finally:
            for one in sessions:
                one.busy = False
        for at, (one, (pool, row)) in enumerate(zip(sessions, places, strict=True)):
            one.pool, one.row, one.command, one.first = pool, row, commands[at], True
            one.goal = {path: values[at : at + 1] for path, values in goal.items()} or one.goal
            one.seen = time.monotonic()
        self._leave([old for old, new in zip(before, places, strict=True) if new != old])

    async def act(
        self,
        sessions: list[ActingSession],
        observations: Arrays,
        rewards: np.ndarray,
        first: np.ndarray,
    ) -> Arrays:
        """Actions `[n, ...]` by path for sessions that were found, of what was checked."""
        first = first | np.array([one.first for one in sessions])
        for one in sessions:
            one.busy = True
        try:
            actions = await self._engine.act(ActCall(sessions, observations, rewards, first))
        finally:
            now = time.monotonic()
            for one in sessions:
                one.busy, one.seen = False, now
        for one in sessions:
            one.first = False
        return actions

    def end(self, sessions: Sequence[ActingSession]) -> None:
        """Let go of sessions."""
        for one in sessions:
            self._by_id.pop(one.id, None)
        self._leave([(one.pool, one.row) for one in sessions])

    def _leave(self, places: Sequence[tuple[Pool, int]]) -> None:
        if places:
            self._engine.run(lambda: leave_all(places))

    def end_idle(self, seconds: float) -> int:
        """End sessions that nobody has acted with for so long; how many."""
        late = time.monotonic() - seconds
        idle = [one for one in self._by_id.values() if one.seen < late and not one.busy]
        self.end(idle)
        return len(idle)
