"""Training by the published step and by ours with the same seeds: do the loss curves lie on each other?

    python benchmarks/finetune_curves.py --out benchmarks/results/finetune_curves.json
    python benchmarks/finetune_curves.py --num_steps 10 --methods lora    # a smoke test

The mini model is trained twice from the same adapter on the same windows with the same noise, optimizer and schedule.
Published: diffusers' own forward pass with full checkpointing, the text projected in it, peft's own DoRA. Ours: the
projected text, modulation once a frame, blocks that keep attention or everything, DoRA's norm in closed form. Beside
the JSON lies an SVG of both curves. The largest distance between them is printed with what two published trainings
differ by when only their rounding differs, float32 against bfloat16; status 1 if ours is further away than that.

Axes: B batch, C latent channels, T latent frames, H height, W width, L text tokens, D features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from finetune_step import levels_of, machine

from dreamgen.config.loading import configs_folder, read_yaml, settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.data.svg_plot import Line, line_plot, svg_document
from dreamgen.models.cosmos_predict25.activation_checkpointing import training_blocks
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.dora import use_closed_form
from dreamgen.models.cosmos_predict25.flow import flow_input, flow_loss, sample_noise
from dreamgen.models.cosmos_predict25.mini import build_mini
from dreamgen.models.cosmos_predict25.spec import latent_shape
from dreamgen.models.cosmos_predict25.velocity import project_text, velocity
from dreamgen.models.loader_logging import quiet_loaders
from finetune.schedule import learning_rate

Loss = Callable[..., torch.Tensor]
NUM_WINDOWS, NUM_TEXT_TOKENS = 4, 512


def main() -> None:
    """Train, print the table, and write results and curves."""
    args = parse_arguments()
    device, rows = torch.device(args.device), []
    for method in args.methods:
        settings = settings_of(args, method)
        published = train(settings, "published", torch.bfloat16, device, args.compile)
        ours = train(settings, "ours", torch.bfloat16, device, args.compile)
        exact = train(settings, "published", torch.float32, device, args.compile)
        rows.append({"method": method, "published": published, "ours": ours, "published_float32": exact})
        rows[-1] |= {
            "largest": largest(ours, published), "mean": mean(ours, published),
            "largest_of_rounding": largest(exact, published), "mean_of_rounding": mean(exact, published),
        }  # fmt: skip
        if args.out:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).with_suffix(f".{method}.svg").write_text(curves_svg(published, ours), encoding="utf-8")
    if args.out:
        report = {"machine": machine(device), "num_steps": args.num_steps, "rows": rows}
        Path(args.out).write_text(json.dumps(report, indent=1))
    print(table(rows))
    sys.exit(any(row["mean"] > row["mean_of_rounding"] for row in rows))


def curves_svg(published: list[float], ours: list[float]) -> str:
    """Draw both curves, the published one wide and below ours, as an SVG document."""
    steps = range(1, len(ours) + 1)
    lines = [Line(steps, published, "c1 wide", "published"), Line(steps, ours, "c0", "ours")]
    return svg_document(line_plot(lines, f"Loss over {len(ours)} steps", "optimizer steps"))


def settings_of(args: argparse.Namespace, method: str) -> Settings:
    """Return the settings of both trainings."""
    return settings_from_dict(
        {
            "video": {"height": args.height, "width": args.width, "num_frames": args.num_frames},
            "finetune": {
                "method": method, "num_steps": args.num_steps, "warmup_steps": args.num_steps // 10,
                "learning_rate": 1e-3, "lora": {"rank": 8, "alpha": 8},
            },
        }
    )  # fmt: skip


def train(
    settings: Settings, step: str, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> list[float]:
    """Train the mini model's adapter and return the loss of each step.

    Args:
        settings: Of both trainings.
        step: `published` or `ours`.
        dtype: Of the frozen weights; bfloat16 runs under autocast.
        device: To train on.
        compiled: Whether our blocks are compiled.
    """
    tune, shape_CTHW = (
        settings.finetune,
        latent_shape(settings.video.num_frames, settings.video.height, settings.video.width),
    )
    transformer = build_mini(read_yaml(configs_folder() / "models" / "mini.yaml")).transformer
    with quiet_loaders():
        transformer = transformer.to(dtype)
    torch.manual_seed(1)
    parameters = add_adapter(
        transformer, tune.lora.rank, tune.lora.alpha_or_rank, tune.lora.target_modules, is_dora(settings)
    )
    transformer.to(device).train()
    clean, text = windows(shape_CTHW, transformer.config.crossattn_proj_in_channels)
    loss_of = {"published": published_loss, "ours": our_loss}[step](transformer, settings, dtype, compiled)
    optimizer = torch.optim.AdamW(parameters, lr=tune.learning_rate, weight_decay=tune.weight_decay)
    losses = []
    for number in range(tune.num_steps):
        noise = sample_noise(settings.seed, shape_CTHW, tune, [number])
        flow = flow_input(clean[number % NUM_WINDOWS].to(device), noise, tune.conditional_frame_timestep)
        text_BLD = text[number % NUM_WINDOWS] * (not noise.drop_text[0])
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            answer = loss_of(flow, text_BLD.to(device, dtype)).float()
        loss = flow_loss(answer, flow).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, tune.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, tune)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def published_loss(transformer: Any, settings: Settings, dtype: torch.dtype, _: bool) -> Loss:
    """Return the published forward pass: diffusers' own, every block computed again in the backward pass."""
    transformer.enable_gradient_checkpointing()
    padding = torch.zeros(1, 1, settings.video.height, settings.video.width, dtype=dtype, device=transformer.device)

    def answer(flow: Any, text_BLD: torch.Tensor) -> torch.Tensor:
        return transformer(
            hidden_states=flow.hidden_states_BCTHW.to(dtype),
            condition_mask=flow.condition_mask_B1THW.to(dtype),
            timestep=flow.timestep_BT[:, None, :, None, None],
            encoder_hidden_states=text_BLD,
            padding_mask=padding,
            return_dict=False,
        )[0]

    return answer


