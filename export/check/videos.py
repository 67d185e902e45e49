"""The videos of a LeRobot dataset: every file is decoded to its end and each frame's time is compared."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from dreamgen.core.timeline import frame_time_s, frame_times_s
from export.check.findings import Findings
from export.check.lerobot import INFO
from export.check.metadata import EpisodeEntry, LeRobotEntry, VideoSpan, existing
from export.check.rows import TIME_TOLERANCE_S, RowSummary

NO_PICTURES = "loading fails, or the episode has no pictures"


@dataclass(frozen=True)
class DecodedVideo:
    """What decoding a whole video gave; `error` says why it ended early."""

    times_s: np.ndarray
    height: int
    width: int
    codec: str
    pix_fmt: str | None
    fps: float | None
    num_corrupt: int
    error: str | None


def decode_video(path: Path) -> DecodedVideo:
    """Decode every frame of a video, without converting its pixels."""
    times_s: list[float] = []
    num_corrupt, error = 0, None
    height = width = 0
    codec, pix_fmt, fps = "none", None, None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return DecodedVideo(np.empty(0), 0, 0, codec, None, None, 0, "no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            codec, pix_fmt = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt
            height, width = stream.codec_context.height, stream.codec_context.width
            fps = float(stream.average_rate) if stream.average_rate else None
            for frame in container.decode(stream):
                times_s.append(np.nan if frame.pts is None else float(frame.pts * frame.time_base))
                num_corrupt += bool(frame.is_corrupt)
    except (av.FFmpegError, ValueError) as failure:
        error = getattr(failure, "strerror", None) or str(failure)
    return DecodedVideo(np.array(times_s), height, width, codec, pix_fmt, fps, num_corrupt, error)


def check_videos(dataset: LeRobotEntry, rows: RowSummary, findings: Findings) -> None:
    """Decode every video that the metadata names, and compare frames with rows, lengths and times."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # what ffmpeg complains of becomes a finding
    for camera in dataset.cameras:
        by_file: dict[str, list[tuple[EpisodeEntry, VideoSpan]]] = defaultdict(list)
        for episode in dataset.episodes:
            if camera in episode.videos:
                by_file[episode.videos[camera].file].append((episode, episode.videos[camera]))
        files = list(by_file)
        if files and not _any_exists(dataset.root, camera, files, findings):
            continue
        for file, spans in by_file.items():
            named_by = f"{spans[0][0].named_by}, {spans[0][0].name}"
            path = existing(dataset.root, file, named_by, findings, NO_PICTURES)
            if path is None:
                continue
            video = decode_video(path)
            _check_stream(dataset, camera, file, video, findings)
            _check_spans(file, spans, video, dataset, findings)
            for episode, span in spans:
                _check_episode(dataset, file, episode, span, video, rows, findings)


def _any_exists(root: Path, camera: str, files: list[str], findings: Findings) -> bool:
    """Report a camera that has no file at all once, rather than for every episode."""
    here = root.resolve()
    if any((here / file).is_file() for file in files):
        return True
    findings.error("camera without files", INFO, f"features.{camera}", f"0 of {len(files)} video files exist",
                   "all of them, or no such feature", NO_PICTURES)  # fmt: skip
    return False


def _check_stream(dataset: LeRobotEntry, camera: str, file: str, video: DecodedVideo, findings: Findings) -> None:
    if video.error is not None:
        findings.error(
            "damaged video", file, f"after {len(video.times_s)} frames", video.error, "a whole video", NO_PICTURES
        )
        return
    if video.num_corrupt:
        findings.error(
            "damaged video", file, "", f"{video.num_corrupt} corrupt frames", "none", "broken pictures are trained"
        )
    if video.fps is not None and abs(video.fps - dataset.fps) > dataset.fps * 1e-3:
        findings.error("fps", file, "", f"{video.fps:g} frames a second", f"{dataset.fps:g} as info.json says",
                       "pictures and actions run apart")  # fmt: skip
    feature = dataset.features[camera]
    size = feature_size(feature)
    if size and size != (video.height, video.width):
        findings.error("picture size", file, "", f"{video.height}x{video.width}",
                       f"{size[0]}x{size[1]}, as info.json says", "models are built for the wrong size")  # fmt: skip
    told = video_info(feature)
    for key, value in (("codec", video.codec), ("pix_fmt", video.pix_fmt)):
        said = told.get(f"video.{key}")
        if isinstance(said, str) and value is not None and said != value:
            findings.warning(
                "video info", file, key, value, f"{said} as info.json says", "a wrong decoder may be chosen"
            )


def _check_spans(
    file: str,
    spans: list[tuple[EpisodeEntry, VideoSpan]],
    video: DecodedVideo,
    dataset: LeRobotEntry,
    findings: Findings,
) -> None:
    placed = sorted((pair for pair in spans if pair[1].from_s is not None), key=lambda pair: pair[1].from_s)
    for (before, earlier), (after, later) in pairwise(placed):
        if later.from_s < earlier.to_s - TIME_TOLERANCE_S:
            findings.error("video overlap", after.named_by, f"{after.name}, from_timestamp", f"{later.from_s:.6f} s",
                           f"at least {earlier.to_s:.6f} s, where {before.name} ends in {file}",
                           "one episode's frames are read as another's")  # fmt: skip
    named = sum(episode.length for episode, _ in spans)
    if placed and video.error is None and len(video.times_s) > named:
        findings.warning("frame count", file, "", f"{len(video.times_s)} frames", f"{named}, as its episodes have",
                         "frames that no episode names may mean that offsets are wrong")  # fmt: skip


def _check_episode(
    dataset: LeRobotEntry, file: str, episode: EpisodeEntry, span: VideoSpan, video: DecodedVideo, rows: RowSummary,
    findings: Findings,
) -> None:  # fmt: skip
    from_s, times_s = span.from_s or 0.0, video.times_s
    if span.to_s is not None:
        length_s = frame_time_s(episode.length, dataset.exact_fps)
        if not abs(span.to_s - span.from_s - length_s) <= TIME_TOLERANCE_S:
            findings.error("video span", episode.named_by, f"{episode.name}, to_timestamp - from_timestamp",
                           f"{span.to_s - span.from_s:.6f} s", f"length / fps = {length_s:.6f} s",
                           "the next episode's frames are read, or frames are missed")  # fmt: skip
        half_s = 0.5 / dataset.fps
        times_s = times_s[(times_s >= from_s - half_s) & (times_s < span.to_s - half_s)]
    num_rows = rows.num_rows.get(episode.index)
    if video.error is None and len(times_s) != episode.length:
        beside = "" if num_rows is None else f", {num_rows} rows"
        findings.error("frame count", file, episode.name, f"{len(times_s)} frames decoded{beside}",
                       f"length {episode.length}",
                       "pictures and actions do not belong together")  # fmt: skip
    expected = np.array([from_s]) + _frame_times(min(len(times_s), episode.length), dataset)
    off = ~(np.abs(times_s[: len(expected)] - expected) <= TIME_TOLERANCE_S)
    if off.any():
        frame = int(np.argmax(off))
        findings.error("frame time", file, f"{episode.name}, frame {frame}", f"{times_s[frame]:.6f} s",
                       f"{expected[frame]:.6f} s", "the loader fails, or takes another frame")  # fmt: skip


def _frame_times(num_frames: int, dataset: LeRobotEntry) -> np.ndarray:
    return frame_times_s(num_frames, dataset.exact_fps)


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
