"""Statistics against numpy, and against what lerobot computes from the same frames."""

from __future__ import annotations

import numpy as np
from lerobot.datasets.compute_stats import auto_downsample_height_width, get_feature_stats, sample_indices

from dreamgen.core.jobs import accepted_clips
from dreamgen.core.video import read_video
from export.statistics import VectorStatistics, image_histogram, sampled_frames, thinned


def test_vectors_in_parts_equal_numpy_on_the_whole():
    rows_ND = np.random.default_rng(0).normal(3, 2, size=(1000, 3)).astype(np.float32)
    statistics = VectorStatistics()
    for part in np.array_split(rows_ND, 7):
        statistics.add(part)
    figures, exact_ND = statistics.figures(), rows_ND.astype(np.float64)
    np.testing.assert_allclose(figures["mean"], exact_ND.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(figures["std"], exact_ND.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(figures["min"], exact_ND.min(axis=0))
    np.testing.assert_allclose(figures["q99"], np.quantile(exact_ND, 0.99, axis=0))
    assert figures["count"].tolist() == [1000]


def test_quantiles_of_many_rows_come_from_every_kth_row():
    rows_ND = np.random.default_rng(1).permutation(10_000)[:, None].astype(np.float64)
    statistics = VectorStatistics(max_rows=1000)
    for part in np.array_split(rows_ND, 37):
        statistics.add(part)
    figures = statistics.figures()
    np.testing.assert_allclose(figures["q50"], np.quantile(rows_ND[::16], 0.5, axis=0))
    assert abs(figures["q50"][0] - 5000) < 500
    assert figures["max"][0] == 9999 and figures["count"][0] == 10_000


def test_image_figures_equal_lerobots(exported):
    clip = accepted_clips(exported)[1]
    frames_TCHW = np.stack([frame.transpose(2, 0, 1) for frame in read_video(clip.video)])
    theirs = get_feature_stats(frames_TCHW, axis=(0, 2, 3), keepdims=True)
    ours = image_histogram(clip.video, clip.num_frames).figures()
    levels_TCHW = frames_TCHW / 255.0
    for stat in ("min", "max", "mean", "std"):
        exact = getattr(np, stat)(levels_TCHW, axis=(0, 2, 3)).reshape(3, 1, 1)
        np.testing.assert_allclose(ours[stat], exact, rtol=1e-9)
        # lerobot subtracts squares in float32, so its deviation is right to three digits only.
        np.testing.assert_allclose(ours[stat], np.squeeze(theirs[stat] / 255.0, axis=0), atol=5e-4)
    for stat in (
        "q01",
        "q10",
        "q50",
        "q90",
        "q99",
    ):  # lerobot's come from a histogram of its own: a level apart at most
        np.testing.assert_allclose(ours[stat], np.squeeze(theirs[stat] / 255.0, axis=0), atol=1.01 / 255)
    assert ours["mean"].shape == (3, 1, 1) and ours["count"].tolist() == [13]


def test_sampling_is_lerobots():
    for num_frames in (1, 5, 93, 100, 101, 1000, 20_000):
        assert sampled_frames(num_frames).tolist() == sample_indices(num_frames)
    for shape in ((432, 768), (299, 200), (768, 432), (300, 300)):
        frame_HWC = np.zeros((*shape, 3), np.uint8)
        theirs = auto_downsample_height_width(frame_HWC.transpose(2, 0, 1))
        assert thinned(frame_HWC).transpose(2, 0, 1).shape == theirs.shape
