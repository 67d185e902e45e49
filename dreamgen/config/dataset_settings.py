"""The settings of commands that write, convert and check datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamgen.config.options import option, parse_folder_name, section
from dreamgen.extensions.export_format import EXPORT_FORMATS


@dataclass(frozen=True)
class Hdf5Settings:
    """Images and lengths in the HDF5 formats, robomimic and aloha."""

    compression: Literal["lzf", "gzip", "none"] = option(
        "lzf",
        "compression of images, one frame per chunk: none reads fastest, gzip is smallest, lzf is read by h5py only",
    )
    next_obs: bool = option(False, "robomimic: write next_obs too, which doubles the file; for value-based methods")
    jpeg_quality: int | None = option(
        None,
        "aloha: store frames as JPEG of this quality, like ALOHA's `compress`; default: uncompressed pixels",
        ge=1,
        le=100,
    )
    equal_length: bool = option(
        False, "aloha: repeat the last frame up to the longest episode, for the original ACT, which needs one length"
    )


@dataclass(frozen=True)
class ExportSettings:
    """Accepted clips -> datasets."""

    formats: list[str] = option(
        ["lerobot-v3.0", "lerobot-v2.1", "robomimic"], "datasets to write", choices=EXPORT_FORMATS.names, invalidates=()
    )
    name: str | None = option(
        None, "write beside existing datasets, into folders FORMAT-NAME", scope="call", parse=parse_folder_name
    )
    camera: str = option("observation.images.ego_view", "name of the video feature in the dataset")
    robot_type: str | None = option(None, "robot_type of info.json; default: that of the demonstrations")
    robot: str | None = option(
        None,
        "preset for modality.json: gr1, so100, franka, droid, new_embodiment; default: that of the demonstrations",
    )
    include_state: bool = option(True, "write observation.state if the labels have states")
    lerobot_sample: bool = option(
        False,
        "compute image statistics over the frames that LeRobot's writer samples (all of a clip of up to 100) instead "
        "of 16; an export takes about three times as long",
    )
    allow_weak_labels: bool = option(
        False,
        "write datasets although the inverse-dynamics model is no better than a baseline on held-out demonstrations; "
        "their cards tell",
        invalidates=(),
    )
    dream_prefix: bool = option(
        False, "put <DREAM> before the task of each generated episode (understood by GR00T-Dreams only)"
    )
    append_to: str | None = option(
        None, "LeRobot dataset whose episodes come first in the new one; clips that it already has are not added again"
    )
    mix_with: str | None = option(None, "LeRobot dataset of real episodes to mix in; it is only read")
    real_share: float | None = option(
        None, "share of real episodes (mix_with); surplus ones of either kind are left out by seed; default: use all",
        ge=0, le=1,
    )  # fmt: skip
    real_share_of: Literal["episodes", "frames"] = option(
        "episodes", "what real_share counts: real episodes are often longer than generated ones"
    )
    repeat_real: bool = option(
        False,
        "reach real_share by writing real episodes several times where they are too few, instead of leaving out "
        "generated ones: for trainers that draw all episodes alike",
    )
    fps: int | None = option(
        None, "frames per second of the datasets; clips of another rate are resampled and encoded again", ge=1
    )
    height: int | None = option(
        None, "image height of the datasets in pixels; clips of another size are encoded again", ge=16, multiple_of=2
    )
    width: int | None = option(
        None, "image width of the datasets in pixels; clips of another size are encoded again", ge=16, multiple_of=2
    )
    push_to_hub: str | None = option(
        None,
        "hub id that the datasets are uploaded to, private if new; with several formats, the format is appended",
        scope="machine",
    )  # fmt: skip
    license: str | None = option(None, "license of the datasets, such as cc-by-4.0, for dataset card and provenance")
    num_workers: int | None = option(
        None, "processes, or concurrent Ray tasks where RAY_ADDRESS names a cluster; default: one per core",
        ge=1, scope="machine",
    )  # fmt: skip
    keep_free_gib: float = option(
        1.0, "disk space in GiB that must remain free after the datasets are written", ge=0, scope="machine"
    )
    hdf5: Hdf5Settings = section(Hdf5Settings)

    def dataset_name(self, export_format: str) -> str:
        """Return the name of the folder that a dataset of a format is written to."""
        return export_format if self.name is None else f"{export_format}-{self.name}"


@dataclass(frozen=True)
class ConvertSettings:
    """A LeRobot dataset -> the same in another version."""

    to: Literal["v2.1", "v3.0"] | None = option(
        None, "version to write; default: v3.0 for v2.0 and v2.1, and v2.1 for v3.0", scope="call"
    )
    reencode: bool = option(False, "re-encode episodes whose packets cannot be copied, and only these", scope="call")
    num_workers: int | None = option(None, "processes that write files; default: one per core", ge=1, scope="machine")


@dataclass(frozen=True)
class CheckSettings:
    """A dataset, from DreamGen or not -> problems that a trainer would have with it."""

    fast: bool = option(False, "read only metadata, tables and video packets; decode no frame", scope="call")
    verify: bool = option(
        False, "only compare every file with the manifest that export writes; reads no content", scope="call"
    )
    write_manifest: bool = option(
        False, "record the files as they are, if there is no error; later checks find any change", scope="call"
    )
    num_workers: int | None = option(None, "processes that check files; default: one per core", ge=1, scope="machine")
