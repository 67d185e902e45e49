"""Checking datasets of many episodes: does time grow with their number only, and does memory stay?

    python benchmarks/check_scale.py --episodes 10000 30000 100000 --out benchmarks/results/check_scale.json
    python benchmarks/check_scale.py --episodes 300 --versions v3.0 v2.1        # a smoke test

The datasets are simulated: real tables and metadata, one tiny video whose file many episodes link to. Each is checked
by `dreamgen check --fast` in a process of its own, after one total was made wrong, so that a checker that reads nothing
would fail. Peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.video import write_video

CAMERA, FPS, LENGTH, SIZE = "observation.images.ego_view", 16, 4, 32
VECTORS = {"observation.state": 7, "action": 7}
STATISTICS = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
EPISODES_AT_ONCE = 1000  # in a row group, and in a v3.0 video
EPISODES_A_DATA_FILE = 10_000
LINKS_TO_A_FILE = 10_000  # file systems allow some ten thousand


def main() -> int:
    """Make and check each size, print the table, write the results; status 1 if a check found anything else."""
    args = parse_arguments()
    rows = []
    for version in args.versions:
        for num_episodes in args.episodes:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                root = Path(folder) / "dataset"
                start_s = time.perf_counter()
                {"v3.0": write_v30, "v2.1": write_v21}[version](root, num_episodes)
                made_s = time.perf_counter() - start_s
                rows.append({"version": version, "episodes": num_episodes, "made_s": made_s, **measure(root, args)})
                print(f"{version} {num_episodes}: {rows[-1]}", file=sys.stderr)
    head = "| format | episodes | s | CPU s | CPU ms an episode | peak MB | found the wrong total, nothing else |"
    print(f"{head}\n|---|---|---|---|---|---|---|")
    for row in rows:
        each_ms = 1000 * row["cpu_s"] / row["episodes"]
        print(f"| {row['version']} | {row['episodes']:,} | {row['seconds']:.1f} | {row['cpu_s']:.1f} | {each_ms:.2f} | "
              f"{row['peak_mb']:.0f} | {'yes' if row['right'] else 'NO'} |")  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps({"num_workers": args.num_workers, "rows": rows}, indent=1) + "\n")
    return int(not all(row["right"] for row in rows))


def measure(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Check a dataset with one wrong total in a process of its own."""
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "total_frames": info["total_frames"] + 1}))
    command = [sys.executable, "-m", "dreamgen", "check", str(root), "--json", "--fast",
               f"--num_workers={args.num_workers}"]  # fmt: skip
    with tempfile.TemporaryFile() as out:
        start_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, cwd=Path(__file__).resolve().parents[1])
        _, _, usage = os.wait4(process.pid, 0)  # of the process and of those it waited for
        seconds = time.perf_counter() - start_s
        out.seek(0)
        metrics = json.loads(out.read())[0]["figures"]
    codes = [(finding["code"], finding["where"]) for finding in metrics["findings"]]
    return {
        "seconds": seconds,
        "peak_mb": usage.ru_maxrss / 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "right": codes
        in ([("wrong-total", "total_frames")], [("wrong-total", "total_frames"), ("modality-missing", "")]),
    }


