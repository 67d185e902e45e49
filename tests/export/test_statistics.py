"""Statistics against numpy, and against what lerobot computes from the same frames."""

from __future__ import annotations

import functools
import operator

import cv2
import numpy as np
import pytest
from lerobot.datasets.compute_stats import (
    auto_downsample_height_width,
    compute_episode_stats,
    get_feature_stats,
    sample_indices,
)

from dreamgen.data.lerobot.image_statistics import ImageHistogram, downsampled, few_frames, sampled_frames
from dreamgen.data.lerobot.statistics import NUM_LEVELS, QUANTILES, Range, VectorCounts, vector_statistics
from dreamgen.data.video import read_video, write_video
from dreamgen.run.jobs import accepted_clips
from export.clip_video import inspect_clip
from tests.fixtures.runs import moving_square


def whole_range(rows_ND):
    return Range(rows_ND.min(axis=0).astype(np.float64), rows_ND.max(axis=0).astype(np.float64))


def test_vectors_in_parts_equal_numpy_on_the_whole():
    rows_ND = np.random.default_rng(0).normal(3, 2, size=(1000, 3)).astype(np.float32)
    within = whole_range(rows_ND)
    metrics = sum_up([VectorCounts.of(part, within) for part in np.array_split(rows_ND, 7)]).metrics(within)
    exact = vector_statistics(rows_ND)
    np.testing.assert_allclose(metrics["mean"], exact["mean"], rtol=1e-12)
    np.testing.assert_allclose(metrics["std"], exact["std"], rtol=1e-12)
    np.testing.assert_array_equal(metrics["min"], exact["min"])
    assert metrics["count"].tolist() == exact["count"].tolist() == [1000]
    half_a_level_D = (within.high_D - within.low_D) / (NUM_LEVELS - 1) / 2
    for name, share in QUANTILES.items():
        at_least_D = np.sort(rows_ND, axis=0)[int(np.ceil(share * 1000)) - 1]
        assert (np.abs(metrics[name] - at_least_D) <= half_a_level_D * 1.001).all(), name


def test_parts_in_any_number_and_order_have_the_same_quantiles():
    rows_ND = np.random.default_rng(1).normal(size=(997, 2))
    within = whole_range(rows_ND)
    whole = VectorCounts.of(rows_ND, within)
    parts = [VectorCounts.of(part, within) for part in np.array_split(rows_ND, 13)][::-1]
    np.testing.assert_array_equal(sum_up(parts).counts_DL, whole.counts_DL)


def test_values_that_are_levels_come_back_exactly():
    gripper_ND = np.array([[0.0, -3.5]] * 30 + [[1.0, -3.5]] * 70)
    within = whole_range(gripper_ND)
    metrics = VectorCounts.of(gripper_ND, within).metrics(within)
    assert metrics["q10"].tolist() == [0.0, -3.5] and metrics["q50"].tolist() == [1.0, -3.5]


def sum_up(parts):
    return functools.reduce(operator.add, parts)


def test_image_statistics_equal_lerobots(exported):
    clip = accepted_clips(exported)[1]
    frames_TCHW = np.stack([frame.transpose(2, 0, 1) for frame in read_video(clip.video)])
    theirs = get_feature_stats(frames_TCHW, axis=(0, 2, 3), keepdims=True)
    ours = inspect_clip(clip.video, clip.job.fps).image.metrics()
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


def lerobots_image_statistics(video_THWC, folder):
    """What lerobot's own writer records of an episode's images, which it takes as files."""
    paths = [str(folder / f"{t:04d}.png") for t in range(len(video_THWC))]
    for path, frame_HWC in zip(paths, video_THWC, strict=True):
        assert cv2.imwrite(path, frame_HWC[..., ::-1])
    feature = {"dtype": "video", "shape": list(video_THWC.shape[1:]), "names": ["height", "width", "channels"]}
    return compute_episode_stats({"picture": paths}, {"picture": feature})["picture"]


@pytest.mark.parametrize("num_frames", [29, 93, 140])
def test_image_statistics_equal_lerobots_of_the_same_episode(tmp_path, num_frames):
    write_video(tmp_path / "clip.mp4", moving_square(3, num_frames, 96, 320), 16)
    video_THWC = read_video(tmp_path / "clip.mp4")
    theirs = lerobots_image_statistics(video_THWC, tmp_path)
    exact, few = (inspect_clip(tmp_path / "clip.mp4", 16, as_lerobot).image.metrics() for as_lerobot in (True, False))
    assert exact.keys() == theirs.keys()
    for stat, values in theirs.items():
        assert exact[stat].shape == values.shape == few[stat].shape
        # lerobot adds up millions of pixels and their squares in float32: it is right to two digits only.
        atol = 0.02 if stat in ("mean", "std") else 5e-4
        np.testing.assert_allclose(exact[stat], values, atol=atol, err_msg=stat)
    taken_TCHW = np.stack([auto_downsample_height_width(video_THWC[t].transpose(2, 0, 1))
                           for t in sample_indices(num_frames)]) / 255.0  # fmt: skip
    for stat in ("mean", "std"):
        np.testing.assert_allclose(exact[stat].ravel(), getattr(taken_TCHW, stat)(axis=(0, 2, 3)), rtol=1e-9)
    # Few frames: the same weight when episodes are added up, and statistics that are close.
    assert few["count"] == theirs["count"] == min(num_frames, 100)
    for stat in ("mean", "std"):
        assert (np.abs(few[stat] - exact[stat]) < 0.05 * exact["std"]).all()


def test_few_frames_of_real_demonstrations_stay_near_lerobots_statistics(tmp_path, real_demos):
    video_THWC = read_video(min(real_demos.rglob("*.mp4")))
    image = ImageHistogram.empty()
    for index in few_frames(len(video_THWC)):
        image = image.with_frame(video_THWC[index])
    theirs, ours = lerobots_image_statistics(video_THWC, tmp_path), image.metrics()
    for stat in ("mean", "std"):
        np.testing.assert_allclose(ours[stat], theirs[stat], atol=0.01, err_msg=stat)
    for stat in ("q01", "q10", "q50", "q90", "q99"):
        np.testing.assert_allclose(ours[stat], theirs[stat], atol=0.03, err_msg=stat)


def test_frames_are_chosen_as_lerobot_chooses_them():
    for num_frames in (1, 5, 16, 17, 93, 100, 101, 400, 470, 20_000, 3_000_000):
        assert sampled_frames(num_frames).tolist() == sample_indices(num_frames)


def test_few_frames_spread_over_the_whole_clip():
    for num_frames in (1, 5, 16, 17, 93, 400, 20_000):
        wanted = few_frames(num_frames)
        assert wanted[0] == 0 and wanted[-1] == num_frames - 1 and len(set(wanted.tolist())) == len(wanted)
        assert len(wanted) >= min(16, num_frames)


def test_images_are_downsampled_as_lerobot_does():
    for shape in ((432, 768), (299, 200), (768, 432), (300, 300)):
        frame_HWC = np.zeros((*shape, 3), np.uint8)
        theirs = auto_downsample_height_width(frame_HWC.transpose(2, 0, 1))
        assert downsampled(frame_HWC).transpose(2, 0, 1).shape == theirs.shape
