"""Clips an hour on one GPU: the published script's loop against ours at each level, same random weights, same noise.

    python benchmarks/generate.py --model cosmos2.5-2b --out benchmarks/results/generate.json
    python benchmarks/generate.py --model mini --height 64 --width 64 --num_frames 9 --num_steps 8     # a smoke test

The published loop calls the pipeline for each clip: it encodes both prompts, runs the VAE over 93 frames, makes 72
forward passes, decodes and writes the mp4. Ours is what a worker of `dreamgen generate` runs: two threads, one of which
samples while the other one encodes. Beside each time stands how far its clip is from the published one.

Axes: B batch, T frames, C channels, H height, W width.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from finetune_step import machine, release, synchronize
from metrics import markdown_table, shown, spread, write_report

from dreamgen.config.settings import ModelSettings
from dreamgen.curate.scores.cut_score import cut_score
from dreamgen.curate.scores.first_frame_psnr_db import psnr_db
from dreamgen.curate.scores.motion import motion
from dreamgen.data.clip_context import small_gray
from dreamgen.data.images import frame_sha256, read_image, write_png
from dreamgen.generate.clip import encode_prompt, generate_clip, make_clip
from dreamgen.generate.clip_generator import ClipGenerator
from dreamgen.generate.texts import prompt_tasks
from dreamgen.models.cosmos_predict25.model import noise_for
from dreamgen.models.cosmos_predict25.random_models import model_sizes, random_pipeline
from dreamgen.models.cosmos_predict25.step_skipping import level_step_skipping, num_forwards
from dreamgen.models.world_model import WORLD_MODELS, WorldModelSource
from dreamgen.run.records import Job, job_id
from dreamgen.run.run_folder import RunFolder

# As a worker of `generate` is started.
NUM_THREADS = 2
NEGATIVE_PROMPT = WORLD_MODELS.get("cosmos_predict25").load_class().default_negative_prompt
X264_DEFAULTS = {"preset": "medium", "crf": "23"}  # what the published export leaves to the encoder


def main() -> None:
    """Measure the published loop and each level, print the table, and write the results."""
    args = parse_arguments()
    device, dtype = torch.device(args.device), torch.bfloat16
    sizes = model_sizes(args.model)
    pipe = random_pipeline(sizes, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        jobs = {level: [make_job(args, run, level, seed) for seed in range(args.num_clips)] for level in args.levels}
        first = next(iter(jobs.values()))[0]
        rows, published_THWC = [], None
        if args.num_published:
            times, published_THWC = measure_published(pipe, first, args.num_published, run.root, device)
            rows.append(row("published", times, 2 * args.num_steps))
        generator = make_generator(pipe, run, compiled=device.type == "cuda")
        for task in prompt_tasks(run, [first]):
            record = encode_prompt(generator, task)
            assert record.status == "ok", record.traceback
        pipe.text_encoder = pipe.tokenizer = None
        release(device)
        for level, of_level in jobs.items():
            warm_up = make_job(args, run, level, seed=10**6, num_steps=2)
            record = make_clip(generator, warm_up)
            assert record.status == "ok", record.traceback
            video_THWC, copied = generate_clip(generator, of_level[0])
            copied()
            # The first of these has nothing to be encoded beside, so that it counts a little long.
            times = measure_ours(generator, of_level[1:], device)
            rows.append(row(level, times, num_forwards(args.num_steps, level_step_skipping(level), True), *rows[:1]))
            rows[-1]["peak_gib"] = peak_gib(device)
            if published_THWC is not None:
                rows[-1] |= likeness(video_THWC.numpy(), published_THWC)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report = {
        "machine": machine(device), "model": args.model, "size": [args.num_frames, args.height, args.width],
        "num_steps": args.num_steps, "rows": rows,
    }  # fmt: skip
    write_report(report, args.out)
    print(table(report))


def make_generator(pipe: Any, run: RunFolder, compiled: bool) -> ClipGenerator:
    """Return a generator of a loaded pipeline, as a worker of `dreamgen generate` holds one."""
    source = WorldModelSource("random", "random", None, "random")
    model_class: Any = source.load_class()
    model = model_class(pipe, source, ModelSettings(safety_checker=False), compiled)
    return ClipGenerator(model, run)


def make_job(args: argparse.Namespace, run: RunFolder, level: str, seed: int, num_steps: int | None = None) -> Job:
    """Ask for one clip of a smooth first frame, which is stored in the run."""
    rows, columns = np.mgrid[0 : args.height, 0 : args.width]
    frame_HWC = np.stack([255 * rows / args.height, 255 * columns / args.width, np.full(rows.shape, 90)], axis=-1)
    frame_HWC = frame_HWC.astype(np.uint8)
    sha256 = frame_sha256(frame_HWC)
    if not run.first_frame_file(sha256).is_file():
        write_png(run.first_frame_file(sha256), frame_HWC)
    values = {
        "first_frame_sha256": sha256, "num_conditioning_frames": 1, "instruction": "pick up the pear",
        "prompt": "The robot arm is performing a task. pick up the pear", "negative_prompt": NEGATIVE_PROMPT,
        "seed": seed, "height": args.height, "width": args.width, "num_frames": args.num_frames, "num_chunks": 1,
        "chunk_overlap": 0, "fps": 16, "num_inference_steps": num_steps or args.num_steps, "guidance_scale": 7.0,
        "level": level, "step_skipping": level_step_skipping(level).to_json(),
        "model": args.model, "model_sha256": "random",
        "adapter": None, "adapter_sha256": None, "dtype": "bfloat16", "codec": "h264", "crf": 18, "gop": 2,
        "source": "drawn",
    }  # fmt: skip
    # The level's numbers are part of the id and the noise hangs on the id: here all levels are to share their noise.
    return Job(clip_id=job_id({**values, "step_skipping": "{}"}), **values)


def measure_published(
    pipe: Any, job: Job, num_clips: int, folder: Path, device: torch.device
) -> tuple[list[float], np.ndarray]:
    """Time whole clips, one after another, after a short one. Returns seconds a clip and the last video_THWC."""
    frame_HWC = read_image(next(folder.rglob("*.png")))
    times = []
    for number in range(num_clips + 1):
        synchronize(device)
        start_s = time.perf_counter()
        video_THWC = pipe(
            image=frame_HWC, prompt=job.prompt, negative_prompt=job.negative_prompt, height=job.height,
            width=job.width, num_frames=job.num_frames, guidance_scale=job.guidance_scale, output_type="np",
            num_inference_steps=job.num_inference_steps if number else 2, latents=noise_for(job).to(device),
        ).frames[0]  # fmt: skip
        video_THWC = (video_THWC * 255).round().astype(np.uint8)
        with av.open(str(folder / "published.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=job.fps, options=X264_DEFAULTS)
            stream.width, stream.height, stream.pix_fmt = job.width, job.height, "yuv420p"
            for frame in video_THWC:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        times.append(time.perf_counter() - start_s)
    print(f"published: {times}", file=sys.stderr, flush=True)
    return times[1:], video_THWC


def measure_ours(generator: ClipGenerator, jobs: list[Job], device: torch.device) -> list[float]:
    """Time clips as a worker makes them. Returns the seconds between the ends of clips that follow one another."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ends = [time.perf_counter()]

    def one(job: Job) -> None:
        record = make_clip(generator, job)
        assert record.status == "ok", record.traceback
        ends.append(time.perf_counter())

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(one, jobs))
    return list(np.diff(sorted(ends)))


