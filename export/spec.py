"""What all episodes of a dataset share: the names and shapes that every writer puts into its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamgen.core.errors import UserError
from dreamgen.core.records import RobotFeatures
from dreamgen.core.settings import ExportSettings, Hdf5Settings
from export.episodes import Episode
from export.robots import fitting_modality, robot_preset

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
        modality: GR00T's modality.json of the robot's preset or of the demonstrations, or None.
        embodiment_tags: GR00T release -> tag; empty where no preset says.
        hdf5: How the HDF5 formats hold pictures.
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
    embodiment_tags: dict[str, str]
    hdf5: Hdf5Settings

    @property
    def camera_short(self) -> str:
        """The camera's name without `observation.images.`."""
        return self.camera.removeprefix(IMAGE_PREFIX)


def dataset_spec(settings: ExportSettings, features: RobotFeatures, first: Episode) -> DatasetSpec:
    """Describe the dataset that episodes like `first` make.

    Raises:
        UserError: if the camera's name cannot be a feature or a folder, or the robot's preset does not fit.
    """
    check_camera_name(settings.camera)
    state_TS, robot = first.state_TS, None
    source_camera, modality, num_action = features.camera, features.modality, first.action_TA.shape[1]
    if settings.robot is not None:
        robot = robot_preset(settings.robot)
        num_state = 0 if state_TS is None else state_TS.shape[1]
        modality = fitting_modality(settings.robot, robot, num_action, num_state)
        source_camera = next((IMAGE_PREFIX + name for name in modality.get("video", {})), None)
    return DatasetSpec(
        robot_type=settings.robot_type or (robot.robot_type if robot else features.robot_type),
        camera=settings.camera,
        fps=first.fps,
        height=first.video.height,
        width=first.video.width,
        codec=first.video.codec,
        pix_fmt=first.video.pix_fmt,
        crf=first.clip.crf,
        gop=first.clip.gop,
        action_names=features.action_names or _numbered("action", num_action),
        state_names=() if state_TS is None else features.state_names or _numbered("state", state_TS.shape[1]),
        source_camera=source_camera,
        modality=modality,
        embodiment_tags=robot.embodiment_tags if robot else {},
        hdf5=settings.hdf5,
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
