"""The frames that a clip begins with: read, brought to the clip's size, and stored once by the hash of their pixels.

Axes: H height, W width, C channels. Frames are uint8, 0-255, RGB; several stand below one another in `stacked_HWC`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from dreamgen.core.errors import UserError
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from dreamgen.core.video import fit_frame, frame_sha256, iter_frames, read_image, write_png

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4",)
# One latent frame is one frame; the next holds four more.
NUM_GIVEN_FRAMES = {"image": 1, "video": 5, "text": 0}


def fitted_frames(file: Path, settings: Settings) -> np.ndarray:
    """Read the frames that a clip is to begin with, at the clip's size.

    Args:
        file: Image, or video of which the first frames are taken.
        settings: `plan.condition` says how many; `video` and `prepare.fit` the size.

    Returns:
        stacked_HWC: the frames below one another.

    Raises:
        UserError: if the file is missing, damaged, or too short.
    """
    num, video = NUM_GIVEN_FRAMES[settings.plan.condition], settings.video
    if file.suffix.lower() in IMAGE_SUFFIXES:
        frames = [read_image(file)]
    else:
        frames = list(itertools.islice(iter_frames(file), num))
    if len(frames) < num:
        raise UserError(
            f"{file} is too short to go on from",
            actual=f"{len(frames)} frames",
            allowed=f"a video of at least {num} frames",
            next_step="--plan.condition=image needs one frame only",
        )
    return np.concatenate(
        [fit_frame(frame_HWC, video.height, video.width, settings.prepare.fit) for frame_HWC in frames]
    )


def store_frames(file: Path, settings: Settings, run: RunFolder | None) -> str:
    """Store a source's frames under the hash of their pixels, once.

    Args:
        run: None stores nothing.

    Returns:
        The hash.

    Raises:
        UserError: as `fitted_frames` does.
    """
    stacked_HWC = fitted_frames(file, settings)
    sha256 = frame_sha256(stacked_HWC)
    if run is not None:
        stored = run.fetch(run.first_frame_file(sha256))
        if not (stored.is_file() and _holds(stored, sha256)):
            write_png(stored, stacked_HWC)
            run.publish(stored)
    return sha256


def _holds(stored: Path, sha256: str) -> bool:
    try:
        return frame_sha256(read_image(stored)) == sha256
    except UserError:
        return False  # damaged since; it is written anew
