"""Demonstrations that the project makes itself, for `make demo`: a drawn arm picks blocks and places them in a bin."""

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
        folder: The dataset's root; made whole or not at all.
        num_episodes: How many; each has its own colours, places and pace.
        seed: Decides everything that is drawn by lot.

    Returns:
        `folder`.

    Raises:
        UserError: if `folder` exists, or no episode is asked for.
    """
    if num_episodes < 1:
        raise UserError("number of demo episodes", actual=num_episodes, allowed="at least 1")
    joints = {"dtype": "float32", "shape": (len(JOINT_NAMES),), "names": list(JOINT_NAMES)}
    picture = {"dtype": "video", "shape": (SIZE_PX, SIZE_PX, 3), "names": ["height", "width", "channels"]}
    with atomic_folder(folder) as temporary, _quiet_libraries():
        temporary.rmdir()  # lerobot's writer insists on making its root
        dataset = LeRobotDataset.create(
            "dreamgen/demo",
            fps=CONTROL_FPS,
            root=temporary,
            robot_type=ROBOT_TYPE,
            features={"observation.state": joints, "action": joints, CAMERA: picture},
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
        shutil.rmtree(temporary / "images", ignore_errors=True)  # where the writer kept frames before encoding
    return Path(folder)


def demo_scene(index: int, seed: int) -> ArmScene:
    """Return the scene of one demonstration: its task by turns, its places by lot.

    Args:
        index: Which demonstration.
        seed: Of the dataset.

    Returns:
        Two blocks of different colours and a bin, in three of the four places, each moved a little.
    """
    rng = np.random.default_rng([seed, index, 1])
    tasks = _shuffled_tasks(seed)
    block_color, bin_color = tasks[index % len(tasks)]
    other_color = rng.choice([color for color in BLOCK_COLORS if color != block_color])
    places = rng.permutation(PLACES_M)[:3] + rng.uniform(-0.008, 0.008, 3)
    block_x, bin_x, other_x = (float(x) for x in places)
    return ArmScene(block_color, bin_color, block_x, bin_x, str(other_color), other_x)


def demo_instructions(num: int, seed: int) -> list[str]:
    """Return instructions for planning that the first demonstrations of the same seed do not show.

    Args:
        num: How many, all different.
        seed: Of the dataset.

    Returns:
        Sentences of the demonstrations' form, from the far end of the order in which demonstrations take their tasks.

    Raises:
        UserError: if there are fewer combinations of colours.
    """
    tasks = _shuffled_tasks(seed)
    if not 0 <= num <= len(tasks):
        raise UserError("number of demo instructions", actual=num, allowed=f"0 to {len(tasks)}")
    scenes = (ArmScene(block, bin_, 0.0, 0.0, block, 0.0) for block, bin_ in reversed(tasks))
    return [scene.instruction for scene in itertools.islice(scenes, num)]


def _shuffled_tasks(seed: int) -> list[tuple[str, str]]:
    tasks = list(itertools.product(BLOCK_COLORS, BIN_COLORS))
    return [tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))]


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the encoder's report on every episode, and a progress bar for each table, out of the terminal."""
    bars_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)  # for good: lerobot's encoder has libav write to the terminal
    try:
        yield
    finally:
        if bars_shown:
            datasets.enable_progress_bars()
