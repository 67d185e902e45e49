"""One training step: the published recipe's against ours, on the same random weights and the same batch.

    python benchmarks/finetune_step.py --model cosmos2.5-2b --out benchmarks/results/finetune_step.json
    python benchmarks/finetune_step.py --model mini --height 64 --width 64 --num_frames 9 --repeats 2     # a smoke test

The published step decodes nothing here but runs what it runs on the GPU: the VAE on the whole window, the 7B text
encoder, and the transformer with full checkpointing. Ours starts from cached latents and projected text. Beside each
time stand the peak memory and the error of its gradients against the published step's, and both against float32.

Axes: B batch, T frames, C channels, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from metrics import markdown_table, shown, spread, write_report
from random_models import NUM_TEXT_TOKENS, attach, make_batch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamgen.models.cosmos_predict25.activation_checkpointing import training_blocks
from dreamgen.models.cosmos_predict25.checkpoint_policies import POLICIES, CheckpointPolicy
from dreamgen.models.cosmos_predict25.dora import use_closed_form
from dreamgen.models.cosmos_predict25.random_models import model_sizes, published_encoders, random_transformer
from dreamgen.models.cosmos_predict25.velocity import project_text, velocity

# Rates measured on an H200 for products and cuDNN attention; training's backward attention runs at the third.
PRODUCT_FLOPS, ATTENTION_FLOPS, ATTENTION_BACKWARD_FLOPS = 781e12, 686e12, 550e12


def main() -> None:
    """Measure, print the table, and write the results."""
    args = parse_arguments()
    device, dtype = torch.device(args.device), torch.bfloat16
    sizes = model_sizes(args.model)
    batch = make_batch(args, device)
    rows: list[dict[str, Any]] = []
    encode = None if args.skip_encoders else published_encoders(sizes, batch["video_BCTHW"], device, dtype)
    encode_s = measure(encode, args.repeats, device)[0] if encode else [0.0]
    del encode
    release(device)
    for method in args.methods:
        rows += measure_method(method, args, sizes, batch, device, dtype, encode_s)
    report = {
        "machine": machine(device), "model": args.model, "size": [args.num_frames, args.height, args.width],
        "num_tokens": num_tokens(args), "encode_s": encode_s, "floor_s": floor_s(sizes, args), "rows": rows,
    }  # fmt: skip
    write_report(report, args.out)
    print(table(report))


def measure_method(
    method: str,
    args: argparse.Namespace,
    sizes: dict[str, Any],
    batch: dict[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    encode_s: list[float],
) -> list[dict[str, Any]]:
    """Measure the published step and each of ours for LoRA or DoRA."""
    transformer = random_transformer(sizes["transformer"], device, dtype)
    parameters = attach(transformer, args.rank, method == "dora")
    projected_BLD = project_text(transformer, batch["text_BLD"].to(dtype)).detach()
    plain = functools.partial(plain_loss, transformer, batch, dtype)
    reference = float32_gradients(sizes, args, method, batch, device) if args.float32 else None

    before = [parameter.detach().clone() for parameter in parameters]
    transformer.enable_gradient_checkpointing()
    transformer.train()
    published = gradients(plain, parameters, device)
    times, peak = measure(step(plain, parameters, device), args.repeats, device)
    baseline = statistics.median(times) + statistics.median(encode_s)
    rows = [row(f"{method} published", times, peak, baseline, encode_s=statistics.median(encode_s))]
    rows[0]["error_to_float32"] = relative_error(published, reference)
    transformer.disable_gradient_checkpointing()
    if method == "dora":
        use_closed_form(transformer)
    for variant in args.variants:
        name, _, backend = variant.partition("+")
        torch._dynamo.reset()
        run_block = training_blocks(levels_of(name, sizes["transformer"]["num_layers"]), compiled=not args.eager)
        fast = functools.partial(
            with_attention, backend, fast_loss, transformer, batch, projected_BLD, dtype, run_block
        )
        restore(parameters, before)
        release(device)
        try:
            ours = gradients(fast, parameters, device)
            times, peak = measure(step(fast, parameters, device), args.repeats, device)
        except torch.OutOfMemoryError:
            rows.append({"name": f"{method} {variant}", "out_of_memory": True})
            continue
        print(f"{method} {variant}: {statistics.median(times):.3f} s, {peak:.1f} GiB", file=sys.stderr, flush=True)
        rows.append(row(f"{method} {variant}", times, peak, baseline))
        rows[-1]["error_to_published"] = relative_error(ours, published)
        rows[-1]["error_to_float32"] = relative_error(ours, reference)
        del ours
    del transformer, parameters, plain, fast
    release(device)
    return rows


def plain_loss(transformer: torch.nn.Module, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return the published step's loss: diffusers' own forward, text projected in it."""
    with torch.autocast(batch["clean"].device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        answer = transformer(
            hidden_states=batch["mixed"].to(dtype),
            condition_mask=batch["mask"].to(dtype),
            timestep=batch["timestep_BT"][:, None, :, None, None],
            encoder_hidden_states=batch["text_BLD"].to(dtype),
            padding_mask=batch["padding"].to(dtype),
            return_dict=False,
        )[0]
    return loss_of(answer, batch)


def fast_loss(
    transformer: Any, batch: dict[str, torch.Tensor], projected_BLD: torch.Tensor, dtype: torch.dtype, run_block: Any
) -> torch.Tensor:
    """Return our step's loss: cached text, modulation once a frame, compiled blocks."""
    with torch.autocast(batch["clean"].device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        answer = velocity(
            transformer,
            batch["mixed"].to(dtype),
            batch["mask"].to(dtype),
            batch["timestep_BT"],
            projected_BLD,
            run_block,
        )
    return loss_of(answer, batch)


def with_attention(kind: str, call: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Call with cuDNN's or flash attention, or with torch's own choice."""
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    with sdpa_kernel(backends[kind]) if kind else contextlib.nullcontext():
        return call(*arguments)


def levels_of(name: str, num_layers: int) -> list[CheckpointPolicy]:
    """Return each block's level; `all:20` is all for the last 20 blocks and attention for the others."""
    level, _, count = name.partition(":")
    assert level in POLICIES, f"{level} is none of {POLICIES}"
    num = int(count) if count else num_layers
    first: list[CheckpointPolicy] = ["attention"] * (num_layers - num)
    last: list[CheckpointPolicy] = [level] * num
    return first + last


def restore(parameters: list[torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    """Put the adapter back to where the published gradients were taken; the timed steps moved it."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)


def loss_of(answer: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared error over the frames that are not conditioning frames."""
    loss_mask = 1 - batch["mask"]
    squared = (answer.float() - batch["target"]).square() * loss_mask
    return squared.sum() / loss_mask.expand_as(squared).sum()


def step(
    loss: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter], device: torch.device
) -> Callable[[], None]:
    """Return a whole optimizer step: loss, gradients, clipping, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-7, fused=device.type == "cuda")

    def run() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def measure(run: Callable[[], Any], repeats: int, device: torch.device) -> tuple[list[float], float]:
    """Return the seconds of each repeat after two warm-ups, and the peak memory in GiB."""
    for _ in range(2):
        run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start_s = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start_s)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return times, peak


def gradients(
    loss: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter], device: torch.device
) -> torch.Tensor:
    """Return all gradients of one loss as one vector, on the CPU."""
    loss().backward()
    flat = torch.cat([p.grad.detach().float().flatten() for p in parameters if p.grad is not None]).cpu()
    for parameter in parameters:
        parameter.grad = None
    return flat


def float32_gradients(
    sizes: dict[str, Any], args: argparse.Namespace, method: str, batch: dict[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Return the gradients of the plain step with weights and arithmetic in float32, the truth for both."""
    transformer = random_transformer(sizes["transformer"], device, torch.bfloat16)
    parameters = attach(transformer, args.rank, method == "dora")
    transformer.float()  # the same bf16 values, exactly
    transformer.enable_gradient_checkpointing()
    transformer.train()
    flat = gradients(functools.partial(plain_loss, transformer, batch, torch.float32), parameters, device)
    del transformer, parameters
    release(device)
    return flat


def relative_error(found: torch.Tensor, wanted: torch.Tensor | None) -> float | None:
    """Return |found - wanted| / |wanted|; None without a reference."""
    return None if wanted is None else float((found.double() - wanted.double()).norm() / wanted.double().norm())


def num_tokens(args: argparse.Namespace) -> int:
    """Return the transformer's tokens for the window."""
    return ((args.num_frames - 1) // 4 + 1) * (args.height // 16) * (args.width // 16)


def floor_s(sizes: dict[str, Any], args: argparse.Namespace) -> float:
    """Return the seconds that an H200 needs at its measured rates for the arithmetic that cannot be left out.

    Forward products and attention once; backward once more for the products (frozen weights need no gradient of their
    own) and 2.5 times the forward for attention.
    """
    config = sizes["transformer"]
    tokens, width = num_tokens(args), config["num_attention_heads"] * config["attention_head_dim"]
    products = config["num_layers"] * tokens * width * width * 2 * (4 + 2 + 2 * config["mlp_ratio"])
    attention = config["num_layers"] * 4 * tokens * (tokens + NUM_TEXT_TOKENS) * width
    return 2 * products / PRODUCT_FLOPS + attention / ATTENTION_FLOPS + 2.5 * attention / ATTENTION_BACKWARD_FLOPS


def row(name: str, times: list[float], peak_gib: float, baseline_s: float, encode_s: float = 0.0) -> dict[str, Any]:
    """Return one line of the table."""
    median = statistics.median(times) + encode_s
    return {
        "name": name, "step_s": median, "min_s": min(times) + encode_s, "max_s": max(times) + encode_s,
        "peak_gib": peak_gib, "ratio": median / baseline_s,
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    title = f"{report['machine']}, {report['model']}, {report['num_tokens']} tokens, floor {report['floor_s']:.2f} s"
    columns = ("step", "s (min to max)", "of published", "peak GiB", "gradient error to published", "to float32")
    rows = [
        (line["name"], "out of memory") if line.get("out_of_memory") else
        (line["name"], spread(line, "step_s", ".3f"), f"{line['ratio']:.3f}", f"{line['peak_gib']:.1f}",
         shown(line.get("error_to_published"), ".2e"), shown(line.get("error_to_float32"), ".2e"))
        for line in report["rows"]
    ]  # fmt: skip
    return f"{title}\n\n{markdown_table(columns, rows)}"


def machine(device: torch.device) -> str:
    """Return the device's name and torch's version."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{name}, torch {torch.__version__}"


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def release(device: torch.device) -> None:
    """Give freed memory back, so that one measurement's does not count for the next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cosmos2.5-2b", help="a file of configs/models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num_frames", type=int, default=93)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"])
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["blocks", "attention", "all:10", "all:20"],
        help="what blocks keep: blocks, attention, all or all:N; +cudnn or +flash: which attention",
    )
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--float32", action="store_true", help="measure both against float32 gradients")
    parser.add_argument("--skip_encoders", action="store_true")
    parser.add_argument("--out", help="write the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
