"""Render first frames of new Meta-World scenes, with a table of instructions that `dreamgen plan` reads.

python examples/metaworld/first_frames.py --task drawer-open --num 6 --out data/new_starts
dreamgen plan --first_frames data/new_starts/first_frames.csv ...
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from record import check_simulator
from tasks import FIRST_RECORDING_SEED, REGIONS, TASKS, instructions_of

from dreamgen.data.video import write_png
from dreamgen.errors import UserError
from dreamgen.progress import log


def main() -> int:
    """Render as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True, help="whose scene is rendered")
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
    if not 0 <= arguments.first_seed <= FIRST_RECORDING_SEED - arguments.num:
        raise UserError("--first_seed: recorded training data has these seeds",
                        actual=f"{arguments.first_seed} and {arguments.num - 1} more",
                        allowed=f"0 to {FIRST_RECORDING_SEED - 1}")  # fmt: skip
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists", next_step="name another folder with --out")
    check_simulator()


def _render(arguments: argparse.Namespace) -> None:
    from scene import Scene

    scene, texts = Scene(arguments.task, 1, None, arguments.size_px), instructions_of(arguments.task, "any")
    arguments.out.mkdir(parents=True)
    with (arguments.out / "first_frames.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "instruction"))
        for number in range(arguments.num):
            scene.reset(arguments.first_seed + number, arguments.region)
            name = f"{arguments.task}-{number:02d}.png"
            write_png(arguments.out / name, scene.render())
            table.writerow((name, texts[number % len(texts)]))
    scene.close()


if __name__ == "__main__":
    sys.exit(main())
