"""Where first frames and instructions come from: pairs in a folder, a table, or a training set.

Nothing is decoded here: a `FrameRow` names an image or video, and `plan_frames` opens it.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamgen.core.errors import UserError, closest_match
from dreamgen.core.files import existing_folder, inside
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from dreamgen.plan_frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES

IMAGE_COLUMNS = ("image", "first_frame", "video", "path")
TEXT_COLUMNS = ("prompt", "instruction", "text")


@dataclass(frozen=True)
class FrameRow:
    """One first frame that was asked for, with its own instruction where it has one.

    Args:
        file: Image, or video whose first frames are meant; None for a text alone.
        instruction: The task in words, as it was written; None where the source gives none.
        seed: The row's own first seed; None for the run's.
        source: Where it stands, for people.
    """

    file: Path | None
    instruction: str | None
    seed: int | None
    source: str


@dataclass(frozen=True)
class FrameRows:
    """What a source holds.

    Args:
        kind: Which kind of source it was taken for, in words.
        rows: In stable order, and for each that cannot be used its reason; it may be gone through several times. A
            table's are read as they are gone through.
        crosses: New instructions take the place of the rows' own, as in a training set.
    """

    kind: str
    rows: Iterable[FrameRow | UserError]
    crosses: bool = False


def find_rows(settings: Settings, run: RunFolder) -> FrameRows:
    """Recognise the source that `plan.first_frames` names and list what it asks for.

    Returns:
        The rows; those that are broken are among `refused`.

    Raises:
        UserError: if there is no such source, or it is of no known kind.
    """
    given, suffixes = settings.plan.first_frames, suffixes_of(settings)
    if given is None and settings.plan.condition == "text" and settings.plan.instructions:
        return FrameRows("text alone", [FrameRow(None, None, None, "plan.instructions")], crosses=True)
    if given is None:
        return training_rows(run.need(run.train / "metadata.csv", "prepare").parent)
    path = Path(given)
    if path.suffix.lower() in (".csv", ".jsonl") and not path.is_dir():
        return table_rows(path, suffixes)
    existing_folder(path, "plan.first_frames")
    if (path / "meta" / "info.json").is_file():
        return _rows_of_demos(path, settings, run)
    if (path / "metadata.csv").is_file() and (path / "videos").is_dir():
        return training_rows(path)
    return folder_rows(path, suffixes)


def suffixes_of(settings: Settings) -> tuple[str, ...]:
    """Return which files may begin a clip, by the condition that is asked for."""
    return VIDEO_SUFFIXES if settings.plan.condition == "video" else IMAGE_SUFFIXES


def folder_rows(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> FrameRows:
    """List a flat folder of NAME.png|jpg (or NAME.mp4, to go on from videos), each with its instruction in NAME.txt.

    Raises:
        UserError: if there is no such file in it.
    """
    kind = "videos" if suffixes == VIDEO_SUFFIXES else "images"
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in suffixes]
    texts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    if not images:
        raise UserError(
            f"plan.first_frames: no {kind} in the folder", actual=str(folder),
            allowed=f"NAME.txt + NAME{'|'.join(suffixes)}, a .csv or .jsonl, or a training set (videos/, metadata.csv)",
        )  # fmt: skip
    num_of_stem = Counter(path.stem for path in images)
    rows: list[FrameRow | UserError] = [
        UserError(f"{texts[stem]} has no {kind[:-1]}", allowed=f"{stem}{f' or {stem}'.join(suffixes[:2])} beside it")
        for stem in sorted(set(texts) - set(num_of_stem))
    ]  # fmt: skip
    for image in images:
        try:
            if num_of_stem[image.stem] > 1:
                raise UserError(f"{image} is one of several {kind} of that name", allowed=f"one for {image.stem}")
            file = inside(folder, image.name, str(image))
            text = texts.get(image.stem)
            rows.append(FrameRow(file, _caption(folder, text) if text else None, None, str(image)))
        except UserError as error:
            rows.append(error)
    return FrameRows(f"a folder of {len(images)} {kind} with their instructions", rows)


def table_rows(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> FrameRows:
    """List a .csv or .jsonl; image paths are relative to its folder, and a row may have a seed of its own.

    Raises:
        UserError: if the file cannot be read, or a column is missing.
    """
    num_rows, columns = 0, set()
    for _, values in _numbered(path):
        num_rows += 1
        columns.update(values if isinstance(values, dict) else ())
    image_column = _column(columns, IMAGE_COLUMNS)
    if image_column is None:
        nearest = closest_match("image", columns)
        raise UserError(
            f"{path} names no images", actual=f"columns: {', '.join(sorted(columns)) or 'none'}",
            allowed=" or ".join(IMAGE_COLUMNS), next_step=f"rename the column {nearest}" if nearest else None,
        )  # fmt: skip
    rows = TableRows(path, (image_column, _column(columns, TEXT_COLUMNS)), suffixes)
    return FrameRows(f"a table of {num_rows} rows", rows)


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, read anew each time that they are gone through."""

    path: Path
    columns: tuple[str, str | None]
    suffixes: tuple[str, ...]

    def __iter__(self) -> Iterator[FrameRow | UserError]:
        for number, values in _numbered(self.path):
            try:
                if isinstance(values, UserError):
                    raise values
                yield _table_row(self.path, number, values, self.columns, self.suffixes)
            except UserError as error:
                yield error


