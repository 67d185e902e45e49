"""How many exchanged and reversed videos does `dreamgen check` find by what images say of states?

    python benchmarks/check_states.py --out benchmarks/results/check_states.json
    python benchmarks/check_states.py path/to/a/lerobot/dataset        # without defects, for false alarms too

The demonstrations of `dreamgen demo` are measured, and the datasets that are named. The images of each pair of episodes
of equal length are exchanged in turn (a random 200 of them where there are more), and those of every episode reversed.
A change counts as found if exactly the changed episodes are named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dreamgen.data.lerobot.metadata import read_metadata
from export.check.findings import Findings
from export.check.lerobot.files import video_groups
from export.check.lerobot.rows import check_rows
from export.check.lerobot.states_in_images import find_other_states
from export.check.lerobot.statistics import LeRobotCheck, find_episode_statistics
from export.check.lerobot.videos import VIDEOS_PER_TASK, check_video_group
from export.workers import Workers

DEMO = Path(__file__).resolve().parents[1] / "dreamgen/demo/data/demonstrations"
MAX_PAIRS = 200


def main() -> None:
    """Measure every camera of every dataset, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", type=Path, help="LeRobot datasets without defects")
    parser.add_argument("--out", help="write the results as JSON")
    args = parser.parse_args()
    rows = [row for root in (DEMO, *args.datasets) for row in measure(root)]
    print("| dataset | episodes | false alarms | pairs found | reversed found | named wrongly |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['dataset']} | {row['episodes']} | {row['false']} | {row['pairs_found']} of {row['pairs']} | "
              f"{row['reversed_found']} of {row['episodes']} | {row['wrong']} |")  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1) + "\n")


def measure(root: Path) -> list[dict[str, Any]]:
    """Return one row for each camera."""
    findings = Findings()
    dataset = read_metadata(root, findings)
    assert dataset is not None, f"{root} cannot be read: {findings.all()}"
    check = LeRobotCheck(dataset, False, find_episode_statistics(dataset, findings))
    with Workers(1, check) as workers:
        states = check_rows(workers, dataset, findings).motion.states
    rows = []
    for camera in dataset.video_keys:
        images: dict[int, np.ndarray] = {}
        for group in video_groups(dataset, camera, {}, VIDEOS_PER_TASK[False]):
            images |= check_video_group(check, group)[1].images
        num_rows = {position: int(dataset.episodes.length_N[position]) for position in images}
        rows.append({"dataset": f"{root.name}, {camera}", **counts(images, states, num_rows)})
    return rows


def counts(images: dict[int, np.ndarray], states: dict[int, np.ndarray], num_rows: dict[int, int]) -> dict[str, int]:
    """Exchange and reverse images, and count what is found."""

    def named(changed: dict[int, np.ndarray]) -> set[int]:
        return {found.position for found in find_other_states(images | changed, states, num_rows)}

    pairs = [pair for pair in itertools.combinations(images, 2) if num_rows[pair[0]] == num_rows[pair[1]]]
    pairs = random.Random(0).sample(pairs, min(MAX_PAIRS, len(pairs)))
    of_pairs = [(set(pair), named({pair[0]: images[pair[1]], pair[1]: images[pair[0]]})) for pair in pairs]
    of_reversed = [({position}, named({position: images[position][::-1]})) for position in images]
    return {
        "episodes": len(images),
        "false": len(named({})),
        "pairs": len(pairs),
        "pairs_found": sum(changed == found for changed, found in of_pairs),
        "reversed_found": sum(changed == found for changed, found in of_reversed),
        "wrong": sum(bool(found - changed) for changed, found in of_pairs + of_reversed),
    }


if __name__ == "__main__":
    main()
