"""The Python API: light to import, complete for type checkers, and the same as the command line."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dreamgen
from dreamgen.cli.main import main
from dreamgen.config.loading import parse_settings
from dreamgen.stages import PIPELINE
from tests.fixtures.demos import write_lerobot_v21

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [name for name in dreamgen.__all__ if name[0].islower()]


def test_import_is_light():
    code = (
        "import sys, dreamgen; print(sorted(name for name in sys.modules if name.startswith(('torch', 'dreamgen.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_types_and_a_whole_docstring(name):
    function = getattr(dreamgen, name)
    signature = inspect.signature(function)
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
    assert signature.return_annotation is not signature.empty
    for part in ("Args:", "Returns:", "Raises:"):
        assert part in function.__doc__
    documented = function.__doc__.partition("Args:")[2].partition("Returns:")[0]
    assert all(f"{parameter}: " in documented for parameter in signature.parameters)


def test_type_checkers_see_the_same_names_as_users():
    tree = ast.parse((ROOT / "dreamgen" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(dreamgen.__all__)
    assert set(dreamgen.__all__) <= set(dir(dreamgen))
    assert (ROOT / "dreamgen" / "py.typed").is_file()


def test_no_name_collides_with_a_package():
    assert not set(dreamgen.__all__) & {path.stem for path in (ROOT / "dreamgen").iterdir()}


def test_every_stage_of_a_run_has_a_function():
    source = (ROOT / "dreamgen" / "api.py").read_text()
    called = {node.args[0].value for node in ast.walk(ast.parse(source))
              if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_stage"}  # fmt: skip
    assert called - {"import", "reject"} | {"check"} == set(PIPELINE)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="dream_on"):
        dreamgen.dream_on  # noqa: B018


def test_settings_are_those_of_the_command_line(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 5\nvideo: {height: 64}\n")
    settings = dreamgen.load_settings("mini", out=tmp_path, video={"width": 96})
    parsed, _ = parse_settings(["--config_path=mini", f"--out={tmp_path}", "--video.width=96"], None)
    assert settings == parsed
    assert (settings.seed, settings.video.width) == (5, 96)
    with pytest.raises(dreamgen.UserError, match="finetune.num_stpes"):
        dreamgen.load_settings("mini", finetune={"num_stpes": 3})


def test_a_stage_does_what_its_command_does(tmp_path, capsys):
    demos = write_lerobot_v21(tmp_path / "demos", num_episodes=2, num_frames=24)
    small = {"height": 64, "width": 64, "num_frames": 9}
    settings = dreamgen.load_settings("mini", demos=demos, out=tmp_path / "api", video=small)
    counted = dreamgen.prepare_training_set(settings, dry_run=True)
    assert not (tmp_path / "api").exists()
    result = dreamgen.prepare_training_set(settings)
    words = [f"--video.{name}={value}" for name, value in small.items()]
    main(["prepare", "--config_path=mini", f"--demos={demos}", f"--out={tmp_path / 'cli'}", *words, "--json"])
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed["figures"] == result.metrics
    assert counted.metrics["used"] == result.metrics["used"]
    recorded = [yaml.safe_load((tmp_path / name / "run.yaml").read_text()) for name in ("api", "cli")]
    assert recorded[0] | {"out": None} == recorded[1] | {"out": None}
    with pytest.raises(dreamgen.UserError, match="already exists"):
        dreamgen.prepare_training_set(settings)
    assert dreamgen.prepare_training_set(settings, resume=True).notes == ["done before, kept"]
