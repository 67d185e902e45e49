"""Files and folders are whole or absent; data's paths stay in their folder."""

import numpy as np
import pytest

from dreamgen.core.errors import Problems, UserError
from dreamgen.core.files import atomic_file, atomic_folder, inside, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_whole_or_absent_and_never_replaced(tmp_path):
    target = tmp_path / "set"
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "part").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as temporary:
        (temporary / "part").write_text("x")
    assert (target / "part").read_text() == "x"
    with pytest.raises(UserError, match="already exists"), atomic_folder(target):
        pass


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", "link/secret"])
def test_paths_from_data_may_not_leave_their_folder(tmp_path, path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside its dataset"):
        inside(root, path, "metadata.csv row 3")
    assert inside(root, "videos/a.mp4", "row") == root / "videos" / "a.mp4"


def test_json_refuses_what_strict_readers_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "b.json").write_text("{broken")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "b.json")


def test_several_problems_are_one_error():
    problems = Problems()
    problems.raise_if_any("nothing")
    problems.add("first", actual=np.int64(3), allowed="4")
    problems.add("second")
    with pytest.raises(UserError) as caught:
        problems.raise_if_any("two things")
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)
    assert "2 problems" in str(caught.value)
