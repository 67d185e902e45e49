"""The frames that a clip begins with: read, brought to the clip's size, and stored once by the hash of their pixels.

Axes: H height, W width, C channels. Frames are uint8, 0-255, RGB; several stand below one another in `stacked_HWC`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamgen.config.settings import Settings
from dreamgen.data.video import fit_frame, frame_sha256, iter_frames, read_image, write_png
from dreamgen.data.views import View, places_told, short_name, tile
from dreamgen.errors import UserError
from dreamgen.models.world_model import model_type
from dreamgen.run.run_folder import RunFolder

CAMERA = "{camera}"  # in a file's name: each camera has one
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4",)


def fitted_frames(file: Path, settings: Settings, views: Sequence[View] = ()) -> np.ndarray:
    """Read the frames that a clip is to begin with, at the clip's size.

    Args:
        file: Image, or video of which the first frames are taken; with `CAMERA` in its name, one of each camera.
        settings: `plan.condition` says how many; `video` and `prepare.fit` the size.
        views: Where the run's cameras are in its picture, if they are several.

    Returns:
        stacked_HWC: the frames below one another.

    Raises:
        UserError: if the file is missing, damaged, or too short, or no picture of the run's cameras.
    """
    video, fit = settings.video, settings.prepare.fit
    if CAMERA in file.name:
        cameras = [_frames(of_camera(file, view), settings) for view in views]
        fitted = [
            tile([fit_frame(f, v.height, v.width, fit) for f, v in zip(each, views, strict=True)],
                 views, video.height, video.width)
            for each in zip(*cameras, strict=True)
        ]  # fmt: skip
        return np.concatenate(fitted)
    frames = _frames(file, settings)
    height, width = frames[0].shape[:2]
    if views and (height, width) != (video.height, video.width):
        raise UserError(
            f"{file} does not show the cameras of this run side by side", actual=f"{width} x {height}",
            allowed=f"{video.width} x {video.height}: {places_told(views)}",
            next_step="give a picture of each camera: " + ", ".join(of_camera(Path(f"NAME.{CAMERA}.png"), view).name
                                                                    for view in views),
        )  # fmt: skip
    return np.concatenate([fit_frame(frame_HWC, video.height, video.width, fit) for frame_HWC in frames])


def of_camera(file: Path, view: View) -> Path:
    """Return one camera's file of a name that stands for all."""
    return file.with_name(file.name.replace(CAMERA, short_name(view.camera)))


def _frames(file: Path, settings: Settings) -> list[np.ndarray]:
    num = model_type(settings.model).num_conditioning_frames[settings.plan.condition]
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
    return frames


def store_frames(file: Path, settings: Settings, run: RunFolder | None, views: Sequence[View] = ()) -> str:
    """Store a source's frames under the hash of their pixels, once.

    Args:
        run: None stores nothing.
        views: As `fitted_frames` takes them; `file` too.

    Returns:
        The hash.

    Raises:
        UserError: as `fitted_frames` does.
    """
    stacked_HWC = fitted_frames(file, settings, views)
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
