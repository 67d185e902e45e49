"""Demonstrations for `dreamgen demo`: a drawn robot arm picks blocks and places them in a bin."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import datasets
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from dreamgen.demo.arm import CONTROL_FPS, JOINT_NAMES, ArmScene, pick_and_place
from dreamgen.demo.drawing import SIZE_PX, draw_episode
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_folder

CAMERA = "observation.images.front"
ROBOT_TYPE = "planar_arm"
BLOCK_COLORS = ("red", "green", "yellow", "purple", "orange")
BIN_COLORS = ("blue", "white", "black", "pink")
PLACES_M = (0.35, 0.50, 0.65, 0.80)


def write_demo_dataset(folder: Path, num_episodes: int = 6, seed: int = 0) -> Path:
    """Write pick-and-place demonstrations as a LeRobot v3.0 dataset with lerobot's own writer.

    Args:
        folder: Root of the dataset; complete or absent.
        num_episodes: Number of episodes, each with its own colors, places and pace.
        seed: Seed of everything random.

    Returns:
        `folder`.

    Raises:
        UserError: if `folder` exists, or `num_episodes` is 0.
    """
    if num_episodes < 1:
        raise UserError("num_episodes is too small", actual=num_episodes, allowed="at least 1")
    joints = {"dtype": "float32", "shape": (len(JOINT_NAMES),), "names": list(JOINT_NAMES)}
    image = {"dtype": "video", "shape": (SIZE_PX, SIZE_PX, 3), "names": ["height", "width", "channels"]}
    with atomic_folder(folder) as temporary, _quiet_libraries():
        temporary.rmdir()  # lerobot's writer creates its root and refuses one that exists
        dataset = LeRobotDataset.create(
            "dreamgen/demo",
            fps=CONTROL_FPS,
            root=temporary,
            robot_type=ROBOT_TYPE,
            features={"observation.state": joints, "action": joints, CAMERA: image},
            video_backend="pyav",  # no torchcodec, which prints tracebacks on a machine without FFmpeg's libraries
            rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=18, preset="veryfast", extra_options={"bf": 0}),
        )
        for index in range(num_episodes):
            rng = np.random.default_rng([seed, index])
            episode = pick_and_place(demo_scene(index, seed), rng)
            frames = draw_episode(episode)
            for state, action, frame_HWC in zip(episode.state_TA, episode.action_TA, frames, strict=True):
                row = {"observation.state": state, "action": action, CAMERA: frame_HWC}
                dataset.add_frame({**row, "task": episode.scene.instruction})
            dataset.save_episode()
        dataset.finalize()
        shutil.rmtree(temporary / "images", ignore_errors=True)  # the writer's frames before encoding
    return Path(folder)


def demo_scene(index: int, seed: int) -> ArmScene:
    """Return the scene of one demonstration: tasks in a shuffled order, random places.

    Args:
        index: Index of the demonstration.
        seed: Seed of the dataset.

    Returns:
        Two blocks of different colors and a bin, in three of the four places, with a small random offset.
    """
    rng = np.random.default_rng([seed, index, 1])
    tasks = _shuffled_tasks(seed)
    block_color, bin_color = tasks[index % len(tasks)]
    other_color = rng.choice([color for color in BLOCK_COLORS if color != block_color])
    places = rng.permutation(PLACES_M)[:3] + rng.uniform(-0.008, 0.008, 3)
    block_x, bin_x, other_x = (float(x) for x in places)
    return ArmScene(block_color, bin_color, block_x, bin_x, str(other_color), other_x)


def demo_instructions(num: int, seed: int) -> list[str]:
    """Return instructions that the first demonstrations of the same seed do not show, to plan with.

    Args:
        num: Number of instructions, all different.
        seed: Seed of the dataset.

    Returns:
        Sentences like those of the demonstrations, from the end of the shuffled order of tasks.

    Raises:
        UserError: if there are fewer combinations of colors.
    """
    tasks = _shuffled_tasks(seed)
    if not 0 <= num <= len(tasks):
        raise UserError("the number of demo instructions is out of range", actual=num, allowed=f"0 to {len(tasks)}")
    scenes = (ArmScene(block, bin_, 0.0, 0.0, block, 0.0) for block, bin_ in reversed(tasks))
    return [scene.instruction for scene in itertools.islice(scenes, num)]


def _shuffled_tasks(seed: int) -> list[tuple[str, str]]:
    tasks = list(itertools.product(BLOCK_COLORS, BIN_COLORS))
    return [tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))]


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence the encoder's report on every episode and the progress bar of each table."""
    bars_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)  # stays set: lerobot's encoder makes libav write to the terminal
    try:
        yield
    finally:
        if bars_shown:
            datasets.enable_progress_bars()
