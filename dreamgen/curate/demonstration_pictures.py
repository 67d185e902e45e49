"""What the demonstrations look like: a few small frames of each, which clips are compared with.

Axes: N demonstrations, S signature frames, H height, W width, C channels, K pixels.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dreamgen.curate.selection import SIGNATURE_FRAMES, signature_of
from dreamgen.data.frame_features import small_frame
from dreamgen.data.frames import sparse_frames
from dreamgen.data.video import probe
from dreamgen.errors import UserError
from dreamgen.run.files import inside

MAX_DEMONSTRATIONS = 400  # evenly chosen of more: each takes some 20 ms in each process


@dataclass(frozen=True)
class DemonstrationPictures:
    """Small frames of the demonstrations.

    Args:
        end_NHWC: The last frames, uint8, 0-255, RGB, as `small_frame` makes them.
        signature_NK: `signature_of` the first frames, as many as a clip has; uint8.
        instruction_N: Their instructions.
    """

    end_NHWC: np.ndarray
    signature_NK: np.ndarray
    instruction_N: np.ndarray


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
    rows = rows[:: -(-len(rows) // MAX_DEMONSTRATIONS) or 1]
    ends, signatures, instructions = [], [], []
    for row in rows:
        try:
            video = inside(path.parent, row["file_name"], str(path))
            last = probe(video).num_frames - 1
            opening = np.linspace(0, min(num_frames - 1, last), SIGNATURE_FRAMES).round().astype(int).tolist()
            *first_SHWC, end_HWC = [small_frame(frame) for frame in sparse_frames(video, [*opening, last])]
        except UserError:  # finetune names a video that cannot be read; a clip can be judged without it
            continue
        gray_SHW = np.stack([cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2GRAY) for frame in first_SHWC])
        ends.append(end_HWC)
        signatures.append(np.frombuffer(bytes.fromhex(signature_of(gray_SHW)), np.uint8))
        instructions.append(row["instruction"])
    return DemonstrationPictures(np.stack(ends), np.stack(signatures), np.array(instructions)) if ends else None
