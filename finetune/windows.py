"""The training set as an endless, seeded stream of windows: consecutive frames of its clips.

Axes: B batch, T frames, H height, W width, C channels. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from dreamgen.config.settings import VideoSettings
from dreamgen.cores import usable_cores
from dreamgen.data.seeds import derived_seed
from dreamgen.data.video import VideoInfo, decode_frames, probe
from dreamgen.errors import Problems, UserError, quoted
from dreamgen.run.files import inside
from dreamgen.run.run_folder import RunFolder

THREADS = 16  # at most, that probe clips
FPS_TOLERANCE = 0.005  # relative; containers round their time base


@dataclass(frozen=True)
class TrainingClip:
    """A clip of the training set.

    Args:
        path: Its mp4.
        prompt: With the prefix.
        num_frames: Counted.
    """

    path: Path
    prompt: str
    num_frames: int


@dataclass(frozen=True)
class Window:
    """Consecutive frames of a clip, from frame number `start`."""

    clip: TrainingClip
    start: int


def read_training_set(run: RunFolder, video: VideoSettings, num_held_out: int = 0) -> list[TrainingClip]:
    """Read `train/metadata.csv` and check every clip that it lists.

    Args:
        run: With the training set that prepare writes.
        video: Size, frame rate and length of a window.
        num_held_out: Videos that will be held out; at least one must remain.

    Returns:
        The clips in the file's order.

    Raises:
        UserError: listing every clip that is missing, damaged, too short, of another size or frame rate, or without a
            prompt. None is skipped or replaced.
    """
    metadata = run.need(run.train / "metadata.csv", "prepare")
    problems, clips, rows = Problems(), [], _read_rows(metadata)

    def probed(numbered: tuple[int, dict[str, str | None]]) -> VideoInfo | UserError:
        line, row = numbered
        try:
            return probe(inside(run.train, _readable(row["file_name"] or ""), f"{metadata} line {line}"))
        except UserError as error:
            return error

    with ThreadPoolExecutor(num_threads(THREADS)) as threads:
        infos = list(threads.map(probed, rows))
    for (line, row), info in zip(rows, infos, strict=True):
        name, prompt = row["file_name"] or "", (row["prompt"] or "").strip()
        _check_prompt(prompt, f"{metadata} line {line}: {_readable(name)}", problems)
        with problems.collected():
            if isinstance(info, UserError):
                raise info
            _check_video(info, row.get("num_frames"), video, problems)
            clips.append(TrainingClip(info.path, prompt, info.num_frames))
    num_videos = len({clip.path for clip in clips}) + len(rows) - len(clips)  # the unreadable ones may be repaired
    if num_held_out and num_held_out >= num_videos:
        problems.add(
            "finetune.validation_clips leaves no clip to train on",
            actual=num_held_out,
            allowed=f"0 to {max(num_videos - 1, 0)}, as {metadata} names {num_videos} videos",
            next_step="set a smaller --validation_clips, or prepare more demonstrations",
        )
    problems.raise_if_any(f"{run.train} cannot be trained on")
    if not clips:
        raise UserError(f"{metadata} names no clip", next_step=f"dreamgen prepare --out {quoted(run.root)} --demos ...")
    return clips


def all_windows(clips: list[TrainingClip], num_frames: int, windows_per_clip: int | None = None) -> list[Window]:
    """Return all windows that `choose_window` may choose, clip by clip."""
    return [Window(clip, start) for clip in clips for start in window_starts(clip, num_frames, windows_per_clip)]


def num_windows(clips: list[TrainingClip], num_frames: int) -> int:
    """Count the different windows of `num_frames` frames."""
    return sum(clip.num_frames - num_frames + 1 for clip in clips)


def window_starts(clip: TrainingClip, num_frames: int, windows_per_clip: int | None = None) -> Sequence[int]:
    """Return where a clip's windows may start.

    Args:
        clip: At least `num_frames` long.
        num_frames: Of a window.
        windows_per_clip: Maximum number, evenly spaced from the first frame to the last; None: every start.

    Returns:
        Numbers of the first frames, ascending.
    """
    num_starts = clip.num_frames - num_frames + 1
    if windows_per_clip is None or windows_per_clip >= num_starts:
        return range(num_starts)
    return [int(start) for start in np.linspace(0, num_starts - 1, windows_per_clip).round()]


def choose_window(
    clips: list[TrainingClip], num_frames: int, seed: int, sample_index: int, windows_per_clip: int | None = None
) -> Window:
    """Choose the window of one sample: each clip once per epoch, in a new order, from a random start.

    Args:
        clips: The training set.
        num_frames: Of a window.
        seed: Of the run.
        sample_index: Counts the samples of a whole training, across its steps and GPUs.
        windows_per_clip: Draw among this many starts of a clip; None: among all.

    Returns:
        The window; the same arguments give the same window in any process.
    """
    epoch, position = divmod(sample_index, len(clips))
    index = int(_order(seed, epoch, len(clips))[position])
    starts = window_starts(clips[index], num_frames, windows_per_clip)
    drawn = np.random.default_rng(derived_seed(seed, "start", epoch, index)).integers(len(starts))
    return Window(clips[index], starts[int(drawn)])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_clips: int) -> np.ndarray:
    return np.random.default_rng(derived_seed(seed, "order", epoch)).permutation(num_clips)


def num_threads(at_most: int) -> int:
    """Return how many threads read clips, one a core: more are slower, as each needs the GIL, too.

    Args:
        at_most: For a machine with many cores.

    Returns:
        At least 1. The processes of a training on this machine share the cores that they may use.
    """
    num_cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(num_cores, at_most))


def read_window(window: Window, num_frames: int, out: np.ndarray | None = None) -> torch.Tensor:
    """Decode a window's frames; earlier frames are not converted to RGB, and later ones not decoded.

    Args:
        window: To decode.
        num_frames: Of a window.
        out: Array that receives the frames; None: a new one.

    Returns:
        video_THWC, uint8, 0-255, RGB.

    Raises:
        UserError: if the file is damaged.
    """
    decoded = islice(decode_frames(window.clip.path), window.start, window.start + num_frames)
    frames = [frame.rgb() for frame in decoded]
    if len(frames) < num_frames:
        raise UserError(
            f"{window.clip.path} is damaged: fewer frames can be decoded than it contains",
            actual=window.start + len(frames),
            allowed=window.clip.num_frames,
            next_step="copy it again from its source, or remove it from the training set",
        )
    return torch.from_numpy(np.stack(frames, out=out))


def _read_rows(metadata: Path) -> list[tuple[int, dict[str, str | None]]]:
    # Bytes that are not UTF-8 become surrogates, so that an error can name their row.
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
            f"{info.path} has another frame rate: its motion would be learned at the wrong speed",
            actual=f"{float(info.fps):g} fps",
            allowed=f"{video.fps} fps",
            next_step=again,
        )
    if stated_frames and stated_frames.isdecimal() and int(stated_frames) != info.num_frames:
        problems.add(
            f"{info.path} is incomplete: metadata.csv states another number of frames",
            actual=info.num_frames,
            allowed=stated_frames,
            next_step="copy it again, or run dreamgen prepare into a new --out",
        )
    elif info.num_frames < video.num_frames:
        problems.add(
            f"{info.path} is shorter than a window",
            actual=f"{info.num_frames} frames",
            allowed=f"at least {video.num_frames} frames (video.num_frames)",
            next_step="remove the clip from metadata.csv, or set a smaller --video.num_frames (4k + 1)",
        )
