"""Load `Settings`: the command line overrides --config_path, which overrides run.yaml of the run, then defaults."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import draccus
import yaml
from draccus.utils import DraccusException
from mergedeep import merge

from dreamgen.config.command_tokens import read_tokens
from dreamgen.config.paths import Setting, all_settings, get_path, nearest_setting, public_paths
from dreamgen.config.settings import MAX_CRF, Settings
from dreamgen.errors import Problems, UserError
from dreamgen.run.store import Store, is_url

SHARED = ("seed", "prompt_prefix", "model", "video")  # what all stages depend on
MAX_H264_CRF = 51


def parse_settings(
    tokens: Sequence[str], stage: str | None, flags: Sequence[str] = ()
) -> tuple[Settings, dict[str, bool]]:
    """Parse command-line tokens; in its own stage, `--lora.rank=16` is short for `--finetune.lora.rank=16`.

    Args:
        tokens: Words after the command: `--key=value`, `--key value`, `--config_path FILE`.
        stage: The section whose settings may be named without it; None for commands that run all stages.
        flags: Names of the command's switches, such as `resume`; they take no value.

    Returns:
        The settings and, for each flag, whether it was given.

    Raises:
        UserError: for an unknown key (with the closest match) or a value of the wrong type.
    """
    given, switches = read_tokens(tokens, stage, flags)
    config_path = given.pop("config_path", None)
    return load_settings(config_path, given), switches


def load_settings(preset: str | None, given: dict[str, Any]) -> Settings:
    """Merge values over a preset, over the run's run.yaml, over the defaults.

    Args:
        preset: Path of a YAML file, or the name of a shipped one.
        given: Nested values; `out`, here or in the preset, names the run.

    Raises:
        UserError: as `parse_settings` does, and if there is no such preset.
    """
    layers = [read_yaml(find_preset(preset))] if preset is not None else []
    out = given.get("out") or (layers[0].get("out") if layers else None)
    if out is not None and (recorded := recorded_settings(str(out))) is not None:
        layers.insert(0, recorded)
    return settings_from_dict(dict(merge({}, *layers, given)))


def recorded_settings(out: str) -> dict[str, Any] | None:
    """Return run.yaml of a run folder, on this machine or in an object store; None if it has none."""
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
    """Decode and check nested plain values, and report all problems of a kind together.

    Raises:
        UserError: naming every unknown setting with its closest match, or every value that is not allowed.
    """
    problems, known = Problems(), all_settings()
    for public, path in public_paths().items():
        section, _, name = public.rpartition(".")
        group = values.get(section)
        if isinstance(group, dict) and name in group:
            renamed = {path.rpartition(".")[2] if key == name else key: value for key, value in group.items()}
            values = {**values, section: renamed}
    for path in _paths_of(values, known):
        if path not in known and not any(name.startswith(path + ".") for name in known):
            nearest = nearest_setting(path)
            problems.add(
                f"unknown setting: {path}",
                allowed=f"did you mean {nearest}?" if nearest else None,
                next_step="dreamgen run --help lists every setting",
            )
    problems.raise_if_any("settings that cannot be read")
    settings = _decode(Settings, values, "", problems)
    problems.raise_if_any("settings that cannot be read")
    check_values(settings)
    return settings


def check_values(settings: Settings) -> None:
    """Refuse values of the right type that cannot work, all at once.

    Raises:
        UserError: listing each.
    """
    problems, video = Problems(), settings.video
    for path, setting in all_settings().items():
        problem = setting.option.problem(path, get_path(settings, path))
        if problem is not None:
            problems.errors.append(problem)
    if video.codec == "h264" and MAX_H264_CRF < video.crf <= MAX_CRF:
        problems.add("video.crf is too large for h264", actual=video.crf, allowed=f"0 to {MAX_H264_CRF}")
    if settings.export.repeat_real and not 0 < (settings.export.real_share or 0) < 1:
        problems.add("export.repeat_real needs a share to reach", actual=f"real_share={settings.export.real_share}",
                     allowed="a real_share above 0 and below 1")  # fmt: skip
    if settings.export.real_share is not None and settings.export.mix_with is None:
        problems.add("export.real_share needs real episodes", next_step="--export.mix_with=path/to/lerobot_dataset")
    problems.raise_if_any("settings that cannot work")


def _decode(cls: type, values: Any, prefix: str, problems: Problems) -> Any:
    """Build a settings class field by field, so that a value that does not fit is known by its path."""
    decoded: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        path, setting = prefix + field.name, all_settings().get(prefix + field.name)
        value = values.get(field.name)
        if field.name not in values or (setting is None and value is None):  # an empty YAML section
            continue
        if setting is not None:
            with problems.collected():
                decoded[field.name] = _decode_value(setting, value)
        elif isinstance(value, dict):
            decoded[field.name] = _decode(cast(type, field.default_factory), value, path + ".", problems)
        else:
            problems.add(f"wrong type of value for {path}", actual=value,
                         allowed="a group of settings", next_step=f"--{path}.NAME=value")  # fmt: skip
    return None if problems.errors else cls(**decoded)


def _decode_value(setting: Setting, value: Any) -> Any:
    if isinstance(value, bool) and bool not in setting.kinds:
        raise UserError(f"{setting.path} does not take true or false", actual=value, allowed=setting.type_name)
    try:
        return draccus.decode(setting.type, value)
    except (DraccusException, TypeError, ValueError, AttributeError):
        problem = "unknown value" if setting.choices else "wrong type of value"
        raise UserError(
            f"{problem} for {setting.path}", actual=repr(value), allowed=setting.type_name,
            next_step="dreamgen run --help explains every setting",
        ) from None  # fmt: skip


def changed_settings(before: dict[str, Any], after: dict[str, Any], sections: Sequence[str]) -> list[str]:
    """List what differs between two nested dicts in `sections` and the values that all stages share.

    Returns:
        Lines such as `video.height: 432 -> 480`, without settings whose scope is not the run.
    """
    wanted, known = (*SHARED, *sections), all_settings()
    flat_before, flat_after = dict(flatten(before)), dict(flatten(after))
    return [
        f"{path}: {flat_before[path]!r} -> {flat_after[path]!r}"
        for path in flat_before
        if path.partition(".")[0] in wanted
        and path in flat_after
        and (path not in known or known[path].option.scope == "run")
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
        "preset or configuration file not found", actual=name, allowed=f"a path, or one of {', '.join(sorted(shipped))}"
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
    except RecursionError:
        raise UserError(f"{path} is not valid YAML", actual="nested too deeply") from None
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


def _paths_of(values: dict[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in known:
            yield from _paths_of(value, known, path + ".")
        else:
            yield path


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested dicts with its dotted path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
