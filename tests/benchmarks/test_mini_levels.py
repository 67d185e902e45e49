"""benchmarks/mini_levels.py: what it compares, diffusers' caches on our transformer, and its report."""

import json

import pytest
import torch
from clip_metrics import clip_psnr
from diffusers_caches import all_caches, caches_that_do_not_run, num_flops, sample_cached
from mini_levels import TO_EXACT, all_variants, rows_of, tables
from mini_quality import passes_of

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, text_keys_values
from dreamgen.models.cosmos_predict25.mini import build_mini
from dreamgen.models.cosmos_predict25.sampler import Guidance, sample_latents
from dreamgen.models.cosmos_predict25.solver import step_table
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping
from dreamgen.models.cosmos_predict25.text import encode_text


def test_each_level_stands_beside_exact_steps_that_cost_as_much():
    variants = all_variants([36, 8], 3.0, 0)
    assert len({variant.file_name for variant in variants}) == len(variants)
    exact = [variant.sampling for variant in variants if variant.exact is None]
    assert {(one.num_steps, one.guidance_scale) for one in exact} == {(36, 1), (36, 3), (8, 1), (8, 3)}
    assert all(variant.exact in exact for variant in variants if variant.exact is not None)
    costs = {
        (one.sampling.guidance_scale, passes_of(one.sampling)) for one in variants if one.sampling.level == "exact"
    }
    levels = [one for one in variants if one.sampling.level != "exact" and not one.is_distilled]
    assert {one.sampling.level for one in levels} == {"balanced", "turbo"}
    assert all((one.sampling.guidance_scale, passes_of(one.sampling)) in costs for one in levels)
    distilled = [one for one in variants if one.is_distilled]
    assert distilled and all(one.sampling.guidance_scale == 1 and one.exact.guidance_scale == 3 for one in distilled)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_caches_change_the_clip_cost_less_and_leave_nothing_behind(scale):
    sizes = read_yaml(configs_folder() / "models" / "mini.yaml")
    sizes["transformer"] |= {"num_layers": 3}
    pipe = build_mini(sizes)
    table, generator = step_table(pipe.scheduler, 6), torch.Generator().manual_seed(0)
    noise, clean = (torch.randn(2, 16, frames, 4, 4, generator=generator) for frames in (3, 1))
    text, negative = (encode_text(pipe, prompt).expand(2, -1, -1) for prompt in ("push the block", "blurry"))

    def sample(cache):
        guided = None if scale is None else negative
        return sample_cached(pipe.transformer, cache, table, noise, clean, text, guided, scale or 1.0)

    keys, guidance = text_keys_values(pipe.transformer, text), None
    if scale is not None:
        guidance = Guidance(text_keys_values(pipe.transformer, negative), scale)
    exact = sample_latents(pipe.transformer, table, noise, clean, keys, guidance, StepSkipping(), BlockParts())
    assert torch.allclose(sample(None), exact, atol=1e-4)
    full = num_flops(lambda: sample(None))
    for cache in all_caches():
        assert not torch.equal(sample(cache), exact), cache.name
        assert full / 6 < num_flops(lambda one=cache: sample(one)) < full, cache.name
    assert torch.allclose(sample(None), exact, atol=1e-4)
    assert set(caches_that_do_not_run(sample)) == {"MagCache"}


def test_the_report_shows_means_in_order_and_paired_tests():
    variants = all_variants([8], 3.0, 0)
    names = [variant.name for variant in variants]
    values = {"psnr_moving": [20.0] * 8, "hand_cm": [2.0] * 8, "object_end_cm": [3.0] * 8, "success": [1.0] * 8}
    worse = values | {"hand_cm": [3.0] * 8, TO_EXACT: [30.0] * 7 + [38.0]}
    name = next(name for name in names if "guidance 3: distilled" in name)
    measured = {
        name: {"values": worse, "clip_s": 0.1, "passes": 8},
        "8 steps, guidance 3: exact": {"values": values, "clip_s": 0.2, "passes": 16},
        "recording": {"values": values},
    }
    rows = rows_of(measured, variants)
    assert [row["name"] for row in rows] == ["recording", "8 steps, guidance 3: exact", name]
    assert rows[2][TO_EXACT] == 31 and rows[2]["p_exact"]["hand_cm"] < 0.05 and "p_exact" not in rows[1]
    report = {
        "rows": rows,
        "clips": 8,
        "caches_that_do_not_run": {"SeaCache": "needs another model"},
        "left_out": ["x"],
    }
    text = tables(json.loads(json.dumps(report)))
    assert "dB to exact" in text and "SeaCache does not run" in text and "Left out: x" in text
    black = torch.zeros(1, 3, 2, 2, 3, dtype=torch.uint8)
    assert clip_psnr(black, black + 255) == [0.0] and clip_psnr(black, black)[0] > 70
