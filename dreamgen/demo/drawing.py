"""Camera images of the planar arm, drawn with OpenCV.

Axes: H height, W width, C channels. A `frame_HWC` is uint8, 0-255, RGB. `_px` converts meters to pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from dreamgen.demo.arm import BIN_FLOOR_M, BIN_WIDTH_M, BLOCK_M, GRIPPER_OPEN_M, ArmEpisode, joint_positions

SIZE_PX = 256
OVERSAMPLE = 3  # drawn larger and reduced, so that edges are smooth and motion below a pixel is visible
PX_PER_M = SIZE_PX * OVERSAMPLE
TABLE_Z_PX = round(0.80 * PX_PER_M)  # row of the line on the table on which objects stand

type Color = tuple[int, ...]
type Point = Sequence[float] | np.ndarray

COLORS: dict[str, Color] = {
    "red": (214, 57, 50),
    "green": (62, 158, 84),
    "yellow": (240, 196, 48),
    "purple": (134, 84, 184),
    "orange": (237, 130, 44),
    "blue": (52, 110, 196),
    "white": (236, 236, 232),
    "black": (58, 60, 66),
    "pink": (232, 130, 164),
}
WALL_TOP, WALL_BOTTOM = (226, 231, 236), (200, 208, 216)
TABLE_FAR, TABLE_NEAR, TABLE_EDGE = (205, 178, 142), (188, 158, 120), (142, 114, 82)
ARM, ARM_LIGHT, JOINT, METAL = (84, 96, 112), (122, 136, 154), (246, 158, 66), (150, 158, 168)
DEPTH_PX = round(0.022 * PX_PER_M)  # visible depth of a block's top and a bin's back: the camera looks down a little


def draw_episode(episode: ArmEpisode) -> Iterator[np.ndarray]:
    """Draw the camera image of each control period.

    Yields:
        frame_HWC, uint8, 0-255, RGB, 256 x 256.
    """
    background = _draw_background()
    for state, block in zip(episode.state_TA, episode.block_T2, strict=True):
        canvas = background.copy()
        _draw_scene(canvas, episode, state.astype(np.float64), block)
        yield cv2.resize(canvas, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)


def _draw_background() -> np.ndarray:
    canvas = np.empty((PX_PER_M, PX_PER_M, 3), np.uint8)
    far_px, near_px = TABLE_Z_PX - round(0.10 * PX_PER_M), TABLE_Z_PX + round(0.10 * PX_PER_M)
    canvas[:far_px] = _gradient(WALL_TOP, WALL_BOTTOM, far_px)
    canvas[far_px:near_px] = _gradient(TABLE_FAR, TABLE_NEAR, near_px - far_px)
    canvas[near_px:] = _gradient(TABLE_EDGE, _shade(TABLE_EDGE, 0.72), PX_PER_M - near_px)
    canvas[far_px - 4 : far_px] = _shade(TABLE_FAR, 0.82)
    return canvas


def _draw_scene(canvas: np.ndarray, episode: ArmEpisode, state: np.ndarray, block: np.ndarray) -> None:
    scene = episode.scene
    points = joint_positions(state)
    in_bin = abs(block[0] - scene.bin_x) < BIN_WIDTH_M / 2 and block[1] < 0.12
    _shadow(canvas, scene.bin_x, BIN_WIDTH_M * 0.6, 0.30)
    _shadow(canvas, scene.other_x, BLOCK_M * 0.7, 0.30)
    if not in_bin:
        _shadow(canvas, block[0], BLOCK_M * 0.7, 0.30 / (1 + 8 * max(block[1] - BLOCK_M / 2, 0)))
    _shadow(canvas, points[3, 0], 0.05, 0.14 / (1 + 10 * max(points[3, 1], 0)))
    _draw_bin_back(canvas, scene.bin_x, COLORS[scene.bin_color])
    _draw_block(canvas, scene.other_x, BLOCK_M / 2, COLORS[scene.other_color])
    _draw_base(canvas, points[0])
    _capsule(canvas, points[0], points[1], 0.044, ARM, ARM_LIGHT)
    _capsule(canvas, points[1], points[2], 0.036, ARM, ARM_LIGHT)
    _draw_hand(canvas, points, state[3], block, COLORS[scene.block_color])
    for point, radius_m in zip(points[:3], (0.034, 0.029, 0.022), strict=True):
        cv2.circle(canvas, _px(point), round(radius_m * PX_PER_M), _shade(ARM, 0.7), -1, cv2.LINE_AA)
        cv2.circle(canvas, _px(point), round(radius_m * 0.62 * PX_PER_M), JOINT, -1, cv2.LINE_AA)
    _draw_bin_front(canvas, scene.bin_x, COLORS[scene.bin_color])


def _draw_base(canvas: np.ndarray, shoulder: np.ndarray) -> None:
    x, height = shoulder
    _shadow(canvas, x, 0.13, 0.35)
    _polygon(canvas, [(x - 0.05, height), (x + 0.05, height), (x + 0.065, 0.02), (x - 0.065, 0.02)], _shade(ARM, 0.9))
    _polygon(canvas, [(x - 0.05, height), (x - 0.015, height), (x - 0.02, 0.02), (x - 0.065, 0.02)], ARM_LIGHT)
    _polygon(canvas, [(x - 0.095, 0.03), (x + 0.095, 0.03), (x + 0.105, -0.012), (x - 0.105, -0.012)], _shade(ARM, 0.6))


def _draw_hand(canvas: np.ndarray, points: np.ndarray, opening_m: float, block: np.ndarray, color: Color) -> None:
    wrist, tip = points[2], points[3]
    along = (tip - wrist) / np.linalg.norm(tip - wrist)
    across = np.array([-along[1], along[0]])
    palm = tip - 0.082 * along
    _capsule(canvas, wrist, palm, 0.022, _shade(METAL, 0.85), METAL)
    _draw_block(canvas, block[0], block[1], color)
    half = GRIPPER_OPEN_M / 2 + 0.016
    corners = [palm + side * half * across + depth * along for side, depth in ((-1, 0), (1, 0), (1, 0.02), (-1, 0.02))]
    _polygon(canvas, corners, _shade(ARM, 0.7))
    for side in (-1, 1):
        inner, outer = side * opening_m / 2, side * (opening_m / 2 + 0.013)
        finger = [palm + inner * across, palm + outer * across, tip + outer * across, tip + inner * across]
        finger[2:] = [point + 0.014 * along for point in finger[2:]]
        _polygon(canvas, finger, METAL if side < 0 else _shade(METAL, 0.82))


def _draw_block(canvas: np.ndarray, x: float, z: float, color: Color) -> None:
    half, depth, narrower = BLOCK_M / 2, DEPTH_PX / PX_PER_M, 0.006
    front = [(x - half, z + half), (x + half, z + half)]
    back = [(x + half - narrower, z + half + depth), (x - half + narrower, z + half + depth)]
    _polygon(canvas, front + back, _shade(color, 1.22))
    _rectangle(canvas, x, half, z - half, z + half, color)
    _rectangle(canvas, x, half, z - half, z - half + 0.008, _shade(color, 0.8))


def _draw_bin_back(canvas: np.ndarray, x: float, color: Color) -> None:
    half = BIN_WIDTH_M / 2
    _rectangle(canvas, x, half, 0.0, 0.075, _shade(color, 0.62))
    _rectangle(canvas, x, half - 0.01, BIN_FLOOR_M, 0.067, _shade(color, 0.5))


def _draw_bin_front(canvas: np.ndarray, x: float, color: Color) -> None:
    half = BIN_WIDTH_M / 2 + 0.004
    _rectangle(canvas, x, half, -0.02, 0.030, color)
    _rectangle(canvas, x, half, 0.026, 0.034, _shade(color, 1.25))


def _capsule(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, width_m: float, color: Color, light: Color
) -> None:
    cv2.line(canvas, _px(start), _px(end), color, round(width_m * PX_PER_M), cv2.LINE_AA)
    lift = np.array([0.0, width_m * 0.22])
    cv2.line(canvas, _px(start + lift), _px(end + lift), light, round(width_m * 0.3 * PX_PER_M), cv2.LINE_AA)


def _polygon(canvas: np.ndarray, points: Sequence[Point], color: Color) -> None:
    cv2.fillPoly(canvas, [np.array([_px(point) for point in points], np.int32)], color, cv2.LINE_AA)


def _rectangle(canvas: np.ndarray, x: float, half_width_m: float, bottom_m: float, top_m: float, color: Color) -> None:
    left, right = x - half_width_m, x + half_width_m
    _polygon(canvas, [(left, bottom_m), (right, bottom_m), (right, top_m), (left, top_m)], color)


def _shadow(canvas: np.ndarray, x: float, half_width_m: float, strength: float) -> None:
    center, radius_px = _px((x, -0.008)), round(half_width_m * PX_PER_M)
    top, bottom = center[1] - radius_px, center[1] + radius_px
    left, right = max(center[0] - 2 * radius_px, 0), min(center[0] + 2 * radius_px, PX_PER_M)
    patch = canvas[top:bottom, left:right]
    rows, columns = np.mgrid[top:bottom, left:right]
    distance = ((columns - center[0]) / radius_px) ** 2 + ((rows - center[1]) / (0.28 * radius_px)) ** 2
    patch[:] = (patch * (1 - strength * np.exp(-1.6 * distance))[..., None]).astype(np.uint8)


def _px(point: Point) -> tuple[int, int]:
    return round(point[0] * PX_PER_M), TABLE_Z_PX - round(point[1] * PX_PER_M)


def _shade(color: Color, factor: float) -> Color:
    return tuple(min(255, round(value * factor)) for value in color)


def _gradient(start: Color, end: Color, num_rows: int) -> np.ndarray:
    share = np.linspace(0, 1, num_rows)[:, None, None]
    return (np.array(start) * (1 - share) + np.array(end) * share).astype(np.uint8)
