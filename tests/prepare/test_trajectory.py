"""Actions at another frame rate: absolute ones are picked, deltas keep the motion of the clip."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.data.timeline import resampled_indices
from dreamgen.data.trajectory import Trajectory, read_trajectory, write_trajectory
from dreamgen.errors import UserError
from dreamgen.prepare.sources.source import SourceClip, with_bare_instruction
from dreamgen.prepare.stage import inspect, prepare
from tests.fixtures import demos


def trajectory(num_rows: int) -> Trajectory:
    random = np.random.default_rng(num_rows)
    return Trajectory(num_rows, *(random.normal(size=(num_rows, dims)).astype(np.float32) for dims in (2, 3)))


@pytest.mark.parametrize("num_rows", [1, 2, 24, 25, 100])
@pytest.mark.parametrize("source_fps", [5, 8, 15, 16, 20, 30, 50])
def test_deltas_sum_to_the_same_motion_in_both_directions(num_rows, source_fps):
    source, rows = trajectory(num_rows), resampled_indices(num_rows, source_fps, 16)
    resampled = source.at(rows, "delta")
    np.testing.assert_allclose(resampled.action_TA.sum(axis=0), source.action_TA.sum(axis=0), atol=1e-4)
    assert resampled.action_TA.shape == (len(rows), 3) and resampled.action_TA.dtype == np.float32
    np.testing.assert_array_equal(resampled.state_TS, source.state_TS[rows])
    np.testing.assert_array_equal(source.at(rows).action_TA, source.action_TA[rows])
    if source_fps == 16:
        np.testing.assert_array_equal(resampled.action_TA, source.action_TA)


def test_deltas_by_hand():
    source = Trajectory(5, None, np.array([[1], [2], [3], [4], [5]], np.float32))
    assert source.at(np.array([0, 2, 4]), "delta").action_TA[:, 0].tolist() == [3, 7, 5]
    assert source.at(np.array([0, 0, 1, 2, 2, 3, 4]), "delta").action_TA[:, 0].tolist() == [0.5, 0.5, 2, 1.5, 1.5, 4, 5]
    assert source.first(3).at(np.array([0, 2]), "delta").action_TA[:, 0].tolist() == [3, 3]


@pytest.mark.parametrize("fps", [8, 32])
def test_prepare_resamples_deltas_and_says_how_it_takes_actions(fps, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2, fps=fps)
    finding = (
        "2 clips are resampled to 16 fps: actions are taken as absolute targets; "
        "set --prepare.action_kind=delta for per-frame deltas"
    )
    absolute = settings_for(tmp_path / "demos")
    assert finding in inspect(absolute).notes and finding in prepare(absolute).notes
    delta = settings_for(tmp_path / "demos", out="delta", prepare={"action_kind": "delta"})
    assert finding not in inspect(delta).notes
    result = prepare(delta)
    assert finding not in result.notes
    for index in range(2):
        action_TA = demos.make_episode(index, 24, fps, 48, 64).action_TA
        table = pq.read_table(result.outputs["train"] / f"trajectories/episode_{index:06d}.parquet")
        written_TA = np.array(table["action"].to_pylist())
        np.testing.assert_allclose(written_TA.sum(axis=0), action_TA.sum(axis=0), rtol=1e-5)


def test_clips_without_actions_are_resampled_in_silence(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", fps=8)
    assert prepare(settings_for(tmp_path / "demos")).notes == []


def test_the_prefix_is_taken_off_as_whole_words_only():
    clip = SourceClip("a", "a", instruction="Robots lift it")
    assert with_bare_instruction(clip, "Robot ").instruction == "Robots lift it"


@pytest.mark.parametrize("num_rows", [1, 93])
def test_rows_are_written_as_lists_of_float32(num_rows, tmp_path):
    written = trajectory(num_rows)
    write_trajectory(tmp_path / "label.parquet", written, "a model", 0.5)
    table = pq.read_table(tmp_path / "label.parquet")
    assert [field.type for field in table.schema] == [pa.list_(pa.float32())] * 2
    assert table["action"].to_pylist() == written.action_TA.tolist()
    read = read_trajectory(tmp_path / "label.parquet")
    np.testing.assert_array_equal(read.action_TA, written.action_TA)
    np.testing.assert_array_equal(read.state_TS, written.state_TS)


def write_shared(path: Path, episode_N: list[int | None], rows_per_group: int) -> np.ndarray:
    """Write a table of several episodes and return its actions."""
    action_NA = trajectory(len(episode_N)).action_TA
    columns = {"action": pa.array(action_NA.tolist(), pa.list_(pa.float32())), "episode_index": pa.array(episode_N)}
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return action_NA


@pytest.mark.parametrize("rows_per_group", [1, 4, 5, 100])
@pytest.mark.parametrize(
    "episode_N",
    [[0] * 4 + [1] * 4 + [5] * 4, [5, 5, 1, 1, 1, 0, 0], [0, 1, 5, 0, 1, 5, 1], [0, 0, None, 1, 0, 5]],
    ids=["one after another", "falling", "mixed", "an empty cell"],
)
def test_an_episode_is_read_from_a_file_of_several_wherever_its_rows_are(rows_per_group, episode_N, tmp_path):
    action_NA = write_shared(tmp_path / "shared.parquet", episode_N, rows_per_group)
    for index in (0, 1, 5, 1, 0):
        read = read_trajectory(tmp_path / "shared.parquet", episode_index=index)
        np.testing.assert_array_equal(read.action_TA, action_NA[[episode == index for episode in episode_N]])
        assert read.num_rows == episode_N.count(index) and read.state_TS is None
    assert read_trajectory(tmp_path / "shared.parquet", episode_index=7).num_rows == 0


def test_a_file_of_several_episodes_is_opened_once_for_all_of_them(tmp_path, monkeypatch):
    path, opened = tmp_path / "shared.parquet", []
    read_footer = pq.ParquetFile.__init__

    def counted(self, *args, **kwargs):
        opened.append(args)
        read_footer(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "__init__", counted)
    write_shared(path, [index for index in range(50) for _ in range(3)], 3)
    assert read_trajectory(path, episode_index=0).num_rows == 3
    num_opened = len(opened)
    assert all(read_trajectory(path, episode_index=index).num_rows == 3 for index in range(50))
    assert len(opened) == num_opened
    action_NA = write_shared(path, [0, 0, 1], 3)
    np.testing.assert_array_equal(read_trajectory(path, episode_index=0).action_TA, action_NA[:2])


def test_damage_refuses_only_the_episodes_that_it_hits(tmp_path):
    path = tmp_path / "shared.parquet"
    action_NA = write_shared(path, [0] * 4 + [1] * 4 + [2] * 4, 4)
    for column in range(2):
        whole = path.read_bytes()
        chunk = pq.read_metadata(path).row_group(1).column(column)
        begin = chunk.dictionary_page_offset or chunk.data_page_offset
        path.write_bytes(whole[:begin] + b"\xff" * 20 + whole[begin + 20 :])
        for index in (0, 2):
            read = read_trajectory(path, episode_index=index)
            np.testing.assert_array_equal(read.action_TA, action_NA[4 * index : 4 * index + 4])
        with pytest.raises(UserError, match="is damaged or is not parquet"):
            read_trajectory(path, episode_index=1)
        path.write_bytes(whole)


def test_a_file_that_does_not_name_its_episodes_is_refused(tmp_path):
    write_trajectory(tmp_path / "label.parquet", trajectory(3))
    with pytest.raises(UserError) as error:
        read_trajectory(tmp_path / "label.parquet", episode_index=0)
    assert "episode_index" in error.value.actual


def test_a_worker_that_writes_and_reads_labels_does_not_import_pandas(tmp_path):
    write_shared(tmp_path / "shared.parquet", [0, 0, 1, 1], 2)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from dreamgen.data.trajectory import Trajectory, read_trajectory, write_trajectory
path = Path({str(tmp_path)!r}) / "label.parquet"
write_trajectory(path, Trajectory(3, None, np.ones((3, 2), np.float32)))
read_trajectory(path)
read_trajectory(path.with_name("shared.parquet"), episode_index=1)
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
