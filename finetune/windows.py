"""The training set as an endless, seeded stream of windows: runs of consecutive frames of its clips.

Axes: B batch, T frames, H height, W width, C channels. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dreamgen.core.errors import Problems, UserError
from dreamgen.core.files import inside
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import VideoSettings
from dreamgen.core.video import VideoInfo, decode_frames, probe
from finetune.seeds import derived_seed

FPS_TOLERANCE = 0.005  # relative; containers round their time base


@dataclass(frozen=True)
class TrainingClip:
    """A clip of the training set.

    Args:
        path: Its mp4.
        prompt: What the model reads, prefix included.
        num_frames: Counted.
    """

    path: Path
    prompt: str
    num_frames: int


@dataclass(frozen=True)
class Window:
    """A run of consecutive frames of a clip: number `start` and those that follow."""

    clip: TrainingClip
    start: int


def read_training_set(run: RunFolder, video: VideoSettings) -> list[TrainingClip]:
    """Read `train/metadata.csv` and check every clip that it names.

    Args:
        run: With the folder that prepare writes.
        video: The size, rate and length that a window must have.

    Returns:
        The clips in the file's order.

    Raises:
        UserError: listing every clip that is missing, damaged, too short, of another size or rate, or without a
            prompt. None is left out or replaced.
    """
    metadata = run.need(run.train / "metadata.csv", "prepare")
    problems, clips = Problems(), []
    for line, row in _read_rows(metadata):
        name, prompt = row["file_name"] or "", (row["prompt"] or "").strip()
        where = f"{metadata} line {line}"
        _check_prompt(prompt, f"{where}: {_readable(name)}", problems)
        try:
            info = probe(inside(run.train, _readable(name), where))
        except UserError as error:
            problems.errors.append(error)
            continue
        _check_video(info, row.get("num_frames"), video, problems)
        clips.append(TrainingClip(info.path, prompt, info.num_frames))
    problems.raise_if_any(f"{run.train} cannot be trained on")
    if not clips:
        raise UserError(f"{metadata} names no clip", next_step=f"dreamgen prepare --out {run.root} --demos ...")
    return clips


def num_windows(clips: list[TrainingClip], num_frames: int) -> int:
    """Count the different windows of `num_frames` frames."""
    return sum(clip.num_frames - num_frames + 1 for clip in clips)


def choose_window(clips: list[TrainingClip], num_frames: int, seed: int, sample_index: int) -> Window:
    """Choose the window of one sample: each clip once an epoch, in a new order, from a random start.

    Args:
        clips: The training set.
        num_frames: Of a window.
        seed: Of the run.
        sample_index: Counts the samples of a whole training, across its steps and GPUs.

    Returns:
        The window; the same arguments give the same one in any process.
    """
    epoch, position = divmod(sample_index, len(clips))
    order = np.random.default_rng(derived_seed(seed, "order", epoch)).permutation(len(clips))
    index = int(order[position])
    starts = clips[index].num_frames - num_frames + 1
    start = np.random.default_rng(derived_seed(seed, "start", epoch, index)).integers(starts)
    return Window(clips[index], int(start))


def read_window(window: Window, num_frames: int) -> np.ndarray:
    """Decode a window's frames; those before it are not converted to RGB and those after it not decoded.

    Returns:
        video_THWC, uint8, 0-255, RGB.

    Raises:
        UserError: if the file is damaged.
    """
    decoded = islice(decode_frames(window.clip.path), window.start, window.start + num_frames)
    frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    if len(frames) < num_frames:
        raise UserError(
            f"{window.clip.path} is damaged: fewer frames can be decoded than it says",
            actual=window.start + len(frames),
            allowed=window.clip.num_frames,
            next_step="copy it again from its source, or take it out of the training set",
        )
    return np.stack(frames)


class WindowDataset(Dataset):
    """The samples of a whole training, by their index.

    Args:
        clips: The training set.
        num_frames: Of a window.
        num_samples: Windows that the training sees.
        seed: Of the run.
    """

    def __init__(self, clips: list[TrainingClip], num_frames: int, num_samples: int, seed: int) -> None:
        self.clips, self.num_frames, self.num_samples, self.seed = clips, num_frames, num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        window = choose_window(self.clips, self.num_frames, self.seed, sample_index)
        video_THWC = torch.from_numpy(read_window(window, self.num_frames))
        return {"sample_index": sample_index, "prompt": window.clip.prompt, "video_THWC": video_THWC}


def collate_windows(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples into a batch: lists of indices and prompts, and video_BTHWC."""
    return {
        "sample_index": [sample["sample_index"] for sample in samples],
        "prompt": [sample["prompt"] for sample in samples],
        "video_BTHWC": torch.stack([sample["video_THWC"] for sample in samples]),
    }


def _read_rows(metadata: Path) -> list[tuple[int, dict[str, str | None]]]:
    # Bytes that are not UTF-8 come through as surrogates, so that the row they stand in can be named.
    with metadata.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream)
        try:
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f"{metadata} line {reader.line_num} is not CSV", actual=str(error)) from None
        columns = reader.fieldnames or []
    missing = [name for name in ("file_name", "prompt") if name not in columns]
    if missing:
        raise UserError(
            f"{metadata} lacks columns: {', '.join(missing)}",
            actual=_readable(", ".join(columns)) or "an empty file",
            allowed="file_name,prompt and others",
            next_step="dreamgen prepare writes it",
        )
    return rows


def _readable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _check_prompt(prompt: str, where: str, problems: Problems) -> None:
    if not prompt:
        problems.add(f"{where} has no prompt", allowed="the task in words, in the prompt column")
    elif _readable(prompt) != prompt:
        problems.add(
            f"{where}: the prompt is not UTF-8", actual=_readable(prompt), next_step="save metadata.csv as UTF-8"
        )


def _check_video(info: VideoInfo, stated_frames: str | None, video: VideoSettings, problems: Problems) -> None:
    again = "dreamgen prepare into a new --out makes clips of this shape"
    if (info.height, info.width) != (video.height, video.width):
        problems.add(
            f"{info.path} has another size",
            actual=f"{info.height} x {info.width}",
            allowed=f"{video.height} x {video.width} (height x width)",
            next_step=again,
        )
    if abs(float(info.fps) / video.fps - 1) > FPS_TOLERANCE:
        problems.add(
            f"{info.path} has another frame rate: its motion would be learnt at the wrong speed",
            actual=f"{float(info.fps):g} fps",
            allowed=f"{video.fps} fps",
            next_step=again,
        )
    if stated_frames and stated_frames.isdecimal() and int(stated_frames) != info.num_frames:
        problems.add(
            f"{info.path} is not whole: metadata.csv states another number of frames",
            actual=info.num_frames,
            allowed=stated_frames,
            next_step="copy it again, or run dreamgen prepare into a new --out",
        )
    elif info.num_frames < video.num_frames:
        problems.add(
            f"{info.path} is shorter than a window",
            actual=f"{info.num_frames} frames",
            allowed=f"at least {video.num_frames} frames (video.num_frames)",
            next_step="take the clip out of metadata.csv, or set a smaller --video.num_frames (4k + 1)",
        )
