"""Presets of robots: which slice of state and action is which part, and the tag that each GR00T release knows it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.data.lerobot.modality import VECTORS, usable_modality
from dreamgen.errors import UserError, closest_match


@dataclass(frozen=True)
class Robot:
    """One of configs/robots.

    Args:
        robot_type: As in LeRobot's info.json.
        modality: As GR00T's modality.json, without annotations; empty: one part is the whole vector.
        embodiment_tags: GR00T release -> tag.
    """

    robot_type: str
    modality: dict[str, Any]
    embodiment_tags: dict[str, str]


def robot_preset(name: str) -> Robot:
    """Read a preset by its name.

    Raises:
        UserError: with the presets that there are.
    """
    shipped = {path.stem: path for path in (configs_folder() / "robots").glob("*.yaml")}
    if name not in shipped:
        nearest = closest_match(name, shipped)
        raise UserError(
            "export.robot names no preset", actual=name, allowed=", ".join(sorted(shipped)),
            next_step=f"--export.robot={nearest or 'new_embodiment'}",
        )  # fmt: skip
    return Robot(**read_yaml(shipped[name]))


def fitting_modality(name: str, robot: Robot, num_action: int, num_state: int) -> dict[str, Any]:
    """Return the preset's parts, without those of a vector that is not written.

    Raises:
        UserError: if a part lies outside of its vector, or a vector has values that no part names.
    """
    sizes = {VECTORS["action"]: num_action, VECTORS["state"]: num_state}
    wanted = {k: v for k, v in robot.modality.items() if k not in VECTORS or sizes[VECTORS[k]]}
    _, problems = usable_modality(wanted, sizes)
    for kind, column in VECTORS.items():
        end = max((part["end"] for part in wanted.get(kind, {}).values()), default=None)
        if end is not None and end < sizes[column]:
            problems.append(f"its {kind} has {end} values, and {column} has {sizes[column]}")
    if problems:
        raise UserError(
            f"the robot {name} does not fit the labels", actual="; ".join(problems),
            next_step="--export.robot=new_embodiment takes any vector as it is",
        )  # fmt: skip
    return wanted
