"""Write report.html: choose the clips to show, embed them, and render the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from dreamgen.config.settings import Settings
from dreamgen.data.video import iter_frames
from dreamgen.errors import UserError, quoted
from dreamgen.extensions.judge import curation_metrics
from dreamgen.report.facts import last_activity, notices, settings_by_section, tiles
from dreamgen.report.gather import Clip, RunView, gather
from dreamgen.report.plots import action_strips, loss_curve
from dreamgen.report.stages import refused_demos, stage_states
from dreamgen.run.files import write_text
from dreamgen.run.published_paths import published_paths
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder

MAX_EMBEDDED_BYTES = 40 * 10**6  # of base64; beyond it the page links its clips, which then must stay beside it
POSTER_WIDTH_PX = 480
NOT_MEASURES = ("num_frames", "wanted_num_frames")
SHOWN_FIRST = ("accepted", "not judged", "rejected")


@dataclass(frozen=True)
class Measure:
    """A number that curate recorded about a clip.

    Args:
        name: In words.
        value: With its unit.
        limit: Its threshold in words; empty where it has none.
        about: What it measures, and a judge's reason.
    """

    name: str
    value: str
    limit: str
    about: str


@dataclass(frozen=True)
class Card:
    """One clip on the page.

    Args:
        clip: The job and its outcome.
        poster: data: URL of its first frame.
        source: data: URL or relative path of its mp4; None when the file is missing.
        plot: The predicted actions.
        measures: What curate recorded.
        problems: Which of its files cannot be read, and why.
    """

    clip: Clip
    poster: str | None
    source: str | None
    plot: Markup | None
    measures: list[Measure]
    problems: list[str]


def report(settings: Settings) -> StageResult:
    """Write report.html from what exists of the run.

    Args:
        settings: `out` names the run folder; `report.max_clips` bounds the clips shown.

    Returns:
        The page, counts of clips, and a note for each stage that is not done.

    Raises:
        UserError: if the run folder does not exist.
    """
    run = RunFolder.of(settings)
    view = gather(run)
    shown = choose_clips(view.clips, settings.report.max_clips)
    embedded_bytes = sum(clip.video.stat().st_size for clip in shown if clip.video) * 4 // 3
    cards = [_card(clip, view, embed=embedded_bytes <= MAX_EMBEDDED_BYTES) for clip in shown]
    made, stages = [clip for clip in view.clips if clip.verdict in SHOWN_FIRST], stage_states(view)
    unreadable = view.unreadable + [problem for card in cards for problem in card.problems]
    page = _environment(published_paths(run.root, view.settings)).get_template("page.html").render(
        name=run.root.resolve().name,
        view=view,
        cards=cards,
        num_with_video=sum(clip.video is not None for clip in made),
        without_video=sum(clip.video is None for clip in made),
        unreadable=unreadable,
        linked=embedded_bytes > MAX_EMBEDDED_BYTES,
        stages=stages,
        todo=next((stage for stage in stages if stage.command), None),
        notices=notices(view),
        tiles=tiles(view),
        refused=refused_demos(view),
        loss_plot=loss_curve([s.step for s in view.steps], [s.loss for s in view.steps]) if view.steps else None,
        settings_by_section=settings_by_section(view.settings),
        last_activity=last_activity(view),
    )  # fmt: skip
    write_text(run.report, page)
    metrics = {
        "clips_shown": len(cards), "accepted": view.count("accepted"), "rejected": view.count("rejected"),
        "failed": view.count("failed"), "size_mb": round(run.report.stat().st_size / 1e6, 2),
    }  # fmt: skip
    notes = [f"{stage.name}: {stage.detail}; {stage.command}" for stage in stages if stage.command]
    return StageResult("report", {"report": run.report}, metrics, notes + unreadable)


def choose_clips(clips: Sequence[Clip], max_clips: int) -> list[Clip]:
    """Choose the clips to show: each verdict in proportion and at least once, spread evenly over the plan.

    Args:
        clips: All clips of the run; failed ones and those without a video are not shown.
        max_clips: Largest number of clips.

    Returns:
        Accepted clips, then those not judged, then rejected ones; each group in planned order.
    """
    groups = [[c for c in clips if c.verdict == verdict and c.video is not None] for verdict in SHOWN_FIRST]
    total = sum(map(len, groups))
    num_shown = min(max_clips, total)
    if num_shown <= 0:
        return []
    exact = [len(group) * num_shown / total for group in groups]
    shares = [0] * len(groups)
    for _ in range(num_shown):
        open_groups = [i for i in range(len(groups)) if shares[i] < len(groups[i])]
        next_group = max(open_groups, key=lambda i: (shares[i] == 0, exact[i] - shares[i]))
        shares[next_group] += 1
    return [
        group[round(index * (len(group) - 1) / max(share - 1, 1))]
        for group, share in zip(groups, shares, strict=True)
        for index in range(share)
    ]


def _card(clip: Clip, view: RunView, embed: bool) -> Card:
    poster = source = plot = None
    problems, video, root = [], clip.video, view.run.root
    assert video is not None, "choose_clips leaves out clips without a video"
    try:
        first_frame_HWC = next(iter_frames(video), None)
        if first_frame_HWC is None:
            raise UserError(f"{video} has 0 frames", next_step=f"dreamgen generate --out {quoted(root)}")
        poster = _poster(first_frame_HWC)
        source = _data_url("video/mp4", video.read_bytes()) if embed else quote(video.relative_to(root).as_posix())
    except UserError as error:
        problems.append(str(error))
    if clip.label is not None:
        try:
            rows = pq.read_table(clip.label, columns=["action"])["action"].to_pylist()
            names = view.features.action_names if view.features is not None else ()
            plot = action_strips(np.array(rows, np.float64), names, clip.job.fps)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{clip.label} is not a table of actions: {error}")
    return Card(clip, poster, source, plot, _measures(clip.metrics), problems)


def _measures(recorded: dict[str, Any]) -> list[Measure]:
    """Pair each number that curate recorded with the threshold that was recorded as min_NAME or max_NAME."""
    declared = {metric.name: metric for metric in curation_metrics()}
    measures = []
    for name, value in recorded.items():
        is_threshold = name.startswith(("min_", "max_")) and name[4:] in recorded
        if isinstance(value, bool) or not isinstance(value, int | float) or is_threshold or name in NOT_MEASURES:
            continue
        low, high = recorded.get(f"min_{name}"), recorded.get(f"max_{name}")
        limit = f"min {low:g}" if low is not None else f"max {high:g}" if high is not None else ""
        metric = declared.get(name)  # None where the package that measured it is not installed
        unit = metric.unit if metric is not None else ""
        words = name.removesuffix(f"_{unit.lower()}").replace("_", " ").replace("psnr", "PSNR")
        about = [metric.summary] if metric is not None else []
        about += [str(recorded[f"{name}_reason"])] if recorded.get(f"{name}_reason") else []
        measures.append(Measure(words, f"{value:.3g} {unit}".strip(), limit, ": ".join(about)))
    return measures


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


def _environment(shorten: Callable[[str], str]) -> jinja2.Environment:
    def finalize(value: Any) -> Any:
        is_path_free = isinstance(value, Markup) or not isinstance(value, str | Path) or str(value).startswith("data:")
        return value if is_path_free else shorten(str(value))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment.globals.update(script=Markup(script), script_hash=f"sha256-{digest}")
    return environment
