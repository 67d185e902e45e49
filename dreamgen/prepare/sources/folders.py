"""Folders of videos with instructions: the GR1 layout and the plain one.

GR1: `videos/*.mp4`, with the instruction in `metadata.csv`, `metas/NAME.txt` or `captions/NAME.json`. A training set
that prepare wrote has this layout too, with `trajectories/` and `features.json`; where its pictures show several
cameras, each is cut out again.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.trajectory import read_trajectory
from dreamgen.errors import UserError, reason_of
from dreamgen.extensions.demo_source import DemoSource
from dreamgen.prepare.sources.source import Source, SourceClip, SourceVideo, safe_names
from dreamgen.run.files import inside, read_json, regular_file
from dreamgen.run.json_text import BadJson, parse_json
from dreamgen.run.records import RobotFeatures

FILE_COLUMNS = ("file_name", "video", "path", "video_path")
TEXT_COLUMNS = ("instruction", "prompt", "text", "caption")  # the bare instruction goes before the whole prompt


def open_gr1(root: Path, settings: PrepareSettings) -> Source:
    """List the videos of a GR1 layout: those that metadata.csv names, and all others in videos/.

    Raises:
        UserError: if metadata.csv or features.json as a whole cannot be read.
    """
    features = _read_features(root / "features.json") if (root / "features.json").is_file() else RobotFeatures()
    has_table = (root / "metadata.csv").is_file()
    named, refused_rows = _read_metadata_csv(root) if has_table else ({}, [])
    videos = sorted({*named, *(path.relative_to(root) for path in mp4s_in(root / "videos"))})
    findings = ()
    if has_table and len(videos) > len(named):
        findings = (f"metadata.csv does not name {len(videos) - len(named)} of the {len(videos)} videos",)
    videos = videos[: settings.max_episodes]
    clips = []
    for video, name in zip(videos, safe_names(path.stem for path in videos), strict=True):
        text_of = functools.partial(_text_of, root, video, named, settings.caption_length)
        clips.append(_clip(root, name, video, text_of, features))
    clips += [SourceClip("", origin, refused=reason) for origin, reason in refused_rows]
    return Source("GR1 layout", tuple(clips), features, findings, tuple(view.camera for view in features.views))


def open_plain(root: Path, settings: PrepareSettings) -> Source:
    """List the NAME.mp4 of a folder, each with its NAME.txt."""
    videos = mp4s_in(root)
    unused = sorted({path.stem for path in root.glob("*.txt")} - {path.stem for path in videos})
    findings = (f"{len(unused)} texts have no video: {', '.join(unused[:5])}",) if unused else ()
    videos = [path.relative_to(root) for path in videos[: settings.max_episodes]]
    clips = tuple(
        _clip(root, name, video, functools.partial(_read_text, root, f"{video.stem}.txt"))
        for video, name in zip(videos, safe_names(path.stem for path in videos), strict=True)
    )
    return Source("plain folder of mp4 + txt", clips, RobotFeatures(), findings)


def mp4s_in(folder: Path) -> list[Path]:
    """Return the mp4 files directly in a folder, sorted; none without the folder. Hidden files are left out."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in entries if p.suffix.lower() == ".mp4" and p.name[0] != "." and not p.is_dir())


def _clip(
    root: Path, name: str, video: Path, text_of: Callable[[], str], features: RobotFeatures | None = None
) -> SourceClip:
    origin = video.as_posix()
    try:
        file = inside(root, video, origin)
        trajectory = inside(root, Path("trajectories") / f"{video.stem}.parquet", origin)
        load = None
        if features is not None and trajectory.is_file():
            dims = (len(features.state_names) or None, len(features.action_names) or None)
            load = functools.partial(read_trajectory, trajectory, *dims)
        views = features.views if features is not None else ()
        videos = tuple(SourceVideo(file, view=view) for view in views) or (SourceVideo(file),)
        return SourceClip(name, origin, videos, text_of(), load_trajectory=load)
    except UserError as error:
        return SourceClip(name, origin, refused=reason_of(error))


def _read_metadata_csv(root: Path) -> tuple[dict[Path, str | UserError], list[tuple[str, str]]]:
    """Return video -> its text or error, and the rows that name no video as (origin, reason)."""
    path = root / "metadata.csv"
    named: dict[Path, str | UserError] = {}
    refused = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            file_column = next((name for name in FILE_COLUMNS if name in columns), None)
            if file_column is None:
                raise UserError(
                    f"{path} has no column for the video", actual=", ".join(columns), allowed=" | ".join(FILE_COLUMNS)
                )
            for row in reader:
                origin = f"metadata.csv line {reader.line_num}"
                try:
                    video = _named_video(root, row[file_column] or "", origin)
                    if video in named:
                        raise UserError(f"{origin} names {video.as_posix()} again: its first row is used")
                except UserError as error:
                    refused.append((origin, reason_of(error)))
                    continue
                named[video] = _row_text(row, origin)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8", actual=str(error), next_step="save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.reader.line_num} is not CSV",  # pyright: ignore[reportPossiblyUnboundVariable]
            actual=str(error),
            allowed="texts with commas in double quotes, and double quotes in them doubled",
        ) from None
    return named, refused


def _row_text(row: dict[str | None, Any], origin: str) -> str | UserError:
    if None in row:  # what DictReader does with fields beyond the header
        return UserError(
            f"{origin} has more fields than the header",
            actual=", ".join(row[None])[:80],
            allowed="text with commas in double quotes",
        )
    return next((row[column].strip() for column in TEXT_COLUMNS if (row.get(column) or "").strip()), "")


def _named_video(root: Path, text: str, origin: str) -> Path:
    """Return the video that a row names, relative to `root`; published tables write it with or without `videos/`."""
    if not text.strip():
        raise UserError(f"{origin} names no video", actual=repr(text))
    for candidate in (Path(text), Path("videos") / text):
        if inside(root, candidate, origin).is_file():
            return Path(os.path.normpath(candidate))
    raise UserError(f"{origin} names a video that does not exist", actual=text)


def _text_of(root: Path, video: Path, named: dict[Path, str | UserError], caption_length: str) -> str:
    text = named.get(video)
    if isinstance(text, UserError):
        raise text
    return text or _caption_beside(root, video.stem, caption_length)


def _caption_beside(root: Path, stem: str, length: str) -> str:
    if (root / "metas" / f"{stem}.txt").exists():
        return _read_text(root, f"metas/{stem}.txt")
    relative = f"captions/{stem}.json"
    if not (root / relative).exists():
        raise UserError(f"{stem} has no caption", allowed=f"a row of metadata.csv, metas/{stem}.txt or {relative}")
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
    summary="a GR1 layout (videos/*.mp4 with metadata.csv, metas/ or captions/)",
    recognizes=lambda root: (root / "metadata.csv").is_file() or bool(mp4s_in(root / "videos")),
    open=open_gr1,
)
PLAIN = DemoSource(
    name="plain",
    summary="a folder of NAME.mp4 + NAME.txt",
    recognizes=lambda root: bool(mp4s_in(root)),
    open=open_plain,
)
