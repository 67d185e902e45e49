"""The export stage: accepted clips -> one dataset a format, with its provenance beside it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from dreamgen.core.errors import NothingAccepted, UserError
from dreamgen.core.files import atomic_folder, read_json
from dreamgen.core.jobs import accepted_clips
from dreamgen.core.journal import read_journal
from dreamgen.core.progress import log
from dreamgen.core.records import RobotFeatures, StageResult
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from export.episodes import admit_clips
from export.lerobot_v21 import write_lerobot_v21
from export.lerobot_v30 import write_lerobot_v30
from export.provenance import provenance_file, run_provenance, write_provenance
from export.robomimic import write_robomimic
from export.spec import check_camera_name, dataset_spec

WRITERS = {"lerobot-v3.0": write_lerobot_v30, "lerobot-v2.1": write_lerobot_v21, "robomimic": write_robomimic}


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
    episodes, refused = admit_clips(clips, features, settings.export.include_state)
    if not episodes:
        raise UserError(f"none of {len(clips)} accepted clips can be exported\n" + "\n".join(f"- {r}" for r in refused))
    spec = dataset_spec(settings.export, features, episodes[0])
    of_run = run_provenance(run)
    for name in wanted:
        log(f"export: {name}, {len(episodes)} episodes")
        provenance = provenance_file(run, name)
        with atomic_folder(run.datasets / name) as folder:
            WRITERS[name](folder, episodes, spec)
            # Before the rename: a dataset that exists always has its provenance.
            write_provenance(provenance, episodes, of_run)
        outputs[name], outputs[f"{name} provenance"] = run.datasets / name, provenance
    figures = {
        "episodes": len(episodes),
        "frames": sum(episode.num_frames for episode in episodes),
        "tasks": len({episode.instruction for episode in episodes}),
        "left_out": len(refused),
    }
    return StageResult("export", outputs, figures, notes + stale + refused, partial=bool(refused or stale))


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
