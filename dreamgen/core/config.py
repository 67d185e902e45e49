"""From command line and YAML to `Settings`: command line over --config_path over the run's run.yaml over defaults."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus.utils import DraccusException
from mergedeep import merge

from dreamgen.core.errors import Problems, UserError, closest_match
from dreamgen.core.settings import Settings
from dreamgen.core.shard import Shard
from dreamgen.core.store import Store, is_url

# Where a run happens, not what it makes: these may differ between two stages of one run.
NOT_PART_OF_THE_RUN = {
    "out", "demos", "model.device", "model.safety_checker",
    "finetune.resume_from", "finetune.cache_dir", "finetune.num_workers", "export.num_workers", "export.keep_free_gib",
    "export.push_to_hub", "convert.to", "convert.reencode", "convert.num_workers",
    "check.fast", "check.num_workers",
}  # fmt: skip

MAX_CRF = {"h264": 51, "av1": 63}
ABOVE_ZERO = {"generate.clips_per_gpu_hour", "finetune.learning_rate", "finetune.sigma_shift", "idm.learning_rate"}
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys((
        "video.fps", "video.gop", "prepare.max_episodes", "finetune.num_steps", "finetune.batch_size",
        "finetune.gradient_accumulation_steps", "finetune.checkpoint_every", "finetune.log_every",
        "finetune.lora.rank", "finetune.lora.alpha", "finetune.keep_checkpoints", "finetune.windows_per_clip",
        "finetune.validate_every", "finetune.memory_gib", "idm.num_steps", "idm.batch_size", "idm.horizon", "idm.width",
        "plan.num_first_frames", "plan.num_seeds", "plan.num_chunks", "plan.num_inference_steps",
        "generate.num_workers", "generate.threads_per_worker", "generate.max_attempts", "generate.limit",
        "export.num_workers", "export.fps", "convert.num_workers", "check.num_workers", "generate.clip_limit_s",
    ), (1, math.inf)),
    **dict.fromkeys((
        "finetune.weight_decay", "finetune.max_grad_norm", "finetune.warmup_steps", "finetune.decay_from",
        "finetune.decay_to", "plan.guidance_scale", "generate.gpus_per_worker", "generate.cpus_per_worker",
        "finetune.num_workers", "finetune.validation_clips", "finetune.sample_every", "export.keep_free_gib",
        "report.max_clips",
    ), (0, math.inf)),
    **dict.fromkeys(
        ("finetune.text_dropout", "finetune.condition_on_one_latent", "idm.held_out", "export.real_share"), (0, 1)
    ),
    "export.hdf5.jpeg_quality": (1, 100),
    "finetune.conditional_frame_timestep": (-math.inf, 1),
    "seed": (0, 2**62),  # and a few more for num_seeds: jobs.parquet holds 64 bits
}  # fmt: skip


def parse_settings(
    tokens: Sequence[str], stage: str | None, flags: Sequence[str] = ()
) -> tuple[Settings, dict[str, bool]]:
    """Read settings from command-line tokens, with `--lora.rank=16` short for `--finetune.lora.rank=16` in its stage.

    Args:
        tokens: What follows the command's name: `--key=value`, `--key value`, `--config_path FILE`.
        stage: The section whose settings may be named without it; None for commands that run all stages.
        flags: Names of the command's own switches, such as `resume`; they take no value.

    Returns:
        The settings and, for each flag, whether it was given.

    Raises:
        UserError: for an unknown key (with the closest match) or a value of the wrong type.
    """
    given, switches = _read_tokens(tokens, stage, flags)
    config_path = given.pop("config_path", None)
    layers = [read_yaml(find_preset(config_path))] if config_path is not None else []
    out = given.get("out") or (layers[0].get("out") if layers else None)
    if out is not None and (recorded := _recorded(str(out))) is not None:
        layers.insert(0, recorded)
    merged = merge({}, *layers, given)
    settings = settings_from_dict(merged)
    return settings, switches


def _recorded(out: str) -> dict[str, Any] | None:
    if not is_url(out):
        path = Path(out) / "run.yaml"
        return read_yaml(path) if path.exists() else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            Store(out).download("run.yaml", Path(folder) / "run.yaml")
        except FileNotFoundError:
            return None
        return read_yaml(Path(folder) / "run.yaml")


def settings_from_dict(values: dict[str, Any]) -> Settings:
    """Decode and check nested plain values.

    Raises:
        UserError: naming every unknown key with its closest match, or the value that does not fit.
    """
    problems = Problems()
    known = dict(setting_paths(Settings))
    for path, value in _flatten(values):
        if isinstance(value, bool) and path in known and "bool" not in str(known[path].type):
            problems.add(f"{path} is not a yes-or-no setting", actual=value, allowed=known[path].type)
    for path in _paths_of(values, known):
        if path not in known and not any(name.startswith(path + ".") for name in known):
            nearest = _nearest_setting(path, known)
            problems.add(
                f"unknown setting: {path}",
                allowed=f"did you mean {nearest}?" if nearest else None,
                next_step="dreamgen run --help lists every setting",
            )
    problems.raise_if_any("settings that cannot be read")
    try:
        settings = draccus.decode(Settings, values)
    except (DraccusException, TypeError, ValueError, AttributeError) as error:
        # Its path is in backquotes or dots somewhere in the library's words; the last known name in it is the setting.
        # A bare name counts only where no whole path is given: it may be the value ('fast' is a setting too).
        whole = [path for path in known if path in str(error)]
        named = whole or [path for path in known if f"'{path.split('.')[-1]}'" in str(error)]
        raise UserError(
            f"a setting has the wrong type{': ' + named[-1] if named else ''}",
            actual=str(error).splitlines()[0],
            allowed=str(known[named[-1]].type) if named else None,
            next_step="see its help: dreamgen run --help",
        ) from None
    check_values(settings)
    return settings


def _nearest_setting(path: str, known: dict[str, Any]) -> str | None:
    """Find the setting that was meant, by its whole path or by its last name in whichever section."""
    by_last = {name.split(".")[-1]: name for name in reversed(known)}
    nearest = closest_match(path.split(".")[-1], by_last)
    return by_last[nearest] if nearest else closest_match(path, known)


def check_values(settings: Settings) -> None:
    """Refuse values of the right type that cannot work, all at once.

    Raises:
        UserError: listing each.
    """
    problems, video = Problems(), settings.video
    for path in ("video.height", "video.width", "idm.image_px"):
        size = get_path(settings, path)
        if size < 16 or size % 16:
            near = max(16, round(size / 16) * 16)
            problems.add(
                f"{path} is not divisible by 16", actual=size, allowed="multiples of 16", next_step=f"--{path}={near}"
            )
    if video.num_frames < 5 or video.num_frames % 4 != 1:
        near = max(5, (video.num_frames - 1) // 4 * 4 + 1)
        problems.add(
            "video.num_frames does not fill the VAE's groups of four", actual=video.num_frames,
            allowed="4k + 1, at least 5", next_step=f"--video.num_frames={near}",
        )  # fmt: skip
    try:
        Shard.parse(settings.generate.shard)
    except UserError as error:
        problems.errors.append(error)
    if not 0 <= video.crf <= MAX_CRF[video.codec]:
        problems.add(
            f"video.crf is no quality of {video.codec}", actual=video.crf, allowed=f"0 to {MAX_CRF[video.codec]}"
        )
    for path in ("export.height", "export.width"):
        size = get_path(settings, path)
        if size is not None and (size < 16 or size % 2):
            problems.add(f"{path} is no size of a video", actual=size, allowed="even, at least 16")
    if settings.export.real_share is not None and settings.export.mix_with is None:
        problems.add("export.real_share needs real episodes", next_step="--export.mix_with=path/to/lerobot_dataset")
    for path, _ in setting_paths(Settings):
        value = get_path(settings, path)
        low, high = RANGES.get(path, (-math.inf, math.inf))
        if not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            problems.add(f"{path} is not a finite number", actual=value)
        elif path in ABOVE_ZERO and value <= 0:
            problems.add(f"{path} is too small", actual=value, allowed="above 0")
        elif not low <= value <= high:
            allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
            problems.add(f"{path} is out of range", actual=value, allowed=allowed)
    decay = settings.finetune.ema_decay
    if decay is not None and not 0 < decay < 1:
        problems.add("finetune.ema_decay is not a decay", actual=decay, allowed="between 0 and 1, such as 0.999")
    known_formats = ["lerobot-v3.0", "lerobot-v2.1", "robomimic", "aloha"]
    for name in settings.export.formats:
        if name not in known_formats:
            problems.add(
                "export.formats names a format that does not exist", actual=name, allowed=", ".join(known_formats)
            )
    problems.raise_if_any("settings that cannot work")


def changed_settings(before: dict[str, Any], after: dict[str, Any], sections: Sequence[str]) -> list[str]:
    """List what differs between two nested dicts in `sections` and the values that all stages share.

    Returns:
        Lines such as `video.height: 432 -> 480`, without settings that only say where a run happens.
    """
    shared = [f.name for f in dataclasses.fields(Settings) if f.name in ("seed", "prompt_prefix", "model", "video")]
    wanted = (*shared, *sections)
    flat_before, flat_after = dict(_flatten(before)), dict(_flatten(after))
    return [
        f"{path}: {flat_before[path]!r} -> {flat_after.get(path)!r}"
        for path in flat_before
        if path.split(".")[0] in wanted
        and path not in NOT_PART_OF_THE_RUN
        and path in flat_after
        and flat_before[path] != flat_after[path]
    ]


def find_preset(name: str) -> Path:
    """Find a YAML file by path, or a shipped preset by its name (`mini` for configs/mini.yaml).

    Raises:
        UserError: with the shipped presets, if there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in configs_folder().glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise UserError(
        "config file does not exist", actual=name, allowed=f"a path, or one of {', '.join(sorted(shipped))}"
    )


