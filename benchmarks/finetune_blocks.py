"""What one transformer block takes, in seconds and in memory, and what a whole model of such blocks takes by that.

    python benchmarks/finetune_blocks.py --model cosmos2.5-14b --out benchmarks/results/finetune_blocks_14b.json
    python benchmarks/finetune_blocks.py --model cosmos2.5-2b --out benchmarks/results/finetune_blocks_2b.json
    python benchmarks/finetune_blocks.py --model mini --sizes 64x64x9 --layers 1 2    # a smoke test

A model of the real width with few layers and random weights makes our training step at two depths. The difference is
what a block takes; the rest is what a step takes whatever the depth. Both are set beside what `training_memory` says
before a training begins, for the depths that were measured and for all layers of the model: that is what `--dry_run`
prints and what a training is refused by. On a CPU only the time is measured.

Axes: B batch, T latent frames, L text tokens, D features.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_step import fast_loss, machine, measure, release, step
from random_models import attach, make_batch

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.models.cosmos_predict25.activation_checkpointing import training_blocks
from dreamgen.models.cosmos_predict25.checkpoint_policies import POLICIES, CheckpointPolicy, choose_policies
from dreamgen.models.cosmos_predict25.dora import use_closed_form
from dreamgen.models.cosmos_predict25.random_models import model_sizes, random_transformer
from dreamgen.models.cosmos_predict25.training_memory import activation_gib, activations_of, estimate_memory, fixed_gib
from dreamgen.models.cosmos_predict25.transformer_size import TransformerSize
from dreamgen.models.cosmos_predict25.velocity import project_text


@dataclass(frozen=True)
class Measured:
    """A step at one depth.

    Args:
        num_layers: Blocks.
        step_s: Median seconds.
        peak_gib: Most memory that tensors took; None on a CPU.
        estimated_gib: By `training_memory`.
    """

    num_layers: int
    step_s: float
    peak_gib: float | None
    estimated_gib: float


def main() -> None:
    """Measure, print the tables, and write the results."""
    args = parse_arguments()
    config = model_sizes(args.model)["transformer"]
    device = torch.device(args.device)
    args.eager |= device.type != "cuda"
    report = {"machine": machine(device), "model": args.model, "eager": args.eager, "rows": []}
    for size in args.sizes:
        for method in args.methods:
            settings = settings_of(args, size, method)
            by_level = {level: measure_level(level, args, settings, config, device) for level in args.levels}
            report["rows"].append(row(settings, config, by_level, compiled=not args.eager))
            if args.out:
                Path(args.out).parent.mkdir(parents=True, exist_ok=True)
                Path(args.out).write_text(json.dumps(report, indent=1))
    print(block_table(report))
    print()
    print(model_table(report))


def settings_of(args: argparse.Namespace, size: str, method: str) -> Settings:
    """Return the settings that the estimates read."""
    height, width, num_frames = map(int, size.split("x"))
    return settings_from_dict(
        {
            "model": {"device": "cpu", "dtype": "bfloat16"},  # no estimate may look at the GPU that is here
            "video": {"height": height, "width": width, "num_frames": num_frames},
            "finetune": {
                "method": method, "lora": {"rank": args.rank, "alpha": args.rank}, "memory_gib": args.memory_gib,
            },
        }
    )  # fmt: skip


def measure_level(
    level: CheckpointPolicy, args: argparse.Namespace, settings: Settings, config: dict[str, Any], device: torch.device
) -> list[Measured]:
    """Measure a level at each depth; a depth that does not fit is left out, with a word on stderr."""
    measured = []
    for num_layers in args.layers:
        try:
            measured.append(measure_depth(level, num_layers, args, settings, config, device))
        except torch.OutOfMemoryError:
            print(f"{level}, {num_layers} layers: out of memory", file=sys.stderr, flush=True)
        release(device)
        if measured and measured[-1].num_layers == num_layers:
            print(f"{settings.finetune.method} {level}: {measured[-1]}", file=sys.stderr, flush=True)
    return measured


def measure_depth(
    level: CheckpointPolicy,
    num_layers: int,
    args: argparse.Namespace,
    settings: Settings,
    config: dict[str, Any],
    device: torch.device,
) -> Measured:
    """Measure our step on a model of so many layers."""
    torch._dynamo.reset()
    video, dtype = settings.video, torch.bfloat16
    small = {**config, "num_layers": num_layers}
    transformer = random_transformer(small, device, dtype)
    parameters = attach(transformer, args.rank, settings.finetune.method == "dora")
    use_closed_form(transformer)
    transformer.train()
    size = argparse.Namespace(model=args.model, height=video.height, width=video.width, num_frames=video.num_frames)
    batch = make_batch(size, torch.device("cpu"))
    text_BLD = project_text(transformer, batch.pop("text_BLD").to(device, dtype)).detach()
    del batch["video_BCTHW"], batch["padding"]  # no training holds them
    batch = {name: value.to(device) for name, value in batch.items()}
    policies: list[CheckpointPolicy] = [level] * num_layers
    blocks = training_blocks(policies, compiled=not args.eager)
    loss = functools.partial(fast_loss, transformer, batch, text_BLD, dtype, blocks)
    release(device)
    times, peak_gib = measure(step(loss, parameters, device), args.repeats, device)
    of_size = TransformerSize.from_config(small)
    estimated = estimate_memory(of_size, settings, policies, compiled=not args.eager)
    return Measured(num_layers, statistics.median(times), peak_gib if device.type == "cuda" else None, estimated.peak)


def row(
    settings: Settings, config: dict[str, Any], by_level: dict[CheckpointPolicy, list[Measured]], compiled: bool
) -> dict[str, Any]:
    """Put together what a size and method were measured to take, by level, and what the whole model takes by that."""
    size, video, tune = TransformerSize.from_config(config), settings.video, settings.finetune
    unit, whole_fixed = activation_gib(size, settings), sum(fixed_gib(size, settings))
    one, two = (sum(fixed_gib(TransformerSize.from_config({**config, "num_layers": n}), settings)) for n in (1, 2))
    levels: dict[CheckpointPolicy, dict[str, Any]] = {}
    for level, measured in by_level.items():
        policies: list[CheckpointPolicy] = [level] * size.num_layers
        levels[level] = {"measured": [asdict(each) for each in measured]}
        if len(measured) < 2:
            continue
        first, last = measured[0], measured[-1]
        apart = last.num_layers - first.num_layers
        left = size.num_layers - last.num_layers
        block_s = (last.step_s - first.step_s) / apart
        levels[level] |= {"block_s": block_s, "whole_s": last.step_s + left * block_s}
        if first.peak_gib is not None and last.peak_gib is not None:
            block_gib = (last.peak_gib - first.peak_gib) / apart
            rest_gib = last.peak_gib - last.num_layers * block_gib
            levels[level] |= {
                "block_gib": block_gib,
                "kept_activations": (block_gib - (two - one)) / unit,
                "working_activations": (rest_gib - (2 * one - two)) / unit,
                "whole_gib": last.peak_gib + left * block_gib,
                "whole_estimated_gib": estimate_memory(size, settings, policies, compiled).peak,
            }
    chosen = choose_policies(size.num_layers, unit, whole_fixed, tune.memory_gib, activations_of(settings, compiled))
    return {
        "method": tune.method, "size": [video.height, video.width, video.num_frames], "rank": tune.lora.rank,
        "activation_gib": unit, "num_layers": size.num_layers, "levels": levels,
        "chosen": chosen_mix(chosen, levels, estimate_memory(size, settings, chosen, compiled).peak, tune.memory_gib),
    }  # fmt: skip


def chosen_mix(
    chosen: list[CheckpointPolicy],
    levels: dict[CheckpointPolicy, dict[str, Any]],
    estimated_gib: float,
    memory_gib: float,
) -> dict[str, Any]:
    """Say what the levels that a training would choose take by what was measured of each."""
    counts: dict[CheckpointPolicy, int] = {level: chosen.count(level) for level in dict.fromkeys(chosen)}
    mix = {"memory_gib": memory_gib, "counts": counts, "estimated_gib": estimated_gib}
    parts = [(levels.get(level, {}), count) for level, count in counts.items()]
    if all("block_s" in part for part, _ in parts):
        total = sum(counts.values())
        # What is no block's is the same at every level, and the largest working memory of the levels counts.
        rest_s = max(part["whole_s"] - total * part["block_s"] for part, _ in parts)
        mix["step_s"] = rest_s + sum(part["block_s"] * count for part, count in parts)
    if all("block_gib" in part for part, _ in parts):
        rest_gib = max(part["whole_gib"] - total * part["block_gib"] for part, _ in parts)
        mix["peak_gib"] = rest_gib + sum(part["block_gib"] * count for part, count in parts)
    return mix


def block_table(report: dict[str, Any]) -> str:
    """Return what was measured, as Markdown."""
    how = "not compiled" if report["eager"] else "compiled"
    lines = [
        f"{report['machine']}, {report['model']}, {how}",
        "",
        "| method, size | blocks keep | layers: peak GiB (estimated) | s a block | activations it keeps | working |",
        "|---|---|---|---|---|---|",
    ]
    for line in report["rows"]:
        for level, found in line["levels"].items():
            peaks = ", ".join(
                f"{at['num_layers']}: {shown(at['peak_gib'], '.1f')} ({at['estimated_gib']:.1f})"
                for at in found["measured"]
            )
            lines.append(
                f"| {name_of(line)} | {level} | {peaks or 'out of memory'} | {shown(found.get('block_s'), '.3f')} "
                f"| {shown(found.get('kept_activations'), '.1f')} | {shown(found.get('working_activations'), '.0f')} |"
            )
    return "\n".join(lines)


def model_table(report: dict[str, Any]) -> str:
    """Return what the whole model takes by that, as Markdown."""
    lines = [
        "| method, size | blocks keep | whole model, GiB by measured blocks | by finetune's estimate | s a step |",
        "|---|---|---|---|---|",
    ]
    for line in report["rows"]:
        for level, found in line["levels"].items():
            lines.append(
                f"| {name_of(line)} | {level} in {line['num_layers']} | {shown(found.get('whole_gib'), '.1f')} "
                f"| {shown(found.get('whole_estimated_gib'), '.1f')} | {shown(found.get('whole_s'), '.2f')} |"
            )
        chosen = line["chosen"]
        kept = ", ".join(f"{level} in {count}" for level, count in chosen["counts"].items())
        lines.append(
            f"| {name_of(line)} | {kept} (for {chosen['memory_gib']:g} GiB) | {shown(chosen.get('peak_gib'), '.1f')} "
            f"| {chosen['estimated_gib']:.1f} | {shown(chosen.get('step_s'), '.2f')} |"
        )
    return "\n".join(lines)


def name_of(line: dict[str, Any]) -> str:
    """Return a row's method and size."""
    return f"{line['method']}, {'x'.join(map(str, line['size']))}"


def shown(value: float | None, form: str) -> str:
    """Format a value; nothing for None."""
    return "" if value is None else format(value, form)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cosmos2.5-14b", help="a file of configs/models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", default=["432x768x93", "704x1280x93"], help="height x width x frames")
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"])
    parser.add_argument("--levels", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--layers", nargs=2, type=int, default=[2, 4], help="the two depths that are measured")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory_gib", type=float, default=Settings().finetune.memory_gib)
    parser.add_argument("--eager", action="store_true", help="do not compile; so on a CPU")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
