"""The adapter's card: its training data, settings and loss curves, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dreamgen.config.settings import Settings
from dreamgen.data.svg_plot import Line, line_plot, svg_document
from dreamgen.models.adapter_files import adapter_sha256
from dreamgen.models.world_model import WorldModelSource
from dreamgen.run.files import write_text
from dreamgen.run.published_paths import published_paths
from dreamgen.run.run_folder import RunFolder, as_plain
from dreamgen.text_escape import code_text, markdown_text
from finetune.training_log import read_steps

NUM_ROWS = 10
CURVES_NAME = "loss.svg"
# Where a run happens and where it uploads to is private, and no part of how the adapter was trained.
PRIVATE = {"init_adapter", "cache_dir", "resume_from", "push_to_hub", "tracker", "num_workers"}

LOCAL_PATHS = """\
Local paths are relative to the folder that holds the run; of a folder elsewhere only the name is told.

"""

CARD = """\
---
{front}
---

# {method} {model}

Made by DreamGen from {num_clips} clips: {num_windows} windows of {num_frames} frames, {width} x {height} px, {fps} fps.

| | |
|---|---|
{table}

## Load it

```python
{snippet}
```

{where}The prompt begins with the prefix of the training: `{prompt_prefix}`.

## Curves

![Loss over the optimizer steps](loss.svg)

{curves}

## Settings

```yaml
{settings}
```
"""


def write_card(
    folder: Path, settings: Settings, source: WorldModelSource, device: str, counts: dict[str, Any], final_loss: float
) -> None:
    """Write an adapter's README.md and loss.svg, from the run's loss.csv and validation.csv.

    Args:
        folder: With the adapter's weights; it may still have a temporary name.
        settings: Of the training.
        source: The base model.
        device: Type of the training device: cpu or cuda.
        counts: num_clips, num_windows, num_samples and num_epochs; best_step with finetune.keep_best.
        final_loss: Loss of the last line of loss.csv.
    """
    run = RunFolder.of(settings)
    logs, facts = run.finetune_logs, (settings, source, run.adapter, device, counts, final_loss)
    training, validation = read_steps(logs / "loss.csv"), validation_table(read_steps(logs / "validation.csv"))
    curves = {
        "training": [(int(row["step"]), float(row["loss"])) for row in training],
        "validation": [(step, sum(losses.values()) / len(losses)) for step, losses in validation.items()],
    }
    write_text(folder / CURVES_NAME, loss_plot(curves))
    write_text(folder / "README.md", adapter_card(*facts, training, validation))


def adapter_card(
    settings: Settings,
    source: WorldModelSource,
    adapter: Path,
    device: str,
    counts: dict[str, Any],
    final_loss: float,
    training: Sequence[dict[str, str]] = (),
    validation: dict[int, dict[str, float]] | None = None,
) -> str:
    """Return README.md of an adapter.

    Args:
        settings: Of the training.
        source: The base model.
        adapter: Folder that it will be loaded from, unless it is uploaded to a hub.
        device: Type of the training device: cpu or cuda.
        counts: As `write_card` takes them.
        final_loss: Loss of the last line of loss.csv.
        training: Rows of loss.csv.
        validation: From `validation_table`.

    Returns:
        Markdown with YAML front matter, as hubs read it.
    """
    tune, video, is_full = settings.finetune, settings.video, settings.finetune.method == "full"
    front: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-video",
        "tags": sorted({tune.method, model_tag(source), "image-to-video"} | (set() if is_full else {"lora"})),
    }
    if source.revision is not None:  # a hub knows only its own models
        front |= {"base_model": source.path, "base_model_relation": "finetune" if is_full else "adapter"}
    rows = {
        "base model": source.path if tune.push_to_hub is None else source.name,
        "revision": source.revision or "none (a local folder)",
        "fingerprint": source.sha256,
        "method": tune.method,
        **(
            {}
            if is_full
            else {
                "rank, alpha": f"{tune.lora.rank}, {tune.lora.alpha_or_rank}",
                "layers": ", ".join(tune.lora.target_modules),
            }
        ),
        "optimizer steps": tune.num_steps,
        "windows seen": f"{counts['num_samples']} ({counts['num_epochs']:.2f} epochs)",
        "clips held out": tune.validation_clips,
        "peak learning rate": f"{tune.learning_rate:.3e}",
        "precision of the base": settings.model.dtype,
        "seed": settings.seed,
        "final loss": f"{final_loss:.6f}",
    }
    if tune.init_adapter is not None:
        rows["starts from"] = f"{tune.init_adapter} ({adapter_sha256(Path(tune.init_adapter))[:16]})"
    if tune.distill_guidance is not None:
        rows["guidance"] = f"scale {tune.distill_guidance:g} is folded in: generate with guidance 1, one pass a step"
    if tune.ema_decay is not None:
        rows["weights"] = f"moving average of the steps, decay {tune.ema_decay:g}"
    if "best_step" in counts:
        rows["weights of step"] = f"{counts['best_step']}, with the lowest geometric mean of the validation losses"
    # A training that continues another run's has no losses of the steps before.
    if validation and (losses := validation.get(counts.get("best_step", max(validation)))):
        rows["validation loss"] = f"{sum(losses.values()) / len(losses):.6f}"
    plain = as_plain(settings)
    kept = {name: value for name, value in plain["finetune"].items() if name not in PRIVATE}
    shorten = published_paths(RunFolder.of(settings).root, plain)
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=True).strip(),
        method={"lora": "LoRA adapter for", "dora": "DoRA adapter for", "full": "All weights of"}[tune.method],
        model=markdown_text(source.name),
        num_clips=counts["num_clips"],
        num_windows=counts["num_windows"],
        num_frames=video.num_frames,
        width=video.width,
        height=video.height,
        fps=video.fps,
        table="\n".join(f"| {name} | {markdown_text(shorten(str(value)))} |" for name, value in rows.items()),
        snippet=shorten(source.load_class().loading_snippet(settings, source, tune.push_to_hub or adapter, device)),
        where=LOCAL_PATHS if source.revision is None or tune.push_to_hub is None else "",
        prompt_prefix=code_text(settings.prompt_prefix),
        curves="\n\n".join(filter(None, [_training_rows(training), _validation_rows(validation)])),
        settings=yaml.safe_dump({"seed": settings.seed, "finetune": kept}, sort_keys=False).strip(),
    )


def loss_plot(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Draw losses over optimizer steps, one line for each name, as an SVG document."""
    lines = [
        Line([step for step, _ in points], [loss for _, loss in points], f"c{index}", name)
        for index, (name, points) in enumerate(curves.items())
    ]
    num_steps = max((step for points in curves.values() for step, _ in points), default=0)
    return svg_document(line_plot(lines, f"Loss over {num_steps} steps", "optimizer steps"))


