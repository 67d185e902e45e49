"""The tiny world model, a training set for it, and a clean accelerate for each test."""

import csv
import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from dreamgen.config.settings import Settings, VideoSettings
from dreamgen.data.video import write_video
from tests.fixtures.demos import make_episode
from tests.fixtures.world import make_world, tiny_settings

HEIGHT, WIDTH, NUM_FRAMES, FPS = 32, 48, 9, 16


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "model")


@functools.cache
def clip_bytes(index: int, num_frames: int, fps: int) -> bytes:
    """Encode a clip once: the encoder now and then gives another file for the same frames, and so another loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, make_episode(index, num_frames, fps, HEIGHT, WIDTH).video_THWC, fps)
        return path.read_bytes()


def write_training_set(root: Path, num_clips: int = 2, num_frames: int = NUM_FRAMES, fps: int = FPS) -> Path:
    """Write train/ as prepare does, and return metadata.csv."""
    rows = []
    for index in range(num_clips):
        episode = make_episode(index, num_frames, fps, HEIGHT, WIDTH)
        path = root / f"train/videos/clip_{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip_bytes(index, num_frames, fps))
        prompt = f"The robot arm is performing a task. {episode.instruction}"
        rows.append([f"videos/clip_{index}.mp4", prompt, episode.instruction, f"demo {index}", num_frames])
    metadata = root / "train/metadata.csv"
    with metadata.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["file_name", "prompt", "instruction", "source", "num_frames"], *rows])
    return metadata


def training_settings(out: Path, world: Path, **sections) -> Settings:
    """Return settings of a short training; `finetune={...}` and other sections change them."""
    tune = {
        "num_steps": 4, "warmup_steps": 2, "learning_rate": 1e-2, "log_every": 1, "checkpoint_every": 100,
        "tracker": "none",
    }  # fmt: skip
    settings = tiny_settings(out, world, **{**sections, "finetune": tune | sections.get("finetune", {})})
    lora = replace(settings.finetune.lora, rank=4, alpha=8)
    settings = replace(settings, finetune=replace(settings.finetune, lora=lora))
    return replace(settings, video=VideoSettings(height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, fps=FPS))
