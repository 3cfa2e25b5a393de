"""Act with a policy that is served elsewhere, and send it episodes: one file, which may be copied.

It needs grpcio, protobuf and numpy; neither torch, Ray nor gymnasium.

    from bigdm_ray.client import connect

    policy = connect("127.0.0.1:50051").start(desired_return=200)
    action = policy(observation, reward)        # the first step of an episode has no reward
    policy.reset(desired_return=250)            # before each other episode

Values are gymnasium's: what `env.reset` and `env.step` give, what `env.step` takes. With
`start(n=8)` they are those of a vector environment of 8. What the server refuses is a
`PolicyError`. `policy.episode(observation, reward, terminated)` is what was lived through since
the last reset; `client.put(episode)` sends it to the run that learns there, and `client.flush()`
returns once all are durable.
"""

from __future__ import annotations

import base64
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pool, message_factory

TOKEN = "BIGDM_TOKEN"
"""The environment variable that holds the token, where `connect` is not given one."""
WAITING = 64
"""Episodes that are not durable yet, at most; then `put` waits."""
KEEP_ALIVE = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 20_000)]


class PolicyError(RuntimeError):
    """What the server refused, or that it is gone: `code` is gRPC's, the text one sentence."""

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.code = code


def connect(
    address: str,
    *,
    token: str | None = None,
    tls: bool | str = False,
    certificate: str | None = None,
    key: str | None = None,
    timeout: float = 60.0,
    max_message_mib: int = 32,
) -> Client:
    """A client of the server at HOST:PORT; `with` closes it.

    `token` is by default that of the environment variable BIGDM_TOKEN. `tls` is True, or the file
    (PEM) of the certificate that the server's must be signed by; `certificate` and `key` are those
    of the client, where the server asks for one. `timeout` are seconds that an answer is waited
    for, once a server is there. Raises PolicyError where there is none.
    """
    most = max_message_mib << 20
    options = [*KEEP_ALIVE]
    options += [(f"grpc.max_{way}_message_length", most) for way in ("send", "receive")]
    if tls:
        files = (tls if isinstance(tls, str) else None, key, certificate)
        credentials = grpc.ssl_channel_credentials(*map(_file, files))
        channel = grpc.secure_channel(address, credentials, options)
    else:
        channel = grpc.insecure_channel(address, options)
    token = os.environ.get(TOKEN) if token is None else token
    return Client(channel, address, token or None, timeout)


