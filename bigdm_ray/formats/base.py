"""What a foreign format must answer, how formats are found, and which task a source is of.

A format is a file of this folder with `FORMAT = TheClass()` at its end; no list is edited to add one. It says whether it
recognises a source, opens it as a `Reader` of whole episodes, and may write a dataset back. A Reader yields what the
file holds, in its dtypes; `checks.conform` holds each episode against the signature afterwards, so that a reader
answers only for what its layout can get wrong. Nothing here unpickles, and no module is imported because a file says so.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bigdm_ray.envs import arguments
from bigdm_ray.envs.task import NONE, Leaf, Signature, Task, find_task, tasks
from bigdm_ray.errors import UserError, install
from bigdm_ray.replay.episode import Episode

if TYPE_CHECKING:
    from bigdm_ray.formats.dataset import Dataset

Advance = Callable[[int], None]
"""Is told how many steps have gone by."""

MAX_EPISODE_BYTES = 2 << 30
"""A field of an episode that claims more is refused before memory is asked for."""

WRAPPERS = "additional_wrappers"
"""How gymnasium calls the wrappers of a description; never made from one."""

MAX_WORDS = 200
"""Characters of arguments in a message or on a card, at most."""

_ENV_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_VERSION = re.compile(r"-v\d+$")


@dataclass(frozen=True)
class Said:
    """What a source tells about itself before its episodes are read; empty or None where it is silent."""

    name: str  # path or id, for messages and for the card
    env_id: str = ""
    env_kwargs: dict[str, Any] | None = None
    signature: Signature | None = None
    versions: dict[str, str] = field(default_factory=dict)
    episodes: int | None = None
    steps: int | None = None
    task: str = ""  # of a file that this project has written
    likely: str = ""  # the task that its name speaks of
    reference_returns: tuple[float, float] | None = None  # random, expert


class Reader(ABC):
    """An open source."""

    said: Said
    taken: Mapping[str, str] = MappingProxyType({})
    """Which of its columns were taken for what."""
    notes: tuple[str, ...] = ()
    """What is to be told of an import, a sentence each."""
    beside: tuple[str, ...] = ()
    """Names of what was found beside what episodes have, and not read."""

    @abstractmethod
    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """The episodes in their order without the first `skip`, lazily; numbered by `Episode.id.number` from 0.

        Leaves are named and shaped as in `signature`; dtypes and values are the file's own. Raises UserError.
        """

    def looks(self) -> Signature | None:
        """What its arrays look like where `said` tells no signature; None where the layout leaves it open. Raises UserError."""
        return None

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the episodes lie in: where one changes, an interrupted import begins anew."""

    def place(self, number: int) -> str:
        """Where an episode is, for messages."""
        return f"{self.said.name}, episode {number}"


class Format(ABC):
    """A foreign format. Nothing is read when one is made."""

    name: str
    about: str
    writes = False

    @abstractmethod
    def recognises(self, source: str) -> bool:
        """Whether this is a source of this format. Raises UserError for a file that is torn."""

    @abstractmethod
    def open(self, source: str) -> Reader:
        """Open a source that was recognised. Raises UserError."""

    def write(self, dataset: Dataset, folder: Path, advance: Advance) -> None:
        """Write a dataset into an empty folder, streaming."""
        raise NotImplementedError(f"{self.name} is not written")


def formats() -> dict[str, Format]:
    """Every format of this folder by name. A file is found by being there."""
    package = importlib.import_module("bigdm_ray.formats")
    found: dict[str, Format] = {}
    for _, name, _ in pkgutil.iter_modules(package.__path__):
        made = getattr(importlib.import_module(f"bigdm_ray.formats.{name}"), "FORMAT", None)
        if made is not None:
            found[made.name] = made
    return dict(sorted(found.items()))


def open_source(source: str) -> Reader:
    """The reader of whatever format recognises the source. Raises UserError where none does."""
    for made in formats().values():
        if made.recognises(source):
            return made.open(source)
    kinds = "; ".join(made.about for made in formats().values())
    what = (
        "is of no format that is known here"
        if Path(source).exists()
        else "is no file, no folder, and no id of a Minari dataset (minari:NAME-v0)"
    )
    raise UserError(f"{source} {what}; known are: {kinds}")


def needed(module: str, extra: str) -> Any:
    """An optional package. Raises UserError, naming the extra that helps, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this format needs the package {module!r} ({error}); install it with: {install(extra)}"
        ) from None


def vacant(folder: Path) -> Path:
    """`folder`, where nothing may be yet. Raises UserError."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"--folder {folder} exists already; choose another, or delete it first")
    return folder


