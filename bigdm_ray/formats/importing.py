"""Taking episodes in: any source that a format recognises, checked, as a dataset of this project.

Streaming: a batch of episodes is in memory at a time, and one shard of about 64 MiB. A source that
is wrong somewhere leaves nothing behind. An import that was interrupted goes on where it stopped
when the same command is given again, as long as no file of the source has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.task import NONE
from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import Reader, open_source
from bigdm_ray.formats.behaviour import with_stage
from bigdm_ray.formats.checks import conform
from bigdm_ray.formats.dataset import SCHEMA_VERSION, Dataset
from bigdm_ray.formats.signatures import describe_leaf
from bigdm_ray.formats.tasks import describe_differences, task_of
from bigdm_ray.formats.unread import unread_note
from bigdm_ray.formats.writer import WRONG_VALUES, Writer, free_folder, keep_on_interruption, stamp
from bigdm_ray.progress import Progress
from bigdm_ray.replay.episode import Episode, bytes_of

BATCH_BYTES = 8 << 20
BATCH_EPISODES = 1024
_FIELD = re.compile(r"field '(\w+)")


def import_dataset(
    sources: list[str],
    folder: Path,
    task: str | None = None,
    steps: int | None = None,
    quiet: bool = False,
) -> Dataset:
    """Import sources, one after another, into the new dataset `folder`.

    Of each source the first episodes that together reach `steps` are taken, where given (as D4RL's
    medium-expert sets join two files). With several sources, the number of the source stands as
    `stage` in the episodes' `source`. Raises UserError (nothing is left) or RunFailed (the disk;
    what was written waits for the same command).
    """
    free_folder(folder)
    readers = [open_source(source) for source in sources]
    name, signature = task_of(readers[0].said, task, readers[0].looks)
    for reader in readers[1:]:
        other, theirs = task_of(reader.said, task, reader.looks)
        if name == other == NONE:
            signature = _widened(signature, theirs, readers[0], reader)
        if other != name:
            raise UserError(
                f"{reader.said.name} is a dataset of another task: {other}, while"
                f" {readers[0].said.name} is of {name}; nothing was imported"
            )
    writer = Writer(folder, _plan(readers, name, signature, steps), name, signature)
    with (
        _told(readers),
        keep_on_interruption(writer),
        Progress(folder.name, _total(readers, steps), sum(writer.lengths), quiet) as bar,
    ):
        for number, reader in enumerate(readers):
            for batch in _batches(reader, name, signature, _taken(writer, number), steps):
                if len(readers) > 1:
                    batch = [
                        dataclasses.replace(episode, source=with_stage(episode.source, number))
                        for episode in batch
                    ]
                writer.add(batch, number)
                bar.advance(sum(episode.length for episode in batch))
            if not _taken(writer, number):
                raise UserError(f"{reader.said.name} holds no episodes; nothing was imported")
        made = writer.finish(
            folder.name, _source(readers, steps), _versions(readers, name), _references(readers)
        )
    for reader in readers:
        for told in reader.notes:
            print(f"note: {told}", file=sys.stderr)
        if reader.beside:
            print(f"note: {unread_note(reader.said.name, reader.beside)}", file=sys.stderr)
    return made


def _widened(mine: Signature, theirs: Signature, first: Reader, other: Reader) -> Signature:
    """What holds the episodes of both, where no environment tells.

    Raises UserError where nothing does.
    """

    def wider(a: Leaf, b: Leaf) -> Leaf:
        if a.kind != b.kind or a.shape != b.shape or a.dtype != b.dtype:
            raise UserError(
                f"{other.said.name} does not look like {first.said.name}: {describe_leaf(b)} where "
                f"{describe_leaf(a)} is expected; nothing was imported"
            )
        bounds = [
            None if x is None or y is None else tuple(map(pick, x, y))
            for x, y, pick in ((a.low, b.low, min), (a.high, b.high, max))
        ]
        choices = tuple(map(max, a.choices, b.choices))
        return dataclasses.replace(a, low=bounds[0], high=bounds[1], choices=choices)

    sides = []
    for what, here, there in (
        ("observations", mine.observations, theirs.observations),
        ("actions", mine.actions, theirs.actions),
    ):
        if here.keys() != there.keys():
            raise UserError(
                f"{other.said.name} does not look like {first.said.name}: its {what} have other "
                "leaves; nothing was imported"
            )
        sides.append({path: wider(leaf, there[path]) for path, leaf in here.items()})
    return Signature(*sides)


def _references(readers: list[Reader]) -> tuple[float, float] | None:
    """The reference returns that the sources tell; None where they tell none, or several."""
    told = {reader.said.reference_returns for reader in readers} - {None}
    return told.pop() if len(told) == 1 else None


@contextlib.contextmanager
def _told(readers: Sequence[Reader]) -> Iterator[None]:
    """Values of files that no check foresaw are a user's mistake like others."""
    try:
        yield
    except WRONG_VALUES as error:
        names = ", ".join(reader.said.name for reader in readers)
        raise UserError(
            f"{names}: what it holds cannot be read ({type(error).__name__}: {one_line(error)});"
            " nothing was imported"
        ) from None


