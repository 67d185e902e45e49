"""Which encoded videos can be copied as they are: into a run, and into a dataset."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dreamgen.data.video import open_packets
from dreamgen.run.files import atomic_file


def copy_problem(packets: Sequence[av.Packet], fps: int) -> str | None:
    """Return why packets cannot be copied into a dataset, or None.

    Args:
        packets: Of one video, in the order of the file.
        fps: The rate that it should have.

    Returns:
        The problem: the first frame is no key frame, frames are stored out of order, or frame i is not at i / fps.
    """
    if not packets[0].is_keyframe:
        return "the first frame is not a key frame"
    for index, packet in enumerate(packets):
        if packet.pts is None or packet.pts * packet.time_base != Fraction(index, fps):
            time = "no time" if packet.pts is None else f"{float(packet.pts * packet.time_base):.6f} s"
            return f"packet {index} has {time}, not {index}/{fps} s"
    return None


def can_be_copied(path: str | Path, fps: int, gop: int) -> bool:
    """Return whether a video is as `write_video` writes it: copied packets give the same frames, and seeking is fast.

    Args:
        path: The video.
        fps: The rate that it should have.
        gop: Most frames from one key frame to the next.
    """
    with open_packets(path) as (info, _, packets, _):
        keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        steps = np.diff([*keys, len(packets)])
        return info.display.is_plain and copy_problem(packets, fps) is None and max(steps) <= gop


def copy_video(source: Path, path: Path) -> None:
    """Copy a file, atomically."""
    with atomic_file(path) as temporary:
        shutil.copyfile(source, temporary)
