"""Write report.html: gather what exists of the run, list its clips, and render the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dreamgen.config.settings import Settings
from dreamgen.report.clips import SHOWN
from dreamgen.report.facts import last_activity, notices, settings_by_section, tiles
from dreamgen.report.gather import RunView, gather
from dreamgen.report.listing import Listing, json_for_html, list_clips
from dreamgen.report.paths import path_shortener
from dreamgen.report.plots import distribution, loss_curve
from dreamgen.report.scores import NUM_WORST, ScoreColumn, limit_words
from dreamgen.report.stages import refused_demos, stage_states
from dreamgen.run.files import write_text
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder

SCRIPTS = ("listing.js", "curves.js", "cards.js", "page.js")  # one script, in this order


def report(settings: Settings) -> StageResult:
    """Write report.html from what exists of the run.

    Args:
        settings: `out` names the run folder; `report.max_clips` bounds the clips listed.

    Returns:
        The page, counts of clips, and a note for each stage that is not done.

    Raises:
        UserError: if the run folder does not exist.
    """
    run = RunFolder.of(settings)
    view = gather(run)
    shorten, stages = path_shortener(run, view.settings), stage_states(view)
    listing = list_clips(view, settings.report.max_clips, shorten)
    unreadable = view.unreadable + listing.problems
    template = _environment(shorten).get_template("page.html")
    page = template.render(
        name=run.root.resolve().name,
        view=view,
        unreadable=unreadable,
        stages=stages,
        todo=next((stage for stage in stages if stage.command), None),
        notices=notices(view),
        tiles=tiles(view),
        refused=refused_demos(view),
        loss_plot=loss_curve([s.step for s in view.steps], [s.loss for s in view.steps]) if view.steps else None,
        settings_by_section=settings_by_section(view.settings),
        last_activity=last_activity(view),
        **_clips(view, listing),
    )
    write_text(run.report, page)
    metrics = {
        "clips_shown": len(listing.rows), "accepted": view.clips.count("accepted"),
        "rejected": view.clips.count("rejected"), "failed": view.clips.count("failed"),
        "size_mb": round(run.report.stat().st_size / 1e6, 2),
    }  # fmt: skip
    notes = [f"{stage.name}: {stage.detail}; {stage.command}" for stage in stages if stage.command]
    return StageResult("report", {"report": run.report}, metrics, notes + unreadable)


def _clips(view: RunView, listing: Listing) -> dict[str, Any]:
    """Return what the template shows of clips and their scores."""
    num_with_video, verdicts = int(view.clips.is_shown_N.sum()), listing.index["verdicts"]
    return {
        "num_listed": len(listing.rows),
        "num_of_verdict": {verdict: verdicts.count(verdict) for verdict in SHOWN},
        "num_with_video": num_with_video,
        "num_without_video": view.clips.count(*SHOWN) - num_with_video,
        "is_embedded": listing.media is not None,
        "scores": [_score(column, view) for column in view.scores] if len(listing.rows) else [],
        "num_worst": NUM_WORST,
        "listing": Markup(json_for_html(listing.index)),
        "media": Markup(json_for_html(listing.media)),
        "packs": [Markup(pack) for pack in listing.packs],
    }


def _score(column: ScoreColumn, view: RunView) -> dict[str, Any]:
    num_missed, num_values = int(column.is_missed_N.sum()), int((column.value_N == column.value_N).sum())
    limits = [limit_words(column, limit) for limit in column.limits]
    words = [f"{num_missed:,} of {num_values:,} clips miss {' or '.join(limits)}" if limits else "No threshold"]
    num_judged = view.clips.count("accepted", "rejected")
    words += [f"{num_judged - num_values:,} have no value"] if num_judged > num_values else []
    plot = distribution(column, view.clips)
    return {"label": column.label, "unit": column.unit, "about": column.about, "limits": limits, "plot": plot,
            "summary": "; ".join(words) + "."}  # fmt: skip


def _environment(shorten: Callable[[str], str]) -> jinja2.Environment:
    def finalize(value: Any) -> Any:
        is_text = isinstance(value, str | Path) and not isinstance(value, Markup)
        return shorten(str(value)) if is_text else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment.globals.update(script=Markup(script), script_hash=f"sha256-{digest}")
    return environment
