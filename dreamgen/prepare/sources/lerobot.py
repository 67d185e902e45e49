"""A LeRobot dataset (v2.0, v2.1, v3.0) as a source of demonstrations.

Published datasets name cameras that have no files, totals that do not add up and "tasks" that are quality labels. The
rows decide; where the metadata differs from them, the user gets a note.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta, read_meta
from dreamgen.data.lerobot.modality import usable_modality
from dreamgen.data.lerobot.rows import TASK, EpisodeRows, instruction_of, read_rows
from dreamgen.data.lerobot.schema import as_stored, flat_names, split_ends
from dreamgen.data.trajectory import ACTION, STATE, read_trajectory
from dreamgen.errors import Problems, UserError, reason_of
from dreamgen.extensions.demo_source import DemoSource
from dreamgen.prepare.sources.source import Source, SourceClip, SourceVideo, safe_names
from dreamgen.prepare.sources.unused import unused_inputs
from dreamgen.run.records import RobotFeatures, robot_type_of


def open_lerobot(root: Path, settings: PrepareSettings) -> Source:
    """Read metadata and task columns of a LeRobot dataset; vectors and pictures are read later, clip by clip.

    Raises:
        UserError: if the metadata cannot be used, or it is not clear which cameras are meant.
    """
    meta = read_meta(root)
    cameras, findings = choose_cameras(meta, settings)
    dims, names, name_findings = _vector_features(meta)
    episodes = meta.episodes[: settings.max_episodes]
    rows = read_rows(episodes)
    findings += name_findings + unused_inputs(meta, cameras) + _metadata_notes(meta) + _row_notes(meta, rows)
    findings += _pseudo_task_notes(meta, episodes, rows)
    modality, problems = usable_modality(meta.modality, dims)
    stems = safe_names(f"episode_{episode.index:06d}" for episode in episodes)
    clips = tuple(_clip(meta, *each, cameras, dims) for each in zip(stems, episodes, rows, strict=True))
    features = RobotFeatures(
        robot_type=robot_type_of(meta.info.get("robot_type")),
        camera=cameras[0],
        state_names=names.get(STATE, ()),
        action_names=names.get(ACTION, ()),
        modality=modality or None,
    )
    several = cameras if len(cameras) > 1 else ()
    return Source(f"LeRobot {meta.version}", clips, features, tuple(findings + problems), several)


def choose_cameras(meta: LeRobotMeta, settings: PrepareSettings) -> tuple[tuple[str, ...], list[str]]:
    """Return the cameras to use, and a note for each that is not used.

    Args:
        meta: The dataset.
        settings: The user's choice, with or without `observation.images.`; by default the only camera that has files.

    Raises:
        UserError: if a choice has no files, or there is no choice and not exactly one camera has files.
    """
    info_file = meta.root / "meta" / "info.json"
    with_files = meta.cameras_with_frames()
    findings = [
        f"info.json names the camera {key}, but no episode has a file of it: not used"
        for key in meta.cameras
        if key not in with_files
    ]
    if not with_files:
        raise UserError(
            f"{info_file}: no camera has a video file",
            actual=", ".join(meta.cameras) or "no video or image feature",
            allowed="at least one camera with files under videos/, or with pictures in the tables",
            next_step="copy the dataset again, with videos/" if meta.cameras else None,
        )  # fmt: skip
    if settings.cameras is not None:
        return _wanted("prepare.cameras", settings.cameras, with_files, meta), findings
    if settings.camera is not None:
        return _wanted("prepare.camera", [settings.camera], with_files, meta), findings
    if len(with_files) > 1:
        raise UserError(
            f"{meta.root} has several cameras", actual=", ".join(with_files), allowed="one, or a list of several",
            next_step=f"--prepare.camera={with_files[0]}, "
            f"or --prepare.cameras='[{', '.join(with_files)}]' for several in one frame",
        )  # fmt: skip
    return (with_files[0],), findings


def _wanted(setting: str, wanted: Sequence[str], with_files: Sequence[str], meta: LeRobotMeta) -> tuple[str, ...]:
    known = {name: key for key in with_files for name in (key.removeprefix("observation.images."), key)}
    chosen, problems = tuple(known[name] for name in wanted if name in known), Problems()
    for name in wanted:
        if name not in known:
            problems.add(
                f"{setting} is not a camera of {meta.root} that has files", actual=name, allowed=", ".join(with_files)
            )
    if len(set(chosen)) < len(chosen):
        problems.add(f"{setting} names a camera twice", actual=", ".join(wanted))
    problems.raise_if_any(f"{setting} cannot be used")
    return chosen


def _vector_features(meta: LeRobotMeta) -> tuple[dict[str, int], dict[str, tuple[str, ...]], list[str]]:
    dims, names, findings = {}, {}, []
    for key in (STATE, ACTION):
        feature = meta.info["features"].get(key)
        if feature is None:
            findings.append(f"the dataset has no {key}: the training set will have none")
            continue
        shape = feature.get("shape")
        if not isinstance(shape, list | tuple) or len(shape) != 1 or not isinstance(shape[0], int):
            raise UserError(f"{meta.root / 'meta' / 'info.json'}: {key} is not a vector",
                            actual=as_stored(shape), allowed="[N]")  # fmt: skip
        dims[key] = shape[0]
        listed = flat_names(feature.get("names"))
        if len(listed) != shape[0]:
            if listed:
                findings.append(f"info.json gives {key} {shape[0]} dimensions but {len(listed)} names: names not used")
            listed = tuple(f"{key.rpartition('.')[2]}_{i}" for i in range(shape[0]))
        names[key] = listed
    return dims, names, findings


def _clip(
    meta: LeRobotMeta, name: str, episode: Episode, rows: EpisodeRows, cameras: Sequence[str], dims: dict[str, int]
) -> SourceClip:
    origin = f"episode {episode.index}"
    try:
        if rows.refused:
            return SourceClip(name, origin, refused=rows.refused)
        videos = tuple(_video(episode, camera, meta) for camera in cameras)
        instruction, changes = instruction_of(meta, episode, rows)
    except UserError as error:
        return SourceClip(name, origin, refused=reason_of(error))
    load = functools.partial(
        read_trajectory,
        episode.data_file,
        dims.get(STATE),
        dims.get(ACTION),
        episode.index if episode.shares_file else None,
    )
    return SourceClip(name, origin, videos, instruction, meta.fps, load, changes)


def _video(episode: Episode, camera: str, meta: LeRobotMeta) -> SourceVideo:
    if camera in meta.pictures:
        index = episode.index if episode.shares_file else None
        return SourceVideo(episode.data_file, column=camera, episode_index=index)
    path = episode.videos.get(camera)
    if path is None:
        raise UserError(f"the metadata does not say where the video of {camera} is", allowed="its file, and its times",
                        next_step="dreamgen check lists the entries")  # fmt: skip
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed="a video of the chosen camera")
    return SourceVideo(path, episode.spans_s.get(camera))


def _metadata_notes(meta: LeRobotMeta) -> list[str]:
    """Compare the totals and splits of info.json with what exists."""
    counted = meta.counted_totals()
    if "total_videos" in counted:
        counted["total_videos"] = sum(video.is_file() for e in meta.episodes for video in e.videos.values())
    notes = [
        f"info.json says {key} {as_stored(meta.info[key])}, the dataset has {count}: the count is used"
        for key, count in counted.items()
        if meta.info.get(key, count) != count
    ]
    splits, num_episodes = meta.info.get("splits"), len(meta.episodes)
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        ends = split_ends(span)
        if ends and ends[1] > num_episodes:
            notes.append(f"info.json's split {name} is {span}, the dataset has {num_episodes} episodes: not used")
    return notes


def _row_notes(meta: LeRobotMeta, rows: Sequence[EpisodeRows]) -> list[str]:
    wide = [key for key in (STATE, ACTION) if any(key in own.wide for own in rows)]
    notes = [f"{' and '.join(wide)} are float64: stored as float32"] if wide else []
    late_s = [own.first_time_s for own in rows if own.first_time_s is not None and own.first_time_s > 0.5 / meta.fps]
    if late_s:
        first = round(min(late_s), 4)
        notes.append(f"timestamps begin at {first} s, not at 0: rows and frames are paired by their order")
    return notes


def _pseudo_task_notes(meta: LeRobotMeta, episodes: Sequence[Episode], rows: Sequence[EpisodeRows]) -> list[str]:
    """Name the tasks of episodes to which only an annotation other than the instruction refers."""
    referred: dict[str, set[str]] = {}
    for own in rows:
        for column, counts in own.counts.items():
            referred.setdefault(column, set()).update(meta.tasks[i] for i in counts if i in meta.tasks)
    instructions = referred.pop(TASK, set())
    found: Counter[tuple[str, str]] = Counter()
    for task in (task for episode in episodes for task in episode.tasks):
        columns = ", ".join(sorted(column for column, tasks in referred.items() if task in tasks))
        if instructions and task not in instructions and columns:
            found[task, columns] += 1
    return [
        f'the task "{task}" of {count} episodes is not an instruction: only {columns} points to it'
        for (task, columns), count in found.items()
    ]


LEROBOT = DemoSource(
    name="lerobot",
    summary="a LeRobot dataset (meta/info.json)",
    recognizes=lambda root: (root / "meta" / "info.json").is_file(),
    open=open_lerobot,
    has_cameras=True,
)
