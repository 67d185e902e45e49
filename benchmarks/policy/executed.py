"""Execute the recovered actions of dreams in the simulator, film them, and write a LeRobot dataset of it.

    python benchmarks/policy/executed.py --folder runs/proof/sweep --task sweep --out runs/filmed

Each accepted dream's actions start where its first frame was rendered. Pictures and states are the simulator's then,
and only the actions are the dream's, whether they do the task or not. A policy that is trained on it tells what the
pictures of dreams cost, beside one that is trained on the dreams. `proof.py` calls it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from replay import episodes_of_starts
from scenes import FRAME_SKIP, SIZE_PX, open_scene, recorded_seeds
from steps import CURATED

from dreamgen.data.trajectory import read_trajectory
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    from dataset import StoredEpisode  # pyright: ignore[reportMissingImports]
    from scene import Scene  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Record as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the task")
    parser.add_argument("--task", required=True, help="Meta-World task")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset, which must not exist")
    args = parser.parse_args()
    from dataset import write_dataset  # pyright: ignore[reportMissingImports]
    from record import CONTROL_RATE_HZ, vector_names  # pyright: ignore[reportMissingImports]

    fps, staging = CONTROL_RATE_HZ // FRAME_SKIP, args.out.with_name(f".{args.out.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    for name in ("videos", "done", "dataset"):
        (staging / name).mkdir(parents=True)
    with open_scene(args.task) as scene:
        episodes = list(filmed(scene, args.folder, staging / "videos", fps))
    with ThreadPoolExecutor(1) as pool:
        write_dataset(staging / "dataset", staging / "done", episodes, fps, SIZE_PX, vector_names(), pool)
    (staging / "dataset").rename(args.out)
    shutil.rmtree(staging)
    share = np.mean([episode.extras["success"] for episode in episodes])
    print(f"{args.task}: {len(episodes)} dreams executed, {share:.2f} succeed")


def filmed(scene: Scene, folder: Path, videos: Path, fps: int) -> Iterator[StoredEpisode]:
    """Execute and film each accepted dream of a task.

    Args:
        scene: Of the task.
        folder: Of the task.
        videos: For the mp4s.
        fps: Frames a second.
    """
    from episodes import run_policy  # pyright: ignore[reportMissingImports]
    from record import stored  # pyright: ignore[reportMissingImports]

    run, seeds, of_frame = RunFolder(folder / CURATED), recorded_seeds(folder / "new"), episodes_of_starts(folder)
    verdicts = pd.read_parquet(run.scores / "scores.parquet").set_index("clip_id")["verdict"]
    accepted = [job for job in read_jobs(run.jobs) if verdicts.get(job.clip_id) == "ok"]
    for number, job in enumerate(accepted):
        action_TA = read_trajectory(run.label_file(job.clip_id)).action_TA
        assert action_TA is not None and job.first_frame_sha256 is not None
        seed, actions = seeds[of_frame[job.first_frame_sha256]], iter(np.clip(action_TA, -1, 1).astype(np.float32))
        episode = run_policy(scene, lambda observed, actions=actions: next(actions), seed, "train", len(action_TA))
        yield stored(scene, episode, videos / f"{number:06d}.mp4", "dream", seed, fps)


if __name__ == "__main__":
    main()
