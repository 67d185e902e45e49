"""Seconds a clip to write LeRobot datasets: ours (v3.0, v2.1) against lerobot's own writer, streaming and as it comes.

    python benchmarks/export_speed.py --clips 1000 --reference_clips 24 --out benchmarks/results/export_speed.json
    python benchmarks/export_speed.py --clips 4 --reference_clips 2 --height 96 --width 128 --num_frames 17

Ours is the command `dreamgen export`, from its start to its end, with reading and decoding the clips; the reference is
gets decoded frames, and only its calls are timed. CPU seconds, of all processes and threads, show
what a busy machine hides. Memory is the sum of all processes' resident sets.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pyarrow.parquet as pq
from synthetic_run import INSTRUCTIONS, labels_of, make_run

from dreamgen.data.video import read_video
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.run_folder import RunFolder

CAMERA = "observation.images.ego_view"
FORMATS = ("lerobot-v3.0", "lerobot-v2.1")


def main() -> None:
    """Write with each, check what was written, print the table and write the results."""
    args = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="export-speed-", dir=args.folder))
    try:
        run = make_run(
            folder / "run", args.clips, args.height, args.width, args.num_frames, args.dims, distinct=args.distinct
        )
        rows = [ours(run, name, args) for name in FORMATS]
        rows.append(ours(run, FORMATS[0], args, "--lerobot_sample=true"))
        rows += [reference(run, folder / "reference", streaming, args) for streaming in (True, False)]
    finally:
        shutil.rmtree(folder)
    metrics = {"clips": args.clips, "reference_clips": args.reference_clips, "cores": len(os.sched_getaffinity(0)),
               "shape": [args.num_frames, args.height, args.width, args.dims], "rows": rows}  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps(metrics, indent=1) + "\n")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    streaming, default = (row["clip_s"] for row in rows[-2:])
    lines = ["| writer | clips | s per clip | CPU s | times faster than streaming | than the default | peak MB "
             "| check |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        ratios = " | ".join(f"{reference / row['clip_s']:.1f}" for reference in (streaming, default))
        lines.append(f"| {row['writer']} | {row['clips']} | {row['clip_s']:.3f} | {row['clip_cpu_s']:.3f} | {ratios} | "
                     f"{row['peak_mb']:.0f} | {row['check']} |")  # fmt: skip
    return "\n".join(lines)


def ours(run: RunFolder, name: str, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    """Export a run as the user does, and compare frames and actions with clips and labels."""
    command = [sys.executable, "-m", "dreamgen", "export", "--out", str(run.root), f"--formats=[{name}]",
               "--keep_free_gib=0", *options]  # fmt: skip
    start_s, start_cpu_s = time.monotonic(), children_cpu_s()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with PeakMemory(process.pid) as memory:
        status = process.wait()
    seconds, cpu_s = time.monotonic() - start_s, children_cpu_s() - start_cpu_s
    assert status == 0, f"dreamgen export ended with {status}"
    check = check_v30(run, args) if name == "lerobot-v3.0" else check_v21(run, args)
    shutil.rmtree(run.datasets)
    return {
        "writer": ", ".join(["ours", name, *options]), "clips": args.clips, "clip_s": seconds / args.clips,
        "seconds": seconds, "clip_cpu_s": cpu_s / args.clips, "peak_mb": memory.peak_bytes / 1e6, "check": check,
    }  # fmt: skip


def check_v30(run: RunFolder, args: argparse.Namespace) -> str:
    """Read random frames with lerobot's reader."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    clips = accepted_clips(run)
    root = run.datasets / "lerobot-v3.0"
    dataset = LeRobotDataset("benchmark/ours", root=root, video_backend="pyav", return_uint8=True)
    assert len(dataset) == args.clips * args.num_frames
    random = np.random.default_rng(0)
    for index in random.integers(0, len(dataset), args.checked).tolist():
        number, frame = divmod(index, args.num_frames)
        item = dataset[index]
        assert isinstance(item, dict), "an index gives one frame"
        video_THWC = read_video(clips[number].video)
        assert (item[CAMERA].permute(1, 2, 0).numpy() == video_THWC[frame]).all(), f"frame {index} differs"
        assert (item["action"].numpy() == labels_of(number, args.num_frames, args.dims)[0][frame]).all()
        assert item["task"] == INSTRUCTIONS[number % len(INSTRUCTIONS)]
    return f"{args.checked} frames and actions equal"


