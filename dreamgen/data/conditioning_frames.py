"""The conditioning frames of a clip, as a run folder stores them.

Axes: T frames, H height, W width, C channels; uint8, 0-255, RGB. Several frames are stacked vertically in one PNG
(lossless); a single first frame is an ordinary image.
"""

from __future__ import annotations

import numpy as np

from dreamgen.data.images import frame_sha256, read_image
from dreamgen.errors import UserError, quoted
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

NUM_STORED_FRAMES = 5  # of each demonstration; a clip that continues a video is conditioned on five frames


def read_conditioning_frames(run: RunFolder, job: Job) -> np.ndarray | None:
    """Read the conditioning frames of a job and check that they are the planned ones.

    Returns:
        frames_THWC at the clip's size; None for a clip from text alone.

    Raises:
        UserError: if they are missing, damaged or not the planned ones.
    """
    if job.first_frame_sha256 is None:
        return None
    path = run.fetch(run.first_frame_file(job.first_frame_sha256))
    stacked_HWC = read_image(path)
    found = frame_sha256(stacked_HWC)
    if found != job.first_frame_sha256:
        raise UserError(
            f"{path} is not the first frame that was planned",
            actual=f"pixels with hash {found[:12]}",
            allowed=job.first_frame_sha256[:12],
            next_step=f"dreamgen plan --out {quoted(run)} writes it again",
        )
    return stacked_HWC.reshape(job.num_conditioning_frames, job.height, job.width, 3)
