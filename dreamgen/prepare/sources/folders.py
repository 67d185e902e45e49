"""Folders of videos with instructions: the GR1 layout and the plain one, both with sub-folders and any container.

GR1: `videos/*.mp4`, with the instruction in `metadata.csv` or `metadata.jsonl`, `metas/NAME.txt` or
`captions/NAME.json`. A training set that prepare wrote has this layout too, with `trajectories/` and `features.json`;
where its pictures show several cameras, each is cut out again.
"""

from __future__ import annotations

import csv
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.media_files import files_below, is_dataset, is_video, named, not_used
from dreamgen.data.tables import jsonl_rows
from dreamgen.data.trajectory import read_trajectory
from dreamgen.errors import UserError, reason_of
from dreamgen.extensions.demo_source import DemoSource
from dreamgen.prepare.sources.source import Source, SourceClip, SourceVideo, safe_names
from dreamgen.prepare.sources.unused import unused_columns
from dreamgen.run.files import inside, read_json, regular_file, visible_files
from dreamgen.run.json_text import BadJson, parse_json
from dreamgen.run.records import RobotFeatures

FILE_COLUMNS = ("file_name", "video", "path", "video_path")
TABLES = ("metadata.csv", "metadata.jsonl")  # the first that exists is read
FILES_OF_GR1 = ("metadata.csv", "features.json", "summary.csv", "README.md")
ENDINGS_OF_GR1 = {"metas": (".txt",), "captions": (".json",), "trajectories": (".parquet",), "first_frames": (".png",)}
TEXT_COLUMNS = ("instruction", "prompt", "text", "caption")  # the bare instruction goes before the whole prompt


def open_gr1(root: Path, settings: PrepareSettings) -> Source:
    """List the videos of a GR1 layout: those that its table names, and all others in videos/.

    Raises:
        UserError: if the table or features.json as a whole cannot be read.
    """
    features = _read_features(root / "features.json") if (root / "features.json").is_file() else RobotFeatures()
    table = _table_of(root)
    by_video, refused_rows = _read_table(root, table) if table is not None else ({}, [])
    videos = sorted({*by_video, *(Path("videos") / path for path in videos_in(root / "videos"))})
    findings = _unused_of_gr1(root, videos, table)
    if table is not None and len(videos) > len(by_video):
        findings.append(f"{table.name} does not name {len(videos) - len(by_video)} of the {len(videos)} videos")
    findings += _beyond(videos, settings)
    videos = videos[: settings.max_episodes]
    clips = []
    stems = Counter(path.stem for path in videos)
    for video, safe in zip(videos, _clip_names(videos, "videos"), strict=True):
        # What belongs to a video lies in a sub-folder of its name, or has its name where no other video has it.
        name = _name_of(video, "videos")
        keys = [name] if stems[video.stem] > 1 or name == video.stem else [name, video.stem]
        text_of = functools.partial(_text_of, root, video, keys, by_video, settings.caption_length)
        clips.append(_clip(root, safe, video, text_of, features, keys))
    clips += [SourceClip("", origin, refused=reason) for origin, reason in refused_rows]
    cameras = tuple(view.camera for view in features.views)
    return Source("GR1 layout", _once(clips), features, tuple(findings), cameras)


def open_plain(root: Path, settings: PrepareSettings) -> Source:
    """List the NAME.mp4 of a folder and its sub-folders, each with its NAME.txt."""
    files = list(files_below(root))
    videos = [path for path in files if is_video(path)]
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    without = {path.with_suffix("") for path in texts} - {path.with_suffix("") for path in videos}
    findings = [f"{len(without)} texts have no video: {named(sorted(without))}"] if without else []
    findings += not_used((path for path in files if path not in {*videos, *texts}), "neither videos nor texts")
    findings += _datasets_within(root) + _beyond(videos, settings)
    videos = videos[: settings.max_episodes]
    clips = [
        _clip(root, name, video, functools.partial(_read_text, root, video.with_suffix(".txt").as_posix()))
        for video, name in zip(videos, _clip_names(videos), strict=True)
    ]
    return Source("plain folder of mp4 + txt", _once(clips), RobotFeatures(), tuple(findings))


def videos_in(folder: Path) -> list[Path]:
    """Return the videos of a folder and its sub-folders, relative to it; none without the folder."""
    return [path for path in files_below(folder) if is_video(path)]


