"""The weights door: Decision Transformers of others act here as they do there, and ours there as
here."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from making import dataset_of
from plain_decision import PlainDecisionTransformer
from safetensors.torch import save_file

import bigdm_ray
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError
from bigdm_ray.run import train
from bigdm_ray.training.config import configure
from bigdm_ray.weights import main

SEEN, ACTED, STEPS = 11, 3, 7


def peer(**more):
    """Hugging Face's network with random weights, its position table included."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    sizes = {
        "state_dim": SEEN,
        "act_dim": ACTED,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 2,
        "max_ep_len": 50,
        "n_positions": 64,
    }
    model = DecisionTransformerModel(DecisionTransformerConfig(**(sizes | more))).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def theirs(model, seen, actions, returns, times, pad):
    """What the peer predicts for windows that it pads on the left."""

    def padded(values, fill=0.0):
        return torch.cat(
            [torch.full((len(values), pad, *values.shape[2:]), fill, dtype=values.dtype), values], 1
        )

    mask = torch.cat([torch.zeros(len(seen), pad), torch.ones(len(seen), STEPS)], 1).long()
    with torch.no_grad():
        out = model(
            states=padded(seen, 0.7),
            actions=padded(actions, -10.0),
            returns_to_go=padded(returns[..., None]),
            rewards=None,
            timesteps=padded(times),
            attention_mask=mask,
        )
    return out.action_preds[:, pad:]


def windows():
    torch.manual_seed(1)
    times = torch.randint(0, 40, (5, 1)) + torch.arange(STEPS)
    return (
        torch.randn(5, STEPS, SEEN),
        torch.rand(5, STEPS, ACTED) * 2 - 1,
        torch.randn(5, STEPS),
        times,
    )


def ours(folder, seen, actions, returns, times):
    loaded = bigdm_ray.load(folder)
    with torch.no_grad():
        out = loaded.model({"": seen}, {"": actions}, returns, times)
        return torch.tanh(out)


@pytest.mark.parametrize("kind", ["huggingface", "original", "file"])
def test_imported_weights_act_as_they_did(kind, tmp_path, capsys):
    source = tmp_path / "theirs"
    if kind == "huggingface":
        model = peer()
        model.save_pretrained(source)
    else:
        torch.manual_seed(0)
        model = PlainDecisionTransformer(SEEN, ACTED)
        source.mkdir()
        save_file(model.state_dict(), source / "model.safetensors")
        source = source / "model.safetensors" if kind == "file" else source
    flags = [
        "import",
        str(source),
        "--task",
        "hopper",
        "--folder",
        str(tmp_path / "run"),
        "--heads",
        "2",
        "--return-scale",
        "1",
        "--target-return",
        "3600",
    ]
    assert main(flags) == 0
    seen, actions, returns, times = windows()
    for pad in (0, 4):
        torch.testing.assert_close(
            ours(tmp_path / "run", seen, actions, returns, times),
            theirs(model, seen, actions, returns, times, pad),
            atol=1e-5,
            rtol=1e-5,
        )
    assert bigdm_ray.load(tmp_path / "run").command == {"desired_return": 3600.0}
    assert "score it with" in capsys.readouterr().out


def test_exported_weights_act_there_as_here(tmp_path):
    from transformers import DecisionTransformerModel

    dataset_of(tmp_path / "data", "hopper", 3)
    flags = (
        "--algorithm.width 16 --algorithm.layers 2 --algorithm.heads 2 --algorithm.context 5"
        " --algorithm.return-scale 1 --budget.learner-steps 5"
    )
    flags += (
        " --evaluations.episodes 1 --evaluations.final-episodes 1 --algorithm.learning-rate 0.01"
        " --algorithm.warm-up-steps 0"
    )
    train(configure("dt", str(tmp_path / "data"), flags.split()), tmp_path / "run", local=True)
    assert main(["export", str(tmp_path / "run"), "--folder", str(tmp_path / "out")]) == 0
    model = DecisionTransformerModel.from_pretrained(tmp_path / "out").eval()
    seen, actions, returns, times = windows()
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    standard = (seen - torch.tensor(statistics["mean"])) / (torch.tensor(statistics["std"]) + 1e-6)
    expected = ours(tmp_path / "run", seen, actions, returns, times)
    torch.testing.assert_close(
        theirs(model, standard, actions, returns, times, 3), expected, atol=1e-5, rtol=1e-5
    )
    assert (
        main(
            [
                "import",
                str(tmp_path / "out"),
                "--task",
                "hopper",
                "--folder",
                str(tmp_path / "again"),
            ]
        )
        == 0
    )
    algorithm = bigdm_ray.load(tmp_path / "again").run.algorithm
    assert (algorithm.context, algorithm.return_scale) == (5, 1.0)
    again = bigdm_ray.load(tmp_path / "again").model.state_dict()
    for name, value in bigdm_ray.load(tmp_path / "run").model.state_dict().items():
        torch.testing.assert_close(again[name], value, msg=name)


