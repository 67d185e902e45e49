"""The trainer as it is wired, against the bare step and the published one: seconds a step and peak memory.

    python benchmarks/finetune_trainer.py --model cosmos2.5-2b --out benchmarks/results/finetune_trainer.json
    python benchmarks/finetune_trainer.py --model cosmos2.5-2b --methods lora --processes 1 2
    python benchmarks/finetune_trainer.py --model mini --height 64 --width 64 --num_frames 9 --num_steps 8   # smoke

`benchmarks/finetune_step.py` times step functions on a batch that lies ready. Here `accelerate launch -m finetune` runs
as a user runs it, on a model folder of the same sizes with random weights and on drawn clips: it fills the cache, lets
go of the encoders, compiles, and writes loss.csv, from whose lines the time of a step is taken. Beside it stand, in the
same run, the published step (VAE, text encoder, transformer with full checkpointing) and the bare step with the blocks
that the trainer chose. The saved text encoder has the real one's width and depth, which the projection needs, but small
feed-forward layers and vocabulary; it has left memory when the steps begin. The published step has the whole one.

Axes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import with_checkout
from finetune_step import machine, measure, measure_method, release
from metrics import markdown_table, shown, spread, write_report
from random_models import make_batch
from random_pipeline import save_random_pipeline

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.data.video import write_video
from dreamgen.models.cosmos_predict25.random_models import model_sizes, published_encoders
from dreamgen.models.cosmos_predict25.training_cost import policies_for
from dreamgen.models.cosmos_predict25.training_memory import estimate_memory
from dreamgen.models.cosmos_predict25.transformer_size import find_size
from finetune.training_log import read_steps

ROOT = Path(__file__).parents[1]
NUM_CLIPS = 4


def main() -> None:
    """Measure, print the table, and write the results."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(args.work or temporary)
        device = torch.device(args.device)
        sizes = model_sizes(args.model)
        model = work / "model"
        if not model.exists():
            save_random_pipeline(args.model, model, device)
            release(device)
        rows = []
        encode_s = encoder_times(args, sizes, device)
        for method in args.methods:
            rows += measure_steps(method, args, settings_of(args, work, method, 1), sizes, encode_s)
            for count in args.processes:
                rows.append(measure_trainer(args, settings_of(args, work, method, count), count, device))
    add_ratios(rows)
    report = {
        "machine": machine(device), "model": args.model, "size": [args.num_frames, args.height, args.width],
        "num_steps": args.num_steps, "log_every": args.log_every, "encode_s": encode_s, "rows": rows,
    }  # fmt: skip
    write_report(report, args.out)
    print(table(report))


def settings_of(args: argparse.Namespace, work: Path, method: str, num_processes: int) -> Settings:
    """Return the settings of one training, whose folder holds its training set afterwards."""
    run = work / f"{method}-{num_processes}"
    write_training_set(run / "train", args)
    return settings_from_dict(
        {
            "out": str(run),
            "model": {
                "path": str(work / "model"), "revision": None, "dtype": "bfloat16", "device": args.device,
                "safety_checker": False,
            },
            "video": {"height": args.height, "width": args.width, "num_frames": args.num_frames},
            "finetune": {
                "method": method, "lora": {"rank": args.rank, "alpha": args.rank}, "num_steps": args.num_steps,
                "log_every": args.log_every, "tracker": "none", "cache_dir": str(work / "cache"),
                "memory_gib": args.memory_gib, "windows_per_clip": 1,
            },
        }
    )  # fmt: skip


def write_training_set(folder: Path, args: argparse.Namespace) -> None:
    """Write clips of a moving pattern with prompts, as prepare does."""
    rows, columns = np.mgrid[0 : args.height, 0 : args.width].astype(np.float32)
    lines = [["file_name", "prompt", "num_frames"]]
    for index in range(NUM_CLIPS):
        name = f"videos/clip_{index}.mp4"
        if not (folder / name).exists():
            frames = (
                np.stack(
                    [127 + 120 * np.sin((rows * (c + 1) + columns + 4 * t * (index + 1)) / 40) for c in range(3)],
                    axis=2,
                ).astype(np.uint8)
                for t in range(args.num_frames)
            )
            write_video(folder / name, frames, Settings().video.fps)
        lines.append([name, f"The robot arm is performing a task. Move pattern number {index}.", args.num_frames])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(lines)


