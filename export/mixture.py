"""Selection of the clips of a dataset: the run's own, and episodes of other datasets before them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from dreamgen.config.settings import ExportSettings, Settings
from dreamgen.data.timeline import resampled_indices
from dreamgen.data.trajectory import read_schema
from dreamgen.data.video import VideoInfo, probe
from dreamgen.data.views import View
from dreamgen.errors import Problems, UserError
from dreamgen.progress import Progress
from export.clips import Clip, ClipList
from export.other_datasets import MixedDataset, episodes_of
from export.transcode import ClipSource, TargetSpec, transcode_clip, transcode_generated
from export.workers import Workers


def counts_for_share(num_real: int, num_generated: int, real_share: float) -> tuple[int, int]:
    """Return how many real and generated clips give a share of real ones, using all clips of one kind.

    Raises:
        UserError: if no clip of a kind would be left.
    """
    generated_for_all_real = round(num_real * (1 - real_share) / real_share) if real_share else num_generated
    if generated_for_all_real <= num_generated and real_share:
        counts = num_real, generated_for_all_real
    else:
        counts = round(num_generated * real_share / (1 - real_share)), num_generated
    if (real_share > 0 and not counts[0]) or (real_share < 1 and not counts[1]):
        raise _share_not_reached(f"{real_share:g} of {num_real} real and {num_generated} generated")
    return counts


def choose_by_episodes(
    real_R: np.ndarray, generated_G: np.ndarray, real_share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose clips so that a share of them is real, using all clips of one kind.

    Args:
        real_R: Frames of each real clip.
        generated_G: Frames of each generated clip.
        real_share: Of the chosen clips, 0-1.
        random: Chooses which clips of the other kind are used.

    Returns:
        For each real and each generated clip whether it is used, bool.

    Raises:
        UserError: if no clip of a kind would be left.
    """
    counts = counts_for_share(len(real_R), len(generated_G), real_share)
    return _chosen(len(real_R), counts[0], random), _chosen(len(generated_G), counts[1], random)


