"""What each output of a run was made from, so that one that is out of date is noticed and its reason told.

`made_from/NAME.json` holds the settings that determined an output and hashes of its inputs. Labels carry the hashes of
their file and of their inverse-dynamics model in the journal, and datasets list their clips in their provenance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from dreamgen.config.paths import get_path, paths_that_invalidate
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError, quoted
from dreamgen.run.files import read_json, sha256_of_file, visible_files, write_json
from dreamgen.run.jobs import iter_accepted_clips
from dreamgen.run.journal import latest_records, read_journal
from dreamgen.run.label_files import LABEL_HASH
from dreamgen.run.records import METRICS_KEY
from dreamgen.run.run_folder import RunFolder

TRAINED = {"finetune": "adapter", "finetune_idm": "idm"}  # stage -> its output in the run folder
PER_CLIP = {"plan": "jobs", "label": "labels", "curate": "scores"}
IDM_COLUMN = "score_idm_sha256"  # of a dataset's provenance

type LabelHashes = tuple[str | None, str | None]


@dataclass(frozen=True)
class Stale:
    """An output that is out of date.

    Args:
        output: Its path in the run folder.
        reasons: What has changed since it was made, a sentence each.
        command: What makes it again.
    """

    output: str
    reasons: tuple[str, ...]
    command: str

    def __str__(self) -> str:
        return f"{self.output} is out of date: {'; '.join(self.reasons)}. {self.command}"


def provenance_file(run: RunFolder, dataset: str) -> Path:
    """Return the path of a dataset's provenance."""
    return run.datasets / f"{dataset}.provenance.parquet"


def record_inputs(run: RunFolder, output: str, stage: str, settings: Settings, inputs: Mapping[str, str]) -> None:
    """Record what an output was made from.

    Args:
        run: The run.
        output: Its name, such as `adapter` or that of a dataset.
        stage: Whose settings determine it.
        settings: Those that it was made with.
        inputs: Hashes by what they are of.
    """
    values = {path: get_path(settings, path) for path in paths_that_invalidate(stage)}
    write_json(_file(run, output), {"settings": values, "inputs": dict(inputs)})


def record_made(run: RunFolder, stage: str, settings: Settings) -> None:
    """Record what the output of a stage was made from: the settings, and the training set or the labels."""
    if run.store is not None:
        return
    if stage in TRAINED and run.train.is_dir() and (run.root / TRAINED[stage]).is_dir():
        section = "finetune" if stage == "finetune" else "idm"
        record_inputs(run, TRAINED[stage], section, settings, {"the training set": training_set_sha256(run)})
    if stage in PER_CLIP:
        inputs = {"the labels": labels_sha256(run)} if stage == "curate" else {}
        record_inputs(run, PER_CLIP[stage], stage, settings, inputs)


def changed_since(run: RunFolder, output: str, stage: str, settings: Settings) -> list[str]:
    """Return the settings of a stage that differ from those that its output was made with, a sentence each."""
    recorded, determining = _read(run, output).get("settings", {}), paths_that_invalidate(stage)
    return [f"{path} was {value!r} and is {now!r}" for path, value in recorded.items()
            if path in determining and (now := _plain(get_path(settings, path))) != value]  # fmt: skip


def labels_sha256(run: RunFolder) -> str:
    """Hash which label each clip has."""
    labels = {clip: record.metrics.get(LABEL_HASH) for clip, record in read_journal(run.journal, "label").items()
              if record.status == "ok"}  # fmt: skip
    return hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()


def training_set_sha256(run: RunFolder) -> str:
    """Hash a training set: its tables, and names and sizes of its videos and trajectories."""
    digest = hashlib.sha256()
    for name in ("metadata.csv", "features.json"):
        path = run.train / name
        digest.update(sha256_of_file(path).encode() if path.is_file() else b"none")
    for name in ("videos", "trajectories"):
        for path in visible_files(run.train / name, "*"):
            digest.update(f"{path.name} {path.stat().st_size};".encode())
    return digest.hexdigest()


