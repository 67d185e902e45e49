"""The checker on garbage, on real data, and as a stage; test_check_defects has each kind of damage."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from dreamgen.errors import UserError
from export import workers
from export.check import check, check_stage
from tests.fixtures.damage import DATA30, EPISODES30, INFO, VIDEO21
from tests.fixtures.damaging import all_of, in_json, swap_with
from tests.fixtures.good_datasets import CAMERAS, lerobot_v30

V30, V21 = "lerobot-v3.0", "lerobot-v2.1"


@pytest.mark.parametrize("dataset", [V30, V21])
def test_garbage_in_metadata_gives_findings_not_tracebacks(copy_of, dataset):
    root = copy_of(dataset)
    for file in sorted((root / "meta").glob("*.json*")):
        good = file.read_text()
        for text in ("", "null", '{"action": 3}', "\x00", "[" * 100_000, good[: len(good) // 2]):
            file.write_text(text)
            assert any(finding.severity == "error" for finding in check(root)), (file.name, text[:20])
        file.write_text(good)
    info = root / "meta/info.json"
    good = info.read_text()
    for key in json.loads(good):
        for value in (None, [], -1, "x", 1e300, {"x": {"dtype": "video", "shape": []}}):
            in_json(key, value=value)(info)
            check(root)
            info.write_text(good)
    assert check(root) == []


def test_garbage_in_lines_gives_findings_not_tracebacks(copy_of):
    root = copy_of(V21)
    for file in ("episodes.jsonl", "episodes_stats.jsonl", "tasks.jsonl", "modality.json", "stats.json"):
        path = root / "meta" / file
        good = path.read_text()
        row = json.loads(good.splitlines()[0]) if file.endswith("l") else json.loads(good)
        for key in row:
            for value in (None, [[1]], "x", 1.5, {"action": {"mean": "x"}}):
                path.write_text(json.dumps({**row, key: value}))
                assert check(root), (file, key, value)
        path.write_text(good)


def test_garbage_in_v30_tables_gives_findings_not_tracebacks(copy_of):
    root = copy_of(V30)
    for file in ("meta/tasks.parquet", EPISODES30, DATA30):
        path = root / file
        good, table = path.read_bytes(), pq.read_table(path)
        for name in (name for name in table.column_names if not name.startswith(("stats/", "meta/"))):
            place, rows = table.column_names.index(name), table.num_rows
            for values in (pa.nulls(rows), pa.array(["x"] * rows), pa.array([[1.5]] * rows), None):
                changed = table.remove_column(place)
                pq.write_table(changed if values is None else changed.append_column(name, values), path)
                assert any(finding.severity == "error" for finding in check(root)), (file, name, values)
        path.write_bytes(good)


def test_a_damaged_column_of_statistics_is_found_and_the_others_are_compared(tmp_path):
    root = lerobot_v30(tmp_path / "dataset", cameras=CAMERAS[:1], lengths=(5, 9))
    path = root / EPISODES30
    good, metadata = path.read_bytes(), pq.read_metadata(path).row_group(0)
    columns = [metadata.column(place) for place in range(metadata.num_columns)]
    all_of("action", lambda values: [2 * value for value in values])(root / DATA30)
    for column in columns:
        name = "/".join(column.path_in_schema.split("/")[:3]).split(".list.")[0]
        if not name.startswith("stats/"):
            continue
        start = column.dictionary_page_offset or column.data_page_offset
        path.write_bytes(good[:start] + b"\xff" * column.total_compressed_size
                         + good[start + column.total_compressed_size :])  # fmt: skip
        found = check(root)
        texts = [str(finding) for finding in found if finding.severity == "error" and finding.where == name]
        is_read = not name.startswith(("stats/timestamp", "stats/index", "stats/frame_index", "stats/task_index",
                                       "stats/episode_index")) or texts  # fmt: skip
        assert not is_read or len(texts) == 1, (name, [str(f) for f in found])
        assert any(f.code == "episode-statistics-differ" for f in found), "what can be read is compared"


def test_real_demonstrations(real_demos):
    found = {(finding.severity, finding.code): str(finding) for finding in reversed(check(real_demos))}
    texts = "\n".join(str(finding) for finding in check(real_demos))
    assert "observation.images.egoview" in found["error", "camera-without-files"]
    assert "0.050000" in found["error", "timestamp"]
    assert "0:100" in found["error", "wrong-split"]
    assert "total_videos: 2" in texts and "total_chunks: 0" in texts and "'valid'" in texts
    assert ("warning", "float64") in found
    assert {code for severity, code in found if severity == "error"} == {
        "camera-without-files",
        "timestamp",
        "wrong-split",
    }


def test_stage_counts_and_lists(copy_of):
    root = copy_of(V30)
    good = check_stage(root)
    clean = {"num_errors": 0, "num_warnings": 0, "manifest": False, "findings": [], "changes": []}
    assert good.metrics == {**clean, "decoded": True} and "no manifest.sha256" in good.notes[0]
    in_json("total_frames", value=1)(root / INFO)
    bad = check_stage(root)
    assert bad.metrics["num_errors"] == 1
    finding = json.loads(json.dumps(bad.metrics["findings"]))[0]
    assert finding["file"] == "meta/info.json" and finding["value"] == "1" and finding["expected"].startswith("49")
    assert finding["consequence"] and "total_frames" in bad.notes[1]


def test_what_is_no_dataset_is_a_users_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError):
            check(path)


def test_processes_find_what_one_finds(copy_of, monkeypatch):
    monkeypatch.setattr(workers, "START_AFTER_S", 0.0)
    root = copy_of(V21)
    swap_with("episode_000004.mp4")(root / VIDEO21)
    alone = check(root, num_workers=1)
    assert alone and check(root, num_workers=2) == alone


def test_findings_of_a_kind_are_counted_beyond_those_shown(tmp_path):
    root = lerobot_v30(tmp_path / "dataset", cameras=(), lengths=(2,) * 30)
    all_of("timestamp", lambda time_s: time_s + 1)(root / DATA30)
    result = check_stage(root)
    assert result.metrics["num_errors"] == 30 and len(result.metrics["findings"]) == 21
    assert "10 more of this kind" in result.notes[-1]


def test_command(copy_of, capsys):
    root = copy_of(V30)
    assert main(["check", str(root), "--json", "--fast", "--num_workers", "1"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    clean = {"num_errors": 0, "num_warnings": 0, "manifest": False, "findings": [], "changes": []}
    assert printed["figures"] == {**clean, "decoded": False}
    in_json("total_frames", value=1)(root / INFO)
    assert main(["check", str(root), "--num_workers=1"]) == 1
    assert "[wrong-total] meta/info.json, total_frames: 1; expected 49" in capsys.readouterr().out
    for words in ([], [str(root), "--deep"], [str(root), "--num_workers=0"], [str(root / "nothing")]):
        assert main(["check", *words]) == 2
        assert "error:" in capsys.readouterr().err
