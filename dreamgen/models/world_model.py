"""The world model protocol, and the registry of the kinds of models that implement it.

Importing this module is light; torch comes with the class of a model. Axes: T frames, H height, W width, C channels,
L tokens, D features, A action, S state. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dreamgen.config.settings import ModelSettings, Settings
from dreamgen.errors import UserError
from dreamgen.extensions.registry import Registry
from dreamgen.models.prediction import Prediction, Rejected
from dreamgen.models.size_rules import SizeRules
from dreamgen.run.files import read_json
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dreamgen.models.adapter_choice import AdapterChoice
    from dreamgen.models.generation_request import Image, RequestDefaults
    from dreamgen.models.prompt_length import CutPrompt
    from dreamgen.models.trainable import TrainableWorldModel, TrainingCost

__all__ = [
    "WORLD_MODELS",
    "Prediction",
    "Rejected",
    "WorldModel",
    "WorldModelSource",
    "WorldModelType",
    "check_size",
    "model_type",
    "model_type_name",
    "resolve_world_model",
]

DEFAULT_TYPE = "cosmos_predict25"


@dataclass(frozen=True)
class WorldModelType:
    """A kind of world model, as the registry knows it.

    Args:
        model_class: The `WorldModel` subclass, or a reference `module:class` that is imported when it is needed.
        size_rules: Allowed sizes of a clip.
        num_conditioning_frames: For each `plan.condition` that the model takes, the frames that a clip begins with.
        pipelines: Values of `_class_name` in `model_index.json` of the folders that this class loads.
        paths: Values of `model.path` that name a model of this kind which needs no folder.
        hub_prefixes: Beginnings of hub ids that are known to be of this kind.
        max_uncut_bytes: Length in UTF-8, composed (NFC), up to which the text encoder reads every prompt to its end;
            longer ones are measured with the model's tokenizer. 0: all are.
    """

    model_class: str | type[WorldModel]
    size_rules: SizeRules = SizeRules()
    num_conditioning_frames: Mapping[str, int] = field(default_factory=lambda: {"image": 1, "text": 0})
    pipelines: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    hub_prefixes: tuple[str, ...] = ()
    max_uncut_bytes: int = 0

    def load_class(self) -> type[WorldModel]:
        """Import and return the model's class."""
        if isinstance(self.model_class, str):
            import importlib

            module, _, name = self.model_class.partition(":")
            return getattr(importlib.import_module(module), name)
        return self.model_class


WORLD_MODELS: Registry[WorldModelType] = Registry(
    "world model", "dreamgen.world_models", {DEFAULT_TYPE: "dreamgen.models.cosmos_predict25.spec:TYPE"}
)


@dataclass(frozen=True)
class WorldModelSource:
    """Where a world model is loaded from.

    Args:
        name: What provenance calls it: `ID@REVISION`, or the folder's name.
        path: Hub id or local folder.
        revision: Of a hub model; None for a folder.
        sha256: What clip ids hash: a fingerprint of a folder's weights and configuration, or `ID@REVISION`.
        type: Its name in `WORLD_MODELS`.
    """

    name: str
    path: str
    revision: str | None
    sha256: str
    type: str = DEFAULT_TYPE

    def load_class(self) -> type[WorldModel]:
        """Import and return the model's class."""
        return WORLD_MODELS.get(self.type).load_class()


