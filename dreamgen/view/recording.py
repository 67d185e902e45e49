"""Frames and vectors -> a Rerun recording.

Everything is on one timeline, `time`, in seconds from the beginning of the clip or episode, so that the viewer's cursor
is at the same frame in pictures and curves. Frames are JPEG: a viewer decodes them wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file
from dreamgen.view.sources import Shown, Vectors

TIMELINE, ABOUT = "time", "about"
JPEG_QUALITY = 92
FRAMES_AT_ONCE = 64


def import_rerun() -> Any:
    """Return the rerun package, with its blueprints.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import rerun  # pyright: ignore[reportMissingImports]  # an optional package
        import rerun.blueprint  # pyright: ignore[reportMissingImports]
    except ImportError:
        what = "dreamgen view needs Rerun, which is not installed"
        raise UserError(what, next_step="pip install 'dreamgen[view]'") from None
    return rerun


@contextmanager
def open_recording(name: str, file: Path | None) -> Iterator[Any]:
    """Open a recording that goes to a file, or to a viewer that is started for it.

    Args:
        name: Shown by the viewer.
        file: The file, written whole or not at all; None for a viewer.

    Yields:
        rerun.RecordingStream.

    Raises:
        UserError: if Rerun is not installed.
    """
    rerun = import_rerun()
    recording = rerun.RecordingStream("dreamgen")
    recording.send_recording_name(name)
    if file is None:
        recording.spawn()
        yield recording
        recording.flush()
        return
    with atomic_file(file) as temporary:
        recording.save(temporary)
        try:
            yield recording
        finally:
            recording.flush()
            recording.disconnect()


def record(recording: Any, shown: Sequence[Shown]) -> int:
    """Record clips or episodes, each in a tab of its own.

    Args:
        recording: rerun.RecordingStream.
        shown: What to record; frames are read here, a few at a time.

    Returns:
        Number of frames, each camera's counted.
    """
    rerun = import_rerun()
    rrb = rerun.blueprint
    tabs, num_frames = [], 0
    for one in shown:
        num_frames += sum(_record_frames(recording, one, camera) for camera in one.cameras)
        for column, vectors in one.vectors.items():
            _record_vectors(recording, one, column, vectors)
        document = rerun.TextDocument(one.about, media_type=rerun.MediaType.MARKDOWN)
        recording.log(_path(one, ABOUT), document, static=True)
        pictures = [rrb.Spatial2DView(origin=_path(one, camera), name=camera) for camera in one.cameras]
        curves = [rrb.TimeSeriesView(origin=_path(one, column), name=column) for column in one.vectors]
        words = rrb.TextDocumentView(origin=_path(one, ABOUT), name=ABOUT)
        tabs.append(rrb.Horizontal(rrb.Vertical(*pictures, words), rrb.Vertical(*curves), name=one.name))
    recording.send_blueprint(rrb.Blueprint(rrb.Tabs(*tabs)))
    return num_frames


def _record_vectors(recording: Any, shown: Shown, column: str, vectors: Vectors) -> None:
    rerun = import_rerun()
    path, (num_rows, num_dims) = _path(shown, column), vectors.values_TD.shape
    recording.log(path, rerun.SeriesLines(names=list(vectors.names)), static=True)
    times = rerun.TimeColumn(TIMELINE, duration=np.arange(num_rows) / shown.fps)
    scalars = rerun.Scalars.columns(scalars=vectors.values_TD.astype(np.float64).ravel())
    recording.send_columns(path, [times], scalars.partition([num_dims] * num_rows))


def _record_frames(recording: Any, shown: Shown, camera: str) -> int:
    rerun = import_rerun()
    path, first = _path(shown, camera), 0
    for frames in batched(shown.cameras[camera](), FRAMES_AT_ONCE):
        times = rerun.TimeColumn(TIMELINE, duration=np.arange(first, first + len(frames)) / shown.fps)
        columns = rerun.EncodedImage.columns(blob=[*map(_jpeg, frames)], media_type=["image/jpeg"] * len(frames))
        recording.send_columns(path, [times], columns)
        first += len(frames)
    return first


def _path(shown: Shown, part: str) -> str:
    """Return the path of a part of a clip or episode; special characters of names are escaped."""
    return import_rerun().new_entity_path([shown.name, part])


def _jpeg(frame_HWC: np.ndarray) -> bytes:
    image_HWC = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", image_HWC, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "JPEG encoding of a uint8 array does not fail"
    return data.tobytes()
