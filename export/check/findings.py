"""What a check found: each finding names the file, the place, the value, what was expected and what comes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]
SHOWN_OF_A_KIND = 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dataset.

    Args:
        severity: error: a trainer fails or learns something false; warning: it may.
        check: Short name of the check, the same for all findings of a kind.
        file: Relative to the dataset.
        where: Row, episode or key within the file.
        value: What stands there.
        expected: What should.
        consequence: What a trainer makes of it.
    """

    severity: Severity
    check: str
    file: str
    where: str
    value: str
    expected: str
    consequence: str

    def __str__(self) -> str:
        place = f"{self.file}, {self.where}" if self.where else self.file
        return (
            f"{self.severity} [{self.check}] {place}: {self.value}; expected {self.expected}. "
            f"Consequence: {self.consequence}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON holds it."""
        return asdict(self)


class Findings:
    """Collects findings; of a kind that repeats, the first twenty are kept and the others counted."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[tuple[Severity, str]] = Counter()

    def error(self, check: str, file: str, where: str, value: object, expected: object, consequence: str) -> None:
        """Note an error; takes the fields of `Finding`."""
        self._add(Finding("error", check, str(file), where, _text(value), _text(expected), consequence))

    def warning(self, check: str, file: str, where: str, value: object, expected: object, consequence: str) -> None:
        """Note a warning; takes the fields of `Finding`."""
        self._add(Finding("warning", check, str(file), where, _text(value), _text(expected), consequence))

    def _add(self, finding: Finding) -> None:
        kind = (finding.severity, finding.check)
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN_OF_A_KIND:
            self._kept.append(finding)

    def all(self) -> list[Finding]:
        """Return the findings, errors first, with one for the rest of each kind that was cut short."""
        rest = [
            Finding(
                severity,
                check,
                "the dataset",
                "",
                f"{count - SHOWN_OF_A_KIND} more of this kind",
                "none",
                "as for those shown",
            )
            for (severity, check), count in self._counts.items()
            if count > SHOWN_OF_A_KIND
        ]
        return sorted([*self._kept, *rest], key=lambda finding: finding.severity)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
