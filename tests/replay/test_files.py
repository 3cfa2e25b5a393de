"""Names that come out of files are plain names; what killed writers left goes, and no more."""

import os
import subprocess
import sys

import pytest

from bigdm_ray.replay.files import file_name, remove_leftovers, temporary_path


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../../victim.arrow", "/etc/x.arrow", "a/b.arrow", "a\0.arrow",
     "\ud800.arrow", "x" * 300 + ".arrow", "a.txt", None, 7, ["a.arrow"]],
)  # fmt: skip
def test_what_is_no_plain_name_is_refused(value):
    with pytest.raises(ValueError, match="is not the name of a file that ends in") as told:
        file_name(value, ".arrow")
    assert len(str(told.value)) < 200


def test_plain_names_stay_as_they_are():
    for name in ("episodes-0000001.arrow", "a b.arrow", "ü.arrow", ".hidden.arrow"):
        assert file_name(name, ".arrow") == name


def test_what_ended_processes_left_goes_and_what_living_ones_write_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, theirs = temporary_path(tmp_path / "a"), tmp_path / f".a.{os.getppid()}.tmp"
    others = [tmp_path / name for name in (".b.uuid.tmp", "a", "c.tmp")]
    left = [tmp_path / f".{name}.{ended.pid}.tmp" for name in ("a", "b.json", "folder")]
    for path in (mine, theirs, *others, *left[:2]):
        path.write_bytes(b"half")
    (left[2] / "inside").mkdir(parents=True)
    remove_leftovers(tmp_path, "b.json")
    assert [path for path in left if path.exists()] == [left[0], left[2]]
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, theirs, *others}
    remove_leftovers(tmp_path, alone=True)
    assert set(tmp_path.iterdir()) == set(others[1:])


def test_a_link_in_place_of_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / ".a.1.tmp").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path / "swept", alone=True)
    assert (tmp_path / "kept" / "file").exists() and not list((tmp_path / "swept").iterdir())