def test_statistics_come_from_data_or_a_file(tmp_path):
    model = peer()
    model.save_pretrained(tmp_path / "theirs")
    dataset = dataset_of(tmp_path / "data", "hopper", 3)
    start = ["import", str(tmp_path / "theirs"), "--task", "hopper"]
    assert main([*start, "--folder", str(tmp_path / "a"), "--data", str(tmp_path / "data")]) == 0
    seen = np.concatenate([dataset.store().episode(i).observations[""][:-1] for i in range(3)])
    np.testing.assert_allclose(
        bigdm_ray.load(tmp_path / "a").model.embed_state.standardise.mean.numpy(),
        seen.mean(0),
        rtol=1e-3,
        atol=1e-4,
    )
    (tmp_path / "s.json").write_text(json.dumps({"mean": list(range(SEEN)), "std": [2.0] * SEEN}))
    assert (
        main([*start, "--folder", str(tmp_path / "b"), "--statistics", str(tmp_path / "s.json")])
        == 0
    )
    assert bigdm_ray.load(tmp_path / "b").model.embed_state.standardise.mean.tolist() == list(
        range(SEEN)
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_taken_as_float32(kind, tmp_path):
    peer().to(kind).save_pretrained(tmp_path / "theirs")
    assert (
        main(
            [
                "import",
                str(tmp_path / "theirs"),
                "--task",
                "hopper",
                "--folder",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    torch.testing.assert_close(
        bigdm_ray.load(tmp_path / "run").model.embed_action.linear.weight,
        peer().to(kind).float().embed_action.weight,
    )


def test_a_source_on_the_hub_is_two_files_and_a_pickle_there_is_told(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    peer().save_pretrained(tmp_path / "hub" / "owner" / "good")
    (tmp_path / "hub" / "owner" / "pickled").mkdir()
    (tmp_path / "hub" / "owner" / "empty").mkdir()
    files = {"owner/pickled": ["README.md", "pytorch_model.bin"], "owner/empty": ["README.md"]}

    def download(name, allow_patterns):
        assert allow_patterns == ["config.json", "model.safetensors"]
        if not (tmp_path / "hub" / name).is_dir():
            raise OSError("no such repository\nand more")
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", files.__getitem__)
    flags = ["--task", "hopper", "--folder", str(tmp_path / "run")]
    capsys.readouterr()
    for name, text in (
        ("pickled", "holds pytorch_model.bin, a pickle"),
        ("empty", "there are no weights at"),
        ("none", "(no such repository)"),
    ):
        assert door(main, ["import", f"hf:owner/{name}", *flags]) == 2
        told = capsys.readouterr().err
        assert text in told and told.count("\n") == 1, told
    assert main(["import", "hf:owner/good", *flags]) == 0


def test_a_folder_that_cannot_be_exported_to_is_said(tmp_path, capsys):
    peer().save_pretrained(tmp_path / "theirs")
    assert (
        main(
            [
                "import",
                str(tmp_path / "theirs"),
                "--task",
                "hopper",
                "--folder",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/inner"):
        with pytest.raises(UserError, match="cannot be made"):
            main(["export", str(tmp_path / "run"), "--folder", str(tmp_path / folder)])


def test_an_imported_run_is_fine_tuned_like_any_other(tmp_path):
    peer().save_pretrained(tmp_path / "theirs")
    dataset_of(tmp_path / "data", "hopper", 3)
    assert (
        main(
            [
                "import",
                str(tmp_path / "theirs"),
                "--task",
                "hopper",
                "--folder",
                str(tmp_path / "run"),
                "--data",
                str(tmp_path / "data"),
            ]
        )
        == 0
    )
    flags = [
        "--from",
        str(tmp_path / "run"),
        "--budget.env-steps",
        "40",
        "--algorithm.updates-per-episode",
        "1",
        "--algorithm.batch-size",
        "4",
    ]
    summary = train(
        configure("dt", "hopper", [*flags, "--evaluations.final-episodes", "1"]),
        tmp_path / "on",
        local=True,
    )
    assert summary["learner_steps"] > 1 and summary["env_steps"] >= 40
    before, after = (
        bigdm_ray.load(tmp_path / name).model.embed_state.standardise for name in ("run", "on")
    )
    torch.testing.assert_close(before.mean, after.mean)
    assert (
        main(
            [
                "import",
                str(tmp_path / "theirs"),
                "--task",
                "hopper",
                "--folder",
                str(tmp_path / "bare"),
            ]
        )
        == 0
    )
    with pytest.raises(UserError, match="has no episodes to begin with"):
        train(
            configure("dt", "hopper", ["--from", str(tmp_path / "bare")]),
            tmp_path / "no",
            local=True,
        )


def test_what_cannot_be_taken_is_said_in_one_sentence(tmp_path, capsys):
    model = peer()
    model.save_pretrained(tmp_path / "good")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(
        (tmp_path / "good" / "model.safetensors").read_bytes()[:1000]
    )
    (tmp_path / "other").mkdir()
    save_file({"a": torch.zeros(3)}, tmp_path / "other" / "model.safetensors")
    peer(activation_function="gelu").save_pretrained(tmp_path / "gelu")
    peer(n_inner=64).save_pretrained(tmp_path / "inner")
    save_file(PlainDecisionTransformer(SEEN, ACTED).state_dict(), tmp_path / "original.safetensors")
    for name, value in (("nan", float("nan")), ("far", 1e300)):
        weights = {key: values.double() for key, values in model.state_dict().items()}
        weights["predict_action.0.bias"][1] = value
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
    for name, key, shape in (
        ("flat", "embed_state.weight", (-1,)),
        ("scalar", "predict_action.0.weight", ()),
        ("empty", "encoder.wpe.weight", (0, 16)),
    ):
        weights = dict(model.state_dict())
        weights[key] = (
            weights[key].flatten()[: 1 if shape == () else 0 if 0 in shape else None].reshape(shape)
        )
        (tmp_path / name).mkdir()
        save_file({n: v.clone() for n, v in weights.items()}, tmp_path / name / "model.safetensors")
    for name, config in (("list", []), ("headless", {"n_head": 0})):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "s.json").write_text('{"mean": [1]}')
    (tmp_path / "n.json").write_text(json.dumps({"mean": [1e308] * SEEN, "std": [1.0] * SEEN}))
    dataset_of(tmp_path / "data", "toy-continuous", 3)
    capsys.readouterr()
    for source, task, more, text in [
        ("nowhere", "hopper", [], "there are no weights at"),
        ("pickle", "hopper", [], "a pickle, which may run any code"),
        ("torn", "hopper", [], "cannot be read as safetensors"),
        ("other", "hopper", [], "holds no Decision Transformer"),
        ("gelu", "hopper", [], "has activation_function 'gelu', but 'relu' is expected"),
        ("inner", "hopper", [], "inner layers of 64"),
        ("nan", "hopper", [], "has numbers in predict_action.0.bias that are not finite"),
        ("far", "hopper", [], "has numbers in predict_action.0.bias that are not finite"),
        ("good", "hopper", ["--statistics", str(tmp_path / "n.json")], "not all are finite"),
        (
            "good",
            "walker2d",
            [],
            "reads 11 numbers and acts with 3, but walker2d shows 17 and takes 6",
        ),
        ("good", "lunarlander", [], "acts between -1 and 1, which lunarlander does not"),
        ("good", "hopper", ["--statistics", str(tmp_path / "s.json")], "with 11 numbers each"),
        ("good", "hopper", ["--data", str(tmp_path / "data")], "is of toy-continuous"),
        ("good", "hopper", ["--target-return", "1e300"], "target-return"),
        ("good", "hopper", ["--context", "0"], "--context is 0, but at least 1 is expected"),
        (
            "original.safetensors",
            "hopper",
            ["--heads", "3"],
            "original.safetensors's width is 32, but a multiple of --heads 3 is expected",
        ),
        ("flat", "hopper", [], "for embed_state.linear.weight, but 2 dimensions"),
        (
            "scalar",
            "hopper",
            [],
            "has an array of shape [] for head.linear.weight, but 2 dimensions",
        ),
        ("empty", "hopper", [], "for wpe.weight, but 2 dimensions that are not empty"),
        ("list", "hopper", [], "config.json (an object is expected where it has a list)"),
        ("good", "hopper", ["--heads", "1"], "--heads is 1, but the config.json of"),
        ("headless", "hopper", [], "has n_head 0, but a whole number from 1 on is expected"),
        ("good", "hoper", [], "unknown task 'hoper'; did you mean 'hopper'"),
    ]:
        code = door(
            main,
            [
                "import",
                str(tmp_path / source),
                "--task",
                task,
                "--folder",
                str(tmp_path / "run"),
                *more,
            ],
        )
        told = capsys.readouterr().err
        assert code == 2 and text in told and told.count("\n") == 1, told
        assert not (tmp_path / "run").exists()
    assert door(main, ["export", str(tmp_path / "nowhere"), "--folder", str(tmp_path / "out")]) == 2
