"""The process that reads HDF5's data of variable length: what it answers, and what it dies of."""

import os

import h5py
import pytest

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.hdf5 import Hdf5Fields, open_hdf5

TEXTS = [f"text {k}" * (k % 7) for k in range(600)]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Reads a sound file of texts where the process runs some code when its Python begins."""

    def read(code):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(code, "utf-8")
        found = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, found)))
        with h5py.File(tmp_path / "s.hdf5", "w") as file:
            file.create_dataset("texts", data=TEXTS)
        with open_hdf5(tmp_path / "s.hdf5") as file:
            return Hdf5Fields(tmp_path / "s.hdf5").strings(file.id, b"texts", "here")

    return read


def answering(lie):
    """Code that changes the counts and sizes that are answered: `n`, a tuple."""
    return (
        "import os, struct\npack = struct.pack\n"
        "struct.pack = lambda form, *n: pack(form, *"
        f"({lie} if len(n) > 1 and form == f'<{{len(n)}}q' else n))"
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_prints_takes_no_part(texts, stream):
    assert texts(f"import sys\nprint('hello' * 10_000, file=sys.{stream}, flush=True)") == TEXTS


@pytest.mark.parametrize(
    "lie",
    ["(-7, *n[1:])", "(1 << 50, *n[1:])", "(n[0], -5, *n[2:])", "(-2, -1, *n[2:])"],
)
def test_an_answer_that_cannot_be_is_decay(texts, lie):
    with pytest.raises(UserError, match=r"HDF5 has told of .* bytes have decayed") as told:
        texts(answering(lie))
    assert not isinstance(told.value, RunFailed)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys\nsys.modules['h5py'] = None", "import of h5py halted"),
        ("import os\nos._exit(3)", "exit code 3"),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 26, 1 << 26))",
            "exit code 1|SIGSEGV|SIGABRT",
        ),
        (answering("(n, os.kill(os.getpid(), 9))"), "SIGKILL"),
    ],
    ids=["no h5py", "ends", "no room", "killed"],
)
def test_a_process_that_fails_blames_no_bytes(texts, code, words):
    with pytest.raises(RunFailed, match=rf"here, field 'texts': the process .*({words})") as told:
        texts(code)
    assert "decayed" not in str(told.value)


def test_hdf5_that_dies_in_an_open_file_is_decay(texts):
    with pytest.raises(UserError, match=r"HDF5 dies reading it \(SIGSEGV\): bytes have decayed"):
        texts(answering("(n, os.kill(os.getpid(), 11))"))
