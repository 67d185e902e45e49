"""A robot that can be seen whole: a square on a plain ground, whose place is the state and where it goes the action."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.data.video import write_video

SIZE_PX, NUM_FRAMES, FPS = 64, 17, 16
ACTION_NAMES = ("next_x", "next_y", "unused", "grip")
STATE_NAMES = ("x", "y")


def square_settings(out: Path, **idm) -> Settings:
    small = {
        "horizon": 4, "image_px": 32, "width": 64, "num_models": 2, "num_steps": 250, "batch_size": 4,
        "learning_rate": 2e-3, "warmup_steps": 20, "augment": False,
    }  # fmt: skip
    return settings_from_dict(
        {
            "out": str(out),
            "model": {"path": "mini-random", "device": "cpu"},
            "video": {"height": SIZE_PX, "width": SIZE_PX, "num_frames": NUM_FRAMES, "fps": FPS},
            "idm": {**small, **idm},
        }
    )


def square_episode(seed: int, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return video_THWC, action_TA and state_TS of a smooth random walk; a lamp is lit while it grips."""
    random = np.random.default_rng(seed)
    place, speed = random.uniform(16, 48, 2), random.uniform(-2, 2, 2)
    places = []
    for _ in range(num_frames + 1):
        places.append(place)
        speed = np.clip(speed + random.normal(0, 0.7, 2), -3, 3)
        speed = np.where((place + speed < 12) | (place + speed > 52), -speed, speed)
        place = place + speed
    places_TS = np.stack(places).astype(np.float32)
    grips = (np.arange(num_frames) // 6 + random.integers(2)) % 2 == 0
    video_THWC = np.full((num_frames, SIZE_PX, SIZE_PX, 3), (40, 60, 50), np.uint8)
    for t in range(num_frames):
        x, y = np.round(places_TS[t]).astype(int)
        video_THWC[t, y - 6 : y + 6, x - 6 : x + 6] = (230, 220, 90)
        video_THWC[t, :10, :10] = (250, 250, 250) if grips[t] else (0, 0, 0)
    constant, grip = np.full(num_frames, 1.5, np.float32), np.where(grips, 3.0, -3.0).astype(np.float32)
    action_TA = np.column_stack([places_TS[1:], constant, grip])
    return video_THWC, action_TA, places_TS[:num_frames]


def write_square_training_set(run: Path, num_episodes: int = 15, num_frames: int = 24, actions: bool = True) -> None:
    """Write `train/` as prepare does."""
    train = run / "train"
    for name in ("videos", "metas", "trajectories"):
        (train / name).mkdir(parents=True)
    rows = []
    for number in range(num_episodes):
        name = f"square_{number}"
        video_THWC, action_TA, state_TS = square_episode(number, num_frames)
        write_video(train / "videos" / f"{name}.mp4", video_THWC, FPS)
        if actions:
            columns = {"action": action_TA, "observation.state": state_TS}
            table = {n: pa.array(list(values), pa.list_(pa.float32())) for n, values in columns.items()}
            pq.write_table(pa.table(table), train / "trajectories" / f"{name}.parquet")
        (train / "metas" / f"{name}.txt").write_text("move the square")
        rows.append((f"videos/{name}.mp4", "A square moves.", "move the square", "drawn", num_frames))
    with (train / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "prompt", "instruction", "source", "num_frames"), *rows])
    features = {
        "robot_type": "square", "camera": None, "state_names": STATE_NAMES, "action_names": ACTION_NAMES,
        "modality": None, "source": {},
    }  # fmt: skip
    (train / "features.json").write_text(json.dumps(features))
