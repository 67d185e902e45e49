"""Registries: built-in entries, entry points of other packages, entries added at run time."""

import sys

import pytest

from dreamgen.errors import UserError
from dreamgen.extensions.registry import Registry


def registry(group: str = "dreamgen.nothing") -> Registry:
    return Registry("shape", group, {"path": "pathlib:Path", "gone": "no_such_module:X", "lost": "pathlib:Nothing"})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that registers one entry in the group dreamgen.shapes."""
    (tmp_path / "outside_shapes.py").write_text("CIRCLE = 'round'\n")
    info = tmp_path / "outside_shapes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-shapes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dreamgen.shapes]\ncircle = outside_shapes:CIRCLE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("outside_shapes", None)


def test_an_entry_is_imported_when_it_is_asked_for():
    from pathlib import Path

    shapes = registry()
    assert shapes.names() == ["path", "gone", "lost"] and "gone" in shapes
    assert shapes.get("path") is Path


@pytest.mark.parametrize("name", ["gone", "lost"])
def test_an_entry_that_cannot_be_imported_is_an_error_that_names_it(name):
    with pytest.raises(UserError, match=f"the shape {name} cannot be imported"):
        registry().get(name)


def test_an_unknown_name_is_answered_with_the_closest_one():
    with pytest.raises(UserError, match=r"(?s)unknown shape: pat\b.*did you mean path"):
        registry().get("pat")


def test_an_installed_package_adds_an_entry(package):
    shapes = registry("dreamgen.shapes")
    assert shapes.names()[-1] == "circle" and "outside_shapes" not in sys.modules
    assert shapes.get("circle") == "round"


def test_an_entry_is_added_and_removed_at_run_time():
    shapes = registry()
    shapes.register("square", 4)
    assert shapes.names()[-1] == "square" and shapes.get("square") == 4
    with pytest.raises(UserError, match="two extensions register the shape square"):
        shapes.register("square", 5)
    shapes.unregister("square")
    assert "square" not in shapes
