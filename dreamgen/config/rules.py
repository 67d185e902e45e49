"""Check values of the right type: each setting by its own bounds, then what depends on two settings."""

from __future__ import annotations

from dreamgen.config.paths import all_settings, get_path
from dreamgen.config.settings import MAX_CRF, Settings
from dreamgen.errors import Problems

MAX_H264_CRF = 51


def check_values(settings: Settings) -> None:
    """Refuse values of the right type that cannot work, all at once.

    Raises:
        UserError: listing each.
    """
    problems, video = Problems(), settings.video
    for path, setting in all_settings().items():
        problem = setting.option.problem(path, get_path(settings, path))
        if problem is not None:
            problems.errors.append(problem)
    if video.codec == "h264" and MAX_H264_CRF < video.crf <= MAX_CRF:
        problems.add("video.crf is too large for h264", actual=video.crf, allowed=f"0 to {MAX_H264_CRF}")
    if settings.export.real_share is not None and settings.export.mix_with is None:
        problems.add("export.real_share needs real episodes", next_step="--export.mix_with=path/to/lerobot_dataset")
    problems.raise_if_any("settings that cannot work")
