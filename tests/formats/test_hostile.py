"""Wrong and hostile sources: one sentence that names file, episode and field; nothing is
imported."""

import dataclasses
import json
import os

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import played
from sources import (
    d4rl_file,
    dataset,
    edited,
    episode_parquet,
    minari_folder,
    rows_of,
    step_columns,
)

from bigdm_ray import data
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats import steps
from bigdm_ray.formats.columns import open_parquet, rows_at_once
from bigdm_ray.formats.exporting import export_dataset
from bigdm_ray.formats.importing import import_dataset

TASK = "toy-continuous"
BAD = 3
"""The episode that is spoilt."""


@pytest.fixture(scope="module")
def episodes():
    return played(TASK, 6).episodes


def refused(source, folder, *words, task=TASK, several=()):
    """The import fails with one sentence that holds these words, and leaves nothing."""
    with pytest.raises(UserError) as caught:
        import_dataset([str(source), *several], folder, task)
    text = str(caught.value)
    assert "\n" not in text and type(caught.value) is UserError, text
    for word in words:
        assert word in text, text
    assert not folder.exists() and not folder.with_name(f".{folder.name}.importing").exists()
    return text


def spoilt(episodes, what, path="", at=(2, 1), value=np.nan):
    """The episodes with one number of one of them changed."""
    if what == "rewards":
        changed = episodes[BAD].rewards.astype(np.float64).copy()
        changed[at[0]] = value
        return [
            *episodes[:BAD],
            dataclasses.replace(episodes[BAD], rewards=changed),
            *episodes[BAD + 1 :],
        ]
    arrays = getattr(episodes[BAD], what)
    changed = (
        arrays[path].astype(np.float64 if isinstance(value, float) else arrays[path].dtype).copy()
    )
    changed[at] = value
    return [
        *episodes[:BAD],
        dataclasses.replace(episodes[BAD], **{what: arrays | {path: changed}}),
        *episodes[BAD + 1 :],
    ]


def written(kind, tmp_path, episodes, task=TASK):
    """The episodes as a source of this kind, numbers as they are."""
    if kind == "parquet":
        return episode_parquet(tmp_path / "s.parquet", rows_of(episodes))
    if kind == "d4rl":
        return d4rl_file(tmp_path / "s.hdf5", episodes)
    if kind == "steps":
        return episode_parquet(tmp_path / "s.parquet", step_columns(episodes))
    return exact_minari(tmp_path, episodes, kind.removeprefix("minari-"), task)


def exact_minari(tmp_path, episodes, data_format, task):
    """Minari writes what it is told in the space's dtype; the spoilt numbers are put in
    afterwards."""
    sound = [
        dataclasses.replace(e, rewards=np.nan_to_num(e.rewards)) for e in played(task, 6).episodes
    ]
    folder = minari_folder(tmp_path / "minari", task, sound, data_format)
    if data_format == "hdf5":
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            for number, e in enumerate(episodes):
                group = file[f"episode_{number}"]
                for name, values in (
                    ("observations", e.observations[""]),
                    ("actions", e.actions[""]),
                    ("rewards", e.rewards),
                ):
                    del group[name]
                    group[name] = values
        return folder
    path = next((folder / "data" / str(BAD)).glob("*.parquet"))
    table = pq.read_table(path)
    e = episodes[BAD]
    columns = {
        "observations": pa.array(list(e.observations[""])),
        "actions": pa.array([*e.actions[""], np.zeros(2)]),
        "rewards": pa.array([*e.rewards, 0.0]),
    }
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path)
    return folder


KINDS = ["parquet", "d4rl", "steps", "minari-hdf5", "minari-parquet"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("observations", np.nan, ("step 2, element 1", "nan", "not a finite")),
        ("observations", np.inf, ("step 2, element 1", "inf", "not a finite")),
        ("observations", 1e300, ("step 2, element 1", "1e+300", "not a finite")),
        ("actions", np.nan, ("step 2, element 1", "nan", "not a finite")),
        ("actions", 1.5, ("step 2, element 1", "1.5", "outside its space [-1, 1]")),
        ("actions", -1.00001, ("step 2, element 1", "-1.00001", "outside its space [-1, 1]")),
        ("rewards", -np.inf, ("step 2", "-inf", "not a finite")),
    ],
)
def test_numbers_that_are_not_finite_or_outside_their_space(
    tmp_path, episodes, kind, what, value, words
):
    source = written(kind, tmp_path, spoilt(episodes, what, value=value))
    refused(
        source,
        tmp_path / "set",
        f"episode {BAD}",
        f"field '{what}'",
        *words,
        source.name.partition(".")[0],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_at_the_bound_is_put_on_the_bound(tmp_path, episodes, kind):
    source = written(kind, tmp_path, spoilt(episodes, "actions", value=1.0 + 5e-7))
    made = import_dataset([str(source)], tmp_path / "set", TASK)
    assert list(made.stream())[BAD].actions[""][2, 1] == np.float32(1.0)


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (-1, "-1"), (200, "200")])
def test_a_discrete_action_outside_its_space(tmp_path, value, shown):
    episodes = played("toy-vector", 6).episodes
    source = episode_parquet(
        tmp_path / "s.parquet", rows_of(spoilt(episodes, "actions", at=2, value=value))
    )
    refused(
        source,
        tmp_path / "set",
        "s.parquet, episode 3",
        "field 'actions'",
        f"step 2: {shown} lies outside its space [0, 2]",
        task="toy-vector",
    )


def test_a_discrete_action_that_is_no_whole_number(tmp_path):
    episodes = played("toy-vector", 6).episodes
    source = episode_parquet(
        tmp_path / "s.parquet", rows_of(spoilt(episodes, "actions", at=2, value=0.5))
    )
    refused(
        source, tmp_path / "set", "episode 3", "'actions'", "0.5 lies outside", task="toy-vector"
    )


