"""The videos of a LeRobot dataset against its episodes: frames, times, sizes, and whose pictures they are.

Axes: E episodes, T frames, F statistics.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import av
import av.logging
import numpy as np

from dreamgen.data.lerobot.files import find_file
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.schema import INFO, picture_size, video_info
from dreamgen.data.timeline import frame_time_s, frame_times_s
from dreamgen.data.trajectory import STATE
from export.check.findings import Findings
from export.check.lerobot.files import FileGroup, video_groups
from export.check.lerobot.pictures import NOTICEABLE, PictureSampler, PictureStatistics, check_pictures
from export.check.lerobot.row_batch import TIME_TOLERANCE_S
from export.check.lerobot.states_in_images import MAX_EPISODES, MIN_ROWS, GrayImages, find_other_states
from export.check.lerobot.statistics import EpisodeStatistics, LeRobotCheck
from export.check.lerobot.video_scan import VideoScan, scan_video
from export.check.other_episodes import OtherEpisodes, Thumbnail
from export.workers import Workers

VIDEOS_PER_TASK = {True: 32, False: 4}  # fast, full; of v2, which has one an episode


def check_videos(
    workers: Workers, check: LeRobotCheck, num_rows: dict[int, int], states: dict[int, np.ndarray], findings: Findings
) -> None:
    """Read or decode every video that the metadata names, and compare frames with rows, lengths and times.

    Args:
        workers: Who reads; they share `check`.
        check: The dataset.
        num_rows: Position of an episode -> its rows, where they are not its length.
        states: Position of an episode -> state_TD of the rows that images are compared with.
        findings: Receives what is wrong.
    """
    dataset = check.dataset
    for camera in dataset.video_keys:
        groups = video_groups(dataset, camera, num_rows, VIDEOS_PER_TASK[check.fast])
        if groups and not dataset.episodes.existing_videos([camera]):
            # Once, rather than for every episode.
            value = f"0 of {sum(map(len, groups))} video files exist"
            findings.add("camera-without-files", INFO, f"features.{camera}", value, "all of them, or no such feature")
            continue
        pictures: list[PictureStatistics] = []
        others, images = OtherEpisodes(), {}
        for found, of_group in workers.map(check_video_group, groups, f"check {camera}", "videos"):
            findings.merge(found)
            pictures += of_group.pictures
            images |= of_group.images
            for position, thumbnail_HWC in of_group.thumbnails.items():
                file = dataset.episodes.file_name(position, camera)
                others.add(file, f"episode {dataset.episodes.index_N[position]}", thumbnail_HWC)
        is_swapped = check_pictures(dataset, pictures, findings)
        others.check(findings)
        _check_states(dataset, camera, {p: v for p, v in images.items() if p not in is_swapped}, states, findings)


@dataclass
class GroupImages:
    """What the images of some video files show.

    Args:
        pictures: Statistics of the episodes whose pictures are not as recorded.
        thumbnails: Position of an episode -> thumbnail_HWC.
        images: Position of an episode -> images_TP, of the first episodes.
    """

    pictures: list[PictureStatistics] = field(default_factory=list)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    images: dict[int, np.ndarray] = field(default_factory=dict)


def check_video_group(check: LeRobotCheck, group: FileGroup) -> tuple[Findings, GroupImages]:
    """Check some video files; called in any process."""
    findings, shown = Findings(), GroupImages()
    with EpisodeStatistics(check, findings, of_pictures=True) as recorded:
        for file in group.single_files(check.dataset.episodes):
            first = f"episode {check.dataset.episodes.index_N[file.positions[0]]}"
            named_by = f"{file.named_by(check.dataset.episodes)}, {first}"
            path = find_file(check.dataset.root, file.file, named_by, findings)
            if path is None:
                continue
            spans = Spans.of(check.dataset, file)
            readers = {} if check.fast else _readers(check.dataset, file, recorded)
            av.logging.set_libav_level(av.logging.PANIC)  # what it would print becomes a finding
            try:
                scan = scan_video(path, not check.fast, spans.distribute(readers) if readers else None)
            finally:
                av.logging.set_libav_level(av.logging.ERROR)
            _check_stream(check.dataset, file, scan, findings)
            _check_spans(check.dataset, file, spans, scan, findings)
            for place, reader in readers.items():
                _add_images(shown, file, int(file.positions[place]), reader)
    return findings, shown


def _add_images(shown: GroupImages, file: FileGroup, position: int, reader: EpisodeReader) -> None:
    sampler = reader.sampler
    if sampler is not None and (decoded_F := sampler.statistics_F()) is not None:
        picture = PictureStatistics(file.camera, position, file.file, decoded_F, sampler.recorded_F)
        shown.pictures += [picture] if picture.difference > NOTICEABLE else []
    if (mean_HWC := reader.thumbnail.mean_HWC()) is not None:
        shown.thumbnails[position] = mean_HWC
    if reader.gray is not None and (images_TP := reader.gray.images_TP()) is not None:
        shown.images[position] = images_TP


def _check_states(
    dataset: LeRobotMeta, camera: str, images: dict[int, np.ndarray], states: dict[int, np.ndarray], findings: Findings
) -> None:
    """Report episodes whose images show other states than their own."""
    episodes = dataset.episodes
    num_rows = {position: int(episodes.length_N[position]) for position in images}
    for found in find_other_states(images, states, num_rows):
        file, name = episodes.file_name(found.position, camera), f"episode {episodes.index_N[found.position]}"
        expected = f"its own, as images of {found.num_others} other episodes show theirs"
        if found.shown == found.position:
            findings.add("video-backwards", file, name, "images that show its states in reverse", expected)
        else:
            value = f"images that show the states of episode {episodes.index_N[found.shown]}"
            findings.add("video-swapped", file, name, value, expected, severity="warning")


@dataclass(frozen=True)
class EpisodeReader:
    """Takes the frames of an episode.

    Args:
        sampler: Computes their statistics; None where none are recorded.
        thumbnail: Keeps the scene.
        gray: Keeps what is compared with the states; None for an episode that is not.
    """

    sampler: PictureSampler | None
    thumbnail: Thumbnail
    gray: GrayImages | None

    def add(self, frame: av.VideoFrame) -> None:
        """Take the next frame."""
        rgb_HWC = None if self.sampler is None else self.sampler.add(frame)
        self.thumbnail.add(frame if rgb_HWC is None else rgb_HWC)
        if self.gray is not None:
            self.gray.add(frame)


@dataclass(frozen=True)
class Spans:
    """Where in a file its episodes are, in seconds: from and to, or the whole file for a v2 episode."""

    from_s_E: np.ndarray
    to_s_E: np.ndarray
    half_frame_s: float

    @classmethod
    def of(cls, dataset: LeRobotMeta, file: FileGroup) -> Spans:
        """Return the spans of the episodes of a file."""
        places = dataset.episodes.cameras[file.camera][file.positions]
        half_frame_s = float(1 / (2 * dataset.fps))
        if places.from_s_N is None or places.to_s_N is None:
            return cls(np.zeros(len(file.positions)), np.full(len(file.positions), np.inf), half_frame_s)
        return cls(places.from_s_N, places.to_s_N, half_frame_s)

    def distribute(self, readers: dict[int, EpisodeReader]) -> Callable[[float, av.VideoFrame], None]:
        """Return a function that passes each decoded frame to the reader of its episode, by place in the file."""
        # Lists, as NumPy would take longer for one number than the decoder for a small frame.
        starts, ends = ((s_E - self.half_frame_s).tolist() for s_E in (self.from_s_E, self.to_s_E))

        def on_frame(time_s: float, frame: av.VideoFrame) -> None:
            place = bisect_right(starts, time_s) - 1
            if place in readers and time_s < ends[place]:
                readers[place].add(frame)

        return on_frame


def _readers(dataset: LeRobotMeta, file: FileGroup, recorded: EpisodeStatistics) -> dict[int, EpisodeReader]:
    """Return a reader for each episode of the file, by place in the file."""
    readers, samplers = {}, _samplers(dataset, file, recorded)
    for place, position in enumerate(file.positions.tolist()):
        length, sampler = int(dataset.episodes.length_N[position]), samplers.get(place)
        if length > 0:
            thumbnail = Thumbnail(length, None if sampler is None else sampler.sampled_N)
            is_compared = STATE in dataset.features and position < MAX_EPISODES and length >= MIN_ROWS
            readers[place] = EpisodeReader(sampler, thumbnail, GrayImages(length) if is_compared else None)
    return readers


def _samplers(dataset: LeRobotMeta, file: FileGroup, recorded: EpisodeStatistics) -> dict[int, PictureSampler]:
    """Return a sampler for each episode of the file whose pictures have recorded statistics, by place in the file."""
    statistics = recorded.read(file.positions).get(file.camera, {})
    mean_EC, deviation_EC = statistics.get("mean"), statistics.get("std")
    if mean_EC is None or deviation_EC is None or mean_EC.shape[1] != 3 or deviation_EC.shape[1] != 3:
        return {}
    recorded_EF = np.concatenate([mean_EC, deviation_EC], axis=1)
    return {
        place: PictureSampler(int(dataset.episodes.length_N[position]), recorded_EF[place])
        for place, position in enumerate(file.positions.tolist())
        if np.isfinite(recorded_EF[place]).all()
    }


def _check_stream(dataset: LeRobotMeta, file: FileGroup, scan: VideoScan, findings: Findings) -> None:
    if scan.error is not None:
        findings.add("damaged-video", file.file, f"after {len(scan.times_s)} frames", scan.error, "a whole video")
        return
    if scan.num_corrupt:
        findings.add("damaged-video", file.file, "", f"{scan.num_corrupt} corrupt frames", "none")
    fps = float(dataset.fps)
    if scan.fps is not None and abs(scan.fps - fps) > fps * 1e-3:
        findings.add("fps-differs", file.file, "", f"{scan.fps:g} frames a second", f"{fps:g} as in info.json")
    feature = dataset.features[file.camera]
    size, info = picture_size(feature), video_info(feature)
    height, width = scan.display.orientation.size(scan.height, scan.width)
    if size and size != (height, width):
        findings.add("picture-size", file.file, "", f"{height}x{width}", f"{size[0]}x{size[1]}, as in info.json")
    if not scan.display.is_plain:
        aspect = f"pixels of {scan.display.pixel_aspect}" if scan.display.pixel_aspect != 1 else "turned frames"
        findings.add("video-display", file.file, "", aspect, "square pixels, upright")
    for key, value in (("codec", scan.codec), ("pix_fmt", scan.pix_fmt)):
        stated = info.get(f"video.{key}")
        if isinstance(stated, str) and value is not None and stated != value:
            findings.add("video-info", file.file, key, value, f"{stated} as in info.json")


def _check_spans(dataset: LeRobotMeta, file: FileGroup, spans: Spans, scan: VideoScan, findings: Findings) -> None:
    episodes = dataset.episodes
    if dataset.is_v3:
        for place in np.flatnonzero(spans.from_s_E[1:] < spans.to_s_E[:-1] - TIME_TOLERANCE_S).tolist():
            before, after = (int(position) for position in file.positions[place : place + 2])
            findings.add("video-overlap", episodes.source(after), f"episode {episodes.index_N[after]}, from_timestamp",
                         f"{spans.from_s_E[place + 1]:.6f} s",
                         f"at least {spans.to_s_E[place]:.6f} s, where episode {episodes.index_N[before]} ends in "
                         f"{file.file}")  # fmt: skip
        num_named = int(episodes.length_N[file.positions].sum())
        if scan.error is None and len(scan.times_s) > num_named:
            findings.add("spare-frames", file.file, "", f"{len(scan.times_s)} frames",
                         f"{num_named}, as its episodes have")  # fmt: skip
    for place in range(len(file.positions)):
        _check_episode(dataset, file, place, spans, scan, findings)


def _check_episode(
    dataset: LeRobotMeta, file: FileGroup, place: int, spans: Spans, scan: VideoScan, findings: Findings
) -> None:
    position = int(file.positions[place])
    length, name = int(dataset.episodes.length_N[position]), f"episode {dataset.episodes.index_N[position]}"
    from_s, to_s, times_T = float(spans.from_s_E[place]), float(spans.to_s_E[place]), scan.times_s
    if dataset.is_v3:
        length_s = frame_time_s(length, dataset.fps)
        if not abs(to_s - from_s - length_s) <= TIME_TOLERANCE_S:
            findings.add("video-span", dataset.episodes.source(position), f"{name}, to_timestamp - from_timestamp",
                         f"{to_s - from_s:.6f} s", f"length / fps = {length_s:.6f} s")  # fmt: skip
        # Frames come in the order of their times; searching keeps a file of many episodes linear.
        begin, end = np.searchsorted(times_T, [from_s - spans.half_frame_s, to_s - spans.half_frame_s])
        times_T = times_T[begin:end]
    if scan.error is None and len(times_T) != length:
        num_rows = file.num_rows.get(position)
        rows = "" if num_rows is None else f", {num_rows} rows"
        findings.add("frame-count", file.file, name, f"{len(times_T)} frames{rows}", f"length {length}")
    expected_T = from_s + frame_times_s(min(len(times_T), length), dataset.fps)
    off_T = ~(np.abs(times_T[: len(expected_T)] - expected_T) <= TIME_TOLERANCE_S)
    if off_T.any():
        frame = int(np.argmax(off_T))
        findings.add("frame-time", file.file, f"{name}, frame {frame}", f"{times_T[frame]:.6f} s",
                     f"{expected_T[frame]:.6f} s")  # fmt: skip
