"""What the demonstrations look like: a few small frames of each, which clips are compared with.

Axes: N demonstrations, S signature frames, H height, W width, C channels, K pixels or values of cells.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreamgen.curate.selection import SIGNATURE_FRAMES, signature_of
from dreamgen.data.frame_features import small_frame
from dreamgen.data.frames import sparse_frames
from dreamgen.data.video import probe
from dreamgen.errors import UserError
from dreamgen.run.files import inside

MAX_DEMONSTRATIONS = 400  # evenly chosen of more: each takes some 20 ms in each process
CELLS = 16  # on each side of a picture that `color_cells` averages


@dataclass(frozen=True, eq=False)
class DemonstrationPictures:
    """Small frames of the demonstrations.

    Args:
        begin_NHWC: The first frames, uint8, 0-255, RGB, as `small_frame` makes them.
        then_NHWC: The frames at the time of a clip's last one; the last frames of shorter demonstrations.
        end_NHWC: The last frames.
        signature_NK: `signature_of` the first frames, as many as a clip has; uint8.
        instruction_N: Their instructions.
        num_of: How many demonstrations of each instruction there are, also those of which no frames are kept.
        compared: What a score computes from them once.
    """

    begin_NHWC: np.ndarray
    then_NHWC: np.ndarray
    end_NHWC: np.ndarray
    signature_NK: np.ndarray
    instruction_N: np.ndarray
    num_of: Mapping[str, int]
    compared: dict[str | None, Any] = field(default_factory=dict)


def color_cells(small_NHWC: np.ndarray) -> np.ndarray:
    """Average small frames over 16 x 16 squares, which cancels an encoder's noise.

    Args:
        small_NHWC: Frames of one size, at least 16 pixels, uint8, 0-255, RGB.

    Returns:
        cells_NK, float32, 0-255.
    """
    num, size = len(small_NHWC), small_NHWC.shape[1] // CELLS
    squares = small_NHWC.astype(np.float32).reshape(num, CELLS, size, CELLS, size, 3)
    return squares.mean((2, 4)).reshape(num, -1)


def demonstration_pictures(train: Path, num_frames: int) -> DemonstrationPictures | None:
    """Read a few frames of each video of a training set, once in each process.

    Args:
        train: The training set.
        num_frames: Frames of a clip.

    Returns:
        None without a training set, or where no video of it can be read.
    """
    path = train / "metadata.csv"
    return _read(path, path.stat().st_mtime_ns, num_frames) if path.is_file() else None


@lru_cache(maxsize=4)
def _read(path: Path, _: int, num_frames: int) -> DemonstrationPictures | None:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    num_of = Counter(row["instruction"] for row in rows)
    rows.sort(key=lambda row: row["instruction"])  # so that every instruction keeps its share
    rows = rows[:: -(-len(rows) // MAX_DEMONSTRATIONS) or 1]
    begins, thens, ends, signatures, instructions = [], [], [], [], []
    for row in rows:
        try:
            video = inside(path.parent, row["file_name"], str(path))
            last = probe(video).num_frames - 1
            opening = np.linspace(0, min(num_frames - 1, last), SIGNATURE_FRAMES).round().astype(int).tolist()
            *first_SHWC, end_HWC = [small_frame(frame) for frame in sparse_frames(video, [*opening, last])]
        except UserError:  # finetune names a video that cannot be read; a clip can be judged without it
            continue
        gray_SHW = np.stack([cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2GRAY) for frame in first_SHWC])
        begins.append(first_SHWC[0])
        thens.append(first_SHWC[-1])
        ends.append(end_HWC)
        signatures.append(np.frombuffer(bytes.fromhex(signature_of(gray_SHW)), np.uint8))
        instructions.append(row["instruction"])
    if not ends:
        return None
    return DemonstrationPictures(
        np.stack(begins), np.stack(thens), np.stack(ends), np.stack(signatures), np.array(instructions), num_of
    )
