"""How good the mini world model is, on recorded clips that it never saw: docs/mini.md shows the table.

    python benchmarks/mini_quality.py --model runs/mini --train data/base --readout data/vae \\
        --test data/base_test --heldout data/heldout_test --out runs/quality --minutes 8

All datasets are from examples/metaworld/record.py, those for testing with --region test. A small network reads hand
and object positions from frames; it is trained first, on --readout and --train, and judges recordings, what the VAE
makes of them, dreams, and two baselines alike. Sections for which no time is left are named in the report.
With --adapter, the world model's dreams use an adapter. `--max_clips 4 --readout_s 20` rehearses it on a CPU.

Axes: N clips, B clips in a batch, T frames, H height, W width, C channels, L text tokens, D features.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_metrics import (
    Criterion,
    nearest_clips,
    picture_grid,
    pixel_metrics,
    state_metrics,
    success_criteria,
    successes,
)
from diffusers_caches import all_caches, sample_cached
from metaworld_clips import Clips, joined, read_clips
from metrics import markdown_table, shown
from PIL import Image
from state_readout import GRIPPER, HAND, OBJECT, StateReadout, load_readout, save_readout, train_readout

from dreamgen.config.settings import ModelSettings, Settings
from dreamgen.models.cosmos_predict25.before_loading import DEFAULT_NEGATIVE_PROMPT
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, text_keys_values
from dreamgen.models.cosmos_predict25.latents import decode, encode_conditioning
from dreamgen.models.cosmos_predict25.loading import load_pipeline
from dreamgen.models.cosmos_predict25.sampler import Guidance, sample_latents
from dreamgen.models.cosmos_predict25.solver import step_table
from dreamgen.models.cosmos_predict25.spec import latent_shape
from dreamgen.models.cosmos_predict25.step_skipping import level_step_skipping, num_forwards
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder

COLUMNS = {
    "psnr": ("PSNR dB", ".1f"), "psnr_moving": ("moving dB", ".1f"), "psnr_object": ("object dB", ".1f"),
    "ssim": ("SSIM", ".3f"), "flow_px": ("flow px", ".2f"), "hand_cm": ("hand cm", ".2f"),
    "hand_end_cm": ("hand end cm", ".2f"), "object_end_cm": ("object end cm", ".2f"), "success": ("success", ".2f"),
    "clip_s": ("s a clip", ".3f"), "passes": ("passes", "g"),
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How clips are dreamed."""

    num_steps: int = 16
    guidance_scale: float = 1.0
    level: str = "exact"
    negative_prompt: str | None = DEFAULT_NEGATIVE_PROMPT
    seed: int = 0
    cache: str | None = None  # of diffusers_caches, in place of a level


