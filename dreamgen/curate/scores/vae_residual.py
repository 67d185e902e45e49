"""What the VAE of the run's model cannot reproduce of a clip.

Unit: gray levels. Cost: far more than all other scores together, so `curate.measure_vae_residual` turns it on: each
worker loads the VAE, and three windows of five frames, at most 256 pixels large, go through it.

A VAE reproduces what is like its training video, so a large residual is a sign of something else (reconstruction error
as a measure of novelty: Sakurada and Yairi, "Anomaly detection using autoencoders with nonlinear dimensionality
reduction", 2014). A small one says little: a generated clip was decoded by this VAE, so it is close to what the VAE can
reproduce, whatever it shows.

Axes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamgen.extensions.score import Score, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.data.clip_context import ClipContext


def vae_residual(windows: Sequence[np.ndarray], returned: Sequence[np.ndarray]) -> float | None:
    """Compare windows of a clip with what the VAE makes of them.

    The root of the mean squared difference over the pixels and channels of a window, the largest of all windows.

    Args:
        windows: video_THWC of each, uint8, 0-255, RGB.
        returned: The same after the VAE.

    Returns:
        Gray levels, 0 to 255; None without windows.
    """
    import numpy as np

    def rms(before_THWC: np.ndarray, after_THWC: np.ndarray) -> float:
        return float(np.sqrt(np.square(before_THWC.astype(np.float32) - after_THWC).mean()))

    return max(map(rms, windows, returned), default=None)


def _measure(clip: ClipContext) -> float | None:
    trip = clip.vae_trip
    if trip is None:
        return None
    return vae_residual(clip.windows, [trip(window_THWC) for window_THWC in clip.windows])


SCORE = Score(
    name="vae_residual",
    unit="gray levels",
    summary="what the VAE of the run's model cannot reproduce of a few frames (with curate.measure_vae_residual)",
    threshold=Threshold(
        setting="max_vae_residual", default=None, low=0.0, high=255.0,
        help="difference, in gray levels, of a few frames from what the model's VAE makes of them, above which a clip "
        "is rejected; measured with measure_vae_residual",
    ),
    rejection="unlike video that the VAE knows: {value:.1f} gray levels > {limit:g}",
    measure=_measure,
    needs_vae=True,
    is_calibrated=False,
)  # fmt: skip
