"""The export stage: accepted clips -> one dataset a format, with its provenance beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dreamgen.core.errors import NothingAccepted, UserError
from dreamgen.core.files import atomic_folder, read_json
from dreamgen.core.jobs import accepted_clips
from dreamgen.core.journal import read_journal
from dreamgen.core.progress import log
from dreamgen.core.records import AcceptedClip, RobotFeatures, StageResult
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from export.admission import admit_clips
from export.admitted import Episodes
from export.clips import dreamed_clips
from export.lerobot_v21 import write_lerobot_v21
from export.lerobot_v30 import write_lerobot_v30
from export.provenance import provenance_file, run_provenance, write_provenance
from export.robomimic import write_robomimic
from export.space import check_space, estimated_bytes
from export.spec import DatasetSpec, check_camera_name, dataset_spec
from export.unfinished import Unfinished, discard, fingerprint_of, unfinished_export
from export.workers import Workers

# These are taken up where they were stopped; the others are written whole, in one go.
RESUMABLE = {"lerobot-v3.0": write_lerobot_v30, "lerobot-v2.1": write_lerobot_v21}
WHOLE = {"robomimic": write_robomimic}
CHANGES_NO_BYTE = ("formats", "num_workers", "keep_free_gib")


def export_datasets(settings: Settings, resume: bool = False) -> StageResult:
    """Write the accepted clips of a run as datasets.

    Args:
        settings: `export` says which formats; `out` is the run folder.
        resume: Skip formats that exist, rather than refuse.

    Returns:
        The datasets and provenance files, counts, and a note for each clip that was left out.

    Raises:
        UserError: if a dataset exists, no clip was accepted, or none of them can be written.
    """
    run, formats = RunFolder.of(settings), list(dict.fromkeys(settings.export.formats))
    check_camera_name(settings.export.camera)
    existing = [name for name in formats if (run.datasets / name).exists()]
    if existing and not resume:
        raise _already_there(run, existing)
    clips = accepted_clips(run)
    if not clips:
        raise nothing_accepted(run, settings)
    features = RobotFeatures.from_dict(read_json(run.need(run.train / "features.json", "prepare")))
    wanted = [name for name in formats if name not in existing]
    notes = [f"{run.datasets / name} exists and is left as it is" for name in existing]
    stale = [note for name in existing if (note := _why_stale(run, name, {clip.job.clip_id for clip in clips}))]
    outputs: dict[str, Path] = {name: run.datasets / name for name in existing}
    if not wanted:
        return StageResult("export", outputs, {"episodes": 0, "left_out": 0}, notes + stale, partial=bool(stale))
    fingerprint, num_clips, num_bytes = fingerprint_of(_decides_bytes(settings, features), dreamed_clips(clips))
    check_space(run.datasets, _needed(wanted, clips, num_bytes), settings.export.keep_free_gib)
    with (
        unfinished_export(run.datasets, fingerprint) as unfinished,
        Workers(settings.export.num_workers) as workers,
    ):
        episodes, refused = admit_clips(
            dreamed_clips(clips), features, settings.export.include_state, unfinished.admitted, workers, num_clips,
            "<DREAM>" if settings.export.dream_prefix else "",
        )  # fmt: skip
        if not episodes:
            discard(run.datasets)
            raise UserError(
                f"none of {len(clips)} accepted clips can be exported\n" + "\n".join(f"- {r}" for r in refused)
            )
        spec = dataset_spec(settings.export, features, episodes[0])
        of_run = run_provenance(run, settings.export.license)
        for name in wanted:
            log(f"export: {name}, {len(episodes)} episodes")
            # Before the dataset: one that exists always has its provenance.
            outputs[f"{name} provenance"] = provenance_file(run, name)
            write_provenance(outputs[f"{name} provenance"], episodes, of_run)
            _write(name, run.datasets / name, unfinished, episodes, spec, workers)
            outputs[name] = run.datasets / name
    figures = {
        "episodes": len(episodes),
        "frames": episodes.num_frames,
        "tasks": len(episodes.tasks),
        "left_out": len(refused),
    }
    return StageResult("export", outputs, figures, notes + stale + refused, partial=bool(refused or stale))


def _write(
    name: str, path: Path, unfinished: Unfinished, episodes: Episodes, spec: DatasetSpec, workers: Workers
) -> None:
    if name in RESUMABLE:
        RESUMABLE[name](unfinished.dataset(name), unfinished.marks(name), episodes, spec, workers)
        unfinished.finish(name, path)
    else:
        with atomic_folder(path) as folder:
            WHOLE[name](folder, episodes, spec)


def _decides_bytes(settings: Settings, features: RobotFeatures) -> dict[str, Any]:
    export = {name: value for name, value in asdict(settings.export).items() if name not in CHANGES_NO_BYTE}
    return {"export": export, "features": asdict(features)}


def _needed(formats: list[str], clips: Sequence[AcceptedClip], num_bytes: int) -> dict[str, int]:
    num_frames = sum(clip.num_frames for clip in clips)
    frame_bytes = max(3 * clip.job.height * clip.job.width for clip in clips)
    return {name: estimated_bytes(name, num_bytes, num_frames, frame_bytes) for name in formats}


def _why_stale(run: RunFolder, name: str, accepted: set[str]) -> str | None:
    """Say how a dataset that exists differs from the clips that are accepted now; None if it holds just these."""
    file = provenance_file(run, name)
    held = set(pq.read_table(file, columns=["clip_id"])["clip_id"].to_pylist()) if file.is_file() else set()
    if held == accepted:
        return None
    return (
        f"{run.datasets / name} is out of date: it holds {len(held & accepted)} of {len(accepted)} accepted clips"
        f" and {len(held - accepted)} others; move it away and run  dreamgen export --out {run.root} --resume"
    )


def _already_there(run: RunFolder, existing: list[str]) -> UserError:
    problems = ", ".join(str(run.datasets / name) for name in existing)
    return UserError(
        "a dataset already exists, and nothing is overwritten",
        actual=problems,
        next_step=f"dreamgen export --out {run.root} --resume (writes only what is missing), choose another --out, "
        "or remove the folder yourself",
    )


def nothing_accepted(run: RunFolder, settings: Settings) -> NothingAccepted:
    """Explain why a run has no accepted clip: how many clips stand where, and which thresholds turned them away."""
    generated, labelled, verdicts = (read_journal(run.journal, stage) for stage in ("generate", "label", "curate"))
    counts = Counter(f"{stage} {record.status}" for stage, records in
                     (("generate", generated), ("label", labelled), ("curate", verdicts))
                     for record in records.values())  # fmt: skip
    rejected = [record for record in verdicts.values() if record.status == "rejected"]
    # Reasons differ in their figures only, so they are counted without them.
    reasons = Counter(re.sub(r"-?\d+(\.\d+)?", "#", record.reason or "no reason") for record in rejected)
    lines = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    advice = []
    for figure, threshold, nearest in (
        ("motion", "min_motion", max),
        ("first_frame_psnr_db", "min_first_frame_psnr_db", max),
        ("cut_score", "max_cut_score", min),
    ):
        limit = getattr(settings.curate, threshold)
        values = [float(record.figures[figure]) for record in rejected if record.figures.get(figure) is not None]
        outside = [v for v in values if (v < limit if nearest is max else v > limit)]
        if outside:
            advice.append(
                f"curate.{threshold}={limit:g} turned away {len(outside)}, the nearest with {nearest(outside):.3g}"
            )
    return NothingAccepted(
        "no clip was accepted, so there is nothing to export",
        actual="; ".join([", ".join(f"{n} {what}" for what, n in sorted(counts.items())), *lines]),
        next_step=("look at " + "; ".join(advice)) if advice else f"dreamgen report --out {run.root}",
    )
