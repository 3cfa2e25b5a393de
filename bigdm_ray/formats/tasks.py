"""Which task a source of episodes is of, and whether its environment is the task's own.

No code is imported because a file names it: a file may name a short name, or a gymnasium id with
arguments that are numbers, truth values and plain words.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from bigdm_ray.envs import arguments
from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import NONE, Task, canonical_name, find_listed, find_task, tasks
from bigdm_ray.errors import UserError
from bigdm_ray.formats.base import SourceMetadata
from bigdm_ray.formats.signatures import misfit

WRAPPERS = "additional_wrappers"
"""How gymnasium calls the wrappers of a description; never made from one."""

MAX_WORDS = 200
"""Characters of arguments in a message or on a card, at most."""

_ENV_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")

_VERSION = re.compile(r"-v\d+$")


def task_of(
    said: SourceMetadata, asked: str | None, looks: Callable[[], Signature | None] = lambda: None
) -> tuple[str, Signature]:
    """The task of a source, and its signature: the task's own where it can be made, else the
    file's.

    Of `none`, which is asked for or of a dataset that was imported so, it is what the file tells,
    else what it `looks` like.

    Without `asked` the short name of the very environment that the source names is taken, else
    `gymnasium:ID`, with the arguments that it tells. Raises UserError where the source says
    nothing, is of another task than asked, or does not look like its task, and where its
    environment cannot be had so: scores would come from another one, which only `asked` can want.
    """
    if NONE in (asked, said.task) and asked in (None, NONE):
        if (signature := said.signature or looks()) is None:
            raise UserError(
                f"{said.name} does not tell what its observations and actions look like, so that an"
                " environment must; name one with --task TASK"
            )
        return NONE, signature
    written = said.task != NONE and _written(said.task)
    if written and (asked is None or canonical_name(asked) == canonical_name(said.task)):
        asked = said.task
    elif written:
        raise UserError(
            f"{said.name} is a dataset of another task: {said.task}, not {asked}; nothing was"
            " imported"
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
            f"{said.name} names the environment {said.env_id!r}, which is no plain gymnasium id;"
            " nothing was imported"
        )
    name = asked or said.likely or _guess(said)
    task = find_task(name)
    if asked is not None and said.env_id and not written and not _kin(said, task):
        raise UserError(
            f"{said.name} is a dataset of another task: its environment is {said.env_id}, not"
            f" {asked}; nothing was imported"
        )
    try:
        signature = task.signature()
    except UserError:
        if said.signature is None:
            raise
        return task.name, said.signature
    if said.signature is not None and (why := misfit(said.signature, signature)):
        raise UserError(
            f"{said.name} is a dataset of another task than {task.name}: {why}; nothing was"
            " imported"
        )
    return task.name, signature


def _guess(said: SourceMetadata) -> str:
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
    """Whether a file may name this task: a short name, or a gymnasium id with arguments that lead
    nowhere."""
    try:
        if find_listed(task) is not None:
            return True
        base, given = arguments.split_name(task)
        env_id = base.removeprefix("gymnasium:")
        if base == env_id or not _ENV_ID.fullmatch(env_id):
            return False
        return not given or arguments.plain(arguments.convert_arguments(given, env_id))
    except UserError:
        return False


def _modified(said: SourceMetadata, told: dict[str, Any]) -> str:
    """The task of the very environment that a source tells, made with arguments.

    Raises UserError where there is none.
    """
    import gymnasium

    why = ""
    if said.env_id not in gymnasium.registry:
        why = "it is not registered here"
    elif WRAPPERS in told:
        why = "its wrappers are code, which no file brings along"
    elif not arguments.plain(told):
        why = "only numbers, truth values and plain words are taken from a file"
    else:
        name = arguments.join_name(f"gymnasium:{said.env_id}", told)
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
        f"{said.name} is of {said.env_id} made with arguments ({_in_words(told)}), for which there"
        f" is no task ({why}); name the task with --task TASK to score on another; nothing was"
        " imported"
    )


def _base(env_id: str) -> str:
    return _VERSION.sub("", env_id.rpartition("/")[2]).lower()


def _alike(name: str, env_id: str) -> bool:
    """A cheap question before an environment is made: might `lunarlander-continuous` be
    LunarLander-v3?"""
    base = _base(env_id)
    return base in (name.replace("-", ""), name.partition("-")[0], name)


def _same_environment(said: SourceMetadata, task: Task) -> bool:
    """Whether the id, with its arguments where they are told, makes the task's own environment."""
    import gymnasium

    mine = spec_of(task)
    if mine is None:
        return _alike(task.name, said.env_id)
    theirs = gymnasium.registry.get(said.env_id)
    if theirs is None:
        return False
    # an id alone: the signature decides between its variants
    unsaid = said.env_kwargs is None and mine.id == theirs.id
    if unsaid:
        return bool(mine.max_episode_steps == theirs.max_episode_steps)
    return bool(mine.entry_point == theirs.entry_point) and _arguments(
        said.env_id, said.env_kwargs or {}
    ) == _arguments_of(mine)


def describe_differences(said: SourceMetadata, task: str = "") -> str:
    """`differences` in words, for a card or a message; empty where there are none."""
    return _in_words(differences(said, task))


def _in_words(told: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in told.items())[:MAX_WORDS]


def differences(said: SourceMetadata, task: str = "") -> dict[str, Any]:
    """Arguments of a source's environment that are not those of the task; without a task not those
    that its id alone stands for.

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
    """What an environment is made with, its time limit and wrappers included, when it is told these
    arguments."""
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
    """The arguments that an id alone stands for: those of its registration, else of its
    constructor; empty where it is not registered here."""
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


def _kin(said: SourceMetadata, task: Task) -> bool:
    """Whether the source is of the task's environment, whatever its version."""
    if task.wrap is not None:  # its rewards are others
        return False
    mine = spec_of(task)
    ids = [
        task.name,
        arguments.split_name(task.name)[0].partition(":")[2],
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
    """The steps after which the environment of a task truncates an episode, or None where that is
    not known."""
    limit = getattr(spec_of(find_task(task)), "max_episode_steps", None)
    return None if limit is None else int(limit)
