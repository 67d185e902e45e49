"""LeRobot datasets, v2.0 to v3.0, with GR00T's additions where they are."""

from __future__ import annotations

from pathlib import Path

from export.check.findings import Findings
from export.check.lerobot.layout import check_features, check_totals, check_unnamed_files
from export.check.lerobot.modality import check_modality
from export.check.lerobot.read import read_lerobot
from export.check.lerobot.rows import LeRobotCheck, check_rows
from export.check.lerobot.statistics import check_statistics
from export.check.lerobot.videos import check_videos
from export.check.parallel import workers


def check_lerobot(root: Path, fast: bool, num_workers: int | None, findings: Findings) -> None:
    """Run all checks of a LeRobot dataset."""
    dataset = read_lerobot(root, findings)
    if dataset is None:
        return
    check_totals(dataset, findings)
    check_features(dataset, findings)
    with workers(num_workers, LeRobotCheck(dataset, fast)) as processes:
        rows = check_rows(processes, dataset, findings)
        check_videos(processes, dataset, rows, fast, findings)
    check_statistics(dataset, rows, findings)
    check_modality(dataset, findings)
    check_unnamed_files(dataset, findings)
