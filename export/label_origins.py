"""What made each label, and how good it is: for a dataset's provenance, its card, and the gate of weak labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamgen.config.settings import ExportSettings
from dreamgen.errors import WeakLabels, quoted
from dreamgen.run.files import read_json, sha256_of_file
from dreamgen.run.idm_error import IdmError
from dreamgen.run.label_files import LABEL_HASH, LABELED_BY, UNKNOWN
from dreamgen.run.records import AcceptedClip
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    from export.clips import Clip

GENERATED = "dreamed"  # the kind of a generated clip, as provenance has it on disk
MAX_MAKERS = 5


@dataclass(frozen=True)
class LabelOrigins:
    """What made the labels of a run's clips, for their provenance.

    Args:
        held_out: JSON: every entry of idm/config.json whose name begins with `held_out`; None without a model.
        idm_sha256: Hash of the model in idm/; None where only its configuration is there.
    """

    held_out: str | None = None
    idm_sha256: str | None = None

    @classmethod
    def of(cls, run: RunFolder) -> LabelOrigins:
        """Read those of a run."""
        config, weights, held_out = run.idm / "config.json", run.idm / "model.safetensors", None
        if config.exists():
            held_out = json.dumps({k: v for k, v in read_json(config).items() if k.startswith("held_out")})
        return cls(held_out, sha256_of_file(weights) if weights.is_file() else None)

    def columns(self, clip: AcceptedClip) -> dict[str, Any]:
        """Return hash and maker of a clip's label, and the model's error where it is this run's model that made it."""
        made, by_model = made_by(clip.scores, clip.label), clip.scores.get("idm_sha256")
        is_by_this = LABELED_BY not in clip.scores and made[LABEL_HASH] == clip.scores.get(LABEL_HASH, made[LABEL_HASH])
        is_by_this &= self.idm_sha256 is None or by_model in (None, self.idm_sha256)
        return made | {"idm_held_out": self.held_out if is_by_this else None}


def made_by(scores: Mapping[str, Any], label: Path) -> dict[str, str | None]:
    """Return a label's provenance: the hash of its file, and what made it.

    Args:
        scores: Metrics of the clip's label record.
        label: The file.
    """
    sha256 = sha256_of_file(label) if label.is_file() else None
    known = scores.get(LABEL_HASH)
    if known is not None and known != sha256:
        return {LABEL_HASH: sha256, LABELED_BY: f"{UNKNOWN}: the file was changed after it was labeled"}
    idm = scores.get("idm_sha256")
    name = scores.get(LABELED_BY) or (f"inverse-dynamics model {idm[:12]}" if idm else UNKNOWN)
    return {LABEL_HASH: sha256, LABELED_BY: name}


def weak_labels(run: RunFolder, clips: Iterable[Clip]) -> str | None:
    """Return why labels are weak, if some clips have them from a model that is no better than a baseline; else None."""
    error = IdmError.of_run(run)
    if error is None or (warning := error.warning()) is None:
        return None
    num_weak = sum(clip.origin.get("idm_held_out") is not None for clip in clips)
    return (
        f"{num_weak} clips are labeled by the inverse-dynamics model, and {warning}. {error.text()}"
        if num_weak
        else None
    )


def refuse_weak_labels(run: RunFolder, export: ExportSettings, clips: Iterable[Clip]) -> list[str]:
    """Return a warning about weak labels that the settings allow.

    Raises:
        WeakLabels: if the settings do not allow them.
    """
    why = weak_labels(run, clips)
    if why is None:
        return []
    if export.allow_weak_labels:
        return [f"weak labels: {why}"]
    raise WeakLabels(
        "the labels are too weak for a dataset", actual=why,
        next_step=f"add demonstrations or --idm.num_steps, move {quoted(run.idm)} away and label again; or write them "
        f"all the same:  dreamgen export --out {quoted(run.root)} --export.allow_weak_labels=true",
    )  # fmt: skip


def label_rows(run: RunFolder, clips: Iterable[Clip]) -> dict[str, str]:
    """Return the rows of a dataset card about labels: what made them, and how far off the run's model is."""
    generated = [clip.origin for clip in clips if clip.kind == GENERATED]
    makers = Counter(str(origin.get(LABELED_BY) or UNKNOWN) for origin in generated)
    rows = {"labels": "; ".join(f"{count:,} by {maker}" for maker, count in makers.most_common(MAX_MAKERS))}
    error = IdmError.of_run(run)
    if error is not None and any(origin.get("idm_held_out") is not None for origin in generated):
        warning = error.warning()
        rows["label error"] = error.text() + (f". Weak labels: {warning}" if warning else "")
    return rows if generated else {}
