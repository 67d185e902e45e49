"""The run's page: whole and self-contained, data escaped, every clip with its video, right counts, also half-way."""

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.errors import UserError
from dreamgen.report import report
from dreamgen.report.gather import gather
from dreamgen.report.plots import loss_curve
from dreamgen.report.stages import stage_states
from dreamgen.run.files import write_json
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from dreamgen.stages import STAGES
from export import export_datasets
from tests.fixtures.runs import INSTRUCTIONS, make_run, run_settings

VOID = {"meta", "link", "img", "br", "hr", "input", "line", "polyline"}


class Page(HTMLParser):
    """Elements of a page with their attributes and their text; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements, self._open = text, [], []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self._open.append((tag, self.elements[-1]))

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        for _, element in self._open:
            element[2] += data

    def all(self, tag, css_class=None):
        return [
            (attributes, text)
            for name, attributes, text in self.elements
            if name == tag and (css_class is None or css_class in (attributes.get("class") or "").split())
        ]

    def data(self, name):
        """What the script reads from the data element of this id."""
        ((_, text),) = [element for element in self.all("script") if element[0].get("id") == name]
        return json.loads(text)

    def details(self):
        """Reasons, notes and curves of all listed clips, in their order."""
        packs = [base64.b64decode(text) for _, text in self.all("script", "pack")]
        return [clip for pack in packs for clip in json.loads(zlib.decompress(pack))]

    def tiles(self):
        labels, values, contexts = (self.all("p", name) for name in ("label", "value", "context"))
        return {
            label[1]: (value[1], context[1]) for label, value, context in zip(labels, values, contexts, strict=True)
        }


def page_of(run: RunFolder) -> Page:
    result = report(run_settings(run.root))
    assert result.outputs == {"report": run.report}
    return Page(run.report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of five clips, one rejected, and a failed sixth, with training log, adapter and datasets."""
    run = make_run(tmp_path_factory.mktemp("report") / "my-run", num_clips=5, rejected=1, failed=1)
    run.finetune_logs.mkdir()
    (run.finetune_logs / "loss.csv").write_text(
        "step,loss,learning_rate,grad_norm,seconds\n10,0.5,1e-4,1,1\n20,0.25,1e-4,1,2\n"
    )
    run.adapter.mkdir()
    (run.adapter / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (run.train / "metadata.csv").write_text("file_name,prompt\n")
    (run.train / "summary.csv").write_text(
        "source,name,status,detail\nepisode 0,a,used,\nepisode 1,b,changed,20 -> 16 fps\n"
        "episode 2,c,refused,<b>c.mp4</b> is damaged\n"
    )
    action = {"mae": 0.0625, "baselines": {"mean": {"mae": 0.25}}}
    write_json(run.idm / "config.json", {"horizon": 4, "held_out": {"how": "1 episode", "action": action}})
    write_json(run.datasets / "lerobot-v3.0" / "meta" / "info.json", {"total_episodes": 4})
    write_json(run.datasets / "lerobot-v2.1" / "meta" / "info.json", {"total_episodes": 4})
    (run.datasets / "robomimic").mkdir()
    with h5py.File(run.datasets / "robomimic" / "demos.hdf5", "w") as file:
        for i in range(4):
            file.create_group(f"data/demo_{i}")
    return run


@pytest.fixture(scope="module")
def page(finished):
    return page_of(finished)


def test_page_is_well_formed_and_loads_nothing_from_elsewhere(page):
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "poster", "action", "srcset", "data"):
            assert name not in attributes, (tag, name)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.text).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}""", without_data)
    assert "@import" not in page.text
    assert "url(" not in page.text
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_text_from_data_is_escaped(page):
    kinds = [attributes.get("type") for attributes, _ in page.all("script")]
    assert kinds == ["application/json"] * 2 + ["text/plain"] + [None], "data, and the page's own script"
    assert set(page.data("listing")["instructions"]) == set(INSTRUCTIONS), "the reader sees what was written"
    assert "<script>alert(1)" not in page.text
    assert "<b>the</b>" not in page.text
    assert any("<b>c.mp4</b> is damaged" in text for _, text in page.all("td"))


def test_script_matches_the_hash_that_the_policy_allows(page):
    ((_, script),) = [element for element in page.all("script") if "type" not in element[0]]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.text


def test_every_clip_shown_has_its_own_video_and_first_frame(finished, page):
    ids, media = page.data("listing")["ids"], page.data("media")
    assert len(ids) == len(media) == 5
    for clip_id, own in zip(ids, media, strict=True):
        assert base64.b64decode(own["source"].removeprefix("data:video/mp4;base64,")) == (
            finished.clip_file(clip_id).read_bytes()
        )
        jpeg = base64.b64decode(own["poster"].removeprefix("data:image/jpeg;base64,"))
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (32, 48, 3)


def test_counts_and_verdicts(page):
    tiles = page.tiles()
    assert tiles["Demonstrations used"] == ("2", "1 refused")
    assert tiles["Steps trained"] == ("20", "last loss 0.25")
    assert tiles["Clips generated"] == ("5", "of 6 planned · 1 failed")
    assert tiles["Clips accepted"] == ("4", "1 rejected · 80% pass")
    assert tiles["Held-out action error"] == ("0.0625", "guessing the mean: 0.25")
    assert tiles["Episodes exported"] == ("4", "in 3 formats")
    assert page.data("listing")["verdicts"] == ["accepted"] * 4 + ["rejected"]
    reasons = [clip["reasons"] for clip in page.details()]
    assert reasons[:4] == [[]] * 4 and "is below min_motion" in reasons[4][0]
    assert [clip["curves"]["dims"] for clip in page.details()] == [[0, 1, 2, 3, 4]] * 5
    assert len([a for a, _ in page.all("svg") if a["aria-label"].startswith("Training loss")]) == 1
    ((_, failure),) = page.all("details", "failure")
    assert "RuntimeError: out of memory" in failure
    assert "Traceback: out of memory" in failure
    assert "attempt 3" in failure


def test_settings_of_every_section_are_listed(page):
    rows = dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", page.text))
    assert rows["path"] == "mini-random"
    assert rows["lora.rank"] == "32"
    assert rows["safety_checker"] == "no"
    assert rows["demos"] == "not set"


def test_mini_model_and_missing_guardrail_are_shown_at_the_top(finished, tmp_path):
    notices = " ".join(text for _, text in page_of(finished).all("aside"))
    assert "untrained" in notices
    run = make_run(tmp_path / "real", num_clips=2, rejected=0)
    jobs = [replace(job, model="nvidia/Cosmos-Predict2.5-2B@post-trained") for job in read_jobs(run.jobs)]
    write_jobs(run.jobs, jobs)
    records = read_journal(run.journal, "generate").values()
    for guarded, expected in ((True, False), (False, True)):
        with Journal(run.journal, "generate") as journal:
            for record in records:
                journal.append(replace(record, time_s=0.0, metrics={**record.metrics, "safety_checker": guarded}))
        notices = " ".join(text for _, text in page_of(run).all("aside"))
        assert "untrained" not in notices
        assert ("safety checker was off" in notices) is expected


def test_actions_no_better_than_the_mean_are_shown_at_the_top(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    for mae, expected in ((0.3, True), (0.1, False)):
        action = {"mae": mae, "baselines": {"mean": {"mae": 0.25}}}
        write_json(run.idm / "config.json", {"held_out": {"action": action}})
        notices = " ".join(text for _, text in page_of(run).all("aside"))
        assert ("no better than a guess" in notices) is expected


def test_run_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        report(run_settings(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_incomplete_run_gets_a_page_that_lists_what_is_missing(tmp_path):
    whole = make_run(tmp_path / "whole", num_clips=3, rejected=0)
    empty = RunFolder(tmp_path / "empty")
    empty.root.mkdir()
    page = page_of(empty)
    assert page.data("listing")["ids"] == []
    assert [text for _, text in page.all("aside", "unfinished")] == [
        f"This run is not finished. prepare: no training set. Continue with dreamgen prepare --demos PATH "
        f"--out {empty.root.name}"
    ]
    assert {value for value, _ in page.tiles().values()} == {"–"}

    planned = RunFolder(tmp_path / "planned")
    planned.root.mkdir()
    planned.jobs.write_bytes(whole.jobs.read_bytes())
    assert page_of(planned).tiles()["Clips generated"] == ("0", "of 3 planned · 0 failed")
    states = {stage.name: stage.state for stage in stage_states(gather(planned))}
    assert states["plan"] == "done"
    assert states["generate"] == states["label"] == states["curate"] == "missing"

    first = read_jobs(whole.jobs)[0]
    video = planned.clip_file(first.clip_id)
    video.parent.mkdir(parents=True)
    video.write_bytes(whole.clip_file(first.clip_id).read_bytes())
    with Journal(planned.journal, "generate") as journal:
        journal.append(JournalRecord(first.clip_id, "generate", "ok"))
    page = page_of(planned)
    assert page.data("listing")["verdicts"] == ["not judged"]
    assert page.details()[0]["curves"] is None
    states = {stage.name: (stage.state, stage.detail) for stage in stage_states(gather(planned))}
    assert states["generate"] == ("part", "1 of 3 clips")
    result = report(run_settings(planned.root))
    assert f"generate: 1 of 3 clips; dreamgen generate --out {planned.root}" in result.notes


def test_damaged_files_cost_their_part_and_not_the_page(tmp_path):
    run = make_run(tmp_path / "run", num_clips=4, rejected=0)
    first, second, third, _ = read_jobs(run.jobs)
    run.clip_file(first.clip_id).write_bytes(b"not a video")
    run.label_file(second.clip_id).write_bytes(b"not parquet")
    run.clip_file(third.clip_id).unlink()
    (run.idm / "config.json").write_text("{")
    write_json(run.train / "features.json", {"robot_type": "x"})
    page = page_of(run)
    assert page.data("listing")["ids"] == [job.clip_id for job in read_jobs(run.jobs) if job != third]
    assert [own["source"] is not None for own in page.data("media")] == [False, True, True]
    broken = [text for _, text in page.all("aside", "broken")]
    assert len(broken) == 4
    for path in (run.clip_file(first.clip_id), run.label_file(second.clip_id), run.idm / "config.json"):
        assert any(path.name in text for text in broken)
    assert any("features.json" in text for text in broken)
    assert "1 clip has a verdict and no video" in page.text

    for rows in ([None, [1.0]], [["a"], ["b"]], [[1.0], [1.0, 2.0]], []):
        pq.write_table(pa.table({"action": pa.array(rows)}), run.label_file(second.clip_id))
        assert any(run.label_file(second.clip_id).name in text for _, text in page_of(run).all("aside", "broken"))
    whole = pa.table({"action": [[float(i), float(i % 7)] for i in range(500)]})
    pq.write_table(whole, run.label_file(second.clip_id), compression="snappy")
    data = run.label_file(second.clip_id).read_bytes()
    run.label_file(second.clip_id).write_bytes(data[:4] + bytes(b ^ 0xFF for b in data[4:200]) + data[200:])
    assert any(run.label_file(second.clip_id).name in text for _, text in page_of(run).all("aside", "broken"))
    (run.scores / "scores.parquet").write_bytes(b"not parquet")
    assert len(page_of(run).data("listing")["ids"]) == 3

    run.jobs.write_bytes(b"not parquet")
    assert any("jobs.parquet" in text for _, text in page_of(run).all("aside", "broken"))


def test_clips_too_large_to_embed_are_linked_beside_the_page(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    monkeypatch.setattr("dreamgen.report.listing.MAX_EMBEDDED_BYTES", 100)
    page = page_of(run)
    assert page.data("media") is None
    assert page.data("listing")["ids"] == [job.clip_id for job in read_jobs(run.jobs)]
    assert "keep this page in its run folder" in page.text


def test_page_is_replaced_whole(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    before = sorted(path.name for path in run.root.iterdir())
    page_of(run)
    first = run.report.read_text()
    page_of(run)
    assert run.report.read_text() == first
    assert sorted(path.name for path in run.root.iterdir()) == sorted([*before, "report.html"])


def test_loss_curve_survives_what_logs_hold():
    page = Page(str(loss_curve(range(10, 5010, 10), 1 / np.arange(1, 501))))
    raw, mean = page.all("polyline")
    assert len(raw[0]["points"].split()) == len(mean[0]["points"].split()) == 500
    assert "nan" not in str(loss_curve([1, 2, 3], [1.0, float("nan"), 0.5])).lower()
    assert "nothing to draw" in str(loss_curve([1], [1.0]))
    assert len(Page(str(loss_curve([1, 2, 3], [0.5, 0.5, 0.5]))).all("polyline")) == 2


def test_no_path_of_the_machine_is_on_the_page(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, rejected=1, failed=1)
    settings = run_settings(run.root, export={"append_to": "/srv/data sets/real"}, finetune={"cache_dir": "/srv/cache"})
    run.record(replace(settings, demos="/home/ann/demos/pick"), ["prepare", "finetune", "export"])
    first, *_ = read_jobs(run.jobs)
    with Journal(run.journal, "curate") as journal:
        reason = f"not decodable: {run.clip_file(first.clip_id)} is cut off"
        journal.append(JournalRecord(first.clip_id, "curate", "rejected", reason=reason))
    with Journal(run.journal, "generate") as journal:
        traceback = f'File "/usr/lib/python3/site-packages/torch/a.py", line 3\n  open("{run.texts}/a.safetensors")'
        failed = read_jobs(run.jobs)[-1].clip_id
        journal.append(JournalRecord(failed, "generate", "failed", error="OSError: /mnt/x y/z", traceback=traceback))
    run.label_file(first.clip_id).write_bytes(b"not parquet")
    page = page_of(run)
    shown = page.text + json.dumps(page.details(), ensure_ascii=False)
    for private in (str(tmp_path), "/home", "ann/", "/srv", "/usr", "/mnt", "site-packages"):
        assert private not in shown, private
    rows = dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", page.text))
    assert (rows["out"], rows["demos"], rows["cache_dir"]) == ("run", "pick", "cache")
    assert "…/a.py" in page.text and "run/texts/a.safetensors" in page.text
    assert page.details()[0]["reasons"] == [
        f"not decodable: run/clips/{first.clip_id[:2]}/{first.clip_id}.mp4 is cut off"
    ]


def test_the_page_lists_the_stages_of_the_table(page):
    names = [stage.name for stage in STAGES.values() if stage.progress]
    assert [text.split()[0] for _, text in page.all("b") if text in names] == [name.split()[0] for name in names]


def test_what_is_out_of_date_is_shown_with_its_reason_and_command(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, rejected=0)
    settings = run_settings(run.root, export={"formats": ["robomimic"]})
    run.record(settings, ["export"])
    export_datasets(settings)
    assert "out of date" not in page_of(run).text
    first = read_jobs(run.jobs)[0].clip_id
    with Journal(run.journal, "curate") as journal:
        journal.append(JournalRecord(first, "curate", "rejected", reason="cut_score 0.3 > 0.1"))
    (export,) = [stage for stage in stage_states(gather(run)) if stage.name == "export"]
    assert export.state == "part" and "datasets/robomimic is out of date: " in export.detail
    assert export.command == f"dreamgen export --out {run.root} --overwrite"
    assert "datasets/robomimic is out of date" in page_of(run).text