class ClipSampler:
    """A loaded pipeline that dreams several clips at once.

    Args:
        pipe: From `load_pipeline`.
        batch_size: Clips at once.
        prompt_prefix: Before every instruction.
    """

    def __init__(self, pipe: Any, batch_size: int, prompt_prefix: str) -> None:
        self.pipe, self.batch_size, self.prefix = pipe, batch_size, prompt_prefix
        self._texts: dict[str | None, torch.Tensor] = {}

    def dream(self, clips: Clips, sampling: Sampling, instructions: np.ndarray | None = None) -> torch.Tensor:
        """Dream from each clip's first frame and its instruction, or another one. Returns video_NTHWC."""
        texts = clips.instruction_N if instructions is None else instructions
        videos = []
        for start in range(0, len(clips), self.batch_size):
            chosen = np.arange(start, min(start + self.batch_size, len(clips)))
            videos.append(self._batch(clips[chosen], [str(text) for text in texts[chosen]], chosen, sampling))
        return torch.cat(videos)

    @torch.no_grad()
    def _batch(self, clips: Clips, texts: list[str], numbers: np.ndarray, sampling: Sampling) -> torch.Tensor:
        transformer, (_, num_frames, height, width, _) = self.pipe.transformer, clips.video_NTHWC.shape
        shape = latent_shape(num_frames, height, width)
        noise_BCTHW = torch.stack([_noise(shape, sampling.seed, int(number)) for number in numbers])
        conditioning = torch.cat([encode_conditioning(self.pipe, video[:1]) for video in clips.video_NTHWC])
        text_BLD, negative_BLD = torch.cat([self.text(self.prefix + one) for one in texts]), None
        if sampling.guidance_scale > 1:
            negative_BLD = self.text(sampling.negative_prompt).expand(len(texts), -1, -1)
        table, noise_BCTHW = step_table(self.pipe.scheduler, sampling.num_steps), noise_BCTHW.to(transformer.device)
        if sampling.cache is not None:
            cache = next(one for one in all_caches() if one.name == sampling.cache)
            latents_BCTHW = sample_cached(
                transformer, cache, table, noise_BCTHW, conditioning, text_BLD, negative_BLD, sampling.guidance_scale
            )
        else:
            guidance = None
            if negative_BLD is not None:
                guidance = Guidance(text_keys_values(transformer, negative_BLD), sampling.guidance_scale)
            latents_BCTHW = sample_latents(
                transformer, table, noise_BCTHW, conditioning, text_keys_values(transformer, text_BLD), guidance,
                level_step_skipping(sampling.level), BlockParts(),
            )  # fmt: skip
        return torch.stack([decode(self.pipe, one[None]).cpu() for one in latents_BCTHW])

    @torch.no_grad()
    def vae_round_trip(self, clips: Clips) -> torch.Tensor:
        """Encode and decode recordings. Returns video_NTHWC."""
        return torch.stack([decode(self.pipe, encode_conditioning(self.pipe, one)).cpu() for one in clips.video_NTHWC])

    def text(self, prompt: str | None) -> torch.Tensor:
        if prompt not in self._texts:
            self._texts[prompt] = encode_text(self.pipe, prompt)
        return self._texts[prompt]


def _noise(shape: tuple[int, ...], seed: int, number: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1_000_003 * seed + number))


def measure_clips(
    video_NTHWC: torch.Tensor,
    real: Clips,
    readout: StateReadout,
    criteria: dict[str, Criterion],
    with_flow: bool = False,
) -> dict[str, np.ndarray]:
    """Return all metrics of each clip; recordings themselves have none in pixels.

    Args:
        video_NTHWC: uint8, 0-255; `real.video_NTHWC` itself measures the recordings.
        real: The recordings.
        readout: Reads hand and objects.
        criteria: Of `success_criteria`.
        with_flow: Whether to measure the optical flow.
    """
    values_NTV = readout.read(video_NTHWC)
    measured = state_metrics(values_NTV, real)
    if video_NTHWC is not real.video_NTHWC:
        measured = pixel_metrics(video_NTHWC, real, with_flow) | measured
    measured["success"] = successes(values_NTV, real, criteria)
    return measured