def batches(num_episodes: int, size: int = EPISODES_AT_ONCE) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Yield (first episode, episodes, vectors of their rows) of the dataset, from its beginning."""
    for first in range(0, num_episodes, size):
        count = min(size, num_episodes - first)
        random = np.random.default_rng(first)
        yield first, count, {name: random.normal(size=(count, LENGTH, dims)).astype(np.float32)
                             for name, dims in VECTORS.items()}  # fmt: skip


def rows_of(first: int, count: int, vectors: dict[str, np.ndarray]) -> pa.Table:
    """Return the rows of some episodes."""
    episode_N = np.repeat(np.arange(first, first + count), LENGTH)
    frame_N = np.tile(np.arange(LENGTH), count)
    columns = {
        name: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[2]) for name, values in vectors.items()
    }
    indices = {"timestamp": (frame_N / FPS).astype(np.float32), "frame_index": frame_N, "episode_index": episode_N,
               "index": episode_N * LENGTH + frame_N, "task_index": episode_N % 10}  # fmt: skip
    return pa.table({**columns, **{name: pa.array(values) for name, values in indices.items()}})


def statistics_of(vectors: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return feature -> statistic -> one row an episode."""
    quantiles = {name: int(name[1:]) / 100 for name in STATISTICS if name.startswith("q")}
    return {
        name: {
            **{stat: getattr(values, stat)(axis=1).astype(np.float64) for stat in STATISTICS[:4]},
            **{stat: np.quantile(values, q, axis=1) for stat, q in quantiles.items()},
            "count": np.full((len(values), 1), LENGTH),
        }
        for name, values in vectors.items()
    }