def check_v21(run: RunFolder, args: argparse.Namespace) -> str:
    """Compare random episodes' files with clips and labels."""
    clips, root = accepted_clips(run), run.datasets / "lerobot-v2.1"
    numbers = np.random.default_rng(0).integers(0, args.clips, min(args.checked, args.clips)).tolist()
    for number in numbers:
        place = f"chunk-{number // 1000:03d}"
        video = root / f"videos/{place}/{CAMERA}/episode_{number:06d}.mp4"
        assert video.read_bytes() == clips[number].video.read_bytes()
        rows = pq.read_table(root / f"data/{place}/episode_{number:06d}.parquet")
        action_TA = np.stack(rows["action"].to_numpy())
        assert (action_TA == labels_of(number, args.num_frames, args.dims)[0]).all()
    return f"{len(numbers)} episodes equal"


def reference(run: RunFolder, root: Path, streaming: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Write a few clips with lerobot, in a process of its own so that memory is its own."""
    command = [sys.executable, __file__, "--as_reference", str(run.root), str(root), "--reference_clips",
               str(args.reference_clips)] + (["--streaming"] if streaming else [])  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with PeakMemory(process.pid) as memory:
        output, _ = process.communicate()
    assert process.returncode == 0, "lerobot's writer failed"
    seconds, cpu_s, num_decoded, num_given = json.loads(output.splitlines()[-1])
    return {
        "writer": "lerobot, streaming_encoding=True" if streaming else "lerobot, default",
        "clips": args.reference_clips, "clip_s": seconds / args.reference_clips, "seconds": seconds,
        "clip_cpu_s": cpu_s / args.reference_clips,
        "peak_mb": memory.peak_bytes / 1e6, "check": f"{num_decoded} of {num_given} frames in its videos",
    }  # fmt: skip


def run_reference(run: RunFolder, root: Path, streaming: bool, num_clips: int) -> None:
    """Time `add_frame`, `save_episode` and `finalize`; print seconds, CPU seconds, frames in the videos and given."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from dreamgen.data.video import probe
    from export.episodes import read_label

    clips = accepted_clips(run)[:num_clips]
    action_TA, _ = read_label(clips[0].label, include_state=True)
    vector = {"dtype": "float32", "shape": (action_TA.shape[1],), "names": None}
    picture = {"dtype": "video", "shape": (clips[0].job.height, clips[0].job.width, 3),
               "names": ["height", "width", "channels"]}  # fmt: skip
    shutil.rmtree(root, ignore_errors=True)
    features = {CAMERA: picture, "action": vector, "observation.state": vector}
    dataset = LeRobotDataset.create(
        "benchmark/reference", clips[0].job.fps, features, root=root, streaming_encoding=streaming
    )
    seconds, cpu_s, num_given = 0.0, 0.0, 0
    for clip in clips:
        video_THWC, (action_TA, state_TS) = read_video(clip.video), read_label(clip.label, include_state=True)
        assert state_TS is not None, "the labels of a synthetic run have states"
        start_s, start_cpu_s = time.monotonic(), time.process_time()
        for frame_HWC, action_A, state_S in zip(video_THWC, action_TA, state_TS, strict=True):
            dataset.add_frame({CAMERA: frame_HWC, "action": action_A, "observation.state": state_S,
                               "task": clip.job.instruction})  # fmt: skip
        dataset.save_episode()
        seconds, cpu_s = seconds + time.monotonic() - start_s, cpu_s + time.process_time() - start_cpu_s
        num_given += len(video_THWC)
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    dataset.finalize()
    seconds, cpu_s = seconds + time.monotonic() - start_s, cpu_s + time.process_time() - start_cpu_s
    num_decoded = sum(probe(path).num_frames for path in root.rglob("*.mp4"))
    print(json.dumps([seconds, cpu_s, num_decoded, num_given]))


def children_cpu_s() -> float:
    """Return the CPU seconds of all processes that this one waited for, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class PeakMemory:
    """The largest sum of resident sets of a process and its descendants, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, _family(self._pid))))

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(word) for word in children.read_text().split()]
            except OSError:  # it has ended
                continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--reference_clips", type=int, default=24)
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--dims", type=int, default=44)
    parser.add_argument("--distinct", type=int, default=8, help="clips that are drawn; the others are links to them")
    parser.add_argument("--checked", type=int, default=40, help="random frames that are compared")
    parser.add_argument("--folder", help="where to work; a few GB; the system's temporary folder when not given")
    parser.add_argument("--out", help="JSON with the results")
    parser.add_argument("--as_reference", nargs=2, metavar=("RUN", "ROOT"), help=argparse.SUPPRESS)
    parser.add_argument("--streaming", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_reference:
        run_reference(
            RunFolder(Path(args.as_reference[0])), Path(args.as_reference[1]), args.streaming, args.reference_clips
        )
        sys.exit()
    return args


if __name__ == "__main__":
    main()
