"""Thresholds from demonstrations accept what the VAE of the run's model makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from dreamgen.config.settings import CurateSettings, ModelSettings
from dreamgen.curate.measure import measure_clip
from dreamgen.curate.real_clips import real_clips
from dreamgen.curate.scores.first_frame_psnr_db import psnr_db
from dreamgen.curate.stage import curate
from dreamgen.curate.verdict import score_reasons
from dreamgen.data.clip_context import ClipContext
from dreamgen.models.cosmos_predict25.round_trip import vae_round_trip
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder
from tests.finetune.square_world import square_settings, write_square_training_set
from tests.generate.clips import write_generated_run


@pytest.mark.slow
def test_thresholds_accept_demonstrations_after_the_models_vae(tmp_path):
    write_square_training_set(tmp_path, num_episodes=5, num_frames=17)
    run = RunFolder(tmp_path)
    settings = replace(square_settings(tmp_path), model=ModelSettings(path="mini", revision=None, device="cpu"))
    limits = {}
    for through_vae in (False, True):
        changed = replace(settings, curate=CurateSettings(calibrate_through_vae=through_vae))
        result = curate(changed, calibrate=True)
        assert result.metrics["num_clips"] == 5 and result.metrics["num_after_vae"] == (5 if through_vae else 0)
        limits[through_vae] = yaml.safe_load(result.outputs["thresholds"].read_text())["curate"]
    trip = vae_round_trip(resolve_world_model(settings.model, run), torch.device("cpu"))
    rejected = dict.fromkeys(limits, 0)
    for number, clip in enumerate(real_clips(settings, run)):
        again_THWC = trip(clip.video_THWC)
        assert again_THWC.shape == clip.video_THWC.shape and again_THWC.dtype == np.uint8
        assert (psnr_db(again_THWC, clip.video_THWC) or 0) > 15, "it is the same clip"
        folder = tmp_path / f"again_{number}"
        (job,) = write_generated_run(folder, [again_THWC], [clip.video_THWC[0]])
        measured = measure_clip(ClipContext(RunFolder(folder), job))
        for through_vae, values in limits.items():
            rejected[through_vae] += bool(score_reasons(job, measured.metrics, CurateSettings(**values)))
    assert rejected[True] == 0 < rejected[False]
