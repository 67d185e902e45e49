"""The adapter of a job: none, one, or a weighted blend of several."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import adapter_sha256, distilled_guidance, is_full
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter, or several with weights.

    Args:
        parts: Absolute folder and weight of each.
        sha256: Of the adapter's weights; of a blend, the hash over its parts' hashes and weights.
    """

    parts: tuple[tuple[Path, float], ...]
    sha256: str

    @property
    def is_single(self) -> bool:
        """Whether this is one adapter as it was trained, and not a blend."""
        return len(self.parts) == 1 and self.parts[0][1] == 1.0

    @property
    def holds_all_weights(self) -> bool:
        """Whether the adapter replaces the whole network."""
        return is_full(self.parts[0][0])

    @property
    def folders(self) -> list[Path]:
        """The folder of each part."""
        return [folder for folder, _ in self.parts]

    def distilled(self) -> dict[Path, float]:
        """Return the folders of the parts that guidance is folded into, each with its scale."""
        scales = {folder: distilled_guidance(folder) for folder in self.folders}
        return {folder: scale for folder, scale in scales.items() if scale is not None}

    def text(self, run: RunFolder) -> str:
        """Return the choice as jobs store it: folders inside the run are relative, so that the run may move."""
        root, names = run.root.resolve(), []
        for folder, weight in self.parts:
            name = folder.relative_to(root) if folder.is_relative_to(root) else folder
            names.append(str(name) if self.is_single else f"{name}:{weight:g}")
        return ",".join(names)


def adapter_of_job(job: Job, run: RunFolder) -> AdapterChoice | None:
    """Find the adapter that a job names. Compare its hash with the job's to see whether it changed since.

    Raises:
        UserError: if it is not there.
    """
    return None if job.adapter is None else _choice(_parts(job.adapter, run.root))


def choose_adapter(text: str | None, run: RunFolder) -> AdapterChoice | None:
    """Read the setting `plan.adapter`.

    Args:
        text: A folder, FOLDER:WEIGHT,FOLDER:WEIGHT, or "base"; None takes the run's own adapter if it has one.
        run: Whose adapter that is.

    Returns:
        The choice; None for the base model.

    Raises:
        UserError: if a folder holds no adapter, a weight is not a number, or the adapters cannot be blended.
    """
    if text == "base" or (text is None and not run.adapter.exists()):
        return None
    return _choice(_parts(str(run.adapter.resolve()) if text is None else text, Path()))


def _choice(parts: tuple[tuple[Path, float], ...]) -> AdapterChoice:
    hashes = [adapter_sha256(folder) for folder, _ in parts]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return AdapterChoice(parts, hashes[0])
    for folder, _ in parts:
        if is_full(folder):
            raise UserError(
                "a blend takes LoRA and DoRA adapters", actual=f"{folder} holds all weights of a transformer",
                allowed="adapters made with finetune.method lora or dora",
            )  # fmt: skip
    weighted = [f"{sha256}:{weight:g}" for sha256, (_, weight) in zip(hashes, parts, strict=True)]
    return AdapterChoice(parts, hashlib.sha256(",".join(weighted).encode()).hexdigest())


def _parts(text: str, root: Path) -> tuple[tuple[Path, float], ...]:
    parts = []
    for item in text.split(","):
        folder, found, weight = item.strip().rpartition(":")
        if not found or (root / item.strip()).exists():  # a folder's name may contain a colon
            folder, weight = item.strip(), "1"
        try:
            parts.append(((root / folder).resolve(), float(weight)))
        except ValueError:
            raise UserError(
                "plan.adapter: a weight is not a number", actual=item, allowed="FOLDER or FOLDER:WEIGHT,FOLDER:WEIGHT"
            ) from None
    return tuple(parts)
