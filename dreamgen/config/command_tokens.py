"""Parse the words after a command into nested plain values and switches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dreamgen.config.paths import all_settings, nearest_setting, public_paths
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError, closest_match


def read_tokens(
    tokens: Sequence[str], stage: str | None, flags: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Read tokens into values nested as `Settings` is.

    Args:
        tokens: Words after the command: `--key=value` or `--key value`.
        stage: The section whose settings may be named without it; None for commands that run all stages.
        flags: Names of the command's switches.

    Returns:
        The values that were given, and `config_path`; for each flag, whether it was given.

    Raises:
        UserError: for an unexpected argument, a switch of another command, or a setting without its value.
    """
    given: dict[str, Any] = {}
    switches = dict.fromkeys(flags, False)
    top = {f.name for f in dataclasses.fields(Settings)} | {"config_path"}
    queue = list(tokens)
    while queue:
        token = queue.pop(0)
        if not token.startswith("--") or token == "--":
            raise UserError("unexpected argument", actual=token, allowed="--setting=value")
        path, has_value, text = token[2:].partition("=")
        if path == "resume" and path in switches and stage in ("finetune", None):
            switches[path] = True
            if not has_value and (not queue or queue[0].startswith("--")):
                continue
            path = "finetune.resume_from"  # `--resume latest`: with a value it requires that checkpoint
        elif path in switches:
            if has_value:
                raise UserError(f"--{path} is a switch without a value", actual=token, allowed=f"--{path}, or nothing")
            switches[path] = True
            continue
        if path in ("dry_run", "resume", "json") and path not in switches:
            raise UserError(f"this command has no --{path}", allowed=", ".join(f"--{flag}" for flag in switches))
        if not has_value:
            if not queue or queue[0].startswith("--"):
                raise _without_value(path, stage, switches)
            text = queue.pop(0)
        if stage is not None and path.split(".")[0] not in top:
            path = f"{stage}.{path}"
        path = public_paths().get(path, path)
        _set_path(given, path, _parse_value(path, text))
    return given, switches


def _without_value(path: str, stage: str | None, switches: Iterable[str]) -> UserError:
    if {path, f"{stage}.{path}"} & set(all_settings()):
        return UserError(f"--{path} has no value", allowed=f"--{path}=value")
    near = closest_match(path, switches) or nearest_setting(path)
    return UserError(f"unknown setting: --{path}", allowed=f"did you mean --{near}?" if near else None,
                     next_step="--help lists every switch and setting")  # fmt: skip


def _parse_value(path: str, text: str) -> Any:
    setting = all_settings().get(path)
    kinds = setting.kinds if setting is not None else ()
    if str in kinds:
        if text.startswith("~/"):
            return str(Path(text).expanduser())  # the shell leaves it alone behind a `=`
        return None if text in ("null", "none", "None") and type(None) in kinds else text
    if list[str] in kinds and not text.startswith("["):
        return [text]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"--{path} is not a valid value", actual=f"{text}   ({getattr(error, 'problem', None) or 'not YAML'})",
            allowed="a number, true or false, a word, or a list such as '[\"one\", \"two\"]'",
        ) from None  # fmt: skip


def _set_path(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f"--{path} is set below a value that is not a group of settings")
    values[last] = value
