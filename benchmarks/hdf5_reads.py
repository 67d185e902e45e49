"""Compression and chunks of images in HDF5: size, and time to write a frame and to read random frames and sequences.

    python benchmarks/hdf5_reads.py --out benchmarks/results/hdf5_reads.json
    python benchmarks/hdf5_reads.py --num_frames 20 --reads 5 --height 64 --width 96

Files are in the page cache, so rows differ in what a reader computes; from a slow disk, their size matters too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from synthetic_run import drawn_frames, hdf5_dataset

from dreamgen.data.video import read_video, write_video
from export.formats.hdf5_parts import COMPRESSION

SEQUENCE = 10
LAYOUTS = [(name, chunk) for name in COMPRESSION for chunk in (1, SEQUENCE)]


def main() -> None:
    """Write the frames in each layout, read them at random, compare, print the table and write the results."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="hdf5-reads-") as folder:
        clip = Path(folder) / "clip.mp4"  # encoded and decoded like every clip; noise compresses worst
        write_video(clip, drawn_frames(0, args.num_frames, args.height, args.width), 16)
        video_THWC = read_video(clip)
        file = Path(folder) / "images.hdf5"
        rows = [measure(file, video_THWC, *layout, args.reads) for layout in LAYOUTS]
    if args.out:
        Path(args.out).write_text(json.dumps({"shape": video_THWC.shape, "rows": rows}, indent=1) + "\n")
    print("| compression | frames per chunk | size | write a frame, ms | read a frame, ms | read 10 in a row, ms |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        times = f"{row['write_ms']:.1f} | {row['read_ms']:.1f} | {row['sequence_ms']:.1f}"
        print(f"| {row['compression']} | {row['chunk']} | {row['size']:.0%} | {times} |")


def measure(path: Path, video_THWC: np.ndarray, name: str, chunk: int, reads: int) -> dict[str, Any]:
    """Write and read one layout; median CPU times, so that other work on the machine does not count."""
    frame_shape = video_THWC.shape[1:]
    start_s = time.process_time()
    with h5py.File(path, "w") as file:
        images = file.create_dataset(
            "images", video_THWC.shape, np.uint8, chunks=(chunk, *frame_shape), **COMPRESSION[name]
        )
        for start in range(0, len(video_THWC), chunk):
            images[start : start + chunk] = video_THWC[start : start + chunk]
    write_s = (time.process_time() - start_s) / len(video_THWC)
    random, took = np.random.default_rng(0), {1: [], SEQUENCE: []}
    with h5py.File(path, "r") as file:
        images = hdf5_dataset(file, "images")
        for length, times in took.items():
            for start in random.integers(0, len(video_THWC) - length + 1, reads):
                start_s = time.process_time()
                read = images[start : start + length]
                times.append(time.process_time() - start_s)
                assert np.array_equal(read, video_THWC[start : start + length])
    return {
        "compression": name, "chunk": chunk, "size": path.stat().st_size / video_THWC.nbytes,
        "write_ms": 1000 * write_s, "read_ms": 1000 * float(np.median(took[1])),
        "sequence_ms": 1000 * float(np.median(took[SEQUENCE])),
    }  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--reads", type=int, default=31)
    parser.add_argument("--out", help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
