"""Known-bad clips made from real ones, and round trips of real ones that are as good as they were.

Axes: T frames, H height, W width, C channels. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class BenchClip:
    """A clip and what was wanted of it.

    Args:
        video_THWC: Its frames.
        first_frame_HWC: What it should begin with.
        instruction: What it should show.
        source: Dataset.
        episode: Recording that it was cut from; clips of one recording are never on both sides of a split.
        kind: "real", or what was done to it.
    """

    video_THWC: np.ndarray
    first_frame_HWC: np.ndarray
    instruction: str
    source: str
    episode: str
    kind: str = "real"


type Spoil = Callable[[BenchClip, BenchClip, np.random.Generator], BenchClip]


def frozen_tail(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Stop the picture for the last 40 to 60 % of the clip."""
    video_THWC, num = clip.video_THWC.copy(), len(clip.video_THWC)
    begin = int(num * random.uniform(0.4, 0.6))
    video_THWC[begin:] = video_THWC[begin]
    return replace(clip, video_THWC=video_THWC)


def frozen_middle(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Stop the picture for 40 % of the clip, from the first half on; then it goes on where it would have been."""
    video_THWC, num = clip.video_THWC.copy(), len(clip.video_THWC)
    begin = int(num * random.uniform(0.15, 0.35))
    video_THWC[begin : begin + int(0.4 * num)] = video_THWC[begin]
    return replace(clip, video_THWC=video_THWC)


def reversed_time(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Play it backwards, from the wanted first frame's clip's end."""
    return replace(clip, video_THWC=clip.video_THWC[::-1].copy())


def cut(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Go on with a clip of another scene from the middle third on."""
    return _joined(clip, other, random)


def other_end(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Go on with another recording of the same scene from the middle third on."""
    return _joined(clip, other, random)


def _joined(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    video_THWC, num = clip.video_THWC.copy(), len(clip.video_THWC)
    begin = int(num * random.uniform(0.33, 0.67))
    video_THWC[begin:] = other.video_THWC[begin:num]
    return replace(clip, video_THWC=video_THWC)


def wrong_first_frame(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Begin with another frame than was wanted."""
    return replace(clip, first_frame_HWC=other.first_frame_HWC)


def blur(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Lose sharpness over the first third, up to a Gaussian of 1.2 % of the height, and stay blurred."""
    num, sigma = len(clip.video_THWC), 0.012 * clip.video_THWC.shape[1]
    strengths = np.minimum(np.arange(num) / (num / 3), 1) * sigma
    frames = [cv2.GaussianBlur(f, (0, 0), s) if s > 0.1 else f for f, s in zip(clip.video_THWC, strengths, strict=True)]
    return replace(clip, video_THWC=np.stack(frames))


def flicker(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Change the brightness of every frame by up to 12 %, at random."""
    gains = 1 + random.uniform(-0.12, 0.12, len(clip.video_THWC))
    gains[0] = 1
    return replace(clip, video_THWC=_clipped(clip.video_THWC * gains[:, None, None, None]))


def shuffled(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Shuffle all frames but the first."""
    order = np.concatenate([[0], 1 + random.permutation(len(clip.video_THWC) - 1)])
    return replace(clip, video_THWC=clip.video_THWC[order])


def shuffled_middle(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Shuffle the frames of the middle third."""
    num = len(clip.video_THWC)
    order = np.arange(num)
    order[num // 3 : 2 * num // 3] = random.permutation(order[num // 3 : 2 * num // 3])
    return replace(clip, video_THWC=clip.video_THWC[order])


def other_instruction(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Ask for another task."""
    return replace(clip, instruction=other.instruction)


def teleport(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Move an object of an eighth of the picture to another place at once, in the middle third."""
    video_THWC, (num, height, width, _) = clip.video_THWC.copy(), clip.video_THWC.shape
    size, begin = (height // 8, width // 8), int(num * random.uniform(0.33, 0.67))
    detail = cv2.boxFilter(np.abs(cv2.Laplacian(cv2.cvtColor(video_THWC[begin], cv2.COLOR_RGB2GRAY), cv2.CV_32F)), -1,
                           size[::-1])  # fmt: skip
    inner = detail[size[0] : -size[0], size[1] : -size[1]]
    y, x = np.add(np.unravel_index(int(np.argmax(inner)), inner.shape), np.array(size) // 2)
    there_y, there_x = random.integers(0, height - size[0]), random.integers(0, width - size[1])
    patch = video_THWC[begin, y : y + size[0], x : x + size[1]].copy()
    background = np.median(video_THWC[begin, y - 2 : y + size[0] + 2, x - 2 : x + size[1] + 2], axis=(0, 1))
    video_THWC[begin:, y : y + size[0], x : x + size[1]] = background.astype(np.uint8)
    video_THWC[begin:, there_y : there_y + size[0], there_x : there_x + size[1]] = patch
    return replace(clip, video_THWC=video_THWC)


def color_drift(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Change the gain of each color channel steadily, by 12 % at the end."""
    num, direction = len(clip.video_THWC), random.permutation([0.12, 0.0, -0.12])
    gains = 1 + np.linspace(0, 1, num)[:, None] * direction
    return replace(clip, video_THWC=_clipped(clip.video_THWC * gains[:, None, None, :]))


def doubled_speed(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Show every second frame, then stay at the end, with the noise of an encoder."""
    num = len(clip.video_THWC)
    chosen = np.minimum(np.arange(num) * 2, num - 1)
    return replace(clip, video_THWC=clip.video_THWC[chosen])


def noise(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Add Gaussian noise of 20 levels to every frame but the first."""
    noisy = clip.video_THWC + random.normal(0, 20, clip.video_THWC.shape)
    noisy[0] = clip.video_THWC[0]
    return replace(clip, video_THWC=_clipped(noisy))


def rising_noise(clip: BenchClip, other: BenchClip, random: np.random.Generator) -> BenchClip:
    """Turn into noise over time, as a sampler does that drifts."""
    num = len(clip.video_THWC)
    share = np.linspace(0, 0.5, num)[:, None, None, None]
    return replace(
        clip, video_THWC=_clipped((1 - share) * clip.video_THWC + share * random.uniform(0, 255, clip.video_THWC.shape))
    )


# Kind -> function, and where the other clip comes from.
KINDS: dict[str, tuple[Spoil, str]] = {
    "frozen tail": (frozen_tail, "any"),
    "frozen middle": (frozen_middle, "any"),
    "cut": (cut, "other scene"),
    "wrong first frame": (wrong_first_frame, "other scene"),
    "shuffled": (shuffled, "any"),
    "blur": (blur, "any"),
    "noise": (noise, "any"),
    "flicker": (flicker, "any"),
    "rising noise": (rising_noise, "any"),
    "color drift": (color_drift, "any"),
    "teleporting object": (teleport, "any"),
    "reversed": (reversed_time, "any"),
    "shuffled middle": (shuffled_middle, "any"),
    "another episode's end": (other_end, "same scene"),
    "doubled speed": (doubled_speed, "any"),
    "another task's instruction": (other_instruction, "other scene"),
}


def spoiled(clip: BenchClip, kind: str, others: list[BenchClip], random: np.random.Generator) -> BenchClip | None:
    """Make a known-bad clip.

    Args:
        clip: A real one.
        kind: A key of `KINDS`.
        others: Real clips, for kinds that need another one of the same size and length.
        random: Decides the details.

    Returns:
        The clip; None where there is no other clip that the kind needs.
    """
    function, wanted = KINDS[kind]
    same_shape = [o for o in others if o.video_THWC.shape == clip.video_THWC.shape and o.episode != clip.episode]
    if wanted == "other scene":
        same_shape = [o for o in same_shape if o.instruction != clip.instruction]
    if wanted == "same scene":
        same_shape = [o for o in same_shape if o.instruction == clip.instruction]
    if not same_shape:
        return None
    other = same_shape[int(random.integers(len(same_shape)))]
    return replace(function(clip, other, random), kind=kind)


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
