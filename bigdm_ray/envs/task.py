"""Task: what an environment is called, how it is made, and how it is found.

A suite is a file of this folder with a `TASKS` dict of short name -> Task; heavy imports stand
inside the functions that make environments, so that looking at the list costs nothing. A task is
called `suite/task` (`box2d/lunarlander`), and by its short name alone where no two suites share it.
`find_task` understands both, `gymnasium:ID`, and `my_module:MyEnv-v0`, gymnasium's own way to
import before making; the latter two with arguments, `gymnasium:ID?key=value&other=value`
(`envs/arguments.py`). Suites of installed packages are found by their entry points in the group
`bigdm_ray.envs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import re
import sysconfig
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bigdm_ray.envs import arguments, remembered
from bigdm_ray.envs.signature import PER_EPISODE, Signature
from bigdm_ray.errors import RunFailed, UserError, install, suggest_names
from bigdm_ray.plugins import plugins

if TYPE_CHECKING:
    import gymnasium

    from bigdm_ray.envs.vector import VectorEnv

Backend = Literal["fast", "reference"]
NONE = "none"
"""The task of a dataset without an environment."""
UNPLAYED = (
    "there is no environment (the task is 'none', as its dataset was imported): nothing can be "
    "played or scored; import the dataset again with --task TASK where there is one"
)


@dataclass(frozen=True)
class Task:
    """A named way to make environments.

    `env(render_mode)` makes one gymnasium environment: the reference that scores are evaluated on.
    `fast(n, seed, signature)`, where there is one, makes a quicker vector of the same task. `wrap`
    changes either in the same way (the sparse LunarLander). `max_return` caps commanded returns
    (Srivastava et al. 2019, section 2.3.2); `reference_returns` are (random, expert) for the
    normalised score, or None where the field has agreed on none. `outline` are lines of a map, a
    tuple of points (x, y) each, in the plane of the first two elements of the observation's leaf
    `place`; `pixels` maps values of that leaf `[..., elements]` to points (column, row) `[..., 2]`
    of the task's pictures. An episode whose return is above `success` has done the task; where
    steps tell (`Step.success`), it is not needed.
    """

    name: str
    env: Callable[[str | None], gymnasium.Env[Any, Any]]
    fast: Callable[[int, int, Signature], VectorEnv] | None = None
    wrap: Callable[[VectorEnv], VectorEnv] | None = None
    extra: str = ""
    needs: tuple[str, ...] = ()  # modules that must be importable
    max_return: float | None = None
    reference_returns: tuple[float, float] | None = None
    about: str = ""
    outline: tuple[tuple[tuple[float, float], ...], ...] = ()
    pixels: Callable[[np.ndarray], np.ndarray] | None = None
    place: str = ""  # the path of the leaf that `outline` and `pixels` are of
    # modules that `fast` imports; where one is missing, the reference plays
    fast_needs: tuple[str, ...] = ()
    seen: Signature | None = None  # what its arrays look like, where no environment tells
    suite: str = ""  # the suite that lists it; `tasks` fills it in
    packages: tuple[str, ...] = ()  # what pip installs for `needs`, where no extra brings it
    isolate: bool = False  # its environments are held in a process of their own
    success: float | None = None

    @property
    def full_name(self) -> str:
        """`suite/task`, where a suite lists it."""
        return f"{self.suite}/{self.name.rpartition('/')[2]}" if self.suite else self.name

    @property
    def plays(self) -> bool:
        """Whether there is an environment."""
        return self.name != NONE

    def require(self) -> None:
        """Raise UserError where there is no environment, or, naming the extra that helps, a module
        is missing."""
        if not self.plays:
            raise UserError(UNPLAYED)
        for module in self.needs:
            try:
                if self.isolate:  # it is for the other process to import it
                    if importlib.util.find_spec(module) is None:
                        raise ImportError(f"No module named {module!r}")
                    continue
                importlib.import_module(module)
            except ImportError as error:
                given = " ".join(f"'{package}'" for package in self.packages)
                how = f"pip install {given}" if given else install(self.extra)
                raise UserError(
                    f"task {self.name!r} needs the package {module!r} ({error}); "
                    f"install it with: {how}"
                ) from None

    def missing_module(self) -> str | None:
        """The module for want of which `fast` cannot play, None where it can or where there is no
        `fast`."""
        for module in self.fast_needs:
            try:
                importlib.import_module(module)
            except ImportError:
                return module
        return None

    def slow_reason(self) -> str | None:
        """One sentence that `fast` cannot play here, naming the extra that helps; None where it
        can."""
        if (module := self.missing_module()) is None:
            return None
        return (
            f"gymnasium's environments play {self.name}, slowly, for want of the package"
            f" {module!r}; install it with: {install(self.extra)}"
        )

    @property
    def backend(self) -> Backend:
        """Which environments play here, as `make` takes it: `fast` where there are any and their
        packages are installed, else `reference`."""
        return "reference" if self.fast is None or self.missing_module() else "fast"

    def signature(self) -> Signature:
        """What the arrays of this task look like: as it is remembered (`envs/remembered.py`), or as
        an environment has it, which is made once a process."""
        return _signature(self) if self.seen is None else self.seen

    def signature_here(self) -> Signature:
        """What an environment says that is made in this process."""
        self.require()
        env = self.env(None)
        try:
            once = env.metadata.get(PER_EPISODE, ())
            return Signature.of(env.observation_space, env.action_space, once)
        finally:
            env.close()

    def make(self, n: int, seed: int, backend: Backend = "fast") -> VectorEnv:
        """`n` environments, row i seeded with `seed + i`; the `fast` ones where they can be had.

        Raises UserError where a package is missing.
        """
        self.require()
        made: VectorEnv
        if not self.isolate:
            made = self.make_here(n, seed, backend)
        else:
            from bigdm_ray.envs.isolated import IsolatedRows

            made = IsolatedRows(self.name, n, seed, backend)
        key = _key(self) if self.seen is None else None
        if key is not None and made.signature != self.signature():
            made.close()
            remembered.forget(key)
            raise RunFailed(
                f"the environments of {self.name} are not what was remembered of them in "
                f"{remembered.folder()}, which is forgotten now; start again"
            )
        return made

    def make_here(self, n: int, seed: int, backend: Backend = "fast") -> VectorEnv:
        """`make`, in this process."""
        from bigdm_ray.envs.vector import GymnasiumRows

        self.require()
        made = (
            self.fast(n, seed, self.signature())
            if self.fast is not None and backend == self.backend == "fast"
            else GymnasiumRows(lambda: self.env(None), n, seed)
        )
        return self.wrap(made) if self.wrap else made

    def video_env(self, seed: int) -> VectorEnv:
        """One environment that renders: `frame()` gives `[height, width, 3]` uint8."""
        if not self.isolate:
            return self.video_here(seed)
        from bigdm_ray.envs.isolated import IsolatedRows

        self.require()
        return IsolatedRows(self.name, 1, seed, "reference", render=True)

    def video_here(self, seed: int) -> VectorEnv:
        """`video_env`, in this process."""
        from bigdm_ray.envs.vector import GymnasiumRows

        self.require()
        made: VectorEnv = GymnasiumRows(lambda: self.env("rgb_array"), 1, seed)
        return self.wrap(made) if self.wrap else made

    def normalized_score(self, mean_return: float) -> float | None:
        """100 * (return - random) / (expert - random), or None where the task has no reference
        returns."""
        if self.reference_returns is None:
            return None
        low, high = self.reference_returns
        return 100.0 * (mean_return - low) / (high - low)


@dataclass(frozen=True)
class Suite:
    """What a suite says of all its tasks, where its file has a `SUITE` of this kind."""

    needs: tuple[str, ...] = ()
    """Modules that must be importable."""
    packages: tuple[str, ...] = ()
    """What pip installs for them, as `metaworld==3.0`; without, `Task.extra` brings them."""
    isolate: bool = False
    """Whether its environments are held in a process of their own, so that one that crashes takes
    its rows' episodes with it and nothing else."""

    def of(self, task: Task) -> Task:
        """A task of this suite."""
        return dataclasses.replace(
            task,
            needs=(*self.needs, *task.needs),
            packages=(*self.packages, *task.packages),
            isolate=self.isolate or task.isolate,
        )


