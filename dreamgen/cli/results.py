"""Print results on the terminal or as JSON, and map them to an exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dreamgen.run.records import StageResult
from dreamgen.text_escape import json_text, terminal_text

FEWEST_ROWS = 3  # stages of a run from which on they are a table
MOST_METRICS, FEW_NOTES, MOST_NOTES = 4, 2, 10
ALL_DONE, FAILED, WRONG_USAGE, DONE_IN_PART = 0, 1, 2, 3


def show(results: Sequence[StageResult], as_json: bool) -> int:
    """Print results on stdout and return the exit status."""
    if as_json:
        print(json_text(json.dumps([_plain(result.to_dict()) for result in results], indent=2, ensure_ascii=False)))
    else:
        from dreamgen.stages import PIPELINE  # here, as it reads extensions, whose errors are shown as a command's

        of_run = [result for result in results if result.stage in PIPELINE]
        if len(of_run) >= FEWEST_ROWS:
            print(terminal_text(run_text(of_run)))
            results_left = [result for result in results if result not in of_run]
        else:
            results_left = results
        for result in results_left:
            print(terminal_text(result_text(result)))
    if any(result.metrics.get("num_errors") for result in results):
        return FAILED
    return DONE_IN_PART if any(result.partial for result in results) else ALL_DONE


def run_text(results: Sequence[StageResult]) -> str:
    """Return the results of a whole run as a short table, the first notes of each stage, and where the outputs are."""
    width = max(len(result.stage) for result in results)
    lines = [f"{result.stage:<{width}}  {_in_words(result)}".rstrip() for result in results]
    for result in results:
        shown = MOST_NOTES if result.partial or result.metrics.get("num_errors") else FEW_NOTES
        lines += [f"  - {result.stage}: " + note.replace("\n", "\n    ") for note in result.notes[:shown]]
        if num_more := len(result.notes) - len(result.notes[:shown]):
            lines.append(f"  - {result.stage}: {num_more} more notes; --json prints all")
    datasets = [result.outputs for result in results if result.stage in ("export", "report")]
    places = {name: path for outputs in datasets for name, path in outputs.items() if "provenance" not in name}
    return "\n".join([*lines, *(f"  {name}: {path}" for name, path in places.items())])


def _in_words(result: StageResult) -> str:
    """Return a stage's first metrics, such as `6 done, 1 rejected`; zeros are left out, unless all are zero."""
    values = {name.removeprefix("num_").replace("_", " "): value for name, value in result.metrics.items()
              if isinstance(value, int | float) and not isinstance(value, bool)}  # fmt: skip
    values = {name: value for name, value in values.items() if value} or values
    words = (
        f"{value:,} {name}" if isinstance(value, int) else f"{name} {_short(value)}" for name, value in values.items()
    )
    return ", ".join(list(words)[:MOST_METRICS])


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