def our_loss(transformer: Any, settings: Settings, dtype: torch.dtype, compiled: bool) -> Loss:
    """Return our forward pass: half of the blocks keep attention's outputs and the others everything."""
    use_closed_form(transformer)
    num_layers = len(transformer.transformer_blocks)
    num_attention = num_layers // 2
    levels = levels_of(f"all:{num_layers - num_attention}", num_layers)
    blocks = training_blocks(levels, compiled)

    def answer(flow: Any, text_BLD: torch.Tensor) -> torch.Tensor:
        return velocity(
            transformer,
            flow.hidden_states_BCTHW.to(dtype),
            flow.condition_mask_B1THW.to(dtype),
            flow.timestep_BT,
            project_text(transformer, text_BLD).detach(),
            blocks,
        )

    return answer


def windows(shape_CTHW: tuple[int, ...], text_features: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw the training data: smooth latents, clean_BCTHW each, and a text_BLD for each."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(NUM_WINDOWS, shape_CTHW[0], 2, 2, 2, generator=generator)
    clean = torch.nn.functional.interpolate(coarse, size=shape_CTHW[1:], mode="trilinear", align_corners=True)
    text = torch.randn(NUM_WINDOWS, NUM_TEXT_TOKENS, text_features, generator=generator)
    return list(clean.split(1)), list(text.split(1))


def is_dora(settings: Settings) -> bool:
    """Say whether the adapter is a DoRA."""
    return settings.finetune.method == "dora"


def largest(found: list[float], wanted: list[float]) -> float:
    """Return the largest relative distance of two curves at one step."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


def mean(found: list[float], wanted: list[float]) -> float:
    """Return the mean relative distance of two curves."""
    return sum(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True)) / len(wanted)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| method | steps | loss, first and last ten | ours from published: largest, mean "
        "| float32 from bfloat16, both published: largest, mean |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        losses = row["published"]
        ends = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
        lines.append(
            f"| {row['method']} | {len(losses)} | {' to '.join(f'{end:.3f}' for end in ends)} "
            f"| {row['largest']:.1e}, {row['mean']:.1e} | {row['largest_of_rounding']:.1e}, "
            f"{row['mean_of_rounding']:.1e} |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num_steps", type=int, default=200)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--num_frames", type=int, default=9)
    parser.add_argument("--methods", nargs="+", default=["lora", "dora"])
    parser.add_argument("--compile", action="store_true", help="compile our blocks")
    parser.add_argument("--out", help="write the results as JSON, and the curves beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
