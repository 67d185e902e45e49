"""The export stage: accepted clips -> one dataset per format, with its provenance beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamgen.config.paths import get_path, paths_that_invalidate
from dreamgen.config.settings import ExportSettings, Settings
from dreamgen.data.hub import check_can_push, push_folder
from dreamgen.errors import Problems, UserError
from dreamgen.extensions.export_format import EXPORT_FORMATS, DatasetSize, ExportFormat
from dreamgen.progress import log
from dreamgen.run.jobs import iter_accepted_clips
from dreamgen.run.made_from import provenance_file, record_inputs
from dreamgen.run.published_paths import published_paths
from dreamgen.run.records import RobotFeatures, StageResult
from dreamgen.run.run_folder import RunFolder, as_plain
from export.card import contact_sheet, write_card
from export.clips import ClipList, generated_clips
from export.episode_store import EpisodeStore
from export.errors import dataset_exists, not_ours, nothing_accepted, out_of_date, states_missing
from export.label_origins import LabelOrigins, label_rows, refuse_weak_labels
from export.manifest import write_manifest
from export.mixture import gather, is_resized
from export.other_datasets import MixedDataset, open_mixed_datasets
from export.provenance import run_provenance, write_provenance
from export.robots import robot_preset
from export.space import check_space
from export.spec import check_camera_name, dataset_spec
from export.staging import discard, fingerprint_of, staging_area, sweep
from export.validation import validate_clips
from export.workers import Workers


@dataclass(frozen=True)
class _Sources:
    """What datasets are written from.

    Args:
        clips: The accepted clips.
        features: Of the demonstrations' robot.
        mixed_datasets: Other datasets whose episodes are included.
    """

    clips: ClipList
    features: RobotFeatures
    mixed_datasets: Sequence[MixedDataset]


def export_datasets(settings: Settings, resume: bool = False, overwrite: bool = False) -> StageResult:
    """Write the accepted clips of a run as datasets.

    Args:
        settings: `export` selects the formats; `out` is the run folder.
        resume: Keep datasets that exist and write the others, instead of refusing.
        overwrite: Replace datasets that this run wrote, each when the new one is whole; with `resume`, only those that
            are out of date.

    Returns:
        The datasets and provenance files, counts, and a note for each clip that was left out.

    Raises:
        UserError: if a dataset exists, no clip was accepted, none of the accepted clips can be written, or their labels
            are weak and `export.allow_weak_labels` is not set.
    """
    run, formats = RunFolder.of(settings), dict.fromkeys(settings.export.formats)
    check_export(settings)
    names = [settings.export.dataset_name(name) for name in formats]
    existing = [name for name in names if (run.datasets / name).exists()]
    if existing and not resume and not overwrite:
        raise dataset_exists(run, existing)
    if overwrite and (foreign := [name for name in existing if not provenance_file(run, name).is_file()]):
        raise not_ours(run.datasets / name for name in foreign)
    clips = ClipList(generated_clips(iter_accepted_clips(run), LabelOrigins.of(run)))
    if not clips:
        raise nothing_accepted(run, settings)
    run.need(run.features_file, "prepare")
    features, weak = run.robot_features(), refuse_weak_labels(run, settings.export, clips)
    stale = {name: note for name in existing if (note := out_of_date(run, name, settings, clips))}
    replaced = [name for name in existing if overwrite and (name in stale or not resume)]
    existing = [name for name in existing if name not in replaced]
    stale = {name: note for name, note in stale.items() if name in existing}
    outputs = {name: run.datasets / name for name in existing}
    notes = [*weak, *(f"{run.datasets / name} exists and is left as it is" for name in existing)]
    metrics, left_out = {"episodes": 0}, []
    missing = [EXPORT_FORMATS.get(known) for known, name in zip(formats, names, strict=True) if name not in existing]
    if missing:
        sources = _Sources(clips, features, open_mixed_datasets(settings.export, features))
        episodes, left_out, more = _write_datasets(settings, run, missing, sources)
        notes += more
        metrics = {"episodes": len(episodes), "frames": episodes.num_frames, "tasks": len(episodes.tasks)}
        for written in (settings.export.dataset_name(known.name) for known in missing):
            outputs[f"{written} provenance"] = provenance_file(run, written)
            outputs[written] = run.datasets / written
        notes += [f"{run.datasets / name} was replaced" for name in replaced]
    else:
        sweep(run.datasets)
    uploads, all_uploaded = _upload(
        run, settings.export, {known: outputs[name] for known, name in zip(formats, names, strict=True)}
    )
    partial = bool(left_out or stale) or not all_uploaded
    metrics["left_out"] = len(left_out)
    return StageResult("export", outputs, metrics, [*notes, *stale.values(), *left_out, *uploads], partial=partial)


def check_export(settings: Settings) -> None:
    """Check the settings of export before there are clips.

    Raises:
        UserError: listing all that is wrong with them.
    """
    problems, export = Problems(), settings.export
    for check, value in ((check_camera_name, export.camera), (robot_preset, export.robot)):
        if value is not None:
            with problems.collected():
                check(value)
    check_can_push("export.push_to_hub", export.push_to_hub, "the datasets", problems)
    problems.raise_if_any("the export's settings cannot work")


def _write_datasets(
    settings: Settings, run: RunFolder, formats: Sequence[ExportFormat], sources: _Sources
) -> tuple[EpisodeStore, list[str], list[str]]:
    """Write a dataset in each format.

    Returns:
        The episodes, a sentence for each clip that was left out, and notes.
    """
    export, clips, features = settings.export, sources.clips, sources.features
    fingerprint, video_bytes = fingerprint_of(_fingerprint_values(settings, sources), clips)
    check_space(run.datasets, _needed_bytes(settings, formats, sources, video_bytes), export.keep_free_gib)
    with staging_area(run.datasets, fingerprint) as staging, Workers(export.num_workers) as workers:
        chosen, left_out, notes = gather(
            settings, clips, sources.mixed_datasets, staging.transcoded, workers, features.views
        )
        prefix = "<DREAM>" if export.dream_prefix else ""
        episodes, unfit = validate_clips(
            chosen, features, export.include_state, staging.episode_store, workers, len(chosen), prefix,
            export.lerobot_sample,
        )  # fmt: skip
        left_out = left_out + unfit
        if not episodes:
            discard(run.datasets)
            reasons = "\n".join(f"- {reason}" for reason in left_out)
            raise UserError(f"none of {len(clips)} accepted clips can be exported\n{reasons}")
        spec = dataset_spec(export, features, episodes[0])
        for export_format in formats:
            if export_format.needs_states and not spec.state_names:
                raise states_missing(export_format)
        shared, sheet_HWC = run_provenance(export.license), contact_sheet(episodes)
        shorten = published_paths(run.root, as_plain(settings))
        labels = label_rows(run, (clip for _, _, clip in episodes.clips()))
        for export_format in formats:
            log(f"export: {export_format.name}, {len(episodes)} episodes")
            name = export.dataset_name(export_format.name)
            write_provenance(staging.provenance(export_format.name), episodes, shared, shorten)
            folder = staging.dataset(export_format.name)
            if not export_format.is_resumable:
                shutil.rmtree(folder)
                folder = staging.dataset(export_format.name)
            export_format.write(folder, staging.done_markers(export_format.name), episodes, spec, workers)
            write_card(folder, export_format, episodes, spec, export.license, sheet_HWC, labels)
            write_manifest(folder, export.num_workers)
            # Before the dataset, so that a dataset always has its provenance.
            staging.provenance(export_format.name).replace(provenance_file(run, name))
            staging.finish(export_format.name, run.datasets / name, replaces=True)
            record_inputs(run, name, "export", settings, {"the clips and their labels": fingerprint})
    return episodes, left_out, notes


def _upload(run: RunFolder, export: ExportSettings, datasets: dict[str, Path]) -> tuple[list[str], bool]:
    sentences, all_uploaded, repo_id = [], True, export.push_to_hub
    if repo_id is None:
        return sentences, all_uploaded
    if export.license is None:
        sentences.append("the uploaded dataset states no license, so nobody may use it: --export.license=ID adds one")
    for name, path in datasets.items():
        beside = {f"{name}.provenance.parquet": provenance_file(run, path.name)}
        repo, tag = repo_id if len(datasets) == 1 else f"{repo_id}-{name}", EXPORT_FORMATS.get(name).hub_tag
        sentence, is_uploaded = push_folder(
            path, repo, f"the dataset {name}", "Dataset made with DreamGen", "dataset", tag, beside
        )
        sentences.append(sentence)
        all_uploaded &= is_uploaded
    return sentences, all_uploaded


def _fingerprint_values(settings: Settings, sources: _Sources) -> dict[str, Any]:
    """Return the settings and inputs that determine the bytes of the datasets."""
    determining = paths_that_invalidate("export")
    own = {path.split(".")[1] for path in determining if path.startswith("export.")}
    export = {name: value for name, value in asdict(settings.export).items() if name in own}
    metadata = [file for other in sources.mixed_datasets for file in sorted(other.meta.root.glob("meta/*"))]
    fitting = [get_path(settings, path) for path in determining if not path.startswith("export.")]
    others = [file.stat().st_mtime_ns for file in metadata]
    return {"export": export, "features": asdict(sources.features), "others": others, "fitting": fitting}


def _needed_bytes(
    settings: Settings, formats: Sequence[ExportFormat], sources: _Sources, video_bytes: int
) -> dict[str, int]:
    """Estimate the disk space of each dataset, and of clips that are cut or encoded before."""
    num_frames = sources.clips.num_frames
    for other in sources.mixed_datasets:
        num_frames += sum(episode.length for episode in other.meta.episodes)
        video_bytes += sum(file.stat().st_size for file in other.meta.root.rglob("*.mp4"))
    size = DatasetSize(video_bytes, num_frames, frame_bytes=3 * settings.video.height * settings.video.width)
    needed = {known.name: known.estimate_bytes(size, settings.export) for known in formats}
    is_cut = bool(sources.mixed_datasets or sources.features.views) or is_resized(settings.export)
    return needed | ({"clips that are cut or encoded": video_bytes} if is_cut else {})
