"""Statistics of an action or state vector, and the scaling to the network's outputs and back.

A dimension with two values in the demonstrations is predicted as a choice between these two, and one that never changes
keeps its value: neither gets a value in between.

Axes: T rows, D dimensions of one vector, P what the network predicts (dimensions that change).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class VectorStats:
    """Statistics of one vector, action or state, in the robot's units; one entry a dimension.

    Args:
        names: Names of the dimensions.
        mean: Mean over all training rows.
        std: Standard deviation over all training rows.
        low: Smallest value.
        high: Largest value.
        kinds: constant (one value), binary (two) or varied.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    kinds: tuple[str, ...]

    @classmethod
    def measure(cls, values_TD: np.ndarray, names: Sequence[str]) -> VectorStats:
        """Compute the statistics of training rows; if the number of names is wrong, they become dim_0, dim_1, ..."""
        dim = values_TD.shape[1]
        named = tuple(names) if len(names) == dim else tuple(f"dim_{i}" for i in range(dim))
        counts = [len(np.unique(values_TD[:, i])) for i in range(dim)]
        kinds = tuple({1: "constant", 2: "binary"}.get(count, "varied") for count in counts)
        wide_TD = values_TD.astype(np.float64)
        measures = (wide_TD.mean(axis=0), wide_TD.std(axis=0), wide_TD.min(axis=0), wide_TD.max(axis=0))
        mean, std, low, high = (tuple(measure.tolist()) for measure in measures)
        return cls(named, mean, std, low, high, kinds)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VectorStats:
        """Read the values of `asdict`."""
        return cls(**{name: tuple(entries) for name, entries in values.items()})

    def moving(self) -> np.ndarray:
        """Return the indices of the dimensions that are not constant, which the network predicts."""
        return np.flatnonzero([kind != "constant" for kind in self.kinds])

    def to_network(self, values_TD: np.ndarray) -> np.ndarray:
        """Return targets_TP, float32: zero mean and unit variance for varied dimensions, 0 or 1 for binary ones."""
        chosen = self.moving()
        mean, std, low, high = (np.asarray(x)[chosen] for x in (self.mean, self.std, self.low, self.high))
        binary = self.binary()[chosen]
        values_TP = values_TD[:, chosen].astype(np.float64)
        middle = (low + high) / 2
        return np.where(binary, values_TP > middle, (values_TP - mean) / std).astype(np.float32)

    def from_network(self, outputs_TP: np.ndarray) -> np.ndarray:
        """Return values_TD in the robot's units, float32, from mean outputs (for binary ones, the share of ones)."""
        mean, std, low, high = (np.asarray(x) for x in (self.mean, self.std, self.low, self.high))
        values_TD = np.tile(low, (len(outputs_TP), 1))
        chosen = self.moving()
        varied_TP = outputs_TP * std[chosen] + mean[chosen]
        voted_TP = np.where(outputs_TP >= 0.5, high[chosen], low[chosen])
        values_TD[:, chosen] = np.where(self.binary()[chosen], voted_TP, varied_TP)
        return values_TD.astype(np.float32)

    def binary(self) -> np.ndarray:
        """Return which dimensions take two values, bool, one a dimension."""
        return np.array([kind == "binary" for kind in self.kinds])
