"""Held-out clips are never trained on, their loss is the same for the same weights, and a sample is the pipeline's."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamgen.config.settings import FinetuneSettings
from dreamgen.data.video import probe, read_video
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.flow import NoiseSample, flow_input, flow_loss
from dreamgen.models.cosmos_predict25.latents import LatentScale, decode
from dreamgen.models.cosmos_predict25.loading import latent_statistics, load_pipeline
from dreamgen.models.cosmos_predict25.training import sample_latents
from dreamgen.models.trainable import TrainableWorldModel
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.files import read_json
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from finetune.batches import WindowDataset
from finetune.checkpoint import TrainableState
from finetune.ema import averaged, parameter_average
from finetune.inputs import prepare_inputs
from finetune.training_log import TrainingLog
from finetune.validate import Validation, hold_out, validation_losses
from finetune.windows import TrainingClip, Window, read_training_set
from tests.finetune.conftest import NUM_FRAMES, training_settings, write_training_set
from tests.finetune.test_two_processes import two_processes

NOISE_LEVELS = TrainableWorldModel.noise_levels


def clips_of(folder, names):
    return [TrainingClip(folder / f"{name}.mp4", f"prompt {index}", 9) for index, name in enumerate(names)]


def test_clips_are_held_out_by_the_seed(tmp_path):
    clips = clips_of(tmp_path, "abcdefgh")
    kept, held_out = hold_out(clips, 3, seed=0)
    assert len(kept) == 5 and len(held_out) == 3
    assert kept == [clip for clip in clips if clip in kept]
    assert {clip.path for clip in kept}.isdisjoint(window.clip.path for window in held_out)
    assert (kept, held_out) == hold_out(clips, 3, seed=0)
    assert len({tuple(hold_out(clips, 3, seed)[1]) for seed in range(8)}) > 1
    assert hold_out(clips, 0, seed=0) == (clips, [])


def test_a_video_with_two_prompts_is_held_out_whole(tmp_path):
    clips = clips_of(tmp_path, "aabbcc")
    for seed in range(5):
        kept, held_out = hold_out(clips, 1, seed)
        assert len(kept) == 4 and len({window.clip.path for window in held_out}) == 1 and len(held_out) == 2


def test_holding_out_everything_is_told_with_what_else_is_wrong(world, tmp_path):
    write_training_set(tmp_path, num_clips=2)
    (tmp_path / "train/videos/clip_1.mp4").write_bytes(b"no video")
    with pytest.raises(UserError) as caught:
        finetune(training_settings(tmp_path, world, finetune={"validation_clips": 2}))
    message = str(caught.value)
    assert (
        "2 problems" in message
        and "clip_1.mp4" in message
        and "leaves no clip to train on" in message
        and "0 to 1" in message
    )


@pytest.fixture
def parts(world, tmp_path):
    """A model with an adapter, its inputs and three held-out windows."""
    write_training_set(tmp_path, num_clips=3)
    settings = training_settings(tmp_path, world)
    run, accelerator = RunFolder.of(settings), Accelerator(cpu=True)
    source = resolve_world_model(settings.model, run)
    model = source.load_class().for_training(source, settings, accelerator.device)
    clips = read_training_set(run, settings.video)
    windows = [Window(clip, 0) for clip in clips]
    inputs = prepare_inputs(settings, source, model, windows, [clip.prompt for clip in clips], accelerator)
    parameters = model.make_trainable()
    trained = TrainableState(model, torch.optim.AdamW(parameters))
    forward_module = model.forward_module
    run.finetune_logs.mkdir()
    return SimpleNamespace(**{name: value for name, value in locals().items() if name not in ("world", "tmp_path")})


def clean_latents(parts, window):
    return LatentScale(*latent_statistics(parts.source))(parts.inputs.read(window)[None])


def test_the_same_weights_give_the_same_numbers_and_others_do_not(parts):
    measure = (parts.model, parts.forward_module, parts.windows, parts.inputs, parts.settings, parts.accelerator)
    first = validation_losses(*measure)
    torch.manual_seed(123)  # nothing depends on the global generator
    assert validation_losses(*measure) == first and tuple(first) == NOISE_LEVELS
    assert all(0 < loss < 10 for loss in first.values())
    with torch.no_grad():
        for name, parameter in parts.model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert all(loss != first[sigma] for sigma, loss in validation_losses(*measure).items())


def test_a_windows_loss_is_that_of_the_step_at_that_noise(parts):
    one = (parts.windows[:1], parts.inputs, parts.settings, parts.accelerator)
    measured = validation_losses(parts.model, parts.forward_module, *one)
    window, seen = parts.windows[0], []
    clean_BCTHW = clean_latents(parts, window)

    class Remembering(torch.nn.Module):
        def forward(self, *tensors):
            seen.append(tensors)
            return parts.forward_module(*tensors)

    validation_losses(parts.model, Remembering(), *one)
    text_BLD = parts.inputs.prompts([window.clip.prompt])
    for sigma, (hidden_BCTHW, mask_B1THW, timestep_BT, text) in zip(NOISE_LEVELS, seen, strict=True):
        assert torch.equal(text, text_BLD)
        assert torch.equal(hidden_BCTHW[:, :, 0], clean_BCTHW[:, :, 0])  # one latent frame is given
        assert mask_B1THW[0, 0, :, 0, 0].tolist() == [1, *[0] * (clean_BCTHW.shape[2] - 1)]
        assert timestep_BT[0, 0] == pytest.approx(1e-4) and timestep_BT[0, 1].item() == pytest.approx(sigma)
        noise_BCTHW = (hidden_BCTHW - (1 - sigma) * clean_BCTHW) / sigma
        noise = NoiseSample(torch.tensor([sigma]), torch.tensor([1]), [False], noise_BCTHW)
        flow = flow_input(clean_BCTHW, noise, 1e-4)
        with torch.no_grad():
            velocity_BCTHW = parts.forward_module(flow.hidden_states_BCTHW, mask_B1THW, flow.timestep_BT, text_BLD)
        assert flow_loss(velocity_BCTHW, flow).item() == pytest.approx(measured[sigma], rel=1e-4)


def test_measuring_is_due_before_the_first_step_every_few_and_after_the_last(parts):
    settings = replace(parts.settings, finetune=replace(parts.settings.finetune, num_steps=5, validate_every=2))
    measure = (parts.accelerator, parts.forward_module, parts.trained, parts.windows, parts.inputs, settings)
    path = parts.run.finetune_logs / "validation.csv"
    with TrainingLog(parts.accelerator, parts.run.finetune_logs / "loss.csv", FinetuneSettings()) as log:
        validation = Validation(*measure)
        for step in range(6):
            validation.step(step, log)
        assert [int(row["step"]) for row in rows_of(path)] == [s for s in (0, 2, 4, 5) for _ in NOISE_LEVELS]
        resumed = Validation(*measure, done_steps=4)
        for step in (4, 5):
            resumed.step(step, log)
    assert [int(row["step"]) for row in rows_of(path)] == [s for s in (0, 2, 4, 5) for _ in NOISE_LEVELS]
    assert len({(row["sigma"], row["loss"]) for row in rows_of(path)}) == len(NOISE_LEVELS)  # nothing was trained


def test_the_average_is_what_is_measured_where_one_is_kept(parts):
    average = parameter_average(parts.parameters, 0.9)
    measure = (parts.model, parts.forward_module, parts.windows, parts.inputs, parts.settings, parts.accelerator)
    with torch.no_grad():
        for parameter in parts.parameters:
            parameter.add_(0.1)
    trained = validation_losses(*measure)
    with averaged(average, parts.parameters):
        untrained = validation_losses(*measure)
    measured = []
    with TrainingLog(parts.accelerator, parts.run.finetune_logs / "loss.csv", FinetuneSettings()) as log:
        for kept in (replace(parts.trained, average=average), parts.trained):
            Validation(parts.accelerator, parts.forward_module, kept, parts.windows, parts.inputs, parts.settings).step(
                0, log
            )
            rows = rows_of(parts.run.finetune_logs / "validation.csv")
            measured.append({float(row["sigma"]): float(row["loss"]) for row in rows})
    assert measured == [untrained, trained] and trained != untrained


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_a_training_measures_its_held_out_clips_and_never_trains_on_them(world, tmp_path, monkeypatch):
    drawn = []
    item = WindowDataset.__getitem__

    def remember(self, index):
        drawn.append(item(self, index)["prompt"])
        return item(self, index)

    monkeypatch.setattr(WindowDataset, "__getitem__", remember)
    write_training_set(tmp_path, num_clips=3, num_frames=NUM_FRAMES + 2)
    tune = {"validation_clips": 1, "validate_every": 2, "num_steps": 6, "tracker": "tensorboard", "learning_rate": 3e-2}
    settings = training_settings(tmp_path, world, finetune=tune)
    clips = read_training_set(RunFolder.of(settings), settings.video)
    kept, held_out = hold_out(clips, 1, settings.seed)
    result = finetune(settings)
    assert set(drawn) == {clip.prompt for clip in kept} and held_out[0].clip.prompt not in drawn
    assert result.metrics["num_clips"] == 2 and result.metrics["num_validation_clips"] == 1
    rows = rows_of(tmp_path / "finetune/validation.csv")
    assert [(int(row["step"]), float(row["sigma"])) for row in rows] == [
        (step, sigma) for step in (0, 2, 4, 6) for sigma in NOISE_LEVELS
    ]
    events = EventAccumulator(str(tmp_path / "finetune/tracker"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 2, 4, 6]
    assert {"validation/sigma_0.2", "samples_per_s", "memory_gib", "learning_rate"} <= set(events.Tags()["scalars"])
    assert "| 6 |" in (tmp_path / "adapter/README.md").read_text()


def test_validation_does_not_change_the_training(world, tmp_path):
    losses = []
    for name, every in (("a", 1), ("b", 1000)):
        write_training_set(tmp_path / name, num_clips=3)
        tune = {"validation_clips": 1, "validate_every": every}
        finetune(training_settings(tmp_path / name, world, finetune=tune))
        losses.append([row["loss"] for row in rows_of(tmp_path / name / "finetune/loss.csv")])
    assert losses[0] == losses[1]


def test_a_sample_is_what_the_pipeline_dreams_without_guidance(parts):
    pipe = load_pipeline(parts.source, parts.settings.model)
    window, video = parts.windows[0], parts.settings.video
    frame_HWC = read_video(window.clip.path)[0]
    clean_BCTHW = clean_latents(parts, window)
    noise_BCTHW = torch.randn(clean_BCTHW.shape, generator=torch.Generator().manual_seed(5))
    text_BLD = parts.inputs.prompts([window.clip.prompt])
    ours_BCTHW = sample_latents(parts.forward_module, pipe.scheduler, clean_BCTHW, text_BLD, noise_BCTHW, 4, 1e-4)
    options = {
        "image": frame_HWC, "prompt": window.clip.prompt, "height": video.height, "width": video.width,
        "num_frames": video.num_frames, "num_inference_steps": 4, "guidance_scale": 1.0,
    }  # fmt: skip
    theirs_BCTHW = pipe(**options, latents=noise_BCTHW, output_type="latent").frames
    # The pipeline's own first latent frame encodes the frame at the head of an empty clip.
    assert torch.allclose(ours_BCTHW, theirs_BCTHW, atol=2e-3)
    video_THWC = decode(pipe, theirs_BCTHW).numpy()
    theirs = pipe(**options, latents=noise_BCTHW, output_type="np").frames[0]
    assert video_THWC.shape == theirs.shape and abs(video_THWC / 255 - theirs).max() <= 0.51 / 255 + 1e-3


def test_a_training_writes_samples_of_a_held_out_clip(world, tmp_path):
    write_training_set(tmp_path, num_clips=3)
    tune = {"validation_clips": 1, "sample_every": 2}
    finetune(training_settings(tmp_path, world, finetune=tune))
    samples = sorted((tmp_path / "finetune/samples").iterdir())
    assert [path.name for path in samples] == ["step-000002.mp4", "step-000004.mp4"]
    assert probe(samples[0]).num_frames == NUM_FRAMES


def test_graphs_with_accumulated_gradients_are_refused(world, tmp_path):
    write_training_set(tmp_path)
    tune = {"cuda_graphs": True, "gradient_accumulation_steps": 2, "num_steps": 1}
    with pytest.raises(UserError, match="cuda_graphs cannot accumulate gradients"):
        finetune(training_settings(tmp_path, world, finetune={**tune, "compile": True}))
    assert finetune(training_settings(tmp_path, world, finetune={**tune, "compile": False})).metrics["num_steps"] == 1


def test_samples_without_a_held_out_clip_are_refused(world, tmp_path):
    write_training_set(tmp_path)
    with pytest.raises(UserError, match="sample_every needs a held-out clip"):
        finetune(training_settings(tmp_path, world, finetune={"sample_every": 2}))
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["train"]'


@pytest.mark.slow
def test_two_processes_measure_what_one_does(world, tmp_path):
    tune = {"validation_clips": 3, "validate_every": 1, "sample_every": 2, "num_steps": 2, "checkpoint_every": 1}
    tune |= {"keep_best": True}
    for name, accumulated in (("one", 2), ("two", 1)):
        write_training_set(tmp_path / name, num_clips=5)  # uneven shares: two windows and one
        settings = training_settings(
            tmp_path / name, world, finetune={**tune, "gradient_accumulation_steps": accumulated}
        )
        RunFolder.of(settings).record(settings, ["finetune", "plan"])
        if name == "one":
            finetune(settings)
    done = two_processes("-m", "finetune", f"--out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    one, two = (rows_of(tmp_path / name / "finetune/validation.csv") for name in ("one", "two"))
    assert one[: len(NOISE_LEVELS)] == two[: len(NOISE_LEVELS)]  # before the first step, to the last digit
    assert [float(row["loss"]) for row in two] == pytest.approx([float(row["loss"]) for row in one], rel=1e-3)
    assert (tmp_path / "two/finetune/samples/step-000002.mp4").is_file()
    states = [read_json(tmp_path / name / "finetune/checkpoints/step-000001/state.json") for name in ("one", "two")]
    assert states[0]["best_step"] == states[1]["best_step"] == 1
    assert states[0]["best_loss"] == pytest.approx(states[1]["best_loss"], rel=1e-3)
    assert "best_step: 2" in done.stdout.splitlines()
