"""Which adapter dreams: none, one, or a weighted blend; and changing it in a loaded model without a trace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel
from safetensors import safe_open

from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import (
    WEIGHTS_NAME,
    adapter_file,
    adapter_sha256,
    check_adapter_fits,
    is_full,
    load_adapter,
)
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter, or several with weights.

    Args:
        parts: Folders, absolute, and the weight of each.
        sha256: Of the adapter's weights; of a blend, the hash over its parts' hashes and weights.
    """

    parts: tuple[tuple[Path, float], ...]
    sha256: str

    def text(self, run: RunFolder) -> str:
        """Return the choice as jobs write it: folders of the run relative to it, so that a run may move."""
        root, named = run.root.resolve(), []
        for folder, weight in self.parts:
            name = folder.relative_to(root) if folder.is_relative_to(root) else folder
            named.append(str(name) if weight == 1.0 and len(self.parts) == 1 else f"{name}:{weight:g}")
        return ",".join(named)


def adapter_of_job(job: Job, run: RunFolder) -> AdapterChoice | None:
    """Find the adapter that a job names; whether it is still the one that was planned for, its hash tells.

    Raises:
        UserError: if it is not there.
    """
    return None if job.adapter is None else _choice(_parts(job.adapter, run.root))


def choose_adapter(text: str | None, run: RunFolder) -> AdapterChoice | None:
    """Read what `plan.adapter` names.

    Args:
        text: A folder, FOLDER:WEIGHT,FOLDER:WEIGHT, or "base"; None takes the run's own adapter where it has one.
        run: Whose adapter that is.

    Returns:
        The choice; None for the base model.

    Raises:
        UserError: if a folder holds no adapter, a weight is no number, or weights that cannot be blended are asked for.
    """
    if text == "base" or (text is None and not run.adapter.exists()):
        return None
    return _choice(_parts(str(run.adapter.resolve()) if text is None else text, Path()))


def _choice(parts: tuple[tuple[Path, float], ...]) -> AdapterChoice:
    hashes = [adapter_sha256(folder) for folder, _ in parts]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return AdapterChoice(parts, hashes[0])
    for folder, _ in parts:
        if is_full(folder):
            raise UserError(
                "a blend takes LoRA and DoRA adapters", actual=f"{folder} holds all weights of a transformer",
                allowed="adapters made with finetune.method lora or dora",
            )  # fmt: skip
    named = [f"{sha256}:{weight:g}" for sha256, (_, weight) in zip(hashes, parts, strict=True)]
    return AdapterChoice(parts, hashlib.sha256(",".join(named).encode()).hexdigest())


def check_choice_fits(transformer: CosmosTransformer3DModel, choice: AdapterChoice) -> None:
    """Make sure that every part of a choice fits the model.

    Raises:
        UserError: naming what does not.
    """
    for folder, _ in choice.parts:
        check_adapter_fits(transformer, folder)


class AdapterSwitch:
    """Changes a loaded model's adapter, each time from the base weights themselves: nothing is left of the last one.

    Where several are to come, the base weights of the layers that adapters change are kept in main memory.

    Args:
        pipe: The base model, without an adapter; it is changed in place.
        several: Whether more than one choice will be asked for; otherwise nothing is kept.
    """

    def __init__(self, pipe: Cosmos2_5_PredictBasePipeline, several: bool) -> None:
        self._pipe = pipe
        self._base_transformer = pipe.transformer if several else None
        self._base: dict[str, torch.Tensor] = {}
        self.fused: str | None = None  # its hash
        self.num_switches = 0

    def to(self, choice: AdapterChoice | None) -> None:
        """Fuse another choice in place of what is fused; nothing happens where it is that already.

        Raises:
            UserError: if an adapter is missing, damaged or does not fit.
        """
        wanted = choice.sha256 if choice else None
        if wanted == self.fused:
            return
        if self.fused is not None:
            assert self._base_transformer is not None, "made for one adapter"
            self._restore()
            self.num_switches += 1
        self.fused = None  # until all is well
        if choice is not None:
            check_choice_fits(self._pipe.transformer, choice)
            if self._base_transformer is not None:
                self._keep_base(choice)
            fuse(self._pipe, choice)
        self.fused = wanted

    def _keep_base(self, choice: AdapterChoice) -> None:
        layers = self._base_transformer.state_dict()
        for folder, _ in choice.parts:
            for name in () if is_full(folder) else _weights_changed(folder):
                if name not in self._base:
                    self._base[name] = layers[name].to("cpu", copy=True)

    @torch.no_grad()
    def _restore(self) -> None:
        self._pipe.transformer = self._base_transformer
        layers = self._base_transformer.state_dict()
        for name, weight in self._base.items():
            layers[name].copy_(weight)


def fuse(pipe: Cosmos2_5_PredictBasePipeline, choice: AdapterChoice) -> None:
    """Add a choice's updates into base weights, through diffusers' own loader.

    A blend adds each adapter's update times its weight.
    """
    if len(choice.parts) == 1 and choice.parts[0][1] == 1.0:
        load_adapter(pipe, choice.parts[0][0], fuse=True)
        return
    names = [f"part{index}" for index in range(len(choice.parts))]
    for name, (folder, _) in zip(names, choice.parts, strict=True):
        pipe.load_lora_weights(str(folder), weight_name=WEIGHTS_NAME, adapter_name=name)
    pipe.set_adapters(names, [weight for _, weight in choice.parts])
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()


def _parts(text: str, beside: Path) -> tuple[tuple[Path, float], ...]:
    parts = []
    for item in text.split(","):
        folder, found, weight = item.strip().rpartition(":")
        if not found or (beside / item.strip()).exists():  # a folder's name may have a colon in it
            folder, weight = item.strip(), "1"
        try:
            parts.append(((beside / folder).resolve(), float(weight)))
        except ValueError:
            raise UserError(
                "plan.adapter: a weight is not a number", actual=item, allowed="FOLDER or FOLDER:WEIGHT,FOLDER:WEIGHT"
            ) from None
    return tuple(parts)


def _weights_changed(folder: Path) -> set[str]:
    with safe_open(adapter_file(folder), framework="pt") as stream:
        names = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in stream.keys()}  # noqa: SIM118
    return {f"{name}.weight" for name in names}
