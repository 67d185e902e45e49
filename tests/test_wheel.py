"""The wheel holds the packages, their data and nothing else, and its commands work outside of the source tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dreamgen

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dreamgen", "finetune", "export")
USE = """
import export
from finetune import finetune
from dreamgen.cli.main import main
from dreamgen.config.loading import find_preset
print(find_preset("mini"))
main(["--help"])
"""


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_alone(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"dreamgen-{dreamgen.__version__}-py3-none-any.whl"
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(installed)
    sources = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    presets = {f"dreamgen/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "configs").rglob("*.yaml")}
    assert names == sources | presets and len(presets) > 10
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "dreamgen = dreamgen.__main__:run" in entry_points.read_text()

    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    preset, _, overview = done.stdout.partition("\n")
    assert Path(preset) == installed / "dreamgen" / "configs" / "mini.yaml", done.stderr
    assert "usage" in overview.lower()
