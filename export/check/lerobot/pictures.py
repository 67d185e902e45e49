"""Whose pictures a video shows, told by the statistics that its dataset records of each episode.

Axes: C channels, F figures (mean and deviation of each channel).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import av
import numpy as np

from dreamgen.data.lerobot.image_statistics import downsampled, sampled_frames
from export.check.findings import Findings
from export.check.lerobot.episodes import LeRobotEntry

FAR = 0.04  # of 1: encoding moves the mean of a picture by less, another scene's by more
NOTICEABLE = 0.001
NEARER = 4.0  # times nearer to another episode's figures than to one's own
MAX_COMPARED = 2000  # of each with each


class ImageSampleStatistics:
    """Gathers mean and deviation of one episode's decoded pictures, sampled as LeRobot samples them."""

    def __init__(self, num_frames: int) -> None:
        self._wanted, self._num_frames = set(sampled_frames(num_frames).tolist()), num_frames
        self._seen = self._num_pixels = 0
        self._sum_C, self._squares_C = np.zeros(3), np.zeros(3)

    def look(self, frame: av.VideoFrame) -> None:
        """Take in the episode's next frame."""
        if self._seen in self._wanted:
            small_HWC = downsampled(frame.to_ndarray(format="rgb24")).astype(np.float64)
            self._sum_C += small_HWC.sum(axis=(0, 1))
            self._squares_C += (small_HWC**2).sum(axis=(0, 1))
            self._num_pixels += small_HWC.shape[0] * small_HWC.shape[1]
        self._seen += 1

    def figures_F(self) -> np.ndarray | None:
        """Return mean and deviation of each channel in [0, 1]; None where frames are missing or spare."""
        if not self._num_pixels or self._seen != self._num_frames:
            return None
        mean_C = self._sum_C / self._num_pixels
        deviation_C = np.sqrt(np.maximum(self._squares_C / self._num_pixels - mean_C**2, 0))
        return np.concatenate([mean_C, deviation_C]) / 255


@dataclass(frozen=True)
class Picture:
    """An episode's figures of one camera: those that were decoded and those that are recorded."""

    camera: str
    position: int
    file: str
    decoded_F: np.ndarray
    recorded_F: np.ndarray

    @property
    def off(self) -> float:
        """How far apart the two are."""
        return float(np.abs(self.decoded_F - self.recorded_F).max())


def check_pictures(dataset: LeRobotEntry, pictures: list[Picture], findings: Findings) -> None:
    """Say which episodes show each other's pictures, and which pictures are nobody's.

    An encoder may move all figures one way, and so make an episode's pictures look like another's, but never in a
    circle: episodes count as swapped only where each of them shows the next one's pictures and the last the first's.
    """
    by_camera = defaultdict(list)
    for picture in pictures:
        by_camera[picture.camera].append(picture)
    for shown in by_camera.values():
        swapped = _circles(sorted(shown, key=lambda picture: -picture.off)[:MAX_COMPARED])
        for picture in shown:
            name = dataset.episodes[picture.position].name
            if (other := swapped.get(picture.position)) is not None:
                holder = next(p for p in shown if p.position in swapped and swapped[p.position] is picture)
                findings.add("video-swapped", picture.file, name,
                             f"the pictures of {dataset.episodes[other.position].name}",
                             f"its own, which lie in {holder.file}")  # fmt: skip
            elif np.abs(picture.decoded_F[:3] - picture.recorded_F[:3]).max() > FAR:
                findings.add("picture-statistics", picture.file, f"{name}, mean colour",
                             np.round(picture.decoded_F[:3], 3).tolist(),
                             f"{np.round(picture.recorded_F[:3], 3).tolist()} as recorded")  # fmt: skip


def _circles(pictures: list[Picture]) -> dict[int, Picture]:
    """Return position -> whose pictures it shows, for episodes that go round in a circle."""
    if len(pictures) < 2:
        return {}
    decoded_EF = np.stack([picture.decoded_F for picture in pictures])
    recorded_EF = np.stack([picture.recorded_F for picture in pictures])
    nearest = {}
    for place, picture in enumerate(pictures):
        off_E = np.abs(recorded_EF - decoded_EF[place]).max(axis=1)
        best = int(np.argmin(off_E))
        if best != place and off_E[best] * NEARER < picture.off:
            nearest[place] = best
    found = {}
    for place in nearest:
        walked, at = [], place
        while at in nearest and at not in walked:
            walked.append(at)
            at = nearest[at]
        if at == place:
            found[pictures[place].position] = pictures[nearest[place]]
    return found
