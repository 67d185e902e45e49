"""Each score sees its own kind of fault and nothing in real video; what was measured is not measured again."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from bad_clips import KINDS, BenchClip, spoiled

from dreamgen.config.settings import CurateSettings
from dreamgen.curate.measure import INPUTS, measure_clip
from dreamgen.curate.scores.color_drift import color_drift
from dreamgen.curate.scores.disorder import disorder
from dreamgen.curate.scores.flicker import flicker
from dreamgen.curate.scores.frozen import frozen_share
from dreamgen.curate.scores.jump import jump
from dreamgen.curate.scores.state_consistency import state_consistency
from dreamgen.curate.stage import curate
from dreamgen.curate.verdict import curate_clip
from dreamgen.data import video as video_module
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.demonstration_motion import change_over_demonstrations, demonstration_motion
from dreamgen.data.frame_features import detail_of
from dreamgen.data.trajectory import Trajectory, write_trajectory
from dreamgen.demo.run import DATA
from dreamgen.extensions.score import SCORES, Score, Threshold
from dreamgen.run.run_folder import RunFolder
from tests.curate.test_curate import moving_square, settings_of
from tests.generate.clips import write_generated_run

NUM_FRAMES = 25
REJECTED_BY = {  # kind of fault -> the reasons that a verdict must give one of
    "frozen tail": ("frozen",), "frozen middle": ("frozen",), "shuffled": ("no order",), "blur": ("blurred",),
    "noise": ("noise",), "flicker": ("flicker",), "wrong first frame": ("first frame differs",),
    "rising noise": ("noise",), "color drift": ("colors drift",), "shuffled middle": ("no order",),
}  # fmt: skip


def demo_clips(num: int) -> list[BenchClip]:
    """The first recordings that ship with the demo."""
    frames = video_module.iter_frames(next((DATA / "demonstrations").rglob("*.mp4")))
    video_THWC = np.stack([frame for _, frame in zip(range(num * NUM_FRAMES), frames, strict=False)])
    return [BenchClip(v, v[0], "open the drawer", "demo", str(n)) for n, v in enumerate(np.split(video_THWC, num))]


def records_of(root, clips):
    jobs = write_generated_run(root, [clip.video_THWC for clip in clips], [clip.first_frame_HWC for clip in clips])
    return [curate_clip(ClipContext(RunFolder(root), job), CurateSettings(), {}) for job in jobs]


def test_recordings_are_accepted_and_each_fault_gives_its_reason(tmp_path):
    clips = demo_clips(3)
    assert [record.reason for record in records_of(tmp_path / "good", clips)] == [None] * 3
    scene = replace(clips[0], video_THWC=clips[0].video_THWC[:, :, ::-1], instruction="other", episode="mirrored")
    others = [*clips, replace(scene, first_frame_HWC=scene.video_THWC[0])]
    for kind, reasons in REJECTED_BY.items():
        bad = spoiled(clips[1], kind, others, np.random.default_rng(0))
        (record,) = records_of(tmp_path / kind, [bad])
        given = (record.reason or "").split("; ")
        assert any(text.startswith(reason) for text in given for reason in reasons), f"{kind}: {given}"


def test_every_kind_of_the_benchmark_changes_the_clip():
    clips = demo_clips(3)
    others = [*clips, replace(clips[0], video_THWC=clips[2].video_THWC // 2, instruction="other", episode="dark",
                              first_frame_HWC=clips[2].video_THWC[0] // 2)]  # fmt: skip
    for kind in KINDS:
        bad = spoiled(clips[1], kind, others, np.random.default_rng(0))
        assert bad.kind == kind and bad.video_THWC.shape == clips[1].video_THWC.shape
        same = np.array_equal(bad.video_THWC, clips[1].video_THWC)
        assert same == (kind in ("wrong first frame", "another task's instruction")), kind


def gray(values_T) -> np.ndarray:
    """Frames of 64 x 64 pixels, each of one gray."""
    return np.repeat(np.repeat(np.asarray(values_T, np.float32)[:, None, None], 64, 1), 64, 2)


def test_frozen_is_the_longest_still_part():
    assert frozen_share(gray([0, 50, 50, 50, 50, 100, 100, 150, 200])) == pytest.approx(3 / 8)
    assert frozen_share(gray([0, 1, 2, 3, 4, 5, 6, 7, 8])) == pytest.approx(2 / 8), "slow change adds up"
    assert frozen_share(gray([7] * 5)) == 1 and frozen_share(gray([7])) == 0


def test_disorder_is_the_way_over_the_direct_way():
    assert disorder(gray(np.arange(20) * 5)) == pytest.approx(1)
    assert disorder(gray([0, 10] * 10)) > 10, "the way back and forth leads nowhere"
    assert disorder(gray([0, 0.05] * 10)) < 1, "what an encoder makes of a still picture is not disorder"
    assert disorder(gray([0, 1])) == 0


def test_flicker_ignores_a_steady_change_of_exposure():
    assert flicker(gray(8 * 1.02 ** np.arange(20) * 10 - 8)) == pytest.approx(0, abs=1e-3)
    assert flicker(gray([92, 102] * 10)) == pytest.approx(2 * 100 * np.log(110 / 100), rel=1e-3)


def test_jump_is_what_changes_at_once_beyond_what_is_usual():
    frames = gray([0] * 10)
    frames[5:, :32] = 100
    assert jump(frames) == pytest.approx(50)
    assert jump(gray(np.arange(10) * 20)) == 0 and jump(gray([0, 99])) == 0


def test_color_drift_is_the_distance_of_the_median_pixel():
    first = np.full((64, 64, 3), 128, np.uint8)
    red = first.copy()
    red[..., 0] = 158
    moved = first.copy()
    moved[:20] = (255, 0, 0)
    lab = cv2.cvtColor(red.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    assert color_drift(np.stack([first, red])) == pytest.approx(float(np.hypot(lab[1], lab[2])), abs=0.01)
    assert color_drift(np.stack([first, moved])) == pytest.approx(0, abs=0.01), "what moves does not count"


def test_noise_is_measured_in_gray_levels():
    ramp = np.tile(np.linspace(50, 200, 256), (256, 1))
    for sigma in (5, 20):
        noisy = ramp + np.random.default_rng(0).normal(0, sigma, ramp.shape)
        assert detail_of(noisy.round().clip(0, 255).astype(np.uint8))[1] == pytest.approx(sigma, rel=0.1)


def test_the_light_pass_gives_what_the_whole_frames_give(tmp_path):
    (job,) = write_generated_run(tmp_path, [moving_square()])
    light, whole = ClipContext(RunFolder(tmp_path), job), ClipContext(RunFolder(tmp_path), job)
    small_THWC = np.stack([cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in whole.video_THWC])
    difference = np.abs(light.features.small_THWC.astype(int) - small_THWC)
    assert difference.mean() < 3 and np.array_equal(light.features.first_HWC, whole.video_THWC[0])
    for name, values in vars(light.features).items():
        assert np.array_equal(values, getattr(whole.features, name)), name


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names: list[str] = []
    decode_frames = video_module.decode_frames

    def noting(path, **options):
        names.append(Path(path).stem)
        return decode_frames(path, **options)

    monkeypatch.setattr("dreamgen.data.clip_context.decode_frames", noting)
    return names


def test_what_was_measured_is_not_measured_again(tmp_path, decoded):
    jobs = write_generated_run(tmp_path, [moving_square(), moving_square(1)])
    curate(settings_of(tmp_path))
    assert sorted(decoded) == sorted(job.clip_id for job in jobs)
    decoded.clear()
    assert curate(settings_of(tmp_path, min_motion=200.0)).metrics["num_rejected"] == 2
    assert curate(settings_of(tmp_path)).metrics["num_accepted"] == 2
    assert decoded == [], "other thresholds read no clip"
    run = RunFolder(tmp_path)
    shutil.copy(run.clip_file(jobs[1].clip_id), run.clip_file(jobs[0].clip_id))
    curate(settings_of(tmp_path))
    assert decoded == [jobs[0].clip_id], "a clip that changed is measured again"


def test_only_a_score_of_another_version_is_measured_again(tmp_path):
    (job,) = write_generated_run(tmp_path, [moving_square()])
    counts = []
    for version in (1, 1, 2):
        score = Score(
            name="counted", summary="x", rejection="x", version=version,
            threshold=Threshold(setting="max_counted", default=None, help="x"),
            measure=lambda clip: counts.append(1) or len(counts),
        )  # fmt: skip
        SCORES.register("counted", score)
        try:
            first = measure_clip(ClipContext(RunFolder(tmp_path), job))
            again = measure_clip(ClipContext(RunFolder(tmp_path), job, first))
            newer = replace(first, metrics={**first.metrics, "versions": {**first.metrics["versions"], "counted": 0}})
            assert again is first
            part = measure_clip(ClipContext(RunFolder(tmp_path), job, newer))
            assert part.metrics["counted"] == first.metrics["counted"] + 1
            assert part.metrics["motion"] == first.metrics["motion"] and part.metrics[INPUTS] == first.metrics[INPUTS]
        finally:
            SCORES.unregister("counted")


def trained(root: Path, actions: list[np.ndarray], states: list[np.ndarray]) -> None:
    """Write the trajectories of a training set."""
    for number, (action_TA, state_TS) in enumerate(zip(actions, states, strict=True)):
        path = root / "trajectories" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_trajectory(path, Trajectory(len(action_TA), state_TS, action_TA))


def smooth_actions(seed: int, num: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Relative actions of two joints and a third that never moves, and the states that they lead to."""
    random = np.random.default_rng(seed)
    action_TA = np.cumsum(np.cumsum(random.normal(0, 0.01, (num, 2)), axis=0), axis=0)
    state_TS = np.concatenate([np.zeros((1, 2)), np.cumsum(action_TA, axis=0)[:-1]])
    state_TS += random.normal(0, 1e-3, state_TS.shape)
    return np.column_stack([action_TA, np.ones(num)]).astype(np.float32), state_TS.astype(np.float32)