def write_v30(root: Path, num_episodes: int) -> None:
    """Write LeRobot v3.0."""
    clip = shared_video(root, min(num_episodes, EPISODES_AT_ONCE))
    episodes_file = root / "meta/episodes/chunk-000/file-000.parquet"
    episodes_file.parent.mkdir(parents=True)
    whole, writer, data = Whole(), None, None
    for number, (first, count, vectors) in enumerate(batches(num_episodes)):
        statistics = statistics_of(vectors)
        whole.add(vectors)
        if first % EPISODES_A_DATA_FILE == 0:
            path = root / f"data/chunk-000/file-{first // EPISODES_A_DATA_FILE:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = data and data.close()
        table = rows_of(first, count, vectors)
        data = data or pq.ParquetWriter(path, table.schema)
        data.write_table(table)
        video = root / f"videos/{CAMERA}/chunk-000/file-{number:03d}.mp4"
        if count < EPISODES_AT_ONCE and num_episodes > count:
            write_video(video, frames(count), FPS)
        else:
            link(clip, video)
        table = episodes_table(first, count, number, statistics)
        writer = writer or pq.ParquetWriter(episodes_file, table.schema)
        writer.write_table(table)
    assert writer is not None and data is not None, "there is an episode"
    writer.close()
    data.close()
    clip.unlink()
    tasks = pa.table({"task_index": pa.array(np.arange(10)), "task": [f"task {i}" for i in range(10)]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    write_info(root, "v3.0", num_episodes, whole)


def episodes_table(first: int, count: int, video: int, statistics: dict[str, dict[str, np.ndarray]]) -> pa.Table:
    """Return the v3.0 metadata of some episodes that share a video."""
    index, place = np.arange(first, first + count), np.arange(count)
    zeros = np.zeros(count, np.int64)
    return pa.table({
        "episode_index": index,
        "tasks": pa.array([[f"task {i % 10}"] for i in index.tolist()]),
        "length": np.full(count, LENGTH),
        "data/chunk_index": zeros,
        "data/file_index": index // EPISODES_A_DATA_FILE,
        "dataset_from_index": index * LENGTH,
        "dataset_to_index": (index + 1) * LENGTH,
        f"videos/{CAMERA}/chunk_index": zeros,
        f"videos/{CAMERA}/file_index": np.full(count, video),
        f"videos/{CAMERA}/from_timestamp": place * LENGTH / FPS,
        f"videos/{CAMERA}/to_timestamp": (place + 1) * LENGTH / FPS,
        **{f"stats/{name}/{stat}": pa.array(list(values))
           for name, of in statistics.items() for stat, values in of.items()},
    })  # fmt: skip


def write_v21(root: Path, num_episodes: int) -> None:
    """Write LeRobot v2.1."""
    whole = Whole()
    (root / "meta").mkdir(parents=True)
    with (root / "meta/episodes.jsonl").open("w") as lines, (root / "meta/episodes_stats.jsonl").open("w") as metrics:
        for first, count, vectors in batches(num_episodes):
            if first % LINKS_TO_A_FILE == 0:
                clip = shared_video(root, 1, name=f"clip-{first}.mp4")
            table, statistics = rows_of(first, count, vectors), statistics_of(vectors)
            whole.add(vectors)
            for place in range(count):
                index = first + place
                data = root / f"data/chunk-{index // 1000:03d}/episode_{index:06d}.parquet"
                data.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table.slice(place * LENGTH, LENGTH), data)
                link(clip, root / f"videos/chunk-{index // 1000:03d}/{CAMERA}/episode_{index:06d}.mp4")
                row = {"episode_index": index, "tasks": [f"task {index % 10}"], "length": LENGTH}
                lines.write(json.dumps(row) + "\n")
                stats = {name: {stat: values[place].tolist() for stat, values in of.items()}
                         for name, of in statistics.items()}  # fmt: skip
                metrics.write(json.dumps({"episode_index": index, "stats": stats}) + "\n")
    for clip in root.glob("clip-*.mp4"):
        clip.unlink()
    tasks = "".join(json.dumps({"task_index": i, "task": f"task {i}"}) + "\n" for i in range(10))
    (root / "meta/tasks.jsonl").write_text(tasks)
    write_info(root, "v2.1", num_episodes, whole)


class Whole:
    """Collects the statistics of all rows, for stats.json."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in VECTORS}

    def add(self, vectors: dict[str, np.ndarray]) -> None:
        """Take in the rows of some episodes."""
        for name, values in vectors.items():
            flat_ND = values.reshape(-1, values.shape[2]).astype(np.float64)
            self._rows[name].append({"min": flat_ND.min(0), "max": flat_ND.max(0), "sum": flat_ND.sum(0),
                                     "squares": (flat_ND**2).sum(0), "count": np.array(len(flat_ND))})  # fmt: skip

    def metrics(self) -> dict[str, dict[str, list]]:
        """Return stats.json."""
        found = {}
        for name, parts in self._rows.items():
            stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
            count = stacked["count"].sum()
            mean_D = stacked["sum"].sum(0) / count
            std_D = np.sqrt(stacked["squares"].sum(0) / count - mean_D**2)
            metrics = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean_D, "std": std_D}
            found[name] = {stat: values.tolist() for stat, values in metrics.items()} | {"count": [int(count)]}
        return found


def write_info(root: Path, version: str, num_episodes: int, whole: Whole) -> None:
    """Write info.json and stats.json."""
    features = {CAMERA: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"],
                         "info": {"video.fps": FPS, "video.codec": "h264", "video.pix_fmt": "yuv420p"}}}  # fmt: skip
    features |= {name: {"dtype": "float32", "shape": [dims], "names": None} for name, dims in VECTORS.items()}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None}
                 for name in ("frame_index", "episode_index", "index", "task_index")}  # fmt: skip
    info = {"codebase_version": version, "fps": FPS, "features": features, "total_episodes": num_episodes,
            "total_frames": num_episodes * LENGTH, "total_tasks": 10, "chunks_size": 1000, "robot_type": "arm",
            "splits": {"train": f"0:{num_episodes}"}}  # fmt: skip
    if version == "v2.1":
        info |= {"total_videos": num_episodes, "total_chunks": -(-num_episodes // 1000)}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/stats.json").write_text(json.dumps(whole.metrics()))


def frames(num_episodes: int) -> Iterator[np.ndarray]:
    """Yield the frames of some episodes."""
    return (np.full((SIZE, SIZE, 3), 40 + 7 * (number % 20), np.uint8) for number in range(num_episodes * LENGTH))


def shared_video(root: Path, num_episodes: int, name: str = "clip.mp4") -> Path:
    """Write the video that the episodes' own link to."""
    write_video(root / name, frames(num_episodes), FPS)
    return root / name


def link(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--versions", nargs="+", default=["v3.0", "v2.1"], choices=["v3.0", "v2.1"])
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", help="where the datasets are made, and removed")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
