"""Sources of first frames and instructions: pairs in a folder, a table, or a training set.

Nothing is decoded here: a `FrameRow` names an image or video, and `fitted_frames` opens it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamgen.config.settings import Settings
from dreamgen.data.conditioning_frames import NUM_STORED_FRAMES
from dreamgen.data.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below, not_used
from dreamgen.data.tables import csv_rows, numbered_rows
from dreamgen.data.views import View, check_views, describe_views, short_name
from dreamgen.errors import UserError, closest_match, quoted
from dreamgen.plan.first_frames import CAMERA, of_camera
from dreamgen.run.files import existing_folder, inside, read_json
from dreamgen.run.records import RobotFeatures
from dreamgen.run.run_folder import RunFolder

IMAGE_COLUMNS = ("image", "first_frame", "video", "path")
TEXT_COLUMNS = ("prompt", "instruction", "text")


@dataclass(frozen=True)
class FrameRow:
    """One first frame of a source, with its own instruction where it has one.

    Args:
        file: Image, or video whose first frames are used; with `{camera}` in its name, one file for each camera. None
            for text alone.
        instruction: The task in words, as the source has it; None if it has none.
        seed: The row's own first seed; None for the run's.
        source: Where the row is, for display.
        num_stacked: Frames that an image holds, below one another.
    """

    file: Path | None
    instruction: str | None
    seed: int | None
    source: str
    num_stacked: int = 1


@dataclass(frozen=True)
class FrameRows:
    """The rows of a source.

    Args:
        kind: The kind of source, in words.
        rows: Rows in stable order, with an error for each that cannot be used; can be iterated several times. Those
            of a table are read while iterating.
        crosses: Whether new instructions replace the rows' own, as for a training set.
        views: Tiles of the run's cameras; empty for one camera.
        notes: What the user should know of the source, a sentence each.
    """

    kind: str
    rows: Iterable[FrameRow | UserError]
    crosses: bool = False
    views: tuple[View, ...] = ()
    notes: tuple[str, ...] = ()


def find_rows(settings: Settings, run: RunFolder) -> FrameRows:
    """Recognize the source that `plan.first_frames` names and list its rows.

    Raises:
        UserError: if it does not exist, is of no known kind, or shows other cameras than the run.
    """
    views = _views_of(run.fetch(run.train / "features.json").parent)
    check_views(views, settings.video.height, settings.video.width)
    return replace(_find_rows(settings, run, views), views=views)


def _find_rows(settings: Settings, run: RunFolder, views: tuple[View, ...]) -> FrameRows:
    first_frames, suffixes = settings.plan.first_frames, suffixes_of(settings)
    if first_frames is None and settings.plan.condition == "text" and settings.plan.instructions:
        return FrameRows("text alone", [FrameRow(None, None, None, "plan.instructions")], crosses=True)
    if first_frames is None:
        return training_rows(run.need(run.train / "metadata.csv", "prepare").parent)
    path = Path(first_frames)
    if path.suffix.lower() in (".csv", ".jsonl") and not path.is_dir():
        return table_rows(path, suffixes, views)
    existing_folder(path, "plan.first_frames")
    if (path / "meta" / "info.json").is_file():
        return _rows_of_demos(path, settings, run)
    if (path / "metadata.csv").is_file() and (path / "videos").is_dir():
        if (theirs := _views_of(path)) != views and run.train.exists():
            raise UserError(
                f"{path} shows other cameras than this run's training set",
                actual=describe_views(theirs),
                allowed=describe_views(views),
            )
        return training_rows(path)
    return folder_rows(path, suffixes, views)


def suffixes_of(settings: Settings) -> tuple[str, ...]:
    """Return the suffixes of files that a clip can begin with, by `plan.condition`."""
    return VIDEO_SUFFIXES if settings.plan.condition == "video" else IMAGE_SUFFIXES


def folder_rows(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, views: Sequence[View] = ()) -> FrameRows:
    """List a flat folder of NAME.png|jpg (or NAME.mp4, to continue videos), each with its instruction in NAME.txt.

    With several cameras, there may be a NAME.CAMERA.png for each instead.

    Raises:
        UserError: if the folder has no such file.
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
    images = sorted({_of_all_cameras(path, views) for path in images})
    num_of_stem = Counter(map(_name_of, images))
    rows: list[FrameRow | UserError] = [
        UserError(f"{texts[stem]} has no {kind[:-1]}", allowed=f"{stem}{f' or {stem}'.join(suffixes[:2])} beside it")
        for stem in sorted(set(texts) - set(num_of_stem))
    ]  # fmt: skip
    for image in images:
        name = _name_of(image)
        try:
            if num_of_stem[name] > 1:
                raise UserError(f"{image} is one of several {kind} of that name", allowed=f"one for {name}")
            file = _inside(folder, image.name, str(image), views)
            text = texts.get(name)
            rows.append(FrameRow(file, _caption(folder, text) if text else None, None, str(image)))
        except UserError as error:
            rows.append(error)
    used = {*texts.values(), *(path for path in files if path.suffix.lower() in suffixes)}
    notes = [
        *not_used((path.relative_to(folder) for path in files if path not in used), f"neither {kind} nor texts"),
        *not_used((path for path in files_below(folder) if len(path.parts) > 1), "as sub-folders are not read"),
    ]
    return FrameRows(f"a folder of {len(images)} {kind} with their instructions", rows, notes=tuple(notes))


