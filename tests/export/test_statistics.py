"""Statistics against numpy, and against what lerobot computes from the same frames."""

from __future__ import annotations

import functools
import operator

import numpy as np
from lerobot.datasets.compute_stats import auto_downsample_height_width, get_feature_stats

from dreamgen.core.jobs import accepted_clips
from dreamgen.core.video import read_video, write_video
from export.clip_video import look_at_clip
from export.image_statistics import sampled_frames, thinned
from export.statistics import NUM_LEVELS, QUANTILES, Range, VectorCounts, vector_figures
from tests.fixtures.runs import moving_square


def whole_range(rows_ND):
    return Range(rows_ND.min(axis=0).astype(np.float64), rows_ND.max(axis=0).astype(np.float64))


def test_vectors_in_parts_equal_numpy_on_the_whole():
    rows_ND = np.random.default_rng(0).normal(3, 2, size=(1000, 3)).astype(np.float32)
    within = whole_range(rows_ND)
    figures = sum_up([VectorCounts.of(part, within) for part in np.array_split(rows_ND, 7)]).figures(within)
    exact = vector_figures(rows_ND)
    np.testing.assert_allclose(figures["mean"], exact["mean"], rtol=1e-12)
    np.testing.assert_allclose(figures["std"], exact["std"], rtol=1e-12)
    np.testing.assert_array_equal(figures["min"], exact["min"])
    assert figures["count"].tolist() == exact["count"].tolist() == [1000]
    half_a_level_D = (within.high_D - within.low_D) / (NUM_LEVELS - 1) / 2
    for name, share in QUANTILES.items():
        at_least_D = np.sort(rows_ND, axis=0)[int(np.ceil(share * 1000)) - 1]
        assert (np.abs(figures[name] - at_least_D) <= half_a_level_D * 1.001).all(), name


def test_parts_in_any_number_and_order_have_the_same_quantiles():
    rows_ND = np.random.default_rng(1).normal(size=(997, 2))
    within = whole_range(rows_ND)
    whole = VectorCounts.of(rows_ND, within)
    parts = [VectorCounts.of(part, within) for part in np.array_split(rows_ND, 13)][::-1]
    np.testing.assert_array_equal(sum_up(parts).counts_DL, whole.counts_DL)


def test_values_that_are_levels_come_back_exactly():
    gripper_ND = np.array([[0.0, -3.5]] * 30 + [[1.0, -3.5]] * 70)
    within = whole_range(gripper_ND)
    figures = VectorCounts.of(gripper_ND, within).figures(within)
    assert figures["q10"].tolist() == [0.0, -3.5] and figures["q50"].tolist() == [1.0, -3.5]


def sum_up(parts):
    return functools.reduce(operator.add, parts)


def test_image_figures_equal_lerobots(exported):
    clip = accepted_clips(exported)[1]
    frames_TCHW = np.stack([frame.transpose(2, 0, 1) for frame in read_video(clip.video)])
    theirs = get_feature_stats(frames_TCHW, axis=(0, 2, 3), keepdims=True)
    ours = look_at_clip(clip.video, clip.job.fps).image.figures()
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


def test_a_sample_of_a_long_clip_stays_near_all_of_its_frames(tmp_path):
    video_THWC = moving_square(3, 93, 96, 320)
    write_video(tmp_path / "long.mp4", video_THWC, 16)
    clip = look_at_clip(tmp_path / "long.mp4", 16)
    assert clip.info.num_frames == 93 and clip.image.num_sampled == 16
    frames_TCHW = np.stack([auto_downsample_height_width(f.transpose(2, 0, 1)) for f in read_video(clip.info.path)])
    exact_C = (frames_TCHW / 255.0).mean(axis=(0, 2, 3))
    spread_C = (frames_TCHW / 255.0).std(axis=(0, 2, 3))
    figures = clip.image.figures()
    assert (np.abs(figures["mean"].ravel() - exact_C) < 0.05 * spread_C).all()
    assert (np.abs(figures["std"].ravel() - spread_C) < 0.05 * spread_C).all()


def test_sampled_frames_spread_over_the_whole_clip():
    for num_frames in (1, 5, 16, 17, 93, 400, 20_000):
        wanted = sampled_frames(num_frames)
        assert wanted[0] == 0 and wanted[-1] == num_frames - 1 and len(set(wanted.tolist())) == len(wanted)
        assert len(wanted) >= min(16, num_frames)


def test_pictures_are_thinned_as_lerobot_does():
    for shape in ((432, 768), (299, 200), (768, 432), (300, 300)):
        frame_HWC = np.zeros((*shape, 3), np.uint8)
        theirs = auto_downsample_height_width(frame_HWC.transpose(2, 0, 1))
        assert thinned(frame_HWC).transpose(2, 0, 1).shape == theirs.shape