class WorldModel(ABC):
    """A world model: generates a video from its first frames and an instruction.

    >>> model = WorldModel.load("mini")
    >>> video_THWC = model.generate("kitchen.png", "pick up the cup", seed=0)

    A subclass implements `from_source`, `device`, `encode_prompt` and `sample`. The other methods have defaults for a
    model without adapters, sampling levels, safety checker and training.
    """

    default_negative_prompt: ClassVar[str] = ""
    defaults: RequestDefaults | None = None

    # Before anything is loaded

    @classmethod
    def resolve(cls, model: ModelSettings, build_folder: Path) -> WorldModelSource:
        """Find the model that the settings name.

        Args:
            model: `path` and `revision` are used.
            build_folder: Where a model that is built on first use is stored.

        Raises:
            UserError: if there is no such model.
        """
        if Path(model.path).is_dir():
            from dreamgen.models.fingerprint import folder_fingerprint

            folder = Path(model.path)
            return WorldModelSource(folder.resolve().name, str(folder), None, folder_fingerprint(folder))
        if model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
            raise UserError("model folder does not exist", actual=model.path, allowed="a folder, a hub id, or mini")
        name = f"{model.path}@{model.revision or 'main'}"
        return WorldModelSource(name, model.path, model.revision, name)

    @classmethod  # noqa: B027
    def check_requirements(cls, model: ModelSettings) -> None:
        """Check that everything that generation needs is installed, without loading it.

        Raises:
            UserError: naming what is missing.
        """

    @classmethod
    def sampling_options(cls, settings: Settings) -> str:
        """Return what `plan.level`, `plan.fp8` or options of the model change in sampling.

        Returns:
            Canonical JSON, which clip ids hash and `sample` finds in `job.step_skipping`; "{}" changes nothing.

        Raises:
            UserError: if the model has no such level.
        """
        plan = settings.plan
        if plan.level != "exact" or plan.fp8:
            raise UserError(
                "this world model has no faster sampling",
                actual=f"plan.level={plan.level}, plan.fp8={plan.fp8}",
                allowed="plan.level=exact, plan.fp8=false",
            )
        return "{}"

    @classmethod
    def cut_prompts(
        cls, model: ModelSettings, build_folder: Path, prompts: Sequence[str], may_download: bool
    ) -> list[CutPrompt] | None:
        """Find the prompts that are longer than what the text encoder reads, with the model's own tokenizer.

        Args:
            model: `path` and `revision` are used.
            build_folder: Of a model that is built on first use.
            prompts: Distinct prompts that are longer than `max_uncut_bytes` of the kind of model.
            may_download: Whether the tokenizer may be downloaded.

        Returns:
            Those that are cut; None if the tokenizer cannot be read.
        """
        return []

    @classmethod
    def check_adapters(cls, source: WorldModelSource, folders: Sequence[Path]) -> None:
        """Check that adapters fit the model, without loading its weights.

        Raises:
            UserError: naming what does not fit.
        """
        raise UserError(
            f"the world model {source.name} takes no adapter", actual=folders[0], next_step="--plan.adapter=base"
        )

    @classmethod
    def training_cost(cls, settings: Settings) -> TrainingCost | None:
        """Return what training with the settings takes; None if it is not known before the model is downloaded."""
        return None

    @classmethod
    def for_training(cls, source: WorldModelSource, settings: Settings, device: torch.device) -> TrainableWorldModel:
        """Load what is trained of the model.

        Raises:
            UserError: if the model cannot be trained or loaded.
        """
        raise UserError(f"the world model {source.name} cannot be trained", next_step="dreamgen plan uses it as it is")

    @classmethod
    def loading_snippet(cls, settings: Settings, source: WorldModelSource, adapter: Path | str, device: str) -> str:
        """Return Python code for an adapter's card that generates a clip with it."""
        return (
            "import dreamgen\n"
            f"model = dreamgen.WorldModel.load({source.path!r}, adapter={str(adapter)!r}, device={device!r})\n"
            f'video = model.generate("first_frame.png", {settings.prompt_prefix + "..."!r})'
        )

    # Loaded

    @classmethod
    @abstractmethod
    def from_source(
        cls,
        source: WorldModelSource,
        model: ModelSettings,
        *,
        device: torch.device | None = None,
        compiled: bool = False,
        several_adapters: bool = False,
    ) -> Self:
        """Load the model for generation, frozen, without its text encoder where that is a part of its own.

        Args:
            source: From `resolve`.
            model: Precision, device and safety checker.
            device: Overrides the device of the settings.
            compiled: Compile the model where that makes it faster; the first clip then takes longer.
            several_adapters: Whether `prepare` will be called with more than one adapter.

        Raises:
            UserError: if the model cannot be loaded.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that the model computes on."""

    @property
    def has_safety_checker(self) -> bool:
        """Whether prompts and clips are checked for safety."""
        return False

    @property
    def has_text_encoder(self) -> bool:
        """Whether everything that `encode_prompt` needs is loaded."""
        return True

    def load_text_encoder(self) -> None:  # noqa: B027
        """Load what `encode_prompt` needs; called only while `has_text_encoder` is False."""

    def unload_text_encoder(self) -> None:  # noqa: B027
        """Release the text encoder; called only while `has_text_encoder` is True and no prompt is left to encode."""

    @abstractmethod
    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Encode a prompt to what `sample` reads of it. Returns text_1LD; it is stored in the run folder."""

    def check_prompt(self, prompt: str) -> None:  # noqa: B027
        """Apply the safety checker to a prompt.

        Raises:
            Rejected: if the prompt is unsafe.
        """

    def check_video(self, video_THWC: np.ndarray) -> np.ndarray:
        """Apply the safety checker to a clip, and return the clip, perhaps changed.

        Raises:
            Rejected: if the clip is unsafe.
        """
        return video_THWC

    def prepare(self, adapter: AdapterChoice | None, sampling_options: str) -> None:
        """Change to an adapter (None: the base model) and to the precision that a job's sampling options ask for.

        Raises:
            UserError: if the adapter is missing, damaged or does not fit.
        """
        if adapter is not None:
            raise UserError("this world model takes no adapter", actual=adapter.folders[0])

    @abstractmethod
    def sample(
        self,
        job: Job,
        chunk: int,
        conditioning_THWC: np.ndarray | torch.Tensor | None,
        text_of: Callable[[str], torch.Tensor],
    ) -> Prediction:
        """Generate one chunk of a clip, `job.frames_a_chunk` frames. The GPU may still be busy when this returns.

        Args:
            job: Size, prompts and sampling settings. Draw all noise from `job.clip_id` and `chunk`, so that neither
                the worker nor the order of clips changes it.
            chunk: 0 for the first.
            conditioning_THWC: The frames that the chunk begins with; None for text alone.
            text_of: Returns what `encode_prompt` returned for a prompt.
        """

    def sample_clip(
        self, job: Job, conditioning_THWC: np.ndarray | None, text_of: Callable[[str], torch.Tensor]
    ) -> Prediction:
        """Generate a whole clip; each chunk begins with the last frames of the one before, which are kept once."""
        pieces = [self.sample(job, 0, conditioning_THWC, text_of)]
        for chunk in range(1, job.num_chunks):
            last_THWC = pieces[-1].video_THWC
            following = self.sample(job, chunk, last_THWC[-job.chunk_overlap :], text_of)
            pieces[-1] = pieces[-1].first(len(last_THWC) - job.chunk_overlap)
            pieces.append(following)
        return Prediction.joined(pieces)

    # Python API

    @staticmethod
    def load(
        model: str = "mini",
        adapter: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str | None = None,
        safety_checker: bool | None = None,
        compiled: bool = False,
    ) -> WorldModel:
        """Load a world model for `generate`.

        Args:
            model: Name or path of a preset, such as "mini" or "cosmos2.5-2b", a hub id, or a folder.
            adapter: Folder of an adapter, or a blend FOLDER:WEIGHT,FOLDER:WEIGHT; None for the base model.
            device: auto, cpu, cuda or cuda:N.
            dtype: bfloat16 or float32; the preset's when not given.
            safety_checker: Whether to run the model's safety checker; the preset's choice when not given.
            compiled: Compile the model on a GPU: the first clip takes a minute longer, the others less time.

        Raises:
            UserError: if the model or the adapter cannot be loaded.
        """
        from dreamgen.models.generation_request import load_with_defaults

        changes = {"device": device, "dtype": dtype, "safety_checker": safety_checker}
        return load_with_defaults(
            model, adapter, {name: value for name, value in changes.items() if value is not None}, compiled
        )

    def generate(self, image: Image, prompt: str, seed: int = 0, **sampling: Any) -> np.ndarray:
        """Generate a video; the same arguments give the clip that `dreamgen plan` and `generate` make of them.

        Args:
            image: The first frame: a path, a PIL image or an array HWC, uint8 RGB; an array THWC for several
                conditioning frames; None to generate from the prompt alone.
            prompt: The task in words; the preset's `prompt_prefix` is put before it.
            seed: Of the noise.
            sampling: `num_frames`, `height`, `width`, `num_inference_steps`, `guidance_scale`, `level`, `fp8` and
                `negative_prompt`; the preset's when not given.

        Returns:
            video_THWC, uint8, 0-255, RGB.

        Raises:
            UserError: if an argument is unknown or out of range.
            Rejected: if the safety checker refuses the prompt or the video.
        """
        return self.predict(image, prompt, seed, **sampling).video_THWC.cpu().numpy()

    def predict(self, image: Image, prompt: str, seed: int = 0, **sampling: Any) -> Prediction:
        """Generate a video, and actions and states with a model that predicts them; arguments as for `generate`."""
        from dreamgen.models.generation_request import predict

        return predict(self, image, prompt, seed, sampling)


def model_type_name(model: ModelSettings) -> str:
    """Return which of `WORLD_MODELS` loads the model that the settings name.

    Raises:
        UserError: if the model is a pipeline that no installed world model loads.
    """
    types = dict(WORLD_MODELS.items())
    for name, kind in types.items():
        if model.path in (name, *kind.paths) or (kind.hub_prefixes and model.path.startswith(kind.hub_prefixes)):
            return name
    pipeline = _pipeline_class(model)
    if pipeline is None:
        return DEFAULT_TYPE
    for name, kind in types.items():
        if pipeline in kind.pipelines:
            return name
    raise UserError(
        f"no installed world model loads {model.path}",
        actual=f"model_index.json names {pipeline}",
        allowed=", ".join(pipeline for kind in types.values() for pipeline in kind.pipelines),
        next_step="install the package that adds this model; docs/extending/world_model.md shows how to write one",
    )


def model_type(model: ModelSettings) -> WorldModelType:
    """Return the kind of the model that the settings name, without importing torch.

    Raises:
        UserError: as `model_type_name` does.
    """
    return WORLD_MODELS.get(model_type_name(model))


def check_size(settings: Settings) -> None:
    """Refuse `video` settings that the world model cannot generate.

    Raises:
        UserError: listing each setting that does not fit.
    """
    model_type(settings.model).size_rules.check(settings.video)


def resolve_world_model(model: ModelSettings, run: RunFolder) -> WorldModelSource:
    """Find the model that the settings name, building it in the run folder if it is built on first use.

    Raises:
        UserError: if there is no such model.
    """
    name = model_type_name(model)
    return replace(WORLD_MODELS.get(name).load_class().resolve(model, run.model), type=name)


def _pipeline_class(model: ModelSettings) -> str | None:
    index = Path(model.path) / "model_index.json"
    if not index.is_file():
        if Path(model.path).exists() or model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
            return None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            index = Path(hf_hub_download(model.path, "model_index.json", revision=model.revision))
        except (OSError, ValueError, HfHubHTTPError):
            return None  # loading says what is wrong
    return read_json(index).get("_class_name")
