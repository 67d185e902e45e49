"""Progress on stderr: a bar on a terminal, otherwise a line every 10 s, and every 60 s after the first minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from dreamgen.text_escape import terminal_text

LINE_EVERY_S = 10.0
LATER_LINE_EVERY_S = 60.0  # after the first minute


def log(message: str) -> None:
    """Write a line to stderr; stdout is reserved for results."""
    print(terminal_text(message), file=sys.stderr, flush=True)


class Progress:
    """Counts finished items and shows the rate and the remaining time.

    Args:
        stage: Name at the start of the line.
        total: Number of items.
        unit: Name of the items, in the plural.
    """

    def __init__(self, stage: str, total: int, unit: str = "clips") -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = self.rejected = self.failed = 0
        self.note = ""
        self._start_s = self._shown_s = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def add(self, num_done: int = 1, *, rejected: int = 0, failed: int = 0, note: str = "") -> None:
        """Count finished items; `num_done` includes rejected and failed items."""
        self.done += num_done
        self.rejected += rejected
        self.failed += failed
        self.note = note or self.note
        now_s = time.monotonic()
        line_every_s = LINE_EVERY_S if now_s - self._start_s < LATER_LINE_EVERY_S else LATER_LINE_EVERY_S
        if self._terminal or now_s - self._shown_s >= line_every_s or self.done == self.total:
            self._shown_s = now_s
            self._show(now_s - self._start_s)

    def _show(self, elapsed_s: float) -> None:
        per_hour = self.done / elapsed_s * 3600 if elapsed_s > 0 else 0.0
        eta = duration((self.total - self.done) / per_hour * 3600) if per_hour else "?"
        text = f"{self.stage} {self.done}/{self.total} {self.unit}  {rate(per_hour)}  ETA {eta}"
        text += f"  rejected {self.rejected}" if self.rejected else ""
        text += f"  failed {self.failed}" if self.failed else ""
        text += f"  {self.note}" if self.note else ""
        text = terminal_text(text)
        if self._terminal:
            filled = 24 * self.done // max(self.total, 1)
            end = "\n" if self.done >= self.total else ""
            sys.stderr.write(f"\r\x1b[2K[{'#' * filled}{'.' * (24 - filled)}] {text}{end}")
            sys.stderr.flush()
        else:
            log(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._terminal and self.done < self.total:
            sys.stderr.write("\n")


def rate(per_hour: float) -> str:
    """Format a rate in the unit that gives a number from 1 to a few dozen: 12/h, 1.5/min, 29/s."""
    for unit, per_unit in (("s", 3600), ("min", 60)):
        if per_hour >= per_unit:
            value = per_hour / per_unit
            return f"{value:.1f}/{unit}" if value < 10 else f"{value:,.0f}/{unit}"
    return f"{per_hour:.1f}/h" if per_hour < 10 else f"{per_hour:.0f}/h"


def duration(seconds: float) -> str:
    """Format seconds for people: 45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
