"""LeRobot v3.0: many episodes in each parquet and mp4 file, read by `LeRobotDataset` of lerobot 0.4 to 0.6."""

from __future__ import annotations

from pathlib import Path

from dreamgen.data.lerobot.file_layout import FileLimits
from dreamgen.data.lerobot.writer import write_v30
from export.episode_store import EpisodeStore
from export.formats.lerobot_episodes import StoredEpisodes
from export.spec import DatasetSpec
from export.workers import Workers


def write_lerobot_v30(root: Path, done_markers: Path, episodes: EpisodeStore, spec: DatasetSpec, workers: Workers,
                      limits: FileLimits | None = None) -> None:  # fmt: skip
    """Write a LeRobot v3.0 dataset, or the rest of one that an earlier call began.

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
        "video.height": spec.height,
        "video.width": spec.width,
        "video.codec": spec.codec,
        "video.pix_fmt": spec.pix_fmt,
        "video.fps": spec.fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": spec.gop,
        "video.crf": spec.crf,
        "is_depth_map": False,
    }
    source = StoredEpisodes.of(episodes, spec, "v3.0", video_info)
    write_v30(root, done_markers, source, workers, "export: lerobot-v3.0", limits or FileLimits())
