"""GR00T's own loaders on our LeRobot v2.1, imported from a checkout: what `readers.py` starts for each `--gr00t`.

    python benchmarks/readers_gr00t.py CHECKOUT RUN NEEDS

N1, N1.5 and GR00T-Dreams read steps (`LeRobotSingleDataset`); N1.6 and N1.7 read whole episodes with torchcodec
(`LeRobotEpisodeLoader`), which needs ffmpeg, and compute statistics of their own, which are compared with ours. NEEDS
is a folder for what they import.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.core.jobs import accepted_clips
from dreamgen.core.records import AcceptedClip
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.video import read_video
from export.episodes import read_label

# Installed for GPUs or needed for other robots only; the loaders import them and, for this dataset, call neither.
NOT_CALLED = ("decord", "albumentations", "pytorch3d", "pytorch3d.transforms")
# Of the range. Quantiles of a few hundred rows lie anywhere between two neighbours.
TOLERANCES = {"mean": 1e-5, "std": 1e-5, "min": 1e-5, "max": 1e-5, "q01": 1e-2, "q99": 1e-2}


def main() -> None:
    """Read with the loader that the checkout has and say in one sentence what was read."""
    checkout, run, needs = Path(sys.argv[1]), RunFolder(Path(sys.argv[2])), Path(sys.argv[3])
    for name in NOT_CALLED:
        sys.modules.setdefault(name, types.ModuleType(name))
    is_episodes = (checkout / "gr00t/data/dataset/lerobot_episode_loader.py").is_file()
    library = "scipy" if is_episodes else "numpydantic"
    if importlib.util.find_spec(library) is None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(needs), library]
        subprocess.run(command, check=True, capture_output=True)
    sys.path[:0] = [str(checkout), str(needs)]
    root, clips = run.datasets / "lerobot-v2.1", accepted_clips(run)
    print((read_episodes if is_episodes else read_steps)(root, clips, needs))


def read_steps(root: Path, clips: list[AcceptedClip], needs: Path) -> str:
    """Compare steps of `LeRobotSingleDataset` with the clips' frames, labels and instructions."""
    from gr00t.data.dataset import LeRobotSingleDataset, ModalityConfig

    keys = modality_keys(root)
    keys = {kind: [f"{kind}.{name}" for name in names] for kind, names in keys.items() if kind != "annotation"} | {
        "language": [f"annotation.{name}" for name in keys["annotation"]]
    }
    deltas = {"video": [0], "state": [0], "action": list(range(8)), "language": [0]}
    configs = {kind: ModalityConfig(delta_indices=deltas[kind], modality_keys=keys[kind]) for kind in keys}
    dataset = LeRobotSingleDataset(root, configs, "new_embodiment", video_backend="opencv")
    length = len(dataset) // len(clips)
    for index in np.linspace(0, len(dataset) - 1, 20).astype(int):
        number, frame = divmod(int(index), length)
        action_TA, state_TS = read_label(clips[number].label, True)
        item = dataset[int(index)]
        # Its OpenCV way, the one that needs no other library, gives BGR.
        check_picture(item[keys["video"][0]][0][..., ::-1], read_video(clips[number].video), frame)
        rows = np.minimum(np.arange(frame, frame + 8), length - 1)
        np.testing.assert_allclose(item["action.whole"], action_TA[rows], atol=1e-6)
        np.testing.assert_allclose(item["state.whole"][0], state_TS[frame], atol=1e-6)
        assert item[keys["language"][0]][0] == clips[number].job.instruction
    return f"{len(dataset)} steps; 20 of them with picture, state, 8 actions and instruction"


def read_episodes(root: Path, clips: list[AcceptedClip], needs: Path) -> str:
    """Compare episodes of `LeRobotEpisodeLoader` with the clips, and our stats.json with what GR00T computes."""
    from gr00t.data.dataset.lerobot_episode_loader import LeRobotEpisodeLoader
    from gr00t.data.types import ModalityConfig

    keys = modality_keys(root)
    keys = {kind: names for kind, names in keys.items() if kind != "annotation"} | {
        "language": [f"annotation.{name}" for name in keys["annotation"]]
    }
    deltas = {"video": [0], "state": [0], "action": list(range(8)), "language": [0]}
    configs = {kind: ModalityConfig(delta_indices=deltas[kind], modality_keys=keys[kind]) for kind in keys}
    loader = LeRobotEpisodeLoader(root, configs)
    assert len(loader) == len(clips)
    num_frames = 0
    for number, clip in enumerate(clips):
        (action_TA, state_TS), video_THWC = read_label(clip.label, True), read_video(clip.video)
        rows = loader[number]
        assert len(rows) == len(video_THWC)
        np.testing.assert_allclose(np.stack(rows["action.whole"]), action_TA, atol=1e-6)
        np.testing.assert_allclose(np.stack(rows["state.whole"]), state_TS, atol=1e-6)
        assert set(rows[f"language.{keys['language'][0]}"]) == {clip.job.instruction}
        for frame, picture in enumerate(rows[f"video.{keys['video'][0]}"]):
            shown = np.asarray(picture)
            check_picture(shown if shown.shape[-1] == 3 else np.moveaxis(shown, 0, -1), video_THWC, frame)
        num_frames += len(rows)
    told = compare_statistics(root, loader.get_dataset_statistics(), needs)
    return f"{len(clips)} episodes, all {num_frames} frames, states, actions and instructions{told}"


def compare_statistics(root: Path, read: dict[str, Any], needs: Path) -> str:
    """Have GR00T compute its statistics on a copy and compare them with those that it read from ours."""
    from gr00t.data.stats import generate_stats

    copy = needs / "copy"
    shutil.copytree(root, copy)
    (copy / "meta/stats.json").unlink()
    generate_stats(copy)
    theirs = json.loads((copy / "meta/stats.json").read_text())
    shutil.rmtree(copy)
    for kind, column in (("action", "action"), ("state", "observation.state")):
        spread = np.array(theirs[column]["max"]) - np.array(theirs[column]["min"])
        for figure, tolerance in TOLERANCES.items():
            away = np.abs(np.array(read[kind]["whole"][figure]) - np.array(theirs[column][figure])) / spread
            assert away.max() < tolerance, f"{kind} {figure} is {away.max():.1e} of the range away"
    return "; statistics as it computes them"


def modality_keys(root: Path) -> dict[str, list[str]]:
    """Return what modality.json names, by kind."""
    return {kind: list(names) for kind, names in json.loads((root / "meta/modality.json").read_text()).items()}


def check_picture(shown_HWC: np.ndarray, video_THWC: np.ndarray, frame: int) -> None:
    """Make sure that a picture is that frame and no other; decoders turn YUV into RGB in their own ways."""
    error_T = np.abs(shown_HWC.astype(int) - video_THWC).mean(axis=(1, 2, 3))
    assert error_T.argmin() == frame and error_T[frame] < 6, (
        f"frame {error_T.argmin()} for {frame}: {error_T.min():.1f}"
    )


if __name__ == "__main__":
    main()