class Evaluation:
    """Datasets, models and what has been measured.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start_s = args, time.monotonic()
        self.device = torch.device(args.device)
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.notes: dict[str, Any] = {}
        self.per_clip: dict[str, dict[str, list[float]]] = {}
        self.train = read_clips(args.train, args.max_train_clips)
        test, self.heldout = read_clips(args.test), read_clips(args.heldout) if args.heldout else None
        self.scenes, self.seen = test[test.scene_N != ""], test[(test.scene_N == "") & test.success_N]
        if args.max_clips:
            first = np.arange(args.max_clips)
            self.seen, self.scenes = (part[first[: len(part)]] for part in (self.seen, self.scenes))
            self.heldout = self.heldout and self.heldout[first[: len(self.heldout)]]
        self.readout = self._readout()
        rules = [self.train, *([] if self.heldout is None else [self.heldout])]
        self.criteria = success_criteria(joined(rules))
        self.sampler = ClipSampler(_load(args), args.batch_size, Settings().prompt_prefix)

    def has_time(self, name: str) -> bool:
        """Whether a section may begin; one that may not is recorded."""
        if (time.monotonic() - self.start_s) / 60 < self.args.minutes:
            print(f"{time.monotonic() - self.start_s:.0f} s: {name}", flush=True)
            return True
        self.skipped.append(name)
        return False

    def add(
        self, name: str, split: str, video_NTHWC: torch.Tensor, real: Clips, with_flow: bool = False, **extra: Any
    ) -> None:
        """Measure clips and add a row."""
        measured = measure_clips(video_NTHWC, real, self.readout, self.criteria, with_flow)
        self.per_clip[f"{name}, {split}"] = {key: values.round(4).tolist() for key, values in measured.items()}
        means = {
            key: float(np.nanmean(values)) if np.isfinite(values).any() else None for key, values in measured.items()
        }
        tasks = {str(task): {key: round(float(np.nanmean(values[real.task_N == task])), 3)
                             for key, values in measured.items() if np.isfinite(values[real.task_N == task]).any()}
                 for task in np.unique(real.task_N)}  # fmt: skip
        self.rows.append({"name": name, "split": split, "clips": len(real), **means, **extra, "tasks": tasks})

    def _readout(self) -> StateReadout:
        if self.args.readout_weights:
            size_px = self.train.video_NTHWC.shape[2]
            return load_readout(self.args.readout_weights, size_px, self.device)
        extra = [read_clips(root, self.args.max_train_clips) for root in self.args.readout]
        readout = train_readout(joined([self.train, *extra]), self.device, self.args.readout_s, self.args.seed)
        save_readout(readout, self.args.out / "state_readout.safetensors")
        return readout


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    evaluation = Evaluation(args)
    for name in args.sections:
        if evaluation.has_time(name):
            SECTIONS[name](evaluation)
    report = {
        "model": str(args.model), "adapter": str(args.adapter) if args.adapter else None, "seed": args.seed,
        "device": torch.cuda.get_device_name() if evaluation.device.type == "cuda" else "CPU",
        "minutes": round((time.monotonic() - evaluation.start_s) / 60, 2), "left_out": evaluation.skipped,
        "criteria": {task: {"part": VALUE_PARTS[rule.part.start], "tolerance_cm": round(100 * rule.tolerance_m, 1)}
                     for task, rule in evaluation.criteria.items()},
        **evaluation.notes, "rows": evaluation.rows, "per_clip": evaluation.per_clip,
    }  # fmt: skip
    (args.out / "quality.json").write_text(json.dumps(report, indent=1))
    (args.out / "quality.md").write_text(tables(report))
    print(tables(report))


VALUE_PARTS = {0: "hand", 4: "object", 7: "second object"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pipeline, as save_pretrained writes it")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter, fused into the model")
    parser.add_argument("--train", type=Path, required=True, help="what the transformer was trained on")
    parser.add_argument("--readout", type=Path, nargs="*", default=[], help="more recordings to train the read-out on")
    parser.add_argument("--readout_weights", type=Path, help="a trained read-out, instead of training one")
    parser.add_argument(
        "--test", type=Path, required=True, help="clips of seen tasks and scenes that were kept for tests"
    )
    parser.add_argument("--heldout", type=Path, help="clips of tasks that the transformer never saw")
    parser.add_argument("--out", type=Path, required=True, help="for quality.json, quality.md and pictures")
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=SECTIONS, help="what to measure")
    parser.add_argument("--minutes", type=float, default=8, help="after which no section begins")
    parser.add_argument("--readout_s", type=float, default=80, help="seconds of training the read-out")
    parser.add_argument("--max_clips", type=int, help="of each split; all when not given")
    parser.add_argument("--max_train_clips", type=int, default=4000, help="of each dataset to learn from")
    parser.add_argument("--num_steps", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=72 if torch.cuda.is_available() else 4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _load(args: argparse.Namespace) -> Any:
    model = ModelSettings(
        path=str(args.model), revision=None, dtype="float32", device=args.device, safety_checker=False
    )
    with tempfile.TemporaryDirectory() as folder:
        source = resolve_world_model(model, RunFolder(Path(folder)))
    return load_pipeline(source, model, args.adapter)


def measure_splits(evaluation: Evaluation) -> None:
    """Measure recordings, VAE, dreams and baselines, on seen tasks, scenes of several tasks, and held-out tasks."""
    plain, pairs = Sampling(evaluation.args.num_steps, seed=evaluation.args.seed), []
    few = evaluation.train.first_of_each(10)
    for split in ("seen", "scenes", "heldout"):
        real: Clips | None = getattr(evaluation, split)
        if real is None or len(real) == 0 or not evaluation.has_time(split):
            continue
        evaluation.add("recording", split, real.video_NTHWC, real)
        evaluation.add("VAE round trip", split, evaluation.sampler.vae_round_trip(real), real, True)
        start_s = time.monotonic()
        dreams_NTHWC = evaluation.sampler.dream(real, plain)
        clip_s = (time.monotonic() - start_s) / len(real)
        evaluation.add("dream", split, dreams_NTHWC, real, True, clip_s=clip_s)
        frozen_NTHWC = real.video_NTHWC[:, :1].expand_as(real.video_NTHWC)
        evaluation.add("first frame repeated", split, frozen_NTHWC, real, True)
        for name, among in (("nearest training clip", evaluation.train), ("nearest of 10 a task", few)):
            chosen = nearest_clips(real.video_NTHWC[:, 0], among)
            evaluation.add(name, split, among.video_NTHWC[torch.from_numpy(chosen)], real, True)
        tasks = [int(np.flatnonzero(real.task_N == task)[0]) for task in np.unique(real.task_N)]
        pairs = [(real.video_NTHWC[n].numpy(), dreams_NTHWC[n].numpy()) for n in tasks]
        for page, first in enumerate(range(0, len(pairs), 12)):
            grid = Image.fromarray(picture_grid(pairs[first : first + 12]))
            grid.save(evaluation.args.out / f"dreams_{split}_{page}.png")


def measure_instructions(evaluation: Evaluation) -> None:
    """Dream scenes of several tasks with another task's instruction; the nearest recorded motion tells the task."""
    real, train = evaluation.scenes, evaluation.train[evaluation.train.scene_N != ""]
    if len(real) == 0 or len(train) == 0:
        evaluation.skipped.append("instructions: no scenes")
        return
    known = _motion(evaluation.readout.read(train.video_NTHWC))
    kinds = sorted(set(zip(train.scene_N.tolist(), train.task_N.tolist(), strict=True)))
    texts = {(scene, task): usual_wording(train[(train.scene_N == scene) & (train.task_N == task)])
             for scene, task in kinds}  # fmt: skip
    others = [sorted(task for scene, task in texts if scene == real.scene_N[n] and task != real.task_N[n])
              for n in range(len(real))]  # fmt: skip
    usable = np.array([bool(tasks) for tasks in others])
    real, others = real[usable], [tasks[0] for tasks in others if tasks]
    wanted = np.array([texts[str(scene), task] for scene, task in zip(real.scene_N, others, strict=True)])
    plain = Sampling(evaluation.args.num_steps, seed=evaluation.args.seed)

    def does(video_NTHWC: torch.Tensor, tasks: np.ndarray) -> np.ndarray:
        motion = _motion(evaluation.readout.read(video_NTHWC))
        right = []
        for one, scene, task in zip(motion, real.scene_N, tasks, strict=True):
            same_scene = np.flatnonzero(train.scene_N == scene)
            nearest = same_scene[np.square(known[same_scene] - one).sum(1).argmin()]
            right.append(train.task_N[nearest] == task)
        return np.array(right)

    own, other = evaluation.sampler.dream(real, plain), evaluation.sampler.dream(real, plain, wanted)
    does_other = does(other, np.array(others))
    evaluation.notes["instructions"] = {
        "clips": len(real),
        "recording_does_its_task": float(does(real.video_NTHWC, real.task_N).mean()),
        "dream_does_its_task": float(does(own, real.task_N).mean()),
        "dream_with_the_other_instruction_does_the_other_task": float(does_other.mean()),
        "dream_with_the_other_instruction_does_the_recorded_task": float(does(other, real.task_N).mean()),
    } | {
        f"the_other_task_in_{scene}": float(does_other[real.scene_N == scene].mean())
        for scene in np.unique(real.scene_N).tolist()
    }
    pairs = [(own[n].numpy(), other[n].numpy()) for n in np.unique(real.scene_N, return_index=True)[1]]
    Image.fromarray(picture_grid(pairs)).save(evaluation.args.out / "instructions.png")


