"""Small files in the layouts that the field's files have: LeRobot, RLlib's JSON, d3rlpy's buffers,
NumPy archives."""

import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def lerobot(root, episodes, version, done=True, rewards=True, parts=False, films=()):
    """A folder as LeRobot 2.1 or 3.0 has it."""
    tables = []
    for number, e in enumerate(episodes):
        seen = e.observations[""][:-1].astype(np.float32)
        columns = {"observation.state": list(seen[:, :2] if parts else seen)}
        if parts:
            columns["observation.environment_state"] = list(seen[:, 2:])
        columns["action"] = list(np.asarray(e.actions[""], np.float32).reshape(e.length, -1))
        columns |= {"episode_index": [number] * e.length, "frame_index": list(range(e.length))}
        columns |= {"timestamp": np.arange(e.length, dtype=np.float32) / 30}
        columns |= {"index": list(range(e.length)), "task_index": [0] * e.length}
        if done:
            columns["next.done"] = [k == e.length - 1 for k in range(e.length)]
        if rewards:
            columns["next.reward"] = np.array(e.rewards, np.float32)
        tables.append(pa.table(columns))
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    if version == "v3.0":
        files = {"file-000": pa.concat_tables(tables[:3]), "file-001": pa.concat_tables(tables[3:])}
        about = pa.table({"episode_index": list(range(len(tables)))})
        pq.write_table(about, root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    else:
        files = {f"episode_{number:06d}": table for number, table in enumerate(tables)}
    for name, table in files.items():
        pq.write_table(table, root / "data" / "chunk-000" / f"{name}.parquet")
    kinds = {
        name: str(field.type) for name, field in zip(table.column_names, table.schema, strict=True)
    }
    features = {
        name: {"dtype": "float32" if "list" in kind else kind, "shape": [1]}
        for name, kind in kinds.items()
    }
    features |= {name: {"dtype": "video", "shape": [96, 96, 3]} for name in films}
    total = sum(len(one) for one in tables)
    info = {"codebase_version": version, "features": features, "total_frames": total}
    (root / "meta" / "info.json").write_text(json.dumps(info | {"total_episodes": len(tables)}))
    return root


def json_lines(path, episodes, multi=False, **more):
    """Two batches an episode, as RLlib's JsonWriter has them."""
    lines = []
    for number, e in enumerate(episodes):
        for part in (slice(0, 2), slice(2, None)):
            steps = np.arange(e.length)[part]
            last = steps == e.length - 1
            batch = {
                "obs": e.observations[""][:-1][part].tolist(),
                "new_obs": e.observations[""][1:][part].tolist(),
                "actions": e.actions[""][part].tolist(),
                "rewards": e.rewards[part].tolist(),
                "terminateds": (last & e.terminated).tolist(),
                "truncateds": (last & (not e.terminated)).tolist(),
                "eps_id": [number + 900] * len(steps),
                "t": steps.tolist(),
                "agent_index": [0] * len(steps),
                "infos": [{}] * len(steps),
                "action_prob": [0.5] * len(steps),
            } | more
            if not len(steps):
                continue
            line = {"type": "SampleBatch"} | batch
            if multi:
                line = {"type": "MultiAgentBatch", "count": 1, "policy_batches": {"one": batch}}
            lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def d3rlpy_file(path, episodes, tuples=False):
    """What ReplayBuffer.dump writes (d3rlpy/dataset/io.py)."""
    keys = ["observations", "actions", "rewards", "terminated"]
    with h5py.File(path, "w") as file:
        file.create_dataset("columns", data=keys)
        file.create_dataset("num_episodes", data=len(episodes))
        for i, e in enumerate(episodes):
            seen = e.observations[""][:-1]
            if tuples:
                file.create_dataset(f"observations_{i}_0", data=seen[:, :1])
                file.create_dataset(f"observations_{i}_1", data=seen[:, 1:])
            else:
                file.create_dataset(f"observations_{i}", data=seen)
            file.create_dataset(f"actions_{i}", data=e.actions[""].reshape(e.length, -1))
            file.create_dataset(f"rewards_{i}", data=e.rewards.reshape(-1, 1))
            file.create_dataset(f"terminated_{i}", data=e.terminated)
        file.create_dataset("version", data="2.1")
    return path


def arrays(episodes, **names):
    """The fields of D4RL, under other names where they are given."""
    ends = np.concatenate([np.arange(e.length) == e.length - 1 for e in episodes])
    over = np.concatenate([np.full(e.length, e.terminated) for e in episodes])
    found = {
        "observations": np.concatenate([e.observations[""][:-1] for e in episodes]),
        "actions": np.concatenate([e.actions[""] for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": ends & over,
        "timeouts": ends & ~over,
        "next_observations": np.concatenate([e.observations[""][1:] for e in episodes]),
    }
    return {names.get(name, name): values for name, values in found.items()}
