"""Actions that no demonstration comes near reject a clip; those of real demonstrations do not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dreamgen.data.action_range import demonstrated_range, share_outside
from dreamgen.data.lerobot.metadata import read_meta
from dreamgen.data.trajectory import Trajectory, read_trajectory, write_trajectory
from dreamgen.extensions.score import SCORES
from dreamgen.pipeline import run_stage
from dreamgen.run.files import write_json
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from tests.fixtures.runs import make_run, run_settings, write_label

LIMIT = SCORES.get("action_outside_demos").threshold.default


def test_by_hand():
    low_A, high_A = np.array([0, -1], np.float32), np.array([10, 1], np.float32)
    action_TA = np.array([[0, 0], [10.9, 0], [11.1, 1.3], [-1.1, -1.19]], np.float32)
    assert share_outside(action_TA, low_A, high_A) == 3 / 8  # 11.1, 1.3 and -1.1 are a tenth of the range beyond
    assert share_outside(action_TA, low_A, high_A, np.array([1.8, 0.3])) == 3 / 8  # three errors are within the range
    assert share_outside(action_TA, low_A, high_A, np.array([1.8, 0.5])) == 2 / 8  # now 1.5 is the limit, not 1.2
    constant_TA = np.array([[1, 0], [1.06, 0], [0.94, 0], [1.08, 0]], np.float32)
    same_A = np.array([1, 0], np.float32)
    assert share_outside(constant_TA, same_A, same_A) == 3 / 8
    assert share_outside(constant_TA, same_A, same_A, np.array([0.025, 0])) == 1 / 8


def test_a_clip_whose_actions_leave_the_range_is_rejected_with_the_share(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0, action_dim=2, state_dim=0)
    for number, (low, high) in enumerate([(0, 1), (0.5, 3)]):
        demo_TA = np.linspace(low, high, 20, dtype=np.float32)[:, None].repeat(2, axis=1)
        write_trajectory(run.train / f"trajectories/demo_{number}.parquet", Trajectory(20, None, demo_TA))
    first, second = read_jobs(run.jobs)
    write_label(run.label_file(first.clip_id), np.full((9, 2), 2.9, np.float32), None)
    write_label(
        run.label_file(second.clip_id), np.stack([np.full(9, 1.0), np.full(9, 9.0)], 1).astype(np.float32), None
    )
    low_A, high_A = demonstrated_range(run.train)
    assert (low_A.tolist(), high_A.tolist()) == ([0, 0], [3, 3])
    run_stage("curate", run_settings(run.root))
    records = read_journal(run.journal, "curate")
    assert records[first.clip_id].metrics["action_outside_demos"] == 0
    assert records[second.clip_id].metrics["action_outside_demos"] == 0.5
    assert "50% of the values are outside" in records[second.clip_id].reason
    run_stage("curate", run_settings(run.root, curate={"max_action_outside_demos": 0.6}))
    assert read_journal(run.journal, "curate")[second.clip_id].status == "ok"


def test_errors_of_labels_are_not_outside_where_the_demonstrations_do_not_move(tmp_path):
    run = make_run(tmp_path / "run", num_clips=4, rejected=0, action_dim=2, state_dim=0)
    moves_T, random = np.linspace(0, 1, 20), np.random.default_rng(0)
    demo_TA = np.stack([moves_T, np.ones(20)], 1).astype(np.float32)  # a gripper that stays closed
    write_trajectory(run.train / "trajectories/demo.parquet", Trajectory(20, None, demo_TA))
    label_TA = np.stack([np.linspace(0, 1, 9), 1 + random.uniform(-0.06, 0.06, 9)], 1).astype(np.float32)
    opens_TA = np.stack([np.linspace(0, 1, 9), np.linspace(1, -1, 9)], 1).astype(np.float32)
    noise_TA = random.choice([-2, 2], (9, 2)).astype(np.float32)
    right, opens, noise, external = read_jobs(run.jobs)
    for job, action_TA, uncertainty in (
        (right, label_TA, 0.1), (opens, opens_TA, 0.1), (noise, noise_TA, 0.1), (external, label_TA, None)
    ):  # fmt: skip
        write_trajectory(run.label_file(job.clip_id), Trajectory(9, None, action_TA), "a model", uncertainty)

    def curated() -> dict[str, float]:
        run_stage("curate", run_settings(run.root))
        records = read_journal(run.journal, "curate")
        assert {c: r.status == "ok" for c, r in records.items()} == {
            c: r.metrics["action_outside_demos"] <= LIMIT for c, r in records.items()
        }
        return {c: r.metrics["action_outside_demos"] for c, r in records.items()}

    error = {"mae": 0.02, "r2": 0.9, "mae_per_dim": [0.02, 0.025]}
    write_json(run.idm / "config.json", {"held_out": {"action": error}})
    assert curated() == {
        right.clip_id: 0, opens.clip_id: pytest.approx(8 / 18), noise.clip_id: 1, external.clip_id: 0.5
    }  # fmt: skip


def test_without_demonstrations_or_with_other_dimensions_nothing_is_measured(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0, action_dim=2, state_dim=0)
    run_stage("curate", run_settings(run.root))
    (record,) = read_journal(run.journal, "curate").values()
    assert record.status == "ok" and record.metrics["action_outside_demos"] is None


@pytest.mark.parametrize("num_others", [1, 2, 4])
def test_real_clips_pass_against_the_range_of_other_demonstrations(real_demos, num_others):
    meta = read_meta(real_demos)
    episodes = [read_trajectory(e.data_file, episode_index=e.index if e.shares_file else None).action_TA
                for e in meta.episodes]  # fmt: skip
    shares = []
    for number, action_TA in enumerate(episodes):
        for others in itertools.combinations([e for i, e in enumerate(episodes) if i != number], num_others):
            known = np.concatenate(others)
            clips = [action_TA[start : start + 93] for start in range(0, len(action_TA) - 92, 93)]
            shares += [share_outside(clip, known.min(axis=0), known.max(axis=0)) for clip in clips]
    assert max(shares) <= LIMIT, max(shares)
    swapped = [np.roll(action_TA, 11, axis=1) for action_TA in episodes]  # another order of dimensions
    known = np.concatenate(episodes)
    assert min(share_outside(s, known.min(axis=0), known.max(axis=0)) for s in swapped) > LIMIT
