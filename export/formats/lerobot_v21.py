"""LeRobot v2.1 with GR00T's additions: one parquet and one mp4 an episode, `modality.json`, `stats.json`."""

from __future__ import annotations

from pathlib import Path

from dreamgen.data.lerobot.writer import write_v21
from dreamgen.run.files import write_json
from export.episode_store import EpisodeStore
from export.formats.lerobot_episodes import StoredEpisodes
from export.modality import modality_json
from export.spec import DatasetSpec
from export.workers import Workers


def write_lerobot_v21(
    root: Path, done_markers: Path, episodes: EpisodeStore, spec: DatasetSpec, workers: Workers
) -> None:
    """Write a LeRobot v2.1 dataset that every GR00T release reads, or the rest of one that an earlier call began.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        done_markers: A folder beside it for the markers of finished tasks.
        episodes: Numbered from 0.
        spec: What they share.
        workers: Write the files; their number changes no byte.
    """
    video_info = {
        "video.height": spec.height,
        "video.width": spec.width,
        "video.codec": spec.codec,
        "video.pix_fmt": spec.pix_fmt,
        "video.is_depth_map": False,
        "video.fps": spec.fps,
        "video.channels": 3,
        "has_audio": False,
    }
    source = StoredEpisodes.of(episodes, spec, "v2.1", video_info)
    write_v21(root, done_markers, source, workers, "export: lerobot-v2.1")
    write_json(root / "meta" / "modality.json", modality_json(spec))