def inside(path: Path, folder: Path) -> Path:
    """`path`, which must lie in `folder` once links are followed. Raises UserError."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads out of {folder} (to {path.resolve()}); nothing was imported")
    return path


# --- which task


def task_of(
    said: Said, asked: str | None, looks: Callable[[], Signature | None] = lambda: None
) -> tuple[str, Signature]:
    """The task of a source, and its signature: the task's own where it can be made, else the file's.

    Of `none`, which is asked for or of a dataset that was imported so, it is what the file tells, else what it `looks` like.

    Without `asked` the short name of the very environment that the source names is taken, else `gymnasium:ID`, with the
    arguments that it tells. Raises UserError where the source says nothing, is of another task than asked, or does not look
    like its task, and where its environment cannot be had so: scores would come from another one, which only `asked` can want.
    """
    if NONE in (asked, said.task) and asked in (None, NONE):
        if (signature := said.signature or looks()) is None:
            raise UserError(
                f"{said.name} does not tell what its observations and actions look like, so that an "
                "environment must; name one with --task TASK"
            )
        return NONE, signature
    written = said.task != NONE and _written(said.task)
    if written and asked in (None, said.task):
        asked = said.task
    elif written:
        raise UserError(
            f"{said.name} is a dataset of another task: {said.task}, not {asked}; nothing was imported"
        )
    elif said.task and asked is None:
        raise UserError(
            f"{said.name} is of the task {said.task!r}, which is not known here; "
            "name the task with --task TASK, since no code is imported because a file names it"
        )
    elif not said.env_id and asked is None:
        raise UserError(
            f"{said.name} does not say which environment it is of; name the task with --task TASK, "
            "or have none with --task none: it then trains without scores"
        )
    if said.env_id and not written and not _ENV_ID.fullmatch(said.env_id):
        raise UserError(
            f"{said.name} names the environment {said.env_id!r}, which is no plain gymnasium id; nothing was imported"
        )
    name = asked or said.likely or _guess(said)
    task = find_task(name)
    if asked is not None and said.env_id and not written and not _kin(said, task):
        raise UserError(
            f"{said.name} is a dataset of another task: its environment is {said.env_id}, not {asked}; nothing was imported"
        )
    try:
        signature = task.signature()
    except UserError:
        if said.signature is None:
            raise
        return task.name, said.signature
    if said.signature is not None and (why := misfit(said.signature, signature)):
        raise UserError(
            f"{said.name} is a dataset of another task than {task.name}: {why}; nothing was imported"
        )
    return task.name, signature


def _guess(said: Said) -> str:
    for task in tasks().values():
        if task.wrap is None and _alike(task.name, said.env_id) and _same_environment(said, task):
            fits = (
                spec_of(task) is None
                or said.signature is None
                or misfit(said.signature, task.signature()) is None
            )
            if fits:
                return task.name
    return _modified(said, told) if (told := differences(said)) else f"gymnasium:{said.env_id}"


def _written(task: str) -> bool:
    """Whether a file may name this task: a short name, or a gymnasium id with arguments that lead nowhere."""
    if task in tasks():
        return True
    try:
        base, given = arguments.split(task)
        env_id = base.removeprefix("gymnasium:")
        if base == env_id or not _ENV_ID.fullmatch(env_id):
            return False
        return not given or arguments.plain(arguments.typed(given, env_id))
    except UserError:
        return False


def _modified(said: Said, told: dict[str, Any]) -> str:
    """The task of the very environment that a source tells, made with arguments. Raises UserError where there is none."""
    import gymnasium

    why = ""
    if said.env_id not in gymnasium.registry:
        why = "it is not registered here"
    elif WRAPPERS in told:
        why = "its wrappers are code, which no file brings along"
    elif not arguments.plain(told):
        why = "only numbers, truth values and plain words are taken from a file"
    else:
        name = arguments.joined(f"gymnasium:{said.env_id}", told)
        try:
            env = find_task(name).env(None)
            env.close()
        except UserError as error:
            why = str(error)
        else:
            if not differences(said, name):
                return name
            why = "made anew with them it has others"
    raise UserError(
        f"{said.name} is of {said.env_id} made with arguments ({_in_words(told)}), for which there "
        f"is no task ({why}); name the task with --task TASK to score on another; nothing was imported"
    )


def _base(env_id: str) -> str:
    return _VERSION.sub("", env_id.rpartition("/")[2]).lower()


def _alike(name: str, env_id: str) -> bool:
    """A cheap question before an environment is made: might `lunarlander-continuous` be LunarLander-v3?"""
    base = _base(env_id)
    return base in (name.replace("-", ""), name.partition("-")[0], name)


def _same_environment(said: Said, task: Task) -> bool:
    """Whether the id, with its arguments where they are told, makes the task's own environment."""
    import gymnasium

    mine = spec_of(task)
    if mine is None:
        return _alike(task.name, said.env_id)
    theirs = gymnasium.registry.get(said.env_id)
    if theirs is None:
        return False
    unsaid = (
        said.env_kwargs is None and mine.id == theirs.id
    )  # an id alone: the signature decides between its variants
    if unsaid:
        return bool(mine.max_episode_steps == theirs.max_episode_steps)
    return bool(mine.entry_point == theirs.entry_point) and _arguments(
        said.env_id, said.env_kwargs or {}
    ) == _arguments_of(mine)


