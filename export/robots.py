"""Robot presets: the named parts of state and action, and the embodiment tag in each GR00T release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.data.lerobot.modality import VECTORS, usable_modality
from dreamgen.errors import UserError, closest_match


@dataclass(frozen=True)
class Robot:
    """A file of configs/robots.

    Args:
        robot_type: As in LeRobot's info.json.
        modality: As in GR00T's modality.json, without annotations. Empty: one part is the whole vector.
        embodiment_tags: GR00T release -> tag.
    """

    robot_type: str
    modality: dict[str, Any]
    embodiment_tags: dict[str, str]


def robot_preset(name: str) -> Robot:
    """Read a preset by its name.

    Raises:
        UserError: if there is no such preset; it lists those that exist.
    """
    presets = {path.stem: path for path in (configs_folder() / "robots").glob("*.yaml")}
    if name not in presets:
        raise UserError(
            "export.robot is not a preset",
            actual=name,
            allowed=", ".join(sorted(presets)),
            next_step=f"--export.robot={closest_match(name, presets) or 'new_embodiment'}",
        )
    return Robot(**read_yaml(presets[name]))


def fitting_modality(name: str, robot: Robot, num_action: int, num_state: int) -> dict[str, Any]:
    """Return the parts of a preset, without those of a vector that is not written.

    Raises:
        UserError: if a part lies outside of its vector, or the parts do not cover a vector.
    """
    sizes = {VECTORS["action"]: num_action, VECTORS["state"]: num_state}
    parts = {kind: part for kind, part in robot.modality.items() if kind not in VECTORS or sizes[VECTORS[kind]]}
    _, problems = usable_modality(parts, sizes)
    for kind, column in VECTORS.items():
        end = max((part["end"] for part in parts.get(kind, {}).values()), default=None)
        if end is not None and end < sizes[column]:
            problems.append(f"its {kind} has {end} values, and {column} has {sizes[column]}")
    if problems:
        raise UserError(
            f"the robot {name} does not fit the labels",
            actual="; ".join(problems),
            next_step="--export.robot=new_embodiment accepts any vector",
        )
    return parts
