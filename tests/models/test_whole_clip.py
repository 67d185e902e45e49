"""Encoding and decoding all frames of a clip at once gives what diffusers gives piece by piece."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from dreamgen.models.cosmos_predict25 import whole_clip
from dreamgen.models.cosmos_predict25.latents import decode_video, use_channels_last, vae_means
from dreamgen.models.cosmos_predict25.random_models import model_sizes

SIZES = {
    "real blocks": {"base_dim": 4},
    "wide below": {"base_dim": 4, "dim_mult": [1, 4, 8, 8], "num_res_blocks": 1},
    "other times": {"base_dim": 4, "temperal_downsample": [True, True, False], "decoder_base_dim": 8},
}


def make_vae(**sizes) -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**sizes).requires_grad_(False).eval()
    for parameter in vae.parameters():  # so that every norm and convolution matters
        parameter += 0.1 * torch.randn_like(parameter) * parameter.abs().mean()
    return vae


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("num_frames", [1, 9])
def test_a_clip_equals_that_of_diffusers(sizes, num_frames):
    vae = make_vae(**sizes)
    video_BTHWC = torch.randint(0, 256, (2, num_frames, 32, 24, 3), dtype=torch.uint8)
    video_BCTHW = video_BTHWC.permute(0, 4, 1, 2, 3) / 127.5 - 1
    means_BCTHW = vae.encode(video_BCTHW).latent_dist.mode()
    decoded_BCTHW = vae.decode(means_BCTHW).sample
    use_channels_last(vae)
    whole_BCTHW = vae_means(vae, video_BTHWC)
    assert (whole_BCTHW - means_BCTHW).abs().max() < 1e-4 * means_BCTHW.abs().max()
    assert (decode_video(vae, means_BCTHW) - decoded_BCTHW).abs().max() < 1e-4
    assert decoded_BCTHW.std() > 0.01


def test_a_large_clip_and_an_unknown_vae_are_decoded_piece_by_piece():
    with torch.device("meta"):
        real, mini = (AutoencoderKLWan(**model_sizes(name)["vae"]) for name in ("cosmos2.5-2b", "mini"))
    assert whole_clip.clips_at_once(real, 93, 432, 768) == 0  # about 65 GiB in float32
    assert whole_clip.clips_at_once(mini, 25, 128, 128) > 10
    tiled = make_vae(**SIZES["wide below"])
    tiled.enable_tiling()
    assert whole_clip.clips_at_once(tiled, 5, 32, 32) == 0