# --- lists of unequal length


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("observations", ("30 numbers where 33 (11 times 3) belong to 10 rewards",)),
        ("actions", ("18 numbers where 20 (10 times 2) belong to 10 rewards",)),
        ("terminated", ("9 entries where there are 10 rewards",)),
        ("truncated", ("9 entries where there are 10 rewards",)),
    ],
)
def test_lists_of_unequal_length(tmp_path, name, words):
    episodes = [e for e in played(TASK, 60).episodes if e.length == 10][:6]
    columns = rows_of(episodes)
    width = {"observations": 3, "actions": 2}.get(name, 1)
    columns[name] = [
        values[: len(values) - width] if k == BAD else values
        for k, values in enumerate(columns[name])
    ]
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "s.parquet, episode 3",
        f"field '{name}'",
        *words,
    )


def test_a_length_that_is_another(tmp_path, episodes):
    columns = rows_of(episodes)
    columns["length"][BAD] += 1
    refused(
        episode_parquet(tmp_path / "s.parquet", columns), tmp_path / "set", "episode 3", "'length'"
    )


def test_arrays_of_unequal_length_in_d4rl(tmp_path, episodes):
    ends = np.cumsum([e.length for e in episodes])
    source = d4rl_file(
        tmp_path / "s.hdf5",
        episodes,
        actions=np.concatenate([e.actions[""] for e in episodes])[: ends[BAD - 1] + 2],
    )
    refused(
        source,
        tmp_path / "set",
        "s.hdf5, episode 3",
        "field 'actions'",
        f"{ends[BAD - 1] + 2:,} rows",
        f"{ends[-1]:,} of others",
    )


@pytest.mark.parametrize(
    "name", ["observations", "actions", "rewards", "terminations", "truncations"]
)
def test_arrays_of_unequal_length_in_minari(tmp_path, episodes, name):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        values = file[f"episode_{BAD}/{name}"][:-1]
        del file[f"episode_{BAD}/{name}"]
        file[f"episode_{BAD}/{name}"] = values
    # the number of rewards is what the others are held against
    field = "observations" if name == "rewards" else name
    text = refused(folder, tmp_path / "set", "main_data.hdf5, episode 3", "entries where")
    assert f"'{field}'" in text or name == "rewards"


def test_a_step_that_is_missing(tmp_path, episodes):
    columns = step_columns(episodes, t=[k for e in episodes for k in range(e.length)])
    at = sum(e.length for e in episodes[:BAD]) + 4
    columns = {name: values[:at] + values[at + 1 :] for name, values in columns.items()}
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "s.parquet, episode 3",
        "field 't'",
        "5 does not follow",
    )


def test_an_episode_that_comes_back(tmp_path, episodes):
    columns = step_columns([*episodes, episodes[0]])
    columns["eps_id"][-episodes[0].length :] = ["id-1"] * episodes[0].length
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "s.parquet",
        "'eps_id'",
        "'id-1' comes back",
    )


# --- the ends


@pytest.mark.parametrize("kind", ["parquet", "minari-hdf5"])
def test_an_end_in_the_middle(tmp_path, episodes, kind):
    if kind == "parquet":
        columns = rows_of(episodes)
        columns["truncated"][BAD] = columns["truncated"][BAD].copy()
        columns["truncated"][BAD][4] = True
        source, name = episode_parquet(tmp_path / "s.parquet", columns), "truncated"
    else:
        source, name = minari_folder(tmp_path / "minari", TASK, episodes), "truncations"
        with h5py.File(source / "data" / "main_data.hdf5", "a") as file:
            file[f"episode_{BAD}/truncations"][4] = True
    refused(source, tmp_path / "set", "episode 3", f"field '{name}'", "step 4 ends the episode")


FLAGS = [
    ("parquet", "terminated"),
    ("parquet", "truncated"),
    ("steps", "terminateds"),
    ("steps", "truncateds"),
    ("minari-parquet", "truncations"),
]
HDF5_FLAGS = [("d4rl", "terminals"), ("d4rl", "timeouts"), ("minari-hdf5", "terminations")]


@pytest.mark.parametrize(
    ("kind", "name", "value", "shown"),
    [
        *(
            (*flag, value, shown)
            for flag in FLAGS + HDF5_FLAGS
            for value, shown in (
                (np.nan, "nan is no flag"),
                (2.0, "2 is no flag"),
                (0.5, "0.5 is no flag"),
            )
        ),
        *((*flag, None, "missing (null)") for flag in FLAGS),
    ],
)
def test_a_flag_that_is_none(tmp_path, episodes, kind, name, value, shown):
    """A row that a program has filled up with NaN is no end."""
    at = sum(e.length for e in episodes[: BAD + 1]) - 1
    place = "episode 3"
    if kind == "parquet":
        columns = rows_of(episodes)
        lists = [[float(flag) for flag in flags] for flags in columns[name]]
        lists[BAD][-1] = value
        source = episode_parquet(tmp_path / "s.parquet", columns | {name: lists})
    elif kind == "steps":
        columns = step_columns(episodes)
        flags = [float(flag) for flag in columns[name]]
        flags[at] = value
        source = episode_parquet(tmp_path / "s.parquet", columns | {name: flags})
    elif kind == "d4rl":
        source, place = d4rl_file(tmp_path / "s.hdf5", episodes), f"row {at}"
        with h5py.File(source, "a") as file:
            flags = file[name][()].astype(np.float32)
            flags[at] = value
            del file[name]
            file[name] = flags
    else:
        source = minari_folder(tmp_path / "minari", TASK, episodes, kind.removeprefix("minari-"))
        if kind == "minari-hdf5":
            with h5py.File(source / "data" / "main_data.hdf5", "a") as file:
                flags = file[f"episode_{BAD}/{name}"][()].astype(np.float32)
                flags[-1] = value
                del file[f"episode_{BAD}/{name}"]
                file[f"episode_{BAD}/{name}"] = flags
        else:
            path = next((source / "data" / str(BAD)).glob("*.parquet"))
            table = pq.read_table(path)
            flags = [float(flag or 0) for flag in table[name].to_pylist()]
            flags[-2] = value  # the last row holds the last observation alone
            pq.write_table(
                table.set_column(
                    table.schema.get_field_index(name), name, pa.array(flags, pa.float64())
                ),
                path,
            )
    refused(
        source, tmp_path / "set", source.name.partition(".")[0], place, f"field '{name}'", shown
    )