def _name_of(video: Path, below: str = "") -> str:
    """Return a video's path without its ending, and without the folder that holds all."""
    return (video.relative_to(below) if video.is_relative_to(below) else video).with_suffix("").as_posix()


def _clip_names(videos: Sequence[Path], below: str = "") -> list[str]:
    """Return the name of each clip in the training set: its file's, with the sub-folder's where several have it."""
    stems = Counter(path.stem for path in videos)
    return safe_names(path.stem if stems[path.stem] == 1 else _name_of(path, below) for path in videos)


def _once(clips: Sequence[SourceClip]) -> tuple[SourceClip, ...]:
    """Refuse a second video of the same name, such as a copy in another container: one text belongs to one clip."""
    first: dict[Path, SourceClip] = {}
    checked = []
    for clip in clips:
        name = Path(clip.origin).with_suffix("")
        if clip.videos and first.setdefault(name, clip) is not clip:
            reason = f"{first[name].origin} has the same name and text: only one of the two is used"
            clip = replace(clip, refused=reason, videos=(), load_trajectory=None)
        checked.append(clip)
    return tuple(checked)


def _unused_of_gr1(root: Path, videos: Sequence[Path], table: Path | None) -> list[str]:
    """Name what the layout has no place for, and texts and trajectories without a video."""
    notes, known = [], {*FILES_OF_GR1, *videos}
    names = {name for video in videos for name in (_name_of(video, "videos"), video.stem)}
    others = []
    for path in files_below(root):
        folder = path.parts[0] if len(path.parts) > 1 else ""
        if folder in ENDINGS_OF_GR1 and path.suffix.lower() in ENDINGS_OF_GR1[folder]:
            if path.relative_to(folder).with_suffix("").as_posix() not in names:
                notes.append(path)
        elif path.as_posix() not in FILES_OF_GR1 and path not in known and (table is None or path.name != table.name):
            others.append(path)
    outside = [path for path in others if is_video(path)]
    return [
        *not_used(notes, "as no video has their name"),
        *not_used(outside, f"as they are outside videos/ and {table.name if table else TABLES[0]} does not name them"),
        *not_used((path for path in others if path not in outside), "as this layout has no place for them"),
        *_datasets_within(root),
        *unused_columns(next(iter(visible_files(root, "trajectories/*.parquet")), None)),
    ]


def _datasets_within(root: Path) -> list[str]:
    datasets = sorted(path.name for path in root.iterdir() if path.is_dir() and is_dataset(path))
    return [f"LeRobot datasets in sub-folders are not read: {named(datasets)}"] if datasets else []


def _beyond(videos: Sequence[Path], settings: PrepareSettings) -> list[str]:
    left_out = videos[settings.max_episodes :] if settings.max_episodes is not None else []
    return not_used(left_out, f"beyond prepare.max_episodes={settings.max_episodes}")


def _clip(
    root: Path, name: str, video: Path, text_of: Callable[[], str], features: RobotFeatures | None = None,
    keys: Sequence[str] = (),
) -> SourceClip:  # fmt: skip
    origin = video.as_posix()
    try:
        file, load = inside(root, video, origin), None
        candidates = [inside(root, Path("trajectories") / f"{key}.parquet", origin) for key in keys]
        trajectory = next((path for path in candidates if path.is_file()), None)
        if features is not None and trajectory is not None:
            dims = (len(features.state_names) or None, len(features.action_names) or None)
            load = functools.partial(read_trajectory, trajectory, *dims)
        views = features.views if features is not None else ()
        videos = tuple(SourceVideo(file, view=view) for view in views) or (SourceVideo(file),)
        return SourceClip(name, origin, videos, text_of(), load_trajectory=load)
    except UserError as error:
        return SourceClip(name, origin, refused=reason_of(error))


def _table_of(root: Path) -> Path | None:
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def _read_table(root: Path, table: Path) -> tuple[dict[Path, str | UserError], list[tuple[str, str]]]:
    """Return video -> its text or error, and the rows that name no video as (origin, reason)."""
    by_video: dict[Path, str | UserError] = {}
    refused = []
    for number, row in _csv_rows(table) if table.suffix == ".csv" else jsonl_rows(table):
        origin = f"{table.name} line {number}"
        try:
            if isinstance(row, UserError):
                raise row
            named_by = next((name for name in FILE_COLUMNS if name in row), None)
            if named_by is None:
                raise UserError(f"{origin} names no video", actual=", ".join(map(str, row)),
                                allowed=" | ".join(FILE_COLUMNS))  # fmt: skip
            video = _named_video(root, _cell(row, named_by, origin), origin)
            if video in by_video:
                raise UserError(f"{origin} names {video.as_posix()} again: its first row is used")
        except UserError as error:
            refused.append((origin, reason_of(error)))
            continue
        by_video[video] = _row_text(row, origin)
    return by_video, refused


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            if not set(FILE_COLUMNS) & set(columns):
                raise UserError(
                    f"{path} has no column for the video", actual=", ".join(columns), allowed=" | ".join(FILE_COLUMNS)
                )
            for row in reader:
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8", actual=str(error), next_step="save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.reader.line_num} is not CSV",  # pyright: ignore[reportPossiblyUnboundVariable]
            actual=str(error),
            allowed="texts with commas in double quotes, and double quotes in them doubled",
        ) from None


