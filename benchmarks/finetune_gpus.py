"""Training steps a second on one GPU and on several: data parallel, the same step as benchmarks/finetune_step.py.

    python benchmarks/finetune_gpus.py --model cosmos2.5-2b --processes 1 2
    python benchmarks/finetune_gpus.py --model mini --device cpu --height 64 --width 64 --num_frames 9 --processes 1 2

Every process holds the frozen base and its own window; gradients of the adapter are averaged over all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from finetune_step import levels_of, synchronize
from random_models import attach, make_batch
from torch.nn.parallel import DistributedDataParallel

from dreamgen.models.cosmos_predict25.activation_checkpointing import training_blocks
from dreamgen.models.cosmos_predict25.random_models import model_sizes, random_transformer
from dreamgen.models.cosmos_predict25.velocity import project_text, velocity


class Step(torch.nn.Module):
    """The velocity as one module, for data parallelism to wrap."""

    def __init__(self, transformer: Any, run_block: Any) -> None:
        super().__init__()
        self.transformer, self.run_block = transformer, run_block

    def forward(
        self, latents_BCTHW: torch.Tensor, mask_B1THW: torch.Tensor, timestep_BT: torch.Tensor, text_BLD: torch.Tensor
    ) -> torch.Tensor:
        """Return velocity_BCTHW."""
        return velocity(self.transformer, latents_BCTHW, mask_B1THW, timestep_BT, text_BLD, self.run_block)


def main() -> None:
    """Measure each number of processes, print the table, and write the results."""
    args = parse_arguments()
    rows = []
    for count in args.processes:
        results = mp.get_context("spawn").SimpleQueue()
        mp.spawn(work, (count, args, results), nprocs=count)
        rows.append({"processes": count, "times_s": results.get()})
    one = statistics.median(rows[0]["times_s"])
    for row in rows:
        row["step_s"] = statistics.median(row["times_s"])
        row["speedup"] = row["processes"] / rows[0]["processes"] * one / row["step_s"]
    if args.out:
        Path(args.out).write_text(json.dumps({"model": args.model, "level": args.level, "rows": rows}, indent=1))
    print("| processes | step s (min to max) | windows a second, times one process |\n|---|---|---|")
    for row in rows:
        low, high = min(row["times_s"]), max(row["times_s"])
        print(f"| {row['processes']} | {row['step_s']:.3f} ({low:.3f} to {high:.3f}) | {row['speedup']:.3f} |")


def work(rank: int, count: int, args: argparse.Namespace, results: Any) -> None:
    """Train in one process; the first one reports its step times."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.port + count)}
    is_cuda = args.device == "cuda"
    device = torch.device("cuda", rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo", rank=rank, world_size=count)
    sizes = model_sizes(args.model)
    dtype = torch.bfloat16
    transformer = random_transformer(sizes["transformer"], device, dtype)
    parameters = attach(transformer, args.rank, False)
    transformer.train()
    blocks = training_blocks(levels_of(args.level, sizes["transformer"]["num_layers"]), compiled=is_cuda)
    model: torch.nn.Module = Step(transformer, blocks)
    if count > 1:
        model = DistributedDataParallel(model, device_ids=[rank] if is_cuda else None)
    batch = make_batch(args, device)
    text_BLD = project_text(transformer, batch["text_BLD"].to(dtype)).detach()
    inputs = (batch["mixed"].to(dtype), batch["mask"].to(dtype), batch["timestep_BT"], text_BLD)
    optimizer = torch.optim.AdamW(parameters, lr=1e-7, fused=is_cuda)
    times = []
    for _ in range(args.repeats + 3):
        synchronize(device)
        start_s = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype):
            answer = model(*inputs)
        (answer.float() - batch["target"]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        times.append(time.perf_counter() - start_s)
    if rank == 0:
        results.put(times[3:])
    dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cosmos2.5-2b", help="a file of configs/models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--level", default="all:20", help="what blocks keep, as in finetune_step.py")
    parser.add_argument("--port", type=int, default=29610)
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
