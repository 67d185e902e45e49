"""LeRobot datasets, v2.0 to v3.0, with GR00T's additions where they are."""

from __future__ import annotations

from pathlib import Path

from dreamgen.data.lerobot.metadata import read_metadata
from export.check.findings import Findings
from export.check.lerobot.files import check_unnamed_files
from export.check.lerobot.metadata import check_features, check_modality, check_totals
from export.check.lerobot.rows import check_rows
from export.check.lerobot.statistics import LeRobotCheck, check_statistics, find_episode_statistics
from export.check.lerobot.videos import check_videos
from export.workers import Workers


def check_lerobot(root: Path, fast: bool, num_workers: int | None, findings: Findings) -> None:
    """Run all checks of a LeRobot dataset."""
    dataset = read_metadata(root, findings)
    if dataset is None:
        return
    check = LeRobotCheck(dataset, fast, find_episode_statistics(dataset, findings))
    check_totals(dataset, findings)
    check_features(dataset, findings)
    with Workers(num_workers, check, "--num_workers") as workers:
        rows = check_rows(workers, dataset, findings)
        check_videos(workers, check, rows.num_rows, rows.motion.states, findings)
    check_statistics(dataset, rows.statistics, findings)
    check_modality(dataset, findings)
    check_unnamed_files(dataset, findings)