def _file(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:  # noqa: PTH123  (one file, few imports)
        return file.read()


class Client:
    """A connection. `connect` makes it. Several threads may share it, each with its own policy."""

    def __init__(
        self, channel: grpc.Channel, address: str, token: str | None, timeout: float
    ) -> None:
        self._channel, self._address, self._timeout = channel, address, timeout
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._sender: _Sender | None = None
        try:
            self.description = self._call("Describe", _message("DescribeRequest"), "Description")
        except PolicyError:
            channel.close()
            raise
        self._tasks = {task.name: task for task in self.description.tasks}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tasks(self) -> list[str]:
        """What the policy acts in."""
        return list(self._tasks)

    @property
    def commands(self) -> list[str]:
        """What it can be told, by name: `desired_return`, ..."""
        return list(self.description.commands)

    def start(
        self,
        task: str = "",
        *,
        n: int | None = None,
        mode: str = "",
        seed: int | None = None,
        goal: Mapping[str, Any] | None = None,
        prompt: Any = None,
        record: bool = False,
        **command: Any,
    ) -> RemotePolicy:
        """Sessions of one environment, or of n: a policy to call.

        `task` is needed where there are several. `mode` is sample, mean or plan, by default the
        server's; `seed` that of the chance in actions. `goal` are leaves of the observation, by
        path, that hold for the whole episode and need not be given again. `prompt` is an episode
        (of `RemotePolicy.episode`), where the policy reads one. With `record` the policy remembers
        what it saw and did, for `episode`. `command` are numbers by name, or arrays of n; what is
        not named is the server's own. Raises PolicyError.
        """
        if n is not None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"n is {n!r}, but a number of environments is expected, or None")
        request = _message("StartRequest", task=task, rows=n or 1, mode=mode)
        if seed is not None:
            request.seed = seed
        if prompt is not None:
            request.prompt.CopyFrom(prompt)
        _tell(request, command)
        form = self._tasks.get(task) or next(iter(self._tasks.values()))
        forms = {leaf.path: _Form(leaf) for leaf in form.observations}
        request.goal.extend(_leaves(_arrays(forms, goal or {}, n)))
        answer = self._call("Start", request, "StartAnswer")
        return RemotePolicy(self, answer, self._tasks[answer.task], n, set(goal or ()), record)

    def reload(self) -> tuple[int, int]:
        """Have the server load newer weights, if there are any; their version."""
        version = self._call("Reload", _message("ReloadRequest"), "ReloadAnswer").version
        return version.incarnation, version.learner_step

    def put(self, episode: Any) -> None:
        """Send an episode to the run that learns there; it is sent again until it is durable.

        Waits where WAITING of them are under way. Raises PolicyError for one that was refused
        before.
        """
        if self._sender is None:
            if not self.description.takes_episodes:
                why = f"{self._address} takes no episodes: no run learns there"
                raise PolicyError(grpc.StatusCode.FAILED_PRECONDITION, why)
            self._sender = _Sender(self._open("PutEpisodes"), self._timeout)
        self._sender.put(episode)

    def flush(self, timeout: float | None = None) -> int:
        """Wait until every episode that was put is durable; how many were, all together.

        Raises PolicyError for one that was refused, and where the time (in seconds) is over: those
        are still sent.
        """
        return 0 if self._sender is None else self._sender.flush(timeout)

    def close(self) -> None:
        """Close the connection. Episodes that are not durable yet are given up: see `flush`."""
        if self._sender is not None:
            self._sender.close()
        self._channel.close()

    def _call(self, method: str, request: Any, answer: str) -> Any:
        call = self._channel.unary_unary(
            f"/{_SERVICE}/{method}", type(request).SerializeToString, _kind(answer).FromString
        )
        try:
            return call(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _said(error) from None

    def _open(self, method: str) -> Any:
        """A function that opens a stream of bytes."""
        call = self._channel.stream_stream(f"/{_SERVICE}/{method}")
        return lambda requests: call(requests, metadata=self._metadata)


class RemotePolicy:
    """A policy that acts elsewhere: `action = policy(observation, reward)`. `start` makes it."""

    def __init__(
        self, client: Client, answer: Any, form: Any, n: int | None, held: set[str], record: bool
    ) -> None:
        self._client, self._form, self._n = client, form, n
        self._leaves = {leaf.path: _Form(leaf) for leaf in form.observations}
        self._actions = [_Form(leaf) for leaf in form.actions]
        self._sessions = list(answer.sessions)
        self._held = held
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = client._open("Stream")(iter(self._requests.get, None))
        self._first = [True] * len(self._sessions)
        self._record = record
        self._log: list[tuple[Any, Any, float]] = []
        self._take(answer)

    def _take(self, answer: Any) -> None:
        self.version = (answer.version.incarnation, answer.version.learner_step)
        """Of the weights that act: how often the run was begun, and the learner step."""
        self.source = answer.source
        self._command = {name: list(told.values) for name, told in answer.command.items()}

    @property
    def command(self) -> dict[str, Any]:
        """What the episode began with: numbers by name, or lists of n."""
        return {
            name: values[0] if self._n is None else list(values)
            for name, values in self._command.items()
        }

    def __call__(self, observation: Any, reward: Any = None) -> Any:
        """The action for an observation; `reward` is what the step before brought.

        Raises PolicyError for what the server refuses, and has then changed nothing there.
        """
        seen = self._seen(observation)
        request = _message("ActRequest", sessions=self._sessions, observations=_leaves(seen))
        rewards: list[float] = []
        if reward is not None:
            rewards = np.ravel(np.asarray(reward, np.float32)).tolist()
        elif not all(self._first):
            raise ValueError(
                "the reward of the step before is expected: policy(observation, reward)"
            )
        request.rewards.extend(rewards)
        self._requests.put(request.SerializeToString())
        try:
            answer = _kind("ActAnswer").FromString(next(self._answers))
        except grpc.RpcError as error:
            raise _said(error) from None
        except StopIteration:
            raise PolicyError(grpc.StatusCode.UNAVAILABLE, "the server has ended") from None
        if answer.HasField("refusal"):
            raise _refused(answer.refusal)
        actions = {leaf.path: _array(leaf.values) for leaf in answer.actions}
        if self._record:
            self._log.append((seen, actions, rewards[0] if rewards else 0.0))
        self._first = [False] * len(self._first)
        return _values(self._actions, self._form.action_tuples, actions, self._n)

    def reset(self, rows: Any = None, *, newest: bool = False, **command: Any) -> None:
        """A new episode begins, asked for what `command` says; the rest is as it was.

        `rows` is a mask of those of n that begin anew. `newest` has the newest weights act from now
        on: without it a session keeps those that it began with. Raises PolicyError.
        """
        mask = [True] * len(self._sessions) if rows is None else np.asarray(rows, bool).tolist()
        if len(mask) != len(self._sessions):
            raise ValueError(f"rows has {len(mask)} marks, but {len(self._sessions)} are expected")
        mine = [one for one, begins in zip(self._sessions, mask, strict=True) if begins]
        if not mine:
            return
        request = _message("StartRequest", sessions=mine, newest=newest)
        _tell(request, command)
        answer = self._client._call("Start", request, "StartAnswer")
        if len(mine) == len(self._sessions):
            self._take(answer)
        at = 0
        for row, begins in enumerate(mask):
            if begins:
                for name, told in answer.command.items():
                    self._command.setdefault(name, [0.0] * len(mask))[row] = told.values[at]
                self._first[row] = True
                at += 1
        self._log = []

    def episode(self, observation: Any, reward: Any, terminated: bool) -> Any:
        """The episode since the last reset, for `put` or as a prompt.

        `observation` and `reward` are the last ones; `terminated` says whether it ended by itself
        and not by a time limit.

        Of a policy of one environment that was started with `record=True`.
        """
        if not self._record or self._n is not None or not self._log:
            raise ValueError("an episode is expected of start(record=True) for one environment")
        seen = [*(one for one, _, _ in self._log), self._seen(observation)]
        rewards = [reward for _, _, reward in self._log[1:]] + [float(reward)]
        made = _message("Episode", task=self._form.name, terminated=bool(terminated))
        for path in seen[0]:
            made.observations.append(_leaf(path, np.concatenate([one[path] for one in seen])))
        for path in self._log[0][1]:
            made.actions.append(
                _leaf(path, np.concatenate([acted[path] for _, acted, _ in self._log]))
            )
        made.rewards.CopyFrom(_packed(np.array(rewards, np.float32)))
        made.version.incarnation, made.version.learner_step = self.version
        made.source = self.source
        for name, values in self._command.items():
            made.command[name] = values[0]
        return made

    def end(self) -> None:
        """End the sessions: what they hold there goes."""
        self._requests.put(None)
        self._client._call("End", _message("EndRequest", sessions=self._sessions), "EndAnswer")

    def _seen(self, observation: Any) -> dict[str, np.ndarray]:
        flat: dict[str, Any] = {}
        _flatten(observation, "", self._leaves, flat)
        given = {path: value for path, value in flat.items() if path not in self._held}
        return _arrays(self._leaves, given, self._n)


class _Sender:
    """Sends episodes until each is acknowledged, over as many streams as it takes."""

    def __init__(self, open_stream: Any, timeout: float) -> None:
        self._open, self._timeout = open_stream, timeout
        self._client = secrets.randbelow(2**62 - 1) + 1
        self._next = 0
        self._waiting: dict[int, bytes] = {}  # what is not acknowledged, by its sequence
        self._stored = 0
        self._refused: list[PolicyError] = []
        self._stream: queue.SimpleQueue[bytes | None] | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._call: Any = None
        threading.Thread(target=self._send, name="bigdm-episodes", daemon=True).start()

    def put(self, episode: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < WAITING or self._refused)
            self._raise()
            number, self._next = self._next, self._next + 1
            upload = _message("EpisodeUpload", client=self._client, sequence=number)
            upload.episode.CopyFrom(episode)
            self._waiting[number] = upload.SerializeToString()
            if self._stream is not None:
                self._stream.put(self._waiting[number])
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> int:
        with self._changed:
            done = self._changed.wait_for(lambda: not self._waiting or self._refused, timeout)
            self._raise()
            if not done:
                why = f"{len(self._waiting)} episodes are not durable yet; they are still sent"
                raise PolicyError(grpc.StatusCode.DEADLINE_EXCEEDED, why)
            return self._stored

    def _raise(self) -> None:
        if self._refused:
            raise self._refused.pop(0)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if self._stream is not None:
                self._stream.put(None)
            self._changed.notify_all()
        if self._call is not None:
            self._call.cancel()

    def _send(self) -> None:
        pause = 0.1
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._stream = queue.SimpleQueue()
                for data in self._waiting.values():
                    self._stream.put(data)
            try:
                self._call = self._open(iter(self._stream.get, None))
                for data in self._call:
                    self._note(_kind("Acknowledgement").FromString(data))
                    pause = 0.1
            except grpc.RpcError as error:
                self._lost(error)
            with self._changed:
                stream, self._stream = self._stream, None
                if stream is not None:
                    stream.put(None)  # ends the thread that reads it
            time.sleep(pause)
            pause = min(2.0, 2 * pause)

    def _lost(self, error: grpc.RpcError) -> None:
        """A stream broke: what is not acknowledged goes on the next, unless it is hopeless."""
        again = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
        if self._closed or error.code() in again:
            return
        with self._changed:
            self._refused.append(_said(error))
            self._waiting.clear()
            self._changed.notify_all()

    def _note(self, told: Any) -> None:
        with self._changed:
            if (
                told.HasField("refusal")
                and told.refusal.code == grpc.StatusCode.UNAVAILABLE.value[0]
            ):
                return  # the server is about to end; it is sent again to the next
            if self._waiting.pop(told.sequence, None) is not None:
                if told.HasField("refusal"):
                    self._refused.append(_refused(told.refusal))
                else:
                    self._stored += 1
            self._changed.notify_all()


# --- values of gymnasium as arrays, and back


class _Form:
    """What the arrays of a leaf look like: LeafForm of policy.proto, read once."""

    def __init__(self, leaf: Any) -> None:
        self.path, self.kind = leaf.path, leaf.kind
        self.shape = tuple(leaf.shape)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.channels_last = leaf.channels_last
        self.starts = np.reshape(leaf.starts, self.shape) if leaf.starts else None
        bounded = leaf.kind == "tensor" and len(leaf.low) > 0
        self.bounds = (
            tuple(np.reshape(bound, self.shape) for bound in (leaf.low, leaf.high))
            if bounded
            else None
        )


def _flatten(value: Any, path: str, known: Mapping[str, Any], out: dict[str, Any]) -> None:
    """The parts of a Dict or Tuple by path."""
    if isinstance(value, dict | Mapping) or (isinstance(value, tuple) and path not in known):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, part in parts:
            _flatten(part, f"{path}/{name}" if path else str(name), known, out)
    else:
        out[path] = value


def _arrays(
    forms: Mapping[str, _Form], values: Mapping[str, Any], n: int | None
) -> dict[str, np.ndarray]:
    """Values of leaves by path as rows; of what is not known the server tells."""
    return {
        path: _rows(forms[path], value, n) if path in forms else np.asarray([value])
        for path, value in values.items()
    }


def _rows(form: _Form, value: Any, n: int | None) -> np.ndarray:
    """A value of a leaf, or n of them, as rows in the layout of the wire."""
    if form.kind == "text":
        texts = [value] if n is None else list(value)
        if all(isinstance(text, str) for text in texts):
            width = form.shape[0]
            data = b"".join(text.encode()[:width].ljust(width, b"\0") for text in texts)
            return np.frombuffer(data, np.uint8).reshape(len(texts), width)
    array = np.asarray(value)
    rows = array[None] if n is None else array
    if rows.dtype == bool:
        rows = rows.astype(np.uint8)
    if form.starts is not None and rows.dtype.kind in "iu":
        rows = rows.astype(np.int64) - form.starts
    if form.channels_last and rows.ndim == 4:
        rows = np.moveaxis(rows, -1, 1)
    if rows.shape[1:] != form.shape and rows.ndim and rows.size == len(rows) * form.size:
        rows = rows.reshape(len(rows), *form.shape)
    return rows


def _values(
    forms: list[_Form], tuples: Any, actions: Mapping[str, np.ndarray], n: int | None
) -> Any:
    """What `env.step` takes: a value, or n of them; elements of a Box within its bounds."""
    tree: dict[str, Any] = {}
    for form in forms:
        value = _value(form, actions[form.path], n)
        if not form.path:
            return value
        *folders, name = form.path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = value
    return _tupled(tree, "", set(tuples))


def _value(form: _Form, rows: np.ndarray, n: int | None) -> Any:
    if form.kind == "discrete":
        rows = rows.astype(np.int64)
        if form.starts is not None:
            rows = rows + form.starts
        if n is None and not form.shape:
            return int(rows[0])
    elif form.bounds is not None:
        rows = np.clip(rows, *form.bounds).astype(rows.dtype)
    elif form.kind == "text":
        texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]
        return texts[0] if n is None else tuple(texts)
    return rows[0] if n is None else rows


