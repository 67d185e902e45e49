"""LeRobot v3.0, with many episodes in each parquet and mp4 file, and v2.1, with one of each an episode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgen.data.lerobot.file_layout import FileLimits
from dreamgen.data.lerobot.modality import VECTORS, usable_modality
from dreamgen.data.lerobot.writer import write_v21, write_v30
from dreamgen.extensions.export_format import ExportFormat, FormatReader
from dreamgen.run.files import read_json, write_json
from export.check.lerobot import check_lerobot
from export.check.repair import repair
from export.episode_store import EpisodeStore
from export.formats.lerobot_episodes import TASK_ANNOTATION, StoredEpisodes
from export.spec import IMAGE_PREFIX, Camera, DatasetSpec
from export.workers import Workers

INFO = Path("meta", "info.json")
CARD_METADATA = {"configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}]}


def write_lerobot_v30(root: Path, done_markers: Path, episodes: EpisodeStore, spec: DatasetSpec, workers: Workers,
                      limits: FileLimits | None = None) -> None:  # fmt: skip
    """Write LeRobot v3.0, or the rest of a dataset that an earlier call began; lerobot 0.4 to 0.6 read it.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        done_markers: A folder beside it for the markers of finished files.
        episodes: Numbered from 0.
        spec: What they share.
        workers: Write the files; their number changes no byte.
        limits: Sizes of files; LeRobot's own when not given.
    """
    # The keys and their order are those that lerobot 0.6 writes, with the encoder settings that are known.
    video_info = {
        **_video_size(spec), "video.fps": spec.fps, "video.channels": 3, "has_audio": False, "video.g": spec.gop,
        "video.crf": spec.crf, "is_depth_map": False,
    }  # fmt: skip
    source = StoredEpisodes.of(episodes, spec, "v3.0", video_info)
    write_v30(root, done_markers, source, workers, "export: lerobot-v3.0", limits or FileLimits())


def write_lerobot_v21(
    root: Path, done_markers: Path, episodes: EpisodeStore, spec: DatasetSpec, workers: Workers
) -> None:
    """Write LeRobot v2.1 with GR00T's additions, `modality.json` and `stats.json`; every GR00T release reads it.

    Args:
        root: As `write_lerobot_v30` takes it, like the other arguments.
    """
    video_info = {
        **_video_size(spec), "video.is_depth_map": False, "video.fps": spec.fps, "video.channels": 3,
        "has_audio": False,
    }  # fmt: skip
    source = StoredEpisodes.of(episodes, spec, "v2.1", video_info)
    write_v21(root, done_markers, source, workers, "export: lerobot-v2.1")
    write_json(root / "meta" / "modality.json", modality_json(spec))


def _video_size(spec: DatasetSpec) -> dict[str, Any]:
    return {"video.height": spec.height, "video.width": spec.width, "video.codec": spec.codec,
            "video.pix_fmt": spec.pix_fmt}  # fmt: skip


def modality_json(spec: DatasetSpec) -> dict[str, dict[str, Any]]:
    """Return modality.json: the parts that the demonstrations name, else one part that is the whole vector.

    Parts that do not fit the vectors are left out; prepare has already reported them.
    """
    sizes = {VECTORS["state"]: len(spec.state_names), VECTORS["action"]: len(spec.action_names)}
    given, _ = usable_modality(spec.modality, sizes)
    parts = {
        kind: given.get(kind) or ({"whole": {"start": 0, "end": sizes[column]}} if sizes[column] else {})
        for kind, column in VECTORS.items()
    }
    names = given.get("video", {})
    return {
        **parts,
        "video": {_video_name(camera, names): {"original_key": camera.name} for camera in spec.cameras},
        "annotation": {TASK_ANNOTATION: {}},
    }


def _video_name(camera: Camera, given: dict[str, dict]) -> str:
    for name, entry in given.items():
        if entry.get("original_key", f"{IMAGE_PREFIX}{name}") == camera.source:
            return name
    return camera.short


READER = FormatReader(
    layout="LeRobot: a folder with meta/info.json",
    recognizes=lambda path: (path / INFO).exists(),
    check=check_lerobot,
    num_episodes=lambda root: read_json(root / INFO).get("total_episodes"),
    repair=repair,
)


def _load_v21(spec: DatasetSpec) -> str:
    command = "python scripts/gr00t_finetune.py --dataset-path path/to/this/folder   # any GR00T release"
    tags = ", ".join(f"{tag} ({release})" for release, tag in spec.embodiment_tags.items())
    return f"{command}\n# --embodiment-tag: {tags}" if tags else command


LEROBOT_V30 = ExportFormat(
    name="lerobot-v3.0",
    summary="many episodes in each parquet and mp4 file, for LeRobot 0.4 or later",
    write=write_lerobot_v30,
    reader=READER,
    load_example=lambda spec: 'LeRobotDataset("OWNER/NAME", root="path/to/this/folder")   # lerobot 0.4 or later',
    is_resumable=True,
    card_metadata=CARD_METADATA,
    hub_tag="v3.0",
)
LEROBOT_V21 = replace(
    LEROBOT_V30,
    name="lerobot-v2.1",
    summary="a parquet file per episode and an mp4 file per camera and episode, for GR00T and older LeRobot",
    write=write_lerobot_v21,
    load_example=_load_v21,
    hub_tag="v2.1",
)