def training_rows(folder: Path) -> FrameRows:
    """List a training set in the published layout; the first frame of each video is meant.

    Raises:
        UserError: if its metadata.csv cannot be read.
    """
    table, num_usable = folder / "metadata.csv", 0
    rows: list[FrameRow | UserError] = []
    for number, values in _csv_rows(table):
        try:
            if isinstance(values, UserError):
                raise values
            name = values.get("file_name") or ""
            relative = name if name.startswith("videos/") else f"videos/{name}"
            file = inside(folder, relative, f"{table}, line {number}")
            if not name or not file.is_file():
                raise UserError(f"{table}, line {number}: no such video", actual=name or "an empty file_name")
            text = values.get("instruction") or values.get("prompt")
            rows.append(FrameRow(file, text, None, f"{folder / relative}, first frame"))
            num_usable += 1
        except UserError as error:
            rows.append(error)
    return FrameRows(f"the first frames of {num_usable} training clips", rows, crosses=True)


def _rows_of_demos(path: Path, settings: Settings, run: RunFolder) -> FrameRows:
    # Reading a dataset is prepare's work; its training set holds the same first frames at the clip's size.
    if settings.demos is None or Path(settings.demos).resolve() != path.resolve():
        raise UserError(
            "plan.first_frames is a LeRobot dataset that this run did not prepare", actual=str(path),
            allowed="the run's own demos, or the train folder of another run",
            next_step=f"dreamgen prepare --demos {path} --out runs/OTHER, then --plan.first_frames runs/OTHER/train",
        )  # fmt: skip
    return training_rows(run.need(run.train / "metadata.csv", "prepare").parent)


def _table_row(
    path: Path, number: int, values: dict[str, Any], columns: tuple[str, str | None], suffixes: tuple[str, ...]
) -> FrameRow:
    where, (image_column, text_column) = f"{path}, line {number}", columns
    image, text = values.get(image_column), values.get(text_column) if text_column else None
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise UserError(f"{where}: {image_column} names no file", actual=repr(image), allowed="path of an image")
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {text_column} is not text", actual=repr(text))
    file = inside(path.parent, image.strip(), where)
    if file.suffix.lower() not in suffixes:
        kind = "a video" if suffixes == VIDEO_SUFFIXES else "an image"
        raise UserError(f"{where}: not {kind}", actual=image, allowed=", ".join(suffixes))
    # An empty cell is a row without a text of its own, which new instructions may fill.
    return FrameRow(
        file, text if text and text.strip() else None, _seed(values.get("seed"), where), f"{where}: {image}"
    )


def _seed(value: Any, where: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        seed = int(value) if isinstance(value, str) else value
    except ValueError:
        seed = None
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62:
        raise UserError(f"{where}: seed is not a whole number", actual=repr(value), allowed="0, 1, 2, ...")
    return seed


def _caption(folder: Path, path: Path) -> str:
    try:
        return inside(folder, path.name, str(path)).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8", actual=error.reason, next_step="save it as UTF-8") from None


def _column(columns: set[str], known: tuple[str, ...]) -> str | None:
    return next((name for name in known if name in columns), None)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for values in reader:
                if None in values:
                    yield reader.line_num, UserError(
                        f"{path}, line {reader.line_num}: more cells than columns", actual=str(values[None]),
                        allowed='text with commas stands between "quotes"',
                    )  # fmt: skip
                else:
                    yield reader.line_num, values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table", actual=str(error), allowed="UTF-8 CSV") from None


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    return _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    try:
        # Only \n ends a line: a JSON string may hold other line separators.
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _jsonl_row(f"{path}, line {number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read", actual=str(error), allowed="UTF-8, one JSON object a line") from None


def _jsonl_row(where: str, line: str) -> dict[str, Any] | UserError:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        return UserError(f"{where} is not JSON", actual=str(error))
    return values if isinstance(values, dict) else UserError(f"{where} is not a JSON object", actual=line[:80])
