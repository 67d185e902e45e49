"""Clips and labels that other programs made -> clips, jobs and labels of a run, so that every later stage serves them.

Axes: T frames, H height, W width, C channels. Frames are uint8, 0-255, RGB.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from dreamgen.config.settings import Settings, VideoSettings
from dreamgen.data.foreign_labels import ForeignLabel, ForeignLabels, names_of, open_labels
from dreamgen.data.frames import FrameReader
from dreamgen.data.images import fit_frame
from dreamgen.data.media_files import not_used
from dreamgen.data.stream_copy import can_be_copied, copy_video
from dreamgen.data.trajectory import Trajectory
from dreamgen.data.video import WRITTEN_PIX_FMT, VideoInfo, probe, write_video
from dreamgen.data.views import short_name
from dreamgen.errors import UserError, quoted, reason_of
from dreamgen.prepare.detect import open_source
from dreamgen.prepare.sources.source import Source, SourceClip
from dreamgen.prepare.survey import SurveyedClip, resampling_findings, survey
from dreamgen.progress import Progress
from dreamgen.run.files import sha256_of_file, write_json
from dreamgen.run.jobs import iter_jobs, write_jobs
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.label_files import UNKNOWN, is_foreign, take
from dreamgen.run.records import IMPORTED, Job, JournalRecord, StageResult, job_id
from dreamgen.run.run_folder import RunFolder

MIN_FRAMES = 2
NUM_NOTES = 20


@dataclass(frozen=True)
class _Found:
    """One clip of a source, with its label.

    Args:
        surveyed: What the survey found.
        label: Its label in a file of its own; None without one.
        root: The source's folder.
    """

    surveyed: SurveyedClip
    label: ForeignLabel | None
    root: str


def import_clips(settings: Settings, dry_run: bool = False) -> StageResult:
    """Bring clips into a run: each gets a job, a file in `clips/` and, where there is one, a label.

    A clip of the run's shape whose packets export can copy is copied byte for byte; any other is resized, resampled and
    encoded once. A clip that was imported before is not imported again.

    Args:
        settings: `import_clips` names clips and labels; `video` and `prepare.fit` their shape.
        dry_run: Write nothing; count.

    Returns:
        Counts, and a note for each clip that is refused; partial when a label does not fit its clip.

    Raises:
        UserError: if no clip is named, none can be used, or there are no labels where some are named.
    """
    run, wanted = RunFolder.of(settings), settings.import_clips
    if not wanted.clips:
        raise UserError("no clips are named", next_step="dreamgen import path/to/clips --out RUN; for labels of clips "
                        "that the run has:  dreamgen label --label.from=path/to/labels --out RUN")  # fmt: skip
    features = run.robot_features()
    dims = (len(features.state_names) or None, len(features.action_names) or None)
    labels = open_labels(wanted.labels, *dims) if wanted.labels is not None else None
    sources = [(root, _open(root, settings)) for root in wanted.clips]
    found = [clip for root, source in sources for clip in _survey(root, source, labels, settings, run)]
    if all(clip.surveyed.refused for clip in found):
        reasons = "\n".join(_refused(found))
        raise UserError(f"none of {len(found)} clips can be imported\n{reasons}")
    notes = [note for _, source in sources for note in _findings(source, labels)]
    notes += resampling_findings([clip.surveyed for clip in found], settings) + _refused(found)[:NUM_NOTES]
    if labels is not None:
        notes += not_used(labels.not_taken(), "as no clip has their name")
    metrics = {"num_clips": len(found), "num_refused": sum(clip.surveyed.refused is not None for clip in found)}
    if dry_run:
        metrics["num_with_label"] = sum(clip.surveyed.clip.load_trajectory is not None for clip in found)
        return StageResult("import", {}, metrics, [*notes, "dry run: nothing was written"])
    counts, more = _write_all(run, found, settings)
    if not run.features_file.is_file():
        write_json(run.imported / "features.json", asdict(sources[0][1].features))
    metrics |= {
        name: counts[name] for name in ("num_imported", "num_known", "num_copied", "num_encoded", "num_labelled")
    }
    metrics["num_refused"] += counts["num_damaged"]
    metrics["num_labels_failed"] = counts["num_labels_failed"]
    outputs = {"jobs": run.jobs, "clips": run.clips, "labels": run.labels}
    is_partial = bool(counts["num_labels_failed"])
    return StageResult("import", outputs, metrics, [*notes, *more[:NUM_NOTES], *_next(run, counts)], partial=is_partial)


def settle_shape(settings: Settings) -> Settings:
    """Return the settings with the shape that imported clips get: in a run without settings, that of the first clip."""
    wanted = settings.import_clips
    is_new = not RunFolder.of(settings).settings_file.exists() and settings.video == VideoSettings()
    if wanted.shape != "auto" or not is_new or not wanted.clips:
        return settings
    for clip in _open(wanted.clips[0], settings).clips:
        if clip.refused or clip.videos[0].column is not None:
            continue
        with suppress(UserError):
            info = probe(clip.videos[0].path)
            size = {"height": info.height - info.height % 2, "width": info.width - info.width % 2}
            fps = max(1, round(clip.fps or info.fps))
            return replace(settings, video=replace(settings.video, fps=fps, num_frames=info.num_frames, **size))
    return settings


def _open(root: str, settings: Settings) -> Source:
    return open_source(root, replace(settings.prepare, max_episodes=None), settings.prompt_prefix, may_download=False)


def _survey(
    root: str, source: Source, labels: ForeignLabels | None, settings: Settings, run: RunFolder
) -> Iterator[_Found]:
    """Survey the clips of a source; each with the label of its name, else that of its own dataset."""
    views = run.robot_features().views
    if source.cameras:
        raise UserError(f"{root} shows several cameras", next_step="--prepare.camera=NAME imports one of them")
    of_clip: list[ForeignLabel | None] = []
    clips: list[SourceClip] = []
    for clip in source.clips:
        label = None
        if not settings.import_clips.own_labels:
            clip = replace(clip, load_trajectory=None)
        try:
            label = labels.of(names_of(clip.origin, clip.name)) if labels is not None else None
        except UserError as error:
            clip = replace(clip, refused=reason_of(error))
        if label is not None:
            with suppress(UserError):  # said when it is taken
                label.load()
                clip = replace(clip, load_trajectory=label.load)
        clips.append(clip)
        of_clip.append(label)
    shape = replace(settings, video=replace(settings.video, num_frames=MIN_FRAMES))  # a clip may have any length
    for surveyed, label in zip(survey(clips, shape), of_clip, strict=True):
        info = surveyed.infos[0] if surveyed.infos else None
        if views and info and (info.height, info.width) != (settings.video.height, settings.video.width):
            cameras = ", ".join(short_name(view.camera) for view in views)
            reason = f"the run's clips show {cameras} in one frame of {settings.video.width} x {settings.video.height}"
            surveyed = replace(surveyed, refused=f"{reason}, and it has {info.width} x {info.height}")
        yield _Found(surveyed, label, root)


def _write_all(run: RunFolder, found: Sequence[_Found], settings: Settings) -> tuple[Counter[str], list[str]]:
    """Write clips, labels and records, and the jobs last: a clip without a job does not exist for other stages."""
    known = list(iter_jobs(run.jobs)) if run.jobs.exists() else []
    done = {job.clip_id for job in known}
    of_content = {job.model_sha256: job for job in known if job.is_imported}
    counts: Counter[str] = Counter()
    notes: list[str] = []
    new: list[Job] = []
    label_records = read_journal(run.journal, "label")
    reader = FrameReader()
    with (
        Journal(run.journal, "generate") as clips, Journal(run.journal, "label") as labels,
        Progress("import", len(found)) as progress,
    ):  # fmt: skip
        for clip in found:
            progress.add(rejected=clip.surveyed.refused is not None)
            if clip.surveyed.refused:
                continue
            info = clip.surveyed.infos[0]
            is_copied = _is_ready(clip.surveyed, settings)
            job = _job(clip, settings, is_copied)
            if (other := of_content.get(job.model_sha256)) is not None and other.instruction != job.instruction:
                notes.append(f"{job.source} was imported before with another instruction, as {other.clip_id}; "
                             f"dreamgen reject {other.clip_id} --out {quoted(run.root)}  leaves it out")  # fmt: skip
            is_known = job.clip_id in done and run.clip_file(job.clip_id).is_file()
            try:
                if not is_known:
                    num_frames = _write_clip(run.clip_file(job.clip_id), clip.surveyed, settings, reader, is_copied)
                    job = replace(job, num_frames=num_frames)
                    clips.append(_record(run, job, clip, is_copied, info))
            except UserError as error:
                reader.close()
                counts["num_damaged"] += 1
                notes.append(f"refused {job.source}: {reason_of(error)}")
                continue
            counts["num_known" if is_known else "num_imported"] += 1
            if not is_known:
                counts["num_copied" if is_copied else "num_encoded"] += 1
            if job.clip_id not in done:
                new.append(job)
                done.add(job.clip_id)
            of_content[job.model_sha256] = job
            if (record := _label(run, job, clip, settings, label_records.get(job.clip_id))) is not None:
                labels.append(record)
                counts["num_labelled" if record.status == "ok" else "num_labels_failed"] += 1
                notes += [f"{job.source}: {record.error}"] if record.status == "failed" else []
    reader.close()
    if new:
        write_jobs(run.jobs, [*known, *new])
    return counts, notes


def _is_ready(surveyed: SurveyedClip, settings: Settings) -> bool:
    """Return whether a clip has the run's shape and its packets can be copied by export."""
    video, info, shape = surveyed.clip.videos[0], surveyed.infos[0], settings.video
    if video.column is not None or video.span_s is not None or video.view is not None or video.path.suffix != ".mp4":
        return False
    has_shape = (info.height, info.width, info.fps) == (shape.height, shape.width, Fraction(shape.fps))
    is_whole = len(surveyed.indices) == info.num_frames and info.pix_fmt == WRITTEN_PIX_FMT
    return has_shape and is_whole and info.codec == shape.codec and can_be_copied(video.path, shape.fps, shape.gop)


