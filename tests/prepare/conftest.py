"""Small settings and a ruler that says where the square is in a picture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreamgen.config.settings import PrepareSettings, Settings, VideoSettings


@pytest.fixture
def settings_for(tmp_path) -> Callable[..., Settings]:
    """Settings of a run into a new folder; windows of nine frames at 16 fps, 48x64."""

    def make(demos: Path, out: str = "run", prepare: dict | None = None, **video) -> Settings:
        shape = replace(VideoSettings(height=48, width=64, num_frames=9, fps=16), **video)
        return Settings(
            out=str(tmp_path / out), demos=str(demos), video=shape, prepare=PrepareSettings(**(prepare or {}))
        )

    return make


@pytest.fixture
def square_place() -> Callable[[np.ndarray], np.ndarray]:
    """Where the square's center is in each frame, as the state has it: x and y, 0-1; its green stands out."""

    def measure(video_THWC: np.ndarray) -> np.ndarray:
        places = []
        for frame_HWC in video_THWC:
            rows, columns = np.nonzero(frame_HWC[..., 1] > 165)
            height, width = frame_HWC.shape[:2]
            # The square covers [center - half, center + half), so its mean lies half a pixel before the center.
            places.append([(columns.mean() + 0.5) / (width - 1), (rows.mean() + 0.5) / (height - 1)])
        return np.array(places)

    return measure
