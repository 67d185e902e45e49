"""Render first frames of new Meta-World scenes, with a table of instructions that `dreamgen plan` reads.

python examples/metaworld/first_frames.py --task drawer-open --num 6 --out data/new_starts
python examples/metaworld/first_frames.py --of data/recorded --out data/its_starts
dreamgen plan --first_frames data/new_starts/first_frames.csv ...
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from record import check_simulator
from tasks import FIRST_RECORDING_SEED, REGIONS, TASKS, instructions_of

from dreamgen.data.images import write_png
from dreamgen.errors import UserError
from dreamgen.progress import log


def main() -> int:
    """Render as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", choices=TASKS, help="whose scene is rendered")
    source.add_argument("--of", type=Path, help="a recorded dataset: the starts of its episodes, with their texts")
    parser.add_argument("--out", type=Path, required=True, help="folder, which must not exist")
    parser.add_argument("--num", type=int, default=6, help="how many (default: 6)")
    parser.add_argument("--first_seed", type=int, default=0, help="seed of the first one (default: 0)")
    parser.add_argument("--region", choices=REGIONS, default="any", help="where objects lie (default: any)")
    parser.add_argument("--size_px", type=int, default=128, help="height and width (default: 128)")
    arguments = parser.parse_args()
    try:
        _check(arguments)
        _render(arguments)
    except UserError as error:
        log(str(error))
        return 2
    print(arguments.out / "first_frames.csv")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.of and not 0 <= arguments.first_seed <= FIRST_RECORDING_SEED - arguments.num:
        raise UserError("--first_seed: recorded training data has these seeds",
                        actual=f"{arguments.first_seed} and {arguments.num - 1} more",
                        allowed=f"0 to {FIRST_RECORDING_SEED - 1}")  # fmt: skip
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists", next_step="name another folder with --out")
    check_simulator()


def _starts(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int, str, str]]:
    """Yield name, task, seed, region and instruction of each start, those of a task one after another."""
    if arguments.of is None:
        texts = instructions_of(arguments.task, "any")
        for number in range(arguments.num):
            text = texts[number % len(texts)]
            yield (
                f"{arguments.task}-{number:02d}",
                arguments.task,
                arguments.first_seed + number,
                arguments.region,
                text,
            )
        return
    tables = [pq.read_table(file) for file in sorted((arguments.of / "meta" / "episodes").glob("*/*.parquet"))]
    columns = ["episode_index", "source_task", "scene", "seed", "tasks"]
    rows = [row for table in tables for row in table.select(columns).to_pylist()]
    for row in sorted(rows, key=lambda row: (row["source_task"], row["episode_index"])):
        if row["scene"]:
            continue  # a scene that allows several tasks is set up differently
        region = "train" if row["seed"] >= FIRST_RECORDING_SEED else "test"
        yield f"episode_{row['episode_index']:06d}", row["source_task"], row["seed"], region, row["tasks"][0]


def _render(arguments: argparse.Namespace) -> None:
    from scene import Scene

    arguments.out.mkdir(parents=True)
    with (arguments.out / "first_frames.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "instruction"))
        for task, starts in itertools.groupby(_starts(arguments), key=lambda start: start[1]):
            scene = Scene(task, 1, None, arguments.size_px)
            for name, _, seed, region, text in starts:
                scene.reset(seed, region)
                write_png(arguments.out / f"{name}.png", scene.render())
                table.writerow((f"{name}.png", text))
            scene.close()


if __name__ == "__main__":
    sys.exit(main())
