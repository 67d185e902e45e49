"""The run folder: where each stage's files lie, and the record of the settings that made them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml

from dreamgen.core.config import changed_settings, read_yaml
from dreamgen.core.errors import UserError
from dreamgen.core.files import write_text
from dreamgen.core.settings import Settings

SHARED = ("out", "demos", "seed", "prompt_prefix", "model", "video")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of one run; stages meet only here."""

    root: Path

    @classmethod
    def of(cls, settings: Settings) -> RunFolder:
        """Return the run folder that the settings name.

        Raises:
            UserError: if none is named, or it cannot be written to.
        """
        if not settings.out:
            raise UserError("no run folder given", next_step="add --out runs/NAME")
        root = Path(settings.out)
        nearest = next(path for path in (root, *root.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                f"{root} cannot be a run folder",
                actual=f"{nearest} is not a folder that can be written to",
                next_step="choose another --out",
            )
        return cls(root)

    settings_file = property(lambda self: self.root / "run.yaml")
    model = property(lambda self: self.root / "model")
    train = property(lambda self: self.root / "train")
    cache = property(lambda self: self.root / "cache")
    adapter = property(lambda self: self.root / "adapter")
    finetune_logs = property(lambda self: self.root / "finetune")
    idm = property(lambda self: self.root / "idm")
    first_frames = property(lambda self: self.root / "first_frames")
    texts = property(lambda self: self.root / "texts")
    jobs = property(lambda self: self.root / "jobs.parquet")
    clips = property(lambda self: self.root / "clips")
    journal = property(lambda self: self.root / "journal")
    labels = property(lambda self: self.root / "labels")
    scores = property(lambda self: self.root / "scores")
    datasets = property(lambda self: self.root / "datasets")
    report = property(lambda self: self.root / "report.html")

    def clip_file(self, clip_id: str) -> Path:
        """Return where a clip's mp4 lies; two hex digits of the id keep folders small."""
        return self.clips / clip_id[:2] / f"{clip_id}.mp4"

    def label_file(self, clip_id: str) -> Path:
        """Return where a clip's actions and states lie (parquet, one row a frame)."""
        return self.labels / clip_id[:2] / f"{clip_id}.parquet"

    def first_frame_file(self, sha256: str) -> Path:
        """Return where a first frame lies, already at the clip's size (PNG, RGB), by the hash of its pixels."""
        return self.first_frames / sha256[:2] / f"{sha256[:32]}.png"

    def need(self, path: Path, made_by: str) -> Path:
        """Return `path`, or say which command makes it.

        Raises:
            UserError: if it does not exist.
        """
        if not path.exists():
            raise UserError(
                f"{path} does not exist yet", next_step=f"dreamgen {made_by} --out {self.root}   (it makes this)"
            )
        return path

    def check_unchanged(self, settings: Settings, sections: Sequence[str], but: Sequence[str] = ()) -> None:
        """Refuse to go on in a run that was made with other settings.

        Args:
            settings: What the command was asked to do.
            sections: The stages whose output is being continued.
            but: Settings of those stages that may change all the same.

        Raises:
            UserError: listing each setting that differs from run.yaml.
        """
        if not self.settings_file.exists():
            return
        recorded = read_yaml(self.settings_file)
        changes = changed_settings(recorded, as_plain(settings), [s for s in sections if s in recorded])
        changes = [change for change in changes if change.partition(":")[0] not in but]
        if changes:
            raise UserError(
                f"{self.root} was made with other settings",
                actual="; ".join(changes),
                allowed="the same settings",
                next_step="choose another --out, or leave the changed settings as they were",
            )

    def record(self, settings: Settings, sections: Sequence[str]) -> None:
        """Write the settings of a stage that ran, and those that all stages share, into run.yaml."""
        recorded: dict[str, Any] = read_yaml(self.settings_file) if self.settings_file.exists() else {}
        plain = as_plain(settings)
        plain["generate"]["limit"] = None  # for one call; recorded, it would stop every later one too
        plain["finetune"]["resume_from"] = None  # likewise
        if "demos" in recorded and "prepare" not in sections:
            plain["demos"] = recorded["demos"]  # another stage did not read what it was given
        if "model" in recorded and "generate" not in sections:
            plain["model"]["safety_checker"] = recorded["model"]["safety_checker"]  # it watched over the clips, or not
        for name in (*SHARED, *sections):
            recorded[name] = plain[name]
        write_text(self.settings_file, yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True))


def as_plain(settings: Settings) -> dict[str, Any]:
    """Return settings as nested dicts of plain values, as they stand in YAML."""
    return draccus.encode(settings)
