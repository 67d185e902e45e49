"""The writer of LeRobot v3.0 and v2.1 datasets, from whatever can list its episodes as an `EpisodeSource`.

Which file an episode goes to follows from whole numbers known beforehand, so each file, or in v2.1 each group of
episodes, is a task of its own: any number of workers writes them in any order, and a task whose done marker exists is
skipped.

Axes: N episodes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from itertools import batched, chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.lerobot.episode_source import EpisodeRecord, EpisodeSource, VideoSource
from dreamgen.data.lerobot.file_layout import FileLimits, VideoPlaces, plan_files, video_places
from dreamgen.data.lerobot.schema import (
    DEFAULT_CHUNKS_SIZE,
    EPISODE_STATS_V2,
    EPISODES_V2,
    EPISODES_V3,
    INFO,
    STATS,
    TASKS_V2,
    TASKS_V3,
    TEMPLATES_V2,
    TEMPLATES_V3,
)
from dreamgen.data.lerobot.statistics import (
    GROOT_STATISTICS,
    PartStatistics,
    Statistics,
    as_lists,
    merge_parts,
)
from dreamgen.data.lerobot.video import PacketReader, copy_spans
from dreamgen.data.timeline import frame_time_s
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file, fsync, path_component, write_json, write_text

DATA_V30, VIDEO_V30 = TEMPLATES_V3["data_path"], TEMPLATES_V3["video_path"]
DATA_V21, VIDEO_V21 = TEMPLATES_V2["data_path"], TEMPLATES_V2["video_path"]
EPISODE_FILE_V30 = DATA_V30.replace("data", EPISODES_V3, 1)
EPISODES_PER_ROW_GROUP = 500  # of v3.0's metadata
STATISTICS_PER_DIMENSION = 9  # min, max, mean, std and five quantiles
BYTES_OF_EPISODE = 2000  # its places and the statistics of its images, in the metadata
INDEX_FEATURE = {"dtype": "int64", "shape": [1], "names": None}
INDEX_FEATURES = {"timestamp": {"dtype": "float32", "shape": [1], "names": None}} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), INDEX_FEATURE
)


class TaskRunner(Protocol):
    """Runs functions, perhaps in other processes, and yields their results in order."""

    def run[Result](self, tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]: ...


def write_v30(
    root: Path, done_markers: Path, source: EpisodeSource, workers: TaskRunner, stage: str, limits: FileLimits
) -> None:
    """Write a LeRobot v3.0 dataset, or the rest of one that an earlier call began.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        done_markers: A folder outside of it for the marker of each finished task.
        source: Episodes numbered from 0.
        workers: Write the files; their number changes no byte.
        stage: Name for the progress line.
        limits: Sizes of files.
    """
    # Sizes are those in memory; parquet's are smaller, so the limit holds, unless a single episode exceeds it.
    metadata_bytes = 8 * STATISTICS_PER_DIMENSION * sum(source.columns.widths.values()) + BYTES_OF_EPISODE
    most = max(1, min(limits.max_episodes, limits.data_bytes // metadata_bytes))
    parts = plan_files(source.data_bytes_N, limits.data_bytes, most)
    markers = [done_markers / f"{n // limits.chunks_size:03d}-{n % limits.chunks_size:03d}.npz"
               for n in range(len(parts))]  # fmt: skip
    places, tasks = {}, []
    for camera in source.cameras:
        videos = source.videos(camera)
        files = plan_files(videos.num_bytes_N, limits.video_bytes, encoding_N=videos.encoding_N)
        places[camera] = video_places(files, source.num_frames_N)
        path = VIDEO_V30.replace("{video_key}", path_component(camera, "the camera"))
        tasks += [partial(_join_videos, root / path.format(**_number(n, limits)), videos[file], source.fps)
                  for n, file in enumerate(files)]  # fmt: skip
    rows = [partial(_write_part_v30, root, marker, _number(n, limits), source[part],
                    {camera: own[part] for camera, own in places.items()}, limits)
            for n, (part, marker) in enumerate(zip(parts, markers, strict=True))]  # fmt: skip
    with Progress(stage, len(rows) + len(tasks), "files") as progress:
        for _ in workers.run(chain(rows, tasks)):
            progress.add()
    statistics = _whole_statistics(source, markers)
    write_json(root / STATS, as_lists(statistics))
    _write_tasks_v30(root / TASKS_V3, source.tasks)
    files = {"data_files_size_in_mb": limits.data_mb, "video_files_size_in_mb": limits.video_mb}
    # Readers want whole numbers here, even for files smaller than one.
    sizes = {name: max(1, round(size)) for name, size in files.items()}
    write_json(root / INFO, _info("v3.0", source, DATA_V30, VIDEO_V30, limits.chunks_size, sizes))


def write_v21(
    root: Path, done_markers: Path, source: EpisodeSource, workers: TaskRunner, stage: str, episodes_per_task: int = 50
) -> None:
    """Write a LeRobot v2.1 dataset with GR00T's stats.json, or the rest of one that an earlier call began.

    Args:
        root: As in `write_v30`.
        done_markers: As in `write_v30`.
        source: Episodes numbered from 0.
        workers: As in `write_v30`.
        stage: Name for the progress line.
        episodes_per_task: How many a worker writes at once.
    """
    for camera in source.cameras:
        path_component(camera, "the camera")
    starts = range(0, len(source), episodes_per_task)
    markers = [done_markers / f"{start:09d}.npz" for start in starts]
    tasks = (partial(_write_part_v21, root, marker, source[start : start + episodes_per_task])
             for marker, start in zip(markers, starts, strict=True))  # fmt: skip
    with Progress(stage, len(source), "episodes") as progress:
        for num_written in workers.run(tasks):
            progress.add(num_written)
    for name in (EPISODES_V2, EPISODE_STATS_V2):
        with atomic_file(root / name) as temporary, temporary.open("wb") as joined:
            for marker in markers:
                joined.write(_lines_file(marker, name).read_bytes())
    tasks = ({"task_index": index, "task": task} for index, task in enumerate(source.tasks))
    write_text(root / TASKS_V2, json_lines(tasks))
    statistics = as_lists(_whole_statistics(source, markers))
    groot = {name: {stat: statistics[name][stat] for stat in GROOT_STATISTICS} for name in source.columns.widths}
    write_json(root / STATS, groot)
    totals = {"total_videos": len(source) * len(source.cameras), "total_chunks": -(-len(source) // DEFAULT_CHUNKS_SIZE)}
    write_json(root / INFO, _info("v2.1", source, DATA_V21, VIDEO_V21, DEFAULT_CHUNKS_SIZE, totals))


def vector_array(flat: pa.Array, width: int, version: str, name: str) -> pa.Array:
    """Return a column of vectors as a version holds it.

    v3.0 has fixed-size lists, and plain numbers for one dimension. v2.1 has lists, also for one dimension of action
    and observations, because GR00T stacks the cells and needs two axes.
    """
    as_lists = version == "v2.1"
    if width == 1 and not (as_lists and name.startswith(("action", "observation."))):
        return flat
    if as_lists:
        offsets = pa.array(np.arange(len(flat) // width + 1, dtype=np.int32) * width)
        return pa.ListArray.from_arrays(offsets, flat)
    return pa.FixedSizeListArray.from_arrays(flat, width)


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Return one JSON object a line, whatever a reader takes for a line's end."""
    # A line separator within a JSON string would split the line for readers that follow Unicode's line breaks.
    lines = map(_json_line, rows)
    escaped = (
        line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") for line in lines
    )
    return "".join(line + "\n" for line in escaped)


