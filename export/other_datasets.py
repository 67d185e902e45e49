"""Real datasets that an export adds to or mixes in: their episodes as clips. The datasets are only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dreamgen.config.settings import ExportSettings
from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta, read_meta
from dreamgen.data.lerobot.pictures import stored_pictures
from dreamgen.data.lerobot.rows import instruction_of, read_rows
from dreamgen.data.timeline import row_frames
from dreamgen.data.trajectory import ACTION, STATE
from dreamgen.data.video import VideoInfo, probe
from dreamgen.errors import Problems, UserError, quoted
from dreamgen.run.records import RobotFeatures
from export.clips import REAL, Clip
from export.spec import Camera, cameras_of
from export.transcode import ClipSource, VideoClipSource

# Columns of a provenance table that are fields of a clip, or that the export writes itself.
CLIP_COLUMNS = ("episode_index", "clip_id", "kind", "num_frames", "instruction", "dreamgen_version",
                "licence")  # fmt: skip


@dataclass(frozen=True)
class MixedDataset:
    """A dataset whose episodes are exported too.

    Args:
        setting: Which setting names it, append_to or mix_with.
        meta: Its metadata.
        cameras: Its video features that are used, in the order of the dataset's.
        notes: What of it is left out.
    """

    setting: str
    meta: LeRobotMeta
    cameras: tuple[str, ...]
    notes: list[str]


def open_mixed_datasets(export: ExportSettings, features: RobotFeatures) -> list[MixedDataset]:
    """Read the metadata of the datasets that are added to or mixed in.

    Raises:
        UserError: listing what does not fit: cameras, dimensions, names.
    """
    mixed_datasets, problems, cameras = [], Problems(), cameras_of(export, features)
    for setting in ("append_to", "mix_with"):
        if (given := getattr(export, setting)) is None:
            continue
        with problems.collected():
            mixed_datasets.append(_open(setting, Path(given), cameras, export, features))
    problems.raise_if_any("datasets that cannot be mixed in")
    return mixed_datasets


def _open(
    setting: str, root: Path, wanted: Sequence[Camera], export: ExportSettings, features: RobotFeatures
) -> MixedDataset:
    if not root.is_dir():
        raise UserError(
            f"export.{setting} is not a folder", actual=str(root), allowed="a LeRobot dataset, v2.0 to v3.0"
        )
    meta = read_meta(root)
    with_files = meta.cameras_with_frames()
    cameras = _choose_cameras(root, with_files, wanted)
    reason = f"generated clips have {len(cameras)} cameras" if cameras[1:] else "generated clips have one camera"
    notes = [f"{root}: {name} is left out: {reason}" for name in with_files if name not in cameras]
    problems = Problems()
    known = {ACTION: features.action_names} | ({STATE: features.state_names} if export.include_state else {})
    for name, names in known.items():
        feature = meta.info["features"].get(name)
        if feature is None and (names or name == ACTION):
            problems.add(f"{root} has no {name}", next_step="--export.include_state=false" if name == STATE else None)
        theirs = (feature.get("names") or feature.get("shape")) if feature else None
        if names and isinstance(theirs, list) and theirs not in (list(names), [len(names)]):
            problems.add(f"{root}: {name} has other dimensions than the run", actual=theirs, allowed=list(names))
    notes += [f"{root}: {name} is left out: generated clips have none" for name, feature in meta.features.items()
              if feature["dtype"].startswith("float") and name not in (ACTION, STATE, "timestamp")]  # fmt: skip
    problems.raise_if_any(f"{root} cannot be mixed in")
    return MixedDataset(setting, meta, cameras, notes)


def _choose_cameras(root: Path, with_files: Sequence[str], wanted: Sequence[Camera]) -> tuple[str, ...]:
    if len(wanted) > 1:
        files = with_files[::-1]  # the first of several that fit is taken
        found = {own.name: name for own in wanted for name in files if name in (own.name, own.source)}
        if missing := [camera.name for camera in wanted if camera.name not in found]:
            raise UserError(
                f"{root} lacks cameras that the generated clips show",
                actual=", ".join(with_files) or "none with files", allowed=f"{', '.join(missing)} too",
            )  # fmt: skip
        return tuple(found[camera.name] for camera in wanted)
    if wanted[0].name in with_files:
        return (wanted[0].name,)
    if len(with_files) != 1:
        raise UserError(
            f"{root}: which camera to use is not clear", actual=", ".join(with_files) or "no camera with files",
            allowed="a dataset with one camera, or the one that export.camera names",
            next_step=f"--export.camera={with_files[0]}" if with_files else None,
        )  # fmt: skip
    return (with_files[0],)


def episodes_of(dataset: MixedDataset, include_state: bool) -> tuple[list[ClipSource], list[str]]:
    """Return where each episode of a dataset is, and one sentence for each that cannot be used."""
    meta, provenance = dataset.meta, _provenance(dataset.meta.root)
    sources, refused = [], []
    probed: dict[str, VideoInfo] = {}  # the last file of each camera, which is mostly the next episode's too
    for episode, rows in zip(meta.episodes, read_rows(meta.episodes), strict=True):
        name = f"{meta.root.name}-{episode.index:06d}"
        try:
            if rows.refused:
                raise UserError(rows.refused)
            instruction, _ = instruction_of(meta, episode, rows)
            videos = tuple(_video(episode, camera, meta, probed) for camera in dataset.cameras)
            clip = Clip(name, instruction, 0, tuple(video.path for video in videos), episode.length, episode.data_file,
                        REAL, origin={"source": str(meta.root)})  # fmt: skip
            clip = _with_provenance(clip, provenance.get(episode.index))
            index = episode.index if episode.shares_file else None
            sources.append(ClipSource(clip, meta.fps, videos, index, include_state))
        except UserError as error:
            refused.append(f"{name} is left out: {error}")
    return sources, refused


def _video(episode: Episode, camera: str, meta: LeRobotMeta, probed: dict[str, VideoInfo]) -> VideoClipSource:
    if camera in meta.pictures:
        index = episode.index if episode.shares_file else None
        info = stored_pictures(episode.data_file, camera, index, meta.fps)
        return VideoClipSource(episode.data_file, info.codec, info.height, info.width, pictures=info)
    if camera not in episode.videos:
        raise UserError(f"episode {episode.index}: the metadata does not say where its video of {camera} is",
                        next_step=f"dreamgen check {quoted(meta.root)}")  # fmt: skip
    path, span_s = episode.videos[camera], episode.spans_s.get(camera)
    info = probed.get(camera)
    if info is None or info.path != path:
        info = probed[camera] = probe(path)
    row_frames(info.times, meta.fps, span_s, episode.length)  # an episode with a hole is refused before any is encoded
    return VideoClipSource(path, info.codec, info.height, info.width, span_s)


def _with_provenance(clip: Clip, row: dict[str, Any] | None) -> Clip:
    if row is None:
        return clip
    origin = {key: value for key, value in row.items() if key not in CLIP_COLUMNS and not key.startswith("score_")}
    scores = {key.removeprefix("score_"): value for key, value in row.items() if key.startswith("score_")}
    return replace(
        clip, clip_id=row["clip_id"], instruction=clip.instruction.removeprefix("<DREAM>"),
        kind=row.get("kind", clip.kind), origin=origin | {"scores": scores},
    )  # fmt: skip


def _provenance(root: Path) -> dict[int, dict[str, Any]]:
    """Read the table of provenance beside a dataset that an export wrote: episode -> row."""
    file = root.with_name(f"{root.name}.provenance.parquet")
    return {row["episode_index"]: row for row in pq.read_table(file).to_pylist()} if file.is_file() else {}
