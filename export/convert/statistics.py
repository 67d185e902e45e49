"""meta/stats.json of the converted dataset: numbers are counted from the written rows, pictures added up.

Axes: E episodes, N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import batched, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dreamgen.data.video import decode_frames
from dreamgen.run.files import write_json
from export.convert.clips import Clips
from export.convert.episode_lines import LineWriter
from export.convert.rows import target_features
from export.convert.source import SourceDataset
from export.convert.videos import Span
from export.formats.lerobot_v21 import GROOT_STATISTICS
from export.image_statistics import ImageHistogram, sampled_frames
from export.statistics import Range, VectorCounts
from export.workers import Workers

FILES_AT_ONCE, EPISODES_AT_ONCE = 100, 20
NEEDED = {"min", "max", "mean", "std", "count"}


class StatsSum:
    """Gathers episodes' statistics: ranges of numbers, and the figures of pictures, which add up as LeRobot's do."""

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}
        self.pictures: dict[str, dict[str, np.ndarray]] = {}

    def add(self, metrics: dict[str, dict[str, Any]], pictures: Sequence[str]) -> None:
        """Take in one episode's statistics.

        Args:
            figures: Feature -> figure -> values.
            pictures: Which features are pictures.
        """
        for name, own in metrics.items():
            if name in pictures:
                arrays = {figure: np.array(values, np.float64) for figure, values in own.items()}
                self._add_picture(name, arrays)
            else:
                self._add_range(name, Range(np.array(own["min"], np.float64), np.array(own["max"], np.float64)))

    def add_sum(self, other: StatsSum) -> None:
        """Take in what other episodes add up to."""
        for name, arrays in other.pictures.items():
            self._add_picture(name, arrays)
        for name, within in other.ranges.items():
            self._add_range(name, within)

    def _add_picture(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        self.pictures[name] = _added(self.pictures[name], arrays) if name in self.pictures else arrays

    def _add_range(self, name: str, within: Range) -> None:
        self.ranges[name] = self.ranges[name] | within if name in self.ranges else within


def with_image_statistics(
    dataset: SourceDataset, clips: dict[str, Clips], folder: Path, workers: Workers
) -> SourceDataset:
    """Return the dataset with statistics of every video: those of its metadata, else of decoded frames.

    Args:
        dataset: The source.
        clips: By camera, where each episode's packets lie.
        folder: Where lines go with what is counted.
        workers: Who decodes.
    """
    starts = range(0, len(dataset.episodes), EPISODES_AT_ONCE) if clips else ()
    tasks = (
        partial(missing_statistics, dataset.part(start, start + EPISODES_AT_ONCE),
                {camera: own[start : start + EPISODES_AT_ONCE] for camera, own in clips.items()})
        for start in starts
    )  # fmt: skip
    with LineWriter(folder / "counted.jsonl", len(dataset.episodes)) as lines:
        for found in workers.run(tasks):
            for index, metrics in found:
                lines.write(index, metrics)
    return replace(dataset, counted=lines.lines())


def missing_statistics(dataset: SourceDataset, clips: dict[str, Clips]) -> list[tuple[int, dict[str, Any]]]:
    """Count the statistics of videos of which the metadata have none.

    Returns:
        Episode, and camera -> figures, of those that lack some.
    """
    found = []
    for place, recorded in enumerate(dataset.picture_statistics()):
        lacking = [camera for camera in clips if NEEDED - set(recorded.get(camera, {}))]
        if lacking:
            metrics = {camera: image_statistics(clips[camera][place]) for camera in lacking}
            found.append((int(dataset.episodes.index_N[place]), metrics))
    return found


def image_statistics(span: Span) -> dict[str, list]:
    """Decode a span and return the figures of its frames, sampled as LeRobot does, as JSON holds them."""
    wanted, image = set(sampled_frames(span.num_frames).tolist()), ImageHistogram.empty()
    frames = islice(decode_frames(span.path), span.first_frame, span.first_frame + span.num_frames)
    for index, frame in enumerate(frames):
        if index in wanted:
            image = image.with_frame(frame.to_ndarray(format="rgb24"))
    return _as_json(image.metrics())


def dataset_statistics(root: Path, dataset: SourceDataset, version: str, total: StatsSum, workers: Workers) -> None:
    """Write meta/stats.json.

    Args:
        root: The converted dataset, whose rows are written.
        dataset: The source.
        version: Of the converted dataset; v2.1 has GR00T's six figures of numbers and no picture.
        total: What its episodes add up to.
        workers: Who counts rows.
    """
    names = [name for name in total.ranges if name in target_features(dataset)]
    ranges = {name: total.ranges[name] for name in names}
    tasks = (partial(count_rows, files, ranges) for files in batched(_tables(root), FILES_AT_ONCE))
    counts: dict[str, VectorCounts] = {}
    for part in workers.run(tasks):
        counts = {name: counts[name] + part[name] if name in counts else part[name] for name in names}
    stats = {name: _as_json(counts[name].metrics(total.ranges[name])) for name in names}
    if version == "v2.1":
        stats = {name: {figure: own[figure] for figure in GROOT_STATISTICS} for name, own in stats.items()}
    else:
        stats |= {name: _as_json(own) for name, own in total.pictures.items()}
    write_json(root / "meta" / "stats.json", stats)


def _tables(root: Path) -> Iterator[Path]:
    for chunk in sorted(path for path in (root / "data").iterdir() if path.is_dir()):
        yield from sorted(chunk.glob("*.parquet"))


def count_rows(files: Iterable[Path], ranges: dict[str, Range]) -> dict[str, VectorCounts]:
    """Count the rows of some files of the dataset into the levels of each feature's range."""
    counts: dict[str, VectorCounts] = {}
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(columns=list(ranges), batch_size=10_000):
            for name, within in ranges.items():
                flat = batch[name]
                while hasattr(flat, "flatten") and hasattr(flat.type, "value_type"):
                    flat = flat.flatten()
                rows_ND = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(batch), -1)
                own = VectorCounts.of(rows_ND, within)
                counts[name] = counts[name] + own if name in counts else own
    return counts


def _added(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add up two groups of pictures: exact but for quantiles, which are weighted means, as in lerobot."""
    total = one["count"] + two["count"]
    share = two["count"] / total
    share_C = share.reshape(-1, *[1] * (one["mean"].ndim - 1)) if one["mean"].ndim > share.ndim else share
    delta = two["mean"] - one["mean"]
    added = {
        "min": np.minimum(one["min"], two["min"]),
        "max": np.maximum(one["max"], two["max"]),
        "mean": one["mean"] + delta * share_C,
        "std": np.sqrt(
            one["std"] ** 2 * (1 - share_C) + two["std"] ** 2 * share_C + delta**2 * share_C * (1 - share_C)
        ),
        "count": total,
    }
    return added | {n: one[n] + (two[n] - one[n]) * share_C for n in one if n.startswith("q") and n in two}


def _as_json(metrics: dict[str, np.ndarray]) -> dict[str, list]:
    whole = {name: values.astype(np.int64) if name == "count" else values for name, values in metrics.items()}
    return {name: values.tolist() for name, values in whole.items()}
