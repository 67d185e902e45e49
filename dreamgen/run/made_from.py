"""What each output of a run was made from, so that one that is out of date is noticed and its reason told.

`made_from/NAME.json` holds the settings that determined an output and hashes of its inputs. Labels carry the hash of
their inverse-dynamics model in the journal, and datasets list their clips in their provenance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dreamgen.config.paths import get_path, paths_that_invalidate
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError, quoted
from dreamgen.run.files import read_json, sha256_of_file, write_json
from dreamgen.run.jobs import iter_accepted_clips
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder

TRAINED = {"finetune": "adapter", "inverse dynamics": "idm"}  # stage -> its output in the run folder
IDM_COLUMN = "score_idm_sha256"  # of a dataset's provenance


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


def record_trained(run: RunFolder, stage: str, settings: Settings) -> None:
    """Record the training set that an adapter or an inverse-dynamics model was trained on."""
    if stage in TRAINED and run.train.is_dir() and (run.root / TRAINED[stage]).is_dir():
        section = "finetune" if stage == "finetune" else "idm"
        record_inputs(run, TRAINED[stage], section, settings, {"the training set": training_set_sha256(run)})


def training_set_sha256(run: RunFolder) -> str:
    """Hash a training set: its tables, and names and sizes of its videos and trajectories."""
    digest = hashlib.sha256()
    for name in ("metadata.csv", "features.json"):
        path = run.train / name
        digest.update(sha256_of_file(path).encode() if path.is_file() else b"none")
    for name in ("videos", "trajectories"):
        for path in sorted((run.train / name).glob("*")):
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
            command = "finetune" if stage == "finetune" else "label"
            found.append(Stale(output, ("the training set has changed since it was trained",),
                               f"Move it away, then:  dreamgen {command} --out {quoted(run.root)}"))  # fmt: skip
    found += _stale_labels(run)
    names = [path.name for path in sorted(run.datasets.iterdir()) if path.is_dir()] if run.datasets.is_dir() else []
    names = [name for name in names if provenance_file(run, name).is_file()]
    clips = _accepted(run) if names else {}
    for name in names:
        reasons = dataset_changes(run, name, settings, clips)
        if reasons:
            command = f"dreamgen export --out {quoted(run.root)} --overwrite"
            found.append(Stale(f"datasets/{name}", tuple(reasons), command))
    return found


def dataset_changes(run: RunFolder, name: str, settings: Settings, clips: Mapping[str, str | None]) -> list[str]:
    """Return how a dataset differs from what export would write now.

    Args:
        run: The run.
        name: The dataset's folder.
        settings: Present settings.
        clips: Each accepted clip and the hash of the model that labeled it.
    """
    recorded, reasons = _read(run, name).get("settings", {}), []
    for path, value in recorded.items():
        if path in paths_that_invalidate("export") and (now := _plain(get_path(settings, path))) != value:
            reasons.append(f"{path} was {value!r} and is {now!r}")
    if settings.export.append_to or settings.export.mix_with:
        return reasons  # which clips it should hold is unknown
    file = provenance_file(run, name)
    if not file.is_file():
        return [*reasons, f"it has no {file.name}"]
    columns = [column for column in ("clip_id", IDM_COLUMN) if column in pq.read_schema(file).names]
    held = {row["clip_id"]: row.get(IDM_COLUMN) for row in pq.read_table(file, columns=columns).to_pylist()}
    kept = held.keys() & clips.keys()
    if len(kept) < len(clips) or len(kept) < len(held):
        reasons.append(f"it holds {len(kept)} of {len(clips)} accepted clips and {len(held) - len(kept)} others")
    if num_relabeled := sum(bool(clips[clip] and held[clip] and clips[clip] != held[clip]) for clip in kept):
        reasons.append(f"{num_relabeled} of its clips have been labeled again by another model")
    return reasons


def labels_of(clips: Iterable[Any]) -> dict[str, str | None]:
    """Return each accepted clip's id and the hash of the model that labeled it."""
    return {clip.job.clip_id: clip.scores.get("idm_sha256") for clip in clips}


def _accepted(run: RunFolder) -> dict[str, str | None]:
    try:
        return labels_of(iter_accepted_clips(run))
    except UserError:
        return {}


def _stale_labels(run: RunFolder) -> list[Stale]:
    model = run.idm / "model.safetensors"
    if not model.is_file():
        return []
    sha256, records = sha256_of_file(model), read_journal(run.journal, "label").values()
    others = [r for r in records if r.status == "ok" and r.metrics.get("idm_sha256") not in (None, sha256)]
    if not others:
        return []
    reason = f"{len(others)} labels were made by another inverse-dynamics model than idm/"
    return [Stale("labels", (reason,), f"dreamgen label --out {quoted(run.root)}")]


def _file(run: RunFolder, output: str) -> Path:
    return run.root / "made_from" / f"{output}.json"


def _read(run: RunFolder, output: str) -> dict[str, Any]:
    path = _file(run, output)
    return read_json(path) if path.is_file() else {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
