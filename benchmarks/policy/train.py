"""lerobot-train with a dataset that is decoded once and held in memory.

    python benchmarks/policy/train.py --dataset.repo_id=local/real --dataset.root=DATASET --policy.type=act ...

All arguments are lerobot-train's, besides `--cuda_graphs`, which replays the training steps of ACT as CUDA graphs.

LeRobot opens a video file for each frame that it draws, decodes all columns for each chunk of actions, and reads a row
of the episodes' table three times for each frame. With small pictures and many trainings on one machine that takes
longer than the training itself. The frames are the same.
"""

from __future__ import annotations

import bisect
import sys
from typing import Any

import av
import numpy as np
import torch
from graphed_act import replay_as_graphs

GRAPHS = "--cuda_graphs"
NUM_COMPARED = 4  # frames that are compared with LeRobot's own decoding


class Rows:
    """Rows of a table in memory, read as LeRobot reads those of a Hugging Face dataset.

    Args:
        columns: Values of each column, one row after another.
    """

    def __init__(self, columns: dict[str, torch.Tensor]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: Any) -> Any:
        """Return a column for a name, a row for a number, and columns of rows for a list of numbers."""
        if isinstance(key, str):
            return Column(self._columns[key])
        if isinstance(key, int):
            return {name: values[key] for name, values in self._columns.items()}
        return {name: [values[row] for row in key] for name, values in self._columns.items()}


class Column:
    """A column in memory, of which rows are read as a list.

    Args:
        values: One row after another.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __getitem__(self, rows: list[int]) -> list[torch.Tensor]:
        return [self._values[row] for row in rows]


class Episodes:
    """The table of episodes in memory: a row for a number, a column for a name.

    Args:
        table: A Hugging Face dataset, or what reads like one.
    """

    def __init__(self, table: Any) -> None:
        self._rows = [table[row] for row in range(len(table))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self._rows] if isinstance(key, str) else self._rows[key]


class Frames:
    """Decoded frames of a dataset's videos.

    Args:
        dataset: A `LeRobotDataset` with videos.

    Raises:
        ValueError: if they differ from those that LeRobot decodes.
    """

    def __init__(self, dataset: Any) -> None:
        self._meta, self._root, self._of_file = dataset.meta, dataset.root, {}
        self._as_bytes = dataset._ensure_reader()._return_uint8
        for episode in range(self._meta.total_episodes):
            for key in self._meta.video_keys:
                path = self._root / self._meta.get_video_file_path(episode, key)
                if path not in self._of_file:
                    self._of_file[path] = decode(path)

    def query(self, timestamps: dict[str, list[float]], episode: int) -> dict[str, torch.Tensor]:
        """Return the frames that are nearest to timestamps, CHW for one and TCHW for several.

        Args:
            timestamps: Seconds in the episode, for each camera.
            episode: Index of the episode.
        """
        found = {}
        for key, wanted in timestamps.items():
            start_s = self._meta.episodes[episode][f"videos/{key}/from_timestamp"]
            times_s, frames_NCHW = self._of_file[self._root / self._meta.get_video_file_path(episode, key)]
            rows = [nearest(times_s, start_s + time_s) for time_s in wanted]
            frames = frames_NCHW[rows] if self._as_bytes else frames_NCHW[rows].float() / 255
            found[key] = frames.squeeze(0)
        return found


def decode(path: Any) -> tuple[list[float], torch.Tensor]:
    """Return the times of a video's frames, in seconds, and the frames as bytes, NCHW."""
    with av.open(str(path)) as container:
        frames = [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    frames_NHWC = np.stack([picture for _, picture in frames])
    return [time_s for time_s, _ in frames], torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2).contiguous()


def nearest(times_s: list[float], time_s: float) -> int:
    """Return the index of the time that is nearest to the given one; `times_s` rises."""
    after = min(bisect.bisect(times_s, time_s), len(times_s) - 1)
    return min((max(after - 1, 0), after), key=lambda row: abs(times_s[row] - time_s))


def hold_in_memory(dataset: Any) -> None:
    """Let a `LeRobotDataset` read rows and frames from memory.

    Raises:
        ValueError: if the frames differ from those that LeRobot decodes.
    """
    reader, some = dataset._ensure_reader(), np.linspace(0, len(dataset) - 1, NUM_COMPARED).astype(int).tolist()
    transforms, reader._image_transforms = reader._image_transforms, None
    before = [dataset[row] for row in some]
    dataset.meta.episodes = Episodes(dataset.meta.episodes)
    columns = reader.hf_dataset[:]
    reader.hf_dataset = Rows({name: torch.stack(list(values)) for name, values in columns.items()})
    reader._query_videos = Frames(dataset).query
    for old, new in zip(before, (dataset[row] for row in some), strict=True):
        if differs := [key for key in old if not np.array_equal(old[key], new[key])]:
            raise ValueError(f"{dataset.root}: {differs} differ from what LeRobot reads")
    reader._image_transforms = transforms


def main() -> None:
    """Train as the command line says."""
    from lerobot.scripts import lerobot_train

    use_graphs = GRAPHS in sys.argv
    sys.argv = [word for word in sys.argv if word != GRAPHS]
    make_datasets, make_policy = lerobot_train.make_train_eval_datasets, lerobot_train.make_policy

    def make_held(config: Any) -> tuple[Any, Any]:
        dataset, held_out = make_datasets(config)
        hold_in_memory(dataset)
        return dataset, held_out

    def make_graphed(*args: Any, **kwargs: Any) -> Any:
        policy = make_policy(*args, **kwargs)
        config: Any = policy.config
        if config.type == "act" and config.use_vae and not config.use_amp and str(config.device).startswith("cuda"):
            replay_as_graphs(policy)
        return policy

    lerobot_train.make_train_eval_datasets = make_held
    if use_graphs:
        lerobot_train.make_policy = make_graphed
    lerobot_train.main()


if __name__ == "__main__":
    main()
