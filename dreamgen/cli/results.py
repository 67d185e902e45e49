"""Print results on the terminal or as JSON, and map them to an exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dreamgen.run.records import StageResult
from dreamgen.text_escape import json_text, terminal_text

ALL_DONE, FAILED, WRONG_USAGE, DONE_IN_PART = 0, 1, 2, 3


def show(results: Sequence[StageResult], as_json: bool) -> int:
    """Print results on stdout and return the exit status."""
    if as_json:
        print(json_text(json.dumps([_plain(result.to_dict()) for result in results], indent=2, ensure_ascii=False)))
    else:
        for result in results:
            print(terminal_text(result_text(result)))
    if any(result.metrics.get("num_errors") for result in results):
        return FAILED
    return DONE_IN_PART if any(result.partial for result in results) else ALL_DONE


def result_text(result: StageResult) -> str:
    """Return a result as lines for a terminal."""
    if "markdown" in result.metrics:
        return str(result.metrics["markdown"])
    shown = {name: value for name, value in result.metrics.items() if not isinstance(value, list | dict)}
    metrics = "  ".join(f"{name}={_short(value)}" for name, value in shown.items())
    lines = [f"{result.stage}: {metrics}" if metrics else f"{result.stage}:"]
    lines += [f"  {name}: {path}" for name, path in result.outputs.items()]
    lines += ["  - " + note.replace("\n", "\n    ") for note in result.notes]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
