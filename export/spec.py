"""What all episodes of a dataset have in common: the names and shapes that go into its metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dreamgen.config.dataset_settings import ExportSettings, Hdf5Settings
from dreamgen.errors import UserError
from dreamgen.run.records import RobotFeatures
from export.episodes import ExportEpisode
from export.robots import fitting_modality, robot_preset

IMAGE_PREFIX = "observation.images."


@dataclass(frozen=True)
class Camera:
    """A video feature.

    Args:
        name: In the dataset.
        source: Its name in the demonstrations, which their modality uses; None if they have none.
    """

    name: str
    source: str | None

    @property
    def short(self) -> str:
        """Its name without `observation.images.`."""
        return self.name.removeprefix(IMAGE_PREFIX)


def cameras_of(settings: ExportSettings, features: RobotFeatures) -> tuple[Camera, ...]:
    """Return the dataset's cameras: the one in the settings, or one for each view in the clips.

    Raises:
        UserError: if a name cannot be a feature or a folder, or two names become equal.
    """
    if not features.views:
        check_camera_name(settings.camera)
        return (Camera(settings.camera, features.camera),)
    names = [view.camera for view in features.views]
    cameras = tuple(
        Camera(name if name.startswith(IMAGE_PREFIX) else IMAGE_PREFIX + name.rpartition(".")[2], name)
        for name in names
    )
    if len({camera.name for camera in cameras}) < len(cameras):
        raise UserError("two cameras would get one name in the dataset", actual=", ".join(names))
    for camera in cameras:
        check_camera_name(camera.name)
    return cameras


@dataclass(frozen=True)
class DatasetSpec:
    """The part of a dataset's description that does not depend on its format.

    Args:
        robot_type: As in LeRobot's info.json.
        cameras: Its video features, all of one size.
        action_names: One a dimension.
        state_names: One a dimension; empty without states.
        modality: GR00T's modality.json of the robot preset or of the demonstrations, or None.
        embodiment_tags: GR00T release -> tag; empty without a preset.
        hdf5: How the HDF5 formats store images.
    """

    robot_type: str
    cameras: tuple[Camera, ...]
    fps: int
    height: int
    width: int
    codec: str
    pix_fmt: str | None
    crf: int | None
    gop: int | None
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    modality: dict[str, Any] | None
    embodiment_tags: dict[str, str]
    hdf5: Hdf5Settings

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Names of the video features."""
        return tuple(camera.name for camera in self.cameras)


def dataset_spec(settings: ExportSettings, features: RobotFeatures, first: ExportEpisode) -> DatasetSpec:
    """Describe the dataset that episodes of the shape of `first` make.

    Raises:
        UserError: if a camera's name cannot be a feature or a folder, or the robot's preset does not fit.
    """
    cameras = cameras_of(settings, features)
    state_TS, robot = first.state_TS, None
    modality, num_action = features.modality, first.action_TA.shape[1]
    if settings.robot is not None:
        robot = robot_preset(settings.robot)
        num_state = 0 if state_TS is None else state_TS.shape[1]
        modality = fitting_modality(settings.robot, robot, num_action, num_state)
        if len(cameras) == 1:  # it is the first one of the preset
            source = next((IMAGE_PREFIX + name for name in modality.get("video", {})), None)
            cameras = (replace(cameras[0], source=source),)
    return DatasetSpec(
        robot_type=settings.robot_type or (robot.robot_type if robot else features.robot_type),
        cameras=cameras,
        fps=first.fps,
        height=first.video.height,
        width=first.video.width,
        codec=first.video.codec,
        pix_fmt=first.video.pix_fmt,
        crf=first.clip.crf,
        gop=first.clip.gop,
        action_names=features.action_names or _numbered("action", num_action),
        state_names=() if state_TS is None else features.state_names or _numbered("state", state_TS.shape[1]),
        modality=modality,
        embodiment_tags=robot.embodiment_tags if robot else {},
        hdf5=settings.hdf5,
    )


def check_camera_name(camera: str) -> None:
    """Check that a name can be a LeRobot video feature and stays within its folder.

    Raises:
        UserError: if it does not.
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
