"""What the levels, diffusers' own caches and a distilled adapter cost in quality, on the mini world model.

    pip install 'dreamgen[sim]'
    python benchmarks/mini_levels.py --out runs/mini_levels --minutes 5

At 36 and at 8 steps, with and without guidance: exact, balanced, turbo, exact with fewer steps of the same cost, and
diffusers' caches; with guidance also an adapter into which it was folded (`finetune.distill_guidance`), in one pass a
step. All are judged on clips of tasks that mini has learned, at test positions, by the figures of
benchmarks/mini_quality.py, and by how far they are from the exact clip of the same noise. docs/mini.md has the table.

What is missing is recorded first. The adapter is trained while the read-out is. The same command continues after an
interruption: recordings, adapter and measurements are kept. After --minutes nothing new begins. The report is written
after each row.

Axes: N clips, T frames, H height, W width, C channels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_report import p_values
from adapter_variants import PRESET
from clip_metrics import clip_psnr, success_criteria
from diffusers.utils.logging import set_verbosity_error
from diffusers_caches import Cache, all_caches, caches_that_do_not_run, num_flops, sample_cached
from environments import with_checkout
from metaworld_clips import CAMERA, Clips, joined, read_clips
from metrics import markdown_table, shown, write_report
from mini_quality import COLUMNS, ClipSampler, Sampling, measure_clips, passes_of
from resumable import ROOT, Deadline, as_lists, check_options, record
from state_readout import kept_readout

from dreamgen.api import load_settings
from dreamgen.models.adapter_choice import choose_adapter
from dreamgen.models.cosmos_predict25.adapter_switch import AdapterSwitch
from dreamgen.models.cosmos_predict25.loading import load_pipeline
from dreamgen.models.cosmos_predict25.solver import step_table
from dreamgen.models.cosmos_predict25.spec import latent_shape
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.files import write_text
from dreamgen.run.run_folder import RunFolder

TO_EXACT = "psnr_exact"
# What may change between calls that continue one another.
FREE_OPTIONS = ("out", "data", "json", "minutes", "record_workers", "batch_size")


@dataclass(frozen=True)
class Variant:
    """A way to sample.

    Args:
        name: What the table calls it.
        sampling: Steps, guidance, level or cache.
        exact: The sampling that it stands in for; None for that itself.
        is_distilled: Whether the adapter with folded guidance is used.
    """

    name: str
    sampling: Sampling
    exact: Sampling | None = None
    is_distilled: bool = False

    @property
    def file_name(self) -> str:
        """Name of the file of its measurements."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.name)
        return f"{words}.json"


def all_variants(step_counts: list[int], scale: float, seed: int) -> list[Variant]:
    """Return what is compared, the most important ones first.

    Args:
        step_counts: Denoising steps.
        scale: Of guidance, beside none.
        seed: Of the noise.
    """
    first, later = [], []
    for num_steps in step_counts:
        for guidance in (1.0, scale):
            exact = Sampling(num_steps, guidance, seed=seed)
            text = f"{num_steps} steps, guidance {guidance:g}"
            first.append(Variant(f"{text}: exact", exact))
            for level in ("balanced", "turbo"):
                one = replace(exact, level=level)
                first.append(Variant(f"{text}: {level}", one, exact))
                fewer = round(passes_of(one) / (2 if guidance > 1 else 1))
                if fewer < num_steps:
                    first.append(Variant(f"{text}: exact, {fewer} steps", replace(exact, num_steps=fewer), exact))
            if guidance > 1:
                plain = replace(exact, guidance_scale=1.0)
                for level in ("exact", "balanced"):
                    name = f"{text}: distilled, one pass" + ("" if level == "exact" else f", {level}")
                    first.append(Variant(name, replace(plain, level=level), exact, is_distilled=True))
                first.append(Variant(f"{text}: without guidance", plain, exact))
            later += [Variant(f"{text}: {cache.name}", replace(exact, cache=cache.name), exact)
                      for cache in all_caches()]  # fmt: skip
    return list({variant.name: variant for variant in [*first, *later]}.values())


