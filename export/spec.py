"""What all episodes of a dataset share: the names and shapes that every writer puts into its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamgen.core.errors import UserError
from dreamgen.core.records import RobotFeatures
from dreamgen.core.settings import ExportSettings
from export.episodes import Episode

IMAGE_PREFIX = "observation.images."


@dataclass(frozen=True)
class DatasetSpec:
    """The part of a dataset's description that does not depend on its format.

    Args:
        robot_type: As in LeRobot's info.json.
        camera: Name of the video feature.
        action_names: One a dimension.
        state_names: One a dimension; empty without states.
        source_camera: The demonstrations' own video feature, by which their modality knows it.
        modality: GR00T's modality.json of the demonstrations, or None.
    """

    robot_type: str
    camera: str
    fps: int
    height: int
    width: int
    codec: str
    pix_fmt: str
    crf: int | None
    gop: int | None
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    source_camera: str | None
    modality: dict[str, Any] | None

    @property
    def camera_short(self) -> str:
        """The camera's name without `observation.images.`."""
        return self.camera.removeprefix(IMAGE_PREFIX)


def dataset_spec(settings: ExportSettings, features: RobotFeatures, first: Episode) -> DatasetSpec:
    """Describe the dataset that episodes like `first` make.

    Raises:
        UserError: if the camera's name cannot be a feature or a folder.
    """
    check_camera_name(settings.camera)
    state_TS = first.state_TS
    return DatasetSpec(
        robot_type=settings.robot_type or features.robot_type,
        camera=settings.camera,
        fps=first.fps,
        height=first.video.height,
        width=first.video.width,
        codec=first.video.codec,
        pix_fmt=first.video.pix_fmt,
        crf=first.clip.crf,
        gop=first.clip.gop,
        action_names=features.action_names or _numbered("action", first.action_TA.shape[1]),
        state_names=() if state_TS is None else features.state_names or _numbered("state", state_TS.shape[1]),
        source_camera=features.camera,
        modality=features.modality,
    )


def check_camera_name(camera: str) -> None:
    """Refuse a name that is no LeRobot video feature, or that would lead to another folder.

    Raises:
        UserError: with what is allowed.
    """
    short = camera.removeprefix(IMAGE_PREFIX)
    if short == camera or not short or not short.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise UserError(
            "export.camera cannot name a video feature",
            actual=camera,
            allowed=f"{IMAGE_PREFIX}NAME, where NAME has letters, digits, _ - and .",
            next_step=f"--export.camera={IMAGE_PREFIX}ego_view",
        )


def _numbered(name: str, dims: int) -> tuple[str, ...]:
    return tuple(f"{name}_{index}" for index in range(dims))
