"""The VAE that is trained, and how it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.config.settings import Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.loading import load_vae
from dreamgen.models.cosmos_predict25.vae_training import check_trainable, new_vae
from dreamgen.models.saved_config import forget_source
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder
from finetune.checkpoint import VAE_NAME


class TrainedVae:
    """What a checkpoint holds: the VAE in float32.

    Args:
        vae: All of its weights are trained.
    """

    def __init__(self, vae: Any) -> None:
        self.network = vae

    def save_adapter(self, folder: Path) -> None:
        """Write the weights into `vae/` of an existing folder."""
        self.network.save_pretrained(folder / VAE_NAME, safe_serialization=True)
        forget_source(folder / VAE_NAME)

    def load_adapter(self, weights: dict[str, torch.Tensor]) -> list[str]:
        """Set the weights, and return the names that do not fit."""
        report = self.network.load_state_dict(weights, strict=False)
        return [*report.missing_keys, *report.unexpected_keys]


def make_vae(settings: Settings, device: torch.device) -> tuple[Any, str]:
    """Create the VAE of `finetune_vae.config` with random weights, or load the model's own.

    Returns:
        The VAE in float32 on the device, and a name of its start that a resumed training compares.

    Raises:
        UserError: if the configuration cannot be read, or the VAE is of a kind that cannot be trained.
    """
    vae: Any
    if settings.finetune_vae.config is None:
        source = resolve_world_model(settings.model, RunFolder.of(settings))
        vae, start = load_vae(source), source.sha256
    else:
        vae, start = _from_config(settings.finetune_vae.config, derived_seed(settings.seed, "vae"))
    check_trainable(vae)
    return vae.train().requires_grad_(True).to(device), start


def _from_config(config: str, seed: int) -> tuple[Any, str]:
    named = configs_folder() / "models" / f"{config}.yaml"
    path = named if named.is_file() else Path(config)
    if not path.is_file():
        raise UserError(
            "finetune_vae.config does not exist",
            actual=config,
            allowed="a YAML file, or " + ", ".join(sorted(p.stem for p in named.parent.glob("*.yaml"))),
        )
    try:
        sizes = read_yaml(path)["vae"]
        return new_vae(sizes, seed), repr(sorted(sizes.items()))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has no sizes of a VAE", actual=str(error), allowed="arguments of the VAE's class under `vae:`"
        ) from None
