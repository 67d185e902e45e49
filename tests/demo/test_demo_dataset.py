"""The demo's own demonstrations: read back with lerobot, and checked against the arm's own geometry."""

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from dreamgen.data.video import probe
from dreamgen.demo.arm import (
    BIN_FLOOR_M,
    BIN_WIDTH_M,
    BLOCK_M,
    JOINT_NAMES,
    TRACKING,
    inverse_kinematics,
    joint_positions,
    minimum_jerk,
    pick_and_place,
)
from dreamgen.demo.dataset import CAMERA, PLACES_M, demo_instructions, demo_scene, write_demo_dataset
from dreamgen.demo.drawing import COLORS, TABLE_Z_PX, draw_episode
from dreamgen.errors import UserError


def episode_of(index: int, seed: int = 0):
    return pick_and_place(demo_scene(index, seed), np.random.default_rng([seed, index]))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "demos", num_episodes=2, seed=3)


def test_lerobot_reads_as_many_frames_as_rows_and_the_same_numbers(dataset_folder):
    dataset = LeRobotDataset("dreamgen/demo", root=dataset_folder)
    episodes = [episode_of(i, seed=3) for i in range(2)]
    assert dataset.num_episodes == 2
    assert dataset.fps == 20
    assert dataset.meta.robot_type == "planar_arm"
    assert dataset.meta.features["action"]["names"] == list(JOINT_NAMES)
    rows = [len(episode.state_TA) for episode in episodes]
    assert dataset.num_frames == sum(rows)
    assert list(dataset.meta.episodes["length"]) == rows
    files = sorted(dataset_folder.glob("videos/**/*.mp4"))
    assert [probe(path).codec for path in files] == ["h264"]
    assert sum(probe(path).num_frames for path in files) == sum(rows)
    row = dataset[rows[0] + 7]
    assert row["task"] == episodes[1].scene.instruction
    np.testing.assert_array_equal(row["action"].numpy(), episodes[1].action_TA[7])
    np.testing.assert_array_equal(row["observation.state"].numpy(), episodes[1].state_TA[7])
    drawn_HWC = list(draw_episode(episodes[1]))[7]
    read_HWC = row[CAMERA].numpy().transpose(1, 2, 0) * 255
    assert np.abs(read_HWC - drawn_HWC).mean() < 3


def test_nothing_but_the_dataset_is_left(dataset_folder):
    assert sorted(path.name for path in dataset_folder.iterdir()) == ["data", "meta", "videos"]
    assert [path.name for path in dataset_folder.parent.iterdir()] == ["demos"]


def test_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        write_demo_dataset(tmp_path, num_episodes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="episodes"):
        write_demo_dataset(tmp_path / "none", num_episodes=0)


def test_next_state_follows_from_state_and_action():
    episode = episode_of(0)
    state_TA, action_TA = episode.state_TA.astype(np.float64), episode.action_TA.astype(np.float64)
    np.testing.assert_allclose(state_TA[1:], state_TA[:-1] + TRACKING * (action_TA[:-1] - state_TA[:-1]), atol=1e-5)
    assert np.abs(action_TA[:-1] - state_TA[1:]).max() < np.abs(action_TA - state_TA).max()


@pytest.mark.parametrize("pitch_deg", [-90, -65])
def test_inverse_kinematics_reaches_every_place(pitch_deg):
    for x in PLACES_M:
        joints = inverse_kinematics(x, 0.2, np.deg2rad(pitch_deg))
        np.testing.assert_allclose(joint_positions(joints)[3], (x, 0.2), atol=1e-12)
        assert joints.sum() == pytest.approx(np.deg2rad(pitch_deg))
        assert joint_positions(joints)[1, 1] > joint_positions(joints)[2, 1], "the elbow is up"
    with pytest.raises(ValueError, match="reach"):
        inverse_kinematics(1.5, 0.2, -np.pi / 2)


@pytest.mark.parametrize("index", range(8))
def test_the_block_is_grasped_lifted_and_ends_in_the_bin(index):
    episode = episode_of(index)
    scene, block_T2 = episode.scene, episode.block_T2
    assert 75 <= len(block_T2) <= 105
    np.testing.assert_allclose(block_T2[0], (scene.block_x, BLOCK_M / 2))
    held = block_T2[:, 1] > 0.15
    tips = np.stack([joint_positions(state)[3] for state in episode.state_TA.astype(np.float64)])
    assert held.sum() > 15
    assert np.abs(tips - block_T2)[held].max() < BLOCK_M / 2, "the block hangs between the fingertips"
    assert abs(block_T2[-1, 0] - scene.bin_x) < (BIN_WIDTH_M - BLOCK_M) / 2
    assert block_T2[-1, 1] == pytest.approx(BIN_FLOOR_M + BLOCK_M / 2)
    assert tips[-1, 1] > 0.3, "the arm is home again"
    assert np.abs(np.diff(episode.action_TA[:, :3], axis=0)).max() < 0.35, "no jump of the targets"


def test_minimum_jerk_is_still_at_both_ends():
    progress = minimum_jerk(100)
    assert progress[-1] == 1
    assert np.all(np.diff(progress) > 0)
    assert progress[0] < 1e-4
    assert 1 - progress[-2] < 1e-4
    assert progress[49] == pytest.approx(0.5)


def test_same_seed_same_arrays_and_another_seed_another_task():
    for name in ("state_TA", "action_TA", "block_T2"):
        np.testing.assert_array_equal(getattr(episode_of(1), name), getattr(episode_of(1), name))
    assert demo_scene(1, 0) == demo_scene(1, 0)
    assert len({demo_scene(i, s).instruction for i in range(6) for s in range(4)}) > 10


def test_things_stand_apart_and_colours_are_drawn():
    for index in range(20):
        scene = demo_scene(index, 0)
        places = sorted([scene.block_x, scene.bin_x, scene.other_x])
        assert np.diff(places).min() > (BIN_WIDTH_M + BLOCK_M) / 2
        assert scene.other_color != scene.block_color
    episode = episode_of(0)
    first_HWC = next(draw_episode(episode))
    row, column = TABLE_Z_PX // 3 - round(256 * BLOCK_M / 2), round(256 * episode.scene.block_x)
    np.testing.assert_allclose(first_HWC[row, column], COLORS[episode.scene.block_color], atol=3)


def test_instructions_for_planning_are_new():
    shown = {demo_scene(i, 5).instruction for i in range(6)}
    new = demo_instructions(14, 5)
    assert len(set(new)) == 14
    assert not shown & set(new)
    assert demo_instructions(2, 5) == new[:2]
    with pytest.raises(UserError, match="instructions"):
        demo_instructions(99, 5)
