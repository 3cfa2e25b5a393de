import shutil

import pytest
from making import episode

from bigdm_ray.data import main
from bigdm_ray.doors import door
from bigdm_ray.replay import Store

SHARDS = 3
EACH = 2


@pytest.fixture
def run_folder(tmp_path):
    """Three shards of two episodes each in the store of what looks like a run folder."""
    store = Store(tmp_path / "run" / "store")
    for round in range(SHARDS):
        store.add([episode((round, 0, number), length=50) for number in range(EACH)])
    return tmp_path / "run"


@pytest.fixture
def shards(run_folder):
    return sorted((run_folder / "store").glob("*.arrow"))


def verify(folder, capsys):
    code = door(main, ["verify", str(folder)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def one_error(capsys, *words):
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    for word in words:
        assert word in said.err


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_store_is_0_and_is_left_as_it_is(run_folder, shards, capsys):
    before = [path.read_bytes() for path in shards]
    for folder in (run_folder, run_folder / "store"):
        code, lines, error = verify(folder, capsys)
        assert (code, error) == (0, "")
        assert lines == [f"{run_folder / 'store'}: 3 sound shards with 6 episodes, 0 set aside"]
    assert [path.read_bytes() for path in shards] == before
    assert sorted((run_folder / "store").iterdir()) == shards


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip, "checksum of its body"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole Arrow file"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"ARROW1" + b"x" * 1000 + b"ARROW1"), ""),
    ],
    ids=["a flipped bit", "a cut end", "an empty file", "rubbish"],
)
def test_a_damaged_shard_is_set_aside_and_named_and_the_code_is_1(run_folder, shards, capsys, damage, why):
    damage(shards[1])
    code, lines, error = verify(run_folder, capsys)
    assert (code, error) == (1, "")
    assert len(lines) == 2
    assert str(shards[1]) in lines[0] and why in lines[0]
    assert lines[1].endswith("2 sound shards with 4 episodes, 1 set aside")
    aside = shards[1].with_name(f"{shards[1].name}.corrupt")
    assert sorted((run_folder / "store").iterdir()) == sorted([shards[0], aside, shards[2]])
    assert len(Store(run_folder / "store").open().table) == 4
    code, lines, _ = verify(run_folder, capsys)
    assert code == 0 and len(lines) == 1, "what was set aside is not a shard any more"


def test_every_damaged_shard_has_its_line(run_folder, shards, capsys):
    for path in shards[:2]:
        flip(path)
    code, lines, _ = verify(run_folder, capsys)
    assert code == 1
    assert [path.name in line for path, line in zip(shards[:2], lines, strict=False)] == [True, True]
    assert lines[2].endswith("1 sound shard with 2 episodes, 2 set aside")


def test_nothing_to_verify_is_2(run_folder, shards, capsys, tmp_path):
    assert door(main, ["verify", str(tmp_path / "nowhere")]) == 2
    one_error(capsys, "nowhere", "no folder")
    assert door(main, ["verify", str(shards[0])]) == 2
    one_error(capsys, shards[0].name, "no folder")
    (tmp_path / "empty").mkdir()
    assert door(main, ["verify", str(tmp_path / "empty")]) == 2
    one_error(capsys, "empty", "holds no shards")


def test_a_store_whose_shards_are_all_set_aside_says_so(run_folder, shards, capsys):
    for path in shards:
        flip(path)
    assert verify(run_folder, capsys)[0] == 1
    assert door(main, ["verify", str(run_folder)]) == 2
    one_error(capsys, "holds no shards", "3 were set aside")


def test_a_shard_that_cannot_be_renamed_is_one_sentence(run_folder, shards, capsys):
    flip(shards[0])
    shards[0].with_name(f"{shards[0].name}.corrupt").mkdir()  # nothing can be renamed onto a folder
    assert door(main, ["verify", str(run_folder)]) == 1
    one_error(capsys, "cannot set aside", shards[0].name)


@pytest.mark.parametrize(("arguments", "word"), [([], "COMMAND"), (["verfy", "x"], "'verify'"), (["verify"], "FOLDER"), (["verify", ".", "--fix"], "'--fix'")])
def test_a_wrong_command_line_is_one_sentence(capsys, arguments, word):
    assert door(main, arguments) == 2
    one_error(capsys, word)


def test_a_moved_store_is_still_sound(run_folder, capsys, tmp_path):
    shutil.move(run_folder / "store", tmp_path / "elsewhere")
    code, lines, _ = verify(tmp_path / "elsewhere", capsys)
    assert code == 0 and lines == [f"{tmp_path / 'elsewhere'}: 3 sound shards with 6 episodes, 0 set aside"]
