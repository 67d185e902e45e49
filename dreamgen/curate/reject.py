"""Rejections by hand: they hold whatever curate finds, until they are taken back."""

from __future__ import annotations

from pathlib import Path

from dreamgen.config.settings import RejectSettings, Settings
from dreamgen.errors import Problems, UserError, quoted
from dreamgen.run.jobs import REJECTIONS, job_columns
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import JournalRecord, StageResult
from dreamgen.run.run_folder import RunFolder

NUM_MATCHES_SHOWN = 3


def reject(settings: Settings) -> StageResult:
    """Record that clips are rejected by hand; export leaves them out from then on.

    Args:
        settings: `reject` names the clips; `out` is the run folder.

    Returns:
        Counts, and what to do with datasets that hold them.

    Raises:
        UserError: if no clip is named, or a name is no clip of the run or of several.
    """
    run, wanted = RunFolder.of(settings), settings.reject
    known = job_columns(run.need(run.jobs, "plan"), ["clip_id"])["clip_id"].to_pylist()
    chosen = _clips_named(_names(wanted), known)
    before = {clip for clip, record in read_journal(run.journal, REJECTIONS).items() if record.status == "rejected"}
    changed = [clip for clip in chosen if (clip in before) is wanted.undo]
    with Journal(run.journal, REJECTIONS) as journal:
        for clip in changed:
            reason = "rejected by hand" + (f": {wanted.reason}" if wanted.reason else "")
            status, text = ("ok", None) if wanted.undo else ("rejected", reason)
            journal.append(JournalRecord(clip_id=clip, stage=REJECTIONS, status=status, reason=text))
    after = before - set(changed) if wanted.undo else before | set(changed)
    metrics = {"num_changed": len(changed), "num_as_before": len(chosen) - len(changed), "num_rejected": len(after)}
    notes = []
    if run.datasets.is_dir() and changed:
        command = f"dreamgen export --out {quoted(run.root)} --overwrite --resume"
        notes.append(f"datasets that exist are as they were:  {command}  replaces those that are out of date")
    return StageResult("reject", {"journal": run.journal}, metrics, notes)


def _names(wanted: RejectSettings) -> list[str]:
    names = list(wanted.clips)
    if wanted.file is not None:
        try:
            lines = Path(wanted.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{wanted.file} cannot be read", actual=str(error), allowed="one clip a line") from None
        names += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise UserError("no clip is named", next_step="dreamgen reject CLIP CLIP ... --out RUN, or --file=rejected.txt")
    return names


def _clips_named(names: list[str], known: list[str]) -> list[str]:
    """Return the ids that names stand for, each once."""
    problems, chosen, exact = Problems(), [], set(known)
    for name in names:
        stem = Path(name).stem if name.endswith(".mp4") else name
        found = [stem] if stem in exact else [clip for clip in known if clip.startswith(stem)]
        if len(found) == 1:
            chosen += found
        elif found:
            shown = ", ".join(found[:NUM_MATCHES_SHOWN])
            problems.add(f"{name} is the beginning of {len(found)} clips", actual=shown, allowed="more of the id")
        else:
            problems.add(f"the run has no clip {name}", allowed="an id, its beginning, or the clip's mp4")
    problems.raise_if_any("clips that cannot be rejected")
    return list(dict.fromkeys(chosen))