@functools.cache
def _signature_by_name(name: str) -> Signature:
    task = find_task(name)
    key = _key(task)
    if key is not None and (told := remembered.recall(key)) is not None:
        return told
    if task.isolate:
        from bigdm_ray.envs.isolated import signature_of

        found = signature_of(name)
    else:
        found = task.signature_here()
    if key is not None:
        remembered.remember(key, found)
    return found


def _signature(task: Task) -> Signature:
    task.require()
    return _signature_by_name(task.name)


def _key(task: Task) -> dict[str, Any] | None:
    """What the signature of a task is remembered by: of a suite's, and of what an installed package
    has registered with gymnasium. None for others, whose code may be anywhere and change."""
    folders = [Path(__file__).parent]
    if not task.suite:
        module = _registered_by(task.name)
        return None if module is None else remembered.key_of(task.name, folders, (module,))
    for suite, plugin in plugins("bigdm_ray.envs").values():
        if suite == task.suite:
            if (file := getattr(plugin, "__file__", None)) is None:
                return None
            folders.append(Path(file).parent)
    return remembered.key_of(task.full_name, folders, task.needs)


def _registered_by(name: str) -> str | None:
    """The installed package that has `gymnasium:ID?key=value`, if no argument leads to a file."""
    import gymnasium

    base, given = arguments.split_name(name) if name.startswith("gymnasium:") else ("", {})
    spec = gymnasium.registry.get(base.removeprefix("gymnasium:"))
    plain = all(re.fullmatch(r"[A-Za-z_]*|[-+.\deE]+", value) for value in given.values())
    if spec is None or not isinstance(spec.entry_point, str) or not plain:
        return None
    package = spec.entry_point.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(package)
    homes = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    installed = found is not None and any((found.origin or "").startswith(home) for home in homes)
    return package if installed else None


