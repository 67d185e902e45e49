"""Statistics of an action or state vector, and the scaling to the network's outputs and back.

A dimension with two values in the demonstrations is predicted as a choice between these two, one that never changes
keeps its value, and a rotation becomes six numbers: no dimension gets a value that the robot does not know.

Axes: T rows, D dimensions of one vector, P what the network predicts: the dimensions that change, then the rotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamgen.models.idm.rotations import Rotation, rotations_of

ROTATION_STD = 0.3  # by which the six numbers of a rotation are divided, so that a small turn is no large error


@dataclass(frozen=True)
class VectorStats:
    """Statistics of one vector, action or state, in the robot's units; one entry a dimension.

    Args:
        names: Names of the dimensions.
        mean: Mean over all training rows.
        std: Standard deviation over all training rows.
        low: Smallest value.
        high: Largest value.
        kinds: constant (one value), binary (two), rotation (a part of one that changes) or varied.
        groups: Dimensions of each part of the robot, from modality.json; one group of all without it.
        rotations: Dimensions that are rotations, from modality.json.
        limits: Smallest and largest value that may be written, from modality.json's `range`; None for no limit.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    kinds: tuple[str, ...]
    groups: Mapping[str, tuple[int, int]]
    rotations: tuple[Rotation, ...] = ()
    limits: tuple[tuple[float, float] | None, ...] = ()

    @classmethod
    def measure(
        cls, values_TD: np.ndarray, names: Sequence[str], parts: Mapping[str, Any] | None = None
    ) -> VectorStats:
        """Compute the statistics of training rows.

        Args:
            values_TD: All training rows.
            names: Names of the dimensions; if their number is wrong, they become dim_0, dim_1, ...
            parts: `action` or `state` of modality.json.
        """
        dim = values_TD.shape[1]
        named = tuple(names) if len(names) == dim else tuple(f"dim_{i}" for i in range(dim))
        parts = {name: part for name, part in (parts or {}).items() if 0 <= part.get("start", -1) < part["end"] <= dim}
        counts = [len(np.unique(values_TD[:, i])) for i in range(dim)]
        kinds = [{1: "constant", 2: "binary"}.get(count, "varied") for count in counts]
        rotations = tuple(r for r in rotations_of(parts, named) if any(kinds[d] != "constant" for d in r.dims))
        for d in (d for rotation in rotations for d in rotation.dims):
            kinds[d] = "rotation"
        limits: list[tuple[float, float] | None] = [None] * dim
        for part in parts.values():
            if (bounds := part.get("range")) and np.shape(bounds) == (2,):
                limits[part["start"] : part["end"]] = [(float(bounds[0]), float(bounds[1]))] * (
                    part["end"] - part["start"]
                )
        wide_TD = values_TD.astype(np.float64)
        measures = (wide_TD.mean(axis=0), wide_TD.std(axis=0), wide_TD.min(axis=0), wide_TD.max(axis=0))
        mean, std, low, high = (tuple(measure.tolist()) for measure in measures)
        groups = {name: (part["start"], part["end"]) for name, part in parts.items()} or {"all": (0, dim)}
        return cls(named, mean, std, low, high, tuple(kinds), groups, rotations, tuple(limits))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VectorStats:
        """Read the values of `asdict`."""
        plain = {name: tuple(values[name]) for name in ("names", "mean", "std", "low", "high", "kinds")}
        groups = {name: (int(start), int(stop)) for name, (start, stop) in values["groups"].items()}
        rotations = tuple(Rotation(**rotation) for rotation in values["rotations"])
        limits = tuple(bounds and (float(bounds[0]), float(bounds[1])) for bounds in values["limits"])
        return cls(**plain, groups=groups, rotations=rotations, limits=limits)

    def moving(self) -> np.ndarray:
        """Return the indices of the dimensions that are not constant."""
        return np.flatnonzero([kind != "constant" for kind in self.kinds])

    def binary(self) -> np.ndarray:
        """Return which dimensions take two values, bool, one a dimension."""
        return np.array([kind == "binary" for kind in self.kinds])

    def binary_outputs(self) -> np.ndarray:
        """Return which outputs of the network are binary, bool, shape (P,)."""
        return np.concatenate([self.binary()[self._scalars()], np.zeros(6 * len(self.rotations), bool)])

    def to_network(self, values_TD: np.ndarray) -> np.ndarray:
        """Return targets_TP, float32: zero mean and unit variance for varied dimensions, 0 or 1 for binary ones."""
        chosen = self._scalars()
        mean, std, low, high = (np.asarray(x)[chosen] for x in (self.mean, self.std, self.low, self.high))
        values_TP = values_TD[:, chosen].astype(np.float64)
        scalars_TP = np.where(self.binary()[chosen], values_TP > (low + high) / 2, (values_TP - mean) / std)
        sixes = [r.to_six(values_TD[:, r.dims].astype(np.float64)) / ROTATION_STD for r in self.rotations]
        return np.concatenate([scalars_TP, *sixes], axis=1).astype(np.float32)

    def from_network(self, outputs_TP: np.ndarray) -> np.ndarray:
        """Return values_TD in the robot's units, float32, from mean outputs (for binary ones, the probability of 1)."""
        mean, std, low, high = (np.asarray(x) for x in (self.mean, self.std, self.low, self.high))
        values_TD = np.tile(low, (len(outputs_TP), 1))
        chosen = self._scalars()
        scalars_TP = outputs_TP[:, : len(chosen)]
        varied_TP = scalars_TP * std[chosen] + mean[chosen]
        voted_TP = np.where(scalars_TP >= 0.5, high[chosen], low[chosen])
        values_TD[:, chosen] = np.where(self.binary()[chosen], voted_TP, varied_TP)
        for number, rotation in enumerate(self.rotations):
            at = len(chosen) + 6 * number
            values_TD[:, rotation.dims] = rotation.from_six(outputs_TP[:, at : at + 6].astype(np.float64))
        for d, bounds in enumerate(self.limits):
            if bounds is not None:
                values_TD[:, d] = values_TD[:, d].clip(*bounds)
        return values_TD.astype(np.float32)

    def std_from_network(self, std_TP: np.ndarray) -> np.ndarray:
        """Return the standard deviations of values_TD in the robot's units from those of the network's outputs.

        A rotation's numbers get the deviation of its six numbers, root mean square; near the identity that is about an
        angle in radians.
        """
        result_TD = np.zeros((len(std_TP), len(self.names)), np.float32)
        chosen = self._scalars()
        unit_D = np.where(self.binary(), np.subtract(self.high, self.low), self.std)
        result_TD[:, chosen] = std_TP[:, : len(chosen)] * unit_D[chosen]
        for number, rotation in enumerate(self.rotations):
            at = len(chosen) + 6 * number
            result_TD[:, rotation.dims] = ROTATION_STD * np.sqrt(
                (std_TP[:, at : at + 6] ** 2).mean(axis=1, keepdims=True)
            )
        return result_TD

    def group_dims(self) -> dict[str, list[int]]:
        """Return the dimensions of each part of the robot."""
        return {name: [*range(start, stop)] for name, (start, stop) in self.groups.items()}

    def _scalars(self) -> np.ndarray:
        return np.flatnonzero([kind in ("varied", "binary") for kind in self.kinds])
