"""Change good datasets without breaking them: what does `dreamgen check` find, with and without a manifest?

    python benchmarks/check_swaps.py --out benchmarks/results/check_swaps.json

Two measurements:
- swaps: frames, rows or videos are exchanged, shifted or mirrored, so that every file stays well-formed;
- flips: one bit of one byte is changed, at places spread evenly over every file.

Cameras show one scene in all episodes. The LeRobot dataset has states that follow their actions; lerobot writes it, and
it is converted to v2.1. ACT's file has joints that follow their commands, robomimic's random actions; h5py writes both.
Without a manifest everything is decoded; with one, `check --verify` decodes nothing. Both are timed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.config.settings import CheckSettings, ConvertSettings
from dreamgen.data.video import probe, read_video, write_video
from export.check import check, check_stage
from export.check.hdf5.arrays import array_at
from export.convert import convert_dataset
from export.manifest import MANIFEST, present_files, write_manifest
from tests.fixtures.good_datasets import aloha_commands, lerobot_commands, robomimic

CAMERA = "observation.images.front"
FORMATS = ("lerobot-v3.0", "lerobot-v2.1", "robomimic", "aloha")
INHERENT = {"length-varies", "modality-missing"}  # warnings that the unchanged datasets have
TABLE, VIDEO = "data/chunk-000/episode_000002.parquet", f"videos/chunk-000/{CAMERA}/episode_000002.mp4"
OTHER = f"videos/chunk-000/{CAMERA}/episode_000003.mp4"
FIRST = {"robomimic": ("data.hdf5", "data/demo_1/obs/agentview_image", "data/demo_1/actions"),
         "aloha": ("episode_1.hdf5", "observations/images/top", "action")}  # fmt: skip


def main() -> int:
    """Change, check, print the tables, write the results; status 1 if the manifest missed anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=60, help="flips a format (default 60)")
    parser.add_argument("--out", help="write the results as JSON")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, redirect_stderr(quiet):  # noqa: PTH123
        good = good_datasets(Path(folder))
        damaged = Path(folder) / "damaged"
        swaps = [try_swap(name, what, change, good[name], damaged)
                 for name, changes in SWAPS.items() for what, change in changes.items()]  # fmt: skip
        flips = [try_flips(name, good[name], damaged, args.flips) for name in FORMATS]
        times = [measure(name, good[name]) for name in FORMATS]
    print(swap_table(swaps), flip_table(flips), time_table(times), sep="\n")
    if args.out:
        results = {"swaps": swaps, "flips": flips, "times": times}
        Path(args.out).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return int(any(not row["with"] for row in swaps) or any(row["with"] < row["flips"] for row in flips))


def good_datasets(folder: Path) -> dict[str, Path]:
    """Make one dataset of each format, with its manifest."""
    good = {"lerobot-v3.0": lerobot_commands(folder / "v30", (CAMERA,))}
    convert_dataset(good["lerobot-v3.0"], folder / "v21", ConvertSettings())
    good |= {"lerobot-v2.1": folder / "v21"}
    good |= {"robomimic": robomimic(folder / "robomimic", one_scene=True), "aloha": aloha_commands(folder / "aloha")}
    for root in good.values():
        write_manifest(root)
    return good


def found_without(root: Path) -> list[str]:
    """Return the codes that a full check without the manifest finds."""
    manifest = (root / MANIFEST).read_bytes()
    (root / MANIFEST).unlink()
    codes = {finding.code for finding in check(root)} - INHERENT
    (root / MANIFEST).write_bytes(manifest)
    return sorted(codes)


def found_with(root: Path) -> bool:
    """Return whether `check --verify` finds something."""
    return bool(check_stage(root, CheckSettings(verify=True)).metrics["findings"])


def try_swap(name: str, what: str, change: Callable[[Path], None], good: Path, root: Path) -> dict[str, Any]:
    """Change a copy of a dataset and check it both ways."""
    shutil.copytree(good, root)
    change(root)
    row = {"format": name, "swap": what, "without": found_without(root), "with": found_with(root)}
    shutil.rmtree(root)
    return row


def try_flips(name: str, good: Path, root: Path, number: int) -> dict[str, Any]:
    """Flip one bit at a time, spread over all files by their size, each file at least once."""
    shutil.copytree(good, root)
    random = np.random.default_rng(0)
    files = sorted(present_files(root))
    sizes = np.array([(root / file).stat().st_size for file in files])
    chosen = [*range(len(files)), *random.choice(len(files), number, p=sizes / sizes.sum())]
    without = with_manifest = fast = 0
    for place in chosen:
        path = root / files[place]
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        without += bool(found_without(root))
        with_manifest += found_with(root)
        fast += any(finding.code.startswith("manifest-") for finding in check(root, fast=True))
        path.write_bytes(content)
    shutil.rmtree(root)
    return {"format": name, "flips": len(chosen), "without": without, "with": with_manifest, "with, --fast": fast}


