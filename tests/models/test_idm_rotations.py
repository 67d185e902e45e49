"""Rotations: six continuous numbers for the network, the robot's own representation in a label."""

import numpy as np
import pytest

from dreamgen.models.idm.rotations import SIZES, Rotation, rotations_of
from dreamgen.models.idm.vector_stats import VectorStats


def random_six(num: int = 50) -> np.ndarray:
    """Return the first two columns of random rotation matrices."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(num, 3, 3)))[0]
    q[:, :, 2] *= np.linalg.det(q)[:, None]
    return np.concatenate([q[:, :, 0], q[:, :, 1]], axis=1)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("scalar_last", [False, True])
def test_each_representation_comes_back_as_the_same_rotation(kind, scalar_last):
    rotation = Rotation(0, kind, scalar_last)
    values_TQ = rotation.from_six(random_six())
    assert values_TQ.shape == (50, SIZES[kind])
    np.testing.assert_allclose(rotation.to_six(values_TQ), random_six(), atol=1e-9)


def test_known_rotations():
    turn = np.array([[0.0, 0.0, np.pi / 2]])  # about z: x becomes y, y becomes -x
    six = [[0, 1, 0, -1, 0, 0]]
    np.testing.assert_allclose(Rotation(0, "axis_angle").to_six(turn), six, atol=1e-12)
    np.testing.assert_allclose(Rotation(0, "euler_angles_rpy").to_six(turn), six, atol=1e-12)
    np.testing.assert_allclose(Rotation(0, "euler_angles_ypr").to_six(turn[:, ::-1]), six, atol=1e-12)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(Rotation(0, "quaternion").to_six(np.array([[half, 0, 0, half]])), six, atol=1e-12)
    np.testing.assert_allclose(Rotation(0, "quaternion", True).to_six(np.array([[0, 0, half, half]])), six, atol=1e-12)
    np.testing.assert_allclose(Rotation(0, "axis_angle").to_six(np.zeros((1, 3))), [[1, 0, 0, 0, 1, 0]])


def test_quaternions_of_a_trajectory_do_not_change_their_sign():
    angles = np.linspace(0, 2 * np.pi, 60)
    turns = np.stack([np.cos(angles), np.sin(angles), 0 * angles, -np.sin(angles), np.cos(angles), 0 * angles], axis=1)
    quaternions = Rotation(0, "quaternion").from_six(turns)
    assert np.abs(np.diff(quaternions, axis=0)).max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1)


def test_modality_says_what_is_a_rotation_and_what_may_be_written():
    names = ("x", "y", "z", "qx", "qy", "qz", "qw", "grip")
    parts = {
        "position": {"start": 0, "end": 3, "range": [-0.5, 0.5]},
        "orientation": {"start": 3, "end": 7, "rotation_type": "quaternion"},
        "gripper": {"start": 7, "end": 8, "rotation_type": "axis_angle"},  # the wrong size
    }
    assert rotations_of(parts, names) == (Rotation(3, "quaternion", True),)
    random = np.random.default_rng(0)
    values_TD = np.zeros((40, 8))
    values_TD[:, :3] = random.normal(size=(40, 3))
    values_TD[:, 3:7] = Rotation(0, "quaternion", True).from_six(random_six(40))
    values_TD[:, 7] = random.integers(0, 2, 40)
    stats = VectorStats.measure(values_TD, names, parts)
    assert stats.kinds == ("varied",) * 3 + ("rotation",) * 4 + ("binary",)
    assert stats.group_dims() == {"position": [0, 1, 2], "orientation": [3, 4, 5, 6], "gripper": [7]}
    outputs_TP = stats.to_network(values_TD)
    assert outputs_TP.shape == (40, 3 + 1 + 6)
    assert stats.binary_outputs().tolist() == [False] * 3 + [True] + [False] * 6
    back_TD = stats.from_network(outputs_TP)
    np.testing.assert_allclose(back_TD[:, :3], values_TD[:, :3].clip(-0.5, 0.5), atol=1e-6)
    np.testing.assert_allclose(back_TD[:, 3:7], values_TD[:, 3:7], atol=1e-5)
    np.testing.assert_array_equal(back_TD[:, 7], values_TD[:, 7])
    std_TD = stats.std_from_network(np.ones((40, 10)))
    assert (std_TD[:, 3:7] == std_TD[0, 3]).all() and (std_TD[:, 7] == 1).all()


def test_a_rotation_that_never_changes_stays():
    values_TD = np.tile([[1.0, 0, 0, 0]], (5, 1))
    stats = VectorStats.measure(values_TD, (), {"turn": {"start": 0, "end": 4, "rotation_type": "quaternion"}})
    assert stats.rotations == () and len(stats.moving()) == 0
