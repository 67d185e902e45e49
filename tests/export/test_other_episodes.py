"""Episodes are compared with one another: scenes of images in tables and in HDF5, delays of actions.

Axes: N rows, D dimensions, H height, W width, C channels.
"""

from __future__ import annotations

import io
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from export.check import check
from export.check.alignment import LAGS, alignment_of
from export.check.other_episodes import Thumbnail
from tests.fixtures.damaging import in_table, without_manifest
from tests.fixtures.good_datasets import CAMERAS, aloha_commands, lerobot_commands

CAMERA = CAMERAS[0]
CHANGES = {
    "mirrored": ("picture-mirrored", lambda image_HWC: image_HWC[:, ::-1]),
    "upside down": ("picture-mirrored", lambda image_HWC: image_HWC[::-1]),
    "red and blue exchanged": ("picture-channels", lambda image_HWC: image_HWC[..., ::-1]),
}


@pytest.fixture(scope="module")
def images_in_tables(tmp_path_factory):
    return lerobot_commands(tmp_path_factory.mktemp("images") / "dataset", (CAMERA,), dtype="image")


def test_images_in_tables_of_one_scene_have_no_finding(images_in_tables):
    assert check(images_in_tables) == []


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_in_a_table_are_found_in_their_episode(images_in_tables, tmp_path, change):
    code, changed = CHANGES[change]
    root = without_manifest(images_in_tables, tmp_path / "dataset")

    def change_episode_2(columns, _kinds):
        for row, episode in enumerate(columns["episode_index"]):
            if episode == 2:
                image_HWC = np.asarray(Image.open(io.BytesIO(columns[CAMERA][row]["bytes"])))
                encoded = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(changed(image_HWC))).save(encoded, "PNG")
                columns[CAMERA][row] = {**columns[CAMERA][row], "bytes": encoded.getvalue()}

    in_table(change_episode_2)(next(root.glob("data/*/*.parquet")))
    assert [(f.code, f.where) for f in check(root)] == [(code, f"episode 2, {CAMERA}")]
    assert check(root, fast=True) == []


@pytest.mark.parametrize("delay", [0, 2, -3])
def test_correlations_are_those_of_the_definition(delay):
    random = np.random.default_rng(0)
    path_ND = np.cumsum(random.normal(size=(90, 3)), axis=0) + 50
    action_ND, state_ND = path_ND[10:80], path_ND[10 - delay : 80 - delay] + random.normal(0, 0.01, (70, 3))
    alignment = alignment_of(4, action_ND, state_ND)
    assert alignment is not None and alignment.position == 4
    for place, lag in enumerate(LAGS):
        rows = slice(max(0, -lag), len(action_ND) - max(0, lag))
        one_ND, other_ND = action_ND[rows], np.roll(state_ND, -lag, axis=0)[rows]
        one_ND, other_ND = one_ND - one_ND.mean(axis=0), other_ND - other_ND.mean(axis=0)
        expected = (one_ND * other_ND).sum() / np.sqrt((one_ND**2).sum() * (other_ND**2).sum())
        assert alignment.fit_L[place] == pytest.approx(expected, abs=1e-6)
    assert LAGS[int(alignment.fit_L.argmax())] == delay


def test_a_thumbnail_takes_its_frames_from_those_that_are_converted_anyway():
    thumbnail = Thumbnail(1000, among_N=np.array([0, 3, 500, 501, 999]))
    for number in range(1000):
        # A frame that is not among them would make the thumbnail bright.
        value = 10 if number in (0, 3, 500, 501, 999) else 250
        thumbnail.add(np.full((32, 32, 3), value, np.uint8))
    mean_HWC = thumbnail.mean_HWC()
    assert mean_HWC is not None and mean_HWC.max() == 10


def test_a_thumbnail_needs_every_frame_of_its_episode():
    thumbnail = Thumbnail(10)
    for _ in range(9):
        thumbnail.add(np.zeros((32, 32, 3), np.uint8))
    assert thumbnail.mean_HWC() is None


def test_a_damaged_chunk_of_images_is_named_by_its_row(tmp_path):
    root = aloha_commands(tmp_path / "act")
    with h5py.File(root / "episode_1.hdf5", "r+") as file:
        images_THWC = file["observations/images/top"][...]
        del file["observations/images/top"]
        chunks = (1, *images_THWC.shape[1:])
        array = file.create_dataset("observations/images/top", data=images_THWC, chunks=chunks, fletcher32=True)
        chunk = array.id.get_chunk_info_by_coord((37, 0, 0, 0))
    content = bytearray((root / "episode_1.hdf5").read_bytes())
    content[chunk.byte_offset + 5] ^= 1
    (root / "episode_1.hdf5").write_bytes(content)
    assert [(f.code, f.where) for f in check(root)] == [("damaged-picture", "observations/images/top, row 37")]


def test_tables_are_read_without_pandas(tmp_path):
    """Importing pandas takes a second, longer than most checks: a process of its own shows whether one did."""
    root = lerobot_commands(tmp_path / "dataset", (CAMERA,))
    program = (
        "import sys; from export.check import check; print(check(sys.argv[1], num_workers=1), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]
