"""The rpcs of `policy.proto`: messages in, checked; what is refused told in one sentence.

What goes out of here names no file, no traceback and nothing else of the inside. A fault of the
server's own is a number, under which its log has the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from bigdm_ray.envs.values import Arrays, SpaceMismatch
from bigdm_ray.errors import UserError, quote_value, sentence
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId
from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.serving import wire
from bigdm_ray.serving.served import Served, Versions, describe, write_version
from bigdm_ray.serving.sessions import ActingSession, Engine, Refused, Sessions

M = TypeVar("M", bound=Message)
NAME = pb.DESCRIPTOR.services_by_name["Policy"].full_name
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MOST_CLIENT = 2**62


class Takes(Protocol):
    """Where the episodes of others go."""

    async def put(self, task: str, episode: Episode) -> None:
        """Returns once the episode is durable. Raises Refused."""


def read_message(kind: type[M], data: bytes) -> M:
    """The message of these bytes. Raises Malformed."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise wire.Malformed(f"what came is no {kind.DESCRIPTOR.name} of policy.proto") from None


class PolicyService:
    """See the module. It lives in one event loop; the policy's work is the engine's."""

    def __init__(
        self,
        versions: Versions,
        engine: Engine,
        most_sessions: int,
        takes: Takes | None = None,
        most_episodes: int = 64,
    ) -> None:
        self._versions, self._engine, self._takes = versions, engine, takes
        self._first = versions.newest()
        """What tasks there are and what their arrays look like is the same of all versions."""
        self.sessions = Sessions(engine, most_sessions)
        self._most_episodes = most_episodes
        self._described: tuple[Served, pb.Description] | None = None
        self._faults = itertools.count(1)
        self._at_work = _AtWork()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        one, many = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        unary: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            "Describe": (pb.DescribeRequest, self._describe),
            "Start": (pb.StartRequest, self._start),
            "Act": (pb.ActRequest, self._act),
            "End": (pb.EndRequest, self._end),
            "Reload": (pb.ReloadRequest, self._reload),
        }
        handlers: dict[str, Any] = {
            name: one(self._answered(kind, method)) for name, (kind, method) in unary.items()
        }
        handlers |= {"Stream": many(self._stream), "PutEpisodes": many(self._put_episodes)}
        return grpc.method_handlers_generic_handler(NAME, handlers)

    async def close(self, patience_s: float) -> None:
        """Answer what is under way, for so long at most; what comes from now on is refused."""
        self._at_work.closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._at_work.calm.wait(), patience_s)

    # --- what every rpc shares

    def _answered(
        self, kind: type[M], method: Callable[[M], Awaitable[Message]]
    ) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        """A unary method as bytes to bytes."""

        async def answered(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            fault = _Fault(self._faults)
            with fault, self._at_work:
                return (await method(read_message(kind, data))).SerializeToString()
            await context.abort(*fault.told)
            raise AssertionError  # abort raises

        return answered

    # --- acting

    async def _describe(self, request: pb.DescribeRequest) -> pb.Description:
        served = self._versions.newest()
        if self._described is None or self._described[0] is not served:
            # an environment may have to be made, which is not the engine's work
            made = await asyncio.to_thread(describe, served, self._takes is not None)
            self._described = served, made
        return self._described[1]

    async def _reload(self, request: pb.ReloadRequest) -> pb.ReloadAnswer:
        try:
            served = await asyncio.to_thread(self._versions.reload)
        except UserError as error:
            log(f"the weights were not reloaded: {error}")
            why = "the weights could not be loaded, the server's log says why; the old ones go on"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, why) from None
        return pb.ReloadAnswer(version=write_version(served.version))

    async def _start(self, request: pb.StartRequest) -> pb.StartAnswer:
        if request.sessions:
            return await self._restart(request)
        served = await asyncio.to_thread(self._versions.newest)  # it may have to be loaded
        task = served.task(wire.read_name(request.task, "the task"))
        rows = request.rows or 1
        self.sessions.check_room(rows)
        commands = self._commands(served, task, request, rows)
        goal = self._goal(served, task, request, rows)
        seed = request.seed if request.HasField("seed") else None
        mode = wire.read_name(request.mode, "the mode")
        prompt = self._prompt(served, task, request)
        made = await self.sessions.start(served, task, mode, commands, seed, goal, prompt)
        return _started(made)

    async def _restart(self, request: pb.StartRequest) -> pb.StartAnswer:
        sessions = self.sessions.find(request.sessions)
        if len({one.pool.task for one in sessions}) > 1:
            raise wire.Malformed("the sessions are of several tasks; start those of each together")
        task, rows = sessions[0].pool.task, len(sessions)
        served = await asyncio.to_thread(self._versions.newest) if request.newest else None
        sessions = self.sessions.find(request.sessions)
        of = served or sessions[0].pool.served
        commands = self._commands(of, task, request, rows)
        if not request.command and served is None:
            commands = [one.command for one in sessions]
        goal = self._goal(of, task, request, rows)
        prompt = self._prompt(of, task, request)
        await self.sessions.restart(sessions, served, commands, goal, prompt)
        return _started(sessions)

    def _commands(
        self, served: Served, task: str, request: pb.StartRequest, rows: int
    ) -> list[dict[str, float]]:
        columns = wire.read_numbers(request.command, rows)
        return [
            served.command(task, {name: float(values[row]) for name, values in columns.items()})
            for row in range(rows)
        ]

    def _goal(self, served: Served, task: str, request: pb.StartRequest, rows: int) -> Arrays:
        """The leaves of the observation that are given once. Raises Malformed."""
        goal = wire.read_leaves(request.goal, rows, "its observation")
        known = served.by_task[task].signature.observations
        if strange := [path for path in goal if path not in known]:
            raise wire.Malformed(
                f"its observation {quote_value(strange[0])} is not known, but one of"
                f" {', '.join(map(repr, known))} is expected"
            )
        return goal

    def _prompt(self, served: Served, task: str, request: pb.StartRequest) -> Episode | None:
        if not request.HasField("prompt"):
            return None
        signature = served.by_task[task].signature
        return wire.read_episode(
            request.prompt, signature, EpisodeId(0, FOREIGN, 0), task, request.prompt.source
        )

    async def _act(self, request: pb.ActRequest) -> pb.ActAnswer:
        sessions = self.sessions.find(request.sessions)
        rows, pool = len(sessions), sessions[0].pool
        if any(one.pool.task != pool.task for one in sessions):
            raise wire.Malformed("the sessions are of several tasks; act for each by itself")
        seen = wire.read_leaves(request.observations, rows, "its observation")
        for path in sessions[0].goal:
            if path not in seen:
                parts = [one.goal[path] for one in sessions if path in one.goal]
                seen[path] = np.concatenate(parts) if len(parts) == rows else np.zeros(0)
        observations = wire.fit_observations(pool.signature, seen)
        first = _column(request.first, rows, "marks of first steps", np.bool_)
        rewards = _column(request.rewards, rows, "rewards", np.float32)
        if not np.isfinite(rewards).all():
            raise wire.Malformed(f"its reward is {rewards[~np.isfinite(rewards)][0]}")
        actions = await self.sessions.act(sessions, observations, rewards, first)
        return pb.ActAnswer(actions=wire.write_leaves(actions))

    async def _stream(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            fault = _Fault(self._faults)
            answer = None
            with fault, self._at_work:
                answer = await self._act(read_message(pb.ActRequest, data))
            await context.write((answer or _refusal(fault)).SerializeToString())
            if self._at_work.closing:
                return

    async def _end(self, request: pb.EndRequest) -> pb.EndAnswer:
        self.sessions.end(self.sessions.find(request.sessions))
        return pb.EndAnswer()

    # --- episodes of others

    async def _put_episodes(
        self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> None:
        """Take episodes as they come, and acknowledge each when it is durable, in any order."""
        if self._takes is None:
            why = "no run learns here: episodes are taken by `run ... --serve HOST:PORT`"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        room = asyncio.Semaphore(self._most_episodes)
        writing = asyncio.Lock()
        stored: set[asyncio.Task[None]] = set()

        async def store(data: bytes) -> None:
            fault, sequence = _Fault(self._faults), 0
            try:
                with fault:
                    upload = read_message(pb.EpisodeUpload, data)
                    sequence = upload.sequence
                    await self._store(upload)
                answer = pb.Acknowledgement(sequence=sequence, refusal=fault.refusal)
                async with writing:
                    await context.write(answer.SerializeToString())
            finally:
                room.release()

        try:
            while True:
                await room.acquire()
                if (data := await context.read()) is grpc.aio.EOF:
                    break
                task = asyncio.create_task(store(data))
                stored.add(task)
                task.add_done_callback(stored.discard)
            await asyncio.gather(*stored)
        finally:
            for task in stored:
                task.cancel()

    async def _store(self, upload: pb.EpisodeUpload) -> None:
        if not 0 < upload.client < MOST_CLIENT or upload.sequence >= MOST_CLIENT:
            raise wire.Malformed(
                f"the client is {upload.client} and its episode {upload.sequence}, but numbers from"
                f" 1 and from 0 up to {MOST_CLIENT - 1} are expected"
            )
        served, told = self._first, upload.episode
        task = served.task(wire.read_name(told.task, "the task"))
        id = EpisodeId(upload.client, FOREIGN, upload.sequence)
        source = wire.read_name(told.source, "the source") or "outside"
        episode = wire.read_episode(told, served.by_task[task].signature, id, task, source)
        assert self._takes is not None
        await self._takes.put(task, episode)


def _column(values: Sequence[Any], rows: int, what: str, kind: type[np.generic]) -> np.ndarray:
    """Values of all rows `[rows]`; zeros where there are none. Raises Malformed."""
    if not len(values):
        return np.zeros(rows, kind)
    if len(values) != rows:
        raise wire.Malformed(f"there are {len(values)} {what}, but {rows} or none are expected")
    return np.array(list(values), kind)


def _started(sessions: Sequence[ActingSession]) -> pb.StartAnswer:
    pool = sessions[0].pool
    names = sessions[0].command
    return pb.StartAnswer(
        sessions=[one.id for one in sessions],
        task=pool.task,
        version=write_version(pool.served.version),
        command=wire.write_numbers({n: [one.command[n] for one in sessions] for n in names}),
        source=pool.served.source_in(pool.task),
    )


def log(text: str) -> None:
    """A line of the server's log: standard error."""
    print(text, file=sys.stderr, flush=True)


class _AtWork:
    """Around each request that is under way. Raises Refused where the server is about to end."""

    def __init__(self) -> None:
        self.closing = False
        self.calm = asyncio.Event()
        self.calm.set()
        self._count = 0

    def __enter__(self) -> None:
        if self.closing:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the server is about to end")
        if not self._count:
            self.calm.clear()
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self.calm.set()


class _Fault:
    """Around the work of a request: what went wrong, as its client is told it.

    What is cancelled, or ends the process, goes on up.
    """

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self.told: tuple[grpc.StatusCode, str] = grpc.StatusCode.OK, ""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self.told = self._tell(error)
        return True

    def _tell(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        if isinstance(error, Refused):
            return error.code, sentence(error.why)
        if isinstance(error, wire.Malformed | SpaceMismatch):
            return INVALID, sentence(f"the request does not fit: {error}")
        if type(error) is UserError:  # not of those that tell what the world did to a run
            return INVALID, sentence(error)
        number = next(self._numbers)
        log(f"fault {number}:\n{''.join(traceback.format_exception(error))}")
        why = f"the server failed at this request; its log says why, under fault {number}"
        return grpc.StatusCode.INTERNAL, why

    @property
    def refusal(self) -> pb.Refusal | None:
        """It as a message; None where all is well."""
        code, why = self.told
        return None if code is grpc.StatusCode.OK else pb.Refusal(code=code.value[0], why=why)


def _refusal(fault: _Fault) -> pb.ActAnswer:
    return pb.ActAnswer(refusal=fault.refusal)
