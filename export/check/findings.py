"""Findings of a check: each names the file, the place, the value, what was expected and the consequence."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from export.check.codes import CODES, Severity

SHOWN_OF_A_KIND = 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dataset.

    Args:
        severity: error: training fails or learns something wrong; warning: it may.
        code: A key of `CODES`, the same for all findings of a kind.
        file: Relative to the dataset.
        where: Row, episode or key within the file.
        value: What it holds.
        expected: What it should hold.
        consequence: What happens in training.
        repair: What to do about it; "" where there is no repair.
        fixable: `--fix` can do it.
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

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON holds it."""
        return asdict(self)


class Findings:
    """Collects findings; of a kind that repeats, the first twenty are kept and the others counted."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[tuple[Severity, str]] = Counter()

    def add(
        self, code: str, file: str, where: str, value: object, expected: object, *,
        fatal: bool = True, severity: Severity | None = None, fixable: bool | None = None,
    ) -> None:  # fmt: skip
        """Add a finding; severity and whether `--fix` repairs it are the code's unless given.

        Args:
            code: A key of `CODES`.
            file: Relative to the dataset.
            where: Row, episode or key within the file.
            value: What it holds.
            expected: What it should hold.
            fatal: For readers that raise on findings; not used here.
            severity: Where this one is milder or graver than its code.
            fixable: Where this one can or cannot be repaired, unlike others of its code.
        """
        kind = CODES[code]
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
            self._counts[kind] += max(0, count - SHOWN_OF_A_KIND)  # those that were only counted there

    def _add(self, finding: Finding) -> None:
        kind = (finding.severity, finding.code)
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN_OF_A_KIND:
            self._kept.append(finding)

    def num(self, severity: Severity) -> int:
        """Return how many findings there are, those that are only counted among them."""
        return sum(count for (of, _), count in self._counts.items() if of == severity)

    def all(self) -> list[Finding]:
        """Return the findings, errors first, with one for the rest of each kind that was cut short."""
        rest = [
            Finding(
                severity, code, "the dataset", "", f"{count - SHOWN_OF_A_KIND} more of this kind", "none",
                "as for those shown", CODES[code].repair, CODES[code].fixable,
            )
            for (severity, code), count in self._counts.items()
            if count > SHOWN_OF_A_KIND
        ]  # fmt: skip
        return sorted([*self._kept, *rest], key=lambda finding: finding.severity)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
