"""Labels of a model that is no better than a baseline reach no dataset unless the user says so, and the card tells."""

from __future__ import annotations

import pytest

from dreamgen.errors import WeakLabels
from dreamgen.label.external import label_without_model
from dreamgen.run.files import write_json
from dreamgen.run.idm_error import IdmError
from dreamgen.run.jobs import read_jobs
from export import export_datasets
from tests.fixtures.runs import make_run, random_vectors, run_settings, write_label

V30 = ["lerobot-v3.0"]


def with_error(run, mae, r2=0.5, **baselines):
    recorded = {name: {"mae": value[0], "r2": value[1]} for name, value in baselines.items()}
    action = {"mae": mae, "r2": r2, "baselines": recorded}
    write_json(run.idm / "config.json", {"held_out": {"how": "1 of 5 episodes", "action": action}})


def export(run, **values):
    return export_datasets(run_settings(run.root, export={"formats": V30, **values}))


@pytest.mark.parametrize(
    "mae, r2, baselines, beaten",
    [
        (0.4, 0.6, {"mean": (0.5, 0.0), "state_held": (0.45, 0.5)}, []),
        (0.4, 0.6, {"mean": (0.5, 0.0), "state_held": (0.4, 0.5)}, ["the state held"]),
        (0.4, 0.4, {"mean": (0.5, 0.0), "state_held": (0.5, 0.5)}, ["the state held"]),
        (0.6, -0.1, {"mean": (0.5, 0.0), "of_tomorrow": (0.5, None)}, ["the demonstrations' mean", "of tomorrow"]),
        (0.4, None, {"mean": (0.5, None)}, []),
        (0.4, 0.89, {"nearest_frame": (0.1, 0.99)}, ["the nearest training frame"]),
        (0.4, 0.9, {"nearest_frame": (0.1, 0.99)}, []),  # held-out episodes nearly repeat training episodes
        (0.4, 0.95, {"state_held": (0.1, 0.99)}, ["the state held"]),
        (0.4, 0.6, {}, []),
    ],
)
def test_a_model_is_compared_with_whatever_baselines_are_recorded(mae, r2, baselines, beaten):
    recorded = {name: {"mae": value[0], "r2": value[1]} for name, value in baselines.items()}
    error = IdmError.of_config({"held_out": {"how": "", "action": {"mae": mae, "r2": r2, "baselines": recorded}}})
    assert error.not_beaten == beaten and (error.warning() is None) == (not beaten)


@pytest.mark.parametrize("config", [{}, {"held_out": {}}, {"held_out": {"action": {"mae": None}}}, {"held_out_mae": 1}])
def test_a_model_without_a_measured_error_has_none(config):
    assert IdmError.of_config(config) is None


def test_weak_labels_are_refused_and_allowed_by_a_setting_that_the_card_tells(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    with_error(run, 0.5, 0.1, mean=(0.4, 0.0))
    with pytest.raises(WeakLabels, match="NO BETTER than the demonstrations' mean") as caught:
        export(run)
    assert "--export.allow_weak_labels=true" in str(caught.value) and not (run.datasets / V30[0]).exists()
    result = export(run, allow_weak_labels=True)
    assert result.metrics["episodes"] == 2 and "NO BETTER" in result.notes[0]
    card = (run.datasets / V30[0] / "README.md").read_text()
    assert "Weak labels: the model is NO BETTER" in card and "held-out error (1 of 5 episodes): 0.5" in card


def test_good_labels_pass_and_the_card_tells_their_error(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    with_error(run, 0.3, 0.5, mean=(0.4, 0.0), state_held=(0.35, 0.2))
    assert export(run).metrics["episodes"] == 2
    card = (run.datasets / V30[0] / "README.md").read_text()
    assert "0.3 in the robot" in card and "the state held 0.35" in card and "Weak labels" not in card


def test_the_error_of_our_model_says_nothing_of_labels_of_others(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    with_error(run, 0.5, 0.1, mean=(0.4, 0.0))
    (tmp_path / "theirs").mkdir()
    for job in read_jobs(run.jobs):
        write_label(tmp_path / f"theirs/{job.clip_id}.parquet", *random_vectors(3, 9, 5, 4))
    label = {"from_folder": str(tmp_path / "theirs"), "labeled_by": "a *good* model"}
    label_without_model(run_settings(run.root, label=label))
    assert export(run).metrics["episodes"] == 2
    card = (run.datasets / V30[0] / "README.md").read_text()
    assert "2 by a" in card and "good" in card and "held-out error" not in card
