"""What single scores find of the harder known-bad clips, at 2 % false alarms: docs/curation.md.

    python benchmarks/curation_scores.py --gr1 data/robot_sim.PickNPlace --out benchmarks/results/curation_scores.json

Clips are those of `benchmarks/curation.py`. One half of the recordings are the demonstrations, the other half is real
or spoiled. A threshold is where a score rejects 2 % of the real clips, none of fewer than fifty. It is set on the real
clips that it is tried on, so shares are those of the best threshold. A score that needs a VAE gets that of mini. Real
clips after this VAE are one more kind, though not a bad one: the best that a world model with this VAE could do.

Axes: N clips.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bad_clips
import cv2
import numpy as np
import torch
from bad_clips import BenchClip, spoiled
from curation import CRF, FPS, LOW_QUALITY_CRF, gr1_clips, metaworld, values_of
from metrics import markdown_table, write_report

from dreamgen.config.settings import ModelSettings
from dreamgen.data.video import write_video
from dreamgen.demo.run import DATA
from dreamgen.extensions.score import SCORES
from dreamgen.models.cosmos_predict25.round_trip import vae_round_trip
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder

KINDS = ("teleporting object", "reversed", "another episode's end", "another task's instruction")
COPY, AFTER_VAE = "copy of a demonstration", "real, after the VAE"
FALSE_ALARMS = 0.02


def main() -> None:
    """Measure the clips of each source and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gr1", type=Path, help="the GR1 episodes; without them the demo's episodes alone")
    parser.add_argument("--metaworld", type=Path, nargs="*", default=[], help="more datasets of examples/metaworld")
    parser.add_argument("--scores", nargs="+", default=["end_frame_difference", "demonstration_difference",
                                                        "epipolar_error", "disorder", "jump"])  # fmt: skip
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=bad_clips.KINDS)
    parser.add_argument("--max_clips", type=int, default=60, help="clips of each kind and source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON with the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sources = {"Meta-World": [clip for root in (DATA / "demonstrations", *given.metaworld) for clip in metaworld(root)]}
    if given.gr1:
        sources["GR1"] = gr1_clips(given.gr1)
    results = {name: measured(clips, given) for name, clips in sources.items()}
    write_report({"seed": given.seed, "sources": results}, given.out)
    for name, result in results.items():
        print(f"\n{name}: {result['num_demonstrations']} demonstrations, {result['num_real']} real clips")
        kinds = [kind for kind in result["values"] if kind != "real"]
        print(markdown_table(["score", "threshold", *kinds], [
            [score, f"{row['threshold']:.3g}" if row["threshold"] is not None else "",
             *(f"{share['found']} of {share['num']}" for share in (row["kinds"][kind] for kind in kinds))]
            for score, row in result["scores"].items()
        ]))  # fmt: skip


def measured(clips: list[BenchClip], given: argparse.Namespace) -> dict[str, Any]:
    """Measure real and spoiled clips of one half of the recordings against the other half."""
    random = np.random.default_rng(given.seed)
    episodes = random.permutation(sorted({clip.episode for clip in clips}))
    demonstrated = set(episodes[: len(episodes) // 2])
    demonstrations = [clip for clip in clips if clip.episode in demonstrated]
    held_out = [clip for clip in clips if clip.episode not in demonstrated]
    held_out = [held_out[i] for i in random.permutation(len(held_out))[: given.max_clips]]
    with tempfile.TemporaryDirectory() as folder:
        train, trip = training_set(Path(folder), demonstrations), None
        if any(SCORES.get(name).needs_vae for name in given.scores):
            model = ModelSettings(path="mini", revision=None, dtype="float32", device="cpu")
            trip = vae_round_trip(resolve_world_model(model, RunFolder(Path(folder))), torch.device("cpu"))
        real = [values_of(clip, crf, train, trip) for clip in held_out for crf in (CRF, LOW_QUALITY_CRF)]
        bad = {}
        for kind in given.kinds:
            made = (spoiled(clip, kind, held_out, random) for clip in held_out)
            bad[kind] = [values_of(clip, CRF, train, trip) for clip in made if clip is not None]
        copies = [replace(clip, kind=COPY) for clip in demonstrations[: given.max_clips]]
        bad[COPY] = [values_of(clip, LOW_QUALITY_CRF, train, trip) for clip in copies]
        if trip is not None:
            whole = [clip.video_THWC[: (len(clip.video_THWC) - 1) // 4 * 4 + 1] for clip in held_out]
            returned = (replace(clip, video_THWC=trip(v)) for clip, v in zip(held_out, whole, strict=True))
            bad[AFTER_VAE] = [values_of(clip, CRF, train, trip) for clip in returned]
    rows = {name: row_of(name, real, bad) for name in given.scores}
    return {"num_demonstrations": len(demonstrations), "num_real": len(real), "scores": rows,
            "values": {"real": real, **bad}}  # fmt: skip


def training_set(folder: Path, clips: Sequence[BenchClip]) -> Path:
    """Write demonstrations as prepare does, as far as scores of frames read them."""
    rows = []
    for number, clip in enumerate(clips):
        write_video(folder / "videos" / f"{number}.mp4", clip.video_THWC, FPS, crf=CRF)
        rows.append((f"videos/{number}.mp4", clip.instruction, clip.instruction, clip.source, len(clip.video_THWC)))
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "prompt", "instruction", "source", "num_frames"), *rows])
    return folder


def row_of(name: str, real: Sequence[dict[str, float]], bad: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the threshold of a score, and how many clips of each kind it finds; clips without a value pass."""
    sign = 1 if SCORES.get(name).threshold.direction == "max" else -1
    known = np.sort([sign * values[name] for values in real if name in values])[::-1]
    limit = known[int(len(known) * FALSE_ALARMS)] if len(known) else np.inf
    found = {kind: {"num": len(some), "found": int(sum(sign * v.get(name, -sign * np.inf) > limit for v in some))}
             for kind, some in bad.items()}  # fmt: skip
    return {"threshold": float(sign * limit) if len(known) else None, "num_real": len(known), "kinds": found}


if __name__ == "__main__":
    main()