def stale_outputs(run: RunFolder, settings: Settings) -> list[Stale]:
    """Find the outputs of a local run that are out of date.

    Args:
        run: The run.
        settings: Its present settings.
    """
    found = []
    for stage, output in TRAINED.items():
        recorded = _read(run, output).get("inputs", {}).get("the training set")
        if recorded and (run.root / output).exists() and run.train.exists() and recorded != training_set_sha256(run):
            found.append(Stale(output, ("the training set has changed since it was trained",),
                               f"Move it away, then:  dreamgen {stage} --out {quoted(run.root)}"))  # fmt: skip
    found += _stale_labels(run, settings) + _stale_scores(run, settings)
    names = [path.name for path in sorted(run.datasets.iterdir()) if path.is_dir()] if run.datasets.is_dir() else []
    names = [name for name in names if provenance_file(run, name).is_file()]
    clips = _accepted(run) if names else {}
    for name in names:
        reasons = dataset_changes(run, name, settings, clips)
        if reasons:
            command = f"dreamgen export --out {quoted(run.root)} --overwrite"
            found.append(Stale(f"datasets/{name}", tuple(reasons), command))
    return found


def dataset_changes(run: RunFolder, name: str, settings: Settings, clips: Mapping[str, LabelHashes]) -> list[str]:
    """Return how a dataset differs from what export would write now.

    Args:
        run: The run.
        name: The dataset's folder.
        settings: Present settings.
        clips: Each accepted clip and the hashes of its label, from `label_hashes`.
    """
    reasons = changed_since(run, name, "export", settings)
    if settings.export.append_to or settings.export.mix_with:
        return reasons  # which clips it should hold is unknown
    file = provenance_file(run, name)
    if not file.is_file():
        return [*reasons, f"it has no {file.name}"]
    columns = [column for column in ("clip_id", LABEL_HASH, IDM_COLUMN) if column in pq.read_schema(file).names]
    rows = pq.read_table(file, columns=columns).to_pylist()
    held = {row["clip_id"]: (row.get(LABEL_HASH), row.get(IDM_COLUMN)) for row in rows}
    kept = held.keys() & clips.keys()
    if len(kept) < len(clips) or len(kept) < len(held):
        reasons.append(f"it holds {len(kept)} of {len(clips)} accepted clips and {len(held) - len(kept)} others")
    if num_relabeled := sum(_differ(clips[clip], held[clip]) for clip in kept):
        reasons.append(f"{num_relabeled} of its clips have been labeled again")
    return reasons


def label_hashes(scores: Mapping[str, Any]) -> LabelHashes:
    """Return the hash of a clip's label file and that of the model that made it; None where one is not known."""
    return scores.get(LABEL_HASH), scores.get("idm_sha256")


def _differ(now: LabelHashes, held: LabelHashes) -> bool:
    """Compare the files; datasets of older versions know the models only."""
    known = next(((new, old) for new, old in zip(now, held, strict=True) if new and old), None)
    return known is not None and known[0] != known[1]


def _accepted(run: RunFolder) -> dict[str, LabelHashes]:
    try:
        return {clip.job.clip_id: label_hashes(clip.scores) for clip in iter_accepted_clips(run)}
    except UserError:
        return {}


def _stale_scores(run: RunFolder, settings: Settings) -> list[Stale]:
    if not run.scores.is_dir():
        return []
    reasons = changed_since(run, "scores", "curate", settings)
    recorded = _read(run, "scores").get("inputs", {}).get("the labels")
    if recorded and recorded != labels_sha256(run):
        reasons.append("labels have changed since")
    return [Stale("scores", tuple(reasons), f"dreamgen curate --out {quoted(run.root)}")] if reasons else []


def _stale_labels(run: RunFolder, settings: Settings) -> list[Stale]:
    command = f"dreamgen label --out {quoted(run.root)}"
    if run.labels.is_dir() and (reasons := changed_since(run, "labels", "label", settings)):
        return [Stale("labels", tuple(reasons), command)]
    model = run.idm / "model.safetensors"
    if not model.is_file():
        return []
    records = latest_records(run.journal, "label", ("status", METRICS_KEY))
    metrics = records.filter(pc.equal(records["status"], "ok"))[METRICS_KEY]  # JSON as json.dumps writes it
    is_known = pc.match_substring(metrics, '"idm_sha256": "')
    is_by_this = pc.match_substring(metrics, f'"idm_sha256": "{sha256_of_file(model)}"')
    num_others = pc.sum(pc.and_not(is_known, is_by_this)).as_py() or 0
    if not num_others:
        return []
    reason = f"{num_others} labels were made by another inverse-dynamics model than idm/"
    return [Stale("labels", (reason,), command)]


def _file(run: RunFolder, output: str) -> Path:
    return run.root / "made_from" / f"{output}.json"


def _read(run: RunFolder, output: str) -> dict[str, Any]:
    path = _file(run, output)
    return read_json(path) if path.is_file() else {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
