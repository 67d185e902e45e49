"""A planar robot arm: kinematics, motion and contact, for the demonstrations of `dreamgen demo`.

Axes: T control periods, A = (shoulder, elbow, wrist, gripper). Meters, radians, seconds. x points right along the
table, z up from its top. Angles are relative to the previous link, from the horizontal, counterclockwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONTROL_FPS = 20
JOINT_NAMES = ("shoulder_rad", "elbow_rad", "wrist_rad", "gripper_m")
SHOULDER_XZ = (0.13, 0.30)
UPPER_ARM_M, FOREARM_M, HAND_M = 0.42, 0.38, 0.15
GRIPPER_OPEN_M = 0.10
BLOCK_M = 0.07
BIN_WIDTH_M, BIN_FLOOR_M = 0.15, 0.012
# A servo closes this share of the distance to its target in one control period.
TRACKING = 0.85
GRAVITY_M_S2 = 9.81


@dataclass(frozen=True)
class ArmScene:
    """Objects on the table: two blocks, one of them the target, and a bin, by color and position in meters."""

    block_color: str
    bin_color: str
    block_x: float
    bin_x: float
    other_color: str
    other_x: float

    @property
    def instruction(self) -> str:
        """Return the task in words."""
        return f"pick the {self.block_color} block from the table and place it in the {self.bin_color} bin"


@dataclass(frozen=True)
class ArmEpisode:
    """One demonstration as arrays.

    Args:
        scene: Objects on the table.
        state_TA: Measured joint angles and gripper opening, float32.
        action_TA: Servo targets at the same time, float32.
        block_T2: x and z of the target block's center, float64.
    """

    scene: ArmScene
    state_TA: np.ndarray
    action_TA: np.ndarray
    block_T2: np.ndarray


def joint_positions(joints: np.ndarray) -> np.ndarray:
    """Compute forward kinematics: the points (shoulder, elbow, wrist, fingertips).

    Args:
        joints: (shoulder, elbow, wrist, ...) in radians.

    Returns:
        Points in meters, shape (4, 2).
    """
    angles = np.cumsum(joints[:3])
    lengths = np.array([UPPER_ARM_M, FOREARM_M, HAND_M])
    steps = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(SHOULDER_XZ) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def inverse_kinematics(x: float, z: float, pitch_rad: float) -> np.ndarray:
    """Compute the joint angles that bring the fingertips to a point with the hand at a pitch, elbow up.

    The wrist lies one hand's length behind the fingertips; shoulder and elbow follow from the law of cosines.

    Args:
        x: Position of the fingertips in meters.
        z: Height of the fingertips in meters.
        pitch_rad: Direction of the hand; -pi/2 points down.

    Returns:
        (shoulder, elbow, wrist) in radians.

    Raises:
        ValueError: if the point is out of reach.
    """
    wrist_x = x - HAND_M * np.cos(pitch_rad) - SHOULDER_XZ[0]
    wrist_z = z - HAND_M * np.sin(pitch_rad) - SHOULDER_XZ[1]
    distance = np.hypot(wrist_x, wrist_z)
    cosine = (distance**2 - UPPER_ARM_M**2 - FOREARM_M**2) / (2 * UPPER_ARM_M * FOREARM_M)
    if not -1 <= cosine <= 1:
        raise ValueError(f"({x:.3f}, {z:.3f}) m is out of the arm's reach")
    elbow = -np.arccos(cosine)
    bend = np.arctan2(FOREARM_M * np.sin(elbow), UPPER_ARM_M + FOREARM_M * np.cos(elbow))
    shoulder = np.arctan2(wrist_z, wrist_x) - bend
    return np.array([shoulder, elbow, pitch_rad - shoulder - elbow])


def minimum_jerk(num_steps: int) -> np.ndarray:
    """Return the progress from 0 to 1 of a smooth reach: 10 s^3 - 15 s^4 + 6 s^5 (Flash and Hogan, 1985).

    Returns:
        float64, shape (num_steps,); excludes 0 and ends at 1.
    """
    s = np.arange(1, num_steps + 1) / num_steps
    return 10 * s**3 - 15 * s**4 + 6 * s**5


def pick_and_place(scene: ArmScene, rng: np.random.Generator) -> ArmEpisode:
    """Simulate approach, grasp, lift, carry, place and retreat; the arm tracks its targets, the block follows the hand.

    Args:
        scene: Objects on the table.
        rng: Draws pace, heights and start, so that no two demonstrations are the same.

    Returns:
        The episode, about four and a half seconds at `CONTROL_FPS`.
    """
    targets_TA = _planned_targets(scene, rng)
    state, block = targets_TA[0].copy(), np.array([scene.block_x, BLOCK_M / 2])
    held_offset, fall_speed = None, 0.0
    states, actions, blocks = [], [], []
    for action in targets_TA[1:]:
        states.append(state)
        actions.append(action)
        blocks.append(block)
        state = state + TRACKING * (action - state)
        tip = joint_positions(state)[3]
        # The fingers hold the block while they are closed to its width, once they are around it.
        closed = state[3] <= BLOCK_M + 1e-3
        near = np.abs(tip - block).max() < BLOCK_M / 2
        if not closed:
            held_offset = None
        elif held_offset is None and near:
            held_offset = block - tip
        if held_offset is not None:
            block, fall_speed = tip + held_offset, 0.0
        else:
            fall_speed += GRAVITY_M_S2 / CONTROL_FPS
            in_bin = abs(block[0] - scene.bin_x) < BIN_WIDTH_M / 2
            rest = BLOCK_M / 2 + (BIN_FLOOR_M if in_bin else 0.0)
            block = np.array([block[0], max(rest, block[1] - fall_speed / CONTROL_FPS)])
            fall_speed = 0.0 if block[1] == rest else fall_speed
    return ArmEpisode(
        scene, np.stack(states).astype(np.float32), np.stack(actions).astype(np.float32), np.stack(blocks)
    )


def _planned_targets(scene: ArmScene, rng: np.random.Generator) -> np.ndarray:
    """Return targets_TA through waypoints (x, z, pitch, gripper), each reached with a minimum-jerk profile."""
    down, opened, closed = -np.pi / 2, GRIPPER_OPEN_M, BLOCK_M - 0.004
    home = (0.54 + rng.uniform(-0.03, 0.03), 0.40 + rng.uniform(-0.03, 0.03), np.deg2rad(-65), opened)
    above, carry = 0.17 + rng.uniform(0, 0.03), 0.22 + rng.uniform(0, 0.05)
    grasp_z, place_z = BLOCK_M / 2, BIN_FLOOR_M + BLOCK_M / 2 + 0.012
    pace = rng.uniform(0.92, 1.08)
    waypoints = (
        (0.8, (scene.block_x, above, down, opened)),
        (0.5, (scene.block_x, grasp_z, down, opened)),
        (0.35, (scene.block_x, grasp_z, down, closed)),
        (0.45, (scene.block_x, carry, down, closed)),
        (0.8, (scene.bin_x, carry, down, closed)),
        (0.45, (scene.bin_x, place_z, down, closed)),
        (0.3, (scene.bin_x, place_z, down, opened)),
        (0.4, (scene.bin_x, carry, down, opened)),
        (0.7, home),
    )
    points = [np.array(home)]
    for duration_s, waypoint in waypoints:
        progress = minimum_jerk(round(duration_s * pace * CONTROL_FPS))[:, None]
        start = points[-1]
        points.extend(start + progress * (np.array(waypoint) - start))
    return np.stack([np.append(inverse_kinematics(*point[:3]), point[3]) for point in points])
