"""Draw the clips of a run as one animated WebP: the picture at the top of the README.

python examples/metaworld/animate.py --run runs/demo --out docs/images/demo.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dreamgen.data.video import read_video

COLUMNS = 3


def main() -> None:
    """Write the animation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with clips")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fps", type=int, default=12)
    args = parser.parse_args()
    clips = sorted((args.run / "clips").glob("*/*.mp4"))
    clips = clips[: len(clips) // COLUMNS * COLUMNS]
    if not clips:
        parser.error(f"{args.run / 'clips'} has fewer than {COLUMNS} clips")
    videos_NTHWC = np.stack([read_video(path) for path in clips])
    rows = [np.concatenate(list(videos_NTHWC[i : i + COLUMNS]), axis=2) for i in range(0, len(clips), COLUMNS)]
    frames = [Image.fromarray(frame_HWC) for frame_HWC in np.concatenate(rows, axis=1)]
    held = [*frames, *[frames[-1]] * args.fps]  # the end stays for a second
    held[0].save(args.out, save_all=True, append_images=held[1:], duration=1000 // args.fps, loop=0, quality=80)


if __name__ == "__main__":
    main()
