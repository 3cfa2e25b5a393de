"""`data vocabulary`: pieces of words for the texts that tasks are told in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.replay.shard import publish
from bigdm_ray.tokens.text import MOST, Vocabulary, texts_of, words_of

TIMES = 20
"""How often a task's name counts, which stands in no episode."""


def vocabulary_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="folders of datasets, or files of text"
    )
    parser.add_argument(
        "--pieces",
        metavar="N",
        type=int,
        default=512,
        help=f"pieces of the vocabulary, 300 to {MOST} (default: 512)",
    )
    parser.add_argument(
        "--file", metavar="FILE.model", type=Path, required=True, help="the file to make"
    )
    parser.set_defaults(act=run_vocabulary)


def run_vocabulary(given: argparse.Namespace) -> int:
    """`vocabulary`: write the file. Raises UserError for sources without text."""
    if given.file.suffix != ".model" or given.file.exists():
        why = "exists already" if given.file.exists() else "does not end in .model"
        raise UserError(f"--file {given.file} {why}; give a new FILE.model")
    texts = [text for source in given.sources for text in read_texts(Path(source))]
    made = Vocabulary.train(texts, given.pieces)
    try:
        given.file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {given.file.parent}: {error.strerror}") from None
    publish(given.file, made.data)
    print(
        f"{given.file}: {made.size} pieces of {len(set(texts)):,} texts, {len(made.data):,} bytes;"
        f" give it as --algorithm.vocabulary {given.file}"
    )
    return 0


def read_texts(source: Path) -> Iterator[str]:
    """The texts of a dataset, one a episode, with its task's name; or the lines of a file.

    Raises UserError.
    """
    if (source / CARD).is_file():
        data = Dataset.open(source)
        store = data.store(0, 1)
        held = [p for p, leaf in data.signature.observations.items() if leaf.kind == "text"]
        for position in range(len(store.table)):
            for path in held:
                yield texts_of(store.episode(position).observations[path][:1])[0]
        yield from [words_of(data.task)] * TIMES
        return
    try:
        yield from source.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{source} is no dataset and cannot be read as text ({error.strerror}); give folders of"
            " datasets, or files of text"
        ) from None
