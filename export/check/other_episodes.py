"""Whether the pictures of an episode are mirrored, upside down, or have red and blue exchanged, by other episodes.

Only cameras that show nearly the same scene in nearly all episodes say anything about it.

Axes: H height, W width, C channels; a `thumbnail_HWC` is uint8, 0-255.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import av
import cv2
import numpy as np

from export.check.findings import Findings

SIZE_PX = 16
NUM_FRAMES = 4  # of an episode: the scene matters, not what moves in it
NUM_REFERENCE = 64  # the first episodes; all later ones are compared with their median
MIN_EPISODES = 4
FITS = 0.9  # correlation
MOST = 0.6  # of the episodes show one scene
WORSE = 4.0  # times farther from a perfect fit than any of the others, and than when it is changed back
CHANGES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "mirrored": ("picture-mirrored", lambda thumbnail_HWC: thumbnail_HWC[:, ::-1]),
    "upside down": ("picture-mirrored", lambda thumbnail_HWC: thumbnail_HWC[::-1]),
    "turned by 180 degrees": ("picture-mirrored", lambda thumbnail_HWC: thumbnail_HWC[::-1, ::-1]),
    "with red and blue exchanged": ("picture-channels", lambda thumbnail_HWC: thumbnail_HWC[..., ::-1]),
}


class Thumbnail:
    """The mean of a few frames of an episode, small.

    Args:
        num_frames: Length of the episode.
        among_N: Rising numbers of the frames to choose from, for example those that are converted anyway; None for all.
    """

    def __init__(self, num_frames: int, among_N: np.ndarray | None = None) -> None:
        num_choices = num_frames if among_N is None else len(among_N)
        chosen_N = np.linspace(0, num_choices - 1, NUM_FRAMES).astype(int)
        self._sampled = set((chosen_N if among_N is None else among_N[chosen_N]).tolist())
        self._num_added = self._num_taken = 0
        self._sum_HWC = np.zeros((SIZE_PX, SIZE_PX, 3))

    def add(self, frame: av.VideoFrame | np.ndarray) -> None:
        """Take the episode's next frame: a decoded one, or frame_HWC; others than uint8 colors are left out."""
        if self._num_added in self._sampled:
            if isinstance(frame, av.VideoFrame):
                small = frame.reformat(SIZE_PX, SIZE_PX, "rgb24", interpolation="AREA").to_ndarray()
            elif frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[-1] == 3:
                rows, columns = (max(1, size // (4 * SIZE_PX)) for size in frame.shape[:2])
                some_HWC = np.ascontiguousarray(frame[::rows, ::columns])  # averaging all pixels takes ten times longer
                small = cv2.resize(some_HWC, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
            else:
                return
            self._sum_HWC += small
            self._num_taken += 1
        self._num_added += 1

    def mean_HWC(self) -> np.ndarray | None:
        """Return the thumbnail_HWC; None where frames are missing."""
        if self._num_taken != len(self._sampled):
            return None
        return (self._sum_HWC / self._num_taken).round().astype(np.uint8)


@dataclass(frozen=True)
class Misfit:
    """An episode that fits the others better when its pictures are changed."""

    file: str
    where: str
    fit: float
    change: str
    changed_fit: float


class OtherEpisodes:
    """Compares the episodes of one camera with one another."""

    def __init__(self) -> None:
        self._held: list[tuple[str, str, np.ndarray]] = []
        self._reference_N: np.ndarray | None = None
        self._fits = array("f")
        self._misfits: list[Misfit] = []

    def add(self, file: str, where: str, thumbnail_HWC: np.ndarray) -> None:
        """Take an episode.

        Args:
            file: Where its pictures are.
            where: Its place in the file.
            thumbnail_HWC: From `Thumbnail`.
        """
        self._held.append((file, where, thumbnail_HWC))
        if self._reference_N is not None or len(self._held) == NUM_REFERENCE:
            self._compare()

    def check(self, findings: Findings) -> None:
        """Report the few episodes that fit the others only when their pictures are changed."""
        self._compare()
        fit_E = np.array(self._fits)
        agrees_E = fit_E > FITS
        if len(fit_E) < MIN_EPISODES or agrees_E.sum() < max(MIN_EPISODES - 1, MOST * len(fit_E)):
            return
        limit = WORSE * (1 - fit_E[agrees_E].min())
        for misfit in self._misfits:
            if 1 - misfit.fit > limit:
                code, _ = CHANGES[misfit.change]
                findings.add(code, misfit.file, misfit.where, f"pictures {misfit.change}",
                             f"the scene of {int(agrees_E.sum())} other episodes")  # fmt: skip

    def _compare(self) -> None:
        if self._held and self._reference_N is None:
            self._reference_N = _centered(np.median([thumbnail_HWC for _, _, thumbnail_HWC in self._held], axis=0))
        for file, where, thumbnail_HWC in self._held:
            fit = self._fit(thumbnail_HWC)
            self._fits.append(fit)
            changed = {name: self._fit(change(thumbnail_HWC)) for name, (_, change) in CHANGES.items()}
            best = max(changed, key=lambda name: changed[name])
            if fit <= FITS < changed[best] and WORSE * (1 - changed[best]) < 1 - fit:
                self._misfits.append(Misfit(file, where, fit, best, changed[best]))
        self._held = []

    def _fit(self, thumbnail_HWC: np.ndarray) -> float:
        """Return the correlation of a thumbnail with the median of all."""
        assert self._reference_N is not None
        own_N = _centered(thumbnail_HWC)
        size = np.sqrt((own_N**2).sum() * (self._reference_N**2).sum())
        return float((own_N * self._reference_N).sum() / size) if size > 0 else 0.0


def _centered(thumbnail_HWC: np.ndarray) -> np.ndarray:
    values_N = thumbnail_HWC.astype(np.float64).ravel()
    return values_N - values_N.mean()
