"""Training learns, is seeded, leaves the base alone, and writes an adapter that plain diffusers loads."""

import csv
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamgen.data.images import write_png
from dreamgen.data.video import probe, read_video
from dreamgen.errors import UserError
from dreamgen.models.adapter_files import WEIGHTS_NAME, adapter_sha256
from dreamgen.models.cosmos_predict25.adapter import check_adapter_fits
from dreamgen.models.cosmos_predict25.flow import VelocityModel, flow_input, flow_loss, sample_noise
from dreamgen.models.cosmos_predict25.latents import LatentScale, vae_means
from dreamgen.models.cosmos_predict25.loading import latent_statistics, load_pipeline, load_transformer
from dreamgen.models.cosmos_predict25.snippet import loading_snippet
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.world_model import WorldModelSource, resolve_world_model
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from finetune.__main__ import main
from finetune.windows import read_training_set
from tests.finetune.conftest import HEIGHT, NUM_FRAMES, WIDTH, training_settings, write_training_set


def train(folder, world, num_frames=NUM_FRAMES, seed=0, **sections):
    write_training_set(folder, num_frames=num_frames)
    settings = replace(training_settings(folder, world, **sections), seed=seed)
    return finetune(settings), settings


def loss_rows(folder):
    with (folder / "finetune/loss.csv").open() as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


def curve(folder):
    return [row["loss"] for row in loss_rows(folder)]


