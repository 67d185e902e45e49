"""What made each label: a dataset's provenance tells the hash of the label's file, its maker, and the maker's error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamgen.run.files import read_json, sha256_of_file
from dreamgen.run.label_files import LABEL_HASH, LABELED_BY, UNKNOWN
from dreamgen.run.records import AcceptedClip
from dreamgen.run.run_folder import RunFolder


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