@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_a_flag_of_an_episode_that_is_missing(tmp_path, episodes, name):
    columns = rows_of(episodes)
    for one in ("terminated", "truncated"):
        columns[one] = [bool(flags[-1]) for flags in columns[one]]
    columns[name][BAD] = None
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "s.parquet, episode 3",
        f"field '{name}'",
        "missing (null)",
    )


@pytest.mark.parametrize("name", ["terminals", "timeouts", "rewards"])
def test_several_numbers_a_row_in_d4rl(tmp_path, episodes, name):
    steps = sum(e.length for e in episodes)
    source = d4rl_file(tmp_path / "s.hdf5", episodes)
    with h5py.File(source, "a") as file:
        del file[name]
        file[name] = np.zeros((steps, 2))
    refused(
        source,
        tmp_path / "set",
        "s.hdf5, episode 0",
        f"field '{name}'",
        f"one number a row is expected, not an array of shape [{steps}, 2]",
    )


# --- rows that do not follow each other


@pytest.fixture(params=[1, 7, 100_000])
def rows_read(request, monkeypatch):
    """How many rows of step Parquet are read at once."""
    monkeypatch.setattr(steps, "rows_at_once", lambda *_: request.param)


@pytest.mark.usefixtures("rows_read")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "nan is not a finite number"),
        (np.inf, "inf is not a finite"),
        (0.125, "0.125 is not what the next step saw"),
    ],
)
@pytest.mark.parametrize("kind", ["d4rl", "steps"])
def test_what_was_seen_after_a_step_in_the_midst_of_an_episode(
    tmp_path, episodes, kind, value, words
):
    at = sum(e.length for e in episodes[:BAD]) + 2
    if kind == "d4rl":
        source, name = d4rl_file(tmp_path / "s.hdf5", episodes), "next_observations"
        with h5py.File(source, "a") as file:
            file[name][at, 1] = value
    else:
        columns, name = step_columns(episodes), "new_obs"
        columns[name][at] = np.array([columns[name][at][0], value, *columns[name][at][2:]])
        source = episode_parquet(tmp_path / "s.parquet", columns)
    refused(source, tmp_path / "set", source.name, f"episode {BAD}", f"field '{name}'", words)


@pytest.mark.usefixtures("rows_read")
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rewards", lambda values, at: None, "missing (null)"),
        ("obs", lambda values, at: values[at][:-1], "a row holds"),
        ("eps_id", lambda values, at: None, "missing (null)"),
        ("eps_id", lambda values, at: values[0], "'id-0' comes back"),
        (
            "terminateds",
            lambda values, at: True,
            "'eps_id': 'id-3' goes on after a row whose flags end the episode",
        ),
        ("t", lambda values, at: values[at] + 7, "does not follow"),
    ],
)
def test_a_row_in_the_midst_of_an_episode_of_steps(tmp_path, episodes, name, change, words):
    """Named is the episode that the row is of, though thousands of rows are read at once."""
    at = sum(e.length for e in episodes[:BAD]) + 2
    columns = {
        column: list(values)
        for column, values in step_columns(episodes, t=counts(episodes)).items()
    }
    columns[name][at] = change(columns[name], at)
    # another id begins another episode
    place = f"episode {BAD + 1 if words.endswith('comes back') else BAD}"
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "s.parquet, " + place,
        f"field '{name}'" * (name != "terminateds"),
        words,
    )


@pytest.mark.usefixtures("rows_read")
def test_a_gap_at_the_change_of_an_id_that_no_flag_announces(tmp_path, episodes):
    columns = {
        column: list(values)
        for column, values in step_columns(episodes, t=counts(episodes)).items()
    }
    columns["terminateds"] = columns["truncateds"] = [False] * len(columns["t"])
    start = sum(e.length for e in episodes[:BAD])
    for name, value, words in (
        ("t", 9, "field 't': 9 does not follow"),
        ("new_obs", columns["obs"][start], "is not what the next step saw"),
    ):
        changed = columns | {
            name: [*columns[name][: start + 1], value, *columns[name][start + 2 :]]
        }
        refused(
            episode_parquet(tmp_path / "s.parquet", changed),
            tmp_path / "set",
            f"episode {BAD}, field '{name}'",
            words,
        )


@pytest.mark.parametrize(
    ("column", "words"), [("eps_id", "field 'eps_id'"), ("terminateds", "field 'terminateds'")]
)
def test_columns_that_tell_no_ends(tmp_path, episodes, column, words):
    rows = sum(e.length for e in episodes)
    values = pa.nulls(rows) if column == "eps_id" else [[0, 1]] * rows
    refused(
        episode_parquet(tmp_path / "s.parquet", step_columns(episodes) | {column: values}),
        tmp_path / "set",
        "s.parquet, episode 0",
        words,
    )


def test_files_may_all_have_an_episode_of_the_same_id(tmp_path, episodes):
    (tmp_path / "many").mkdir()
    for number, e in enumerate(episodes):
        episode_parquet(tmp_path / "many" / f"{number}.parquet", step_columns([e], t=counts([e])))
    assert import_dataset([str(tmp_path / "many")], tmp_path / "set", TASK).episodes == len(
        episodes
    )


def test_next_observations_of_another_precision_or_width(tmp_path, episodes):
    for kind, width in ((np.float16, None), (np.float64, None), (np.float32, 1)):
        source = d4rl_file(tmp_path / f"{np.dtype(kind)}.hdf5", episodes)
        with h5py.File(source, "a") as file:
            values = file["next_observations"][()].astype(kind)[:, :width]
            del file["next_observations"]
            file["next_observations"] = values
        if width:
            refused(
                source,
                tmp_path / "narrow",
                "episode 0, field 'next_observations'",
                "an entry has the shape [1] where [3] is expected",
            )
        else:
            assert import_dataset(
                [str(source)], tmp_path / f"set-{np.dtype(kind)}", TASK
            ).episodes == len(episodes)