@functools.lru_cache(maxsize=1)
def tasks() -> dict[str, Task]:
    """Every task of every suite in this folder and in installed packages by its name, sorted.

    The name is the short one, or `suite/task` where several suites have a task of that name. A
    suite file is found by being there. Raises UserError for a package whose suite cannot be had.
    """
    suites: dict[str, dict[str, Task]] = {}
    for module in sorted(name for _, name, _ in _suite_modules()):
        suites[module.rpartition(".")[2]] = _tasks_of(importlib.import_module(module))
    for place, (suite, plugin) in plugins("bigdm_ray.envs").items():
        own, there = _tasks_of(plugin), suites.setdefault(suite, {})
        if twice := there.keys() & own.keys():
            raise UserError(
                f"{place} has a task '{suite}/{min(twice)}', which there is already; rename it"
            )
        there.update(own)
    owners = Counter(name for own in suites.values() for name in own)
    found = {}
    for suite, own in suites.items():
        for short, task in own.items():
            name = short if owners[short] == 1 else f"{suite}/{short}"
            found[name] = dataclasses.replace(task, name=name, suite=suite)
    return dict(sorted(found.items()))


def _tasks_of(module: Any) -> dict[str, Task]:
    """The tasks of a suite's module, by their short names."""
    suite: Suite = getattr(module, "SUITE", Suite())
    return {name: suite.of(task) for name, task in getattr(module, "TASKS", {}).items()}


def find_listed(name: str) -> Task | None:
    """The task of a suite by its short name or as `suite/task`; None where no suite lists it.

    Raises UserError for a short name that several suites share.
    """
    known = tasks()
    suite, _, short = name.rpartition("/")
    if name in known:
        return known[name]
    if suite and short in known and known[short].suite == suite:
        return known[short]
    if twins := [one for one, task in known.items() if one == f"{task.suite}/{name}"]:
        raise UserError(
            f"task {name!r} may be {' or '.join(map(repr, twins))}; give the one that is meant"
        )
    return None


def _suite_modules() -> Iterator[tuple[Any, str, bool]]:
    package = importlib.import_module("bigdm_ray.envs")
    for finder, name, is_package in pkgutil.iter_modules(package.__path__):
        yield finder, f"bigdm_ray.envs.{name}", is_package


def canonical_name(name: str) -> str:
    """The name that a task has here, of any of its names; what is not known stays as it is."""
    try:
        found = find_listed(name)
    except UserError:  # its short name alone, which several suites share
        return name
    return name if found is None else found.name