def configs_folder() -> Path:
    """Return the folder of shipped presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping safely (no objects).

    Raises:
        UserError: if the file is not UTF-8, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}: {getattr(error, 'problem', '')}" if place else str(error)
        raise UserError(
            f"{path} is not valid YAML", actual=where, allowed="`name: value`, indented by spaces"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read", actual=error.strerror) from None
    if not isinstance(values or {}, dict):
        raise UserError(f"{path} is not a mapping of settings", actual=type(values).__name__, allowed="key: value")
    return values or {}


def setting_paths(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield the dotted path and field of every setting below a settings class."""
    hints = typing.get_type_hints(cls)
    for setting in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[setting.name]):
            yield from setting_paths(hints[setting.name], f"{prefix}{setting.name}.")
        else:
            yield prefix + setting.name, setting


def get_path(settings: Any, path: str) -> Any:
    """Return the value at a dotted path."""
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def _read_tokens(
    tokens: Sequence[str], stage: str | None, flags: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bool]]:
    given: dict[str, Any] = {}
    switches = dict.fromkeys(flags, False)
    top = {f.name for f in dataclasses.fields(Settings)} | {"config_path"}
    queue = list(tokens)
    while queue:
        token = queue.pop(0)
        if not token.startswith("--") or token == "--":
            raise UserError("unexpected word on the command line", actual=token, allowed="--setting=value")
        path, has_value, text = token[2:].partition("=")
        if path == "resume" and path in switches and stage in ("finetune", None):
            switches[path] = True
            if not has_value and (not queue or queue[0].startswith("--")):
                continue
            path = "finetune.resume_from"  # `--resume latest`: with a value it insists on that checkpoint
        elif path in switches and not has_value:
            switches[path] = True
            continue
        if path in ("dry_run", "resume", "json") and path not in switches:
            raise UserError(f"this command has no --{path}", allowed=", ".join(f"--{flag}" for flag in switches))
        if not has_value:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"--{path} has no value", allowed=f"--{path}=value")
            text = queue.pop(0)
        if stage is not None and path.split(".")[0] not in top:
            path = f"{stage}.{path}"
        _set_path(given, path, _parse_value(path, text))
    return given, switches


def _parse_value(path: str, text: str) -> Any:
    kinds = dict(setting_paths(Settings))
    if path in kinds and str(kinds[path].type).startswith("str"):
        return None if text in ("null", "none", "None") and "None" in str(kinds[path].type) else text
    if path in kinds and kinds[path].type == "list[str]" and not text.startswith("["):
        return [text]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"--{path} is not a value", actual=f"{text}   ({' '.join(str(error).split())[:120]})",
            allowed="a number, true or false, a word, or a list such as '[\"one\", \"two\"]'",
        ) from None  # fmt: skip


def _set_path(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f"--{path} is set below a value that is not a group of settings")
    values[last] = value


def _paths_of(values: dict[str, Any], known: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and path not in known:
            yield path
            yield from _paths_of(value, known, path + ".")
        else:
            yield path


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