def counts(episodes):
    return [k for e in episodes for k in range(e.length)]


def test_steps_that_do_not_begin_at_the_start(tmp_path, episodes):
    columns = step_columns(episodes, t=counts(episodes))
    start = sum(e.length for e in episodes[:BAD])
    later = {column: values[:start] + values[start + 2 :] for column, values in columns.items()}
    refused(
        episode_parquet(tmp_path / "s.parquet", later),
        tmp_path / "set",
        f"episode {BAD}",
        "field 't'",
        "begins with 2; its first rows are missing",
    )
    for number, t in enumerate(
        ([t + 1 for t in columns["t"]], list(range(len(columns["t"]))))
    ):  # from one, and through the whole file
        source = episode_parquet(tmp_path / f"{number}.parquet", columns | {"t": t})
        assert import_dataset([str(source)], tmp_path / f"set-{number}", TASK).episodes == len(
            episodes
        )


# --- columns of another type


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("policy", 7, "text is expected, not int64"),
        ("mode", 0.5, "text is expected, not double"),
        ("env_id", 7, "text is expected, not int64"),
        ("sigma", "lots", "a number is expected, not string"),
        ("eps", [0.1], "a number is expected, not list<"),
        ("length", "ten", "a number is expected, not string"),
        ("stage", "late", "a whole number is expected, not string"),
        ("seed", 0.5, "a whole number is expected, not double"),
    ],
)
def test_a_scalar_of_another_type(tmp_path, episodes, name, value, words):
    """Of any file: the columns of the second are called alike."""
    (tmp_path / "many").mkdir()
    more = {"env_id": ["Made-v0"] * 6} if name == "env_id" else {}
    episode_parquet(tmp_path / "many" / "a.parquet", rows_of(episodes, **more))
    episode_parquet(
        tmp_path / "many" / "b.parquet", rows_of(episodes, **more) | {name: [value] * 6}
    )
    refused(tmp_path / "many", tmp_path / "set", "b.parquet", f"field '{name}'", words)


@pytest.mark.parametrize(
    ("name", "value"), [("eps_id", [1, 2]), ("eps_id", 0.5), ("episode", {"a": 1})]
)
def test_an_episode_id_of_another_type(tmp_path, episodes, name, value):
    columns = step_columns(episodes, eps_id=None)
    source = episode_parquet(
        tmp_path / "s.parquet", columns | {name: [value] * len(columns["rewards"])}
    )
    refused(
        source,
        tmp_path / "set",
        "s.parquet",
        f"field '{name}'",
        "text or a whole number is expected, not ",
    )


def test_scalars_that_are_all_missing_are_no_mistake(tmp_path, episodes):
    columns = rows_of(
        episodes,
        **dict.fromkeys(("policy", "mode", "sigma", "eps", "stage", "seed", "env_id"), pa.nulls(6)),
    )
    assert import_dataset(
        [str(episode_parquet(tmp_path / "s.parquet", columns))], tmp_path / "set", TASK
    ).behaviours() == {"": 6}
    refused(
        episode_parquet(tmp_path / "s.parquet", columns | {"length": pa.nulls(6)}),
        tmp_path / "other",
        "episode 0",
        "'length'",
        "it says None",
    )


def test_two_columns_of_one_name(tmp_path, episodes):
    table = pa.table(
        {
            name: pa.array(list(values) if isinstance(values, list) else values)
            for name, values in rows_of(episodes).items()
        }
    )
    pq.write_table(table.append_column("seed", table["seed"]), tmp_path / "s.parquet")
    refused(
        tmp_path / "s.parquet",
        tmp_path / "set",
        "s.parquet",
        "field 'seed'",
        "more than one such column",
    )


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (TypeError, False),
        (pa.ArrowInvalid, False),
        (pa.ArrowNotImplementedError, False),
        (MemoryError, True),
    ],
)
def test_values_that_no_check_foresaw_leave_nothing(tmp_path, episodes, monkeypatch, error, stays):
    """What the next try meets again goes; what it may not meet is gone on with."""

    def fail(*_):
        raise error("unforeseen")

    monkeypatch.setattr("bigdm_ray.formats.importing.conform", fail)
    with pytest.raises(error if stays else UserError) as caught:
        import_dataset(
            [str(episode_parquet(tmp_path / "s.parquet", rows_of(episodes)))],
            tmp_path / "set",
            TASK,
        )
    why = f"what it holds cannot be read ({error.__name__}: unforeseen); nothing was imported"
    assert stays or f"s.parquet: {why}" in str(caught.value)
    assert (tmp_path / ".set.importing").exists() == stays and not (tmp_path / "set").exists()


# --- no episodes, no steps, nothing there


def test_zero_episodes(tmp_path, episodes):
    empty = {
        name: pa.array(list(values) if isinstance(values, list) else values)[:0]
        for name, values in rows_of(episodes).items()
    }
    pq.write_table(pa.table(empty), tmp_path / "s.parquet")
    refused(tmp_path / "s.parquet", tmp_path / "set", "s.parquet holds no episodes")
    step = {name: pa.array(values)[:0] for name, values in step_columns(episodes).items()}
    pq.write_table(pa.table(step), tmp_path / "steps.parquet")
    refused(tmp_path / "steps.parquet", tmp_path / "set", "steps.parquet holds no episodes")
    source = d4rl_file(tmp_path / "s.hdf5", episodes, tail=sum(e.length for e in episodes))
    refused(source, tmp_path / "set", "s.hdf5 holds no episodes")


