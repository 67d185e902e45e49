"""How near one pass of a distilled adapter comes to the two passes of guidance, on the shipped demonstrations.

    python benchmarks/distilled_guidance.py --out runs/distilled

An adapter is trained on the demo's twelve demonstrations of a task that mini has not seen, as `dreamgen demo` does, and
guidance is folded into it. Then the demo's new first frames are dreamed with the same noise: with the first adapter and
guidance, without guidance, and with the distilled adapter. docs/finetuning.md shows the table. On two CPU cores it
takes about a quarter of an hour. The same command continues after an interruption.

Axes: N clips, T frames, H height, W width, C channels.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_metrics import clip_psnr
from metaworld_clips import CAMERA, Clips
from metrics import markdown_table, write_report
from mini_quality import ClipSampler, Sampling

from dreamgen.api import finetune_adapter, load_settings, prepare_training_set
from dreamgen.config.settings import Settings
from dreamgen.data.images import read_image
from dreamgen.demo.run import DATA
from dreamgen.models.adapter_choice import choose_adapter
from dreamgen.models.cosmos_predict25.adapter_switch import AdapterSwitch
from dreamgen.models.cosmos_predict25.loading import load_pipeline
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder

PRESET = "mini"


def main() -> None:
    args = parse_args()
    task, task_s = train(args, args.out / "task", {"num_steps": args.task_steps}) if args.task_steps else (None, None)
    tune = {"init_adapter": task and str(task), "distill_guidance": args.scale, "num_steps": args.num_steps}
    tune |= {"learning_rate": args.learning_rate, "validation_clips": 2, "validate_every": args.num_steps}
    distilled, distilled_s = train(args, args.out / "distilled", tune | {"batch_size": args.train_batch_size})
    settings = load_settings(PRESET, model={"device": args.device})
    with tempfile.TemporaryDirectory() as folder:
        source = resolve_world_model(settings.model, RunFolder(Path(folder)))
    pipe = load_pipeline(source, settings.model)
    switch, sampler = AdapterSwitch(pipe, several=True), ClipSampler(pipe, args.batch_size, settings.prompt_prefix)
    starts, rows = first_frames(settings), []
    for num_steps in args.sampling_steps:
        dreams: dict[str, torch.Tensor] = {}
        for name, adapter, scale in (("two passes", task, args.scale), ("without guidance", task, 1.0),
                                     ("distilled, one pass", distilled, 1.0)):  # fmt: skip
            switch.to(choose_adapter("base" if adapter is None else str(adapter), RunFolder(args.out)))
            start_s = time.monotonic()
            dreams[name] = sampler.dream(starts, Sampling(num_steps, scale))
            clip_s = (time.monotonic() - start_s) / len(starts)
            psnr_N = clip_psnr(dreams[name], dreams["two passes"])
            row = {"sampling": name, "steps": num_steps, "passes": num_steps * (1 + (scale > 1)), "clip_s": clip_s}
            rows.append(row | {"psnr_db": None if name == "two passes" else psnr_N})
            print(rows[-1], flush=True)
    report = {
        "device": torch.cuda.get_device_name() if torch.device(args.device).type == "cuda" else "CPU",
        "options": {key: value for key, value in vars(args).items() if not isinstance(value, Path)},
        "clips": len(starts), "training_s": {"task": task_s, "distilled": distilled_s},
        "validation": validation(args.out / "distilled"), "rows": rows,
    }  # fmt: skip
    write_report(report, str(args.json))
    print(table(report))


def train(args: argparse.Namespace, out: Path, tune: dict[str, Any]) -> tuple[Path, float | None]:
    """Prepare the demonstrations and train an adapter, unless that is done.

    Returns:
        The adapter's folder, and seconds; None for an adapter of an earlier call.
    """
    start_s = time.monotonic()
    settings = load_settings(
        PRESET, demos=DATA / "demonstrations", out=out, model={"device": args.device}, prepare={"camera": CAMERA},
        finetune={"tracker": "none", "cache_dir": str(args.out / "cache"), **tune},
    )  # fmt: skip
    run = RunFolder(out)
    if run.adapter.exists():
        return run.adapter, None
    prepare_training_set(settings, resume=True)
    if finetune_adapter(settings, resume=True).partial:
        raise SystemExit("the training was stopped; the same command continues it")
    return run.adapter, round(time.monotonic() - start_s, 1)


def first_frames(settings: Settings) -> Clips:
    """Read the demo's first frames as clips of one frame, repeated to the length of a clip."""
    folder = DATA / "first_frames"
    with (folder / "first_frames.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    images = [read_image(folder / (row.get("image") or row["first_frame"])) for row in rows]
    video_NTHWC = torch.from_numpy(np.stack(images))[:, None].expand(-1, settings.video.num_frames, -1, -1, -1)
    texts = np.array([row.get("prompt") or row["instruction"] for row in rows])
    nothing = np.zeros((len(rows), settings.video.num_frames, 1))
    return Clips(video_NTHWC, nothing, nothing, texts, np.full(len(rows), ""), texts, np.full(len(rows), True))


def validation(out: Path) -> dict[str, dict[str, float]]:
    """Return step -> noise level -> loss of the held-out clips."""
    losses: dict[str, dict[str, float]] = {}
    with (RunFolder(out).finetune_logs / "validation.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            losses.setdefault(row["step"], {})[row["sigma"]] = float(row["loss"])
    return losses


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    cells = []
    for row in report["rows"]:
        values = row["psnr_db"]
        span = None if values is None else f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        cells.append([row["steps"], row["sampling"], row["passes"], f"{row['clip_s']:.2f}", span])
    return markdown_table(["steps", "sampling", "passes", "s a clip", "PSNR dB to two passes (min to max)"], cells)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, required=True, help="folder of both trainings; the same one continues")
    parser.add_argument("--json", type=Path, default=root / "results/distilled_guidance.json", help="the report")
    parser.add_argument("--scale", type=float, default=3.0, help="of the guidance")
    parser.add_argument("--task_steps", type=int, default=120, help="of the task's adapter; 0: distill the base model")
    parser.add_argument("--train_batch_size", type=int, default=2, help="of the distillation")
    parser.add_argument("--num_steps", type=int, default=300, help="of the distillation")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of the distillation")
    parser.add_argument("--sampling_steps", type=int, nargs="+", default=[8, 36])
    parser.add_argument("--batch_size", type=int, default=6, help="clips that are dreamed at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out = args.out.resolve()
    return args


if __name__ == "__main__":
    main()
