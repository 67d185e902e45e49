"""How many known-bad clips the curation scores find, and how many real ones they reject: docs/curation.md.

    python benchmarks/curation.py --gr1 data/robot_sim.PickNPlace --metaworld data/heldout data/base \\
        --vae_trips 40 --out benchmarks/results/curation.json

Real clips are windows of GR1 episodes, the demo's episodes, and episodes of examples/metaworld/record.py. They also
count after an encoder of low quality and after the VAE of mini, so that thresholds do not ask for pristine video. Each
recording is either for calibration or held out; known-bad clips are made from those held out. Every clip is encoded,
decoded and measured as `dreamgen curate` does it.

Axes: T frames, H height, W width, C channels, N clips.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bad_clips import KINDS, BenchClip, spoiled
from metaworld_clips import read_clips
from metrics import markdown_table

from dreamgen.config.settings import CurateSettings, ModelSettings
from dreamgen.curate.calibration import calibrate, wilson_interval
from dreamgen.curate.measure import measure_clip
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.images import write_png
from dreamgen.data.timeline import resampled_indices
from dreamgen.data.video import read_video, write_video
from dreamgen.demo.run import DATA
from dreamgen.extensions.score import SCORES
from dreamgen.models.cosmos_predict25.latents import decode_video, vae_means
from dreamgen.models.cosmos_predict25.loading import load_vae
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.files import write_json
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

FPS, GR1_FPS, GR1_FRAMES, GR1_STEP = 16, 20, 93, 46
CRF, LOW_QUALITY_CRF = 18, 28
METRICS = [score for _, score in SCORES.items()]


def main() -> None:
    """Measure all clips, calibrate, and print and write the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gr1", type=Path, help="the GR1 episodes")
    parser.add_argument("--metaworld", type=Path, nargs="*", default=[], help="datasets of examples/metaworld")
    parser.add_argument("--vae_trips", type=int, default=40, help="real clips that also count after mini's VAE")
    parser.add_argument("--max_bad", type=int, default=60, help="known-bad clips of each kind and source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="JSON file; sources that it has already are kept, as sources can be measured one by one",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    random = np.random.default_rng(given.seed)
    results = json.loads(given.out.read_text())["sources"] if given.out.exists() else {}
    results = {name: evaluated(result["values"]) for name, result in results.items()}  # thresholds as they are set now
    if given.gr1:
        results["GR1"] = measured("GR1", gr1_clips(given.gr1), given, random)
    if given.metaworld:
        clips = [clip for root in (DATA / "demonstrations", *given.metaworld) for clip in metaworld(root)]
        results["Meta-World"] = measured("Meta-World", clips, given, random)
    write_json(given.out, {"seed": given.seed, "sources": results, "untrained": untrained_clips()})
    print(table_of(results))


def gr1_clips(root: Path) -> list[BenchClip]:
    """Return windows of the episodes at the rate and length of a clip, half of which overlap."""
    texts = [json.loads(line)["tasks"][0] for line in (root / "meta" / "episodes.jsonl").read_text().splitlines()]
    clips = []
    for number, path in enumerate(sorted(root.rglob("observation.images.ego_view/*.mp4"))):
        video_THWC = read_video(path)
        video_THWC = video_THWC[resampled_indices(len(video_THWC), GR1_FPS, FPS)]
        for start in range(0, len(video_THWC) - GR1_FRAMES + 1, GR1_STEP):
            window_THWC = video_THWC[start : start + GR1_FRAMES]
            clips.append(BenchClip(window_THWC, window_THWC[0], texts[number], "GR1", f"GR1 {number}"))
    return clips


def metaworld(root: Path) -> list[BenchClip]:
    """Return the episodes of a dataset."""
    clips = read_clips(root)
    videos = clips.video_NTHWC.numpy()
    return [BenchClip(v, v[0], str(text), "Meta-World", f"{root.name} {number}")
            for number, (v, text) in enumerate(zip(videos, clips.instruction_N, strict=True))]  # fmt: skip


def measured(name: str, clips: list[BenchClip], given: argparse.Namespace, random: np.random.Generator) -> Any:
    """Calibrate on one half of the recordings, and test on the other."""
    episodes = random.permutation(sorted({clip.episode for clip in clips}))
    calibration_half = set(episodes[: len(episodes) // 2])
    # mini's VAE was trained on Meta-World: what it makes of anything else is not real video any more.
    trips = list(round_trips(clips, given.vae_trips if name == "Meta-World" else 0, random))
    real = [(clip, values_of(clip)) for clip in clips] + [(c, values_of(c, crf)) for c, crf in trips]
    for_calibration = [(c, v) for c, v in real if c.episode in calibration_half]
    tested = [(c, v) for c, v in real if c.episode not in calibration_half]
    held_out = [clip for clip, _ in tested if clip.kind == "real"]
    bad = {}
    for kind in KINDS:
        chosen = random.permutation(len(held_out))[: given.max_bad]
        made = (spoiled(held_out[i], kind, held_out, random) for i in chosen)
        bad[kind] = [values_of(clip) for clip in made if clip is not None]
        print(f"{name}: {kind}: {len(bad[kind])} clips", flush=True)
    return evaluated({
        "calibration": [v for _, v in for_calibration], "recordings": [c.episode for c, _ in for_calibration],
        "real": [v for _, v in tested], "trips": [c.kind for c, _ in tested], "bad": bad,
    })  # fmt: skip


def evaluated(values: dict[str, Any]) -> dict[str, Any]:
    """Set thresholds on the clips for calibration, and count what they and the defaults reject of the others."""
    metrics = [m for m in METRICS if m.is_calibrated]
    table = {m.name: np.array([v.get(m.name) for v in values["calibration"]], float) for m in metrics}
    found = calibrate(table, values["recordings"], metrics)
    both = {"defaults": defaults(), "calibrated": {**defaults(), **found.limits}}
    real, trips = values["real"], values["trips"]
    by_trip = {trip: [v for v, t in zip(real, trips, strict=True) if t == trip] for trip in sorted(set(trips))}
    return {
        "num_calibration": len(values["calibration"]), "num_held_out": len(real), "thresholds": both["calibrated"],
        "real": {key: share(real, limits) for key, limits in both.items()},
        "real_by_trip": {trip: share(some, both["calibrated"]) for trip, some in by_trip.items()},
        "bad": {kind: {key: share(some, limits) for key, limits in both.items()}
                for kind, some in values["bad"].items()},
        "found_by": {kind: reasons(some, both["calibrated"]) for kind, some in values["bad"].items()},
        "false_alarms_by": reasons(real, both["calibrated"]),
        "values": values,
    }  # fmt: skip


def round_trips(clips: list[BenchClip], num: int, random: np.random.Generator) -> Iterator[tuple[BenchClip, int]]:
    """Yield real clips for an encoder of low quality, and some after the VAE of mini, with the crf to encode them."""
    for clip in clips:
        yield replace(clip, kind="real, low quality"), LOW_QUALITY_CRF
    if not num:
        return
    with tempfile.TemporaryDirectory() as folder:
        model = ModelSettings(path="mini", revision=None, dtype="float32", device="cpu")
        vae = load_vae(resolve_world_model(model, RunFolder(Path(folder)))).eval()
    for index in random.permutation(len(clips))[:num]:
        small = [cv2.resize(f, (128, 128), interpolation=cv2.INTER_AREA) for f in clips[index].video_THWC]
        video_THWC = np.stack(small)[: 4 * ((min(len(small), 25) - 1) // 4) + 1]  # mini's size and length
        with torch.no_grad():
            video_BCTHW = decode_video(vae, vae_means(vae, torch.from_numpy(video_THWC[None])))
        pixels_CTHW = (video_BCTHW[0] * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        decoded_THWC = pixels_CTHW.permute(1, 2, 3, 0).numpy()
        yield replace(clips[index], video_THWC=decoded_THWC, first_frame_HWC=video_THWC[0], kind="real, VAE"), CRF


def values_of(
    clip: BenchClip, crf: int = CRF, train: Path | None = None, trip: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, float]:
    """Encode a clip and measure it as curate does, with the demonstrations of a training set and a VAE, if given."""
    num, height, width, _ = clip.video_THWC.shape
    job = Job(
        clip_id="0" * 20, first_frame_sha256="0" * 64, num_conditioning_frames=1, instruction=clip.instruction,
        prompt=clip.instruction, negative_prompt="", seed=0, height=height, width=width, num_frames=num, num_chunks=1,
        chunk_overlap=1, fps=FPS, num_inference_steps=1, guidance_scale=1.0, level="exact", step_skipping="{}",
        model="", model_sha256="", adapter=None, adapter_sha256=None, dtype="float32", codec="h264", crf=crf, gop=2,
        source=clip.source,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        if train is not None:
            run.train.symlink_to(train, target_is_directory=True)
        write_png(run.first_frame_file("0" * 64), clip.first_frame_HWC)
        write_video(run.clip_file(job.clip_id), clip.video_THWC, FPS, crf=crf)
        context = ClipContext(run, job, keeps_windows=trip is not None)
        context.vae_trip = trip
        record = measure_clip(context)
    assert record.status == "ok", record.traceback
    return {m.name: record.metrics[m.name] for m in METRICS if record.metrics.get(m.name) is not None}


def untrained_clips() -> dict[str, Any]:
    """Return how many clips of a VAE with random weights, as mini-random has, the default thresholds reject."""
    with tempfile.TemporaryDirectory() as folder:
        model = ModelSettings(path="mini-random", revision=None, dtype="float32", device="cpu")
        vae = load_vae(resolve_world_model(model, RunFolder(Path(folder)))).eval()
    values = []
    for seed in range(8):
        latents = torch.randn((1, 16, 7, 16, 16), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            pixels = (decode_video(vae, latents)[0] * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        video_THWC = pixels.permute(1, 2, 3, 0).numpy()
        clip = BenchClip(video_THWC, video_THWC[0], "push", "mini-random", str(seed))
        values.append(values_of(clip))  # its own first frame: without the help of that score
    return {"defaults": share(values, defaults()), "found_by": reasons(values, defaults()), "values": values}


def defaults() -> dict[str, float | None]:
    """Return the default thresholds."""
    limits = CurateSettings()
    return {m.threshold.setting: getattr(limits, m.threshold.setting) for m in METRICS}


def share(values: Sequence[dict[str, float]], limits: dict[str, float | None]) -> dict[str, Any]:
    """Return how many clips are rejected."""
    num = sum(bool(rejecting(v, limits)) for v in values)
    return {"num": len(values), "rejected": num, "interval": wilson_interval(num, len(values))}


def rejecting(values: dict[str, float], limits: dict[str, float | None]) -> list[str]:
    """Return the names of the metrics that reject a clip."""
    return [m.name for m in METRICS if m.name in values
            and m.threshold.is_violated(values[m.name], limits[m.threshold.setting])]  # fmt: skip


def reasons(values: Sequence[dict[str, float]], limits: dict[str, float | None]) -> dict[str, int]:
    """Return how many clips each metric rejects."""
    names = [name for v in values for name in rejecting(v, limits)]
    return {name: names.count(name) for name in sorted(set(names), key=names.count, reverse=True)}


def table_of(results: dict[str, Any]) -> str:
    """Return the table for docs/curation.md."""
    headers = ["clips"]
    for name in results:
        headers += [f"{name}: defaults", f"{name}: calibrated", f"{name}: found by"]
    rows = []
    for kind in ("real, held out", *KINDS):
        row = [kind]
        for result in results.values():
            shares = result["real"] if kind == "real, held out" else result["bad"][kind]
            by = result["false_alarms_by"] if kind == "real, held out" else result["found_by"][kind]
            row += [f"{100 * s['rejected'] / max(s['num'], 1):.0f} % of {s['num']}" for s in shares.values()]
            row.append(", ".join(list(by)[:2]))
        rows.append(row)
    return markdown_table(headers, rows)


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"{time.perf_counter() - begun:.0f} s")
