"""The export stage: accepted clips -> one dataset a format, with its provenance beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamgen.config.paths import paths_that_invalidate
from dreamgen.config.settings import Settings
from dreamgen.data.hub import check_can_push, push_folder
from dreamgen.errors import Problems, UserError
from dreamgen.progress import log
from dreamgen.run.files import atomic_folder, read_json
from dreamgen.run.jobs import iter_accepted_clips
from dreamgen.run.records import RobotFeatures, StageResult
from dreamgen.run.run_folder import RunFolder
from export.card import write_card
from export.clips import ClipList, dreamed_clips
from export.episode_store import Episodes
from export.errors import already_there, nothing_accepted, why_stale
from export.formats.aloha import need_states, write_aloha
from export.formats.lerobot_v21 import write_lerobot_v21
from export.formats.lerobot_v30 import write_lerobot_v30
from export.formats.robomimic import write_robomimic
from export.mixture import gather, is_resized
from export.other_datasets import MixedDataset, open_mixed_datasets
from export.provenance import provenance_file, run_provenance, write_provenance
from export.robots import robot_preset
from export.space import check_space, estimated_bytes
from export.spec import DatasetSpec, check_camera_name, dataset_spec
from export.staging import StagingArea, discard, fingerprint_of, staging_area, sweep
from export.validation import validate_clips
from export.workers import Workers

# These are taken up where they were stopped; the others are written whole, in one go.
RESUMABLE = {"lerobot-v3.0": write_lerobot_v30, "lerobot-v2.1": write_lerobot_v21, "aloha": write_aloha}
WHOLE = {"robomimic": write_robomimic}


def export_datasets(settings: Settings, resume: bool = False) -> StageResult:
    """Write the accepted clips of a run as datasets.

    Args:
        settings: `export` says which formats; `out` is the run folder.
        resume: Skip formats that exist, rather than refuse.

    Returns:
        The datasets and provenance files, counts, and a note for each clip that was left out.

    Raises:
        UserError: if a dataset exists, no clip was accepted, or none of them can be written.
    """
    run, formats = RunFolder.of(settings), list(dict.fromkeys(settings.export.formats))
    check_export(settings)
    existing = [name for name in formats if (run.datasets / name).exists()]
    if existing and not resume:
        raise already_there(run, existing)
    clips = ClipList(dreamed_clips(iter_accepted_clips(run)))
    if not clips:
        raise nothing_accepted(run, settings)
    features = RobotFeatures.from_dict(read_json(run.need(run.train / "features.json", "prepare")))
    wanted = [name for name in formats if name not in existing]
    notes = [f"{run.datasets / name} exists and is left as it is" for name in existing]
    stale = [note for name in existing if (note := why_stale(run, name, settings.export, clips))]
    outputs: dict[str, Path] = {name: run.datasets / name for name in existing}
    if not wanted:
        sweep(run.datasets)
        pushed, all_pushed = _push(settings.export.push_to_hub, outputs)
        partial, metrics = bool(stale) or not all_pushed, {"episodes": 0, "left_out": 0}
        return StageResult("export", outputs, metrics, notes + stale + pushed, partial=partial)
    mixed_datasets = open_mixed_datasets(settings.export, features)
    fingerprint, num_bytes = fingerprint_of(_decides_bytes(settings, features, mixed_datasets), clips)
    needed = _needed(settings, wanted, clips, num_bytes, mixed_datasets, bool(features.views))
    check_space(run.datasets, needed, settings.export.keep_free_gib)
    with (
        staging_area(run.datasets, fingerprint) as unfinished,
        Workers(settings.export.num_workers) as workers,
    ):
        chosen, refused, more = gather(settings, clips, mixed_datasets, unfinished.fitted, workers, features.views)
        prefix = "<DREAM>" if settings.export.dream_prefix else ""
        episodes, unfit = validate_clips(
            chosen,
            features,
            settings.export.include_state,
            unfinished.episode_store,
            workers,
            len(chosen),
            prefix,
            settings.export.lerobot_sample,
        )
        refused, notes = refused + unfit, notes + more
        if not episodes:
            discard(run.datasets)
            told = "\n".join(f"- {reason}" for reason in refused)
            raise UserError(f"none of {len(clips)} accepted clips can be exported\n{told}")
        spec = dataset_spec(settings.export, features, episodes[0])
        if "aloha" in wanted:
            need_states(spec)
        of_run = run_provenance(run, settings.export.license)
        for name in wanted:
            log(f"export: {name}, {len(episodes)} episodes")
            # Before the dataset: one that exists always has its provenance.
            outputs[f"{name} provenance"] = provenance_file(run, name)
            write_provenance(outputs[f"{name} provenance"], episodes, of_run)
            outputs[name] = run.datasets / name
            _write(name, outputs[name], unfinished, episodes, spec, workers, settings.export.license)
    pushed, all_pushed = _push(settings.export.push_to_hub, {name: outputs[name] for name in formats})
    metrics = {"episodes": len(episodes), "frames": episodes.num_frames, "tasks": len(episodes.tasks)}
    metrics["left_out"] = len(refused)
    partial = bool(refused or stale) or not all_pushed
    return StageResult("export", outputs, metrics, notes + stale + refused + pushed, partial=partial)


def _write(name: str, path: Path, unfinished: StagingArea, episodes: Episodes, spec: DatasetSpec, workers: Workers,
           licence: str | None) -> None:  # fmt: skip
    if name in RESUMABLE:
        RESUMABLE[name](unfinished.dataset(name), unfinished.done_markers(name), episodes, spec, workers)
        write_card(unfinished.dataset(name), name, episodes, spec, licence)
        unfinished.finish(name, path)
    else:
        with atomic_folder(path) as folder:
            WHOLE[name](folder, episodes, spec, workers)
            write_card(folder, name, episodes, spec, licence)


def check_export(settings: Settings) -> None:
    """Find out what an export would refuse, before there are clips.

    Raises:
        UserError: listing what is wrong with its settings.
    """
    problems, export = Problems(), settings.export
    for check, value in ((check_camera_name, export.camera), (robot_preset, export.robot)):
        try:
            if value is not None:
                check(value)
        except UserError as error:
            problems.errors.append(error)
    check_can_push("export.push_to_hub", export.push_to_hub, "the datasets", problems)
    problems.raise_if_any("the export's settings cannot work")


def _push(repo_id: str | None, datasets: dict[str, Path]) -> tuple[list[str], bool]:
    told, all_pushed = [], True
    for name, path in datasets.items() if repo_id else ():
        repo = repo_id if len(datasets) == 1 else f"{repo_id}-{name}"
        tag = name.removeprefix("lerobot-") if name.startswith("lerobot-") else None
        sentence, is_whole = push_folder(
            path, repo, f"the dataset {name}", "Dataset made with DreamGen", "dataset", tag
        )
        told.append(sentence)
        all_pushed &= is_whole
    return told, all_pushed


def _decides_bytes(
    settings: Settings, features: RobotFeatures, mixed_datasets: Sequence[MixedDataset]
) -> dict[str, Any]:
    decides = {path.split(".")[1] for path in paths_that_invalidate("export") if path.startswith("export.")}
    export = {name: value for name, value in asdict(settings.export).items() if name in decides}
    read = [file.stat().st_mtime_ns for other in mixed_datasets for file in sorted(other.meta.root.glob("meta/*"))]
    fitting = [
        settings.seed,
        settings.video.crf,
        settings.video.gop,
        settings.prepare.fit,
        settings.prepare.action_kind,
    ]
    return {"export": export, "features": asdict(features), "others": read, "fitting": fitting}


def _needed(
    settings: Settings,
    formats: list[str],
    clips: ClipList,
    num_bytes: int,
    mixed_datasets: Sequence[MixedDataset],
    is_tiled: bool,
) -> dict[str, int]:
    num_frames = clips.num_frames
    num_frames += sum(episode.length for other in mixed_datasets for episode in other.meta.episodes)
    num_bytes += sum(file.stat().st_size for other in mixed_datasets for file in other.meta.root.rglob("*.mp4"))
    is_cut = bool(mixed_datasets) or is_tiled or is_resized(settings.export)
    frame_bytes = 3 * settings.video.height * settings.video.width
    needed = {name: estimated_bytes(name, num_bytes, num_frames, frame_bytes, settings.export.hdf5) for name in formats}
    return needed | ({"clips that are cut or encoded": num_bytes} if is_cut else {})
