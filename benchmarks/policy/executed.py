"""Execute the recovered actions of dreams in the simulator, film them, and write a LeRobot dataset of it.

    python benchmarks/policy/executed.py --folder runs/proof/sweep --task sweep --out runs/filmed

Each accepted dream's actions start where its first frame was rendered. Pictures and states are the simulator's then,
and only the actions are the dream's, whether they do the task or not. A policy that is trained on it tells what the
pictures of dreams cost, beside one that is trained on the dreams. `proof.py` calls it.

Axes: T frames, A action, S state, E environment state.
"""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from replay import episodes_of_starts
from scenes import FRAME_SKIP, SIZE_PX, open_scene, recorded_seeds

from dreamgen.data.trajectory import read_trajectory
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    from scene import Scene  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Record as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the task")
    parser.add_argument("--task", required=True, help="Meta-World task")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset, which must not exist")
    args = parser.parse_args()
    from dataset import store_episode, write_dataset  # pyright: ignore[reportMissingImports]
    from record import CONTROL_RATE_HZ  # pyright: ignore[reportMissingImports]

    fps, staging, stored = CONTROL_RATE_HZ // FRAME_SKIP, args.out.with_name(f".{args.out.name}.staging"), []
    shutil.rmtree(staging, ignore_errors=True)
    for name in ("videos", "done", "dataset"):
        (staging / name).mkdir(parents=True)
    run, seeds = RunFolder(args.folder / "curated"), recorded_seeds(args.folder / "new")
    episodes = episodes_of_starts(args.folder)
    scores = pd.read_parquet(run.scores / "scores.parquet").set_index("clip_id")
    with open_scene(args.task) as scene:
        from scene import ACTION_NAMES, ENVIRONMENT_NAMES, STATE_NAMES  # pyright: ignore[reportMissingImports]

        for job in read_jobs(run.jobs):
            if job.clip_id not in scores.index or scores.loc[job.clip_id, "verdict"] != "ok":
                continue
            action_TA = read_trajectory(run.label_file(job.clip_id)).action_TA
            assert action_TA is not None and job.first_frame_sha256 is not None
            seed = seeds[episodes[job.first_frame_sha256]]
            frames, vectors, successes = execute(scene, seed, np.clip(action_TA, -1, 1).astype(np.float32))
            first = next((frame for frame, success in enumerate(successes) if success), -1)
            extras = {"source_task": args.task, "scene": "", "behavior": "dream", "seed": seed,
                      "success": first > 0, "frames_to_success": first, "done_at_end": successes[-1]}  # fmt: skip
            video = staging / "videos" / f"{len(stored):06d}.mp4"
            stored.append(store_episode(video, frames, fps, job.instruction, vectors, extras))
    names = {"observation.state": STATE_NAMES, "action": ACTION_NAMES,
             "observation.environment_state": ENVIRONMENT_NAMES}  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        write_dataset(staging / "dataset", staging / "done", stored, fps, SIZE_PX, names, pool)
    (staging / "dataset").rename(args.out)
    shutil.rmtree(staging)
    print(
        f"{args.task}: {len(stored)} dreams executed, {np.mean([one.extras['success'] for one in stored]):.2f} succeed"
    )


def execute(
    scene: Scene, seed: int, action_TA: np.ndarray
) -> tuple[list[np.ndarray], dict[str, np.ndarray], list[bool]]:
    """Execute actions from a start, each held for a frame.

    Returns:
        The frame before each action, as frame_HWC; the dataset's vectors of these moments; and for each moment
        whether the task was done.
    """
    observed, frames, states, environments, successes = scene.reset(seed, "train"), [], [], [], []
    for action in action_TA:
        frames.append(scene.render())
        states.append(observed.state)
        environments.append(observed.environment)
        successes.append(bool(observed.success))
        observed = scene.step(action)
    vectors = {
        "observation.state": np.stack(states).astype(np.float32), "action": action_TA,
        "observation.environment_state": np.stack(environments).astype(np.float32),
    }  # fmt: skip
    return frames, vectors, successes


if __name__ == "__main__":
    main()
