"""benchmarks/end_deviation.py on the demo's demonstrations."""

from __future__ import annotations

import json
import sys

import end_deviation

from dreamgen.demo.run import DATA


def test_real_clips_are_measured_against_others_of_their_task(tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.json"
    words = [
        "end_deviation.py",
        "--metaworld",
        str(DATA / "demonstrations"),
        "--num_demos",
        "4",
        "6",
        "--save",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(end_deviation, "LIMITS", (0.0, 2.0))
    end_deviation.main()
    few, enough = json.loads(out.read_text())["real"]
    assert (few["num"], few["rejected"]) == (0, [None] * 2), "four demonstrations do not say what is usual"
    assert enough["num"] == 6 * end_deviation.NUM_DRAWS and enough["rejected"][0] > 0.5 > enough["rejected"][1]
    assert "| drawer-open | 4 | 0 |" in capsys.readouterr().out
