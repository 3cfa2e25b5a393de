"""The weights door: Trajectory Transformers of others predict here what they predict there, with
their tokens."""

import json

import numpy as np
import pytest
import torch
from making import dataset_of
from plain_trajectory import PlainTrajectory
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

import bigdm_ray
from bigdm_ray import plots
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError
from bigdm_ray.formats.trajectory_transformer import edges
from bigdm_ray.tokens.bins import Bins
from bigdm_ray.training.config import configure
from bigdm_ray.weights import main

SEEN, ACTED, BINS, WINDOW = 11, 3, 20, 6
DIMS = SEEN + ACTED + 2


def peer(seen=SEEN, acted=ACTED, **more):
    """A network with random weights, none of them 0."""
    torch.manual_seed(0)
    model = PlainTrajectory(
        seen,
        acted,
        **({"bins": BINS, "window": WINDOW, "width": 32, "layers": 2, "heads": 4} | more),
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def saved(model, path, layout="file"):
    """Its state dict as safetensors, and the file or folder."""
    arrays = dict(model.state_dict())
    if layout == "list":
        arrays |= {
            f"head.{i}.weight": part.clone() for i, part in enumerate(arrays.pop("head.weight"))
        }
    file = path.with_suffix(".safetensors")
    if layout == "folder":
        path.mkdir()
        file = path / "model.safetensors"
    save_file(arrays, file)
    return path if layout == "folder" else file


def spread(dims=DIMS, bins=BINS):
    """Thresholds of each dimension, ascending."""
    return np.sort(np.random.default_rng(0).normal(size=(dims, bins + 1)), 1)


@pytest.fixture
def bins(tmp_path):
    file = tmp_path / "bins.json"
    file.write_text(json.dumps({"thresholds": spread().tolist()}))
    return file


def flags(source, folder, bins, task="hopper"):
    return [
        "import",
        str(source),
        "--task",
        task,
        "--folder",
        str(folder),
        *(["--bins", str(bins)] if bins else []),
    ]


@pytest.mark.parametrize("layout", ["file", "folder", "list", "fork"])
@torch.no_grad()
def test_imported_weights_predict_what_they_did(layout, tmp_path, bins, capsys):
    model = peer(fork=layout == "fork")
    assert main(flags(saved(model, tmp_path / "theirs", layout), tmp_path / "run", bins)) == 0
    loaded = bigdm_ray.load(tmp_path / "run")
    assert (
        loaded.run.algorithm.window == WINDOW
        and loaded.run.algorithm.stop == (layout != "fork")
        and loaded.run.evaluations.mode == "plan"
    )
    tokens = torch.randint(0, BINS + (layout != "fork"), (5, WINDOW, DIMS))
    ours = (
        loaded.model.net(tokens)
        .view(DIMS, 5, WINDOW, BINS + 1)
        .permute(1, 2, 0, 3)
        .flatten(1, 2)[:, 1:]
    )
    if layout == "fork":
        assert (ours[..., BINS] == -torch.inf).all()
        ours = ours[..., :BINS]
    torch.testing.assert_close(ours, model(tokens.flatten(1)[:, :-1]), atol=1e-5, rtol=1e-5)
    assert "score it with" in capsys.readouterr().out


def test_imported_weights_act(tmp_path, bins):
    assert (
        main(
            [
                *flags(saved(peer(), tmp_path / "theirs"), tmp_path / "run", bins),
                "--preset",
                "medium-replay",
            ]
        )
        == 0
    )
    loaded = bigdm_ray.load(tmp_path / "run")
    assert loaded.run.preset == "medium-replay" and loaded.run.algorithm.cdf_act == 0.6
    policy = loaded.policy("mean")
    chance = np.zeros((2, policy.uniforms), np.float32)
    actions, _ = policy.act(
        policy.start(2),
        {"": np.zeros((2, SEEN), np.float32)},
        np.zeros(2, np.float32),
        {},
        np.ones(2, bool),
        chance,
    )
    middles = (spread()[:, 1:] + spread()[:, :-1]) / 2
    for row in actions[""]:
        assert all(
            np.isclose(np.clip(middles[SEEN + d], -1, 1), row[d], atol=1e-6).any()
            for d in range(ACTED)
        )


@pytest.mark.parametrize(("window", "context"), [(2, 2), (4, 4), (6, 5)])
def test_a_network_of_short_windows_plans_with_all_that_it_sees(window, context, tmp_path, bins):
    assert main(flags(saved(peer(window=window), tmp_path / "theirs"), tmp_path / "run", bins)) == 0
    found = bigdm_ray.load(tmp_path / "run").run.algorithm
    assert (found.window, found.context) == (window, context)


def test_imported_weights_go_on_from_no_run_and_have_no_data_to_predict(tmp_path, bins, capsys):
    assert main(flags(saved(peer(), tmp_path / "theirs"), tmp_path / "run", bins)) == 0
    dataset_of(tmp_path / "data", "hopper", 1)
    for target in ("hopper", str(tmp_path / "data")):
        with pytest.raises(
            UserError,
            match=(
                "--from goes on by playing, but tt learns from datasets alone and cannot go on from"
                " another run"
            ),
        ):
            configure("tt", target, ["--from", str(tmp_path / "run")])
    capsys.readouterr()
    assert door(plots.main, [str(tmp_path / "run"), "--prediction"]) == 2
    assert "names no dataset that it learned from" in capsys.readouterr().err


def test_thresholds_come_from_either_kind_of_file(tmp_path, bins):
    save_arrays({"thresholds": spread()}, tmp_path / "bins.safetensors")
    source = saved(peer(), tmp_path / "theirs")
    for name, file in (("a", bins), ("b", tmp_path / "bins.safetensors")):
        assert main(flags(source, tmp_path / name, file)) == 0
        np.testing.assert_array_equal(
            bigdm_ray.load(tmp_path / name).model.bins.edges.numpy(), spread().astype(np.float32)
        )


def test_thresholds_that_coincide_give_the_tokens_that_they_did():
    thresholds = (
        np.array(
            [
                [0, 0, 0, 1, 2, 2, 3],
                [-1, 0, 0, 0, 0, 5, 5],
                [7, 7, 7, 7, 7, 7, 7],
                [0, 1, 2, 3, 4, 5, 6],
            ],
            np.float64,
        )
        / 7
    )
    bins = Bins([0] * 4, 6)
    bins.edges.copy_(torch.from_numpy(edges(thresholds)))
    values = np.stack(
        [np.concatenate([row, row + 1e-3, row - 1e-3, [-9, 9]]) for row in thresholds], 1
    )
    # the last threshold that is not above
    theirs = np.clip((values[None] >= thresholds.T[:, None]).sum(0) - 1, 0, 5)
    tokens = bins.encode(torch.from_numpy(values.astype(np.float32)))
    np.testing.assert_array_equal(tokens.numpy(), theirs)
    middles = (thresholds[:, 1:] + thresholds[:, :-1]) / 2
    np.testing.assert_allclose(
        bins.decode(tokens).numpy(), np.take_along_axis(middles, theirs.T, 1).T, atol=1e-5
    )


def test_what_cannot_be_taken_is_said_in_one_sentence(tmp_path, bins, capsys):
    model = peer()
    saved(model, tmp_path / "good")
    (tmp_path / "state_40.pt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "state_40.pt").write_bytes(b"x")

    def changed(name, **arrays):
        save_file(
            {n: v for n, v in (dict(model.state_dict()) | arrays).items() if v is not None},
            tmp_path / f"{name}.safetensors",
        )

    changed("lacking", **{"blocks.1.attn.key.weight": None})
    changed("headless", **{"head.weight": None})
    changed("shared", **{"head.weight": torch.zeros(BINS + 1, 32)})
    changed("embedding", **{"tok_emb.weight": torch.zeros(7, 32)})
    changed("places", pos_emb=torch.zeros(1, 50, 32))
    changed("inner", **{"blocks.0.mlp.0.weight": torch.zeros(64, 32)})
    changed("keys", **{"blocks.0.attn.key.weight": torch.zeros(32, 31)})
    changed("seeing", **{"blocks.0.attn.mask": torch.ones(1, 1, 20, 20).tril()})
    changed("diverged", **{"blocks.1.mlp.2.weight": torch.full((32, 128), torch.inf)})
    changed("goals", **{"goal_emb.weight": torch.zeros(3, 32)})
    more = {
        "short.json": json.dumps({"thresholds": spread(bins=BINS - 1).tolist()}), "torn.json": "{",
        "ragged.json": '{"thresholds": [[1, 2], [1]]}',
        "falling.json": json.dumps({"thresholds": (-spread()).tolist()}), "bins.pkl": "x",
        "far.json": json.dumps({"thresholds": (spread() * 1e300).tolist()}),
    }  # fmt: skip
    for name, text in more.items():
        (tmp_path / name).write_text(text)
    for source, task, file, extra, text in [
        ("state_40.pt", "hopper", bins, [], "a pickle, which may run any code"),
        ("folder", "hopper", bins, [], "holds state_40.pt, a pickle, which may run any code"),
        (
            "good.safetensors",
            "hopper",
            None,
            [],
            "holds no thresholds of its tokens: --bins FILE is expected",
        ),
        (
            "good.safetensors",
            "walker2d",
            bins,
            [],
            (
                "transitions of 16 tokens, but those of walker2d have 25: 17 of the state, 6 of the"
                " action"
            ),
        ),
        (
            "good.safetensors",
            "lunarlander",
            bins,
            [],
            "acts with numbers alone, which lunarlander does not",
        ),
        ("good.safetensors", "hoper", bins, [], "unknown task 'hoper'; did you mean 'hopper'"),
        (
            "good.safetensors",
            "hopper",
            bins,
            ["--preset", "medium-repla"],
            "unknown preset 'medium-repla'",
        ),
        (
            "good.safetensors",
            "hopper",
            bins,
            ["--heads", "5"],
            "good.safetensors's width is 32, but a multiple of --heads, which is 5",
        ),
        (
            "good.safetensors",
            "hopper",
            bins,
            ["--return-scale", "1"],
            "is a Trajectory Transformer, which --return-scale is not for",
        ),
        (
            "good.safetensors",
            "hopper",
            tmp_path / "short.json",
            [],
            "holds [16, 20] thresholds, but 16 rows of 21 are expected",
        ),
        (
            "good.safetensors",
            "hopper",
            tmp_path / "torn.json",
            [],
            'is not {"thresholds": [[...], ...]}',
        ),
        (
            "good.safetensors",
            "hopper",
            tmp_path / "ragged.json",
            [],
            'is not {"thresholds": [[...], ...]}',
        ),
        (
            "good.safetensors",
            "hopper",
            tmp_path / "nowhere.json",
            [],
            'is not {"thresholds": [[...], ...]}',
        ),
        ("good.safetensors", "hopper", tmp_path / "falling.json", [], "in ascending order"),
        ("good.safetensors", "hopper", tmp_path / "far.json", [], "rows of finite numbers"),
        (
            "good.safetensors",
            "hopper",
            tmp_path / "bins.pkl",
            [],
            "make arrays of it with the lines in docs/trajectory_transformer.md",
        ),
        (
            "lacking.safetensors",
            "hopper",
            bins,
            [],
            "has no 'blocks.1.attn.key.weight': it is incomplete",
        ),
        ("headless.safetensors", "hopper", bins, [], "has no 'head.weight'"),
        ("shared.safetensors", "hopper", bins, [], "has one head for all dimensions"),
        (
            "embedding.safetensors",
            "hopper",
            bins,
            [],
            "embeds 7 x 32, but 321 tokens of width 32 are expected",
        ),
        ("places.safetensors", "hopper", bins, [], "has places of 1 x 50 x 32"),
        (
            "inner.safetensors",
            "hopper",
            bins,
            [],
            "has blocks.0.up.weight of 64 x 32, but 128 x 32 is expected",
        ),
        (
            "keys.safetensors",
            "hopper",
            bins,
            [],
            "queries, keys and values that do not go together",
        ),
        ("seeing.safetensors", "hopper", bins, [], "hides other tokens from attention"),
        (
            "diverged.safetensors",
            "hopper",
            bins,
            [],
            "has numbers in blocks.1.mlp.2.weight that are not finite",
        ),
        ("goals.safetensors", "hopper", bins, [], "conditioned on goals"),
    ]:
        code = door(main, [*flags(tmp_path / source, tmp_path / "run", file, task), *extra])
        told = capsys.readouterr().err
        assert code == 2 and text in told and told.count("\n") == 1, (source, told)
        assert not (tmp_path / "run").exists()
