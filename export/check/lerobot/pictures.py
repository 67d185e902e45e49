"""Which episode a video shows, by the statistics that its dataset records of each episode's pictures.

Axes: C channels, F statistics (mean and standard deviation of each channel).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import av
import numpy as np

from dreamgen.data.display import to_rgb
from dreamgen.data.lerobot.image_statistics import ImageHistogram, sampled_frames
from dreamgen.data.lerobot.metadata import LeRobotMeta
from export.check.findings import Findings

FAR = 0.04  # of 1: encoding moves the mean of a picture by less, another scene's by more
NOTICEABLE = 0.001
NEARER = 4.0  # times nearer to another episode's statistics than to one's own
CLEAR = 0.01  # of 1: a difference that no encoder makes
BGR_F = [2, 1, 0, 5, 4, 3]  # the statistics of a picture with red and blue exchanged
MAX_COMPARED = 2000  # of each with each


class PictureSampler:
    """Computes mean and deviation of an episode's decoded pictures, of the frames that LeRobot samples.

    Args:
        num_frames: Length of the episode.
        recorded_F: The statistics that the dataset records.
    """

    def __init__(self, num_frames: int, recorded_F: np.ndarray) -> None:
        self.recorded_F, self._num_frames = recorded_F, num_frames
        self.sampled_N = sampled_frames(num_frames)
        self._sampled = set(self.sampled_N.tolist())
        self._num_added, self._histogram = 0, ImageHistogram.empty()

    def add(self, frame: av.VideoFrame) -> np.ndarray | None:
        """Take the episode's next frame, and return its pixels if it is one of those that are sampled."""
        rgb_HWC = to_rgb(frame) if self._num_added in self._sampled else None
        if rgb_HWC is not None:
            self._histogram = self._histogram.with_frame(rgb_HWC)
        self._num_added += 1
        return rgb_HWC

    def statistics_F(self) -> np.ndarray | None:
        """Return mean and deviation of each channel in [0, 1]; None where there were fewer or more frames."""
        if not self._num_added or self._num_added != self._num_frames:
            return None
        statistics = self._histogram.metrics()
        return np.concatenate([statistics["mean"].ravel(), statistics["std"].ravel()])


@dataclass(frozen=True)
class PictureStatistics:
    """Statistics of one episode's pictures of one camera: decoded and recorded.

    Args:
        camera: The video feature.
        position: Of the episode.
        file: The video.
        decoded_F: Computed from its frames.
        recorded_F: What the dataset records.
    """

    camera: str
    position: int
    file: str
    decoded_F: np.ndarray
    recorded_F: np.ndarray

    @property
    def difference(self) -> float:
        """Largest difference between the two."""
        return float(np.abs(self.decoded_F - self.recorded_F).max())

    @property
    def exchanged_difference(self) -> float:
        """Largest difference if red and blue were exchanged."""
        return float(np.abs(self.decoded_F[BGR_F] - self.recorded_F).max())


def check_pictures(dataset: LeRobotMeta, pictures: list[PictureStatistics], findings: Findings) -> set[int]:
    """Report episodes that show each other's pictures, and pictures that are no episode's.

    An encoder may shift all statistics one way, and so make an episode's pictures look like another's, but never in a
    cycle: episodes count as swapped only where each of them shows the next one's pictures and the last the first's.

    Returns:
        Positions of the episodes that are swapped.
    """
    by_camera = defaultdict(list)
    for picture in pictures:
        by_camera[picture.camera].append(picture)
    index_N, all_swapped = dataset.episodes.index_N, set[int]()
    for own in by_camera.values():
        swapped = _cycles(sorted(own, key=lambda picture: -picture.difference)[:MAX_COMPARED])
        all_swapped |= set(swapped)
        for picture in own:
            name = f"episode {index_N[picture.position]}"
            if (other := swapped.get(picture.position)) is not None:
                holder = next(p for p in own if p.position in swapped and swapped[p.position] is picture)
                findings.add("video-swapped", picture.file, name, f"the pictures of episode {index_N[other.position]}",
                             f"its own, which are in {holder.file}")  # fmt: skip
            elif NEARER * picture.exchanged_difference < picture.difference > CLEAR:
                findings.add("picture-channels", picture.file, f"{name}, mean color",
                             np.round(picture.decoded_F[:3], 3).tolist(),
                             f"{np.round(picture.recorded_F[:3], 3).tolist()} as recorded")  # fmt: skip
            elif np.abs(picture.decoded_F[:3] - picture.recorded_F[:3]).max() > FAR:
                findings.add("picture-statistics", picture.file, f"{name}, mean color",
                             np.round(picture.decoded_F[:3], 3).tolist(),
                             f"{np.round(picture.recorded_F[:3], 3).tolist()} as recorded")  # fmt: skip
    return all_swapped


def _cycles(pictures: list[PictureStatistics]) -> dict[int, PictureStatistics]:
    """Return position -> whose pictures it shows, for episodes that form a cycle."""
    if len(pictures) < 2:
        return {}
    decoded_EF = np.stack([picture.decoded_F for picture in pictures])
    recorded_EF = np.stack([picture.recorded_F for picture in pictures])
    nearest = {}
    for place, picture in enumerate(pictures):
        distance_E = np.abs(recorded_EF - decoded_EF[place]).max(axis=1)
        best = int(np.argmin(distance_E))
        if best != place and distance_E[best] * NEARER < picture.difference:
            nearest[place] = best
    found = {}
    for place in nearest:
        path, at = [], place
        while at in nearest and at not in path:
            path.append(at)
            at = nearest[at]
        if at == place:
            found[pictures[place].position] = pictures[nearest[place]]
    return found
