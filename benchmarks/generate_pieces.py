"""Where a clip's time goes: one forward pass and one decoding, published and ours, each with its error.

    python benchmarks/generate_pieces.py --model cosmos2.5-2b --out benchmarks/results/generate_pieces.json
    python benchmarks/generate_pieces.py --model mini --height 64 --width 64 --num_frames 9     # a smoke test

A forward pass' error is that of its velocity against the same weights in float32, |a - b| / |b|.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from finetune_step import machine, measure, relative_error, release
from generate import parse_arguments
from random_models import make_batch

from dreamgen.models.cosmos_predict25.fp8 import Fp8Switch
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, compiled_parts, text_keys_values, velocities
from dreamgen.models.cosmos_predict25.latents import decode
from dreamgen.models.cosmos_predict25.random_models import model_sizes, random_pipeline, random_transformer
from dreamgen.models.cosmos_predict25.velocity import project_text

NUM_REPEATS = 5


@torch.no_grad()
def main() -> None:
    """Measure each piece, print the table, and write the results."""
    args = parse_arguments()
    device, dtype = torch.device(args.device), torch.bfloat16
    sizes = model_sizes(args.model)
    batch = make_batch(args, device)
    reference = random_transformer(sizes["transformer"], device, dtype).float()
    wanted = published_forward(reference, batch, torch.float32)().double().cpu()
    del reference
    release(device)
    pipe = random_pipeline({**sizes, "text_encoder": {**sizes["text_encoder"], "num_hidden_layers": 1}}, device, dtype)
    transformer, switch, rows = pipe.transformer, Fp8Switch(), []
    rows.append(timed("forward, published", published_forward(transformer, batch, dtype), device, wanted))
    rows.append(timed("forward, ours", our_forward(transformer, batch, dtype, BlockParts()), device, wanted))
    parts = compiled_parts() if device.type == "cuda" else BlockParts()
    rows.append(timed("forward, compiled", our_forward(transformer, batch, dtype, parts), device, wanted))
    rows.append(timed("both passes, compiled", our_forward(transformer, batch, dtype, parts, 2), device, wanted))
    switch.on(transformer)
    rows.append(timed("forward, compiled, fp8", our_forward(transformer, batch, dtype, parts), device, wanted))
    rows.append(timed("both passes, compiled, fp8", our_forward(transformer, batch, dtype, parts, 2), device, wanted))
    switch.off(transformer)
    latents = batch["clean"]
    pixels = decode(pipe, latents).double().cpu()
    rows.append(timed("decode", lambda: decode(pipe, latents), device, pixels))
    torch.backends.cudnn.benchmark = True
    rows.append(timed("decode, cudnn.benchmark", lambda: decode(pipe, latents), device, pixels))
    for module in pipe.vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]: not in its overloads
    rows.append(timed("decode, channels last", lambda: decode(pipe, latents), device, pixels))
    if device.type == "cuda":
        pipe.vae.decoder = torch.compile(pipe.vae.decoder, dynamic=False)
        rows.append(timed("decode, channels last, compiled", lambda: decode(pipe, latents), device, pixels))
    report = {"machine": machine(device), "model": args.model, "rows": rows}
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(report, indent=1))
    print(f"{report['machine']}, {args.model}\n\n| piece | s (min to max) | error |\n|---|---|---|")
    for line in rows:
        print(
            f"| {line['name']} | {line['s']:.4f} ({line['min_s']:.4f} to {line['max_s']:.4f}) | {line['error']:.2e} |"
        )


def published_forward(transformer: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable[[], Any]:
    """Return diffusers' own forward pass; the text is projected in it."""
    text_BLD = batch["text_BLD"].to(dtype)
    return lambda: transformer(
        hidden_states=batch["mixed"].to(dtype),
        condition_mask=batch["mask"].to(dtype),
        timestep=batch["timestep_BT"][:, None, :, None, None],
        encoder_hidden_states=text_BLD,
        padding_mask=batch["padding"].to(dtype),
        return_dict=False,
    )[0]


def our_forward(
    transformer: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype, parts: BlockParts, num_texts: int = 1
) -> Callable[[], torch.Tensor]:
    """Return ours, for one text or for two."""
    keys_values = text_keys_values(transformer, project_text(transformer, batch["text_BLD"].to(dtype)))
    rope = transformer.rope(batch["mixed"], fps=None)
    return lambda: velocities(
        transformer,
        batch["mixed"].to(dtype),
        batch["mask"].to(dtype),
        batch["timestep_BT"],
        [keys_values] * num_texts,
        parts,
        rope,
    )[0]


def timed(name: str, run: Callable[[], Any], device: torch.device, wanted: torch.Tensor) -> dict[str, Any]:
    """Time one piece and compare its answer. Returns a line of the table."""
    with torch.no_grad():
        error = relative_error(run().double().cpu(), wanted)
        times, peak = measure(run, NUM_REPEATS, device)
    line = {"name": name, "s": statistics.median(times), "min_s": min(times), "max_s": max(times), "error": error}
    print(json.dumps(line), file=sys.stderr, flush=True)
    return {**line, "peak_gib": peak}


if __name__ == "__main__":
    main()
