"""Read a v2.1 dataset with the loader of one GR00T checkout; readers.py runs this script.

    python benchmarks/gr00t_reader.py CHECKOUT RUN FOLDER_OF_PACKAGES

Each checkout needs its own process, because all of them name their package gr00t. The last line of the output is JSON
and describes what was read. N1, N1.5 and GR00T-Dreams have `LeRobotSingleDataset`. N1.6 and N1.7 have
`LeRobotEpisodeLoader`, `extract_step_data` for single steps, and a script that computes statistics if stats.json is
incomplete.
"""

# pyright: reportMissingImports=false
# gr00t lies in the checkout that the user names.

from __future__ import annotations

import inspect
import json
import shutil
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dreamgen.data.video import read_video
from dreamgen.run.jobs import AcceptedClip, accepted_clips
from dreamgen.run.run_folder import RunFolder
from export.check import check
from export.episodes import read_label

HORIZON, NUM_STEPS = 8, 20
GROOT_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
# For GPUs or other robots only: the first loaders import them and call none of them for this dataset.
NOT_CALLED = ("decord", "albumentations", "pytorch3d", "pytorch3d.transforms")


def main() -> None:
    """Import the checkout's loader, compare what it reads with clips and labels, and print a summary."""
    checkout, run, packages = Path(sys.argv[1]), RunFolder(Path(sys.argv[2])), sys.argv[3]
    sys.path[:0] = [str(checkout), packages]
    root = run.datasets / "lerobot-v2.1"
    modality = json.loads((root / "meta/modality.json").read_text())
    is_first = (checkout / "gr00t/data/dataset.py").is_file()
    print(json.dumps((single_dataset if is_first else episode_loader)(root, modality, accepted_clips(run))))


def single_dataset(root: Path, modality: dict[str, Any], clips: Sequence[AcceptedClip]) -> str:
    """`LeRobotSingleDataset` of N1, N1.5 and GR00T-Dreams."""
    for name in NOT_CALLED:
        sys.modules.setdefault(name, types.ModuleType(name))
    from gr00t.data.dataset import LeRobotSingleDataset, ModalityConfig

    keys = {kind: [f"{kind}.{name}" for name in modality[kind]] for kind in ("video", "state", "action")}
    keys["language"] = [f"annotation.{name}" for name in modality["annotation"]]
    configs = {kind: ModalityConfig(delta_indices=_deltas(kind), modality_keys=keys[kind]) for kind in keys}
    dataset = LeRobotSingleDataset(root, configs, "new_embodiment", video_backend="opencv")
    num_frames = [read_label(clip.label, True)[0].shape[0] for clip in clips]
    assert len(dataset) == sum(num_frames)
    for index in np.linspace(0, len(dataset) - 1, NUM_STEPS).astype(int):
        number = int(np.searchsorted(np.cumsum(num_frames), index, side="right"))
        frame, item = int(index - sum(num_frames[:number])), dataset[int(index)]
        image_HWC, text = item[keys["video"][0]][0], item[keys["language"][0]][0]
        compare_step(clips[number], frame, image_HWC, item["state.whole"], item["action.whole"], text)
    return f"LeRobotSingleDataset: {len(dataset)} steps, {NUM_STEPS} compared"


