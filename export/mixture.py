"""Which clips a dataset holds: the run's own, after those of another dataset where one is added to or mixed in."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from dreamgen.config.settings import ExportSettings, Settings
from dreamgen.data.trajectory import read_schema
from dreamgen.data.video import probe
from dreamgen.data.views import View
from dreamgen.errors import Problems, UserError
from dreamgen.progress import Progress
from export.clips import Clip, ClipList
from export.other_datasets import MixedDataset, episodes_of
from export.transcode import ClipSource, TargetSpec, transcode_clip, transcode_generated
from export.workers import Workers


def share_out(num_real: int, num_dreamed: int, real_share: float) -> tuple[int, int]:
    """Return how many of each make the wanted share of real ones: all of one kind, and none twice.

    Raises:
        UserError: if that leaves none of a kind that is wanted.
    """
    dreamed_for_all_real = round(num_real * (1 - real_share) / real_share) if real_share else num_dreamed
    if dreamed_for_all_real <= num_dreamed and real_share:
        counts = num_real, dreamed_for_all_real
    else:
        counts = round(num_dreamed * real_share / (1 - real_share)), num_dreamed
    if (real_share > 0 and not counts[0]) or (real_share < 1 and not counts[1]):
        raise UserError(
            "export.real_share cannot be had", actual=f"{real_share:g} of {num_real} real and {num_dreamed} dreamed",
            allowed="a share that leaves at least one of each",
        )  # fmt: skip
    return counts


def target_spec_of(settings: Settings, clips: Iterable[Clip], views: Sequence[View] = ()) -> TargetSpec:
    """Return the shape that all clips are to have: the settings' where they say so, else that of the dreamed clips.

    Args:
        clips: Dreamed ones; the first that can be opened counts.
        views: Parts of their pictures, if each is to be a video of its own.

    Raises:
        UserError: if none can be opened.
    """
    export = settings.export
    for clip in clips:
        try:
            info = probe(clip.video)
            break
        except UserError as error:
            damage = error
    else:
        raise damage
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


def gather(
    settings: Settings,
    dreamed: Collection[Clip],
    mixed_datasets: Sequence[MixedDataset],
    folder: Path,
    workers: Workers,
    views: Sequence[View] = (),
) -> tuple[Collection[Clip], list[str], list[str]]:
    """Choose, cut and fit the clips of a dataset: those that are added to, the real ones mixed in, then the dreamed.

    Args:
        dreamed: The run's own.
        others: From `open_others`.
        folder: Where clips that have to be made go.
        workers: Who makes them.
        views: Which parts of a dreamed clip's picture are whose, if it shows several cameras.

    Returns:
        The clips; a sentence for each that is refused; notes.

    Raises:
        UserError: if sizes or rates differ and no setting says which is wanted.
    """
    export, random = settings.export, np.random.default_rng(settings.seed)
    is_cut = is_resized(export) or bool(views)
    if not mixed_datasets and not is_cut:
        return dreamed, [], []
    target, with_state = target_spec_of(settings, dreamed, views), export.include_state and _have_states(dreamed)
    before: list[ClipSource] = []
    real: list[ClipSource] = []
    refused, notes = [], []
    for other in mixed_datasets:
        cuts, bad = episodes_of(other, with_state)
        (before if other.setting == "append_to" else real).extend(cuts)
        refused += bad
        notes += other.notes
    held = {cut.clip.clip_id for cut in before}
    if held:
        dreamed = ClipList(clip for clip in dreamed if clip.clip_id not in held)
    if export.real_share is not None:
        num_real, num_dreamed = share_out(len(real), len(dreamed), export.real_share)
        notes.append(
            f"real_share={export.real_share:g}: {num_real} of {len(real)} real, {num_dreamed} of {len(dreamed)} dreamed"
        )
        real, dreamed = list(_some(real, num_real, random)), ClipList(_some(dreamed, num_dreamed, random))
    _must_fit([*before, *real], target, export)
    fits = [functools.partial(transcode_clip, cut, target, folder) for cut in (*before, *real)]
    own = functools.partial(transcode_generated, views=views, include_state=with_state, target=target, folder=folder)
    work = itertools.chain(fits, (functools.partial(own, clip) for clip in dreamed if is_cut))
    clips, unfit, encoded = _fit(workers.run(work), len(fits) + (len(dreamed) if is_cut else 0))
    if not is_cut:
        clips = ClipList(itertools.chain(clips, dreamed))
    if views:
        notes.append(f"the dreamed clips show {len(views)} cameras side by side: each has its own video now")
    if encoded:
        notes.append(
            f"{encoded} clips were encoded again: {target.width} x {target.height}, {target.fps} fps, {target.codec}"
        )
    return clips, refused + unfit, notes


def _fit(results: Iterable[tuple[Clip | None, str | None]], num_clips: int) -> tuple[ClipList, list[str], int]:
    """Collect the clips that could be made, why others could not, and how many were encoded again."""
    refused, encoded = [], 0

    def made() -> Iterator[Clip]:
        nonlocal encoded
        with Progress("export: fit clips", num_clips) as progress:
            for clip, told in results:
                progress.add(failed=clip is None)
                if clip is None:
                    refused.append(told)
                else:
                    encoded += told is not None
                    yield clip

    clips = ClipList(made())
    return clips, refused, encoded


def is_resized(export: ExportSettings) -> bool:
    """Say whether the settings ask for a size or rate of their own."""
    return any(value is not None for value in (export.fps, export.height, export.width))


def _have_states(clips: Iterable[Clip]) -> bool:
    """Say whether the dreamed clips' labels have states; real episodes keep theirs only then."""
    label = next((clip.label for clip in clips if clip.label.is_file()), None)
    return label is not None and "observation.state" in read_schema(label).names


def _some[T](items: Collection[T], count: int, random: np.random.Generator) -> Iterator[T]:
    is_chosen = np.zeros(len(items), bool)
    is_chosen[random.choice(len(items), count, replace=False)] = True
    return itertools.compress(items, is_chosen)


def _must_fit(cuts: Sequence[ClipSource], target: TargetSpec, export: ExportSettings) -> None:
    problems = Problems()
    sizes = {(video.width, video.height) for cut in cuts for video in cut.videos} - {(target.width, target.height)}
    if sizes and export.height is None and export.width is None:
        problems.add(
            "the datasets' pictures differ in size", actual=", ".join(f"{w} x {h}" for w, h in sorted(sizes)),
            allowed=f"{target.width} x {target.height}, as the dreamed clips",
            next_step=f"--export.height={target.height} --export.width={target.width} encodes what differs again",
        )  # fmt: skip
    rates = {cut.source_fps for cut in cuts} - {Fraction(target.fps)}
    if rates and export.fps is None:
        problems.add(
            "the datasets' frame rates differ", actual=", ".join(f"{float(rate):g}" for rate in sorted(rates)),
            allowed=f"{target.fps}, as the dreamed clips",
            next_step=f"--export.fps={target.fps} resamples what differs, actions too",
        )  # fmt: skip
    problems.raise_if_any("datasets that do not go together")