def _job(clip: _Found, settings: Settings, is_copied: bool) -> Job:
    source, shape = clip.surveyed.clip, settings.video
    video = source.videos[0]
    digest = hashlib.sha256(sha256_of_file(video.path).encode())
    digest.update(repr((video.span_s, video.column, video.episode_index)).encode())  # a file may hold several clips
    values: dict[str, Any] = {
        "first_frame_sha256": None, "num_conditioning_frames": 0, "instruction": source.instruction,
        "prompt": source.instruction, "negative_prompt": "", "seed": 0, "height": shape.height, "width": shape.width,
        "num_frames": len(clip.surveyed.indices), "num_chunks": 1, "chunk_overlap": 0, "fps": shape.fps,
        "num_inference_steps": 0, "guidance_scale": 0.0, "level": IMPORTED, "step_skipping": "{}",
        "model": settings.import_clips.generator or UNKNOWN, "model_sha256": digest.hexdigest(), "adapter": None,
        "adapter_sha256": None, "dtype": "", "codec": shape.codec, "crf": 0 if is_copied else shape.crf,
        "gop": 0 if is_copied else shape.gop, "source": f"{Path(clip.root).resolve().name}/{source.origin}",
    }  # fmt: skip
    return Job(clip_id=job_id(values), **values)