def _cell(row: dict[Any, Any], column: str, origin: str) -> str:
    value = row.get(column)
    if not isinstance(value, str | None):  # JSON has other types than text
        raise UserError(f"{origin}: {column} is not text", actual=repr(value)[:80])
    return value or ""


def _row_text(row: dict[Any, Any], origin: str) -> str | UserError:
    if None in row:  # what DictReader does with fields beyond the header
        return UserError(
            f"{origin} has more fields than the header",
            actual=", ".join(row[None])[:80],
            allowed="text with commas in double quotes",
        )
    try:
        return next((text for column in TEXT_COLUMNS if (text := _cell(row, column, origin).strip())), "")
    except UserError as error:
        return error


def _named_video(root: Path, text: str, origin: str) -> Path:
    """Return the video that a row names, relative to `root`; published tables write it with or without `videos/`."""
    if not text.strip():
        raise UserError(f"{origin} names no video", actual=repr(text))
    for candidate in (Path(text), Path("videos") / text):
        if inside(root, candidate, origin).is_file():
            return Path(os.path.normpath(candidate))
    raise UserError(f"{origin} names a video that does not exist", actual=text)


def _text_of(
    root: Path, video: Path, keys: Sequence[str], by_video: dict[Path, str | UserError], caption_length: str
) -> str:
    text = by_video.get(video)
    if isinstance(text, UserError):
        raise text
    return text or _caption_beside(root, keys, caption_length)


def _caption_beside(root: Path, keys: Sequence[str], length: str) -> str:
    candidates = [f"metas/{key}.txt" for key in keys] + [f"captions/{key}.json" for key in keys]
    relative = next((name for name in candidates if (root / name).exists()), None)
    if relative is None:
        raise UserError(f"{keys[0]} has no caption", allowed=f"a row of {TABLES[0]}, {' or '.join(candidates)}")
    if relative.endswith(".txt"):
        return _read_text(root, relative)
    try:
        captions = parse_json(_read_text(root, relative))
    except BadJson as error:
        raise UserError(f"{root / relative} is not JSON", actual=str(error)) from None
    by_length = _first_table(captions)
    if not isinstance(by_length.get(length), str):
        raise UserError(
            f"{root / relative} has no {length} caption",
            actual=", ".join(map(str, by_length)) or "no table",
            allowed="{model: {long|medium|short: text}}",
            next_step="--caption_length=long|medium|short",
        )
    return by_length[length]


def _first_table(captions: Any) -> dict[str, Any]:
    tables = captions.values() if isinstance(captions, dict) else []
    return next((table for table in tables if isinstance(table, dict)), {})


def _read_text(root: Path, relative: str) -> str:
    path = inside(root, relative, str(root))
    if not path.exists():
        raise UserError(f"{relative} does not exist", allowed="the instruction beside its video")
    try:
        return regular_file(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{relative} is not UTF-8", actual=str(error), next_step="save it as UTF-8") from None


def _read_features(path: Path) -> RobotFeatures:
    try:
        return RobotFeatures.from_dict(read_json(path))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} does not describe a robot", actual=repr(error)) from None


GR1 = DemoSource(
    name="gr1",
    summary="a GR1 layout (videos/*.mp4, also in sub-folders, with metadata.csv or .jsonl, metas/ or captions/)",
    recognizes=lambda root: _table_of(root) is not None or any(map(is_video, files_below(root / "videos"))),
    open=open_gr1,
)
PLAIN = DemoSource(
    name="plain",
    summary="a folder of NAME.mp4 + NAME.txt, or other containers such as .mov and .mkv",
    recognizes=lambda root: root.is_dir() and any(map(is_video, files_below(root))),
    open=open_plain,
)
