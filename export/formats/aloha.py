"""ACT's HDF5, as ALOHA records it: `episode_<i>.hdf5`, each whole and readable as soon as it is there.

Axes: T frames, H height, W width, C channels (RGB), A action, S state.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np

from dreamgen.data.video import iter_frames
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file
from export.episode_store import Episodes
from export.episodes import Episode
from export.formats.hdf5_parts import write_pictures
from export.spec import DatasetSpec
from export.workers import Workers

EPISODES_PER_TASK = 2


def write_aloha(root: Path, done_markers: Path, episodes: Episodes, spec: DatasetSpec, workers: Workers) -> None:
    """Write a folder that ACT's readers take, or what is left of it to be written.

    Args:
        root: Folder of the dataset: empty, or as an earlier call for the same episodes left it.
        marks: Not used: a file that is there is whole.
        episodes: Numbered from 0.
        spec: What they share.
        workers: Who writes the files; their number changes no value.

    Raises:
        UserError: if the episodes have no states.
    """
    need_states(spec)
    longest = int(episodes.num_frames_E.max()) if spec.hdf5.equal_length else None
    tasks = [
        partial(write_episodes, root, episodes[start : start + EPISODES_PER_TASK], spec, longest)
        for start in range(0, len(episodes), EPISODES_PER_TASK)
    ]
    with Progress("export: aloha", len(episodes), "episodes") as progress:
        for num_written in workers.run(tasks):
            progress.add(num_written)


def need_states(spec: DatasetSpec) -> None:
    """Make sure that there are joint positions, without which ACT's readers cannot start.

    Raises:
        UserError: if there are none.
    """
    if not spec.state_names:
        raise UserError(
            "the aloha format needs observation.state, for /observations/qpos", actual="labels without states",
            next_step="label with --idm.predict_state=true and export with --export.include_state=true, "
            "or leave aloha out of --export.formats",
        )  # fmt: skip


def write_episodes(root: Path, episodes: Episodes, spec: DatasetSpec, num_rows: int | None) -> int:
    """Write some episodes, each into its file, unless that exists.

    Args:
        root: Folder of the dataset.
        episodes: A few of them.
        spec: What all share.
        num_rows: Rows of each file; None for as many as an episode has frames.

    Returns:
        How many episodes.
    """
    for index, _, _ in episodes.clips():
        path = root / f"episode_{index}.hdf5"
        if not path.exists():
            with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
                _write_episode(file, episodes[index - episodes.start], spec, num_rows)
    return len(episodes)


def _write_episode(file: h5py.File, episode: Episode, spec: DatasetSpec, num_rows: int | None) -> None:
    num_rows = num_rows or episode.num_frames
    # Where `sim` is false, ACT takes the actions from one row before the frame's: its robots answer a step late. Here
    # row i is the action of frame i.
    file.attrs["sim"] = True
    file.attrs["num_samples"] = episode.num_frames  # rows beyond it repeat the last
    file.attrs["task"] = episode.instruction
    file.attrs["clip_id"] = episode.clip_id
    file.attrs["fps"] = spec.fps
    qpos_TS = _held(episode.state_TS, num_rows)
    file.create_dataset("action", data=_held(episode.action_TA, num_rows))
    observations = file.create_group("observations")
    observations.create_dataset("qpos", data=qpos_TS)
    observations.create_dataset("qvel", data=joint_velocity(qpos_TS, spec.fps))
    images = observations.create_group("images")
    if spec.hdf5.jpeg_quality is None:
        size = (spec.height, spec.width)
        for camera, video in zip(spec.cameras, episode.videos, strict=True):
            write_pictures(images, camera.short, video.path, num_rows, size, spec.hdf5.compression)
        return
    packed = {camera.short: list(jpegs(video.path, spec.hdf5.jpeg_quality))
              for camera, video in zip(spec.cameras, episode.videos, strict=True)}  # fmt: skip
    longest = max(len(data) for pictures in packed.values() for data in pictures)
    for name, pictures in packed.items():
        pictures += [pictures[-1]] * (num_rows - len(pictures))
        rows_TL = images.create_dataset(name, (num_rows, longest), np.uint8, chunks=(1, longest))
        for index, data in enumerate(pictures):
            rows_TL[index, : len(data)] = data
    file.attrs["compress"] = True
    lengths = [[len(data) for data in pictures] for pictures in packed.values()]  # a row a camera, as ALOHA has it
    file.create_dataset("compress_len", data=np.array(lengths, np.float32))


def joint_velocity(qpos_TS: np.ndarray, fps: int) -> np.ndarray:
    """Return the change of joint positions since the frame before, a second; 0 in the first row. float32."""
    change_TS = np.diff(qpos_TS.astype(np.float64), axis=0, prepend=qpos_TS[:1])
    return (change_TS * fps).astype(np.float32)


def jpegs(video: Path, quality: int) -> Iterator[np.ndarray]:
    """Yield each frame as JPEG bytes, uint8.

    ALOHA stores what `cv2.imencode` makes of RGB pixels, and its readers take what `cv2.imdecode` returns for RGB. cv2
    calls the first channel blue both times, so that cancels out: ACT gets RGB, and a picture viewer swaps red and blue.
    """
    for frame_HWC in iter_frames(video):
        done, data = cv2.imencode(".jpg", frame_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done, "JPEG encoding of a uint8 array does not fail"
        yield data.ravel()


def _held(rows_TD: np.ndarray, num_rows: int) -> np.ndarray:
    """Repeat the last row up to a length."""
    return np.concatenate([rows_TD, np.repeat(rows_TD[-1:], num_rows - len(rows_TD), axis=0)])
