"""How good the run's inverse-dynamics model is on held-out demonstrations, beside baselines that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreamgen.run.files import read_json
from dreamgen.run.run_folder import RunFolder

CONFIG_NAME = "config.json"
BASELINES = {
    "mean": "the demonstrations' mean", "nearest_frame": "the nearest training frame", "state_held": "the state held",
}  # fmt: skip
# Held-out episodes that nearly repeat training episodes make the nearest frame exact, which says nothing about clips
# from new starts. A model with this R^2 is not called weak for it.
GOOD_R2 = 0.9


@dataclass(frozen=True)
class Measured:
    """Errors over the dimensions that move.

    Args:
        mae: Mean absolute error, in the robot's units.
        r2: 1 is perfect, 0 is the mean of the training demonstrations; None where it is not defined.
        mae_per_dim: Mean absolute error of each dimension, also of those that do not move; empty if it is not recorded.
    """

    mae: float
    r2: float | None = None
    mae_per_dim: tuple[float, ...] = ()

    @classmethod
    def of(cls, recorded: Any) -> Measured | None:
        """Read what the model's configuration records; None where it holds no error."""
        mae = recorded.get("mae") if isinstance(recorded, Mapping) else None
        if not isinstance(mae, int | float):
            return None
        return cls(float(mae), recorded.get("r2"), tuple(map(float, recorded.get("mae_per_dim") or ())))

    def text(self) -> str:
        """Return both measures."""
        return f"{self.mae:.4g}" + ("" if self.r2 is None else f" (R^2 {self.r2:.2f})")

    def is_no_better_than(self, other: Measured) -> bool:
        """Return whether MAE or R^2 is no better than that of `other`."""
        return self.mae >= other.mae or (self.r2 is not None and other.r2 is not None and self.r2 <= other.r2)


@dataclass(frozen=True)
class IdmError:
    """The error of an inverse-dynamics model's actions and states on held-out episodes.

    Args:
        action: Of the model's actions.
        how: Which episodes were held out, in words.
        baselines: The same of each baseline that was recorded.
        state: Of the model's states; None for a model that predicts none.
    """

    action: Measured
    how: str = ""
    baselines: Mapping[str, Measured] = field(default_factory=dict)
    state: Measured | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> IdmError | None:
        """Read config.json of a model; None if no error was measured."""
        held_out = config.get("held_out")
        held_out = held_out if isinstance(held_out, Mapping) else {}
        recorded = held_out.get("action") or {}
        if (action := Measured.of(recorded)) is None:
            return None
        baselines = recorded.get("baselines") or {}
        known = {name: found for name, value in baselines.items() if (found := Measured.of(value)) is not None}
        return cls(action, str(held_out.get("how") or ""), known, Measured.of(held_out.get("state")))

    @classmethod
    def of_run(cls, run: RunFolder) -> IdmError | None:
        """Read that of a run's model; None without a model or a measured error."""
        path = run.idm / CONFIG_NAME
        return _read(path, path.stat().st_mtime_ns) if path.is_file() else None

    @property
    def not_beaten(self) -> list[str]:
        """The baselines that the model is no better than, in words; its labels are weak if there is one."""
        is_good = self.action.r2 is not None and self.action.r2 >= GOOD_R2
        return [
            _in_words(name) for name, value in self.baselines.items()
            if self.action.is_no_better_than(value) and not (is_good and name == "nearest_frame")
        ]  # fmt: skip

    def text(self) -> str:
        """Return the error beside those of the baselines."""
        how = f" ({self.how})" if self.how else ""
        r2 = "" if self.action.r2 is None else f", R^2 {self.action.r2:.2f} (1 is perfect)"
        others = ", ".join(f"{_in_words(name)} {value.text()}" for name, value in self.baselines.items())
        return f"held-out error{how}: {self.action.mae:.4g} in the robot's units{r2}" + (
            f"; {others}" if others else ""
        )

    def warning(self) -> str | None:
        """Return that the model's labels are weak; None if they are not."""
        if not self.not_beaten:
            return None
        beaten = " or ".join(self.not_beaten)
        return f"the model is NO BETTER than {beaten}: add demonstrations or steps before using its labels"


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> IdmError | None:
    return IdmError.of_config(read_json(path))


def _in_words(baseline: str) -> str:
    return BASELINES.get(baseline, baseline.replace("_", " "))
