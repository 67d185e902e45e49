"""What a LeRobot dataset says of itself that its files do not bear out, one sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.rows import TASK, EpisodeRows
from dreamgen.data.trajectory import ACTION, STATE


def metadata_findings(meta: LeRobotMeta) -> list[str]:
    """Compare the totals and splits of the metadata with what is there."""
    num_episodes = len(meta.episodes)
    counted = {
        "total_episodes": num_episodes,
        "total_frames": sum(episode.length for episode in meta.episodes),
        "total_tasks": len(meta.tasks),
    }
    if meta.version != "v3.0":
        counted["total_videos"] = sum(video.is_file() for e in meta.episodes for video in e.videos.values())
        counted["total_chunks"] = -(-num_episodes // meta.info.get("chunks_size", 1000))
    findings = [
        f"info.json says {key} {meta.info[key]}, the dataset has {count}: the count is used"
        for key, count in counted.items()
        if key in meta.info and meta.info[key] != count
    ]
    splits = meta.info.get("splits")
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        _, _, end = str(span).partition(":")
        if end.isdigit() and int(end) > num_episodes:
            findings.append(f"info.json's split {name} is {span}, the dataset has {num_episodes} episodes: not used")
    return findings


def row_findings(meta: LeRobotMeta, rows: Sequence[EpisodeRows]) -> list[str]:
    """Say what is unusual in the rows of the episodes that could be read.

    Args:
        meta: The dataset.
        rows: Of each episode that was opened.
    """
    wide = [key for key in (STATE, ACTION) if any(key in r.wide for r in rows)]
    findings = [f"{' and '.join(wide)} are float64: stored as float32"] if wide else []
    late = {round(r.first_time_s, 4) for r in rows if r.first_time_s is not None and r.first_time_s > 0.5 / meta.fps}
    if late:
        findings.append(f"timestamps begin at {min(late)} s, not at 0: rows and frames are paired by their order")
    return findings


def pseudo_task_findings(meta: LeRobotMeta, episodes: Sequence[Episode], rows: Sequence[EpisodeRows]) -> list[str]:
    """Name the tasks that episodes list but only an annotation column other than the instruction's points to."""
    pointed: dict[str, Counter[str]] = {}
    for row in rows:
        for column, counts in row.counts.items():
            pointed.setdefault(column, Counter()).update(meta.tasks[i] for i in counts if i in meta.tasks)
    instructions = set(pointed.get(TASK, ()))
    found: dict[tuple[str, str], int] = {}
    for episode in episodes:
        for task in episode.tasks:
            columns = [c for c, tasks in pointed.items() if c != TASK and task in tasks]
            if instructions and task not in instructions and columns:
                key = (task, ", ".join(sorted(columns)))
                found[key] = found.get(key, 0) + 1
    return [
        f'the task "{task}" of {count} episodes is not an instruction: only {columns} points to it'
        for (task, columns), count in found.items()
    ]
