"""Replay actions in the simulator from their clips' own starts: what labels and dreams are worth without a policy.

    python benchmarks/policy/replay.py --folder OUT/TASK --task TASK

Writes results/replay.json: whether the task is done by the recorded actions of the real videos of new starts, by the
actions that inverse dynamics recovers from these videos, and by those that it recovers from the dreams of these starts,
with the scores of each dream; and, as a baseline that needs no model, by the actions of the demonstration whose first
frame is nearest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scenes import open_scene, recorded_actions, recorded_seeds, replay

from dreamgen.data.images import frame_sha256, read_image
from dreamgen.data.trajectory import read_trajectory
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder

DREAMS = ("curated", "base")


def main() -> None:
    """Replay as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the task")
    parser.add_argument("--task", required=True, help="Meta-World task")
    args = parser.parse_args()
    seeds, actions = recorded_seeds(args.folder / "new"), recorded_actions(args.folder / "new")
    found: dict[str, Any] = {"task": args.task}
    with open_scene(args.task, size_px=0) as scene:

        def done(episode: int, action_TA: np.ndarray) -> bool:
            return replay(scene, seeds[episode], "train", action_TA)

        found["recorded"] = [done(episode, actions[episode]) for episode in sorted(seeds)]
        found["nearest"] = [done(episode, actions_of) for episode, actions_of in _of_nearest(args.folder)]
        found["recovered"] = [row["success"] for row in _of_run(args.folder, "real_video", done)]
        found["dreams"] = {run: _of_run(args.folder, run, done) for run in DREAMS if (args.folder / run).is_dir()}
    out = args.folder / "results" / "replay.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found))
    print({key: np.mean(found[key]).round(3) for key in ("recorded", "recovered", "nearest")})


def _of_nearest(folder: Path) -> list[tuple[int, np.ndarray]]:
    """Return each new episode with the actions of the demonstration that has the nearest first frame."""
    from clip_metrics import nearest_clips  # beside this folder, which `scenes` makes importable
    from metaworld_clips import read_clips

    demos, new = (read_clips(folder / name) for name in ("demos", "new"))
    actions = recorded_actions(folder / "demos")
    nearest = nearest_clips(new.video_NTHWC[:, 0], demos)
    return [(episode, actions[int(nearest[episode])]) for episode in range(len(new))]


def episodes_of_starts(folder: Path) -> dict[str, int]:
    """Return the new episode of each first frame that dreams begin with, by the frame's SHA-256."""
    return {frame_sha256(read_image(path)): int(path.stem.rsplit("_", 1)[1])
            for path in (folder / "new_starts").glob("episode_*.png")}  # fmt: skip


def _of_run(folder: Path, name: str, done: Any) -> list[dict[str, Any]]:
    """Replay the labels of a run's clips, each from the start that its first frame shows."""
    run, rows = RunFolder(folder / name), []
    of_frame = episodes_of_starts(folder)
    scores = pd.read_parquet(run.scores / "scores.parquet").set_index("clip_id")
    for job in read_jobs(run.jobs):
        label = run.label_file(job.clip_id)
        if not label.is_file():
            continue
        action_TA = read_trajectory(label).action_TA
        assert action_TA is not None, f"{label} has no actions"
        row = scores.loc[job.clip_id].to_dict() if job.clip_id in scores.index else {}
        values = {key: value for key, value in row.items() if isinstance(value, int | float | str)}
        if job.first_frame_sha256 is None:
            episode = int(job.source.rsplit("episode ", 1)[1])  # imported from the recording
        else:
            episode = of_frame[job.first_frame_sha256]
        rows.append({"episode": episode, "clip_id": job.clip_id, "success": done(episode, action_TA), "scores": values})
    return rows


if __name__ == "__main__":
    main()