def _motion(values_NTV: np.ndarray) -> np.ndarray:
    """Return hand, gripper and object over time as one vector a clip; the gripper counts like 5 cm."""
    gripper = 0.05 * values_NTV[..., GRIPPER : GRIPPER + 1]
    return np.concatenate([values_NTV[..., HAND], gripper, values_NTV[..., OBJECT]], axis=-1).reshape(
        len(values_NTV), -1
    )


def measure_variety(evaluation: Evaluation) -> None:
    """Dream the same starts with two seeds."""
    real = evaluation.seen
    first, second = (evaluation.sampler.dream(real, Sampling(evaluation.args.num_steps, seed=evaluation.args.seed + n))
                     for n in (0, 1))  # fmt: skip
    hands = [evaluation.readout.read(video)[..., HAND] for video in (first, second)]
    between = pixel_metrics(first, replace(real, video_NTHWC=second))
    evaluation.notes["variety"] = {
        "clips": len(real),
        "psnr_between_seeds": float(np.nanmean(between["psnr"])),
        "psnr_moving_between_seeds": float(np.nanmean(between["psnr_moving"])),
        "hand_cm_between_seeds": float(100 * np.linalg.norm(hands[0] - hands[1], axis=-1).mean()),
    }


def usual_wording(clips: Clips) -> str:
    """Return the most frequent instruction of some clips: of a task, a written one and no paraphrase."""
    return Counter(map(str, clips.instruction_N)).most_common(1)[0][0]


