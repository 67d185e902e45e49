"""Label archives of any content: read rightly or refused, and never a traceback."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from dreamgen.data.foreign_labels import names_of, open_labels, read_npz
from dreamgen.data.trajectory import Trajectory
from dreamgen.errors import UserError
from tests.fixtures.runs import write_label


def archive(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("name, state_name", [("action", "observation.state"), ("actions", "states")])
def test_known_names_and_types_of_arrays_are_read(tmp_path, name, state_name):
    path = tmp_path / "a.npz"
    path.write_bytes(archive(**{name: np.arange(6).reshape(3, 2), state_name: np.ones(3, np.float16)}))
    read = read_npz(path, state_dim=1, action_dim=2)
    assert read.num_rows == 3 and read.action_TA.dtype == np.float32 and read.state_TS.shape == (3, 1)
    np.testing.assert_array_equal(read.action_TA, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize("arrays, says", [
    ({"action": np.zeros((3, 2, 2))}, "not a table of numbers"),
    ({"action": np.zeros((0, 2))}, "not a table of numbers"),
    ({"action": np.array(["a", "b"])}, "not a table of numbers"),
    ({"action": np.full((3, 2), 1e300)}, "not finite"),
    ({"action": np.zeros((3, 2)), "state": np.zeros((4, 2))}, "differ in length"),
    ({"action": np.zeros((3, 5))}, "wrong length"),
    ({"joints": np.zeros((3, 2))}, "has no actions"),
])  # fmt: skip
def test_arrays_that_are_no_labels_are_refused(tmp_path, arrays, says):
    path = tmp_path / "a.npz"
    path.write_bytes(archive(**arrays))
    with pytest.raises(UserError, match=says):
        read_npz(path, action_dim=2)


def test_damaged_archives_are_refused(tmp_path):
    whole, random, path = archive(action=np.arange(40.0).reshape(20, 2)), np.random.default_rng(0), tmp_path / "a.npz"
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(len(damaged), size=random.integers(1, 6)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged if random.random() < 0.7 else damaged[: random.integers(len(damaged))])
        try:
            assert isinstance(read_npz(path), Trajectory)
        except UserError:
            num_refused += 1
    assert num_refused > 100


def test_an_array_larger_than_any_label_is_refused_before_it_is_read(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 45, 2)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("action.npy", header.getvalue() + bytes(64))
    with pytest.raises(UserError, match="damaged or is not an npz"):
        read_npz(tmp_path / "a.npz")


def test_a_name_finds_its_file_below_the_folder_and_never_two(tmp_path):
    for name in ("one", "sub/two", "x/same", "y/same"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_label(tmp_path / f"{name}.parquet", np.zeros((3, 2), np.float32), None)
    labels = open_labels(tmp_path)
    assert labels.of(names_of("videos/One.mp4")).file.name == "one.parquet"
    assert labels.of(names_of("sub/two.mp4", "two")).file.parent.name == "sub" and labels.of(["three"]) is None
    assert labels.of(["x/same"]).file.parent.name == "x"
    with pytest.raises(UserError, match="several labels of same"):
        labels.of(["same"])
    assert [path.as_posix() for path in labels.not_taken()] == ["y/same.parquet"]
    (tmp_path / "one.npz").write_bytes(archive(action=np.zeros((3, 2))))
    with pytest.raises(UserError, match="two labels of one"):
        open_labels(tmp_path)
