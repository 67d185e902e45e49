"""Conditioning frames: read, resized to the clip's size, and stored once under the hash of their pixels.

Axes: H height, W width, C channels. Frames are uint8, 0-255, RGB; `stacked_HWC` holds several below one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from dreamgen.config.settings import Settings
from dreamgen.data.frames import FrameReader
from dreamgen.data.images import fit_frame, frame_sha256, read_image, write_png
from dreamgen.data.media_files import IMAGE_SUFFIXES
from dreamgen.data.timeline import resampled_frames
from dreamgen.data.video import probe
from dreamgen.data.views import View, describe_views, short_name, tile
from dreamgen.errors import UserError
from dreamgen.models.world_model import model_type
from dreamgen.run.run_folder import RunFolder

CAMERA = "{camera}"  # in a file name, replaced by each camera's name


def fitted_frames(file: Path, settings: Settings, views: Sequence[View] = (), num_stacked: int = 1) -> np.ndarray:
    """Read the conditioning frames of a clip, at the clip's size.

    Args:
        file: Image, or video whose first frames are taken; with `CAMERA` in its name, one file for each camera.
        settings: `plan.condition` gives their number; `video` and `prepare.fit` the size.
        views: Tiles of the run's cameras; empty for one camera.
        num_stacked: Frames that an image holds, below one another.

    Returns:
        stacked_HWC: the frames below one another.

    Raises:
        UserError: if the file is missing, damaged or too short, or does not show the run's cameras.
    """
    video, fit = settings.video, settings.prepare.fit
    if CAMERA in file.name:
        cameras = [_read_frames(of_camera(file, view), settings, num_stacked) for view in views]
        fitted = [
            tile([fit_frame(f, v.height, v.width, fit) for f, v in zip(each, views, strict=True)],
                 views, video.height, video.width)
            for each in zip(*cameras, strict=True)
        ]  # fmt: skip
        return np.concatenate(fitted)
    frames = _read_frames(file, settings, num_stacked)
    height, width = frames[0].shape[:2]
    if views and (height, width) != (video.height, video.width):
        raise UserError(
            f"{file} does not show the cameras of this run side by side", actual=f"{width} x {height}",
            allowed=f"{video.width} x {video.height}: {describe_views(views)}",
            next_step="give one image for each camera: " + ", ".join(of_camera(Path(f"NAME.{CAMERA}.png"), view).name
                                                                    for view in views),
        )  # fmt: skip
    return np.concatenate([fit_frame(frame_HWC, video.height, video.width, fit) for frame_HWC in frames])


def of_camera(file: Path, view: View) -> Path:
    """Return one camera's file, for a name with `CAMERA` in it."""
    return file.with_name(file.name.replace(CAMERA, short_name(view.camera)))


def _read_frames(file: Path, settings: Settings, num_stacked: int) -> list[np.ndarray]:
    num = model_type(settings.model).num_conditioning_frames[settings.plan.condition]
    if file.suffix.lower() in IMAGE_SUFFIXES:
        stacked_HWC = read_image(file)
        if len(stacked_HWC) % num_stacked:
            raise UserError(
                f"{file} does not hold {num_stacked} frames of one size",
                actual=f"{len(stacked_HWC)} rows of pixels",
                next_step="remove it: the first frames are then taken from the video",
            )
        frames = np.split(stacked_HWC, num_stacked)[:num]
    else:
        info = probe(file)
        numbers = resampled_frames(info.times, info.fps, settings.video.fps)[:num]
        with closing(FrameReader()) as reader:
            frames = list(reader.frames(info, numbers))
    if len(frames) < num:
        raise UserError(
            f"{file} is too short to condition on",
            actual=f"{len(frames)} frames",
            allowed=f"a video of at least {num} frames",
            next_step="--plan.condition=image needs one frame only",
        )
    return frames


def store_frames(
    file: Path, settings: Settings, run: RunFolder | None, views: Sequence[View] = (), num_stacked: int = 1
) -> str:
    """Store conditioning frames under the hash of their pixels, unless they are stored already.

    Args:
        file: As `fitted_frames` takes it, like the other arguments.
        run: Where they are stored; None stores nothing.

    Returns:
        The hash.

    Raises:
        UserError: as `fitted_frames` does.
    """
    stacked_HWC = fitted_frames(file, settings, views, num_stacked)
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
        return False  # damaged: it is written again