def measure_wordings(evaluation: Evaluation) -> None:
    """Dream with the test clips' wordings, which no training has seen, and with wordings of the training."""
    train, plain = evaluation.train, Sampling(evaluation.args.num_steps, seed=evaluation.args.seed)
    known = {str(task): usual_wording(train[train.task_N == task]) for task in np.unique(train.task_N)}
    for split in ("seen", "scenes"):
        real: Clips = getattr(evaluation, split)
        real = real[np.isin(real.task_N, list(known))]
        if len(real) == 0 or not evaluation.has_time(f"wordings, {split}"):
            continue
        texts = np.array([known[str(task)] for task in real.task_N])
        evaluation.add("dream, withheld wording", split, evaluation.sampler.dream(real, plain), real)
        evaluation.add("dream, wording of the training", split, evaluation.sampler.dream(real, plain, texts), real)


def sweep_guidance(evaluation: Evaluation) -> None:
    """Measure numbers of steps and guidance on seen tasks."""
    steps, seed = evaluation.args.num_steps, evaluation.args.seed
    samplings = [Sampling(few, seed=seed) for few in (4, 8, 36)]
    samplings += [Sampling(steps, scale, seed=seed) for scale in (1.5, 3.0)]
    samplings += [Sampling(steps, 3.0, negative_prompt=None, seed=seed)]
    measure_samplings(evaluation, samplings)


def passes_of(sampling: Sampling) -> int:
    """Return the number of the transformer's forward passes for a clip."""
    return num_forwards(sampling.num_steps, level_step_skipping(sampling.level), sampling.guidance_scale > 1)


def measure_samplings(evaluation: Evaluation, samplings: list[Sampling]) -> None:
    """Measure dreams of seen tasks for each way of sampling."""
    for sampling in samplings:
        negative = (
            "" if sampling.guidance_scale == 1 else ", default negative" if sampling.negative_prompt else ", no text"
        )
        name = f"{sampling.num_steps} steps, guidance {sampling.guidance_scale:g}{negative}, {sampling.level}"
        if not evaluation.has_time(name):
            continue
        start_s = time.monotonic()
        video_NTHWC = evaluation.sampler.dream(evaluation.seen, sampling)
        clip_s = (time.monotonic() - start_s) / len(evaluation.seen)
        passes = passes_of(sampling)
        evaluation.add(name, "seen", video_NTHWC, evaluation.seen, clip_s=clip_s, passes=passes)


# In the order of the report.
SECTIONS = {
    "splits": measure_splits, "instructions": measure_instructions, "wordings": measure_wordings,
    "variety": measure_variety, "guidance": sweep_guidance,
}  # fmt: skip


def tables(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = []
    for split in dict.fromkeys(row["split"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["split"] == split]
        columns = {key: column for key, column in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
        head = [f"{split} ({rows[0]['clips']} clips)", *(title for title, _ in columns.values())]
        cells = [[row["name"], *(shown(row.get(key), form) for key, (_, form) in columns.items())] for row in rows]
        lines += [markdown_table(head, cells), ""]
    for section in ("instructions", "variety"):
        if section in report:
            pairs = [[key.replace("_", " "), f"{value:.3g}"] for key, value in report[section].items()]
            lines += [markdown_table([section, ""], pairs), ""]
    if report["left_out"]:
        lines += [f"Left out for lack of time: {'; '.join(report['left_out'])}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
