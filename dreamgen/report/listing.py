"""What the page's script knows of the listed clips.

The index holds what clips are sorted and filtered by, as columns. Reasons and curves are in packs of a few clips each,
compressed, which the script opens when it shows one of their clips.
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dreamgen.data.video import iter_frames
from dreamgen.errors import UserError
from dreamgen.report.clips import Clip, choose_rows, iter_clips
from dreamgen.report.curves import num_points, read_curves
from dreamgen.report.gather import RunView
from dreamgen.report.scores import ScoreColumn, limit_words
from dreamgen.run.run_folder import RunFolder

CLIPS_A_PACK = 8
MAX_EMBEDDED_BYTES = 12 * 10**6  # of base64; beyond it the page links its clips, which then must stay beside it
POSTER_WIDTH_PX = 480
REASON = "_reason"  # ends the name under which a judge's words about a score are recorded
MAX_PROBLEMS = 20  # that the page describes; the rest is counted


@dataclass(frozen=True)
class Listing:
    """The listed clips, as the page's template takes them.

    Args:
        rows: Their places in planned order.
        index: The columns, for JSON.
        packs: Compressed details, base64.
        media: For each clip its poster and its mp4 as data: URLs, for JSON; None if the page links the files.
        problems: Which files cannot be read, and why.
    """

    rows: np.ndarray
    index: dict[str, Any]
    packs: list[str]
    media: list[dict[str, str | None]] | None
    problems: list[str]


@dataclass
class _Index:
    """Columns of the index, collected clip by clip."""

    ids: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    seeds: list[str] = field(default_factory=list)
    instructions: dict[str, int] = field(default_factory=dict)
    instruction: list[int] = field(default_factory=list)
    shapes: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    shape: list[int] = field(default_factory=list)

    def add(self, clip: Clip) -> None:
        job = clip.job
        self.ids.append(job.clip_id)
        self.verdicts.append(clip.verdict)
        self.seeds.append(str(job.seed))  # 64 bits are more than a number of the script holds
        self.instruction.append(self.instructions.setdefault(job.instruction, len(self.instructions)))
        shape = (job.width, job.height, job.num_frames, job.fps)
        self.shape.append(self.shapes.setdefault(shape, len(self.shapes)))


def list_clips(view: RunView, max_clips: int, shorten: Callable[[str], str]) -> Listing:
    """Choose the clips that the page lists and collect what it shows of them.

    Args:
        view: The run.
        max_clips: Most clips; beside them, the worst of each score are listed. 0 lists none.
        shorten: Takes paths of this machine out of a text.

    Returns:
        The listing; a few thousand jobs are in memory as objects at a time.
    """
    can_show_N = view.clips.is_shown_N
    rows = choose_rows(view.clips.verdict_N, can_show_N, max_clips)
    worst = {column.name: column.worst_rows(can_show_N) if max_clips else [] for column in view.scores}
    rows = np.union1d(rows, np.array([*itertools.chain(*worst.values())], np.int64))
    is_embedded = view.clips.num_bytes_N[rows].sum() * 4 // 3 <= MAX_EMBEDDED_BYTES
    index, problems, packs = _Index(), _Problems(), []
    media: list[dict[str, str | None]] = []

    def with_details() -> Iterator[dict[str, Any]]:
        for clip in iter_clips(view.run, view.clips, rows):
            index.add(clip)
            if is_embedded:
                media.append(_media(view.run, clip, problems))
            yield _details(view.run, clip, num_points(len(rows)), shorten, problems)

    for pack in _packs(with_details()):
        packs.append(pack)
    columns = {
        "ids": index.ids, "verdicts": index.verdicts, "seeds": index.seeds, "instructions": list(index.instructions),
        "instruction": index.instruction, "shapes": list(index.shapes), "shape": index.shape,
        "actions": list(view.features.action_names) if view.features is not None else [], "clipsAPack": CLIPS_A_PACK,
        "scores": [_score(column, rows, worst[column.name]) for column in view.scores],
    }  # fmt: skip
    return Listing(rows, columns, packs, media if is_embedded else None, problems.texts())


def json_for_html(value: Any) -> str:
    """Return JSON that a script element can hold, whatever the texts in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: also U+2028 is escaped
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class _Problems:
    """Collects problems with files, and keeps the first ones."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._num = 0

    def add(self, text: str) -> None:
        self._num += 1
        if len(self._first) < MAX_PROBLEMS:
            self._first.append(text)

    def texts(self) -> list[str]:
        num_more = self._num - len(self._first)
        return [*self._first, f"And {num_more:,} other files of clips."] if num_more else self._first


def _details(
    run: RunFolder, clip: Clip, max_points: int, shorten: Callable[[str], str], problems: _Problems
) -> dict[str, Any]:
    """Return what the page shows of a clip and does not sort by."""
    notes = {
        name.removesuffix("_reason"): text for name, text in clip.metrics.items() if name.endswith("_reason") and text
    }
    details: dict[str, Any] = {
        "reasons": [shorten(reason) for reason in clip.reasons],
        "notes": {name.removesuffix(REASON): shorten(str(text)) for name, text in notes.items()},
    }
    try:
        details["curves"] = read_curves(run.label_file(clip.job.clip_id), max_points)
    except UserError as error:
        problems.add(str(error))
        details["curves"] = None
    return details


def _packs(details: Iterable[dict[str, Any]]) -> Iterator[str]:
    held: list[dict[str, Any]] = []
    for one in details:
        held.append(one)
        if len(held) == CLIPS_A_PACK:
            yield _compressed(held)
            held = []
    if held:
        yield _compressed(held)


def _compressed(details: list[dict[str, Any]]) -> str:
    text = json.dumps(details, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode("ascii")


def _score(column: ScoreColumn, rows: np.ndarray, worst: list[int]) -> dict[str, Any]:
    """Return a score of the listed clips; `worst` and `missed` are places in the listing."""
    value_L, limit_L = column.value_N[rows], column.limit_N[rows]
    limits = [limit for limit in column.limits if limit in limit_L]
    is_for_all = len(limits) == 1 and np.isfinite(limit_L[np.isfinite(value_L)]).all()
    of_clip = [limits.index(limit) if limit in limits else -1 for limit in limit_L.tolist()]
    return {
        "name": column.name, "label": column.label, "unit": column.unit, "about": column.about,
        "direction": column.direction,
        "values": [float(f"{value:.5g}") if np.isfinite(value) else None for value in value_L.tolist()],
        "limits": [limit_words(column, limit) for limit in limits], "limit": None if is_for_all else of_clip,
        "missed": np.flatnonzero(column.is_missed_N[rows]).tolist(),
        "worst": np.searchsorted(rows, worst).tolist(),
    }  # fmt: skip


def _media(run: RunFolder, clip: Clip, problems: _Problems) -> dict[str, str | None]:
    path = run.clip_file(clip.job.clip_id)
    try:
        first_frame_HWC = next(iter_frames(path), None)
        if first_frame_HWC is None:
            raise UserError(f"{path} has 0 frames", next_step="dreamgen generate makes it again")
        return {"poster": _poster(first_frame_HWC), "source": _data_url("video/mp4", path.read_bytes())}
    except UserError as error:
        problems.add(str(error))
        return {"poster": None, "source": None}


def _poster(frame_HWC: np.ndarray) -> str:
    height, width = frame_HWC.shape[:2]
    if width > POSTER_WIDTH_PX:
        size = (POSTER_WIDTH_PX, round(height * POSTER_WIDTH_PX / width))
        frame_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert done, "JPEG encoding of a uint8 array does not fail"
    return _data_url("image/jpeg", data.tobytes())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