def test_zero_episodes_of_the_second_source(tmp_path, episodes):
    first = episode_parquet(tmp_path / "s.parquet", rows_of(episodes))
    empty = {
        name: pa.array(list(values) if isinstance(values, list) else values)[:0]
        for name, values in rows_of(episodes).items()
    }
    pq.write_table(pa.table(empty), tmp_path / "empty.parquet")
    refused(
        first,
        tmp_path / "set",
        "empty.parquet holds no episodes",
        several=[str(tmp_path / "empty.parquet")],
    )


def test_an_episode_without_steps(tmp_path, episodes):
    columns = rows_of(episodes)
    for name in ("rewards", "terminated", "truncated", "actions"):
        columns[name] = [
            values[:0] if k == BAD else values for k, values in enumerate(columns[name])
        ]
    columns["length"][BAD] = 0
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "episode 3",
        "'rewards'",
        "no steps",
    )


def test_an_empty_cell(tmp_path, episodes):
    columns = rows_of(episodes)
    columns["actions"] = pa.array(
        [None if k == BAD else values for k, values in enumerate(columns["actions"])]
    )
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    refused(tmp_path / "s.parquet", tmp_path / "set", "episode 3", "'actions'", "missing (null)")
    columns = rows_of(episodes)
    lists = [list(map(float, values)) for values in columns["rewards"]]
    lists[BAD][5] = None
    pq.write_table(pa.table(columns | {"rewards": pa.array(lists)}), tmp_path / "s.parquet")
    refused(tmp_path / "s.parquet", tmp_path / "set", "episode 3", "'rewards'", "missing (null)")


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminated", "truncated"])
def test_a_missing_column(tmp_path, episodes, name):
    source = episode_parquet(tmp_path / "s.parquet", rows_of(episodes, **{name: None}))
    text = refused(source, tmp_path / "set", "s.parquet")
    assert f"'{name}'" in text or "no format that is known" in text


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_array_in_d4rl(tmp_path, episodes, name):
    source = d4rl_file(tmp_path / "s.hdf5", episodes)
    with h5py.File(source, "a") as file:
        del file[name]
    refused(source, tmp_path / "set", "s.hdf5", f"'{name}'", "missing")


@pytest.mark.parametrize("name", ["episode_3", "episode_3/actions", "episode_3/rewards"])
def test_a_missing_array_in_minari(tmp_path, episodes, name):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file[name]
    text = refused(folder, tmp_path / "set", "main_data.hdf5")
    assert "episode 3" in text or "holds 5 episodes where metadata.json tells 6" in text


def test_text_where_numbers_are_expected(tmp_path, episodes):
    columns = rows_of(episodes)
    columns["actions"] = [[str(x) for x in values] for values in columns["actions"]]
    refused(
        episode_parquet(tmp_path / "s.parquet", columns),
        tmp_path / "set",
        "s.parquet",
        "'actions'",
        "numbers are expected, not string",
    )


def test_a_file_that_decodes_to_much_more_is_decoded_in_small_batches(tmp_path):
    """Constant columns take next to nothing in the file: batches go by what they become."""
    rows = {
        "observations": [np.zeros(3000, np.float32)] * 50,
        "rewards": [np.zeros(1000, np.float32)] * 50,
    }
    path = episode_parquet(tmp_path / "s.parquet", rows, row_group_size=20)
    assert path.stat().st_size < 10_000
    for wanted, most, each in ((16_000 * 10, 1024, 9), (16_000 * 10, 5, 5), (1, 1024, 1)):
        assert (
            rows_at_once(open_parquet(path), ["observations", "rewards"], [0, 1, 2], wanted, most)
            == each
        )
    assert rows_at_once(open_parquet(path), ["rewards"], [2], 10**9, 1024) == 1024


# --- torn files


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["parquet", "d4rl", "minari-hdf5"])
def test_a_truncated_file(tmp_path, episodes, kind, share):
    source = written(kind, tmp_path, episodes)
    path = source / "data" / "main_data.hdf5" if source.is_dir() else source
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(source, tmp_path / "set", path.name, "not a whole")


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_a_truncated_episode_of_minari(tmp_path, episodes, data_format):
    folder = minari_folder(tmp_path / "minari", TASK, episodes, data_format)
    path = next((folder / "data" / str(BAD)).glob(f"*.{data_format}"))
    path.write_bytes(path.read_bytes()[:-40])
    refused(folder, tmp_path / "set", str(BAD))
    path.unlink()
    refused(folder, tmp_path / "set", "episode 3", f"no {data_format} file")


@pytest.mark.parametrize("kind", ["parquet", "d4rl", "steps"])
def test_rubbish_with_the_right_name(tmp_path, kind):
    path = tmp_path / ("s.hdf5" if kind == "d4rl" else "s.parquet")
    path.write_bytes(np.random.default_rng(1).bytes(5000))
    refused(path, tmp_path / "set", path.name, "not a whole")


@pytest.mark.parametrize("kind", ["parquet", "d4rl", "steps", "minari-hdf5"])
def test_flipped_bytes_end_in_a_sentence_or_in_sound_episodes(tmp_path, episodes, kind):
    """Whatever is flipped, nothing but the project's own error comes out, and no half dataset."""
    source = written(kind, tmp_path, episodes)
    path = source / "data" / "main_data.hdf5" if source.is_dir() else source
    whole, chance = path.read_bytes(), np.random.default_rng(3)
    outcomes = set()
    for attempt in range(40):
        data = bytearray(whole)
        for at in chance.integers(0, len(data), 4):
            data[at] ^= 1 << int(chance.integers(8))
        path.write_bytes(data)
        folder = tmp_path / f"set-{attempt}"
        try:
            made = import_dataset([str(source)], folder, TASK)
            assert made.content_hash() == made.sha256
            outcomes.add("sound")
        except UserError as error:
            assert "\n" not in str(error)
            assert (
                not folder.exists() and not folder.with_name(f".{folder.name}.importing").exists()
            )
            outcomes.add("refused")
    assert "refused" in outcomes


# --- another task


