"""Save a whole pipeline with random weights at a model's real sizes: what `make gpu-check` runs the commands with.

    python benchmarks/random_pipeline.py --model cosmos2.5-2b --out /dev/shm/cosmos2.5-2b

Transformer and VAE have the published sizes. The text encoder is narrower and deeper than the published one: its
output, the features of all layers side by side, keeps the width that the transformer expects, and its weights take
0.5 GB instead of 15 GB.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.models.cosmos_predict25.mini import build_mini, save_pipeline

MLP_RATIO = 2  # of the small text encoder


def main() -> None:
    """Build the pipeline that the command line asks for and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cosmos2.5-2b", help="a file of configs/models")
    parser.add_argument("--out", required=True, help="folder to write; it must not exist")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    save_random_pipeline(args.model, Path(args.out), torch.device(args.device))


def save_random_pipeline(model: str, folder: Path, device: torch.device) -> None:
    """Build a pipeline with random weights and save it as diffusers saves it.

    Args:
        model: Name of a file in configs/models.
        folder: Where to write; it must not exist.
        device: Where the weights are drawn. A GPU takes seconds, a CPU minutes for the large models.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            pipe = build_mini(random_sizes(model))
    finally:
        torch.set_default_dtype(before)
    save_pipeline(pipe.to(dtype=dtype), folder, max_shard_size="512MB")


def random_sizes(model: str) -> dict[str, Any]:
    """Return a model's sizes with what the file of a real model leaves out, and with the small text encoder.

    Args:
        model: Name of a file in configs/models.
    """
    folder = configs_folder() / "models"
    mini, sizes = read_yaml(folder / "mini.yaml"), read_yaml(folder / f"{model}.yaml")
    text = {**mini["text_encoder"], **sizes["text_encoder"]}
    factor = math.gcd(text["num_attention_heads"], text["num_key_value_heads"])
    text["hidden_size"] //= factor
    text["num_attention_heads"] //= factor
    text["num_key_value_heads"] //= factor
    text["num_hidden_layers"] *= factor
    text["intermediate_size"] = MLP_RATIO * text["hidden_size"]
    return {**mini, **sizes, "text_encoder": text}


if __name__ == "__main__":
    main()
