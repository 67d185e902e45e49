"""`WorldModel.load` and `generate` give the clip that plan and generate make of the same image and prompt."""

import numpy as np
import pytest
import torch
from PIL import Image

from dreamgen.errors import UserError
from dreamgen.generate.clip import generate_clip
from dreamgen.models.adapter_files import adapter_sha256
from dreamgen.models.cosmos_predict25.adapter import add_adapter, save_adapter
from dreamgen.models.cosmos_predict25.mini import build_mini
from dreamgen.models.generation_request import preset_values
from dreamgen.models.world_model import WorldModel
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    clip_generator,
    frame,
    make_world,
    tiny_settings,
    tiny_sizes,
    write_pairs,
)

SIZE = {"height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES, "num_inference_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("api")
    make_world(base / "world")
    write_pairs(base / "pairs", 1)
    transformer = build_mini(tiny_sizes()).transformer
    for parameter in add_adapter(transformer, 2, 2, ["to_q"], use_dora=False):
        torch.nn.init.constant_(parameter, 0.1)
    (base / "adapter").mkdir()
    save_adapter(transformer, base / "adapter")
    return base


def load(base, **options):
    return WorldModel.load(str(base / "world"), dtype="float32", device="cpu", safety_checker=False, **options)


@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_it_is_the_clip_that_the_stages_make(base, tmp_path, adapter):
    folder = adapter and base / adapter
    settings = tiny_settings(tmp_path / "run", base / "world", base / "pairs", plan={"adapter": folder and str(folder)})
    plan(settings)
    run = RunFolder.of(settings)
    (job,) = read_jobs(run.jobs)
    expected_THWC = generate_clip(clip_generator(settings, run), job)[0].numpy()
    model = load(base, adapter=folder)
    for image in (frame(0), Image.fromarray(frame(0)), base / "pairs/scene_0.png"):
        video_THWC = model.generate(image, "push the red block", seed=0, **SIZE)
        assert video_THWC.dtype == np.uint8 and np.array_equal(video_THWC, expected_THWC)
    assert job.adapter_sha256 == (folder and adapter_sha256(folder))


def test_arguments_change_the_clip_and_wrong_ones_are_refused(base, tmp_path):
    model = load(base)
    plain = model.generate(frame(0), "push", **SIZE)
    assert plain.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    for changes in ({"seed": 1}, {"guidance_scale": 1.0}, {"negative_prompt": "dark"}, {"level": "turbo", "fp8": True}):
        assert not np.array_equal(model.generate(frame(0), "push", **(SIZE | changes)), plain)
    assert model.generate(None, "push", **SIZE).shape == plain.shape
    five_THWC = np.stack([frame(index) for index in range(5)])
    assert model.generate(five_THWC, "push", **(SIZE | {"num_frames": 9})).shape[0] == 9
    for changes, words in (
        ({"num_step": 3}, "unknown argument of generate: num_step"),
        ({"height": 40}, "not divisible by 16"),
        ({"num_frames": 8}, "4k . 1"),
        ({"level": "fast"}, "level"),
    ):
        with pytest.raises(UserError, match=words):
            model.generate(frame(0), "push", **(SIZE | changes))
    with pytest.raises(UserError, match="conditioning frames"):
        model.generate(five_THWC[:3], "push", **SIZE)
    with pytest.raises(UserError, match="neither an RGB image"):
        model.generate(frame(0) / 255, "push", **SIZE)


def test_defaults_are_those_of_the_preset(base, tmp_path, monkeypatch):
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.mini.read_yaml", lambda _: tiny_sizes())
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.spec.SHIPPED_MINI", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mini = preset_values("mini")
    assert mini["model"]["path"] == "mini" and mini["plan"]["num_inference_steps"] == 8
    hub_id = "nvidia/Cosmos-Predict2.5-2B"
    assert preset_values("cosmos2.5-2b") == preset_values(hub_id) and preset_values(hub_id)["video"]["height"] == 432
    model = WorldModel.load("mini", device="cpu")
    assert model.generate(frame(0, 128, 128), "push", num_frames=5).shape == (5, 128, 128, 3)
    assert list(tmp_path.glob("dreamgen/*/model/model_index.json"))  # built once, and kept


def test_an_adapter_that_does_not_fit_is_refused_before_loading(base, tmp_path):
    (tmp_path / "other").mkdir()
    sizes = tiny_sizes()
    sizes["transformer"] |= {"num_attention_heads": 3}
    transformer = build_mini(sizes).transformer
    add_adapter(transformer, 2, 2, ["to_q"], use_dora=False)
    save_adapter(transformer, tmp_path / "other")
    with pytest.raises(UserError, match="does not fit the model"):
        load(base, adapter=tmp_path / "other")
