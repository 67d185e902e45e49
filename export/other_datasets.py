"""Another dataset's episodes, cut out as clips of their own, so that from there on all are alike; it is only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dreamgen.config.settings import ExportSettings
from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta, read_meta
from dreamgen.data.lerobot.rows import instruction_of, read_rows
from dreamgen.data.timeline import frame_index_at
from dreamgen.data.video import VideoInfo, probe
from dreamgen.errors import Problems, UserError
from dreamgen.run.records import RobotFeatures
from export.clips import REAL, Clip
from export.spec import Camera, cameras_of
from export.transcode import ClipSource, VideoClipSource


@dataclass(frozen=True)
class MixedDataset:
    """A dataset whose episodes are taken in.

    Args:
        setting: Which setting names it.
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
        try:
            mixed_datasets.append(_open(setting, Path(given), cameras, export, features))
        except UserError as error:
            problems.errors.append(error)
    problems.raise_if_any("datasets that cannot be taken in")
    return mixed_datasets


def _open(
    setting: str, root: Path, wanted: Sequence[Camera], export: ExportSettings, features: RobotFeatures
) -> MixedDataset:
    if not root.is_dir():
        raise UserError(f"export.{setting} is no folder", actual=str(root), allowed="a LeRobot dataset, v2.0 to v3.0")
    meta = read_meta(root)
    with_files = [name for name in meta.cameras if any(e.videos.get(name, root).is_file() for e in meta.episodes)]
    cameras = _cameras(root, with_files, wanted)
    several = f"dreamed clips have {len(cameras)} cameras" if cameras[1:] else "dreamed clips have one camera"
    notes = [f"{root}: {name} is left out: {several}" for name in with_files if name not in cameras]
    problems, known = Problems(), {"action": features.action_names, "observation.state": features.state_names}
    for name, names in known.items():
        if name == "observation.state" and not export.include_state:
            continue
        feature = meta.info["features"].get(name)
        if feature is None and (names or name == "action"):
            problems.add(
                f"{root} has no {name}", next_step="--export.include_state=false" if name != "action" else None
            )
        theirs = (feature.get("names") or feature.get("shape")) if feature else None
        has_other_names = isinstance(theirs, list) and theirs not in (list(names), [len(names)])
        if names and has_other_names:
            problems.add(f"{root}: {name} has other dimensions than the run", actual=theirs, allowed=list(names))
    vectors = ("action", "observation.state")
    notes += [f"{root}: {name} is left out: dreamed clips have none" for name, feature in meta.info["features"].items()
              if feature.get("dtype", "").startswith("float") and name not in (*vectors, "timestamp")]  # fmt: skip
    problems.raise_if_any(f"{root} cannot be taken in")
    return MixedDataset(setting, meta, cameras, notes)


def _cameras(root: Path, with_files: Sequence[str], wanted: Sequence[Camera]) -> tuple[str, ...]:
    if len(wanted) > 1:
        found = [next((name for name in with_files if name in (camera.name, camera.source)), None) for camera in wanted]
        if missing := [camera.name for camera, name in zip(wanted, found, strict=True) if name is None]:
            raise UserError(
                f"{root} lacks cameras that the dreamed clips show", actual=", ".join(with_files) or "none with files",
                allowed=f"{', '.join(missing)} too",
            )  # fmt: skip
        return tuple(found)
    if wanted[0].name in with_files:
        return (wanted[0].name,)
    if len(with_files) != 1:
        raise UserError(
            f"{root}: which camera is meant is not clear", actual=", ".join(with_files) or "no camera with files",
            allowed="its only one, or the one that export.camera names",
            next_step=f"--export.camera={with_files[0]}" if with_files else None,
        )  # fmt: skip
    return (with_files[0],)


def episodes_of(other: MixedDataset, include_state: bool) -> tuple[list[ClipSource], list[str]]:
    """Return where each of its episodes lies, and one sentence for each that cannot be used."""
    cuts, refused, provenance = [], [], _provenance(other.meta.root)
    probed: dict[str, VideoInfo] = {}  # the last file of each camera, which is mostly the next episode's too
    rows = read_rows(other.meta.episodes)
    for episode, own in zip(other.meta.episodes, rows, strict=True):
        name = f"{other.meta.root.name}-{episode.index:06d}"
        try:
            if own.refused:
                raise UserError(own.refused)
            instruction, _ = instruction_of(other.meta, episode, own)
            videos = tuple(_video(episode, camera, other.meta.fps, probed) for camera in other.cameras)
            clip = _clip(name, instruction, videos, episode, other, provenance.get(episode.index))
            index = episode.index if episode.shares_file else None
            cuts.append(ClipSource(clip, other.meta.fps, videos, index, include_state))
        except UserError as error:
            refused.append(f"{name} is left out: {error}")
    return cuts, refused


def _video(episode: Episode, camera: str, fps: Fraction, probed: dict[str, VideoInfo]) -> VideoClipSource:
    path, span = episode.videos[camera], episode.spans_s.get(camera)
    info = probed.get(camera)
    if info is None or info.path != path:
        info = probed[camera] = probe(path)
    from_frame = frame_index_at(span[0], fps) if span else 0
    return VideoClipSource(path, info.codec, info.height, info.width, from_frame, is_alone=not span)


def _clip(name: str, instruction: str, videos: Sequence[VideoClipSource], episode: Episode, other: MixedDataset,
          provenance: dict[str, Any] | None) -> Clip:  # fmt: skip
    clip = Clip(name, instruction, 0, tuple(video.path for video in videos), episode.length, episode.data_file, REAL,
                origin={"source": str(other.meta.root)})  # fmt: skip
    if provenance is None:
        return clip
    origin = {key: value for key, value in provenance.items() if key not in ("episode_index", "clip_id", "kind",
              "num_frames", "instruction", "dreamgen_version", "idm_held_out", "licence")}  # fmt: skip
    scores = {key.removeprefix("score_"): origin.pop(key) for key in list(origin) if key.startswith("score_")}
    instruction = instruction.removeprefix("<DREAM>")
    kind = provenance.get("kind", clip.kind)
    return replace(
        clip, clip_id=provenance["clip_id"], instruction=instruction, kind=kind, origin=origin | {"scores": scores}
    )


def _provenance(root: Path) -> dict[int, dict[str, Any]]:
    """Read the provenance beside a dataset that an export wrote."""
    file = root.with_name(f"{root.name}.provenance.parquet")
    return {row["episode_index"]: row for row in pq.read_table(file).to_pylist()} if file.is_file() else {}
