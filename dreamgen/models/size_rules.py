"""The clip sizes that a world model can generate."""

from __future__ import annotations

from dataclasses import dataclass

from dreamgen.config.settings import VideoSettings
from dreamgen.errors import Problems


@dataclass(frozen=True)
class SizeRules:
    """Allowed heights, widths and numbers of frames.

    Args:
        size_multiple_px: Height and width are multiples of this.
        frame_multiple: A clip has `frame_multiple` * k + 1 frames.
        min_frames: Fewest frames of a clip.
    """

    size_multiple_px: int = 16
    frame_multiple: int = 4
    min_frames: int = 5

    def check(self, video: VideoSettings) -> None:
        """Refuse a size that the model cannot generate.

        Raises:
            UserError: listing each setting that does not fit, with the nearest value that does.
        """
        problems, multiple = Problems(), self.size_multiple_px
        for name, size in (("height", video.height), ("width", video.width)):
            if size < multiple or size % multiple:
                problems.add(
                    f"video.{name} is not divisible by {multiple}",
                    actual=size,
                    allowed=f"multiples of {multiple}",
                    next_step=f"--video.{name}={max(multiple, round(size / multiple) * multiple)}",
                )
        if video.num_frames < self.min_frames or (video.num_frames - 1) % self.frame_multiple:
            near = max(self.min_frames, (video.num_frames - 1) // self.frame_multiple * self.frame_multiple + 1)
            problems.add(
                "video.num_frames is not a length that the model generates",
                actual=video.num_frames,
                allowed=f"{self.frame_multiple}k + 1, at least {self.min_frames}",
                next_step=f"--video.num_frames={near}",
            )
        problems.raise_if_any("the world model cannot generate clips of this size")