def _taken(writer: Writer, number: int) -> Sequence[int]:
    """Lengths of the episodes of a part that are written already."""
    taken = [*writer.taken, *[0] * (number + 1)][: number + 1]
    start = sum(taken[:number])
    return writer.lengths[start : start + taken[number]]


def _batches(
    reader: Reader, task: str, signature: Signature, taken: Sequence[int], steps: int | None
) -> Iterator[list[Episode]]:
    """The episodes that are still to come, checked, in batches of about 8 MiB."""
    batch: list[Episode] = []
    size, so_far = 0, sum(taken)
    if steps is not None and so_far >= steps:
        return
    for episode in reader.episodes(task, signature, len(taken)):
        batch.append(episode)
        size, so_far = size + bytes_of(episode), so_far + len(episode.rewards)
        enough = steps is not None and so_far >= steps
        if enough or size >= BATCH_BYTES or len(batch) >= BATCH_EPISODES:
            yield _checked(batch, signature, reader)
            batch, size = [], 0
        if enough:
            return
    if batch:
        yield _checked(batch, signature, reader)


def _checked(batch: list[Episode], signature: Signature, reader: Reader) -> list[Episode]:
    try:
        return conform(batch, signature, lambda k: reader.place(batch[k].id.number))
    except UserError as error:
        found = _FIELD.search(str(error))
        what = found[1] if found else ""
        if (name := reader.taken.get(what, what)) == what:
            raise
        raise UserError(f"{error} ({what} were taken from {name!r})") from None


def _plan(
    readers: list[Reader], task: str, signature: Signature, steps: int | None
) -> dict[str, Any]:
    """What an interrupted import must have in common with one that goes on."""
    sources = [[reader.said.name, [stamp(file) for file in reader.files()]] for reader in readers]
    return {
        "schema_version": SCHEMA_VERSION,
        "sources": sources,
        "task": task,
        "signature": signature.to_json(),
        "steps": steps,
    }


def _total(readers: list[Reader], steps: int | None) -> int | None:
    known = [reader.said.steps for reader in readers]
    if steps is not None:
        return sum(min(steps, one) if one is not None else steps for one in known)
    return None if None in known else sum(one for one in known if one is not None)


def _source(readers: list[Reader], steps: int | None) -> str:
    first = f"the first {steps:,} steps of " if steps is not None else ""
    return " and ".join(f"{first}{reader.said.name}" for reader in readers)


def _versions(readers: list[Reader], task: str) -> dict[str, str]:
    """Versions that the sources tell, and arguments of their environments that are not the task's;
    where they differ, all of them."""
    merged: dict[str, list[str]] = {}
    for reader in readers:
        # a file's name tells no id
        environment = (
            {"environment": reader.said.env_id}
            if reader.said.env_id and not reader.said.likely
            else {}
        )
        if changed := describe_differences(reader.said, task):
            environment["environment_arguments"] = changed
        for name, version in (environment | reader.said.versions).items():
            merged.setdefault(name, []).append(version)
    return {name: ", ".join(dict.fromkeys(found)) for name, found in merged.items()}
