"""What `LeRobotDataset` reads from an exported v3.0 dataset is what the clips and labels hold."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import get_video_info

from dreamgen.data.video import read_video
from dreamgen.run.files import read_json
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.records import RobotFeatures
from export.check import check
from export.clips import generated_clips
from export.episodes import read_label
from export.formats.lerobot import FileLimits, write_lerobot_v30
from export.spec import dataset_spec
from export.validation import validate_clips
from export.workers import Workers
from tests.fixtures.runs import CAMERA, make_run, run_settings


def write_v30(run, folder, limits=None):
    settings = run_settings(run.root).export
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    episodes, refused = validate_clips(generated_clips(accepted_clips(run)), features, True)
    assert not refused
    done_markers = folder.with_name(f"{folder.name}.done")
    folder.mkdir()
    done_markers.mkdir()
    write_lerobot_v30(folder, done_markers, episodes, dataset_spec(settings, features, episodes[0]), Workers(), limits)
    return folder


def assert_same_as_clips(run, root, backend="pyav", num_workers=0):
    """Iterate with lerobot's reader and torch's loader; compare every frame bit for bit and every vector."""
    dataset = LeRobotDataset("dreamgen/test", root=root, video_backend=backend, return_uint8=True)
    loader = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=num_workers))
    row = 0
    for number, clip in enumerate(accepted_clips(run)):
        video_THWC = read_video(clip.video)
        action_TA, state_TS = read_label(clip.label, include_state=True)
        assert len(video_THWC) == clip.num_frames
        for frame in range(clip.num_frames):
            item = next(loader)
            np.testing.assert_array_equal(item[CAMERA].permute(1, 2, 0).numpy(), video_THWC[frame])
            np.testing.assert_array_equal(item["action"].numpy().reshape(-1), action_TA[frame])
            if state_TS is not None:
                np.testing.assert_array_equal(item["observation.state"].numpy(), state_TS[frame])
            assert item["task"] == clip.job.instruction
            assert (int(item["index"]), int(item["frame_index"]), int(item["episode_index"])) == (row, frame, number)
            row += 1
    assert next(loader, None) is None
    assert len(dataset) == row


def test_every_frame_and_action_comes_back(exported):
    assert_same_as_clips(exported, exported.datasets / "lerobot-v3.0")


def test_loader_processes_read_it_too(exported):
    assert_same_as_clips(exported, exported.datasets / "lerobot-v3.0", num_workers=2)


def test_across_file_and_chunk_boundaries(exported, tmp_path):
    sizes = [clip.video.stat().st_size for clip in accepted_clips(exported)]
    two_clips_mb = (max(sizes[0] + sizes[1], *sizes[2:]) + 10) / 2**20
    limits = FileLimits(data_mb=0.001, video_mb=two_clips_mb, chunks_size=1)
    root = write_v30(exported, tmp_path / "small", limits)
    names = {path.relative_to(root).as_posix() for path in root.rglob("*.mp4")}
    assert {f"videos/{CAMERA}/chunk-000/file-000.mp4", f"videos/{CAMERA}/chunk-001/file-000.mp4"} <= names
    assert (root / "data/chunk-001/file-000.parquet").exists()
    rows = pq.read_table(root / "meta/episodes").to_pylist()
    assert any(row[f"videos/{CAMERA}/from_timestamp"] > 0 for row in rows), "some file holds two episodes"
    assert_same_as_clips(exported, root)
    assert check(root) == []


def test_av1_clips_and_one_dimensional_actions(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, num_frames=(5, 9), action_dim=1, state_dim=0, rejected=0, codec="av1",
                   height=64, width=64)  # fmt: skip
    root = write_v30(run, tmp_path / "av1")
    assert_same_as_clips(run, root)
    assert check(root) == []


def test_packets_are_copied_not_encoded(exported):
    import av

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    joined = packets(exported.datasets / f"lerobot-v3.0/videos/{CAMERA}/chunk-000/file-000.mp4")
    assert joined == [packet for clip in accepted_clips(exported) for packet in packets(clip.video)]


def test_delta_timestamps_stay_within_the_episode(exported):
    dataset = LeRobotDataset("dreamgen/test", root=exported.datasets / "lerobot-v3.0", video_backend="pyav",
                             delta_timestamps={"action": [0, 1 / 16, 2 / 16]})  # fmt: skip
    clips = accepted_clips(exported)
    last = clips[0].num_frames - 1
    action_TA, _ = read_label(clips[0].label, include_state=False)
    np.testing.assert_array_equal(dataset[last]["action"].numpy(), np.stack([action_TA[last]] * 3))
    assert dataset[last]["action_is_pad"].tolist() == [False, True, True]


def test_info_is_what_lerobot_writes(exported):
    root = exported.datasets / "lerobot-v3.0"
    info = json.loads((root / "meta/info.json").read_text())
    feature = info["features"][CAMERA]
    theirs = get_video_info(root / f"videos/{CAMERA}/chunk-000/file-000.mp4")
    assert theirs == {key: feature["info"][key] for key in theirs}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (5, 49, 4)
    assert info["features"]["action"]["names"] == [f"motor_{i}" for i in range(5)]
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert tasks.index.name == "task" and list(tasks["task_index"]) == [0, 1, 2, 3]


def test_offsets_are_exact(exported, tmp_path):
    run = make_run(tmp_path / "run", num_clips=4, num_frames=(5, 9), rejected=0, fps=15)
    root = write_v30(run, tmp_path / "fifteen")
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    ends = [5, 14, 19, 28]
    assert [row[f"videos/{CAMERA}/to_timestamp"] for row in rows] == [end / 15 for end in ends]
    assert_same_as_clips(run, root)


def test_torchcodec_reads_the_same(exported):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not load here: {str(error).splitlines()[0]}")
    assert_same_as_clips(exported, exported.datasets / "lerobot-v3.0", backend="torchcodec")