def find_task(name: str) -> Task:
    """The task of a short name, of `suite/task`, of `gymnasium:ID`, or of `my_module:MyEnv-v0`.

    The latter two are with arguments or without. A task that a suite lists has one name, however it
    was asked for.

    Raises UserError. Arguments are typed when an environment is made, which raises it too.
    """
    if (found := find_listed(name)) is not None:
        return found
    if name == NONE:
        return Task(NONE, _unplayed, about="episodes of a dataset, without an environment")
    base, given = arguments.split_name(name)
    if ":" not in base:
        if find_listed(base) is not None:
            raise UserError(
                f"task {base!r} takes no arguments; name its environment, as in"
                " 'gymnasium:ID?key=value'"
            )
        full = "/" in name
        known = [task.full_name if full else task.name for task in tasks().values()]
        near = suggest_names(name, known) or _listing()
        raise UserError(
            f"unknown task {name!r}{near} (any gymnasium id works as 'gymnasium:ID', your own as"
            " 'my_module:MyEnv-v0')"
        )
    module, _, env_id = base.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or (
        ":" in env_id and module != "gymnasium"
    ):
        raise UserError(
            f"task {name!r} is not understood; a short name, 'gymnasium:ID' or 'my_module:MyEnv-v0'"
            " is expected"
        )
    gymnasium_id = env_id if module == "gymnasium" else base

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        import gymnasium

        with _foreign(name):
            more: dict[str, Any] = {}
            if given:
                importlib.import_module(module)
                more = arguments.convert_arguments(given, env_id)
            if render_mode is not None:  # a constructor may not know the word
                more["render_mode"] = render_mode
            return gymnasium.make(gymnasium_id, **more)

    return Task(name=name, env=env, about="an environment registered with gymnasium")


def check_task(name: str) -> None:
    """Raise UserError for a task that is not known here, or that does not take these arguments.

    The module that registers an environment is imported for it; no environment is made.
    """
    find_task(name)
    base, given = arguments.split_name(name)
    module, colon, env_id = base.partition(":")
    if not colon or find_listed(name) is not None:
        return
    import gymnasium

    with _foreign(name):
        importlib.import_module(module)
        if not any(key == env_id or key.startswith(f"{env_id}-v") for key in gymnasium.registry):
            gymnasium.spec(env_id)  # raises
        arguments.convert_arguments(given, env_id)


@contextlib.contextmanager
def _foreign(name: str) -> Iterator[None]:
    """Around a module of others and a constructor of theirs, which may raise anything:
    UserError."""
    base, given = arguments.split_name(name)
    env_id = base.partition(":")[2]
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (see above)
        raise arguments.unexpected_argument(error, given, env_id) or UserError(
            f"cannot make the environment {name!r}: {_unmade(error, base)}"
        ) from None


def _listing() -> str:
    """What is known, for a sentence: tasks of suites that have few, and how many others have."""
    found: dict[str, list[str]] = {}
    for task in tasks().values():
        found.setdefault(task.suite, []).append(task.name)
    parts = [
        ", ".join(names) if len(names) <= 20 else f"{suite}/... ({len(names)})"
        for suite, names in found.items()
    ]
    return f"; known: {', '.join(sorted(parts))}"


def _unplayed(render_mode: str | None) -> gymnasium.Env[Any, Any]:
    raise UserError(UNPLAYED)


def _unmade(error: Exception, base: str) -> str:
    """Why gymnasium could not make an environment `module:ID`, on one line, with what may help."""
    import gymnasium

    module, _, env_id = base.partition(":")
    text = re.sub(r" Did you mean: .*", "", " ".join(str(error).split()))
    if isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        few = sorted(tasks().values(), key=lambda task: -len(task.needs))  # the least extra wins
        helps = {module: task.extra for task in few for module in task.needs}
        missing = next((module for module in helps if re.search(rf"\b{module}\b", text)), None)
        return (
            f"it needs the package {missing!r}; install it with: {install(helps[missing])}"
            if missing
            else text
        )
    if isinstance(error, gymnasium.error.Error):
        near = suggest_names(env_id, [str(key) for key in gymnasium.registry])
        if module == "gymnasium" and env_id not in gymnasium.registry:
            near += f"; one that a module of your own registers is 'my_module:{env_id}'"
        return text + near
    where = traceback.extract_tb(error.__traceback__)[-1]
    # a SyntaxError says it itself
    place = (
        ""
        if isinstance(error, SyntaxError)
        else f" ({Path(where.filename).name}, line {where.lineno})"
    )
    return f"{type(error).__name__}: {text}{place}"
