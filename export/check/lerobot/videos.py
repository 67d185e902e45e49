"""The videos of a LeRobot dataset against its episodes: frames, times, sizes, and whose pictures they are.

Axes: E episodes, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from dreamgen.data.timeline import frame_time_s, frame_times_s
from export.check.files import existing
from export.check.findings import Findings
from export.check.lerobot.episodes import INFO, NO_FILE, Episode, LeRobotEntry
from export.check.lerobot.pictures import NOTICEABLE, ImageSampleStatistics, Picture, check_pictures
from export.check.lerobot.recorded import RecordedStatistics
from export.check.lerobot.row_batch import TIME_TOLERANCE_S
from export.check.lerobot.rows import LeRobotCheck, RowSummary
from export.check.lerobot.video_scan import VideoScan, scan_video
from export.check.parallel import Workers

FILES_AT_ONCE = {True: 32, False: 4}  # fast, full; of v2, which has one an episode


@dataclass(frozen=True)
class VideoFile:
    """A v3.0 video file and the episodes whose frames should lie in it, or some v2 files of one episode each.

    Args:
        positions: Of the episodes in the table; in a v3.0 file by the time at which they begin.
        num_rows: Rows of each episode, where they are not its length.
        file: v3.0: its path.
    """

    camera: str
    positions: np.ndarray
    num_rows: dict[int, int]
    file: str = ""

    def __len__(self) -> int:
        return 1 if self.file else len(self.positions)


def check_videos(workers: Workers, dataset: LeRobotEntry, rows: RowSummary, fast: bool, findings: Findings) -> None:
    """Read or decode every video that the metadata names, and compare frames with rows, lengths and times."""
    for camera in dataset.cameras:
        files = _video_files(dataset, camera, rows, FILES_AT_ONCE[fast])
        if files and not _any_exists(dataset, camera, files, findings):
            continue
        pictures: list[Picture] = []
        for found, of_files in workers.map(check_video_files, files, f"check {camera}", "videos"):
            findings.merge(found)
            pictures += of_files
        check_pictures(dataset, pictures, findings)


def _video_files(dataset: LeRobotEntry, camera: str, rows: RowSummary, at_once: int) -> list[VideoFile]:
    def files_of(positions: np.ndarray) -> VideoFile:
        num_rows = {p: rows.num_rows[p] for p in positions.tolist() if p in rows.num_rows} if rows.num_rows else {}
        file = dataset.video_file(camera, int(positions[0])) if dataset.is_v3 else ""
        return VideoFile(camera, positions, num_rows, file)

    count = len(dataset.episodes)
    if not dataset.is_v3:
        return [files_of(np.arange(begin, min(begin + at_once, count))) for begin in range(0, count, at_once)]
    places = dataset.episodes.videos[camera]
    order = np.lexsort((places.from_s_N, places.file_N, places.chunk_N))
    order = order[places.file_N[order] != NO_FILE]
    if not len(order):
        return []
    file_E2 = np.stack([places.chunk_N[order], places.file_N[order]], axis=1)
    begins = np.flatnonzero((np.diff(file_E2, axis=0) != 0).any(axis=1)) + 1
    return [files_of(positions) for positions in np.split(order, begins)]


def _single(dataset: LeRobotEntry, files: VideoFile) -> Iterator[VideoFile]:
    if files.file:
        yield files
        return
    for position in files.positions.tolist():
        yield VideoFile(
            files.camera, np.array([position]), files.num_rows, dataset.video_file(files.camera, position)
        )  # fmt: skip


def _any_exists(dataset: LeRobotEntry, camera: str, files: list[VideoFile], findings: Findings) -> bool:
    """Report a camera that has no file at all once, rather than for every episode."""
    if any((dataset.root / file.file).is_file() for some in files for file in _single(dataset, some)):
        return True
    findings.add("camera-without-files", INFO, f"features.{camera}",
                 f"0 of {sum(map(len, files))} video files exist",
                 "all of them, or no such feature")  # fmt: skip
    return False


def check_video_files(check: LeRobotCheck, files: VideoFile) -> tuple[Findings, list[Picture]]:
    """Check some video files; called in whichever process.

    Returns:
        Findings, and the figures of episodes that do not look as recorded.
    """
    findings, pictures = Findings(), []
    recorded = RecordedStatistics(check.dataset, findings, of_pictures=True)
    for file in _single(check.dataset, files):
        named_by = check.dataset.episodes[int(file.positions[0])]
        path = existing(check.dataset.root, file.file, f"{named_by.named_by}, {named_by.name}", findings)
        if path is None:
            continue
        spans = _Spans(check.dataset, file)
        watched = {} if check.fast else _watched(check.dataset, file, recorded)
        av.logging.set_libav_level(av.logging.PANIC)  # what it complains of becomes a finding
        try:
            scan = scan_video(path, not check.fast, spans.look(watched) if watched else None)
        finally:
            av.logging.set_libav_level(av.logging.ERROR)
        _check_stream(check.dataset, file, scan, findings)
        _check_spans(check.dataset, file, spans, scan, findings)
        pictures += _unlike(file, watched)
    recorded.close()
    return findings, pictures


class _Spans:
    """Where in a file its episodes lie: from_s and to_s, or the whole file for a v2 episode."""

    def __init__(self, dataset: LeRobotEntry, file: VideoFile) -> None:
        places = dataset.episodes.videos[file.camera] if dataset.is_v3 else None
        count = len(file.positions)
        self.shared = dataset.is_v3
        self.from_s_E = places.from_s_N[file.positions] if places else np.zeros(count)
        self.to_s_E = places.to_s_N[file.positions] if places else np.full(count, np.inf)
        self.half_s = 0.5 / dataset.fps

    def look(self, watched: dict[int, tuple[ImageSampleStatistics, np.ndarray]]):
        """Return what shows each decoded frame to the figures of its episode."""
        starts_E = self.from_s_E - self.half_s

        def show(time_s: float, frame) -> None:
            place = int(np.searchsorted(starts_E, time_s, side="right")) - 1
            if place in watched and time_s < self.to_s_E[place] - self.half_s:
                watched[place][0].look(frame)

        return show


def _watched(
    dataset: LeRobotEntry, file: VideoFile, recorded: RecordedStatistics
) -> dict[int, tuple[ImageSampleStatistics, np.ndarray]]:
    """Return place -> (figures to be gathered, recorded figures) for episodes whose pictures have statistics."""
    told = recorded.of(file.positions).get(file.camera, {})
    mean_EC, deviation_EC = told.get("mean"), told.get("std")
    if mean_EC is None or deviation_EC is None or mean_EC.shape[1] != 3 or deviation_EC.shape[1] != 3:
        return {}
    recorded_EF = np.concatenate([mean_EC, deviation_EC], axis=1)
    return {
        place: (ImageSampleStatistics(int(dataset.episodes.length_N[position])), recorded_EF[place])
        for place, position in enumerate(file.positions.tolist())
        if np.isfinite(recorded_EF[place]).all()
    }


def _unlike(file: VideoFile, watched: dict[int, tuple[ImageSampleStatistics, np.ndarray]]) -> list[Picture]:
    pictures = []
    for place, (metrics, recorded_F) in watched.items():
        if (decoded_F := metrics.figures_F()) is not None:
            picture = Picture(file.camera, int(file.positions[place]), file.file, decoded_F, recorded_F)
            pictures += [picture] if picture.off > NOTICEABLE else []
    return pictures


def _check_stream(dataset: LeRobotEntry, file: VideoFile, scan: VideoScan, findings: Findings) -> None:
    if scan.error is not None:
        findings.add("damaged-video", file.file, f"after {len(scan.times_s)} frames", scan.error, "a whole video")
        return
    if scan.num_corrupt:
        findings.add("damaged-video", file.file, "", f"{scan.num_corrupt} corrupt frames", "none")
    if scan.fps is not None and abs(scan.fps - dataset.fps) > dataset.fps * 1e-3:
        findings.add("fps-differs", file.file, "", f"{scan.fps:g} frames a second",
                     f"{dataset.fps:g} as info.json says")  # fmt: skip
    feature = dataset.features[file.camera]
    size = feature_size(feature)
    if size and size != (scan.height, scan.width):
        findings.add("picture-size", file.file, "", f"{scan.height}x{scan.width}",
                     f"{size[0]}x{size[1]}, as info.json says")  # fmt: skip
    told = video_info(feature)
    for key, value in (("codec", scan.codec), ("pix_fmt", scan.pix_fmt)):
        said = told.get(f"video.{key}")
        if isinstance(said, str) and value is not None and said != value:
            findings.add("video-info", file.file, key, value, f"{said} as info.json says")


def _check_spans(dataset: LeRobotEntry, file: VideoFile, spans: _Spans, scan: VideoScan, findings: Findings) -> None:
    episodes = [dataset.episodes[int(position)] for position in file.positions]
    if spans.shared:
        for place in np.flatnonzero(spans.from_s_E[1:] < spans.to_s_E[:-1] - TIME_TOLERANCE_S).tolist():
            before, after = episodes[place], episodes[place + 1]
            findings.add("video-overlap", after.named_by, f"{after.name}, from_timestamp",
                         f"{spans.from_s_E[place + 1]:.6f} s",
                         f"at least {spans.to_s_E[place]:.6f} s, where {before.name} ends in {file.file}")  # fmt: skip
        named = sum(episode.length for episode in episodes)
        if scan.error is None and len(scan.times_s) > named:
            findings.add("spare-frames", file.file, "", f"{len(scan.times_s)} frames", f"{named}, as its episodes have")
    for place, episode in enumerate(episodes):
        _check_episode(dataset, file, episode, spans, place, scan, findings)


def _check_episode(
    dataset: LeRobotEntry, file: VideoFile, episode: Episode, spans: _Spans, place: int, scan: VideoScan,
    findings: Findings,
) -> None:  # fmt: skip
    from_s, to_s, times_s = float(spans.from_s_E[place]), float(spans.to_s_E[place]), scan.times_s
    if spans.shared:
        length_s = frame_time_s(episode.length, dataset.exact_fps)
        if not abs(to_s - from_s - length_s) <= TIME_TOLERANCE_S:
            findings.add("video-span", episode.named_by, f"{episode.name}, to_timestamp - from_timestamp",
                         f"{to_s - from_s:.6f} s", f"length / fps = {length_s:.6f} s")  # fmt: skip
        # Frames come in the order of their times; searching keeps a file of many episodes linear.
        begin, end = np.searchsorted(times_s, [from_s - spans.half_s, to_s - spans.half_s])
        times_s = times_s[begin:end]
    if scan.error is None and len(times_s) != episode.length:
        rows = file.num_rows.get(episode.position)
        beside = "" if rows is None else f", {rows} rows"
        findings.add("frame-count", file.file, episode.name, f"{len(times_s)} frames{beside}",
                     f"length {episode.length}")  # fmt: skip
    expected_T = from_s + frame_times_s(min(len(times_s), episode.length), dataset.exact_fps)
    off_T = ~(np.abs(times_s[: len(expected_T)] - expected_T) <= TIME_TOLERANCE_S)
    if off_T.any():
        frame = int(np.argmax(off_T))
        findings.add("frame-time", file.file, f"{episode.name}, frame {frame}", f"{times_s[frame]:.6f} s",
                     f"{expected_T[frame]:.6f} s")  # fmt: skip


def video_info(feature: dict[str, Any]) -> dict[str, Any]:
    """Return what a video feature tells of its encoding, under either of the two names."""
    for key in ("info", "video_info"):
        if isinstance(feature.get(key), dict):
            return feature[key]
    return {}


def feature_size(feature: dict[str, Any]) -> tuple[int, int] | None:
    """Return height and width of a video feature, whichever order its axes have; None when it cannot be told."""
    shape, names = feature["shape"], feature.get("names")
    if len(shape) != 3:
        return None
    if isinstance(names, list) and len(names) == 3 and {"height", "width"} <= set(map(str, names)):
        by_name = dict(zip(map(str, names), shape, strict=True))
        return by_name["height"], by_name["width"]
    return (shape[0], shape[1]) if shape[2] in (1, 3) else (shape[1], shape[2])
