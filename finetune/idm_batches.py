"""Windows of demonstrations for inverse dynamics, changed as a video model changes frames.

Everything random about a sample is drawn from its index, so a training that is resumed, or runs on another number of
GPUs, sees the same samples.

Axes: K frames of a window, N these and the background, H height, W width, S = H x W, C channels (the colors of one
camera after the other), L = N x C planes, P targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from dreamgen.data.seeds import derived_seed
from dreamgen.models.idm.model import clip_background
from dreamgen.models.idm.network import MASK_AT, MASK_WIDTH
from finetune.idm_episodes import IdmEpisode

BACKGROUND_STEP = 16  # frames between the clips of an episode whose backgrounds are measured
COLOR_MIX, COLOR_SHIFT = 0.3, 0.15  # deviation of the mixed colors and of their shift, of -1..1
MAX_SHIFT, MAX_SCALE = 0.02, 0.02  # shares of the image; more would hide where the camera sees the robot
MAX_BLUR_PX, MIN_JPEG = 1.0, 20
MAX_CUT = 1 / 3  # side of the part that is covered, share of the image
# The share of a pixel that is in front, in 1/256, by its difference from the background, 0 to 255.
IN_FRONT = np.rint(256 / (1 + np.exp(np.clip((MASK_AT - np.arange(256) / 127.5) / MASK_WIDTH, -30, 30)))).astype(
    np.uint16
)
MAX_PLANES = 510  # OpenCV's limit for the channels of an image is 512
SHARE = 0.3  # of the samples that get a new background, a covered part, blur, or compression


@dataclass(frozen=True)
class Clip:
    """A part of an episode as long as the clips that label processes, with its background.

    Args:
        episode: Number of the episode.
        start: First frame.
        stop: The frame after the last.
        background_CHW: uint8.
    """

    episode: int
    start: int
    stop: int
    background_CHW: np.ndarray


class WindowSamples(Dataset):
    """Windows of training episodes.

    Args:
        episodes: To draw from; each frame is as likely as another.
        targets: Of each episode, from `VectorStats.to_network`.
        horizon: Frames of a window.
        num_frames: Of a clip, whose background is given with its frames.
        augment: Whether to change the frames.
        seed: Of the run.
    """

    def __init__(
        self, episodes: Sequence[IdmEpisode], targets: Sequence[np.ndarray], horizon: int, num_frames: int,
        augment: bool, seed: int,
    ) -> None:  # fmt: skip
        self._episodes, self._targets, self._horizon = episodes, targets, horizon
        self._augment, self._seed = augment, seed
        self._clips = [clip for number, one in enumerate(episodes) for clip in _clips(number, one, num_frames)]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pictures_KCHW and background_CHW, uint8, and target_KP of a sample."""
        random = np.random.default_rng(derived_seed(self._seed, "idm", "sample", index))
        clip = self._clips[random.integers(len(self._clips))]
        size = min(self._horizon, clip.stop - clip.start)
        start = int(random.integers(clip.start, clip.stop - size + 1))
        pictures_KCHW = self._episodes[clip.episode].small_TCHW[start : start + size]
        background_CHW = clip.background_CHW
        if self._augment:
            other = self._clips[random.integers(len(self._clips))].background_CHW
            pictures_KCHW, background_CHW = augmented(pictures_KCHW, background_CHW, other, random)
        target_KP = self._targets[clip.episode][start : start + size]
        arrays = (pictures_KCHW, background_CHW, target_KP)
        pictures, background, target = (torch.from_numpy(np.ascontiguousarray(x)) for x in arrays)
        return pictures, background, target


def _clips(number: int, episode: IdmEpisode, num_frames: int) -> Iterator[Clip]:
    total = len(episode.small_TCHW)
    last = max(0, total - num_frames)
    for start in sorted({*range(0, last, BACKGROUND_STEP), last}):
        stop = min(start + num_frames, total)
        yield Clip(number, start, stop, clip_background(episode.small_TCHW[start:stop]))


