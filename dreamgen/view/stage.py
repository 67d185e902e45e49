"""`dreamgen view`: a clip, the clips of a run, or an episode of a LeRobot dataset in the Rerun viewer."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dreamgen.config.settings import ViewSettings
from dreamgen.errors import UserError, quoted
from dreamgen.run.records import StageResult
from dreamgen.view.recording import open_recording, record
from dreamgen.view.sources import episode_of, file_of, is_dataset, is_run, is_video, run_clips


def view(path: Path, settings: ViewSettings) -> StageResult:
    """Show frames, actions and states on one timeline.

    Args:
        path: A video, a run folder, or a LeRobot dataset. A clip in its run folder comes with its label and verdict.
        settings: What of it is shown, and whether it is saved.

    Returns:
        Counts; the recording, if it is saved.

    Raises:
        UserError: if Rerun is not installed, there is no display for its window, the recording exists, or there is
            nothing to show.
    """
    if is_run(path):
        shown = run_clips(path, settings.clips, settings.max_clips)
    elif is_dataset(path):
        shown = [episode_of(path, settings.episode)]
    elif is_video(path):
        shown = [file_of(path)]
    else:
        raise UserError(
            f"{path} cannot be shown", actual="a file or folder of another kind" if path.exists() else "no such path",
            allowed="a video, a run folder (with jobs.parquet), or a LeRobot dataset (with meta/info.json)",
        )  # fmt: skip
    file = None if settings.save is None else Path(settings.save)
    _check_target(file, path, os.environ)
    with open_recording(path.resolve().name, file) as recording:
        num_frames = record(recording, shown)
    notes = [] if file is None else [f"open it with:  rerun {quoted(file)}"]
    outputs = {} if file is None else {"recording": file}
    return StageResult("view", outputs, {"num_shown": len(shown), "num_frames": num_frames}, notes)


def _check_target(file: Path | None, path: Path, environment: Mapping[str, str]) -> None:
    """Refuse to replace a recording, or to open a window where there is no display."""
    save = f"dreamgen view {quoted(path)} --save=recording.rrd"
    if file is not None and file.exists():
        raise UserError(f"{file} already exists", allowed="a file that does not exist yet", next_step=save)
    has_display = sys.platform != "linux" or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if file is None and not has_display:
        raise UserError("there is no display for the viewer's window", next_step=f"{save}, then open it elsewhere")
