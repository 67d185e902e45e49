"""The residual of a clip after the VAE of the run's model, which is measured where it is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import dreamgen.data.video as video_module
from dreamgen.config.settings import CurateSettings, LabelSettings, ModelSettings
from dreamgen.curate.measure import MEASURE, measure_clip
from dreamgen.curate.scores.vae_residual import vae_residual
from dreamgen.curate.stage import curate
from dreamgen.data.clip_context import WINDOW_FRAMES, ClipContext
from dreamgen.models.cosmos_predict25.round_trip import vae_round_trip
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.finetune.square_world import square_episode, square_settings
from tests.generate.clips import write_generated_run

MINI = ModelSettings(path="mini", revision=None, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    source = resolve_world_model(MINI, RunFolder(tmp_path_factory.mktemp("model")))
    return vae_round_trip(source, torch.device("cpu"))


@pytest.fixture
def run(tmp_path):
    """A clip of a square, and the same after noise."""
    plain_THWC = square_episode(0, 17)[0]
    noise_THWC = np.random.default_rng(0).normal(0, 40, plain_THWC.shape)
    noisy_THWC = (plain_THWC + noise_THWC).clip(0, 255).astype(np.uint8)
    return RunFolder(tmp_path), write_generated_run(tmp_path, [plain_THWC, noisy_THWC])


def settings_of(run, wanted, **label):
    settings = replace(square_settings(run.root), model=MINI, label=LabelSettings(**label))
    return replace(settings, curate=CurateSettings(measure_vae_residual=wanted))


def values(run, jobs):
    records = read_journal(run.journal, MEASURE)
    return [records[job.clip_id].metrics.get("vae_residual") for job in jobs]


def test_the_worst_window_counts():
    black, gray = np.zeros((5, 2, 2, 3), np.uint8), np.full((5, 2, 2, 3), 30, np.uint8)
    assert vae_residual([black, black], [black, gray]) == 30
    half = black.copy()
    half[:, 0] = 30
    assert vae_residual([black], [half]) == pytest.approx(30 / 2**0.5)
    assert vae_residual([], []) is None


def test_windows_begin_and_end_the_clip_and_are_kept_while_it_is_decoded(run, monkeypatch):
    run, (job, _) = run
    decoded = []
    decode_frames = video_module.decode_frames
    monkeypatch.setattr(
        "dreamgen.data.clip_context.decode_frames", lambda *a, **b: decoded.append(a) or decode_frames(*a, **b)
    )
    clip = ClipContext(run, job, keeps_windows=True)
    video_THWC = clip.video_THWC
    assert len(clip.windows) == 3 and all(len(window) == WINDOW_FRAMES for window in clip.windows)
    assert np.array_equal(clip.windows[0], video_THWC[:5]) and np.array_equal(clip.windows[-1], video_THWC[-5:])
    assert clip.num_frames == 17 and len(decoded) == 1
    alone = ClipContext(run, job)
    assert all(map(np.array_equal, alone.windows, clip.windows)) and len(decoded) == 2


def test_large_frames_are_reduced_and_short_clips_have_no_window(tmp_path):
    large_THWC = np.zeros((9, 304, 400, 3), np.uint8)
    jobs = write_generated_run(tmp_path, [large_THWC, large_THWC[:4]])
    large, short = (ClipContext(RunFolder(tmp_path), job) for job in jobs)
    assert {window.shape for window in large.windows} == {(5, 192, 256, 3)}
    assert short.windows == []


def test_noise_is_not_reproduced(run, trip):
    run, jobs = run
    residuals = []
    for job in jobs:
        clip = ClipContext(run, job)
        clip.vae_trip = trip
        residuals.append(measure_clip(clip).metrics["vae_residual"])
    assert 0 < residuals[0] < residuals[1]


def test_it_is_measured_only_where_it_is_asked_for_and_then_kept(run):
    run, jobs = run
    curate(settings_of(run, wanted=False))
    assert values(run, jobs) == [None, None]
    curate(settings_of(run, wanted=True))
    found = values(run, jobs)
    assert None not in found
    curate(settings_of(run, wanted=False))
    assert values(run, jobs) == found


@pytest.mark.slow
def test_values_do_not_depend_on_the_number_of_workers(run):
    run, jobs = run
    found = []
    for num in (1, 2):
        curate(settings_of(run, wanted=True, num_workers=num))
        found.append(values(run, jobs))
        for path in run.journal.glob(f"{MEASURE}*"):
            path.unlink()
    assert found[0] == found[1] and None not in found[0]
