"""Whether the images of an episode show its states, judging by the images and states of the other episodes.

A linear map from small gray images to states is fitted to some episodes and applied to the others (ridge regression,
cross-validated). Where it predicts the states of most episodes, an episode whose images show the states of another one,
or its own in reverse, stands out. Only a camera that shows nearly the same scene in most episodes allows this.

Axes: E episodes, T sampled frames, P values of an image and one constant, D dimensions of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import av
import cv2
import numpy as np

SIZE_PX = 8  # the products of larger ones start BLAS threads, which take longer than the products
NUM_SAMPLED = 32  # frames of an episode
MIN_ROWS, MIN_EPISODES = 16, 4
MAX_EPISODES = 256  # the first ones: what is kept of each takes several kB
FITS = 0.25  # mean squared error, by the variance of the states
MOST = 0.6  # of the episodes are predicted so well
WORSE = 3.0  # times farther from its own states than from those that its images show
RIDGE = 100.0  # by the number of values of an image, of 0-255
CONSTANT = 30.0  # as large as the values' deviations, so that it is regularized like them
NUM_FOLDS = 8


def sampled_rows(num_rows: int) -> np.ndarray:
    """Return the rows of an episode that are compared, evenly spread and symmetric about the middle."""
    half = np.linspace(0, num_rows - 1, min(NUM_SAMPLED, num_rows))[: (min(NUM_SAMPLED, num_rows) + 1) // 2]
    first = half.astype(np.int64)
    return np.unique(np.concatenate([first, num_rows - 1 - first]))


class GrayImages:
    """Small gray images of the sampled frames of an episode.

    Args:
        num_frames: Length of the episode.
    """

    def __init__(self, num_frames: int) -> None:
        self._sampled = set(sampled_rows(num_frames).tolist())
        self._num_added = 0
        self._images: list[np.ndarray] = []

    def add(self, frame: av.VideoFrame) -> None:
        """Take the episode's next frame; formats other than 8-bit YUV are left out."""
        if self._num_added in self._sampled and frame.format.name.startswith(("yuv", "nv12", "gray")):
            plane = frame.planes[0]
            if frame.format.components[0].bits == 8:
                luma_HW = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
                rows, columns = (max(1, size // (4 * SIZE_PX)) for size in luma_HW.shape)
                some_HW = np.ascontiguousarray(luma_HW[::rows, ::columns])
                self._images.append(cv2.resize(some_HW, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA).ravel())
        self._num_added += 1

    def images_TP(self) -> np.ndarray | None:
        """Return the images, uint8; None where frames are missing."""
        return np.stack(self._images) if len(self._images) == len(self._sampled) else None


@dataclass(frozen=True)
class ShownStates:
    """What the images of an episode show instead of its states.

    Args:
        position: Of the episode.
        shown: Position of the episode whose states they show; its own where they show them in reverse.
        num_others: Episodes whose states were predicted well.
    """

    position: int
    shown: int
    num_others: int


def find_other_states(
    images: Mapping[int, np.ndarray], states: Mapping[int, np.ndarray], num_rows: Mapping[int, int]
) -> list[ShownStates]:
    """Find episodes whose images show their states in reverse, and pairs that show each other's.

    Args:
        images: Position of an episode -> images_TP of its sampled frames, 0-255.
        states: Position of an episode -> state_TD of the same rows.
        num_rows: Position of an episode -> its length: videos of two lengths are not exchanged without a trace.

    Returns:
        One for each episode that was found; empty where the images of most episodes do not show their states.
    """
    positions = [p for p in images if p in states and len(images[p]) == len(states[p])]
    if len(positions) < MIN_EPISODES or len({states[p].shape[1] for p in positions}) > 1:
        return []
    state_ETD = _standardized([states[p].astype(np.float64) for p in positions])
    mean_P = np.concatenate([images[p] for p in positions]).mean(axis=0)
    image_ETP = [np.column_stack([images[p] - mean_P, np.full(len(images[p]), CONSTANT)]) for p in positions]
    fits_E, predicted_ETD, is_predicted_D = np.ones(len(positions), bool), state_ETD, np.empty(0, bool)
    error_E = np.empty(0)
    for is_last in (False, True):  # again without the episodes that do not fit, which disturb the map
        if fits_E.sum() < MIN_EPISODES:
            return []
        predicted_ETD = _predict(image_ETP, state_ETD, fits_E)
        error_ED = np.array([((p - s) ** 2).mean(axis=0) for p, s in zip(predicted_ETD, state_ETD, strict=True)])
        is_predicted_D = np.median(error_ED, axis=0) < FITS
        if not is_predicted_D.any():
            return []
        error_E = error_ED[:, is_predicted_D].mean(axis=1)
        fits_E = error_E < (FITS if is_last else max(FITS, 2 * np.median(error_E)))
    if fits_E.sum() < max(MIN_EPISODES - 1, MOST * len(positions)):
        return []
    predicted_ETD, state_ETD = ([v[:, is_predicted_D] for v in values] for values in (predicted_ETD, state_ETD))
    lengths = [num_rows[position] for position in positions]
    return [
        ShownStates(positions[place], positions[shown], int(fits_E.sum()))
        for place, shown in sorted(_explained(predicted_ETD, state_ETD, error_E, lengths).items())
    ]


def _standardized(state_ETD: list[np.ndarray]) -> list[np.ndarray]:
    """Return states with mean 0 and deviation 1, without those that do not move."""
    all_ND = np.concatenate(state_ETD)
    deviation_D = all_ND.std(axis=0)
    moves_D = deviation_D > 1e-6 * np.maximum(1, np.abs(all_ND).max(axis=0))
    mean_D, deviation_D = all_ND.mean(axis=0)[moves_D], deviation_D[moves_D]
    return [(state_TD[:, moves_D] - mean_D) / deviation_D for state_TD in state_ETD]


def _predict(image_ETP: list[np.ndarray], state_ETD: list[np.ndarray], fits_E: np.ndarray) -> list[np.ndarray]:
    """Predict each episode's states by a map that is fitted to the others, among those that fit."""
    fitted = np.flatnonzero(fits_E).tolist()
    squares = {e: image_ETP[e].T @ image_ETP[e] for e in fitted}
    products = {e: image_ETP[e].T @ state_ETD[e] for e in fitted}
    ridge_PP = np.eye(image_ETP[0].shape[1]) * RIDGE * image_ETP[0].shape[1]
    square_PP, product_PD = sum(squares.values(), ridge_PP), sum(products.values(), np.zeros_like(products[fitted[0]]))
    predicted = [np.empty(0)] * len(image_ETP)
    folds = [fitted[first::NUM_FOLDS] for first in range(min(NUM_FOLDS, len(fitted)))]
    for left_out in (np.flatnonzero(~fits_E).tolist(), *folds):
        own = [e for e in left_out if e in squares]
        map_PD = np.linalg.solve(square_PP - sum(squares[e] for e in own), product_PD - sum(products[e] for e in own))
        for e in left_out:
            predicted[e] = image_ETP[e] @ map_PD
    return predicted


def _explained(
    predicted_ETD: list[np.ndarray], state_ETD: list[np.ndarray], error_E: np.ndarray, lengths: list[int]
) -> dict[int, int]:
    """Return place -> place of the episode whose states its images show; its own place for reversed ones."""
    suspects = [e for e in range(len(error_E)) if error_E[e] > WORSE * np.median(error_E)]
    found = {e: e for e in suspects if error_E[e] > WORSE * ((predicted_ETD[e] - state_ETD[e][::-1]) ** 2).mean()}
    better: dict[tuple[int, int], float] = {}
    for e in suspects:
        for other in suspects:
            if e != other and lengths[e] == lengths[other]:
                better[e, other] = error_E[e] / ((predicted_ETD[e] - state_ETD[other]) ** 2).mean()
    pairs = {(e, other): min(times, better[other, e]) for (e, other), times in better.items() if e < other}
    for (e, other), times in sorted(pairs.items(), key=lambda item: -item[1]):
        if times > WORSE and e not in found and other not in found:
            found |= {e: other, other: e}
    return found