def _tupled(tree: Any, path: str, tuples: set[str]) -> Any:
    if not isinstance(tree, dict):
        return tree
    made = {k: _tupled(v, f"{path}/{k}" if path else k, tuples) for k, v in tree.items()}
    return tuple(made[key] for key in sorted(made, key=int)) if path in tuples else made


# --- messages


def _tell(request: Any, command: Mapping[str, Any]) -> None:
    for name, value in command.items():
        request.command[name].values.extend(np.ravel(np.asarray(value, np.float64)).tolist())


def _leaves(arrays: Mapping[str, Any]) -> list[Any]:
    return [_leaf(path, values) for path, values in arrays.items()]


def _leaf(path: str, values: Any) -> Any:
    return _message("Leaf", path=path, values=_packed(np.asarray(values)))


def _packed(values: np.ndarray) -> Any:
    name = _NAMES.get(values.dtype) or values.dtype.name
    little = values if sys.byteorder == "little" else values.astype(values.dtype.newbyteorder("<"))
    return _message("Array", dtype=name, shape=values.shape, data=little.tobytes())


def _array(message: Any) -> np.ndarray:
    little, dtype = _TYPES[message.dtype]
    return np.frombuffer(message.data, little).reshape(tuple(message.shape)).astype(dtype)


_TYPES = {
    name: (np.dtype(name).newbyteorder("<"), np.dtype(name))
    for name in ("float16", "float32", "float64")
    + tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
}
_NAMES = {dtype: name for name, (_, dtype) in _TYPES.items()}


