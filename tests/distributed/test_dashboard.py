"""`--dashboard`: Ray's web page while a run goes on, for this machine and whoever has the token,
and no longer."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import answers, listeners, tiny

import bigdm_ray
from bigdm_ray.distributed.cluster import cluster
from bigdm_ray.errors import UserError
from bigdm_ray.run import main
from bigdm_ray.training.run_folder import RunFolder

TOLD = re.compile(r"dashboard: http://127\.0\.0\.1:(\d+), which asks for a token: (\w+)")


def asked(port: int, path: str, token: str) -> str:
    """What the page answers to one who has its token."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
@pytest.mark.ray(own=True)
def test_a_run_s_dashboard_is_told_shows_its_actors_to_its_user_alone_and_goes_with_it(
    tmp_path: Path, capsys: Any
) -> None:
    seen: dict[str, Any] = {}

    def look(_: bigdm_ray.training.metrics.Report) -> bool:
        told = TOLD.search(capsys.readouterr().err)
        if told is not None:
            port, token = int(told[1]), told[2]
            found = listeners(os.getpid())
            seen.update(
                port=port,
                addresses={address for address, _ in found},
                page=answers(port, "/"),
                strangers={answers(port, path) for path in ("/logical/actors", "/api/version")},
                metrics={status for _, at in found if (status := answers(at, "/metrics"))},
                actors=json.loads(asked(port, "/logical/actors", token))["data"]["actors"],
            )
        return bool(seen)

    run = tiny("--actors 1 --budget.env-steps 100000 --saves.report-every 100")
    summary = bigdm_ray.train(run, tmp_path / "run", look, dashboard=True)
    assert summary["stopped"]
    assert seen["page"] == 200 and seen["strangers"] == {401}
    assert seen["addresses"] <= {"127.0.0.1", "::1"}
    assert seen["metrics"] == {401}
    assert {"RolloutActor", "LearnerActor"} <= {a["actorClass"] for a in seen["actors"].values()}
    assert answers(seen["port"], "/") == 0


@pytest.mark.ray
def test_in_a_ray_that_is_there_already_its_own_page_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cluster(tiny(""), dashboard=True):
        assert "dashboard: this Ray has none; ray.init(" in capsys.readouterr().err


def test_a_run_without_ray_has_no_dashboard_and_is_refused_before_its_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for words in (["udrl", "toy-vector", "--local"], ["sb3-ppo", "cartpole"]):
        with pytest.raises(UserError, match="--dashboard shows Ray"):
            main([*words, "--dashboard", "--folder", str(folder)])
    assert not folder.exists()
    with RunFolder(folder).hold(run := tiny(""), resume=False, exact=True) as home:
        home.begun = True
    assert run.task == "toy-vector"
    with pytest.raises(UserError, match="--dashboard shows Ray"):
        main(["--resume", "--folder", str(folder), "--dashboard"])
    with pytest.raises(UserError, match="--dashboard shows Ray"):
        bigdm_ray.train(run, tmp_path / "other", local=True, dashboard=True)
    assert capsys.readouterr().err == ""
