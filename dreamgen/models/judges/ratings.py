"""Ratings that were made elsewhere, in the CSV of DreamGen Bench: video_path,prompt,prediction.

The benchmark's evaluation scripts write one such file for each question, with 0 or 1 as prediction. `dreamgen curate`
writes the same for each metric of its judges, so that either side can use the other's ratings.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from dreamgen.errors import UserError
from dreamgen.extensions.judge import Judge, Judgment
from dreamgen.extensions.score import Metric, Threshold

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreamgen.config.settings import Settings
    from dreamgen.data.clip_context import ClipContext

COLUMNS = ("video_path", "prompt", "prediction")


class Ratings:
    """Looks a clip up by the name of its file.

    Args:
        settings: `judge.ratings` names the CSV.

    Raises:
        UserError: if there is no such file, or it is not of this form.
    """

    def __init__(self, settings: Settings) -> None:
        from dreamgen.run.files import sha256_of_file

        if settings.judge.ratings is None:
            raise UserError("the judge ratings has no file", next_step="--judge.ratings=predictions.csv")
        path = Path(settings.judge.ratings)
        self._values, self.version = read_ratings(path), f"{path.name} {sha256_of_file(path)[:12]}"

    def judge_clip(self, clip: ClipContext) -> dict[str, Judgment]:
        """Return the rating of a clip; none for a clip that the file lacks."""
        return {"rating": Judgment(self._values.get(clip.job.clip_id))}


def read_ratings(path: Path) -> dict[str, float]:
    """Read file name without suffix -> prediction.

    Raises:
        UserError: as `Ratings` does.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed="a CSV with the columns " + ",".join(COLUMNS))
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not {"video_path", "prediction"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path} is not a table of ratings", actual=",".join(rows.fieldnames or ()),
                            allowed=",".join(COLUMNS))  # fmt: skip
        values: dict[str, float] = {}
        for number, row in enumerate(rows, start=2):
            try:
                values[Path(row["video_path"]).stem] = float(row["prediction"])
            except (TypeError, ValueError):
                raise UserError(
                    f"{path}, line {number}: the prediction is no number", actual=row["prediction"], allowed="0 or 1"
                ) from None
    return values


def write_ratings(path: Path, rows: Iterable[tuple[str, str, float]]) -> None:
    """Write video path, instruction and value of each clip; values of 0.5 and above become 1, others 0."""
    from dreamgen.run.files import atomic_file

    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows((video, text, int(value >= 0.5)) for video, text, value in rows)


JUDGE = Judge(
    name="ratings",
    summary="ratings from a CSV of DreamGen Bench: video_path,prompt,prediction",
    metrics=(
        Metric(
            name="rating",
            summary="prediction of the CSV",
            threshold=Threshold(
                setting="min_rating", default=0.5, help="judge ratings: prediction below which a clip is rejected"
            ),
            rejection="rating {value:g} < {limit:g}",
        ),
    ),
    load=Ratings,
)
