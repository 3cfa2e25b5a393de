from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Leaf(_message.Message):
    __slots__ = ("path", "values", "held")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    path: str
    values: Array
    held: bool
    def __init__(self, path: _Optional[str] = ..., values: _Optional[_Union[Array, _Mapping]] = ..., held: _Optional[bool] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("incarnation", "learner_step")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEARNER_STEP_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    learner_step: int
    def __init__(self, incarnation: _Optional[int] = ..., learner_step: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "why")
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    code: int
    why: str
    def __init__(self, code: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeafForm(_message.Message):
    __slots__ = ("path", "kind", "dtype", "shape", "choices", "low", "high", "starts", "channels_last", "held")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_LAST_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    choices: _containers.RepeatedScalarFieldContainer[int]
    low: _containers.RepeatedScalarFieldContainer[float]
    high: _containers.RepeatedScalarFieldContainer[float]
    starts: _containers.RepeatedScalarFieldContainer[int]
    channels_last: bool
    held: bool
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., choices: _Optional[_Iterable[int]] = ..., low: _Optional[_Iterable[float]] = ..., high: _Optional[_Iterable[float]] = ..., starts: _Optional[_Iterable[int]] = ..., channels_last: _Optional[bool] = ..., held: _Optional[bool] = ...) -> None: ...

class TaskForm(_message.Message):
    __slots__ = ("name", "observations", "actions", "action_tuples")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ACTION_TUPLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    observations: _containers.RepeatedCompositeFieldContainer[LeafForm]
    actions: _containers.RepeatedCompositeFieldContainer[LeafForm]
    action_tuples: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., observations: _Optional[_Iterable[_Union[LeafForm, _Mapping]]] = ..., actions: _Optional[_Iterable[_Union[LeafForm, _Mapping]]] = ..., action_tuples: _Optional[_Iterable[str]] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("algorithm", "tasks", "commands", "version", "takes_episodes")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TAKES_EPISODES_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    tasks: _containers.RepeatedCompositeFieldContainer[TaskForm]
    commands: _containers.RepeatedScalarFieldContainer[str]
    version: Version
    takes_episodes: bool
    def __init__(self, algorithm: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskForm, _Mapping]]] = ..., commands: _Optional[_Iterable[str]] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., takes_episodes: _Optional[bool] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("task", "rows", "command", "mode", "seed", "prompt", "goal", "sessions", "newest")
    class CommandEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Numbers
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    task: str
    rows: int
    command: _containers.MessageMap[str, Numbers]
    mode: str
    seed: int
    prompt: Episode
    goal: _containers.RepeatedCompositeFieldContainer[Leaf]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    newest: bool
    def __init__(self, task: _Optional[str] = ..., rows: _Optional[int] = ..., command: _Optional[_Mapping[str, Numbers]] = ..., mode: _Optional[str] = ..., seed: _Optional[int] = ..., prompt: _Optional[_Union[Episode, _Mapping]] = ..., goal: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ..., sessions: _Optional[_Iterable[bytes]] = ..., newest: _Optional[bool] = ...) -> None: ...

class StartAnswer(_message.Message):
    __slots__ = ("sessions", "task", "version", "command", "source")
    class CommandEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Numbers
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    task: str
    version: Version
    command: _containers.MessageMap[str, Numbers]
    source: str
    def __init__(self, sessions: _Optional[_Iterable[bytes]] = ..., task: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., command: _Optional[_Mapping[str, Numbers]] = ..., source: _Optional[str] = ...) -> None: ...

class ActRequest(_message.Message):
    __slots__ = ("sessions", "observations", "rewards", "first")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    observations: _containers.RepeatedCompositeFieldContainer[Leaf]
    rewards: _containers.RepeatedScalarFieldContainer[float]
    first: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, sessions: _Optional[_Iterable[bytes]] = ..., observations: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ..., rewards: _Optional[_Iterable[float]] = ..., first: _Optional[_Iterable[bool]] = ...) -> None: ...

class ActAnswer(_message.Message):
    __slots__ = ("actions", "refusal")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[Leaf]
    refusal: Refusal
    def __init__(self, actions: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class EndRequest(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sessions: _Optional[_Iterable[bytes]] = ...) -> None: ...

class EndAnswer(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadAnswer(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: Version
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class Episode(_message.Message):
    __slots__ = ("task", "observations", "actions", "rewards", "terminated", "command", "version", "source")
    class CommandEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    task: str
    observations: _containers.RepeatedCompositeFieldContainer[Leaf]
    actions: _containers.RepeatedCompositeFieldContainer[Leaf]
    rewards: Array
    terminated: bool
    command: _containers.ScalarMap[str, float]
    version: Version
    source: str
    def __init__(self, task: _Optional[str] = ..., observations: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ..., actions: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ..., rewards: _Optional[_Union[Array, _Mapping]] = ..., terminated: _Optional[bool] = ..., command: _Optional[_Mapping[str, float]] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., source: _Optional[str] = ...) -> None: ...

class EpisodeUpload(_message.Message):
    __slots__ = ("client", "sequence", "episode")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    client: int
    sequence: int
    episode: Episode
    def __init__(self, client: _Optional[int] = ..., sequence: _Optional[int] = ..., episode: _Optional[_Union[Episode, _Mapping]] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("sequence", "refusal")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    refusal: Refusal
    def __init__(self, sequence: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
