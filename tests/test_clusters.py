"""Every file in clusters/: accepted by the pinned Ray, safe and pinned start-up, and machines that
the placement code can use.

There is no `ray up --dry-run`; this is what its first seconds do, without a cloud. Changed files
must be refused by the same checks.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bigdm_ray.distributed.cluster import cpu_options, learner_options
from bigdm_ray.training.config import Run, configure, parse

REPOSITORY = Path(__file__).parents[1]
FILES = sorted((REPOSITORY / "clusters").glob("*.yaml"))
LOCAL = REPOSITORY / "clusters" / "local.yaml"
"""One's own machines: what they have is known to Ray alone, and they cost nothing."""
COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)

each_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
each_cloud = pytest.mark.parametrize(
    "file", [file for file in FILES if file != LOCAL], ids=lambda path: path.name
)


def loaded(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def pinned_ray() -> str:
    constraints = REPOSITORY / "constraints.txt"
    found = (
        re.search(r"^ray==(\S+)", constraints.read_text(), re.MULTILINE)
        if constraints.is_file()
        else None
    )
    return found[1] if found else metadata.version("ray")


def as_ray_does(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in Ray's defaults and validate; raises what `ray up` would."""
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        pytest.skip(
            f"Ray {metadata.version('ray')} keeps its validation elsewhere than {pinned_ray()}"
            f" ({error})"
        )
    # first: validation wants keys that only this fills in
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def start_up_problems(config: dict[str, Any]) -> list[str]:
    """What is unsafe or not pinned in how the nodes are set up and Ray is started."""
    found = [f"{name} is left to Ray's defaults" for name in COMMANDS if name not in config]
    commands = {name: " ".join(config.get(name, [])) for name in COMMANDS}
    everything = yaml.safe_dump(config)
    found += [
        f"{word} must not stand in it"
        for word in ("0.0.0.0", "ray-wheels", ".dev0", "nightly", ":latest")
        if word in everything
    ]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config.get(name, []) if "ray start" in command]
        if len(starts) != 1 or not re.search(r"\bRAY_AUTH_MODE=token\b.*\bray start\b", starts[0]):
            found.append(f"{name} must start Ray once, with RAY_AUTH_MODE=token")
    for wanted in (
        "--dashboard-host=127.0.0.1",
        "RAY_health_check_period_ms=",
        "--autoscaling-config=",
    ):
        if wanted not in commands["head_start_ray_commands"]:
            found.append(f"the head is started without {wanted}")
    mounts = config.get("file_mounts", {})
    shipped = {"~/bigdm_ray", "~/bigdm_ray/bigdm_ray"} & mounts.keys()
    if not shipped or "~/.ray/auth_token" not in mounts:
        found.append("the checkout or the token is not shipped")
    if not re.search(
        r"cd ~/bigdm_ray && \S*pip install -c constraints\.txt -e '\.\[box2d",
        commands["setup_commands"],
    ):
        found.append("the package is not installed from the checkout at pinned versions")
    versions = set(re.findall(r"rayproject/ray[\w-]*:([\d.]+)", everything)) | set(
        re.findall(r"ray(?:\[[\w,]*\])?==([\d.]+)", everything)
    )
    if versions != {pinned_ray()}:
        found.append(f"Ray is pinned to {sorted(versions)}, but {pinned_ray()} is expected")
    return found


def documented_runs(file: Path) -> list[Run]:
    """The runs that the file's header tells to start; each must be a command line that the door
    takes."""
    lines = [line for line in file.read_text().splitlines() if line.startswith("#")]
    found = [
        match[1] for line in lines if (match := re.search(r"python -m bigdm_ray\.run (.*?)'", line))
    ]
    return [parse(shlex.split(arguments)).run for arguments in found]


def fits(options: dict[str, Any], resources: dict[str, float]) -> bool:
    return (
        resources.get("CPU", 0) >= options["num_cpus"]
        and resources.get("GPU", 0) >= options["num_gpus"]
    )


def placement_problems(config: dict[str, Any], run: Run) -> list[str]:
    """What of a run's actors the cluster could never place, however far it scales."""
    types = config["available_node_types"]
    head, workers = (
        config["head_node_type"],
        {name: kind for name, kind in types.items() if name != config["head_node_type"]},
    )
    learner, player = learner_options(run), cpu_options()
    found = [
        f"{what} would stand on the head"
        for what, asked in (("the learner", learner), ("rollouts", player))
        if fits(asked, types[head]["resources"])
    ]
    learns = {name for name, kind in workers.items() if fits(learner, kind["resources"])}
    plays = {
        name
        for name, kind in workers.items()
        if fits(player, kind["resources"]) and not kind["resources"].get("GPU")
    }
    if not learns:
        found.append("no node type holds the learner")
    if not plays:
        found.append("no node type without a GPU holds a rollout actor")
    if learner["num_gpus"] and learns & plays:
        found.append("the learner and rollouts share a node type although the learner wants a GPU")

    def most(what: str, names: set[str]) -> int:
        return sum(
            types[name]["resources"].get(what, 0)
            * types[name].get("max_workers", config["max_workers"])
            for name in names
        )

    if most("GPU", learns) < learner["num_gpus"] * run.machines.learners:
        found.append("too few GPUs for the learners")
    if (
        most("CPU", learns | plays)
        < player["num_cpus"] * run.machines.actors + learner["num_cpus"] * run.machines.learners
    ):
        found.append("too few CPUs for the actors")
    return found


def test_there_are_clusters():
    assert {file.name for file in FILES} == {"gpu.yaml", "local.yaml", "tpu.yaml"}


@each_file
def test_ray_takes_it(file: Path):
    prepared = as_ray_does(loaded(file))
    # Ray's own did not get in
    assert prepared["head_start_ray_commands"] == loaded(file)["head_start_ray_commands"]


@each_file
def test_it_starts_safely_at_pinned_versions(file: Path):
    assert start_up_problems(loaded(file)) == []


@each_file
def test_the_documented_runs_join_the_cluster(file: Path):
    runs = documented_runs(file)
    assert runs
    assert all(run.machines.address == "auto" for run in runs)


@each_cloud
def test_the_documented_runs_find_their_machines(file: Path):
    runs = documented_runs(file)
    assert [placement_problems(loaded(file), run) for run in runs] == [[] for _ in runs]


def test_what_is_sent_to_ones_own_machines_can_be_installed():
    mounts = loaded(LOCAL)["file_mounts"]
    here = {REPOSITORY / path for path in mounts.values() if not path.startswith("~")}
    assert all(path.exists() for path in here)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = ["bigdm_ray", "constraints.txt", "pyproject.toml", project["readme"]]
    assert here == {REPOSITORY / name for name in (*wanted, *project["license-files"])}


@each_cloud
def test_the_header_says_what_must_be_said(file: Path):
    header = " ".join(
        line.lstrip("# ") for line in file.read_text().split("\ncluster_name", 1)[0].splitlines()
    )
    for words in (
        "not run on the cloud by us",
        "costs to leave on",
        "prices change",
        "ray up",
        "ray down",
        "ray get-auth-token --generate",
        "Not tested",
    ):
        assert words in header


def test_the_gpu_cluster_is_what_it_says():
    types = loaded(REPOSITORY / "clusters" / "gpu.yaml")["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"rollout"}
    assert not types["rollout"]["resources"].get("GPU")
    assert types["learner"]["resources"]["GPU"] == 1


@pytest.mark.skipif(
    importlib.util.find_spec("googleapiclient") is None
    or importlib.util.find_spec("google_auth_httplib2") is None,
    reason=(
        "Ray's rules for TPUs need google-api-python-client and google-auth-httplib2: pip install"
        " 'bigdm-ray[gcp]'"
    ),
)
def test_ray_knows_the_tpu():
    from ray.autoscaler._private.gcp.config import get_node_type
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

    config = loaded(REPOSITORY / "clusters" / "tpu.yaml")
    kinds = {
        name: get_node_type(kind["node_config"]).value
        for name, kind in config["available_node_types"].items()
    }
    assert kinds == {"head": "compute", "tpu_host": "tpu"}
    host = GCPNodeProvider.fillout_available_node_types_resources(config)["available_node_types"][
        "tpu_host"
    ]
    assert host["resources"]["TPU"] == 8
    assert host["resources"]["TPU-v5litepod-8-head"] == 1
    assert host["min_workers"] == host["max_workers"] == 1
    with pytest.raises(ValueError, match="acceleratorType"):
        get_node_type({"acceleratorType": "v5e_8"})


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what lies at `a.b.c`."""

    def apply(config: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            config = config[name]
        config[last] = value

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change("autoscaling_mode", "aggressive"),
        change("head_node_type", "haed"),
        change("max_workers", -1),
        change("available_node_types.learner.min_workers", 9),
        change("available_node_types.rollout.resources", {"CPU": 0.5}),
        change("available_node_types.rollout.labels", {"bigdm/role": 1}),
        change("available_node_types.learner.image", "rayproject/ray:2.60.0-py311-gpu"),
        change("head_start_ray_commands", "ray start --head"),
    ],
)
def test_ray_refuses_a_bad_file(spoil: Callable[[dict[str, Any]], None]):
    config = loaded(REPOSITORY / "clusters" / "gpu.yaml")
    as_ray_does(config)
    spoil(config)
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        as_ray_does(config)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda c: c.pop("worker_start_ray_commands"), "defaults"),
        (
            change(
                "head_start_ray_commands",
                ["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"],
            ),
            r"0\.0\.0\.0",
        ),
        (
            change("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"]),
            "RAY_AUTH_MODE",
        ),
        (
            change(
                "setup_commands",
                ["pip install https://s3-us-west-2.amazonaws.com/ray-wheels/latest/ray.whl"],
            ),
            "ray-wheels",
        ),
        (change("docker.image", "rayproject/ray:2.59.0-py311-cpu"), r"2\.59\.0"),
        (change("docker.image", "rayproject/ray:latest"), "latest"),
        (change("file_mounts", {"~/bigdm_ray": "."}), "token"),
    ],
)
def test_an_unsafe_file_is_noticed(spoil: Callable[[dict[str, Any]], Any], word: str):
    config = loaded(REPOSITORY / "clusters" / "gpu.yaml")
    spoil(config)
    assert re.search(word, "; ".join(start_up_problems(config)))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            change("available_node_types.head.resources", {"CPU": 2}),
            "rollouts would stand on the head",
        ),
        (
            change("available_node_types.learner.resources", {"CPU": 4}),
            "no node type holds the learner",
        ),
        (
            change("available_node_types.rollout.resources", {"CPU": 16, "GPU": 1}),
            "no node type without a GPU holds a rollout actor",
        ),
        (change("available_node_types.rollout.max_workers", 0), "too few CPUs for the actors"),
    ],
)
def test_a_cluster_that_cannot_hold_a_run_is_noticed(
    spoil: Callable[[dict[str, Any]], Any], problem: str
):
    config = loaded(REPOSITORY / "clusters" / "gpu.yaml")
    spoil(config)
    run = configure("udrl", "lunarlander", ["--device", "cuda", "--actors", "16"])
    assert problem in placement_problems(config, run)
    two = dataclasses.replace(run, machines=dataclasses.replace(run.machines, learners=2))
    assert "too few GPUs for the learners" in placement_problems(
        loaded(REPOSITORY / "clusters" / "gpu.yaml"), two
    )
