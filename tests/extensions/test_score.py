"""The score of docs/extending/score.md, installed as a package and used by commands; and scores added at run time."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.config.settings import CurateSettings
from dreamgen.curate.verdict import curate_clip
from dreamgen.data.clip_context import ClipContext
from dreamgen.errors import UserError
from dreamgen.extensions.judge import curation_metrics
from dreamgen.extensions.score import SCORES, Score, Threshold
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.curate.test_curate import moving_square, settings_of
from tests.generate.clips import write_generated_run

PAGE = "extending/score.md"


def blurring() -> np.ndarray:
    """A moving square that loses its sharpness."""
    video_THWC = moving_square()
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 0.1 + 0.5 * t) for t, frame in enumerate(video_THWC)])


def test_the_documented_score_works_through_the_command_and_goes_with_its_package(installed, result_of, tmp_path):
    jobs = write_generated_run(tmp_path / "run", [moving_square(), blurring()])
    out, dreamgen = ["--out", tmp_path / "run", "--model.path=mini"], installed(PAGE)
    assert "--min_sharpness" in dreamgen("curate", "--help").stdout
    result = result_of(dreamgen("curate", *out, "--json"))
    assert result["figures"]["num_accepted"] == 1 and "blurred: sharpness 0.0" in result["notes"][0]
    sharp, blurred = pq.read_table(tmp_path / "run/scores/scores.parquet").to_pylist()
    assert (
        sharp["verdict"] == "ok" and sharp["sharpness"] > 0.5 > blurred["sharpness"] and blurred["min_sharpness"] == 0.3
    )
    record = read_journal(RunFolder(tmp_path / "run").journal, "curate")[jobs[1].clip_id]
    assert record.metrics["sharpness"] == blurred["sharpness"] and record.reason == blurred["reasons"]
    assert (
        result_of(dreamgen("curate", *out, "--json", "--min_sharpness=0", "--min_kept_sharpness=0"))["figures"][
            "num_accepted"
        ]
        == 2
    )
    assert "curate.min_sharpness" in dreamgen("curate", *out, "--min_sharpness=-1", status=2).stderr
    report = dreamgen("report", "--out", tmp_path / "run")
    assert report.returncode == 0 and "sharpness" in (tmp_path / "run/report.html").read_text()


def test_without_its_package_the_score_is_gone(installed, tmp_path):
    dreamgen = installed(None)
    assert "min_sharpness" not in dreamgen("curate", "--help").stdout
    assert "min_sharpness" in dreamgen("curate", "--out", tmp_path / "run", "--min_sharpness=1", status=2).stderr


@pytest.fixture
def registered():
    """Register scores for this process and take them out again."""
    added = []

    def register(score: Score) -> None:
        SCORES.register(score.name, score)
        added.append(score.name)

    yield register
    for name in added:
        SCORES.unregister(name)


def brightness(**changes) -> Score:
    values = {
        "name": "brightness", "summary": "mean of all pixels", "rejection": "dark: {value:.0f} < {limit:g}",
        "threshold": Threshold(setting="min_brightness", default=20.0, help="mean of all pixels"),
        "measure": lambda clip: clip.video_THWC.mean(),
    }  # fmt: skip
    return Score(**{**values, **changes})


def curated(tmp_path, videos=None):
    jobs = write_generated_run(tmp_path, [moving_square()] if videos is None else videos)
    clip = ClipContext(RunFolder(tmp_path), jobs[0])
    return curate_clip(clip, settings_of(tmp_path).curate, {})


def test_a_score_that_is_registered_at_run_time_uses_its_default(registered, tmp_path):
    registered(brightness())
    assert curated(tmp_path / "bright").status == "ok"
    record = curated(tmp_path / "dark", [moving_square() // 10])
    assert record.status == "rejected" and "dark: 1" in record.reason and record.metrics["min_brightness"] == 20.0


def test_a_score_without_a_default_only_measures(registered, tmp_path):
    registered(brightness(threshold=Threshold(setting="min_brightness", default=None, help="x")))
    record = curated(tmp_path, [moving_square() // 10])
    assert "dark" not in (record.reason or "") and record.metrics["min_brightness"] is None
    assert record.metrics["brightness"] > 0


def test_a_score_that_does_not_apply_is_not_measured(registered, tmp_path):
    registered(brightness(applies=lambda job: job.instruction == "pull", measure=lambda clip: 1 / 0))
    record = curated(tmp_path)
    assert record.status == "ok" and record.metrics["brightness"] is record.metrics["min_brightness"] is None


def test_a_value_that_is_missing_rejects_where_the_score_says_so(registered, tmp_path):
    registered(brightness(measure=lambda clip: None, missing="cannot be measured"))
    assert curated(tmp_path).reason == "cannot be measured"


def test_not_a_number_is_not_accepted(registered, tmp_path):
    registered(brightness(measure=lambda clip: float("nan")))
    assert curated(tmp_path).status == "rejected"


def test_a_score_that_raises_fails_its_clip_with_the_traceback(registered, tmp_path):
    registered(brightness(measure=lambda clip: 1 / 0))
    record = curated(tmp_path)
    assert record.status == "failed" and record.error == "ZeroDivisionError: division by zero"
    assert "Traceback" in record.traceback and record.metrics["motion"] > 0


def test_two_scores_of_one_column_are_refused(registered):
    SCORES.register("other", brightness())
    try:
        registered(brightness())
        with pytest.raises(UserError, match="two extensions measure brightness") as caught:
            list(curation_metrics())
        assert "other" in str(caught.value) and "brightness" in str(caught.value)
    finally:
        SCORES.unregister("other")


def test_a_threshold_is_named_after_its_metric():
    with pytest.raises(ValueError, match="min_brightness or max_brightness"):
        brightness(threshold=Threshold(setting="brightness_limit", default=1.0, help="x"))


def test_every_score_has_a_setting_with_its_default():
    limits = CurateSettings()
    for _, score in SCORES.items():
        assert getattr(limits, score.threshold.setting) == score.threshold.default
