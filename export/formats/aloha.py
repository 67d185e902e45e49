"""ACT's HDF5 format as ALOHA records it: files `episode_<i>.hdf5`, each complete as soon as it exists.

Axes: T frames, H height, W width, C channels (RGB), A action, S state.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np

from dreamgen.config.settings import ExportSettings
from dreamgen.data.video import iter_frames
from dreamgen.extensions.export_format import DatasetSize, ExportFormat, FormatReader
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file
from export.check.hdf5.aloha import aloha_episodes, check_aloha
from export.episode_store import EpisodeStore
from export.episodes import ExportEpisode
from export.formats.hdf5_parts import size_with_images, write_images
from export.spec import DatasetSpec
from export.workers import Workers

EPISODES_PER_TASK = 2


def write_aloha(root: Path, done_markers: Path, episodes: EpisodeStore, spec: DatasetSpec, workers: Workers) -> None:
    """Write the episodes whose files do not exist yet.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        done_markers: Not used: a file that exists is complete.
        episodes: Numbered from 0; they must have states.
        spec: What the episodes share.
        workers: Write the files; their number changes no value.
    """
    longest = int(episodes.num_frames_E.max()) if spec.hdf5.equal_length else None
    tasks = [
        partial(write_episodes, root, episodes[start : start + EPISODES_PER_TASK], spec, longest)
        for start in range(0, len(episodes), EPISODES_PER_TASK)
    ]
    with Progress("export: aloha", len(episodes), "episodes") as progress:
        for num_written in workers.run(tasks):
            progress.add(num_written)


def write_episodes(root: Path, episodes: EpisodeStore, spec: DatasetSpec, num_rows: int | None) -> int:
    """Write a few episodes, each to its own file unless that exists.

    Args:
        root: Folder of the dataset.
        episodes: The episodes.
        spec: What all episodes share.
        num_rows: Rows of each file; None: as many as the episode has frames.

    Returns:
        The number of episodes.
    """
    for index, _, _ in episodes.clips():
        path = root / f"episode_{index}.hdf5"
        if not path.exists():
            with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
                _write_episode(file, episodes[index - episodes.start], spec, num_rows)
    return len(episodes)


def _write_episode(file: h5py.File, episode: ExportEpisode, spec: DatasetSpec, num_rows: int | None) -> None:
    num_rows = num_rows or episode.num_frames
    assert episode.state_TS is not None, "the format needs states, which the stage checks"
    # If `sim` is false, ACT takes the actions from one row earlier, because real robots answer a step late. Here row i
    # is the action of frame i.
    file.attrs["sim"] = True
    file.attrs["num_samples"] = episode.num_frames  # later rows repeat the last
    file.attrs["task"] = episode.instruction
    file.attrs["clip_id"] = episode.clip_id
    file.attrs["fps"] = spec.fps
    qpos_TS = _padded(episode.state_TS, num_rows)
    file.create_dataset("action", data=_padded(episode.action_TA, num_rows))
    observations = file.create_group("observations")
    observations.create_dataset("qpos", data=qpos_TS)
    observations.create_dataset("qvel", data=joint_velocity(qpos_TS, spec.fps))
    images = observations.create_group("images")
    videos = {camera.short: video.path for camera, video in zip(spec.cameras, episode.videos, strict=True)}
    if spec.hdf5.jpeg_quality is None:
        for name, video in videos.items():
            write_images(images, name, video, num_rows, (spec.height, spec.width), spec.hdf5.compression)
        return
    encoded = {name: list(jpegs(video, spec.hdf5.jpeg_quality)) for name, video in videos.items()}
    longest = max(len(data) for frames in encoded.values() for data in frames)
    for name, frames in encoded.items():
        frames += [frames[-1]] * (num_rows - len(frames))
        rows_TL = images.create_dataset(name, (num_rows, longest), np.uint8, chunks=(1, longest))
        for index, data in enumerate(frames):
            rows_TL[index, : len(data)] = data
    file.attrs["compress"] = True
    lengths = [[len(data) for data in frames] for frames in encoded.values()]  # one row per camera, as in ALOHA
    file.create_dataset("compress_len", data=np.array(lengths, np.float32))


def joint_velocity(qpos_TS: np.ndarray, fps: int) -> np.ndarray:
    """Return the change of joint positions since the previous frame, per second; 0 in the first row. float32."""
    change_TS = np.diff(qpos_TS.astype(np.float64), axis=0, prepend=qpos_TS[:1])
    return (change_TS * fps).astype(np.float32)


def jpegs(video: Path, quality: int) -> Iterator[np.ndarray]:
    """Yield each frame as JPEG bytes, uint8.

    ALOHA stores what `cv2.imencode` makes of RGB pixels, and its readers take what `cv2.imdecode` returns for RGB. cv2
    treats the first channel as blue both times, which cancels out: ACT gets RGB, and image viewers swap red and blue.
    """
    for frame_HWC in iter_frames(video):
        done, data = cv2.imencode(".jpg", frame_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done, "JPEG encoding of a uint8 array does not fail"
        yield data.ravel()


def _padded(rows_TD: np.ndarray, num_rows: int) -> np.ndarray:
    """Repeat the last row up to a length."""
    return np.concatenate([rows_TD, np.repeat(rows_TD[-1:], num_rows - len(rows_TD), axis=0)])


def _estimate_bytes(size: DatasetSize, settings: ExportSettings) -> int:
    return size_with_images(size, settings.hdf5.compression if settings.hdf5.jpeg_quality is None else "jpeg")


def _load_example(spec: DatasetSpec) -> str:
    return 'h5py.File("path/to/this/folder/episode_0.hdf5")["observations/qpos"]'


ALOHA = ExportFormat(
    name="aloha",
    summary="one HDF5 file per episode, for ACT and its successors",
    write=write_aloha,
    reader=FormatReader(
        layout="ACT: a folder with episode_0.hdf5, episode_1.hdf5 ...",
        recognizes=lambda path: bool(aloha_episodes(path)),
        check=check_aloha,
        num_episodes=lambda path: len(aloha_episodes(path)),
    ),
    load_example=_load_example,
    is_resumable=True,
    needs_states=True,
    estimate_bytes=_estimate_bytes,
)
