"""A dataset's card: README.md in the hub's format, with pictures, counts and the share of what was dreamed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml

from dreamgen.data.video import decode_frames, write_png
from dreamgen.run.files import write_text
from export.episode_store import Episodes
from export.spec import DatasetSpec

SHEET_NAME = "README_pictures.png"  # readers and checkers pass over what belongs to the card
SHOWN_EPISODES, SHOWN_MOMENTS, THUMBNAIL_PX = 4, 4, 192
SHOWN_TASKS = 10

LOAD = {
    "lerobot-v3.0": 'LeRobotDataset("OWNER/NAME", root="path/to/this/folder")   # lerobot 0.4 or later',
    "robomimic": 'h5py.File("path/to/this/folder/data.hdf5")["data"]',
    "lerobot-v2.1": "python scripts/gr00t_finetune.py --dataset-path path/to/this/folder   # any GR00T release",
}

CARD = """\
---
{front}
---

# {title}

{share} Made by DreamGen.

![Episodes from left to right in time]({sheet})

| | |
|---|---|
{table}

## Tasks

{tasks}

## Where each episode came from

`{provenance}` beside this folder has a row an episode: clip id, world model, adapter, prompt, seed, scores,
error of the inverse-dynamics model, licence.{no_state}

## Load it

```
{load}
```
"""


def write_card(folder: Path, name: str, episodes: Episodes, spec: DatasetSpec, licence: str | None) -> None:
    """Write README.md and its pictures into a dataset.

    Args:
        folder: The dataset.
        name: Its format.
        episodes: All of them.
        spec: What they share.
        licence: As the hub names it; left out when None.
    """
    write_png(folder / SHEET_NAME, contact_sheet(episodes))
    write_text(folder / "README.md", card_text(name, episodes, spec, licence))


def card_text(name: str, episodes: Episodes, spec: DatasetSpec, licence: str | None) -> str:
    """Return the card."""
    num_real, num_episodes = int(episodes.real_E.sum()), len(episodes)
    front = {"license": licence} if licence else {}
    front |= {"task_categories": ["robotics"], "tags": ["LeRobot", "DreamGen", "synthetic", spec.robot_type]}
    if name.startswith("lerobot"):
        front["configs"] = [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    hours = episodes.num_frames / spec.fps / 3600
    rows = {
        "format": name,
        "robot": spec.robot_type,
        "episodes": f"{num_episodes:,}: {num_episodes - num_real:,} dreamed, {num_real:,} real",
        "frames": f"{episodes.num_frames:,} at {spec.fps} a second, {hours:.2g} h",
        "camera": f"{', '.join(spec.camera_names)}, {spec.width} x {spec.height} px, {spec.codec}",
        "action": f"{len(spec.action_names)} dimensions: {', '.join(spec.action_names)}",
        "state": f"{len(spec.state_names)} dimensions: {', '.join(spec.state_names)}" if spec.state_names else "none",
        "licence": licence or "not stated",
    }
    tasks = [f"- {_plain(task)}" for task in episodes.tasks[:SHOWN_TASKS]]
    if len(episodes.tasks) > SHOWN_TASKS:
        tasks.append(f"- and {len(episodes.tasks) - SHOWN_TASKS:,} more")
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        title=f"{spec.robot_type}: {num_episodes:,} episodes",
        share=_share(num_episodes, num_real),
        sheet=SHEET_NAME,
        table="\n".join(f"| {key} | {_plain(value)} |" for key, value in rows.items()),
        tasks="\n".join(tasks),
        provenance=f"{name}.provenance.parquet",
        no_state="" if spec.state_names else " It has no states.",
        load=LOAD.get(name, f"see docs/formats.md of DreamGen: {name}") + _tags(name, spec),
    )


def contact_sheet(episodes: Episodes) -> np.ndarray:
    """Return frame_HWC with a row an episode and camera, episodes evenly chosen, and moments from left to right."""
    chosen = np.unique(np.linspace(0, len(episodes) - 1, SHOWN_EPISODES).round().astype(int)).tolist()
    rows = []
    for index in chosen:
        episode = episodes[index]
        wanted = np.linspace(0, episode.num_frames - 1, SHOWN_MOMENTS).round().astype(int).tolist()
        for video in episode.videos:
            frames = {}
            for number, frame in enumerate(decode_frames(video.path)):
                if number in wanted:
                    frames[number] = _thumbnail(frame.to_ndarray(format="rgb24"))
            rows.append(np.concatenate([frames[number] for number in wanted], axis=1))
    return np.concatenate(rows, axis=0)


def _thumbnail(frame_HWC: np.ndarray) -> np.ndarray:
    height, width = frame_HWC.shape[:2]
    size = (THUMBNAIL_PX, max(1, round(height * THUMBNAIL_PX / width)))
    return cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)


def _tags(name: str, spec: DatasetSpec) -> str:
    if name != "lerobot-v2.1" or not spec.embodiment_tags:
        return ""
    return "\n# --embodiment-tag: " + ", ".join(f"{tag} ({release})" for release, tag in spec.embodiment_tags.items())


def _share(num_episodes: int, num_real: int) -> str:
    if num_real == 0:
        return "Every episode was dreamed by a video world model; no robot moved."
    share = 100 * (num_episodes - num_real) / num_episodes
    return f"{share:.1f} % of the episodes were dreamed by a video world model; the others are real."


def _plain(text: str) -> str:
    """Keep a user's text from becoming markup."""
    one_line = " ".join(text.split())
    for character in "\\`*_[]<>|#":
        one_line = one_line.replace(character, f"\\{character}")
    return one_line