def test_a_dataset_of_another_task(tmp_path, episodes):
    source = episode_parquet(tmp_path / "s.parquet", rows_of(episodes, env_id=["Hopper-v5"] * 6))
    refused(
        source,
        tmp_path / "set",
        "s.parquet is a dataset of another task",
        "Hopper-v5",
        "not toy-continuous",
    )


def test_a_row_of_another_environment(tmp_path, episodes):
    ids = ["CartPole-v1"] * 6
    ids[BAD] = "Acrobot-v1"
    carts = played("cartpole", 6).episodes
    source = episode_parquet(tmp_path / "s.parquet", rows_of(carts, env_id=ids))
    refused(
        source,
        tmp_path / "set",
        "episode 3",
        "'env_id'",
        "another task",
        "Acrobot-v1",
        "CartPole-v1",
        task=None,
    )


@pytest.mark.parametrize("to", ["parquet", "steps"])
def test_a_folder_of_two_tasks_that_look_alike(tmp_path, to):
    """Nothing but the metadata tells them apart: the arrays have the same shapes, and rows that are
    recorded name no environment."""
    for name, task in (("a", "lunarlander"), ("b", "lunarlander-sparse"), ("c", "lunarlander")):
        export_dataset(
            dataset(tmp_path / name, task, 2, seed=ord(name)), to, tmp_path / f"out-{name}"
        )
    (tmp_path / "out-b" / "b.parquet").rename(tmp_path / "out-a" / "b.parquet")
    words = (
        "out-a/b.parquet is a dataset of another task than ",
        "out-a/a.parquet",
        "its task is lunarlander-sparse where lunarlander is told first",
    )
    refused(tmp_path / "out-a", tmp_path / "set", *words, task=None)
    if to == "parquet":
        (tmp_path / "out-c" / "c.parquet").rename(tmp_path / "out-a" / "b.parquet")
        assert import_dataset([str(tmp_path / "out-a")], tmp_path / "set").episodes == 4


@pytest.mark.parametrize("kind", ["parquet", "steps"])
@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (
            {"env_id": "CartPole-v1"},
            {"env_id": "CartPole-v0"},
            "its environment is CartPole-v0 where CartPole-v1 is told first",
        ),
        (
            {"env_id": "CartPole-v1"},
            {},
            "its environment is not told where CartPole-v1 is told first",
        ),
        ({}, {"env_id": "CartPole-v0"}, "its environment is CartPole-v0 where none is told first"),
        (
            {"obs_dim": "4", "act_dim": "1", "n_actions": "2"},
            {"obs_dim": "4", "act_dim": "1", "n_actions": "3"},
            "its actions are discrete of 3 where",
        ),
        (
            {"obs_dim": "4", "act_dim": "1", "n_actions": "2"},
            {},
            "its signature has other types or bounds, or is missing",
        ),
    ],
)
def test_a_folder_whose_files_tell_other_things(tmp_path, kind, first, second, word):
    (tmp_path / "many").mkdir()
    carts = played("cartpole", 3).episodes
    columns = rows_of(carts) if kind == "parquet" else step_columns(carts)
    for name, meta in (("a", first), ("b", second)):
        episode_parquet(tmp_path / "many" / f"{name}.parquet", columns, meta)
    refused(
        tmp_path / "many",
        tmp_path / "set",
        "b.parquet is a dataset of another task than ",
        "a.parquet",
        word,
        task="cartpole",
    )


def test_a_task_that_pays_otherwise_is_another(tmp_path):
    source = episode_parquet(
        tmp_path / "s.parquet",
        rows_of(played("lunarlander", 2).episodes, env_id=["LunarLander-v3"] * 2),
    )
    refused(
        source,
        tmp_path / "set",
        "another task",
        "LunarLander-v3",
        "not lunarlander-sparse",
        task="lunarlander-sparse",
    )


def test_arrays_of_another_shape_than_the_task(tmp_path, episodes):
    source = d4rl_file(tmp_path / "s.hdf5", episodes)
    refused(
        source,
        tmp_path / "set",
        "s.hdf5, episode 0",
        "'observations'",
        "[3] where [4]",
        task="cartpole",
    )


def test_a_name_that_tells_another_task(tmp_path, episodes):
    source = d4rl_file(tmp_path / "halfcheetah_medium-v2.hdf5", episodes)
    refused(source, tmp_path / "set", "another task", "halfcheetah", "not toy-continuous")


def test_a_minari_folder_of_another_task(tmp_path):
    folder = minari_folder(
        tmp_path / "minari", "cartpole", played("cartpole", 3).episodes, env="CartPole-v1"
    )
    refused(folder, tmp_path / "set", "another task", "CartPole-v1", "not toy-continuous")


def test_a_minari_folder_whose_spaces_are_not_its_tasks(tmp_path, episodes):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    refused(
        folder,
        tmp_path / "set",
        "another task than cartpole",
        "observations are tensor [3] where tensor [4]",
        task="cartpole",
    )


def test_a_source_that_does_not_say_its_task(tmp_path, episodes):
    for source in (
        d4rl_file(tmp_path / "mine.hdf5", episodes),
        episode_parquet(tmp_path / "s.parquet", rows_of(episodes)),
    ):
        refused(source, tmp_path / "set", source.name, "--task TASK", task=None)


# --- paths that escape, code that would run


def test_a_link_out_of_a_minari_folder(tmp_path, episodes):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    data = folder / "data"
    (data / "main_data.hdf5").rename(tmp_path / "elsewhere.hdf5")
    (data / "main_data.hdf5").symlink_to(tmp_path / "elsewhere.hdf5")
    refused(folder, tmp_path / "set", "main_data.hdf5 leads out of", "elsewhere.hdf5")
    (data / "metadata.json").rename(tmp_path / "elsewhere.json")
    (data / "metadata.json").symlink_to(tmp_path / "elsewhere.json")
    refused(folder, tmp_path / "set", "metadata.json leads out of")