def episode_loader(root: Path, modality: dict[str, Any], clips: Sequence[AcceptedClip]) -> str:
    """`LeRobotEpisodeLoader` of N1.6 and N1.7: steps, statistics, and the script that computes them."""
    from gr00t.data.dataset.lerobot_episode_loader import LeRobotEpisodeLoader
    from gr00t.data.dataset.sharded_single_step_dataset import extract_step_data
    from gr00t.data.embodiment_tags import EmbodimentTag
    from gr00t.data.stats import calculate_dataset_statistics, generate_stats
    from gr00t.data.types import ModalityConfig

    keys = {kind: list(modality[kind]) for kind in ("video", "state", "action")}
    keys["language"] = [f"annotation.{name}" for name in modality["annotation"]]
    configs = {kind: ModalityConfig(delta_indices=_deltas(kind), modality_keys=keys[kind]) for kind in keys}
    root = Path(shutil.copytree(root, Path(tempfile.mkdtemp(dir=sys.argv[3])) / root.name))
    written = (root / "meta/stats.json").read_bytes()
    generate_stats(root)  # training starts with it; it does not change a complete stats.json
    is_kept = (root / "meta/stats.json").read_bytes() == written
    # After N1.7's tag it accepts only its own signed values, and adds values and signatures.
    assert is_kept or b"__fingerprints__" in (root / "meta/stats.json").read_bytes(), "it rejects our stats.json"
    assert not (found := check(root, num_workers=1)), f"dreamgen check rejects what GR00T has written: {found}"
    theirs = calculate_dataset_statistics(list(root.glob("data/*/*.parquet")), ["action", "observation.state"])
    # The latest versions decode with torchcodec only and do not have this argument.
    choices = inspect.signature(LeRobotEpisodeLoader).parameters
    loader = LeRobotEpisodeLoader(root, configs, **({"video_backend": "opencv"} if "video_backend" in choices else {}))
    compare_statistics(loader.get_dataset_statistics(), theirs)
    assert len(loader) == len(clips)
    for number in np.linspace(0, len(clips) - 1, min(NUM_STEPS // 4, len(clips))).astype(int).tolist():
        episode, tag = loader[number], EmbodimentTag.NEW_EMBODIMENT
        assert len(episode) == pq.read_metadata(clips[number].label).num_rows
        for frame in np.linspace(0, len(episode) - 1, 4).astype(int).tolist():
            step = extract_step_data(episode, frame, configs, tag, allow_padding=True)
            image_HWC = step.images[keys["video"][0]][0]
            compare_step(clips[number], frame, image_HWC, step.states["whole"], step.actions["whole"], step.text)
    return f"LeRobotEpisodeLoader: {len(loader)} episodes, {NUM_STEPS} steps compared, statistics equal and " + (
        "kept" if is_kept else "computed again"
    )


def compare_step(
    clip: AcceptedClip, frame: int, image_HWC: Any, state_TS: np.ndarray, action_TA: np.ndarray, text: str
) -> None:
    """Compare a step's image, state, following actions and instruction with the clip."""
    actions_TA, states_TS = read_label(clip.label, True)
    assert states_TS is not None, "the labels of a synthetic run have states"
    rows = np.minimum(np.arange(frame, frame + HORIZON), len(actions_TA) - 1)
    np.testing.assert_allclose(action_TA, actions_TA[rows], atol=1e-6)
    np.testing.assert_allclose(state_TS[0], states_TS[frame], atol=1e-6)
    assert text == clip.job.instruction, f"{text} for {clip.job.instruction}"
    # Decoders convert YUV to RGB differently, and OpenCV returns BGR, so the most similar frame is compared.
    video_THWC, image_HWC = read_video(clip.video).astype(int), np.asarray(image_HWC).astype(int)
    errors = [np.abs(image_HWC[..., order] - video_THWC).mean(axis=(1, 2, 3)) for order in ([0, 1, 2], [2, 1, 0])]
    error_T = min(errors, key=np.min)
    assert error_T.argmin() == frame and error_T[frame] < 6, f"frame {error_T.argmin()} for {frame}: {error_T.min()}"


def compare_statistics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare the loader's slices of our stats.json with what its own script computes."""
    for kind, column in (("action", "action"), ("state", "observation.state")):
        width = np.ptp([theirs[column]["min"], theirs[column]["max"]], axis=0).max()
        for statistic in GROOT_STATISTICS:
            got_D = np.array(ours[kind]["whole"][statistic])
            np.testing.assert_allclose(
                got_D, theirs[column][statistic], atol=1e-2 * width if statistic[0] == "q" else 1e-5
            )


def _deltas(kind: str) -> list[int]:
    return list(range(HORIZON)) if kind == "action" else [0]


if __name__ == "__main__":
    main()