def measure(name: str, root: Path, repeats: int = 3) -> dict[str, Any]:
    """Time a full check without the manifest, and `--verify`, the best of a few."""
    manifest = (root / MANIFEST).read_bytes()
    best = {}
    for mode in ("full", "verify"):
        if mode == "full":
            (root / MANIFEST).unlink()
        seconds = []
        for _ in range(repeats):
            begun_s = time.perf_counter()
            check_stage(root, CheckSettings(verify=mode == "verify", num_workers=1))
            seconds.append(time.perf_counter() - begun_s)
        (root / MANIFEST).write_bytes(manifest)
        best[mode] = min(seconds)
    num_bytes = sum((root / file).stat().st_size for file in present_files(root))
    return {"format": name, "bytes": num_bytes, "full_s": best["full"], "verify_s": best["verify"]}


def in_video(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Return a change of the frames of one episode's video."""

    def apply(root: Path) -> None:
        path = root / VIDEO
        write_video(path, np.ascontiguousarray(change(read_video(path))), probe(path).fps)

    return apply


def in_actions(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Return a change of the actions of one episode."""

    def apply(root: Path) -> None:
        table = pq.read_table(root / TABLE)
        action_TA = change(np.stack(table["action"].to_numpy()))
        column = pa.array(list(action_TA), table.schema.field("action").type)
        pq.write_table(table.set_column(table.column_names.index("action"), "action", column), root / TABLE)

    return apply


def in_arrays(name: str, place: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Return a change of an array of an HDF5 file: images (1) or actions (2)."""

    def apply(root: Path) -> None:
        with h5py.File(root / FIRST[name][0], "r+") as file:
            array = array_at(file, FIRST[name][place])
            assert array is not None, f"{root} has no {FIRST[name][place]}"
            array[...] = change(array[...])

    return apply


def exchanged(rows: np.ndarray) -> np.ndarray:
    """Exchange two rows."""
    order = np.arange(len(rows))
    order[[2, len(rows) - 2]] = order[[len(rows) - 2, 2]]
    return rows[order]


def exchange_videos(root: Path) -> None:
    """Exchange the videos of two episodes, cut or padded to each other's length."""
    one, other = read_video(root / VIDEO), read_video(root / OTHER)
    for path, own, shown in ((root / VIDEO, one, other), (root / OTHER, other, one)):
        write_video(path, shown[np.minimum(np.arange(len(own)), len(shown) - 1)], probe(path).fps)


FRAMES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "two frames exchanged": exchanged,
    "mirrored": lambda video_THWC: video_THWC[:, :, ::-1],
    "upside down": lambda video_THWC: video_THWC[:, ::-1],
    "backwards": lambda video_THWC: video_THWC[::-1],
    "shifted by one frame": lambda video_THWC: video_THWC[np.maximum(np.arange(len(video_THWC)) - 1, 0)],
    "red and blue exchanged": lambda video_THWC: video_THWC[..., ::-1],
}
ROWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "two rows of actions exchanged": exchanged,
    "actions reversed": lambda action_TA: action_TA[::-1],
    "actions shifted by one row": lambda action_TA: np.roll(action_TA, 1, axis=0),
    "actions shifted by five rows": lambda action_TA: np.roll(action_TA, 5, axis=0),
    "an action changed by a thousandth": lambda action_TA: action_TA * np.where(np.arange(len(action_TA)) == 3, 1.001,
                                                                                1)[:, None].astype(np.float32),
}  # fmt: skip
SWAPS: dict[str, dict[str, Callable[[Path], None]]] = {
    "lerobot-v2.1": {
        **{f"video: {what}": in_video(change) for what, change in FRAMES.items()},
        "videos of two episodes exchanged": exchange_videos,
        **{what: in_actions(change) for what, change in ROWS.items()},
    },
    **{
        name: {
            **{f"images: {what}": in_arrays(name, 1, change) for what, change in FRAMES.items()},
            **{what: in_arrays(name, 2, change) for what, change in ROWS.items()},
        }
        for name in ("robomimic", "aloha")
    },
}


def swap_table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of swaps."""
    lines = ["| format | change | without a manifest | with one |", "|---|---|---|---|"]
    for row in rows:
        codes = ", ".join(f"`{code}`" for code in row["without"]) or "not found"
        lines.append(f"| {row['format']} | {row['swap']} | {codes} | {'found' if row['with'] else 'NOT FOUND'} |")
    return "\n".join(lines) + "\n"


def flip_table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of flips."""
    lines = ["| format | flips | found without a manifest | with one | with one, `--fast` |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)]) + "\n"


def time_table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of times."""
    lines = ["| format | MB | full check, s | `--verify`, s | times faster |", "|---|---|---|---|---|"]
    lines += [f"| {row['format']} | {row['bytes'] / 1e6:.1f} | {row['full_s']:.2f} | {row['verify_s']:.3f} | "
              f"{row['full_s'] / row['verify_s']:.0f} |" for row in rows]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
