"""`dreamgen run --dry_run`: the whole job is described before hours are spent, and what cannot work is refused."""

from __future__ import annotations

import pytest

from dreamgen.config.loading import settings_from_dict
from dreamgen.errors import UserError
from dreamgen.pipeline import run_all
from dreamgen.preview import preview_run
from dreamgen.run.run_folder import RunFolder
from tests.fixtures import demos


def settings_of(root, **sections):
    values = {
        "out": str(root / "run"), "demos": str(root / "demos"), "model": {"path": "mini-random", "device": "cpu"},
        "video": {"height": 48, "width": 64, "num_frames": 9, "fps": 16},
    }  # fmt: skip
    return settings_from_dict({**values, **sections})


def test_the_dry_run_describes_the_whole_job_and_writes_nothing(tmp_path):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2, num_frames=33)
    settings = settings_of(
        tmp_path, model={"path": "mini-random", "device": "cpu", "safety_checker": False},
        finetune={"num_steps": 9200}, plan={"num_seeds": 3}, generate={"clips_per_gpu_hour": 12.0},
    )  # fmt: skip
    prepared, result = run_all(settings, dry_run=True)
    assert prepared.stage == "prepare" and prepared.metrics["used"] == 2
    assert {
        "num_demos": 2, "clip_frames": 9, "median_demo_frames": 33, "clip_covers": 0.273, "num_steps": 9200,
        "num_epochs": 4600.0, "num_windows": 50, "num_first_frames": 2, "num_clips": 6, "generate_gpu_hours": 0.5,
        "has_actions": True, "action_dim": 3,
    }.items() <= result.metrics.items()  # fmt: skip
    assert result.metrics["finetune_gpu_hours"] >= 0 and result.metrics["disk_gib"] >= 0
    text = "\n".join(result.notes)
    for said in (
        "warning: a clip has 9 frames (0.6 s) and covers 27% of the median demonstration (2.1 s): --plan.num_chunks=7",
        "4,600 epochs, so the model learns these demonstrations by heart: --finetune.num_steps=1000",
        "clips to come: 6, of 2 first frames and 3 seeds each", "0.5 GPU hours at 12 clips an hour",
        "often no better than the mean action", "mini model is untrained", "disk: about",
    ):  # fmt: skip
        assert said in text, text
    assert not (tmp_path / "run").exists()


def test_enough_chunks_cover_a_demonstration(tmp_path):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2, num_frames=33)
    settings = settings_of(tmp_path, plan={"num_chunks": 7})
    preview = preview_run(settings, RunFolder(tmp_path / "run"), may_download=False)
    assert preview.metrics["clip_frames"] == 33 and not any("covers" in text for text in preview.warnings)


def test_first_frames_of_a_folder_are_counted_with_their_instructions(tmp_path):
    from tests.fixtures.world import write_pairs

    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2)
    pairs = write_pairs(tmp_path / "pairs", 3)
    (pairs / "scene_1.txt").unlink()
    settings = settings_of(tmp_path, plan={"first_frames": str(pairs), "num_seeds": 2})
    assert preview_run(settings, RunFolder(tmp_path / "run"), False).metrics["num_clips"] == 4


def test_what_a_later_stage_would_refuse_is_refused_before_the_first(tmp_path):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2)
    robot = settings_of(tmp_path, export={"robot": "gr1"}, model={"path": "mini-random", "safety_checker": False})
    for dry_run in (True, False):
        with pytest.raises(UserError, match="robot gr1 does not fit"):
            run_all(robot, dry_run=dry_run)
    assert not (tmp_path / "run").exists()
    (tmp_path / "model").mkdir()
    empty = settings_of(tmp_path, model={"path": str(tmp_path / "model")})
    with pytest.raises(UserError, match="is empty"):
        preview_run(empty, RunFolder(tmp_path / "run"), False)


def test_demonstrations_without_actions_are_told(tmp_path):
    demos.write_plain(tmp_path / "demos")
    preview = preview_run(settings_of(tmp_path), RunFolder(tmp_path / "run"), False)
    assert any("have no actions" in text for text in preview.warnings) and preview.metrics["has_actions"] is False
