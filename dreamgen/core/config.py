"""From command line and YAML to `Settings`: command line over --config_path over the run's run.yaml over defaults."""

from __future__ import annotations

import dataclasses
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

# Where a run happens, not what it makes: these may differ between two stages of one run.
NOT_PART_OF_THE_RUN = {"out", "demos", "model.device", "model.safety_checker"}


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
    if out is not None and (Path(out) / "run.yaml").exists():
        layers.insert(0, read_yaml(Path(out) / "run.yaml"))
    merged = merge({}, *layers, given)
    settings = settings_from_dict(merged)
    return settings, switches


def settings_from_dict(values: dict[str, Any]) -> Settings:
    """Decode and check nested plain values.

    Raises:
        UserError: naming every unknown key with its closest match, or the value that does not fit.
    """
    problems = Problems()
    known = dict(setting_paths(Settings))
    for path in _paths_of(values, known):
        if path not in known and not any(name.startswith(path + ".") for name in known):
            nearest = closest_match(path, known)
            problems.add(
                f"unknown setting: {path}",
                allowed=f"did you mean {nearest}?" if nearest else None,
                next_step="dreamgen run --help lists every setting",
            )
    problems.raise_if_any("settings that do not exist")
    try:
        settings = draccus.decode(Settings, values)
    except (DraccusException, TypeError, ValueError, AttributeError) as error:
        raise UserError("a setting has the wrong type", actual=str(error)) from None
    check_values(settings)
    return settings


def check_values(settings: Settings) -> None:
    """Refuse values of the right type that cannot work, all at once.

    Raises:
        UserError: listing each.
    """
    problems, video = Problems(), settings.video
    for name in ("height", "width"):
        size = getattr(video, name)
        if size < 16 or size % 16:
            near = max(16, round(size / 16) * 16)
            problems.add(
                f"video.{name} is not divisible by 16", actual=size, allowed="multiples of 16",
                next_step=f"--video.{name}={near}",
            )  # fmt: skip
    if video.num_frames < 5 or video.num_frames % 4 != 1:
        near = max(5, (video.num_frames - 1) // 4 * 4 + 1)
        problems.add(
            "video.num_frames does not fill the VAE's groups of four", actual=video.num_frames,
            allowed="4k + 1, at least 5", next_step=f"--video.num_frames={near}",
        )  # fmt: skip
    for path, low in {
        "video.fps": 1, "video.gop": 1, "finetune.num_steps": 1, "finetune.batch_size": 1, "finetune.lora.rank": 1,
        "finetune.gradient_accumulation_steps": 1, "finetune.checkpoint_every": 1, "finetune.log_every": 1,
        "idm.num_steps": 1, "idm.batch_size": 1, "idm.horizon": 1, "plan.num_seeds": 1,
        "plan.num_inference_steps": 1, "generate.max_attempts": 1, "generate.threads_per_worker": 1,
        "generate.num_workers": 1, "generate.limit": 1, "prepare.max_episodes": 1, "plan.num_first_frames": 1,
    }.items():  # fmt: skip
        value = get_path(settings, path)
        if value is not None and value < low:
            problems.add(f"{path} is too small", actual=value, allowed=f"at least {low}")
    for path in ("finetune.text_dropout", "finetune.condition_on_one_latent", "idm.held_out"):
        value = get_path(settings, path)
        if not 0 <= value <= 1:
            problems.add(f"{path} is not a share", actual=value, allowed="0 to 1")
    known_formats = ["lerobot-v3.0", "lerobot-v2.1", "robomimic"]
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
        raise UserError(f"{path} is not valid YAML", actual=str(error)) from None
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
        if path in switches and not has_value:
            switches[path] = True
            continue
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
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{path} is not a value", actual=text, allowed=str(error)) from None


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