def model_tag(source: WorldModelSource) -> str:
    """Return the first word of the model type's name, such as "cosmos", as a tag."""
    return source.type.partition("_")[0]


def validation_table(rows: Sequence[dict[str, str]]) -> dict[int, dict[str, float]]:
    """Return step -> sigma -> loss from the rows of validation.csv."""
    table: dict[int, dict[str, float]] = {}
    for row in rows:
        table.setdefault(int(row["step"]), {})[row["sigma"]] = float(row["loss"])
    return table


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Return at most `number` of the items, evenly spaced, with the first and the last."""
    if len(items) <= number:
        return list(items)
    return [items[round(index * (len(items) - 1) / (number - 1))] for index in range(number)]


def _training_rows(training: Sequence[dict[str, str]]) -> str:
    lines = [f"| {row['step']} | {float(row['loss']):.4f} |" for row in spread(training, NUM_ROWS)]
    return "\n".join(["| step | training loss |", "|---|---|", *lines])


def _validation_rows(validation: dict[int, dict[str, float]] | None) -> str:
    if not validation:
        return ""
    sigmas = list(next(iter(validation.values())))
    lines = [
        "| " + " | ".join([str(step), *(f"{losses[sigma]:.4f}" for sigma in sigmas)]) + " |"
        for step, losses in spread(list(validation.items()), NUM_ROWS)
    ]
    header = "| step | " + " | ".join(f"validation loss at noise {sigma}" for sigma in sigmas) + " |"
    return "\n".join([header, "|" + "---|" * (len(sigmas) + 1), *lines])