def test_a_data_folder_that_leads_out(tmp_path, episodes):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    (folder / "data").rename(tmp_path / "data")
    (folder / "data").symlink_to(tmp_path / "data")
    refused(folder, tmp_path / "set", "leads out of")


def test_an_episode_folder_that_leads_out(tmp_path, episodes):
    folder = minari_folder(tmp_path / "minari", TASK, episodes, "parquet")
    (folder / "data" / "3").rename(tmp_path / "3")
    (folder / "data" / "3").symlink_to(tmp_path / "3")
    refused(folder, tmp_path / "set", "leads out of")


def test_a_parquet_file_of_a_folder_that_leads_out(tmp_path, episodes):
    (tmp_path / "folder").mkdir()
    episode_parquet(tmp_path / "s.parquet", rows_of(episodes))
    (tmp_path / "folder" / "s.parquet").symlink_to(tmp_path / "s.parquet")
    refused(tmp_path / "folder", tmp_path / "set", "s.parquet leads out of")


@pytest.mark.parametrize("how", ["external link", "soft link", "virtual", "external data"])
@pytest.mark.parametrize("kind", ["d4rl", "minari"])
def test_hdf5_that_reads_other_files(tmp_path, episodes, how, kind):
    source = (
        d4rl_file(tmp_path / "s.hdf5", episodes)
        if kind == "d4rl"
        else minari_folder(tmp_path / "minari", TASK, episodes)
    )
    path = source if kind == "d4rl" else source / "data" / "main_data.hdf5"
    name = "actions" if kind == "d4rl" else f"episode_{BAD}/actions"
    with h5py.File(path, "a") as file:
        values = file[name][()]
        del file[name]
        with h5py.File(tmp_path / "other.hdf5", "w") as other:
            other["actions"] = values
        values.tofile(tmp_path / "other.raw")
        if how == "external link":
            file[name] = h5py.ExternalLink(tmp_path / "other.hdf5", "actions")
        elif how == "soft link":
            file["elsewhere"] = values
            file[name] = h5py.SoftLink("/elsewhere")
            if kind == "minari":
                file.move("elsewhere", "episode_0/elsewhere")
                del file[name]
                file[name] = h5py.SoftLink("/episode_0/elsewhere")
        elif how == "virtual":
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "actions", values.shape)
            file.create_virtual_dataset(name, layout)
        else:
            file.create_dataset(
                name,
                values.shape,
                values.dtype,
                external=[(tmp_path / "other.raw", 0, values.nbytes)],
            )
    refused(
        source,
        tmp_path / "set",
        path.name,
        "actions'",
        "elsewhere" if "link" in how else "in another file",
    )


@pytest.mark.parametrize("kind", ["strings", "references", "compound"])
def test_hdf5_types_that_h5py_would_make_objects_of(tmp_path, episodes, kind):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_{BAD}/actions"]
        steps = episodes[BAD].length
        values, dtype = {
            "strings": (["x"] * steps, h5py.string_dtype()),
            "references": ([file.ref] * steps, h5py.ref_dtype),
            "compound": (np.zeros(steps, [("a", "f4")]), None),
        }[kind]
        file.create_dataset(f"episode_{BAD}/actions", data=values, dtype=dtype)
    refused(folder, tmp_path / "set", "episode 3", "'actions'", "numbers are expected")


def test_a_shape_that_would_eat_the_memory(tmp_path, episodes):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_{BAD}/actions"]
        file.create_dataset(f"episode_{BAD}/actions", (10**12, 2), np.float32, chunks=(1000, 2))
    refused(folder, tmp_path / "set", "episode 3", "'actions'", "at most 2 GiB")


def test_metadata_that_names_code_runs_none_of_it(tmp_path, episodes, monkeypatch):
    (tmp_path / "trap.py").write_text("import pathlib; pathlib.Path('sprung').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    spec = {"id": "trap:Trap-v0", "entry_point": "trap:Trap", "kwargs": {}}
    with edited(folder) as meta:
        meta["env_spec"] = json.dumps(spec)
    refused(folder, tmp_path / "set", "'trap:Trap-v0', which is no plain gymnasium id", task=None)
    with edited(folder) as meta:
        meta["env_spec"] = json.dumps(spec | {"id": "Trap-v0"})
        meta["bigdm_task"] = "trap:Trap-v0"
    refused(
        folder,
        tmp_path / "set",
        "the task 'trap:Trap-v0', which is not known here",
        "--task TASK",
        task=None,
    )
    with edited(folder) as meta:
        meta["bigdm_task"] = ""
    import_dataset([str(folder)], tmp_path / "set")  # its id is plain; its code is not looked for
    assert not os.path.exists("sprung")  # noqa: PTH110


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("observation_space", "{", "observation_space"),
        ("observation_space", '{"type": "Box"}', "observation_space"),
        ("observation_space", '{"type": "Evil"}', "'Evil'"),
        (
            "observation_space",
            '{"type": "Box", "shape": [1000000, 1000000], "dtype": "float32", "low": 0, "high": 1}',
            "no space",
        ),
        (
            "observation_space",
            '{"type": "Box", "shape": [3], "dtype": "object", "low": 0, "high": 1}',
            "no space",
        ),
        ("action_space", None, "action_space"),
        ("data_format", "pickle", "'pickle'"),
        ("total_episodes", "many", "'total_episodes'"),
        ("total_episodes", -1, "'total_episodes'"),
        ("total_episodes", 7, "tells 7"),
        ("env_spec", "[]", "'env_spec'"),
        ("env_spec", '{"id": "../../etc"}', "no plain gymnasium id"),
    ],
)
def test_broken_metadata(tmp_path, episodes, key, value, word):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with edited(folder) as meta:
        meta[key] = value
        if value is None:
            del meta[key]
    refused(folder, tmp_path / "set", word, task=None if key == "env_spec" else TASK)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_metadata_that_is_none(tmp_path, episodes, text):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    (folder / "data" / "metadata.json").write_text(text)
    refused(folder, tmp_path / "set", "metadata.json")