def augmented(
    pictures_KCHW: np.ndarray, background_CHW: np.ndarray, other_CHW: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change a window and its background in the same way.

    What a video model and a new scene change: background, colors, place and scale by a few pixels, sharpness, and
    the marks of compression; and a covered part, so that no single detail decides.

    Args:
        pictures_KCHW: uint8.
        background_CHW: uint8.
        other_CHW: The background of another clip, which may replace it.
        random: Generator of the changes.

    Returns:
        The same shapes, uint8.
    """
    frames_NCHW, size = [*pictures_KCHW, background_CHW], background_CHW.shape[-1]
    if random.random() < SHARE:
        other_CHW = other_CHW[_mixed_channels(len(other_CHW), random)]
        frames_NCHW = _replace_background(np.stack(frames_NCHW), other_CHW)
    mix = np.eye(3) + random.random() * COLOR_MIX * random.standard_normal((3, 3))
    shift = 127.5 * COLOR_SHIFT * random.standard_normal(3)
    zoom = 1 + random.uniform(-MAX_SCALE, MAX_SCALE, 2)
    move = size * (random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) + (1 - zoom) / 2)
    matrix = np.array([[zoom[0], 0, move[0]], [0, zoom[1], move[1]]])
    blur_px = random.uniform(0.3, MAX_BLUR_PX) if random.random() < SHARE else 0.0
    quality = int(random.integers(MIN_JPEG, 90)) if random.random() < SHARE else None
    box = _box(size, random) if random.random() < SHARE else None
    color = random.uniform(0, 255, 3)
    color_matrix = np.column_stack([mix, 127.5 - 127.5 * mix.sum(axis=1) + shift])
    planes = [plane_HW for frame_CHW in frames_NCHW for plane_HW in frame_CHW]
    result_LHW = np.empty((len(planes), size, size), np.uint8)
    for start in range(0, len(planes), MAX_PLANES):
        # All frames and cameras are channels of one image: one call is far faster than one for each.
        image_HWL = cv2.merge(planes[start : start + MAX_PLANES])
        changed_HWL = cv2.warpAffine(image_HWL, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        if box is not None:
            changed_HWL.reshape(size, size, -1, 3)[box] = np.rint(color)
        cv2.transform(changed_HWL.reshape(size, -1, 3), color_matrix, dst=image_HWL.reshape(size, -1, 3))
        if blur_px:
            image_HWL = cv2.GaussianBlur(image_HWL, (0, 0), blur_px, dst=changed_HWL)
        result_LS = result_LHW[start : start + MAX_PLANES].reshape(-1, size * size)
        cv2.transpose(image_HWL.reshape(size * size, -1), dst=result_LS)
    if quality is not None:
        for planes_3HW in result_LHW.reshape(-1, 3, size, size):
            written = cv2.imencode(".jpg", cv2.merge(tuple(planes_3HW)), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            cv2.split(np.asarray(cv2.imdecode(written, cv2.IMREAD_COLOR)), tuple(planes_3HW))
    result_NCHW = result_LHW.reshape(-1, *background_CHW.shape)
    return result_NCHW[:-1], result_NCHW[-1]


def _replace_background(stack_NCHW: np.ndarray, other_CHW: np.ndarray) -> np.ndarray:
    """Put what moves in front of another background."""
    result = np.empty_like(stack_NCHW)
    for camera in range(0, stack_NCHW.shape[1], 3):
        part, other = (x[..., camera : camera + 3, :, :] for x in (stack_NCHW, other_CHW))
        moved_NHW = (np.maximum(part, part[-1:]) - np.minimum(part, part[-1:])).max(axis=1)
        share_NHW = np.stack([cv2.LUT(cv2.dilate(moved_HW, np.ones((3, 3))), IN_FRONT) for moved_HW in moved_NHW])
        share_N1HW = np.asarray(share_NHW, np.uint16)[:, None]
        # In 1/256, so that the sum of both fits 16 bits.
        result[:, camera : camera + 3] = (share_N1HW * part + (256 - share_N1HW) * other + 128) >> 8
    return result


def _mixed_channels(num_channels: int, random: np.random.Generator) -> np.ndarray:
    order = random.permutation(3)
    return np.concatenate([camera + order for camera in range(0, num_channels, 3)])


def _box(size: int, random: np.random.Generator) -> tuple[slice, slice]:
    tall, wide = random.integers(size // 16, max(size // 16 + 1, int(size * MAX_CUT)), 2)
    top, left = random.integers(size - tall), random.integers(size - wide)
    return slice(top, top + tall), slice(left, left + wide)