def encoder_times(args: argparse.Namespace, sizes: dict[str, Any], device: torch.device) -> list[float]:
    """Time the published step's VAE and text encoder."""
    run = published_encoders(sizes, make_batch(args, device)["video_BCTHW"], device, torch.bfloat16)
    times = measure(run, args.repeats, device)[0]
    del run
    release(device)
    return times


def measure_steps(
    method: str, args: argparse.Namespace, settings: Settings, sizes: dict[str, Any], encode_s: list[float]
) -> list[dict[str, Any]]:
    """Time the published step and the bare step with what the trainer's blocks will keep."""
    device = torch.device(args.device)
    compiled = device.type == "cuda"
    size = find_size(settings.model)
    assert size is not None, "the model was saved by this script"
    levels = policies_for(size, settings, compiled)
    num_all = levels.count("all")
    kept = f"all:{num_all}" if num_all else levels[0]
    step_args = argparse.Namespace(**{**vars(args), "variants": [kept], "eager": not compiled, "float32": False})
    batch = make_batch(args, device)
    rows = measure_method(method, step_args, sizes, batch, device, torch.bfloat16, encode_s)
    del batch
    release(device)
    rows[1]["name"] = f"{method} bare step, {kept}"
    rows[1]["estimated_gib"] = estimate_memory(size, settings, levels, compiled).peak
    return rows


def measure_trainer(
    args: argparse.Namespace, settings: Settings, num_processes: int, device: torch.device
) -> dict[str, Any]:
    """Run the trainer as its own command and read its step time from loss.csv."""
    assert settings.out is not None, "settings_of gives each training a folder"
    run = Path(settings.out)
    config = run / "settings.json"
    config.write_text(json.dumps(asdict(settings)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # as the settings say
    if num_processes > 1:
        launch += ["--multi_gpu"] if device.type == "cuda" else ["--cpu"]
    command = [*launch, "-m", "finetune", "--config_path", str(config)]
    start_s = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=with_checkout(ROOT), text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"the trainer ended with status {done.returncode}: {' '.join(command)}")
    lines = read_steps(run / "finetune" / "loss.csv")
    # The first lines also hold compiling; a window a step and GPU.
    times = [num_processes / float(line["samples_per_s"]) for line in lines[args.skip_lines :]]
    return {
        "name": f"{settings.finetune.method} trainer, {num_processes} process{'es' if num_processes > 1 else ''}",
        "step_s": statistics.median(times), "min_s": min(times), "max_s": max(times), "num_lines": len(times),
        "peak_gib": float(lines[-1]["memory_gib"]), "mfu": float(lines[-1]["mfu"]), "processes": num_processes,
        "first_line_s": float(lines[0]["seconds"]), "wall_s": time.perf_counter() - start_s,
        "loss": [float(line["loss"]) for line in lines],
    }  # fmt: skip


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Set each row beside the published step and the bare one of its method, and more processes beside one."""
    published = bare = one = None
    for row in rows:
        if "published" in row["name"]:
            published = row["step_s"]
        elif "bare" in row["name"]:
            bare = row.get("step_s")
        else:
            one = row["step_s"] if row["processes"] == 1 else one
            row["ratio"], row["to_bare"] = row["step_s"] / published, row["step_s"] / bare if bare else None
            row["speedup"] = row["processes"] * one / row["step_s"] if one else None


def table(report: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    title = f"{report['machine']}, {report['model']}, {report['size']}, {report['num_steps']} steps of the trainer"
    columns = (
        "step", "s (min to max)", "of published", "of the bare step", "peak GiB", "windows a second, times one GPU",
    )  # fmt: skip
    rows = [
        (row["name"], "out of memory") if row.get("out_of_memory") else
        (row["name"], spread(row, "step_s", ".3f"), f"{row['ratio']:.3f}", shown(row.get("to_bare"), ".3f"),
         f"{row['peak_gib']:.1f}", shown(row.get("speedup"), ".3f"))
        for row in report["rows"]
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
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1], help="trainings with so many processes each")
    parser.add_argument("--num_steps", type=int, default=30, help="of each training")
    parser.add_argument(
        "--log_every", type=int, default=5, help="steps between loss.csv's lines; each waits for the GPU"
    )
    parser.add_argument("--skip_lines", type=int, default=1, help="first lines left out: they hold the compilation")
    parser.add_argument("--memory_gib", type=float, default=Settings().finetune.memory_gib)
    parser.add_argument("--repeats", type=int, default=3, help="of the published and the bare step")
    parser.add_argument("--work", help="folder for model, cache and trainings, kept; a temporary one when not given")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