def _write_clip(path: Path, surveyed: SurveyedClip, settings: Settings, reader: FrameReader, is_copied: bool) -> int:
    video, info, shape = surveyed.clip.videos[0], surveyed.infos[0], settings.video
    if is_copied:
        copy_video(video.path, path)
        return info.num_frames
    pictures = reader.frames(info, surveyed.frames[0][surveyed.indices])
    fitted = (fit_frame(frame_HWC if video.view is None else video.view.cut(frame_HWC), shape.height, shape.width,
                        settings.prepare.fit) for frame_HWC in pictures)  # fmt: skip
    num_frames = write_video(path, fitted, shape.fps, shape.codec, shape.crf, shape.gop, info.display.color)
    if num_frames != len(surveyed.indices):
        path.unlink()
        raise UserError(f"{video.path} is damaged", actual=f"{num_frames} of {len(surveyed.indices)} frames decoded")
    return num_frames


def _record(run: RunFolder, job: Job, clip: _Found, is_copied: bool, info: VideoInfo) -> JournalRecord:
    file = run.clip_file(job.clip_id)
    metrics = {
        "num_frames": job.num_frames, "num_bytes": file.stat().st_size, "imported_from": job.source,
        "generator": job.model, "file_sha256": sha256_of_file(clip.surveyed.clip.videos[0].path),
        "how": "copied" if is_copied else "; ".join(clip.surveyed.changes) or f"encoded again from {info.codec}",
    }  # fmt: skip
    return JournalRecord(job.clip_id, "generate", "ok", file=str(file.relative_to(run.root)), metrics=metrics)


def _label(
    run: RunFolder, job: Job, clip: _Found, settings: Settings, before: JournalRecord | None
) -> JournalRecord | None:
    """Write a clip's label; None if it has none, or has it already, or the file that is there is somebody else's."""
    path, surveyed, label = run.label_file(job.clip_id), clip.surveyed, clip.label
    load = surveyed.clip.load_trajectory
    if is_foreign(path, before) or (label is None and load is None):
        return None
    trajectory: Trajectory | None = None
    if load is not None:
        rows = load().first(surveyed.num_source_frames)
        if rows.action_TA is None and label is None:
            return None
        trajectory = rows.at(surveyed.indices, settings.prepare.action_kind)
    source = label or ForeignLabel(surveyed.clip.videos[0].path, lambda: Trajectory(0, None, None))
    record = take(run, job.clip_id, job.num_frames, source, settings.import_clips.labeled_by, trajectory)
    is_same = before is not None and before.status == record.status and before.metrics == record.metrics
    return None if is_same else record


def _findings(source: Source, labels: ForeignLabels | None) -> list[str]:
    """Return what the source says, without that label files beside the clips are neither videos nor texts."""
    beside = labels is not None and labels.root.resolve() == Path(source.features.source["path"]).resolve()
    return [text for text in source.findings if not (beside and "neither videos nor texts" in text)]


def _refused(found: Sequence[_Found]) -> list[str]:
    return [f"refused {clip.surveyed.clip.origin}: {clip.surveyed.refused}" for clip in found if clip.surveyed.refused]


def _next(run: RunFolder, counts: Counter[str]) -> list[str]:
    if not counts["num_imported"] and not counts["num_labelled"]:
        return ["nothing new: these clips and labels were imported before"]
    command = "label" if counts["num_labelled"] < counts["num_imported"] + counts["num_known"] else "curate"
    return [f"next:  dreamgen {command} --out {quoted(run.root)}"]
