"""The table of stages: whole, and what command line, pipeline and report show follows from it."""

import ast
import dataclasses
import importlib
import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dreamgen.cli.arguments import read_arguments
from dreamgen.cli.help import command_help, overview
from dreamgen.cli.main import main
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.run.run_folder import RunFolder
from dreamgen.stages import CLIP_STAGES, COMMANDS, PIPELINE, STAGES

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {field.name for field in dataclasses.fields(Settings)}


def function_of(reference: str):
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_stage_names_a_function_and_settings_that_exist(stage):
    parameters = inspect.signature(function_of(stage.function)).parameters
    assert stage.run_function is None or callable(function_of(stage.run_function))
    assert stage.section is None or stage.section in SECTIONS
    assert {"dry_run", "fix"} & set(stage.flags) <= set(parameters)
    assert {stage.first, stage.counts_clips_of, stage.command} - {None} <= set(STAGES)
    assert stage.example.startswith(f"dreamgen {stage.name}") or stage.command is not None


def test_the_order_of_a_run_and_its_clip_stages():
    assert list(PIPELINE) == [
        "prepare", "finetune", "plan", "generate", "finetune_idm", "label", "curate", "export", "check", "report"
    ]  # fmt: skip
    assert CLIP_STAGES == ("generate", "label", "curate")


@pytest.mark.parametrize("stage", COMMANDS.values(), ids=lambda stage: stage.name)
def test_help_of_every_command(stage, capsys):
    assert stage.summary in overview()
    text = command_help(stage)
    assert all(f"--{flag} " in text for flag in (*stage.flags, "json"))
    assert all(len(line) <= 120 for line in text.splitlines())
    assert main([stage.name, "--help"]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_help_shows_default_bounds_and_choices():
    text = " ".join(command_help(COMMANDS["finetune"]).split())
    assert "--num_steps optimizer steps (default: 2000; at least 1)" in text
    assert "choices: lora, dora, full" in text
    assert "(default: 0.2; 0 to 1)" in text
    exported = " ".join(command_help(COMMANDS["export"]).split())
    assert "choices: lerobot-v3.0, lerobot-v2.1, robomimic, aloha" in exported


def test_paths_and_settings_of_a_command_may_come_in_any_order():
    given = read_arguments(COMMANDS["check"], ["a", "--fast", "b", "--num_workers", "2", "--fix"])
    assert [str(path) for path, _ in given.calls] == ["a", "b"]
    assert (given.settings.check.fast, given.settings.check.num_workers) == (True, 2)
    assert given.switches == {"fix": True, "json": False}


def test_a_run_folder_may_be_an_argument(tmp_path):
    for name in ("status", "report"):
        assert read_arguments(COMMANDS[name], [str(tmp_path), "--json"]).settings.out == str(tmp_path)
        assert "RUN" in command_help(COMMANDS[name])
    with pytest.raises(UserError, match="unexpected argument"):
        read_arguments(COMMANDS["curate"], [str(tmp_path)])


def test_a_run_folder_stands_for_its_datasets(tmp_path):
    run = tmp_path / "my run"
    for name in ("lerobot-v3.0", "other-v2.1"):
        (run / "datasets" / name / "meta").mkdir(parents=True)
        (run / "datasets" / name / "meta/info.json").write_text("{}")
    (run / "datasets/lerobot-v3.0.provenance.parquet").write_text("")
    (run / "datasets/.unfinished").mkdir()
    (run / "run.yaml").write_text("seed: 0\n")
    given = read_arguments(COMMANDS["check"], [str(run), "elsewhere"])
    names = [str(path) for path, _ in given.calls]
    assert names == [*(str(run / "datasets" / name) for name in ("lerobot-v3.0", "other-v2.1")), "elsewhere"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="has no dataset"):
        read_arguments(COMMANDS["check"], [str(tmp_path / "empty")])


def test_commands_that_are_printed_can_be_copied_into_a_shell(tmp_path):
    out = tmp_path / "my run; rm -rf $HOME"
    with pytest.raises(UserError) as caught:
        RunFolder(out).need(RunFolder(out).jobs, "plan")
    words = shlex.split(caught.value.next_step, comments=False)
    assert words[:4] == ["dreamgen", "plan", "--out", str(out)]


def test_alpha_follows_the_rank_unless_it_is_set():
    def alpha(*words):
        return read_arguments(COMMANDS["finetune"], words).settings.finetune.lora.alpha_or_rank

    assert (alpha(), alpha("--lora.rank=7"), alpha("--lora.rank=7", "--lora.alpha=14")) == (32, 7, 14)
    assert alpha("--config_path", "cosmos2.5-2b", "--lora.rank=64") == 64


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check"], "needs PATH"),
        (["check", "a", "--fats"], "did you mean --fast?"),
        (["convert", "a", "b", "c"], "needs SRC and DST"),
        (["doctor", "--verbose"], "does not take --verbose"),
        (["demo", "somewhere"], "does not take somewhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_words_that_a_command_does_not_take(words, says):
    with pytest.raises(UserError) as caught:
        read_arguments(COMMANDS[words[0]], words[1:])
    assert says in str(caught.value)


def test_a_setting_without_a_value_gets_the_nearest_name(capsys):
    assert main(["plan", "--dry_rum"]) == 2
    assert "did you mean --dry_run?" in capsys.readouterr().err
    assert main(["plan", "--num_seeds"]) == 2
    assert "--num_seeds has no value" in capsys.readouterr().err


def test_an_extension_that_cannot_be_imported_is_named_without_a_traceback(tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dreamgen.scores]\nsharpness = no_such_module:SCORE\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "dreamgen", "curate", "--help"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 2
    assert "sharpness cannot be imported from no_such_module:SCORE" in done.stderr
    assert "Traceback" not in done.stderr


def unquoted_values(tree):
    """Yield source and line of each value that is put into a command without `quoted`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        is_command = False
        for part in node.values:
            if isinstance(part, ast.Constant):
                is_command = is_command or any(f"dreamgen {name} " in str(part.value) for name in COMMANDS)
            elif is_command and isinstance(part, ast.FormattedValue):
                text = ast.unparse(part.value)
                if not text.startswith("quoted("):
                    yield text, node.lineno


def test_every_path_in_a_printed_command_is_quoted():
    # Names that hold nothing a shell would read, or that are quoted where they are made.
    safe = {"_shard_option(shard)", "other.clip_id", "MANIFEST"}
    files = [path for package in ("dreamgen", "export", "finetune") for path in sorted((ROOT / package).rglob("*.py"))]
    found = [
        f"{path.name}:{line}: {text}"
        for path in files
        for text, line in unquoted_values(ast.parse(path.read_text(encoding="utf-8")))
        if text not in safe
    ]
    assert list(unquoted_values(ast.parse('f"dreamgen check {path}"'))) == [("path", 1)]
    assert len(files) > 200 and found == []


@pytest.mark.parametrize(
    ("stage", "flag"),
    [(stage, flag) for stage in COMMANDS.values() for flag in (*stage.flags, "json")
     if flag != "resume" or stage.section not in ("finetune", None)],  # --resume=CHECKPOINT names a checkpoint there
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_a_switch_with_a_value_is_refused_as_a_switch(stage, flag):
    words = [*("path" for _ in stage.paths), f"--{flag}=maybe"]
    with pytest.raises(UserError, match=f"--{flag} is a switch without a value") as caught:
        read_arguments(stage, words)
    assert caught.value.actual == f"--{flag}=maybe"