def altered(said: Said, task: str = "") -> str:
    """`differences` in words, for a card or a message; empty where there are none."""
    return _in_words(differences(said, task))


def _in_words(told: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in told.items())[:MAX_WORDS]


def differences(said: Said, task: str = "") -> dict[str, Any]:
    """Arguments of a source's environment that are not those of the task; without a task not those that its id alone stands for.

    Empty where it tells none.
    """
    import gymnasium

    if said.env_kwargs is None:
        return {}
    theirs = gymnasium.registry.get(said.env_id)
    mine = spec_of(find_task(task)) if task else None
    usual = (
        _arguments_of(mine)
        if mine and theirs and mine.entry_point == theirs.entry_point
        else _arguments(said.env_id, {})
    )
    told = _arguments(said.env_id, said.env_kwargs)
    return {
        name: value for name, value in told.items() if name not in usual or value != usual[name]
    }


def _arguments(env_id: str, told: dict[str, Any]) -> dict[str, Any]:
    """What an environment is made with, its time limit and wrappers included, when it is told these arguments."""
    usual = _defaults(env_id)
    known = {
        name: value
        for name, value in told.items()
        if name in usual or (value not in (None, []) and (usual or name != arguments.LIMIT))
    }
    return {name: _plain(value) for name, value in (usual | known).items() if name != "render_mode"}


def _arguments_of(spec: Any) -> dict[str, Any]:
    return _arguments(spec.id, spec.kwargs | _outside(spec))


def _outside(spec: Any) -> dict[str, Any]:
    return {
        arguments.LIMIT: spec.max_episode_steps,
        WRAPPERS: [wrapper.name for wrapper in spec.additional_wrappers],
    }


@functools.lru_cache(maxsize=64)
def _defaults(env_id: str) -> dict[str, Any]:
    """The arguments that an id alone stands for: those of its registration, else of its constructor; empty where it is not registered here."""
    import gymnasium

    spec = gymnasium.registry.get(env_id)
    if spec is None:
        return {}
    try:
        made_by = arguments.maker(spec)
        parameters = inspect.signature(made_by).parameters.values() if made_by else ()
    except (TypeError, ValueError):
        parameters = ()
    usual = {one.name: one.default for one in parameters if one.default is not one.empty}
    return usual | spec.kwargs | _outside(spec)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples and arrays are lists."""
    return json.loads(
        json.dumps(value, default=lambda one: one.tolist() if hasattr(one, "tolist") else repr(one))
    )


def _kin(said: Said, task: Task) -> bool:
    """Whether the source is of the task's environment, whatever its version."""
    if task.wrap is not None:  # its rewards are others
        return False
    mine = spec_of(task)
    ids = [
        task.name,
        arguments.split(task.name)[0].partition(":")[2],
        *([] if mine is None else [mine.id]),
    ]
    return _alike(task.name, said.env_id) or _base(said.env_id) in [_base(id) for id in ids]


@functools.lru_cache(maxsize=64)
def _spec(name: str) -> Any:
    task = find_task(name)
    try:
        task.require()
        env = task.env(None)
    except UserError:
        return None
    try:
        return env.spec
    finally:
        env.close()


def spec_of(task: Task) -> Any:
    """gymnasium's EnvSpec of a task, or None where it cannot be made here or was not registered."""
    return _spec(task.name)


def step_limit(task: str) -> int | None:
    """The steps after which the environment of a task truncates an episode, or None where that is not known."""
    limit = getattr(spec_of(find_task(task)), "max_episode_steps", None)
    return None if limit is None else int(limit)


def misfit(theirs: Signature, mine: Signature) -> str | None:
    """The first difference between the arrays of a source and those of a task, in words; bounds and dtypes do not count."""
    for what, a, b in (
        ("observations", theirs.observations, mine.observations),
        ("actions", theirs.actions, mine.actions),
    ):
        if a.keys() != b.keys():
            path = sorted(a.keys() ^ b.keys())[0]
            return f"its {what} {'have' if path in a else 'lack'} {path!r}"
        for path in a:
            if _form(a[path]) != _form(b[path]):
                return f"its {field_name(what, path)} are {words(a[path])} where {words(b[path])} is expected"
    return None


def _form(leaf: Leaf) -> tuple[str, int | tuple[int, ...], tuple[int, ...]]:
    """Numbers may be shaped otherwise; a picture whose channels stand elsewhere is another one."""
    return leaf.kind, leaf.shape if leaf.kind == "image" else leaf.size, leaf.choices


def words(leaf: Leaf) -> str:
    """A leaf for messages."""
    if leaf.kind == "discrete":
        return f"discrete of {' x '.join(map(str, leaf.choices))}"
    return f"{leaf.kind} {list(leaf.shape)}"


def field_name(what: str, path: str) -> str:
    """`observations`, or `observations/arm/joints`."""
    return f"{what}/{path}" if path else what
