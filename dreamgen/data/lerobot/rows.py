"""What the rows of LeRobot episodes say of their tasks, read without the vectors and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from dreamgen.data.lerobot.metadata import Episode, LeRobotMeta
from dreamgen.data.trajectory import ACTION, STATE, read_columns, read_schema
from dreamgen.errors import UserError, reason_of

TASK = "task_index"
DESCRIPTION = "annotation.human.action.task_description"


@dataclass(frozen=True)
class EpisodeRows:
    """What an episode's rows say of its task, without its vectors.

    Args:
        counts: Column of task indices -> how many frames point to each.
        first_time_s: `timestamp` of the first row; None without that column.
        wide: Names of the vectors that are float64.
        refused: Why the rows cannot be read.
    """

    counts: dict[str, Counter[int]] = field(default_factory=dict)
    first_time_s: float | None = None
    wide: tuple[str, ...] = ()
    refused: str | None = None


def read_rows(episodes: Sequence[Episode]) -> list[EpisodeRows]:
    """Read each episode's rows; a shared file is opened once, and one that cannot be read refuses its episode."""
    found, opened = [], (None, None)
    for episode in episodes:
        try:
            if opened[0] != episode.data_file:
                opened = (episode.data_file, _read_scalars(episode.data_file))
            found.append(_rows_of(*opened[1], episode))
        except UserError as error:
            opened = (None, None)
            found.append(EpisodeRows(refused=reason_of(error)))
    return found


def _read_scalars(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    schema = read_schema(path)
    names = [
        field.name
        for field in schema
        if (field.name in (TASK, "episode_index") or field.name.startswith("annotation."))
        and pa.types.is_integer(field.type)
    ]
    names += ["timestamp"] if "timestamp" in schema.names else []
    wide = [
        n
        for n in (STATE, ACTION)
        if n in schema.names and getattr(schema.field(n).type, "value_type", None) == pa.float64()
    ]
    # A file without any of these columns still has rows to count.
    return read_columns(path, names or schema.names), tuple(wide)


def _rows_of(table: pa.Table, wide: tuple[str, ...], episode: Episode) -> EpisodeRows:
    if episode.shares_file:
        if "episode_index" not in table.column_names:
            raise UserError(f"{episode.data_file} has no episode_index column")
        table = table.filter(pa.array(table["episode_index"].to_numpy() == episode.index))
    if table.num_rows == 0:
        raise UserError(f"{episode.data_file} has no rows of episode {episode.index}")
    counts = {
        name: Counter(table[name].drop_null().to_pylist())
        for name in table.column_names
        if name == TASK or name.startswith("annotation.")
    }
    times = table["timestamp"].to_pylist() if "timestamp" in table.column_names else []
    first = times[0] if times and isinstance(times[0], int | float) else None
    return EpisodeRows(counts, first, wide)


def instruction_of(meta: LeRobotMeta, episode: Episode, rows: EpisodeRows) -> tuple[str, tuple[str, ...]]:
    """Return an episode's task in words and what had to be decided to get it.

    The frames' own task_index goes first, then the annotation of the task, then the only task of the metadata.

    Raises:
        UserError: if none of them gives a text.
    """
    for column in (TASK, DESCRIPTION):
        ranked = rows.counts.get(column, Counter()).most_common()
        text = meta.tasks.get(ranked[0][0], "") if ranked else ""
        if text:
            changes = [f"{len(ranked)} tasks in its frames: used the most frequent"] if len(ranked) > 1 else []
            changes += [f"instruction taken from {column}"] if column != TASK else []
            return text, tuple(changes)
    if len(episode.tasks) == 1:
        return episode.tasks[0], ("instruction taken from the episode's metadata",)
    raise UserError(
        f"episode {episode.index} has no instruction",
        actual=f"task_index {sorted(rows.counts.get(TASK, {}))}, tasks {list(episode.tasks)}",
        allowed="a task_index that the dataset's tasks list",
    )
