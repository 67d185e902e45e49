"""Which clips a dataset holds: the run's own, after those of another dataset where one is added to or mixed in.

The other dataset is only read. Its episodes are cut out as clips of their own, so that from there on all are alike.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dreamgen.core.errors import Problems, UserError
from dreamgen.core.lerobot_meta import LeRobotMeta, read_meta
from dreamgen.core.lerobot_rows import instruction_of, read_rows
from dreamgen.core.progress import Progress
from dreamgen.core.records import RobotFeatures
from dreamgen.core.settings import ExportSettings, Settings
from dreamgen.core.timeline import frame_index_at
from dreamgen.core.trajectory import read_schema
from dreamgen.core.video import probe
from export.clips import REAL, Clip
from export.fit import Cut, Target, fit_clip
from export.workers import Workers


@dataclass(frozen=True)
class Other:
    """A dataset whose episodes are taken in.

    Args:
        setting: Which setting names it.
        meta: Its metadata.
        camera: Its video feature that is used.
        notes: What of it is left out.
    """

    setting: str
    meta: LeRobotMeta
    camera: str
    notes: list[str]


def open_others(export: ExportSettings, features: RobotFeatures) -> list[Other]:
    """Read the metadata of the datasets that are added to or mixed in.

    Raises:
        UserError: listing what does not fit: cameras, dimensions, names.
    """
    others, problems = [], Problems()
    for setting in ("append_to", "mix_with"):
        if (given := getattr(export, setting)) is None:
            continue
        try:
            others.append(_open(setting, Path(given), export, features))
        except UserError as error:
            problems.errors.append(error)
    problems.raise_if_any("datasets that cannot be taken in")
    return others


def _open(setting: str, root: Path, export: ExportSettings, features: RobotFeatures) -> Other:
    if not root.is_dir():
        raise UserError(f"export.{setting} is no folder", actual=str(root), allowed="a LeRobot dataset, v2.0 to v3.0")
    meta = read_meta(root)
    with_files = [name for name in meta.cameras if any(e.videos.get(name, root).is_file() for e in meta.episodes)]
    camera = export.camera if export.camera in with_files else None
    camera = camera or (with_files[0] if len(with_files) == 1 else None)
    if camera is None:
        raise UserError(
            f"{root}: which camera is meant is not clear", actual=", ".join(with_files) or "no camera with files",
            allowed="its only one, or the one that export.camera names",
            next_step=f"--export.camera={with_files[0]}" if with_files else None,
        )  # fmt: skip
    notes = [f"{root}: {name} is left out: dreamed clips have one camera" for name in with_files if name != camera]
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
    return Other(setting, meta, camera, notes)


def episodes_of(other: Other, include_state: bool) -> tuple[list[Cut], list[str]]:
    """Return where each of its episodes lies, and one sentence for each that cannot be used."""
    cuts, refused, provenance = [], [], _provenance(other.meta.root)
    info, rows = None, read_rows(other.meta.episodes)
    for episode, own in zip(other.meta.episodes, rows, strict=True):
        name = f"{other.meta.root.name}-{episode.index:06d}"
        try:
            if own.refused:
                raise UserError(own.refused)
            instruction, _ = instruction_of(other.meta, episode, own)
            video = episode.videos[other.camera]
            info = info if info and info.path == video else probe(video)
            span = episode.spans_s.get(other.camera)
            from_frame = frame_index_at(span[0], other.meta.fps) if span else 0
            clip = _clip(
                name, instruction, video, episode.length, episode.data_file, other, provenance.get(episode.index)
            )
            cuts.append(
                Cut(clip, other.meta.fps, info.codec, info.height, info.width, from_frame,
                    episode.index if episode.shares_file else None, not span, include_state)
            )  # fmt: skip
        except UserError as error:
            refused.append(f"{name} is left out: {error}")
    return cuts, refused


def _clip(name: str, instruction: str, video: Path, num_frames: int, label: Path, other: Other,
          provenance: dict[str, Any] | None) -> Clip:  # fmt: skip
    clip = Clip(name, instruction, 0, video, num_frames, label, REAL, origin={"source": str(other.meta.root)})
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


def share_out(num_real: int, num_dreamed: int, real_share: float) -> tuple[int, int]:
    """Return how many of each make the wanted share of real ones: all of one kind, and none twice.

    Raises:
        UserError: if that leaves none of a kind that is wanted.
    """
    dreamed_for_all_real = round(num_real * (1 - real_share) / real_share) if real_share else num_dreamed
    if dreamed_for_all_real <= num_dreamed and real_share:
        counts = num_real, dreamed_for_all_real
    else:
        counts = round(num_dreamed * real_share / (1 - real_share)), num_dreamed
    if (real_share > 0 and not counts[0]) or (real_share < 1 and not counts[1]):
        raise UserError(
            "export.real_share cannot be had", actual=f"{real_share:g} of {num_real} real and {num_dreamed} dreamed",
            allowed="a share that leaves at least one of each",
        )  # fmt: skip
    return counts


def target_of(settings: Settings, clips: Iterable[Clip]) -> Target:
    """Return the shape that all clips are to have: the settings' where they say so, else that of the dreamed clips.

    Args:
        clips: Dreamed ones; the first that can be opened counts.

    Raises:
        UserError: if none can be opened.
    """
    export = settings.export
    for clip in clips:
        try:
            info = probe(clip.video)
            break
        except UserError as error:
            damage = error
    else:
        raise damage
    return Target(
        fps=export.fps or clip.fps,
        height=export.height or info.height,
        width=export.width or info.width,
        codec=info.codec,
        crf=settings.video.crf if clip.crf is None else clip.crf,
        gop=settings.video.gop if clip.gop is None else clip.gop,
        fit=settings.prepare.fit,
        action_kind=settings.prepare.action_kind,
    )


def gather(
    settings: Settings, dreamed: Collection[Clip], others: Sequence[Other], folder: Path, workers: Workers
) -> tuple[Collection[Clip], list[str], list[str]]:
    """Choose, cut and fit the clips of a dataset: those that are added to, the real ones mixed in, then the dreamed.

    Args:
        dreamed: The run's own.
        others: From `open_others`.
        folder: Where clips that have to be made go.

    Returns:
        The clips; a sentence for each that is refused; notes.

    Raises:
        UserError: if sizes or rates differ and no setting says which is wanted.
    """
    export, random = settings.export, np.random.default_rng(settings.seed)
    if not others and not is_resized(export):
        return dreamed, [], []
    target, with_state = target_of(settings, dreamed), export.include_state and _have_states(dreamed)
    before: list[Cut] = []
    real: list[Cut] = []
    refused, notes = [], []
    for other in others:
        cuts, bad = episodes_of(other, with_state)
        (before if other.setting == "append_to" else real).extend(cuts)
        refused += bad
        notes += other.notes
    held = {cut.clip.clip_id for cut in before}
    dreamed = [clip for clip in dreamed if clip.clip_id not in held]
    if export.real_share is not None:
        num_real, num_dreamed = share_out(len(real), len(dreamed), export.real_share)
        notes.append(
            f"real_share={export.real_share:g}: {num_real} of {len(real)} real, {num_dreamed} of {len(dreamed)} dreamed"
        )
        real, dreamed = _some(real, num_real, random), _some(dreamed, num_dreamed, random)
    own: list[Cut] = []
    for clip in dreamed if is_resized(export) else ():
        try:
            own.append(_whole(clip, with_state))
        except UserError as error:
            refused.append(f"{clip.clip_id} is left out: {error}")
    _must_fit([*before, *real], target, export)
    clips, encoded = [], 0
    work = (functools.partial(fit_clip, cut, target, folder) for cut in [*before, *real, *own])
    with Progress("export: fit clips", len(before) + len(real) + len(own)) as progress:
        for clip, told in workers.run(work):
            progress.add(failed=clip is None)
            if clip is None:
                refused.append(told)
            else:
                clips.append(clip)
                encoded += told is not None
    if encoded:
        notes.append(
            f"{encoded} clips were encoded again: {target.width} x {target.height}, {target.fps} fps, {target.codec}"
        )
    return [*clips, *([] if is_resized(export) else dreamed)], refused, notes


def is_resized(export: ExportSettings) -> bool:
    """Say whether the settings ask for a size or rate of their own."""
    return any(value is not None for value in (export.fps, export.height, export.width))


def _whole(clip: Clip, include_state: bool) -> Cut:
    info = probe(clip.video)
    return Cut(clip, Fraction(clip.fps), info.codec, info.height, info.width, include_state=include_state)


def _have_states(clips: Iterable[Clip]) -> bool:
    """Say whether the dreamed clips' labels have states; real episodes keep theirs only then."""
    label = next((clip.label for clip in clips if clip.label.is_file()), None)
    return label is not None and "observation.state" in read_schema(label).names


def _some[T](items: list[T], count: int, random: np.random.Generator) -> list[T]:
    return [items[index] for index in np.sort(random.choice(len(items), count, replace=False)).tolist()]


def _must_fit(cuts: Sequence[Cut], target: Target, export: ExportSettings) -> None:
    problems = Problems()
    sizes = {(cut.width, cut.height) for cut in cuts} - {(target.width, target.height)}
    if sizes and export.height is None and export.width is None:
        problems.add(
            "the datasets' pictures differ in size", actual=", ".join(f"{w} x {h}" for w, h in sorted(sizes)),
            allowed=f"{target.width} x {target.height}, as the dreamed clips",
            next_step=f"--export.height={target.height} --export.width={target.width} encodes what differs again",
        )  # fmt: skip
    rates = {cut.source_fps for cut in cuts} - {Fraction(target.fps)}
    if rates and export.fps is None:
        problems.add(
            "the datasets' frame rates differ", actual=", ".join(f"{float(rate):g}" for rate in sorted(rates)),
            allowed=f"{target.fps}, as the dreamed clips",
            next_step=f"--export.fps={target.fps} resamples what differs, actions too",
        )  # fmt: skip
    problems.raise_if_any("datasets that do not go together")
