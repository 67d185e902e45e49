"""What export says of datasets that are there already, and of a run that has nothing to export."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pyarrow.parquet as pq

from dreamgen.config.settings import ExportSettings, Settings
from dreamgen.errors import NothingAccepted, UserError
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from export.clips import Clip
from export.provenance import provenance_file


def why_stale(run: RunFolder, name: str, export: ExportSettings, clips: Iterable[Clip]) -> str | None:
    """Say how a dataset that exists differs from the clips that are accepted now; None if it holds just these.

    Of one with another dataset's episodes it is not known which of the clips it should hold.
    """
    if export.append_to or export.mix_with:
        return None
    accepted = {clip.clip_id for clip in clips}
    file = provenance_file(run, name)
    held = set(pq.read_table(file, columns=["clip_id"])["clip_id"].to_pylist()) if file.is_file() else set()
    if held == accepted:
        return None
    return (
        f"{run.datasets / name} is out of date: it holds {len(held & accepted)} of {len(accepted)} accepted clips"
        f" and {len(held - accepted)} others; move it away and run  dreamgen export --out {run.root} --resume"
    )


def already_there(run: RunFolder, existing: list[str]) -> UserError:
    """Refuse to write over datasets."""
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
        values = [float(record.metrics[figure]) for record in rejected if record.metrics.get(figure) is not None]
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
