"""A whole run ends with a short table; a single stage shows everything."""

import pytest

from dreamgen.cli.results import result_text, run_text, show
from dreamgen.progress import rate
from dreamgen.run.records import StageResult

RESULTS = [
    StageResult(
        "prepare", {"train": "runs/a/train"}, {"used": 12, "changed": 0, "refused": 1, "frames": 300}, ["x"] * 9
    ),
    StageResult("generate", {"clips": "runs/a/clips"}, {"num_jobs": 6, "num_done": 6, "num_failed": 0}),
    StageResult("label", {}, {"num_labelled": 6, "idm_held_out_mae": 0.123456}),
    StageResult("check", {}, {"num_errors": 12}, [f"error {number}" for number in range(12)]),
    StageResult("export", {"lerobot-v3.0": "runs/a/d", "lerobot-v3.0 provenance": "runs/a/p"}, {"episodes": 6}),
    StageResult("report", {"report": "runs/a/report.html"}, {"clips_shown": 6}),
]


def test_a_run_is_a_table_with_few_notes_and_the_places_of_its_results():
    lines = run_text(RESULTS).splitlines()
    assert lines[:3] == [
        "prepare   12 used, 1 refused, 300 frames",
        "generate  6 jobs, 6 done",
        "label     6 labelled, idm held out mae 0.1235",
    ]
    assert (
        sum("- prepare: x" in line for line in lines) == 2 and "  - prepare: 7 more notes; --json prints all" in lines
    )
    assert "  - check: error 9" in lines and lines[-2:] == ["  lerobot-v3.0: runs/a/d", "  report: runs/a/report.html"]
    assert len(lines) < 25 and not any("=" in line for line in lines)


def test_a_run_of_one_stage_and_other_results_show_everything(capsys):
    show(RESULTS[:1], as_json=False)
    assert capsys.readouterr().out == result_text(RESULTS[0]) + "\n"
    demo = StageResult("demo", {"report": "here"}, {}, ["try next"])
    assert show([*RESULTS, demo], as_json=False) == 1
    assert capsys.readouterr().out == run_text(RESULTS) + "\n" + result_text(demo) + "\n"


@pytest.mark.parametrize(
    "per_hour, text",
    [(0.5, "0.5/h"), (42, "42/h"), (90, "1.5/min"), (3599, "60/min"), (3600, "1.0/s"), (104_400, "29/s"), (0, "0.0/h")],
)
def test_rates_are_in_a_unit_that_fits(per_hour, text):
    assert rate(per_hour) == text