def likeness(video_THWC: np.ndarray, wanted_THWC: np.ndarray) -> dict[str, float]:
    """Compare a clip with the published one, both before they are encoded."""
    pairs = list(zip(video_THWC, wanted_THWC, strict=True))
    gray_THW = small_gray(video_THWC)
    return {
        "psnr_db": float(np.mean([decibels for a, b in pairs if (decibels := psnr_db(a, b)) is not None])),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs[:: max(1, len(pairs) // 8)]])),
        "motion": motion(gray_THW),
        "cut_score": cut_score(gray_THW),
    }


def ssim(first_HWC: np.ndarray, second_HWC: np.ndarray) -> float:
    """Return the mean structural similarity of two pictures' brightness (Wang et al. 2004, Gaussian window of 1.5)."""
    x, y = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64) for frame in (first_HWC, second_HWC))
    mean_x, mean_y = (cv2.GaussianBlur(v, (11, 11), 1.5) for v in (x, y))
    variance_x = cv2.GaussianBlur(x * x, (11, 11), 1.5) - mean_x**2
    variance_y = cv2.GaussianBlur(y * y, (11, 11), 1.5) - mean_y**2
    covariance = cv2.GaussianBlur(x * y, (11, 11), 1.5) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity_HW = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(np.asarray(similarity_HW, np.float64).mean())


def peak_gib(device: torch.device) -> float:
    """Return the most memory that tensors took since the last measurement began."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else math.nan


def row(name: str, times: list[float], forwards: int, baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return one line of the table."""
    clip_s = statistics.median(times)
    return {
        "name": name, "clip_s": clip_s, "min_s": min(times), "max_s": max(times), "forwards": forwards,
        "ratio": baseline["clip_s"] / clip_s if baseline else 1.0,
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    title = f"{report['machine']}, {report['model']}, {report['size']}, {report['num_steps']} steps"
    columns = (
        "level", "s a clip (min to max)", "clips an hour, times published", "forward passes", "peak GiB", "PSNR dB",
        "SSIM", "motion", "cut score",
    )  # fmt: skip
    checks = ("peak_gib", "psnr_db", "ssim", "motion", "cut_score")
    rows = [
        (line["name"], spread(line, "clip_s", ".2f"), f"{line['ratio']:.2f}", line["forwards"],
         *(shown(line.get(key), ".3g") for key in checks))
        for line in report["rows"]
    ]  # fmt: skip
    return f"{title}\n\n{markdown_table(columns, rows)}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cosmos2.5-2b", help="a file of configs/models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--num_steps", type=int, default=36)
    parser.add_argument("--levels", nargs="+", default=["exact", "balanced", "turbo"])
    parser.add_argument("--num_clips", type=int, default=3, help="of each level; the first one is compared, not timed")
    parser.add_argument("--num_published", type=int, default=2, help="clips of the published loop; 0 leaves it out")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