@pytest.mark.parametrize(
    "id",
    [
        "minari:../../etc/passwd-v0",
        "minari:/etc/passwd-v0",
        "minari:a/../b-v0",
        "minari:",
        "minari:x",
        "minari:a//b-v0",
        "minari:..",
    ],
)
def test_an_id_that_is_a_path(tmp_path, id):
    refused(id, tmp_path / "set", "not the id of a Minari dataset")


def test_a_broken_signature(tmp_path, episodes):
    own = dataset(tmp_path / "own", episodes=episodes)
    good = {"task": TASK, "signature": own.signature.to_json()}
    for broken in (
        {},
        {"task": TASK},
        {"task": TASK, "signature": {"observations": {}, "actions": {}}},
        spoil(good, "shape", [-3]),
        spoil(good, "kind", "evil"),
        7,
    ):
        source = episode_parquet(
            tmp_path / "s.parquet", rows_of(episodes), {"bigdm": json.dumps(broken)}
        )
        refused(source, tmp_path / "set", "broken signature")
    source = episode_parquet(
        tmp_path / "s.parquet",
        rows_of(episodes),
        {"obs_dim": "many", "act_dim": "2", "n_actions": "0"},
    )
    refused(source, tmp_path / "set", "obs_dim 'many'")


def spoil(good, key, value):
    changed = json.loads(json.dumps(good))
    changed["signature"]["observations"][""][key] = value
    return changed


def test_a_dataset_whose_card_is_broken(tmp_path):
    made = dataset(tmp_path / "own")
    card = json.loads((made.folder / "dataset.json").read_text())
    for changed in ({"schema_version": 99}, {"signature": 5}, {"more": 1}):
        (made.folder / "dataset.json").write_text(json.dumps(card | changed))
        refused(made.folder, tmp_path / "set", "dataset.json", task=None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../../evil"),
        ("name", ""),
        ("name", 5),
        ("task", 5),
        ("episodes", "many"),
        ("episodes", None),
        ("steps", 1.5),
        ("steps", True),
        ("return_mean", None),
        ("return_max", float("nan")),
        ("return_min", 10**400),
        ("name", "\ud800"),
        (
            "signature",
            {
                "observations": {"": {"kind": "tensor", "shape": None, "dtype": "float32"}},
                "actions": {},
            },
        ),
        (
            "signature",
            {"observations": {"": {"kind": 5, "shape": [1], "dtype": "float32"}}, "actions": {}},
        ),
        ("versions", [1]),
        ("versions", {"numpy": 2}),
    ],
)
def test_a_card_with_a_value_that_its_field_cannot_have(field, value, tmp_path, capsys):
    made, other = dataset(tmp_path / "sets" / "own"), dataset(tmp_path / "sets" / "other")
    (made.folder / "dataset.json").write_text(
        json.dumps(json.loads((made.folder / "dataset.json").read_text()) | {field: value})
    )
    refused(made.folder, tmp_path / "set", "dataset.json is not the card of a dataset", task=None)
    for command in (
        ["show", str(made.folder)],
        ["export", str(made.folder), "--to", "parquet", "--folder", str(tmp_path / "sets" / "out")],
    ):
        with pytest.raises(UserError, match="is not the card of a dataset"):
            data.main(command)
    assert data.main(["list", str(tmp_path / "sets")]) == 0
    told = capsys.readouterr()
    assert (
        str(other.folder) in told.out
        and str(made.folder) not in told.out
        and "is not the card of a dataset" in told.err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sets"]


def test_a_dataset_whose_shard_is_a_link_out_of_it(tmp_path):
    made = dataset(tmp_path / "own")
    shard = made.shards()[0]
    shard.rename(tmp_path / "elsewhere.arrow")
    shard.symlink_to(tmp_path / "elsewhere.arrow")
    refused(made.folder, tmp_path / "set", shard.name, "leads out of", task=None)


def test_a_signature_that_is_not_the_tasks(tmp_path):
    made = dataset(tmp_path / "own", "toy-vector")
    card = json.loads((made.folder / "dataset.json").read_text())
    (made.folder / "dataset.json").write_text(json.dumps(card | {"task": TASK}))
    refused(made.folder, tmp_path / "set", "another task than toy-continuous", "actions", task=None)
    assert find_task(TASK).signature() != made.signature


def test_a_text_longer_than_its_space(tmp_path):
    folder = minari_folder(tmp_path / "root", "toy-mixed", played("toy-mixed", 4).episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        texts = file["episode_1/observations/mission"]
        words = [value.decode() for value in texts[()]]
        del file["episode_1/observations/mission"]
        file["episode_1/observations/mission"] = [*words[:2], words[2] + "x" * 32, *words[3:]]
    refused(
        folder,
        tmp_path / "set",
        "episode 1",
        "step 2",
        "mission'",
        "bytes where at most 32 are expected",
        task="toy-mixed",
    )


def test_a_seed_that_64_bits_do_not_hold_is_left_out(tmp_path, episodes):
    seeds = np.array([7, 2**63, *range(len(episodes) - 2)], np.uint64)
    made = import_dataset(
        [str(episode_parquet(tmp_path / "s.parquet", rows_of(episodes, seed=seeds)))],
        tmp_path / "set",
        TASK,
    )
    assert [e.seed for e in made.stream()][:3] == [7, 0, 0]


NESTED = "[" * 100_000 + "]" * 100_000


def test_metadata_nested_too_deep(tmp_path, episodes):
    source = episode_parquet(tmp_path / "s.parquet", rows_of(episodes), {"bigdm": NESTED})
    refused(source, tmp_path / "set", "s.parquet", "broken signature")
    folder = minari_folder(tmp_path / "root", TASK, episodes)
    with edited(folder) as meta:
        meta["env_spec"] = NESTED
    refused(folder, tmp_path / "set", "env_spec")
    (folder / "data" / "metadata.json").write_text(NESTED)
    refused(folder, tmp_path / "set", "metadata.json", "is not JSON")
