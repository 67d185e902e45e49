"""A VAE learns to reconstruct a training set, resumes exactly, and is written as diffusers saves it."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan

from dreamgen.config.settings import FinetuneVaeSettings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.vae_training import make_norm_act
from finetune.training_log import read_steps
from finetune.vae import finetune_vae
from finetune.vae.losses import detail, motion, pixel_weights, psnr_db
from tests.finetune.conftest import training_settings, write_training_set


@pytest.fixture
def settings(world, tmp_path):
    write_training_set(tmp_path, num_clips=3)
    (tmp_path / "sizes.yaml").write_text("vae: {base_dim: 4, z_dim: 16, dim_mult: [1, 2, 2, 2], num_res_blocks: 1}\n")
    tune = FinetuneVaeSettings(
        config=str(tmp_path / "sizes.yaml"), num_steps=16, batch_size=2, learning_rate=1e-2, warmup_steps=2,
        validation_clips=1, validate_every=100, log_every=1, checkpoint_every=6, num_workers=0, ema_decay=0.8,
    )  # fmt: skip
    return replace(training_settings(tmp_path, world), finetune_vae=tune)


def test_it_learns_and_is_a_vae_of_diffusers(settings, tmp_path):
    result = finetune_vae(settings)
    losses = [float(row["loss"]) for row in read_steps(tmp_path / "finetune_vae/loss.csv")]
    assert len(losses) == 16 and losses[-1] < 0.8 * losses[0]
    last = read_steps(tmp_path / "finetune_vae/validation.csv")[-1]
    assert last["step"] == "16" and float(last["psnr_db"]) > 8
    assert float(last["psnr_db"]) == pytest.approx(result.metrics["psnr_db"], abs=1e-3)
    config = json.loads((tmp_path / "vae/config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 16 and min(config["latents_std"]) > 0
    assert config["latents_mean"] != AutoencoderKLWan(base_dim=8).config["latents_mean"]
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "vae")
    assert vae.config["base_dim"] == 4 and (tmp_path / "vae/held_out.png").is_file()
    with pytest.raises(UserError, match="already exists"):
        finetune_vae(settings)


def test_a_resumed_training_ends_with_the_same_weights(settings, tmp_path, world):
    finetune_vae(settings)
    whole = AutoencoderKLWan.from_pretrained(tmp_path / "vae").state_dict()
    (tmp_path / "vae").rename(tmp_path / "first")
    checkpoints = tmp_path / "finetune_vae/checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-000006", "step-000012"]
    result = finetune_vae(settings, resume=True)
    assert "resumed from" in result.notes[0]
    again = AutoencoderKLWan.from_pretrained(tmp_path / "vae").state_dict()
    assert all(torch.equal(whole[name], value) for name, value in again.items())


def test_the_time_ends_a_training_at_its_lowest_rate(settings, tmp_path):
    limited = replace(settings.finetune_vae, config=None, max_minutes=1e-6)
    result = finetune_vae(replace(settings, finetune_vae=limited))
    assert result.metrics["num_steps"] == 1 and (tmp_path / "vae/config.json").is_file()


def test_small_and_moving_things_weigh_more(settings):
    video_BCTHW = torch.zeros(1, 3, 5, 32, 32)
    video_BCTHW[:, 0, :, 4:7, 4:7] = 1.0  # small and still
    video_BCTHW[:, 1, 2:, 20:23, 20:23] = 1.0  # appears
    weight_THW = pixel_weights(video_BCTHW, settings.finetune_vae)[0, 0]
    assert weight_THW[0, 5, 5] > 2 * weight_THW[0, 15, 15]
    assert weight_THW[4, 21, 21] > weight_THW[0, 5, 5]
    assert weight_THW.mean() == pytest.approx(1)
    assert motion(video_BCTHW)[0, 0, :, 5, 5].max() == 0 and detail(video_BCTHW)[0, 0, 0, 5, 5] == 1
    wrong_BCTHW = video_BCTHW.clone()
    wrong_BCTHW[:, 0, :, 4:7, 4:7] = 0.0
    whole, moving, small = psnr_db(wrong_BCTHW, video_BCTHW)[0].tolist()
    assert small < whole < moving


def test_the_faster_norm_is_the_stock_one(settings):
    vae = AutoencoderKLWan(base_dim=8)
    norm = vae.encoder.norm_out
    torch.nn.init.normal_(norm.gamma)
    x_BCTHW = torch.randn(1, norm.gamma.shape[0], 3, 4, 4)
    wanted = torch.nn.functional.silu(norm(x_BCTHW))
    torch.testing.assert_close(make_norm_act(compiled=False)(norm, x_BCTHW), wanted)
