"""What a check found: file, place, value, expected value and consequence of each defect."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from export.check.codes import Severity, code_named

SHOWN_OF_A_KIND = 20


@dataclass(frozen=True)
class Finding:
    """A defect of a dataset.

    Args:
        severity: error: training fails or learns something wrong; warning: it may.
        code: A name in `CODES`, the same for all findings of a kind.
        file: Relative to the dataset.
        where: Row, episode or key within the file.
        value: The value found.
        expected: The value expected.
        consequence: The effect on training.
        repair: What to do about it; "" if there is no repair.
        fixable: Whether `--fix` can repair it.
    """

    severity: Severity
    code: str
    file: str
    where: str
    value: str
    expected: str
    consequence: str
    repair: str = ""
    fixable: bool = False

    def __str__(self) -> str:
        place = f"{self.file}, {self.where}" if self.where else self.file
        repair = f" Repair: {self.repair}{' (--fix)' if self.fixable else ''}." if self.repair else ""
        return (
            f"{self.severity} [{self.code}] {place}: {self.value}; expected {self.expected}. "
            f"Consequence: {self.consequence}.{repair}"
        )


class Findings:
    """Collects findings. Keeps the first twenty of a kind and counts the rest."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[tuple[Severity, str]] = Counter()

    def add(
        self, code: str, file: str, where: str, value: object, expected: object, *,
        fatal: bool = True, severity: Severity | None = None, fixable: bool | None = None,
    ) -> None:  # fmt: skip
        """Add a finding.

        Args:
            code: A name in `CODES`, or in the codes of a registered format.
            file: Relative to the dataset.
            where: Row, episode or key within the file.
            value: The value found.
            expected: The value expected.
            fatal: Part of `FindingSink`; a check reports all findings alike.
            severity: The code's own if None.
            fixable: The code's own if None.
        """
        kind = code_named(code)
        self._add(
            Finding(
                severity or kind.severity, code, str(file), where, _text(value), _text(expected), kind.consequence,
                kind.repair, kind.fixable if fixable is None else fixable,
            )
        )  # fmt: skip

    def merge(self, other: Findings) -> None:
        """Add the findings of another process."""
        for finding in other._kept:
            self._add(finding)
        for kind, count in other._counts.items():
            self._counts[kind] += max(0, count - SHOWN_OF_A_KIND)  # those that were only counted

    def _add(self, finding: Finding) -> None:
        if finding in self._kept:  # found by several processes, or when rows and when pictures were read
            return
        kind = (finding.severity, finding.code)
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN_OF_A_KIND:
            self._kept.append(finding)

    def num(self, severity: Severity) -> int:
        """Return the number of findings, including those that were only counted."""
        return sum(count for (of, _), count in self._counts.items() if of == severity)

    def all(self) -> list[Finding]:
        """Return the findings, errors first, with one more for the rest of each kind that has too many."""
        rest = [
            Finding(
                severity, code, "the dataset", "", f"{count - SHOWN_OF_A_KIND} more of this kind", "none",
                "as for those shown", code_named(code).repair, code_named(code).fixable,
            )
            for (severity, code), count in self._counts.items()
            if count > SHOWN_OF_A_KIND
        ]  # fmt: skip
        return sorted([*self._kept, *rest], key=lambda finding: finding.severity)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
