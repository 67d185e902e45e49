"""The dataset card: README.md in the hub's format, with sample frames, counts and the share of generated episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import yaml

from dreamgen.data.images import write_png
from dreamgen.data.video import decode_frames
from dreamgen.extensions.export_format import ExportFormat
from dreamgen.run.files import write_text
from dreamgen.text_escape import markdown_text
from export.episode_store import EpisodeStore
from export.spec import DatasetSpec

SHEET_NAME = "README_pictures.png"  # readers and checkers ignore the card's files
SHEET_EPISODES, SHEET_COLUMNS, THUMBNAIL_PX = 4, 4, 192
MAX_TASKS = 10

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

`{provenance}` beside this folder has one row per episode: clip id, world model, adapter, prompt, seed, scores,
what made its label and how far off that is, license.{no_state}

## Load it

```
{load}
```
"""


def write_card(
    folder: Path, export_format: ExportFormat, episodes: EpisodeStore, spec: DatasetSpec, license_id: str | None,
    sheet_HWC: np.ndarray, labels: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write README.md and its image into a dataset.

    Args:
        folder: The dataset.
        export_format: Its format.
        episodes: All of its episodes.
        spec: What the episodes share.
        license_id: The license's identifier on the hub; left out if None.
        sheet_HWC: From `contact_sheet`, the same for all formats.
        labels: Rows about labels, from `label_rows`.
    """
    write_png(folder / SHEET_NAME, sheet_HWC)
    write_text(folder / "README.md", card_text(export_format, episodes, spec, license_id, labels))


def card_text(
    export_format: ExportFormat, episodes: EpisodeStore, spec: DatasetSpec, license_id: str | None,
    labels: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Return the text of README.md."""
    num_real, num_episodes = int(episodes.real_E.sum()), len(episodes)
    front = {"license": license_id} if license_id else {}
    front |= {"task_categories": ["robotics"], "tags": ["LeRobot", "DreamGen", "synthetic", spec.robot_type]}
    hours = episodes.num_frames / spec.fps / 3600
    rows = {
        "format": f"{export_format.name}: {export_format.summary}",
        "robot": spec.robot_type,
        "episodes": f"{num_episodes:,}: {num_episodes - num_real:,} generated, {num_real:,} real",
        "frames": f"{episodes.num_frames:,} at {spec.fps} frames per second, {hours:.2g} h",
        "camera": f"{', '.join(spec.camera_names)}, {spec.width} x {spec.height} px, {spec.codec}",
        "action": f"{len(spec.action_names)} dimensions: {', '.join(spec.action_names)}",
        "state": f"{len(spec.state_names)} dimensions: {', '.join(spec.state_names)}" if spec.state_names else "none",
        **(labels or {}),
        "license": license_id or "not stated",
    }
    tasks = [f"- {markdown_text(task)}" for task in episodes.tasks[:MAX_TASKS]]
    if len(episodes.tasks) > MAX_TASKS:
        tasks.append(f"- and {len(episodes.tasks) - MAX_TASKS:,} more")
    return CARD.format(
        front=yaml.safe_dump(front | dict(export_format.card_metadata), sort_keys=False, allow_unicode=True).strip(),
        title=f"{markdown_text(spec.robot_type)}: {num_episodes:,} episodes",
        share=_share(episodes),
        sheet=SHEET_NAME,
        table="\n".join(f"| {key} | {markdown_text(value)} |" for key, value in rows.items()),
        tasks="\n".join(tasks),
        provenance=f"{export_format.name}.provenance.parquet",
        no_state="" if spec.state_names else " It has no states.",
        load=export_format.load_example(spec),
    )


def contact_sheet(episodes: EpisodeStore) -> np.ndarray:
    """Return frame_HWC with a row per episode and camera, and time from left to right; episodes are evenly spaced."""
    chosen = np.unique(np.linspace(0, len(episodes) - 1, SHEET_EPISODES).round().astype(int)).tolist()
    rows = []
    for episode in (episodes[index] for index in chosen):
        columns = np.linspace(0, episode.num_frames - 1, SHEET_COLUMNS).round().astype(int).tolist()
        for video in episode.videos:
            frames = {
                index: _thumbnail(frame.rgb())
                for index, frame in enumerate(decode_frames(video.path))
                if index in columns
            }
            rows.append(np.concatenate([frames[index] for index in columns], axis=1))
    return np.concatenate(rows, axis=0)


def _thumbnail(frame_HWC: np.ndarray) -> np.ndarray:
    height, width = frame_HWC.shape[:2]
    size = (THUMBNAIL_PX, max(1, round(height * THUMBNAIL_PX / width)))
    return cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)


def _share(episodes: EpisodeStore) -> str:
    num_real = int(episodes.real_E.sum())
    if num_real == 0:
        return "Every episode was generated by a video world model; no robot moved."
    share = 100 * (len(episodes) - num_real) / len(episodes)
    of_frames = 100 * (1 - int(episodes.num_frames_E[episodes.real_E].sum()) / episodes.num_frames)
    return (
        f"{share:.1f} % of the episodes were generated by a video world model, which are {of_frames:.1f} % of the "
        "frames; the others are real."
    )