def main() -> None:
    args = parse_args()
    deadline = Deadline(args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    check_options(args, FREE_OPTIONS)
    torch.set_float32_matmul_precision("high")
    recordings = all_recordings(args)
    record(args, {"base": recordings["base"]}, args.record_workers)
    with distillation(args) as training:
        record(args, recordings, args.record_workers)
        bench = Bench(args)
        wait_for(training, args)
    bench.measure_all(deadline)
    print(tables(json.loads(args.json.read_text())))


def all_recordings(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Return the folders below --data, each with the recorder's options."""
    only = () if args.tasks is None else ("--tasks", *args.tasks)
    return {
        "base": ("--set", "base", *only, "--episodes_per_task", str(args.train_episodes)),
        "test": ("--set", "base", "--region", "test", *only, "--episodes_per_task", str(args.test_episodes)),
        "readout": ("--set", "vae", *only, "--episodes_per_task", str(args.readout_episodes)),
    }


@contextmanager
def distillation(args: argparse.Namespace) -> Iterator[subprocess.Popen | None]:
    """Fold guidance into an adapter of mini, by the product's commands, while the body runs.

    Yields:
        Their process; None if the adapter is there.
    """
    run = RunFolder(args.out / "distilled")
    if run.adapter.exists():
        yield None
        return
    common = f"--config_path {PRESET} --out {run.root} --resume --model.device={args.device}"
    options = {
        "distill_guidance": args.scale, "num_steps": args.distill_steps, "batch_size": args.distill_batch_size,
        "warmup_steps": 20, "lora.rank": 32, "validation_clips": args.distill_validation_clips,
        "validate_every": args.distill_steps, "checkpoint_every": 100, "tracker": "none",
    }  # fmt: skip
    tuned = " ".join(f"--finetune.{name}={value}" for name, value in options.items())
    dreamgen = f"{sys.executable} -m dreamgen"
    commands = (
        f"{dreamgen} prepare {common} --demos {args.data / 'base'} --prepare.camera={CAMERA} && "
        f"exec {dreamgen} finetune {common} --seed={args.seed} {tuned}"
    )
    with (args.out / "distilled.log").open("ab") as log:
        process = subprocess.Popen(["bash", "-c", commands], env=with_checkout(ROOT), stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def wait_for(training: subprocess.Popen | None, args: argparse.Namespace) -> None:
    """Wait for the distillation; what it says is in distilled.log, and without it the other rows are measured."""
    if training is not None and training.wait():
        print(f"the distillation failed, see {args.out / 'distilled.log'}", file=sys.stderr, flush=True)


class Bench:
    """Recordings, models and measurements.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        if self.device.type == "cuda":
            torch.set_num_threads(1)  # metrics are computed by many threads, each of which would use all cores
        test = read_clips(args.data / "test")
        self.real: Clips = test[(test.scene_N == "") & test.success_N]
        known = joined([read_clips(args.data / "base"), read_clips(args.data / "readout")])
        self.criteria = success_criteria(known)
        self.readout = kept_readout(
            args.out / "state_readout.safetensors", known, self.device, args.readout_s, args.seed
        )
        settings = load_settings(PRESET, model={"device": args.device})
        with tempfile.TemporaryDirectory() as folder:
            source = resolve_world_model(settings.model, RunFolder(Path(folder)))
        pipe = load_pipeline(source, settings.model)
        self.switch = AdapterSwitch(pipe, several=True)
        self.sampler = ClipSampler(pipe, args.batch_size, settings.prompt_prefix)
        self.measured: dict[str, dict[str, Any]] = {}
        self.exact: dict[Sampling, torch.Tensor] = {}
        self.flops: dict[Sampling, int] = {}  # of one clip, computed in full

    def measure_all(self, deadline: Deadline) -> None:
        """Measure the recordings, what the VAE makes of them, and each variant; write the report after each."""
        variants = all_variants(self.args.steps, self.args.scale, self.args.seed)
        set_verbosity_error()  # FasterCache says at each batch that it is experimental
        reasons = caches_that_do_not_run(lambda cache: self._sample_one(cache, Sampling(2)))
        self._once("recording", "recording.json", lambda: self._metrics(self.real.video_NTHWC))
        self._once("VAE round trip", "vae.json", lambda: self._metrics(self.sampler.vae_round_trip(self.real)))
        adapter = RunFolder(self.args.out / "distilled").adapter
        for variant in variants:
            if variant.is_distilled and not adapter.exists():
                deadline.left_out.append(f"{variant.name}: there is no adapter")
            elif deadline.has_time(variant.name):
                self._once(variant.name, variant.file_name, lambda one=variant: self._measure(one))
            self._write(variants, reasons, deadline)

    def _measure(self, variant: Variant) -> dict[str, Any]:
        adapter = RunFolder(self.args.out / "distilled").adapter
        exact_NTHWC = None if variant.exact is None else self._exact(variant.exact)
        self.switch.to(choose_adapter(str(adapter), RunFolder(self.args.out)) if variant.is_distilled else None)
        sampling = variant.sampling
        self.sampler.dream(self.real[np.arange(1)], sampling)  # the first call with a size takes longer
        start_s = time.monotonic()
        dreams_NTHWC = self.sampler.dream(self.real, sampling)
        seconds = time.monotonic() - start_s
        if variant.exact is None:
            self.exact[sampling] = dreams_NTHWC
        measured = self._metrics(dreams_NTHWC)
        if exact_NTHWC is not None:
            measured["values"][TO_EXACT] = clip_psnr(dreams_NTHWC, exact_NTHWC)
        passes: float = passes_of(sampling)
        if sampling.cache is not None:
            cache = next(one for one in all_caches() if one.name == sampling.cache)
            plain = replace(sampling, cache=None)
            if plain not in self.flops:
                self.flops[plain] = num_flops(lambda: self._sample_one(None, plain))
            passes *= num_flops(lambda: self._sample_one(cache, sampling)) / self.flops[plain]
        return measured | {"clip_s": round(seconds / len(self.real), 4), "passes": round(passes, 1)}

    def _exact(self, sampling: Sampling) -> torch.Tensor:
        if sampling not in self.exact:
            self.switch.to(None)
            self.exact[sampling] = self.sampler.dream(self.real, sampling)
        return self.exact[sampling]

    def _metrics(self, video_NTHWC: torch.Tensor) -> dict[str, Any]:
        return {"values": as_lists(measure_clips(video_NTHWC, self.real, self.readout, self.criteria))}

    @torch.no_grad()
    def _sample_one(self, cache: Cache | None, sampling: Sampling) -> None:
        """Sample one clip's latents, for what is counted and tried and not looked at."""
        pipe, video_NTHWC = self.sampler.pipe, self.real.video_NTHWC
        shape = latent_shape(*video_NTHWC.shape[1:4])
        noise_BCTHW = torch.zeros(1, *shape, device=pipe.transformer.device)
        texts = [self.sampler.text(self.sampler.prefix + "open"), self.sampler.text(sampling.negative_prompt)]
        negative_BLD = texts[1] if sampling.guidance_scale > 1 else None
        table = step_table(pipe.scheduler, sampling.num_steps)
        sample_cached(pipe.transformer, cache, table, noise_BCTHW, noise_BCTHW[:, :, :1], texts[0], negative_BLD,
                      sampling.guidance_scale)  # fmt: skip

    def _once(self, name: str, file_name: str, measure: Any) -> None:
        file = self.args.out / "measured" / file_name
        if not file.is_file():
            write_text(file, json.dumps(measure()))
        self.measured[name] = json.loads(file.read_text())

    def _write(self, variants: list[Variant], reasons: dict[str, str], deadline: Deadline) -> None:
        report = {
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "options": {key: value for key, value in vars(self.args).items() if not isinstance(value, Path)},
            "minutes": round(deadline.passed_s() / 60, 2), "left_out": deadline.left_out, "clips": len(self.real),
            "caches_that_do_not_run": reasons, "rows": rows_of(self.measured, variants),
            "validation": validation(RunFolder(self.args.out / "distilled")),
            "per_clip": {name: one["values"] for name, one in self.measured.items()},
        }  # fmt: skip
        write_report(report, str(self.args.json))
        write_text(self.args.out / "tables.md", tables(report) + "\n")


def rows_of(measured: dict[str, dict[str, Any]], variants: list[Variant]) -> list[dict[str, Any]]:
    """Return the mean of each metric of what was measured, with the p-values of paired tests against the exact clips.

    Args:
        measured: By name: `values` of each clip by metric, and for variants `clip_s` and `passes`.
        variants: Those that may have been measured.
    """
    exact = {variant.sampling: variant.name for variant in variants if variant.exact is None}
    by_name, rows = {variant.name: variant for variant in variants}, []
    order = [*(name for name in measured if name not in by_name), *sorted(
        (name for name in measured if name in by_name), key=lambda name: _place(by_name[name], variants))]  # fmt: skip
    for name in order:
        values = {key: np.array(one, float) for key, one in measured[name]["values"].items()}
        row: dict[str, Any] = {"name": name} | {key: measured[name].get(key) for key in ("clip_s", "passes")}
        row |= {key: round(float(np.nanmean(one)), 4) if np.isfinite(one).any() else None
                for key, one in values.items()}  # fmt: skip
        variant = by_name.get(name)
        reference = exact.get(variant.exact) if variant is not None and variant.exact is not None else None
        if reference in measured:
            row["p_exact"] = p_values(values, measured[reference]["values"])
        rows.append(row)
    return rows


def _place(variant: Variant, variants: list[Variant]) -> tuple[int, float, int]:
    """Return where a variant's row stands: beside those with its steps and guidance."""
    stands_for = variant.exact or variant.sampling
    return -stands_for.num_steps, stands_for.guidance_scale, variants.index(variant)


def validation(run: RunFolder) -> str | None:
    """Return validation.csv of the distillation: the distance from the teacher, at step 0 without the adapter."""
    file = run.finetune_logs / "validation.csv"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def tables(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows, possible = report["rows"], {TO_EXACT: ("dB to exact", ".1f"), **COLUMNS}
    columns = {key: one for key, one in possible.items() if any(row.get(key) is not None for row in rows)}
    head = [f"seen ({report['clips']} clips)", *(title for title, _ in columns.values()), "p of hand", "p of object"]
    cells = []
    for row in rows:
        p = row.get("p_exact", {})
        cells.append([row["name"], *(shown(row.get(key), form) for key, (_, form) in columns.items()),
                      *(shown(p.get(key), ".2g") for key in ("hand_cm", "object_end_cm"))])  # fmt: skip
    lines = [markdown_table(head, cells), ""]
    lines += [f"{name} does not run: {reason}" for name, reason in report["caches_that_do_not_run"].items()]
    if report["left_out"]:
        lines += ["", f"Left out: {'; '.join(report['left_out'])}."]
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; the same one continues")
    parser.add_argument("--data", type=Path, help="recordings, made where they are missing (default: OUT/data)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/mini_levels.json", help="the report")
    parser.add_argument("--steps", type=int, nargs="+", default=[36, 8], help="denoising steps")
    parser.add_argument("--scale", type=float, default=3.0, help="of guidance")
    parser.add_argument("--tasks", nargs="+", help="only these tasks; default: all that mini has learned")
    parser.add_argument("--test_episodes", type=int, default=2, help="of each task")
    parser.add_argument("--train_episodes", type=int, default=8, help="of each task, to distill on")
    parser.add_argument("--readout_episodes", type=int, default=20, help="of each task, to train the read-out")
    parser.add_argument("--readout_s", type=float, default=60, help="seconds of training the read-out")
    parser.add_argument("--distill_steps", type=int, default=400, help="of the distillation")
    parser.add_argument("--distill_batch_size", type=int, default=8, help="of the distillation")
    parser.add_argument("--distill_validation_clips", type=int, default=16, help="held out of the distillation")
    parser.add_argument("--batch_size", type=int, default=72 if has_gpu else 4, help="clips that are dreamed at once")
    parser.add_argument("--record_workers", type=int, default=cores, help="processes of the recorder")
    parser.add_argument("--minutes", type=float, default=100_000, help="after which nothing new begins")
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--seed", type=int, default=0, help="of training, read-out and noise")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.data = (args.data or args.out / "data").resolve()
    return args


if __name__ == "__main__":
    main()