def _json_line(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UserError(
            f"the metadata of episode {row.get('episode_index')} holds NaN or infinity, which is not JSON",
            allowed="finite numbers", next_step="dreamgen check names the value",
        ) from None  # fmt: skip


def _write_part_v30(
    root: Path, marker: Path, number: dict[str, int], source: EpisodeSource, places: dict[str, VideoPlaces],
    limits: FileLimits,
) -> None:  # fmt: skip
    """Write a file of rows and the file of its episodes' metadata, which has the same number."""
    if marker.exists():
        return
    statistics, tables, records = PartStatistics(source.columns), [], iter(source)
    first = next(records)
    with (
        atomic_file(root / DATA_V30.format(**number)) as temporary,
        pq.ParquetWriter(temporary, first.table.schema, compression="snappy") as data,
    ):
        for some in batched(enumerate(chain([first], records)), EPISODES_PER_ROW_GROUP):
            rows = []
            for position, record in some:
                data.write_table(record.table)  # a row group an episode, as lerobot does
                videos = {}
                for camera, own in places.items():
                    videos |= _video_columns(camera, own, position, record.length, source.fps, limits)
                own = _with_known(statistics.add(record.rows_ND), record)
                rows.append(_episode_row(record, number, videos, own))
            tables.append(_episode_table(rows, source))
    with atomic_file(root / EPISODE_FILE_V30.format(**number)) as temporary:
        table = pa.concat_tables(tables, promote_options="default")
        pq.write_table(table, temporary, row_group_size=EPISODES_PER_ROW_GROUP)
    statistics.save(marker)


def _write_part_v21(root: Path, marker: Path, source: EpisodeSource) -> int:
    """Write the files of some episodes and, beside the marker, their lines of metadata; return how many."""
    if marker.exists():
        return len(source)
    statistics, episodes, episode_stats, written = PartStatistics(source.columns), [], [], []
    delays = [source.videos(camera).delay_N for camera in source.cameras]
    with ExitStack() as stack:
        readers = [stack.enter_context(PacketReader()) for _ in source.cameras]
        for position, record in enumerate(source):
            place = {"episode_chunk": record.index // DEFAULT_CHUNKS_SIZE, "episode_index": record.index}
            table = root / DATA_V21.format(**place)
            table.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(record.table, table)
            written.append(table)
            for camera, span, delay_N, reader in zip(source.cameras, record.videos, delays, readers, strict=True):
                path = root / VIDEO_V21.format(video_key=camera, **place)
                if span.begin_s is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(span.path, path)
                    written.append(path)
                else:
                    copy_spans(path, [span], source.fps, int(delay_N[position]), reader)
            stats = _with_known(statistics.add(record.rows_ND), record)
            episode = {"episode_index": record.index, "tasks": list(record.tasks), "length": record.length}
            episodes.append(episode | record.extras)
            episode_stats.append({"episode_index": record.index, "stats": stats})
    for path in written:  # together: the disk is waited for once rather than for every file
        fsync(path)
    write_text(_lines_file(marker, EPISODES_V2), json_lines(episodes))
    write_text(_lines_file(marker, EPISODE_STATS_V2), json_lines(episode_stats))
    statistics.save(marker)
    return len(source)


def _whole_statistics(source: EpisodeSource, markers: Iterable[Path]) -> dict[str, Statistics]:
    computed = merge_parts(markers, source.columns)
    return computed | source.known_statistics(computed)


def _with_known(computed: dict[str, Statistics], record: EpisodeRecord) -> dict[str, dict[str, Any]]:
    own = as_lists(computed)
    return own | {name: own.get(name, {}) | known for name, known in record.known_statistics.items()}


def _lines_file(marker: Path, name: str) -> Path:
    return marker.with_suffix(f".{Path(name).name}")


def _join_videos(path: Path, videos: VideoSource, fps: int | Fraction) -> None:
    if not path.exists():
        copy_spans(path, videos, fps, int(videos.delay_N.max()))


def _number(ordinal: int, limits: FileLimits) -> dict[str, int]:
    chunk, file = divmod(int(ordinal), limits.chunks_size)
    return {"chunk_index": chunk, "file_index": file}


def _video_columns(
    camera: str, places: VideoPlaces, position: int, length: int, fps: int | Fraction, limits: FileLimits
) -> dict[str, Any]:
    first_frame = int(places.first_frame_N[position])
    return {
        **{f"videos/{camera}/{name}": n for name, n in _number(places.file_N[position], limits).items()},
        f"videos/{camera}/from_timestamp": frame_time_s(first_frame, fps),
        f"videos/{camera}/to_timestamp": frame_time_s(first_frame + length, fps),
    }


def _episode_row(
    record: EpisodeRecord, number: dict[str, int], videos: dict[str, Any], statistics: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "episode_index": record.index,
        "tasks": list(record.tasks),
        "length": record.length,
        **{f"data/{name}": n for name, n in number.items()},
        "dataset_from_index": record.first_index,
        "dataset_to_index": record.first_index + record.length,
        **videos,
        **record.extras,
        **{f"stats/{name}/{stat}": v for name, own in statistics.items() for stat, v in own.items()},
        **{f"meta/episodes/{name}": n for name, n in number.items()},
    }


def _episode_table(rows: list[dict[str, Any]], source: EpisodeSource) -> pa.Table:
    extras = source.extras_schema

    def type_of(name: str) -> pa.DataType:
        if name == "tasks":
            return pa.list_(pa.string())
        if name in extras.names:
            return extras.field(name).type
        if name.endswith("_timestamp"):
            return pa.float64()
        if not name.startswith("stats/"):
            return pa.int64()
        feature, _, stat = name.removeprefix("stats/").rpartition("/")
        if stat == "count":
            return pa.list_(pa.int64())
        is_image = source.features[feature]["dtype"] in ("video", "image")
        return pa.list_(pa.list_(pa.list_(pa.float64()))) if is_image else pa.list_(pa.float64())

    names = dict.fromkeys(name for row in rows for name in row)
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, type_of(name)) for name in names]))


def _write_tasks_v30(path: Path, tasks: tuple[str, ...]) -> None:
    import pandas as pd  # a second to import, which no worker needs

    names = pd.Index(list(tasks), name="task")
    with atomic_file(path) as temporary:
        pd.DataFrame({"task_index": np.arange(len(names))}, index=names).to_parquet(temporary)


def _info(
    version: str, source: EpisodeSource, data_path: str, video_path: str, chunks_size: int, own: dict[str, Any]
) -> dict[str, Any]:
    fps = Fraction(source.fps)
    info = {
        "codebase_version": version,
        "fps": fps.numerator if fps.denominator == 1 else float(fps),
        "features": source.features,
        "total_episodes": len(source),
        "total_frames": int(source.num_frames_N.sum()),
        "total_tasks": len(source.tasks),
        "chunks_size": chunks_size,
        **own,
        "data_path": data_path,
        "video_path": video_path if source.cameras else None,
    }
    others = {name: value for name, value in source.info.items() if name not in info}
    return info | others | {"splits": {"train": f"0:{len(source)}"}}