def test_actions_are_compared_with_the_largest_of_the_demonstrations(tmp_path):
    pairs = [smooth_actions(seed) for seed in range(8)]
    trained(tmp_path, *map(list, zip(*pairs, strict=True)))
    motion = demonstration_motion(tmp_path)
    actions = [action_TA.astype(float) for action_TA, _ in pairs]
    assert motion.speed_A == pytest.approx(np.max([np.abs(np.diff(a, axis=0)).max(0) for a in actions], axis=0))
    assert max(change_over_demonstrations(a, motion, 1) for a in actions) == pytest.approx(1)
    assert max(change_over_demonstrations(a, motion, 3) for a in actions) == pytest.approx(1)
    leaping = actions[0].copy()
    leaping[20:, 0] += 5 * motion.speed_A[0]
    assert 4 < change_over_demonstrations(leaping, motion, 1) < 6
    shaking = actions[0] + 20 * motion.jerk_A * (-1.0) ** np.arange(40)[:, None]
    assert change_over_demonstrations(shaking, motion, 3) > 100
    assert demonstration_motion(tmp_path / "none") is None


def test_errors_of_labels_are_no_leaps_where_the_demonstrations_do_not_move(tmp_path):
    pairs = [smooth_actions(seed) for seed in range(8)]
    trained(tmp_path, *map(list, zip(*pairs, strict=True)))
    motion, error_A = demonstration_motion(tmp_path), np.array([0.0, 0.0, 0.02])
    action_TA = pairs[0][0].astype(float)
    action_TA[:, 2] += np.random.default_rng(0).normal(0, 0.02 / np.sqrt(2 / np.pi), 40)  # its mean size is 0.02
    for order in (1, 3):
        others = change_over_demonstrations(pairs[0][0], motion, order)
        assert others <= change_over_demonstrations(action_TA, motion, order, error_A) < 1.5
        opens_TA = action_TA.copy()
        opens_TA[20:, 2] -= 2
        assert change_over_demonstrations(opens_TA, motion, order, error_A) > 5