def _said(error: Any) -> PolicyError:
    return PolicyError(error.code(), str(error.details() or error.code().name))


def _refused(refusal: Any) -> PolicyError:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    return PolicyError(codes.get(refusal.code, grpc.StatusCode.UNKNOWN), refusal.why)


_DESCRIPTOR = """
Ch5iaWdkbV9yYXkvc2VydmluZy9wb2xpY3kucHJvdG8SBWJpZ2RtIkcKBUFycmF5EhQKBWR0eXBlGAEgASgJUgVkdHlwZRIUCgVz
aGFwZRgCIAMoBFIFc2hhcGUSEgoEZGF0YRgDIAEoDFIEZGF0YSJUCgRMZWFmEhIKBHBhdGgYASABKAlSBHBhdGgSJAoGdmFsdWVz
GAIgASgLMgwuYmlnZG0uQXJyYXlSBnZhbHVlcxISCgRoZWxkGAMgASgIUgRoZWxkIiEKB051bWJlcnMSFgoGdmFsdWVzGAEgAygB
UgZ2YWx1ZXMiTgoHVmVyc2lvbhIgCgtpbmNhcm5hdGlvbhgBIAEoBFILaW5jYXJuYXRpb24SIQoMbGVhcm5lcl9zdGVwGAIgASgE
UgtsZWFybmVyU3RlcCIvCgdSZWZ1c2FsEhIKBGNvZGUYASABKA1SBGNvZGUSEAoDd2h5GAIgASgJUgN3aHkiEQoPRGVzY3JpYmVS
ZXF1ZXN0Iu8BCghMZWFmRm9ybRISCgRwYXRoGAEgASgJUgRwYXRoEhIKBGtpbmQYAiABKAlSBGtpbmQSFAoFZHR5cGUYAyABKAlS
BWR0eXBlEhQKBXNoYXBlGAQgAygEUgVzaGFwZRIYCgdjaG9pY2VzGAUgAygDUgdjaG9pY2VzEhAKA2xvdxgGIAMoAVIDbG93EhIK
BGhpZ2gYByADKAFSBGhpZ2gSFgoGc3RhcnRzGAggAygDUgZzdGFydHMSIwoNY2hhbm5lbHNfbGFzdBgJIAEoCFIMY2hhbm5lbHNM
YXN0EhIKBGhlbGQYCiABKAhSBGhlbGQiowEKCFRhc2tGb3JtEhIKBG5hbWUYASABKAlSBG5hbWUSMwoMb2JzZXJ2YXRpb25zGAIg
AygLMg8uYmlnZG0uTGVhZkZvcm1SDG9ic2VydmF0aW9ucxIpCgdhY3Rpb25zGAMgAygLMg8uYmlnZG0uTGVhZkZvcm1SB2FjdGlv
bnMSIwoNYWN0aW9uX3R1cGxlcxgEIAMoCVIMYWN0aW9uVHVwbGVzIr8BCgtEZXNjcmlwdGlvbhIcCglhbGdvcml0aG0YASABKAlS
CWFsZ29yaXRobRIlCgV0YXNrcxgCIAMoCzIPLmJpZ2RtLlRhc2tGb3JtUgV0YXNrcxIaCghjb21tYW5kcxgDIAMoCVIIY29tbWFu
ZHMSKAoHdmVyc2lvbhgEIAEoCzIOLmJpZ2RtLlZlcnNpb25SB3ZlcnNpb24SJQoOdGFrZXNfZXBpc29kZXMYBSABKAhSDXRha2Vz
RXBpc29kZXMi8QIKDFN0YXJ0UmVxdWVzdBISCgR0YXNrGAEgASgJUgR0YXNrEhIKBHJvd3MYAiABKA1SBHJvd3MSOgoHY29tbWFu
ZBgDIAMoCzIgLmJpZ2RtLlN0YXJ0UmVxdWVzdC5Db21tYW5kRW50cnlSB2NvbW1hbmQSEgoEbW9kZRgEIAEoCVIEbW9kZRIXCgRz
ZWVkGAUgASgESABSBHNlZWSIAQESJgoGcHJvbXB0GAYgASgLMg4uYmlnZG0uRXBpc29kZVIGcHJvbXB0Eh8KBGdvYWwYByADKAsy
Cy5iaWdkbS5MZWFmUgRnb2FsEhoKCHNlc3Npb25zGAggAygMUghzZXNzaW9ucxIWCgZuZXdlc3QYCSABKAhSBm5ld2VzdBpKCgxD
b21tYW5kRW50cnkSEAoDa2V5GAEgASgJUgNrZXkSJAoFdmFsdWUYAiABKAsyDi5iaWdkbS5OdW1iZXJzUgV2YWx1ZToCOAFCBwoF
X3NlZWQihgIKC1N0YXJ0QW5zd2VyEhoKCHNlc3Npb25zGAEgAygMUghzZXNzaW9ucxISCgR0YXNrGAIgASgJUgR0YXNrEigKB3Zl
cnNpb24YAyABKAsyDi5iaWdkbS5WZXJzaW9uUgd2ZXJzaW9uEjkKB2NvbW1hbmQYBCADKAsyHy5iaWdkbS5TdGFydEFuc3dlci5D
b21tYW5kRW50cnlSB2NvbW1hbmQSFgoGc291cmNlGAUgASgJUgZzb3VyY2UaSgoMQ29tbWFuZEVudHJ5EhAKA2tleRgBIAEoCVID
a2V5EiQKBXZhbHVlGAIgASgLMg4uYmlnZG0uTnVtYmVyc1IFdmFsdWU6AjgBIokBCgpBY3RSZXF1ZXN0EhoKCHNlc3Npb25zGAEg
AygMUghzZXNzaW9ucxIvCgxvYnNlcnZhdGlvbnMYAiADKAsyCy5iaWdkbS5MZWFmUgxvYnNlcnZhdGlvbnMSGAoHcmV3YXJkcxgD
IAMoAlIHcmV3YXJkcxIUCgVmaXJzdBgEIAMoCFIFZmlyc3QiXAoJQWN0QW5zd2VyEiUKB2FjdGlvbnMYASADKAsyCy5iaWdkbS5M
ZWFmUgdhY3Rpb25zEigKB3JlZnVzYWwYAiABKAsyDi5iaWdkbS5SZWZ1c2FsUgdyZWZ1c2FsIigKCkVuZFJlcXVlc3QSGgoIc2Vz
c2lvbnMYASADKAxSCHNlc3Npb25zIgsKCUVuZEFuc3dlciIPCg1SZWxvYWRSZXF1ZXN0IjgKDFJlbG9hZEFuc3dlchIoCgd2ZXJz
aW9uGAEgASgLMg4uYmlnZG0uVmVyc2lvblIHdmVyc2lvbiLyAgoHRXBpc29kZRISCgR0YXNrGAEgASgJUgR0YXNrEi8KDG9ic2Vy
dmF0aW9ucxgCIAMoCzILLmJpZ2RtLkxlYWZSDG9ic2VydmF0aW9ucxIlCgdhY3Rpb25zGAMgAygLMgsuYmlnZG0uTGVhZlIHYWN0
aW9ucxImCgdyZXdhcmRzGAQgASgLMgwuYmlnZG0uQXJyYXlSB3Jld2FyZHMSHgoKdGVybWluYXRlZBgFIAEoCFIKdGVybWluYXRl
ZBI1Cgdjb21tYW5kGAYgAygLMhsuYmlnZG0uRXBpc29kZS5Db21tYW5kRW50cnlSB2NvbW1hbmQSKAoHdmVyc2lvbhgHIAEoCzIO
LmJpZ2RtLlZlcnNpb25SB3ZlcnNpb24SFgoGc291cmNlGAggASgJUgZzb3VyY2UaOgoMQ29tbWFuZEVudHJ5EhAKA2tleRgBIAEo
CVIDa2V5EhQKBXZhbHVlGAIgASgBUgV2YWx1ZToCOAEibQoNRXBpc29kZVVwbG9hZBIWCgZjbGllbnQYASABKARSBmNsaWVudBIa
CghzZXF1ZW5jZRgCIAEoBFIIc2VxdWVuY2USKAoHZXBpc29kZRgDIAEoCzIOLmJpZ2RtLkVwaXNvZGVSB2VwaXNvZGUiVwoPQWNr
bm93bGVkZ2VtZW50EhoKCHNlcXVlbmNlGAEgASgEUghzZXF1ZW5jZRIoCgdyZWZ1c2FsGAIgASgLMg4uYmlnZG0uUmVmdXNhbFIH
cmVmdXNhbDLzAgoGUG9saWN5EjYKCERlc2NyaWJlEhYuYmlnZG0uRGVzY3JpYmVSZXF1ZXN0GhIuYmlnZG0uRGVzY3JpcHRpb24S
MAoFU3RhcnQSEy5iaWdkbS5TdGFydFJlcXVlc3QaEi5iaWdkbS5TdGFydEFuc3dlchIqCgNBY3QSES5iaWdkbS5BY3RSZXF1ZXN0
GhAuYmlnZG0uQWN0QW5zd2VyEjEKBlN0cmVhbRIRLmJpZ2RtLkFjdFJlcXVlc3QaEC5iaWdkbS5BY3RBbnN3ZXIoATABEioKA0Vu
ZBIRLmJpZ2RtLkVuZFJlcXVlc3QaEC5iaWdkbS5FbmRBbnN3ZXISMwoGUmVsb2FkEhQuYmlnZG0uUmVsb2FkUmVxdWVzdBoTLmJp
Z2RtLlJlbG9hZEFuc3dlchI/CgtQdXRFcGlzb2RlcxIULmJpZ2RtLkVwaXNvZGVVcGxvYWQaFi5iaWdkbS5BY2tub3dsZWRnZW1l
bnQoATABYgZwcm90bzM=
"""

_SERVICE = "bigdm.Policy"
_POOL = descriptor_pool.DescriptorPool()
_FILE = _POOL.AddSerializedFile(base64.b64decode(_DESCRIPTOR))
_KINDS: dict[str, Any] = {}


def _kind(name: str) -> Any:
    """The class of a message of policy.proto."""
    if name not in _KINDS:
        described = _POOL.FindMessageTypeByName(f"bigdm.{name}")
        _KINDS[name] = message_factory.GetMessageClass(described)
    return _KINDS[name]


def _message(name: str, **fields: Any) -> Any:
    return _kind(name)(**fields)
