"""Damage good datasets of every format in many ways: is each damage found, and do good datasets have no findings?

    python benchmarks/check_defects.py --out benchmarks/results/check_defects.json
    python benchmarks/check_defects.py --format "ACT by h5py"        # a smoke test

Each damaged dataset is checked twice, without decoding images (fast) and with all of them decoded (full). The damage
counts as found if a finding with its code names the right file, and as named correctly if there is no other finding
except its direct consequences. Damages: `tests/fixtures/damage.py`; good datasets: `tests/fixtures/good_datasets.py`.
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
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.check import check
from tests.fixtures.damage import DAMAGES, Damage
from tests.fixtures.damaging import without_manifest
from tests.fixtures.good_datasets import GOOD_DATASETS


def main() -> int:
    """Damage, check, print the tables, write the results; status 1 if any damage is missed or misnamed."""
    args = parse_arguments()
    damages = [damage for damage in DAMAGES if args.format in (None, damage.dataset)]
    names = [name for name in GOOD_DATASETS if args.format in (None, name)]
    logging.disable(logging.WARNING)  # lerobot's libraries warn about decoders that are not used here
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, redirect_stderr(quiet):  # noqa: PTH123
        good = {name: GOOD_DATASETS[name](Path(folder) / str(place) / "good") for place, name in enumerate(names)
                if not (Path(folder) / str(place)).mkdir()}  # fmt: skip
        rows = [try_damage(damage, good[damage.dataset], Path(folder) / "damaged") for damage in damages]
        passed = [try_good(name, root) for name, root in good.items()]
    print(damage_table(rows), "\n", good_table(passed), sep="")
    found, rightly = (sum(row[key] for row in rows) for key in ("found", "rightly"))
    false = sum(len(row["findings"]) for row in passed)
    print(f"\n{len(rows)} kinds of damage: {found} found, {rightly} named correctly; "
          f"{len(passed)} good datasets: {false} findings")  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps({"damages": rows, "good": passed}, indent=1, ensure_ascii=False) + "\n")
    return int(found < len(rows) or rightly < len(rows) or false > 0)


def try_damage(damage: Damage, good: Path, root: Path) -> dict[str, Any]:
    """Damage a copy of a good dataset and check it both ways."""
    without_manifest(good, root)
    damage.apply(root / damage.file)
    codes, places = {}, {}
    for mode in ("fast", "full"):
        findings = check(root, fast=mode == "fast")
        codes[mode] = {finding.code for finding in findings}
        places[mode] = {finding.file for finding in findings if finding.code == damage.code}
    shutil.rmtree(root)
    modes = [mode for mode in ("fast", "full") if damage.finding_file in places[mode]]
    return {
        "dataset": damage.dataset,
        "damage": damage.what,
        "mode": modes[0] if modes else "none",
        "code": damage.code,
        "file": damage.finding_file,
        "also": sorted(codes["full"] - {damage.code}),
        "found": modes == (["full"] if damage.full else ["fast", "full"]),
        "rightly": codes["full"] == {damage.code, *damage.also},
    }


def try_good(name: str, root: Path) -> dict[str, Any]:
    """Check a good dataset both ways."""
    start_s = time.perf_counter()
    findings = [str(finding) for fast in (True, False) for finding in check(root, fast=fast)]
    return {"dataset": name, "findings": findings, "seconds": time.perf_counter() - start_s}


def damage_table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of damages."""
    lines = ["| format | damage | seen | finding | names | follows from it |", "|---|---|---|---|---|---|"]
    for row in rows:
        mode = {"fast": "fast and full", "full": "full"}.get(row["mode"], "not found")
        also = ", ".join(f"`{code}`" for code in row["also"])
        lines.append(
            f"| {row['dataset']} | {row['damage']} | {mode} | `{row['code']}` | `{row['file']}` | {also} |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def good_table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of good datasets."""
    lines = ["| good dataset | findings |", "|---|---|"]
    return "\n".join([*lines, *(f"| {row['dataset']} | {len(row['findings'])} |" for row in rows)])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=list(GOOD_DATASETS), help="only this kind of dataset")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
