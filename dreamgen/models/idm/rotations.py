"""Rotations in a continuous form: six numbers instead of angles or quaternions, which jump or have two signs.

The six numbers are the first two columns of the rotation matrix (Zhou et al., 2019, "On the Continuity of Rotation
Representations in Neural Networks"). `modality.json` says which dimensions are a rotation, by `rotation_type`.

Axes: T rows, Q numbers of the robot's representation. Angles are in radians.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZES = {"quaternion": 4, "axis_angle": 3, "euler_angles_rpy": 3, "euler_angles_ypr": 3, "rotation_6d": 6, "matrix": 9}
SMALL_RAD = 1e-8


@dataclass(frozen=True)
class Rotation:
    """Dimensions of a vector that are one rotation.

    Args:
        start: First dimension.
        kind: Their representation, a key of `SIZES`; a quaternion is w, x, y, z, or x, y, z, w if the names say so.
        scalar_last: Of a quaternion: whether w is the last number.
    """

    start: int
    kind: str
    scalar_last: bool = False

    @property
    def dims(self) -> range:
        """Return the dimensions."""
        return range(self.start, self.start + SIZES[self.kind])

    def to_six(self, values_TQ: np.ndarray) -> np.ndarray:
        """Return the first two columns of the matrices, shape (T, 6), -1..1."""
        if self.kind == "rotation_6d":
            return values_TQ
        matrix_T33 = _matrices(values_TQ, self.kind, self.scalar_last)
        return np.concatenate([matrix_T33[:, :, 0], matrix_T33[:, :, 1]], axis=1)

    def from_six(self, six_T6: np.ndarray) -> np.ndarray:
        """Return the nearest rotations in the robot's representation, by Gram-Schmidt.

        Quaternions follow each other with the same sign, beginning with w >= 0.
        """
        x_T3 = _unit(six_T6[:, :3])
        y_T3 = _unit(six_T6[:, 3:] - (six_T6[:, 3:] * x_T3).sum(axis=1, keepdims=True) * x_T3)
        if self.kind == "rotation_6d":
            return np.concatenate([x_T3, y_T3], axis=1)
        return _values(np.stack([x_T3, y_T3, np.cross(x_T3, y_T3)], axis=2), self.kind, self.scalar_last)


def rotations_of(parts: Mapping[str, Mapping[str, Any]] | None, names: tuple[str, ...]) -> tuple[Rotation, ...]:
    """Return the rotations that the parts of a vector declare by `rotation_type`.

    Args:
        parts: `state` or `action` of modality.json.
        names: Of the vector's dimensions; a quaternion whose last name ends in w has its scalar last.

    Returns:
        Those of a known type and of the right size.
    """
    found = []
    for part in (parts or {}).values():
        kind = str(part.get("rotation_type") or "").lower()
        kind = {"euler_angles": "euler_angles_rpy"}.get(kind, kind)
        start, stop = part.get("start"), part.get("end")
        if kind in SIZES and isinstance(start, int) and isinstance(stop, int) and stop - start == SIZES[kind]:
            last = kind == "quaternion" and names[stop - 1].lower().endswith("w")
            found.append(Rotation(start, kind, last))
    return tuple(found)


def _matrices(values_TQ: np.ndarray, kind: str, scalar_last: bool) -> np.ndarray:
    if kind == "matrix":
        return values_TQ.reshape(-1, 3, 3)
    if kind == "axis_angle":
        angle_T1 = np.linalg.norm(values_TQ, axis=1, keepdims=True)
        half_T1 = angle_T1 / 2
        sine_T1 = np.where(angle_T1 > SMALL_RAD, np.sin(half_T1) / np.maximum(angle_T1, SMALL_RAD), 0.5)
        return _quaternion_matrices(np.concatenate([np.cos(half_T1), values_TQ * sine_T1], axis=1))
    if kind == "quaternion":
        return _quaternion_matrices(np.roll(values_TQ, 1, axis=1) if scalar_last else values_TQ)
    roll, pitch, yaw = values_TQ.T if kind == "euler_angles_rpy" else values_TQ.T[::-1]
    return _about(yaw, 2) @ _about(pitch, 1) @ _about(roll, 0)


def _values(matrix_T33: np.ndarray, kind: str, scalar_last: bool) -> np.ndarray:
    if kind == "matrix":
        return matrix_T33.reshape(-1, 9)
    if kind.startswith("euler"):
        roll = np.arctan2(matrix_T33[:, 2, 1], matrix_T33[:, 2, 2])
        pitch = -np.arcsin(np.clip(matrix_T33[:, 2, 0], -1, 1))
        yaw = np.arctan2(matrix_T33[:, 1, 0], matrix_T33[:, 0, 0])
        return np.stack([roll, pitch, yaw] if kind == "euler_angles_rpy" else [yaw, pitch, roll], axis=1)
    quaternion_T4 = _quaternions(matrix_T33)
    if kind == "axis_angle":
        norm_T1 = np.linalg.norm(quaternion_T4[:, 1:], axis=1, keepdims=True)
        angle_T1 = 2 * np.arctan2(norm_T1, quaternion_T4[:, :1])
        scale_T1 = np.where(norm_T1 > SMALL_RAD, angle_T1 / np.maximum(norm_T1, SMALL_RAD), 2.0)
        return quaternion_T4[:, 1:] * scale_T1
    turns = np.sign((quaternion_T4[1:] * quaternion_T4[:-1]).sum(axis=1))
    signs_T = np.concatenate([[1.0], np.cumprod(np.where(turns < 0, -1.0, 1.0))])
    quaternion_T4 = quaternion_T4 * signs_T[:, None]
    return np.roll(quaternion_T4, -1, axis=1) if scalar_last else quaternion_T4


def _quaternion_matrices(quaternion_T4: np.ndarray) -> np.ndarray:
    w, x, y, z = _unit(quaternion_T4).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _quaternions(matrix_T33: np.ndarray) -> np.ndarray:
    """Return w, x, y, z with w >= 0: the eigenvector of Bar-Itzhack (2000), which is exact for a rotation matrix."""
    m = matrix_T33
    xx, yy, zz = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = [[xx + yy + zz, wx, wy, wz], [wx, xx - yy - zz, xy, xz], [wy, xy, yy - xx - zz, yz],
            [wz, xz, yz, zz - xx - yy]]  # fmt: skip
    quaternion_T4 = np.linalg.eigh(np.stack([np.stack(row, axis=1) for row in rows], axis=1))[1][:, :, -1]
    return quaternion_T4 * np.where(quaternion_T4[:, :1] < 0, -1.0, 1.0)


def _about(angle_T: np.ndarray, axis: int) -> np.ndarray:
    matrix_T33 = np.tile(np.eye(3), (len(angle_T), 1, 1))
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix_T33[:, a, a] = matrix_T33[:, b, b] = np.cos(angle_T)
    matrix_T33[:, b, a], matrix_T33[:, a, b] = np.sin(angle_T), -np.sin(angle_T)
    return matrix_T33


def _unit(values_TQ: np.ndarray) -> np.ndarray:
    return values_TQ / np.maximum(np.linalg.norm(values_TQ, axis=1, keepdims=True), 1e-12)
