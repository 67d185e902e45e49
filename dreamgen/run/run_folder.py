"""The run folder: the paths of every stage's files, and the settings that they were made with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml

from dreamgen.config.loading import SHARED, changed_settings, read_yaml
from dreamgen.config.paths import all_settings
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError, quoted
from dreamgen.run.files import read_json, write_text
from dreamgen.run.records import RobotFeatures
from dreamgen.run.store import Store, is_url

ALWAYS_RECORDED = ("out", "demos", *SHARED)


@dataclasses.dataclass(frozen=True)
class _Below:
    """A path of `RunFolder`, as an attribute relative to its root."""

    name: str

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.root / self.name


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of one run; stages exchange data only through these files.

    Args:
        root: The local folder. For a run in an object store, a cache of the files that were needed so far.
        store: The object store; None for a local run.
    """

    root: Path
    store: Store | None = None

    @classmethod
    def of(cls, settings: Settings, may_be_remote: bool = False) -> RunFolder:
        """Return the run folder of the settings.

        Args:
            settings: `out` is used.
            may_be_remote: Whether the caller reads and writes through `fetch` and `publish`.

        Raises:
            UserError: if `out` is not set, is not writable, or is in an object store and must be local.
        """
        if not settings.out:
            raise UserError("no run folder given", next_step="add --out runs/NAME")
        if is_url(settings.out):
            if not may_be_remote:
                raise _must_be_local(settings.out)
            return cls(_copy_of(settings.out), Store(settings.out))
        root = Path(settings.out)
        nearest = next(path for path in (root, *root.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                f"{root} cannot be a run folder",
                actual=f"{nearest} is not a folder that can be written to",
                next_step="choose another --out",
            )
        return cls(root)

    settings_file = _Below("run.yaml")
    model = _Below("model")
    train = _Below("train")
    cache = _Below("cache")
    adapter = _Below("adapter")
    finetune_logs = _Below("finetune")
    vae = _Below("vae")
    finetune_vae_logs = _Below("finetune_vae")
    idm = _Below("idm")
    finetune_idm_logs = _Below("finetune_idm")
    first_frames = _Below("first_frames")
    texts = _Below("texts")
    jobs = _Below("jobs.parquet")
    clips = _Below("clips")
    labels = _Below("labels")
    scores = _Below("scores")
    datasets = _Below("datasets")
    report = _Below("report.html")
    imported = _Below("imported")

    @property
    def journal(self) -> Path | Store:
        """Return the journal's folder; for a run in an object store, the remote one, which all drivers share."""
        return (self.store or self.root) / "journal"

    @property
    def clip_store(self) -> Store:
        """Return the folder of the clips, local or in the object store."""
        return (self.store or Store(str(self.root))) / "clips"

    def clip_file(self, clip_id: str) -> Path:
        """Return the path of a clip's mp4; subfolders by the first two hex digits keep folders small."""
        return self.clips / clip_id[:2] / f"{clip_id}.mp4"

    def label_file(self, clip_id: str) -> Path:
        """Return the path of a clip's actions and states (parquet, one row per frame)."""
        return self.labels / clip_id[:2] / f"{clip_id}.parquet"

    def first_frame_file(self, sha256: str) -> Path:
        """Return the path of a first frame at the clip's size (PNG, RGB), named by the hash of its pixels."""
        return self.first_frames / sha256[:2] / f"{sha256[:32]}.png"

    @property
    def features_file(self) -> Path:
        """Return the description of the robot: that of the training set, else that of imported clips."""
        own, imported = self.train / "features.json", self.imported / "features.json"
        return imported if imported.is_file() and not own.is_file() else own

    def robot_features(self) -> RobotFeatures:
        """Return the robot of the demonstrations, or of imported clips; without names where neither describes it."""
        return (
            RobotFeatures.from_dict(read_json(self.features_file)) if self.features_file.is_file() else RobotFeatures()
        )

    def need(self, path: Path, made_by: str) -> Path:
        """Return `path`, or raise an error that names the command that makes it.

        Raises:
            UserError: if it does not exist.
        """
        if not self.fetch(path, anew=True).exists():
            raise UserError(
                f"{self.shown(path)} does not exist yet",
                next_step=f"dreamgen {made_by} --out {quoted(self)}   (it writes this file)",
            )
        return path

    def __str__(self) -> str:
        return str(self.store or self.root)

    def shown(self, path: Path) -> Path | Store:
        """Return a path of this run as users know it: for a run in an object store, its URL."""
        return self.store / self._name(path) if self.store else path

    def absolute(self) -> RunFolder:
        """Return this run with an absolute path, which does not depend on the working directory."""
        return dataclasses.replace(self, root=self.root.resolve())

    def fetch(self, path: Path, anew: bool = False) -> Path:
        """Download a file of the run if the run is in an object store.

        Args:
            path: Its local path, below `root`.
            anew: Replace an existing local copy; for files that change.

        Returns:
            `path`; it exists if the file does.
        """
        if self.store is not None and (anew or not path.exists()):
            try:
                self.store.download(self._name(path), path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
        return path

    def fetch_folder(self, path: Path) -> Path:
        """Download the files of a folder, without its subfolders, if the run is in an object store."""
        if self.store is not None:
            for name, size in self.store.sizes(self._name(path)).items():
                if not (path / name).is_file() or (path / name).stat().st_size != size:
                    self.store.download(f"{self._name(path)}/{name}", path / name)
        return path

    def publish(self, path: Path, keep: bool = True) -> None:
        """Upload a local file if the run is in an object store.

        Args:
            path: Below `root`.
            keep: Keep the local copy.
        """
        if self.store is not None:
            self.store.upload(path, self._name(path))
            if not keep:
                path.unlink()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def check_unchanged(self, settings: Settings, sections: Sequence[str], but: Sequence[str] = ()) -> None:
        """Refuse to continue a run with changed settings.

        Args:
            settings: Settings of the command.
            sections: The stages whose output is being continued.
            but: Settings of those stages that may change all the same.

        Raises:
            UserError: listing each setting that differs from run.yaml.
        """
        if not self.fetch(self.settings_file, anew=True).exists():
            return
        recorded = read_yaml(self.settings_file)
        changes = changed_settings(recorded, as_plain(settings), [s for s in sections if s in recorded])
        changes = [change for change in changes if change.partition(":")[0] not in but]
        if changes:
            raise UserError(
                f"{self} was made with other settings",
                actual="; ".join(changes),
                allowed="the same settings",
                next_step=self._how_to_change({change.partition(".")[0] for change in changes}),
            )

    def _how_to_change(self, sections: set[str]) -> str:
        """Return how to make a run's outputs again with other settings."""
        outputs = {
            "prepare": (self.train, "prepare"),
            "finetune": (self.adapter, "finetune"),
            "idm": (self.idm, "finetune_idm"),
        }
        if sections <= outputs.keys():
            known = [outputs[section] for section in outputs if section in sections]
            again = "; ".join(f"move {quoted(path)} away, then  dreamgen {command} --out {quoted(self)}"
                              for path, command in known)  # fmt: skip
            return (
                f"to make {' and '.join(f'{path.name}/' for path, _ in known)} again with them: {again}  (dreamgen "
                "status lists what is out of date after that); or choose another --out, or leave the settings as they "
                "were"
            )
        return "choose another --out, or leave the changed settings as they were"

    def record(self, settings: Settings, sections: Sequence[str]) -> None:
        """Write the settings of a finished stage, and the settings shared by all stages, to run.yaml."""
        self.fetch(self.settings_file, anew=True)
        recorded: dict[str, Any] = read_yaml(self.settings_file) if self.settings_file.exists() else {}
        plain = as_plain(settings)
        for path, setting in all_settings().items():
            if setting.option.scope == "call":  # a recorded limit would also stop every later call
                *sections_above, name = path.split(".")
                functools.reduce(dict.__getitem__, sections_above, plain)[name] = setting.default
        if "demos" in recorded and "prepare" not in sections:
            plain["demos"] = recorded["demos"]  # other stages do not read it
        if "model" in recorded and "generate" not in sections:
            plain["model"]["safety_checker"] = recorded["model"]["safety_checker"]  # of the clips
        for name in (*ALWAYS_RECORDED, *sections):
            recorded[name] = plain[name]
        write_text(self.settings_file, yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True))
        self.publish(self.settings_file)


def as_plain(settings: Settings) -> dict[str, Any]:
    """Return settings as nested dicts of plain values, as in YAML."""
    return draccus.encode(settings)


def _copy_of(out: str) -> Path:
    """Return the local cache folder of a run in an object store."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = out.partition("?")[0].rstrip("/").rpartition("/")[2]
    return cache / "dreamgen" / f"{name}-{hashlib.sha256(out.encode()).hexdigest()[:12]}"


def _must_be_local(out: str) -> UserError:
    name = out.partition("?")[0].rstrip("/").rpartition("/")[2]
    return UserError(
        "this stage needs the run folder on this machine", actual=out,
        allowed="plan, generate and status work in an object store; the other stages on a local folder",
        next_step=f"copy the run: python -c \"import pyarrow.fs as f; f.copy_files('{out}', 'runs/{name}')\", "
        f"then --out runs/{name}",
    )  # fmt: skip