def table_rows(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, views: tuple[View, ...] = ()) -> FrameRows:
    """List a .csv or .jsonl; image paths are relative to its folder, and a row may have its own seed.

    With several cameras, a path may have `{camera}` in its name, which is replaced by each camera's name.

    Raises:
        UserError: if the file cannot be read, or a column is missing.
    """
    num_rows, columns = 0, set()
    for _, values in numbered_rows(path):
        num_rows += 1
        columns.update(values if isinstance(values, dict) else ())
    image_column = _column(columns, IMAGE_COLUMNS)
    if image_column is None:
        nearest = closest_match("image", columns)
        raise UserError(
            f"{path} has no image column", actual=f"columns {', '.join(sorted(columns)) or 'none'}",
            allowed=" or ".join(IMAGE_COLUMNS), next_step=f"rename the column {nearest}" if nearest else None,
        )  # fmt: skip
    rows = TableRows(path, (image_column, _column(columns, TEXT_COLUMNS)), suffixes, views)
    return FrameRows(f"a table of {num_rows} rows", rows)


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, read again for each iteration."""

    path: Path
    columns: tuple[str, str | None]
    suffixes: tuple[str, ...]
    views: tuple[View, ...]

    def __iter__(self) -> Iterator[FrameRow | UserError]:
        for number, values in numbered_rows(self.path):
            try:
                if isinstance(values, UserError):
                    raise values
                yield _table_row(self, number, values)
            except UserError as error:
                yield error


def training_rows(folder: Path) -> FrameRows:
    """List a training set in the published layout; the first frame of each demonstration is used.

    prepare keeps the first frames of the source without loss in `first_frames/`. A training set without that folder,
    such as one of an older version or of another program, gives those of its encoded videos.

    Raises:
        UserError: if its metadata.csv cannot be read.
    """
    table, num_usable, num_encoded = folder / "metadata.csv", 0, 0
    is_ours = (folder / "features.json").is_file()  # written by prepare
    rows: list[FrameRow | UserError] = []
    for number, values in csv_rows(table):
        try:
            if isinstance(values, UserError):
                raise values
            name = values.get("file_name") or ""
            relative = name if name.startswith("videos/") else f"videos/{name}"
            file = inside(folder, relative, f"{table}, line {number}")
            if not name or not file.is_file():
                raise UserError(f"{table}, line {number}: no such video", actual=name or "an empty file_name")
            text = values.get("instruction") or values.get("prompt")
            lossless = inside(folder, Path("first_frames") / f"{file.stem}.png", f"{table}, line {number}")
            frames, num_stacked = (lossless, NUM_STORED_FRAMES) if is_ours and lossless.is_file() else (file, 1)
            rows.append(FrameRow(frames, text, None, f"{folder / relative}, first frame", num_stacked))
            num_usable, num_encoded = num_usable + 1, num_encoded + (frames is file)
        except UserError as error:
            rows.append(error)
    notes = ()
    if num_encoded:
        notes = (f"{num_encoded} first frames are read from encoded videos: {folder / 'first_frames'} lacks them",)
    return FrameRows(f"the first frames of {num_usable} training clips", rows, crosses=True, notes=notes)


def _rows_of_demos(path: Path, settings: Settings, run: RunFolder) -> FrameRows:
    # prepare reads datasets; its training set has the same first frames at the clip's size.
    if settings.demos is None or Path(settings.demos).resolve() != path.resolve():
        raise UserError(
            "plan.first_frames is a LeRobot dataset that this run did not prepare", actual=str(path),
            allowed="the run's own demos, or the train folder of another run",
            next_step=f"dreamgen prepare --demos {quoted(path)} --out runs/OTHER, "
            "then --plan.first_frames runs/OTHER/train",
        )  # fmt: skip
    return training_rows(run.need(run.train / "metadata.csv", "prepare").parent)


def _views_of(train: Path) -> tuple[View, ...]:
    features = train / "features.json"
    return RobotFeatures.from_dict(read_json(features)).views if features.is_file() else ()


def _of_all_cameras(file: Path, views: Sequence[View]) -> Path:
    """Return NAME.{camera}.png for NAME.CAMERA.png, and any other name as it is."""
    endings = sorted((f".{short_name(view.camera)}" for view in views), key=len, reverse=True)
    for ending in endings:  # the longest first, as a camera's name may have dots of its own
        if file.stem.endswith(ending) and file.stem != ending:
            return file.with_name(f"{file.stem.removesuffix(ending)}.{CAMERA}{file.suffix}")
    return file


def _name_of(file: Path) -> str:
    return file.stem.removesuffix(f".{CAMERA}")


def _inside(folder: Path, name: str, named_by: str, views: Sequence[View]) -> Path:
    if CAMERA not in Path(name).name or not views:
        return inside(folder, name, named_by)
    files = [inside(folder, of_camera(Path(name), view), named_by) for view in views]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{named_by}: a camera has no file", actual=", ".join(missing), allowed="one for each camera")
    return folder.resolve() / name


def _table_row(table: TableRows, number: int, values: dict[str, Any]) -> FrameRow:
    path, suffixes = table.path, table.suffixes
    where, (image_column, text_column) = f"{path}, line {number}", table.columns
    image, text = values.get(image_column), values.get(text_column) if text_column else None
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise UserError(f"{where}: {image_column} names no file", actual=repr(image), allowed="path of an image")
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {text_column} is not text", actual=repr(text))
    file = _inside(path.parent, image.strip(), where, table.views)
    if file.suffix.lower() not in suffixes:
        kind = "a video" if suffixes == VIDEO_SUFFIXES else "an image"
        raise UserError(f"{where}: not {kind}", actual=image, allowed=", ".join(suffixes))
    # An empty cell is a row without its own text, which new instructions may fill.
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