def loss_on_fixed_draws(settings, adapter):
    """The mean loss over the training clips, at noise that training never saw."""
    run = RunFolder.of(settings)
    source = resolve_world_model(settings.model, run)
    pipe = load_pipeline(source, settings.model, adapter=adapter)
    model, scale, losses = VelocityModel(pipe.transformer), LatentScale(*latent_statistics(source)), []
    for number, clip in enumerate(read_training_set(run, settings.video)):
        clean_BCTHW = scale(vae_means(pipe.vae, torch.from_numpy(read_video(clip.path))[None]))
        text_BLD = encode_text(pipe, clip.prompt)
        for index in range(12):
            noise = sample_noise(99, clean_BCTHW.shape[1:], settings.finetune, [100 * number + index])
            flow = flow_input(clean_BCTHW, noise, settings.finetune.conditional_frame_timestep)
            with torch.no_grad():
                velocity = model(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)
            losses.append(flow_loss(velocity, flow).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_training_lowers_the_loss(method, world, tmp_path):
    _, settings = train(
        tmp_path, world, finetune={"method": method, "num_steps": 30, "warmup_steps": 3, "learning_rate": 3e-2}
    )
    before = loss_on_fixed_draws(settings, None)
    after = loss_on_fixed_draws(settings, tmp_path / "adapter")
    assert after < 0.8 * before


def test_what_a_training_writes(world, tmp_path):
    result, _ = train(
        tmp_path, world, finetune={"num_steps": 5, "checkpoint_every": 2, "log_every": 2, "tracker": "tensorboard"}
    )
    rows = loss_rows(tmp_path)
    columns = "step loss learning_rate grad_norm samples_per_s mfu memory_gib seconds"
    assert list(rows[0]) == columns.split()
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert rows[-1]["learning_rate"] == pytest.approx(1e-2 * 0.2) and all(row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["loss"] == result.metrics["final_loss"]
    checkpoints = sorted((tmp_path / "finetune/checkpoints").glob("step-*"))
    assert [path.name for path in checkpoints] == ["step-000002", "step-000004"]
    assert len({adapter_sha256(path) for path in [*checkpoints, tmp_path / "adapter"]}) == 3
    events = EventAccumulator(str(tmp_path / "finetune/tracker"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 5]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["README.md", "loss.svg", WEIGHTS_NAME]
    assert result.outputs["adapter"] == tmp_path / "adapter"
    assert {name: result.metrics[name] for name in ("num_clips", "num_windows", "num_samples", "num_epochs")} == {
        "num_clips": 2, "num_windows": 2, "num_samples": 5, "num_epochs": 2.5,
    }  # fmt: skip
    assert "num_steps: 5" in (tmp_path / "run.yaml").read_text()
    assert not list(tmp_path.rglob("*.tmp*"))


def test_one_seed_gives_one_adapter_and_another_seed_another(world, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, world, num_frames=12, seed=seed)
    assert curve(tmp_path / "a") == curve(tmp_path / "b") != curve(tmp_path / "c")
    hashes = {name: adapter_sha256(tmp_path / name / "adapter") for name in "abc"}
    assert hashes["a"] == hashes["b"] != hashes["c"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_stays_as_it_was_and_the_adapter_is_float32(dtype, world, tmp_path, monkeypatch):
    loaded = []

    def remember(load):
        def remembering(*args, **named):
            loaded.append(load(*args, **named))
            return loaded[-1]

        return remembering

    monkeypatch.setattr("dreamgen.models.cosmos_predict25.training.load_transformer", remember(load_transformer))
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.training.load_pipeline", remember(load_pipeline))
    _, settings = train(tmp_path, world, model={"dtype": dtype}, finetune={"cache": "none"})
    fresh = load_pipeline(WorldModelSource("tiny", str(world), None, ""), settings.model)
    transformer, pipe = loaded
    for part, trained in (("transformer", transformer), ("vae", pipe.vae), ("text_encoder", pipe.text_encoder)):
        after = {name.replace(".base_layer", ""): p for name, p in trained.named_parameters()}
        before = dict(getattr(fresh, part).named_parameters())
        adapter = {name: after.pop(name) for name in list(after) if ".lora_" in name}
        assert after.keys() == before.keys() and bool(adapter) == (part == "transformer")
        assert all(torch.equal(after[name], before[name]) and after[name].grad is None for name in before)
        assert {parameter.dtype for parameter in adapter.values()} <= {torch.float32}
        moved = [name for name, parameter in adapter.items() if "lora_B" in name and parameter.abs().max() > 0]
        assert len(moved) == sum("lora_B" in name for name in adapter)
    assert all(0 < loss < 10 for loss in curve(tmp_path))


def test_two_batches_of_one_are_one_batch_of_two(world, tmp_path):
    train(tmp_path / "batch", world, num_frames=12, finetune={"batch_size": 2})
    train(tmp_path / "sum", world, num_frames=12, finetune={"gradient_accumulation_steps": 2})
    for name in ("loss", "learning_rate", "grad_norm"):
        one, other = ([row[name] for row in loss_rows(tmp_path / folder)] for folder in ("batch", "sum"))
        assert one == pytest.approx(other, rel=1e-3)  # Adam makes the first step's rounding larger


def test_a_negative_conditional_timestep_trains(world, tmp_path):
    train(tmp_path / "own", world, finetune={"conditional_frame_timestep": -1.0})
    train(tmp_path / "clean", world)
    assert curve(tmp_path / "own") != curve(tmp_path / "clean")


@pytest.mark.slow
def test_the_cards_snippet_dreams_with_plain_diffusers(world, tmp_path):
    train(tmp_path, world)
    card = (tmp_path / "adapter/README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert len(snippet.splitlines()) <= 10
    here = tmp_path / "here"  # the card names folders without the path to them
    here.mkdir()
    for folder in (tmp_path, world):
        (here / folder.name).symlink_to(folder)
    write_png(here / "first_frame.png", read_video(tmp_path / "train/videos/clip_0.mp4")[0])
    ours = "\nimport sys\nassert not {'dreamgen', 'finetune', 'export'} & {name.split('.')[0] for name in sys.modules}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", snippet + ours], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    info = probe(here / "dream.mp4")
    assert (info.height, info.width, info.num_frames, info.fps) == (HEIGHT, WIDTH, NUM_FRAMES, 16)
    for fact in ("LoRA adapter", "| rank, alpha | 4, 8 |", "| optimizer steps | 4 |", "| seed | 0 |", "2 clips"):
        assert fact in card


def test_the_snippet_for_a_guarded_hub_model_leaves_the_guardrail_in(world, tmp_path):
    settings = training_settings(tmp_path, world, model={"dtype": "bfloat16", "safety_checker": True})
    source = WorldModelSource("owner/name@r1", "owner/name", "r1", "owner/name@r1")
    snippet = loading_snippet(settings, source, tmp_path / "adapter", "cuda")
    compile(snippet, "card", "exec")
    assert "from_pretrained('owner/name', revision='r1', torch_dtype=torch.bfloat16).to(\"cuda\")" in snippet
    assert "NoSafetyChecker" not in snippet and len(snippet.splitlines()) <= 10


def test_an_adapter_that_is_there_is_kept(world, tmp_path):
    _, settings = train(tmp_path, world)
    before = adapter_sha256(tmp_path / "adapter")
    with pytest.raises(UserError, match="adapter already exists") as caught:
        finetune(settings)
    assert "--resume" in str(caught.value) and adapter_sha256(tmp_path / "adapter") == before


def test_an_interrupted_training_leaves_no_adapter_and_its_files_are_kept(world, tmp_path, monkeypatch):
    from finetune.train import batch_loss

    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch_loss(*args)

    monkeypatch.setattr("finetune.train.batch_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, world, finetune={"checkpoint_every": 2})
    assert not (tmp_path / "adapter").exists() and len(curve(tmp_path)) == 3
    result = finetune(training_settings(tmp_path, world, finetune={"checkpoint_every": 2}))
    assert (tmp_path / "adapter" / WEIGHTS_NAME).is_file()
    assert (tmp_path / "finetune.interrupted-1/checkpoints/step-000002" / WEIGHTS_NAME).is_file()
    assert "finetune.interrupted-1" in result.notes[0]


def test_a_loss_that_is_no_number_ends_the_training(world, tmp_path):
    with pytest.raises(UserError, match="loss is not a number"):
        train(tmp_path, world, finetune={"learning_rate": 1e30, "num_steps": 10})
    assert not (tmp_path / "adapter").exists()


def test_a_dry_run_counts_and_writes_nothing(world, tmp_path):
    write_training_set(tmp_path, num_clips=5, num_frames=11)
    before = sorted(tmp_path.rglob("*"))
    settings = training_settings(tmp_path, world, finetune={"batch_size": 2, "gradient_accumulation_steps": 3})
    result = finetune(settings, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before and result.outputs == {}
    wanted = {"num_clips": 5, "num_windows": 15, "num_steps": 4, "num_samples": 24, "num_epochs": 4.8}
    assert {name: result.metrics[name] for name in wanted} == wanted
    prompts = [note for note in result.notes if note.startswith("prompt: ")]
    assert len(prompts) == 3 and "push the square to the left" in prompts[0]
    assert {"cache_gib", "memory_gib", "hours"} <= result.metrics.keys()


def test_settings_that_cannot_work_are_told_together(world, tmp_path, monkeypatch):
    write_training_set(tmp_path)
    (tmp_path / "adapter").mkdir()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        finetune(training_settings(tmp_path, world, finetune={"tracker": "wandb", "max_grad_norm": 0.0}))
    for sentence in ("adapter already exists", "tracker=wandb is not installed", "max_grad_norm"):
        assert sentence in str(caught.value)


def test_the_module_trains_from_its_command_line(world, tmp_path, capsys):
    write_training_set(tmp_path)
    tokens = [
        f"--out={tmp_path}", f"--model.path={world}", "--model.dtype=float32", "--model.device=cpu",
        "--model.safety_checker=false", f"--video.height={HEIGHT}", f"--video.width={WIDTH}",
        f"--video.num_frames={NUM_FRAMES}", "--num_steps=2", "--lora.rank=2", "--method=dora",
    ]  # fmt: skip
    assert main([*tokens, "--dry_run"]) == 0
    assert "num_samples: 2" in capsys.readouterr().out
    assert main(tokens) == 0
    assert f"adapter: {tmp_path / 'adapter'}" in capsys.readouterr().out
    pipe = load_pipeline(WorldModelSource("tiny", str(world), None, ""), training_settings(tmp_path, world).model)
    check_adapter_fits(pipe.transformer, tmp_path / "adapter")
    assert main(tokens) == 2
    message = capsys.readouterr()
    assert "already exists" in message.err and "Traceback" not in message.err and message.out == ""
    assert main(["--lora.rnk=2"]) == 2 and "lora.rank" in capsys.readouterr().err