def choose_by_frames(
    real_R: np.ndarray, generated_G: np.ndarray, real_share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose clips so that real ones have a share of the frames, as nearly as whole clips allow.

    Args, returns and raises as `choose_by_episodes`.
    """
    num_real, num_generated = int(real_R.sum()), int(generated_G.sum())
    wanted = num_real * (1 - real_share) / real_share if real_share else num_generated
    if real_share and wanted <= num_generated:
        chosen = np.ones(len(real_R), bool), _nearest_sum(generated_G, wanted, random)
    else:
        wanted = num_generated * real_share / (1 - real_share)
        chosen = _nearest_sum(real_R, wanted, random), np.ones(len(generated_G), bool)
    if (real_share > 0 and not chosen[0].any()) or (real_share < 1 and not chosen[1].any()):
        raise _share_not_reached(f"{real_share:g} of {num_real} real and {num_generated} generated frames")
    return chosen


def repeats_for_share(real_R: np.ndarray, wanted: float, random: np.random.Generator) -> np.ndarray:
    """Return how often each real clip is written, so that they add up to a number that is larger than all of them.

    Args:
        real_R: What each counts: 1, or its frames.
        wanted: Their sum with repetitions.
        random: Chooses the clips that are written once more than others.
    """
    times, rest = divmod(wanted, real_R.sum())
    return np.int64(times) + _nearest_sum(real_R, rest, random).astype(np.int64)


def _nearest_sum(lengths: np.ndarray, wanted: float, random: np.random.Generator) -> np.ndarray:
    """Choose clips in a random order, as many as come nearest to a number of frames."""
    order = random.permutation(len(lengths))
    sums = np.concatenate([[0], np.cumsum(lengths[order])])
    is_chosen = np.zeros(len(lengths), bool)
    is_chosen[order[: int(np.abs(sums - wanted).argmin())]] = True
    return is_chosen


def shares_text(
    real_R: np.ndarray, generated_G: np.ndarray, times: tuple[np.ndarray, np.ndarray], export: ExportSettings
) -> str:
    """Return how many real and generated clips are used, and their shares of episodes and of frames.

    Args:
        real_R: Frames of each real clip.
        generated_G: Frames of each generated clip.
        times: How often each real and each generated clip is written.
        export: The settings that asked for it.
    """
    counts = [int(written.sum()) for written in times]
    frames = [int(real_R @ times[0]), int(generated_G @ times[1])]
    shares = [100 * values[0] / max(sum(values), 1) for values in (counts, frames)]
    wanted = "" if export.real_share is None else f"real_share={export.real_share:g} of the {export.real_share_of}: "
    num_real = int(np.count_nonzero(times[0]))
    again = f", written as {counts[0]} episodes" if counts[0] > num_real else ""
    return (
        f"{wanted}{num_real} of {len(real_R)} real{again}, {counts[1]} of {len(generated_G)} generated; real are "
        f"{shares[0]:.1f} % of the episodes and {shares[1]:.1f} % of the frames"
    )


def _frames_at(target: TargetSpec, num_frames: int, fps: int | Fraction) -> int:
    return len(resampled_indices(num_frames, fps, target.fps))


def _share_not_reached(actual: str) -> UserError:
    return UserError("export.real_share cannot be reached", actual=actual,
                     allowed="a share that leaves at least one of each")  # fmt: skip


def target_spec_of(settings: Settings, clips: Iterable[Clip], views: Sequence[View] = ()) -> TargetSpec:
    """Return the shape of all clips: that of the settings, else that of the generated clips.

    Args:
        clips: Generated ones; the first that can be opened is used.
        views: Parts of their frames, if each becomes a video of its own.

    Raises:
        UserError: if none can be opened.
    """
    export = settings.export
    clip, info = _first_readable(clips)
    return TargetSpec(
        fps=export.fps or clip.fps,
        height=export.height or (views[0].height if views else info.height),
        width=export.width or (views[0].width if views else info.width),
        codec=info.codec,
        crf=settings.video.crf if clip.crf is None else clip.crf,
        gop=settings.video.gop if clip.gop is None else clip.gop,
        fit=settings.prepare.fit,
        action_kind=settings.prepare.action_kind,
    )


def _first_readable(clips: Iterable[Clip]) -> tuple[Clip, VideoInfo]:
    error = UserError("there is no clip to export")
    for clip in clips:
        try:
            return clip, probe(clip.video)
        except UserError as damage:
            error = damage
    raise error


def gather(
    settings: Settings,
    generated: ClipList,
    mixed_datasets: Sequence[MixedDataset],
    folder: Path,
    workers: Workers,
    views: Sequence[View] = (),
) -> tuple[ClipList, list[str], list[str]]:
    """Select and transcode the clips of a dataset: those of `append_to`, the real ones of `mix_with`, the generated.

    Args:
        settings: Say which sizes, rates and shares are wanted.
        generated: The run's own clips.
        mixed_datasets: From `open_mixed_datasets`.
        folder: For clips that are transcoded.
        workers: Transcode them.
        views: Cameras' parts of the frames of generated clips that show several cameras.

    Returns:
        The clips; a sentence for each that is left out; notes.

    Raises:
        UserError: if sizes or rates differ and no setting selects one.
    """
    export, random = settings.export, np.random.default_rng(settings.seed)
    is_cut = is_resized(export) or bool(views)
    if not mixed_datasets and not is_cut:
        return generated, [], []
    target, with_state = target_spec_of(settings, generated, views), export.include_state and _have_states(generated)
    before: list[ClipSource] = []
    real: list[ClipSource] = []
    errors, notes = [], []
    for dataset in mixed_datasets:
        sources, more = episodes_of(dataset, with_state)
        (before if dataset.setting == "append_to" else real).extend(sources)
        errors += more
        notes += dataset.notes
    if before:
        existing = {source.clip.clip_id for source in before}
        generated = ClipList(clip for clip in generated if clip.clip_id not in existing)
    if export.mix_with is not None:
        real_R = np.array([_frames_at(target, s.clip.num_frames, s.source_fps) for s in real], np.int64)
        generated_G = np.array([_frames_at(target, clip.num_frames, clip.fps) for clip in generated], np.int64)
        real_times, generated_times = _times_written(real_R, generated_G, export, random)
        notes.append(shares_text(real_R, generated_G, (real_times, generated_times), export))
        real = list(_repeated(real, real_times))
        generated = ClipList(itertools.compress(generated, generated_times))
    _check_shapes([*before, *real], target, export)
    tasks = [functools.partial(transcode_clip, source, target, folder) for source in (*before, *real)]
    own = functools.partial(transcode_generated, views=views, include_state=with_state, target=target, folder=folder)
    all_tasks = itertools.chain(tasks, (functools.partial(own, clip) for clip in generated if is_cut))
    clips, more, encoded = _transcode(workers.run(all_tasks), len(tasks) + (len(generated) if is_cut else 0))
    if not is_cut:
        clips = ClipList(itertools.chain(clips, generated))
    if views:
        notes.append(f"the generated clips show {len(views)} cameras side by side: each has its own video now")
    if encoded:
        notes.append(
            f"{encoded} clips were encoded again: {target.width} x {target.height}, {target.fps} fps, {target.codec}"
        )
    return clips, errors + more, notes


def _transcode(results: Iterable[tuple[Clip | None, str | None]], num_clips: int) -> tuple[ClipList, list[str], int]:
    """Collect the transcoded clips, why others are left out, and how many were encoded again."""
    errors, encoded = [], 0

    def transcoded() -> Iterator[Clip]:
        nonlocal encoded
        with Progress("export: transcode clips", num_clips) as progress:
            for clip, note in results:
                progress.add(failed=clip is None)
                if clip is None:
                    errors.append(note)
                else:
                    encoded += note is not None
                    yield clip

    clips = ClipList(transcoded())
    return clips, errors, encoded


def is_resized(export: ExportSettings) -> bool:
    """Return True if the settings contain a size or rate."""
    return any(value is not None for value in (export.fps, export.height, export.width))


def _have_states(clips: Iterable[Clip]) -> bool:
    """Return True if the labels of generated clips have states; real episodes keep theirs only then."""
    label = next((clip.label for clip in clips if clip.label.is_file()), None)
    return label is not None and "observation.state" in read_schema(label).names


def _chosen(num_items: int, count: int, random: np.random.Generator) -> np.ndarray:
    is_chosen = np.zeros(num_items, bool)
    is_chosen[random.choice(num_items, count, replace=False)] = True
    return is_chosen


def _times_written(
    real_R: np.ndarray, generated_G: np.ndarray, export: ExportSettings, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each real and each generated clip is written, from the frames of each."""
    if export.real_share is None:
        return np.ones(len(real_R), np.int64), np.ones(len(generated_G), np.int64)
    by_frames = export.real_share_of == "frames"
    if export.repeat_real and len(real_R) and len(generated_G):
        counted_R, counted_G = (real_R, generated_G) if by_frames else (np.ones_like(real_R), np.ones_like(generated_G))
        wanted = counted_G.sum() * export.real_share / (1 - export.real_share)
        if wanted > counted_R.sum():
            return repeats_for_share(counted_R, wanted, random), np.ones(len(generated_G), np.int64)
    choose = choose_by_frames if by_frames else choose_by_episodes
    real, generated = choose(real_R, generated_G, export.real_share, random)
    return real.astype(np.int64), generated.astype(np.int64)


def _repeated(real: Iterable[ClipSource], times_R: np.ndarray) -> Iterator[ClipSource]:
    """Yield each clip as often as wanted, with an id of its own for each repetition."""
    for source, times in zip(real, times_R, strict=True):
        for number in range(times):
            again = f".{number + 1}" if number else ""
            yield replace(source, clip=replace(source.clip, clip_id=source.clip.clip_id + again))


def _check_shapes(sources: Sequence[ClipSource], target: TargetSpec, export: ExportSettings) -> None:
    problems = Problems()
    sizes = {(video.width, video.height) for source in sources for video in source.videos} - {
        (target.width, target.height)
    }
    if sizes and export.height is None and export.width is None:
        problems.add(
            "the datasets' videos differ in size", actual=", ".join(f"{w} x {h}" for w, h in sorted(sizes)),
            allowed=f"{target.width} x {target.height}, as the generated clips",
            next_step=f"--export.height={target.height} --export.width={target.width} encodes what differs again",
        )  # fmt: skip
    rates = {source.source_fps for source in sources} - {Fraction(target.fps)}
    if rates and export.fps is None:
        problems.add(
            "the datasets' frame rates differ", actual=", ".join(f"{float(rate):g}" for rate in sorted(rates)),
            allowed=f"{target.fps}, as the generated clips",
            next_step=f"--export.fps={target.fps} resamples what differs, actions too",
        )  # fmt: skip
    problems.raise_if_any("datasets that cannot be combined")