def test_states_follow_from_actions_as_in_the_demonstrations(tmp_path):
    pairs = [smooth_actions(seed) for seed in range(8)]
    trained(tmp_path, *map(list, zip(*pairs, strict=True)))
    motion = demonstration_motion(tmp_path)
    action_TA, state_TS = smooth_actions(99)
    assert state_consistency(state_TS, action_TA, motion) < 2
    assert state_consistency(state_TS[::-1], action_TA, motion) > 5, "time runs backwards"
    assert state_consistency(state_TS, smooth_actions(100)[0], motion) > 5, "actions of something else"


def test_errors_of_labels_contradict_no_action_where_the_demonstrations_do_not_move(tmp_path):
    actions, states = zip(*(smooth_actions(seed) for seed in range(8)), strict=True)
    still = [np.random.default_rng(seed).normal(0, 1e-6, (40, 4)) for seed in range(8)]  # most of what is measured
    trained(tmp_path, list(actions), [np.column_stack(x).astype(np.float32) for x in zip(states, still, strict=True)])
    motion = demonstration_motion(tmp_path)
    action_TA, state_TS = smooth_actions(99)
    label_TS = np.column_stack([state_TS, np.random.default_rng(99).normal(0, 0.002, (40, 4))])
    error_S = np.array([0.001, 0.001, *[0.002 / np.sqrt(np.pi / 2)] * 4])
    assert state_consistency(label_TS, action_TA, motion) > 100
    assert state_consistency(label_TS, action_TA, motion, error_S) < 2
    label_TS[:, 2:] *= 10
    assert state_consistency(label_TS, action_TA, motion, error_S) > 10
