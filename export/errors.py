"""Errors and warnings of export about datasets that already exist, and about runs that have nothing to export."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dreamgen.config.settings import Settings
from dreamgen.errors import NothingAccepted, UserError, quoted
from dreamgen.extensions.export_format import ExportFormat
from dreamgen.extensions.judge import curation_metrics
from dreamgen.run.journal import read_journal
from dreamgen.run.made_from import dataset_changes, label_hashes
from dreamgen.run.run_folder import RunFolder
from export.clips import Clip


def out_of_date(run: RunFolder, name: str, settings: Settings, clips: Iterable[Clip]) -> str | None:
    """Describe how an existing dataset differs from what would be written now; None if it does not."""
    accepted = {clip.clip_id: label_hashes(clip.origin.get("scores", {})) for clip in clips}
    reasons = dataset_changes(run, name, settings, accepted)
    if not reasons:
        return None
    command = f"dreamgen export --out {quoted(run.root)} --overwrite"
    return f"{run.datasets / name} is out of date: {'; '.join(reasons)}; {command} replaces it"


def not_ours(paths: Iterable[Path]) -> UserError:
    """Return the error that refuses to replace datasets that this run did not write."""
    return UserError(
        "--overwrite replaces only datasets that this run wrote",
        actual=", ".join(f"{path} has no provenance beside it" for path in paths),
        next_step="move it away, or write beside it with --export.name=NAME",
    )


def dataset_exists(run: RunFolder, existing: list[str]) -> UserError:
    """Return the error that refuses to overwrite datasets."""
    return UserError(
        "a dataset already exists",
        actual=", ".join(str(run.datasets / name) for name in existing),
        next_step=f"dreamgen export --out {quoted(run.root)} --overwrite (replaces it), --resume (writes only what "
        "is missing), or --name=NAME (writes beside it)",
    )


def states_missing(export_format: ExportFormat) -> UserError:
    """Return the error about a format that cannot be written without states."""
    name = export_format.name
    return UserError(
        f"the {name} format needs observation.state",
        actual="labels without states",
        next_step="label with --idm.predict_state=true and export with --export.include_state=true, "
        f"or leave {name} out of --export.formats",
    )


def nothing_accepted(run: RunFolder, settings: Settings) -> NothingAccepted:
    """Return the error about a run without accepted clips: clips by status, and the thresholds that rejected them."""
    journals = {stage: read_journal(run.journal, stage) for stage in ("generate", "label", "curate")}
    counts = Counter(f"{stage} {record.status}" for stage, journal in journals.items() for record in journal.values())
    rejected = [record for record in journals["curate"].values() if record.status == "rejected"]
    # Reasons differ only in their numbers, so they are counted without them.
    reasons = Counter(re.sub(r"-?\d+(\.\d+)?", "#", record.reason or "no reason") for record in rejected)
    lines = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    advice = []
    for metric in curation_metrics():
        threshold, name = metric.threshold, metric.name
        limit, nearest = getattr(settings.curate, threshold.setting, threshold.default), threshold.nearest
        values = [float(record.metrics[name]) for record in rejected if record.metrics.get(name) is not None]
        outside = [value for value in values if threshold.is_violated(value, limit)]
        if outside:
            advice.append(
                f"curate.{threshold.setting}={limit:g} rejected {len(outside)}, the nearest with {nearest(outside):.3g}"
            )
    return NothingAccepted(
        "no clip was accepted, so there is nothing to export",
        actual="; ".join([", ".join(f"{n} {what}" for what, n in sorted(counts.items())), *lines]),
        next_step=("look at " + "; ".join(advice)) if advice else f"dreamgen report --out {quoted(run.root)}",
    )
