"""Summary tiles, warnings and settings of the report."""

from __future__ import annotations

import time
from typing import Any

from dreamgen.config.loading import flatten
from dreamgen.models.cosmos_predict25.spec import is_random_mini
from dreamgen.report.gather import RunView
from dreamgen.report.stages import demos_used, refused_demos
from dreamgen.run.idm_error import IdmError


def tiles(view: RunView) -> list[dict[str, str]]:
    """Return the summary tiles: label, value and one line of context each."""
    num_generated, num_judged = view.clips.num_with("generate", "ok"), view.clips.count("accepted", "rejected")
    share = f"{view.clips.count('accepted') / num_judged:.0%}" if num_judged else ""
    num_failed, num_rejected = view.clips.count("failed"), view.clips.count("rejected")
    return [
        _tile("Demonstrations used", f"{demos_used(view):,}" if view.demos else "–",
              f"{len(refused_demos(view)):,} refused" if view.demos else "no summary"),
        _tile("Steps trained", f"{view.steps[-1].step:,}" if view.steps else "–",
              f"last loss {view.steps[-1].loss:.3g}" if view.steps else "no training log"),
        _tile("Clips generated", f"{num_generated:,}" if len(view.clips) else "–",
              f"of {len(view.clips):,} planned · {num_failed:,} failed" if len(view.clips) else "no jobs"),
        _tile("Clips accepted", f"{view.clips.count('accepted'):,}" if num_judged else "–",
              f"{num_rejected:,} rejected · {share} pass" if num_judged else "not judged yet"),
        _error_tile(view),
        _tile("Episodes exported", _episodes(view),
              f"in {len(view.datasets)} formats" if view.datasets else "no dataset"),
    ]  # fmt: skip


def _error_tile(view: RunView) -> dict[str, str]:
    error = IdmError.of_config(view.idm or {})
    if error is None:
        return _tile("Held-out action error", "–", "no inverse dynamics" if view.idm is None else "not measured")
    mean = error.baselines.get("mean")
    beside = f"guessing the mean: {mean.mae:.3g}" if mean is not None else "mean absolute error"
    return _tile("Held-out action error", f"{error.action.mae:.3g}", beside)


def _episodes(view: RunView) -> str:
    counts = sorted({dataset.num_episodes for dataset in view.datasets if dataset.num_episodes is not None})
    return "–" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"


def _tile(label: str, value: str, context: str) -> dict[str, str]:
    return {"label": label, "value": value, "context": context}


def notices(view: RunView) -> list[dict[str, str]]:
    """Return warnings that matter for reading the clips: a title and a sentence each."""
    model = view.settings.get("model", {})
    found = []
    models, path = view.clips.models, model.get("path", "")
    if models == {"mini-random"} or (not models and is_random_mini(path)):
        found.append({
            "title": "The mini model has untrained weights",
            "text": "Its clips look like noise. This run shows that every stage works, not that the clips are good.",
        })  # fmt: skip
    elif models == {"mini"} or (not models and path == "mini"):
        found.append({
            "title": "The mini model is a simulator toy",
            "text": "It has seen one simulated arm and nothing real. For a real robot, fine-tune the real model.",
        })  # fmt: skip
    num_off, num_known = view.clips.num_unchecked, view.clips.num_safety_known
    if num_off or (not len(view.clips) and model.get("safety_checker") is False):
        which = f"{num_off:,} of {num_known:,} clips were" if num_off else "Clips will be"
        found.append({
            "title": "The safety checker was off",
            "text": f"{which} generated without screening of prompts and frames. "
                    "The license of the real model requires its guardrail.",
        })  # fmt: skip
    error = IdmError.of_config(view.idm or {})
    if error is not None and error.not_beaten:
        found.append({
            "title": "The recovered actions are no better than a guess",
            "text": f"The inverse-dynamics model does not beat {' or '.join(error.not_beaten)}; "
                    f"{error.text()}. More demonstrations or training steps help; export refuses such labels unless "
                    "export.allow_weak_labels is set.",
        })  # fmt: skip
    if "av1" in view.clips.codecs:
        text = "Browsers without an AV1 decoder (older Safari) cannot play them."
        found.append({"title": "The clips are AV1", "text": text})
    return found


def settings_by_section(recorded: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return run.yaml as rows of text by section; settings without a section come first, as "run"."""
    sections: dict[str, list[tuple[str, str]]] = {"run": []}
    for name, value in recorded.items():
        if isinstance(value, dict):
            sections[name] = [(path, _plain_text(item)) for path, item in flatten(value)]
        else:
            sections["run"].append((name, _plain_text(value)))
    return {name: rows for name, rows in sections.items() if rows}


def _plain_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "not set" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def last_activity(view: RunView) -> str | None:
    """Return the time of the journal's last record in UTC; None without a record."""
    time_s = view.clips.last_time_s
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s)) if time_s else None
