"""Exports on a full disk: one sentence, and nothing half-written, wherever it fills up."""

import errno
import subprocess
import sys

import numpy as np
import pytest
from sources import dataset

from bigdm_ray.formats.hdf5 import DeferredErrorFile, new_hdf5, open_hdf5

TASK = "toy-continuous"
FULL = """
import resource, sys
from pathlib import Path
from bigdm_ray.errors import RunFailed
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.exporting import export_dataset
dataset = Dataset.open(Path(sys.argv[1]))
for limit in map(int, sys.argv[3:]):
    for to in ("minari", "parquet", "steps"):
        folder = Path(sys.argv[2]) / f"{to}-{limit}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            export_dataset(dataset, to, folder, quiet=True)
            print("written", to, limit)
        except RunFailed as error:
            print("refused", to, limit, error)
"""


def test_a_full_disk_is_one_sentence_and_nothing_stays(tmp_path):
    """A limit on the size of files stands for the disk; HDF5 died of it."""
    made = dataset(tmp_path / "set", TASK, 60)
    (tmp_path / "out").mkdir()
    limits = ["100", "3000", "20000", "100000", "100000000"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(made.folder), str(tmp_path / "out"), *limits],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == "", (done.returncode, done.stderr[-2000:])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15
    for verdict, to, limit, *words in lines:
        assert (tmp_path / "out" / f"{to}-{limit}").exists() == (verdict == "written")
        assert verdict == "written" or "free some space" in " ".join(words)
    assert all(verdict == "refused" for verdict, _, limit, *_ in lines if int(limit) < 3001)
    assert [verdict for verdict, *_ in lines[-3:]] == ["written"] * 3
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_what_is_written_through_the_shelter_is_what_h5py_writes(tmp_path):
    with new_hdf5(tmp_path / "a.hdf5") as (file, written):
        for k in range(300):
            file.create_group(f"g{k}")["x"] = np.full((k, 3), k)
            written.check()
    with open_hdf5(tmp_path / "a.hdf5") as file:
        assert len(file) == 300
        for k in range(300):
            np.testing.assert_array_equal(file[f"g{k}/x"], np.full((k, 3), k))


def test_after_an_error_writes_stay_in_memory_and_are_read_back(tmp_path):
    class Full:
        """A file that takes four bytes and no more."""

        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            room = 4 - self._file.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "no space")
            return self._file.write(data[:room])

    sheltered = DeferredErrorFile(tmp_path / "file")
    sheltered._file = Full(sheltered._file)
    sheltered.write(b"ab")
    sheltered.check()
    sheltered.write(b"cdefgh")
    sheltered.seek(1)
    sheltered.write(b"XY")
    sheltered.seek(0)
    assert sheltered.read(10) == b"aXYdefgh\0\0"
    assert sheltered.seek(0, 2) == 8
    with pytest.raises(OSError, match="no space"):
        sheltered.check()
    with pytest.raises(OSError, match="no space"):
        sheltered.close()
    assert (tmp_path / "file").read_bytes() == b"abcd"
