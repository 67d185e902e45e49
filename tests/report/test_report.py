"""The run's page: whole and self-contained, data escaped, every clip with its video, right counts, also half-way."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.errors import UserError
from dreamgen.extensions.score import SCORES
from dreamgen.report import report
from dreamgen.report.gather import Clip, gather
from dreamgen.report.page import _measures, choose_clips
from dreamgen.report.plots import action_strips, loss_curve
from dreamgen.report.stages import stage_states
from dreamgen.run.files import write_json
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from dreamgen.stages import STAGES
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
            if name in attributes:
                assert attributes[name].startswith("data:"), (tag, name)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert not re.search(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}""", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.text))
    assert "@import" not in page.text
    assert "url(" not in page.text
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_text_from_data_is_escaped(page):
    assert len(page.all("script")) == 1, "only the page's own"
    shown = {text for _, text in page.all("p", "instruction")}
    assert set(INSTRUCTIONS) <= shown, "the reader sees the instruction as it was written"
    assert "<script>alert(1)" not in page.text
    assert "<b>the</b>" not in page.text
    assert any("<b>c.mp4</b> is damaged" in text for _, text in page.all("td"))


def test_script_matches_the_hash_that_the_policy_allows(page):
    ((_, script),) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.text


def test_every_clip_shown_has_its_own_video_and_first_frame(finished, page):
    videos = page.all("video")
    jobs = {job.clip_id[:8]: job for job in read_jobs(finished.jobs)}
    ids = [text for attributes, text in page.all("span") if "title" in attributes]
    assert len(videos) == len(ids) == 5
    for (attributes, _), short_id in zip(videos, ids, strict=True):
        path = finished.clip_file(jobs[short_id].clip_id)
        assert base64.b64decode(attributes["src"].removeprefix("data:video/mp4;base64,")) == path.read_bytes()
        jpeg = base64.b64decode(attributes["poster"].removeprefix("data:image/jpeg;base64,"))
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (32, 48, 3)
        assert attributes["aria-label"] == jobs[short_id].instruction
        assert {"controls", "loop", "muted", "playsinline"} <= set(attributes)
        assert attributes["preload"] == "none"


def test_counts_and_verdicts(page):
    tiles = page.tiles()
    assert tiles["Demonstrations used"] == ("2", "1 refused")
    assert tiles["Steps trained"] == ("20", "last loss 0.25")
    assert tiles["Clips generated"] == ("5", "of 6 planned · 1 failed")
    assert tiles["Clips accepted"] == ("4", "1 rejected · 80% pass")
    assert tiles["Held-out action error"] == ("0.0625", "guessing the mean: 0.25")
    assert tiles["Episodes exported"] == ("4", "in 3 formats")
    verdicts = [attributes["data-verdict"] for attributes, _ in page.all("article")]
    assert verdicts == ["accepted"] * 4 + ["rejected"]
    assert len(page.all("p", "reason")) == 1
    assert "is below min_motion" in page.all("p", "reason")[0][1]
    assert len([a for a, _ in page.all("svg") if a["aria-label"].startswith("Predicted actions: 5 of 5")]) == 5
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
    assert page.all("video") == []
    assert [text for _, text in page.all("aside", "unfinished")] == [
        "This run is not finished. prepare: no training set. Continue with dreamgen prepare --demos PATH --out empty"
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
    assert [attributes["data-verdict"] for attributes, _ in page.all("article")] == ["not judged"]
    assert "No actions recovered" in page.text
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
    assert len(page.all("article")) == 3
    assert len(page.all("video")) == 2
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
    assert len(page_of(run).all("article")) == 3

    run.jobs.write_bytes(b"not parquet")
    assert any("jobs.parquet" in text for _, text in page_of(run).all("aside", "broken"))


def test_clips_too_large_to_embed_are_linked_beside_the_page(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    monkeypatch.setattr("dreamgen.report.page.MAX_EMBEDDED_BYTES", 100)
    page = page_of(run)
    sources = [attributes["src"] for attributes, _ in page.all("video")]
    assert {(run.root / source).resolve() for source in sources} == {
        run.clip_file(job.clip_id).resolve() for job in read_jobs(run.jobs)
    }
    assert "keep this page in its run folder" in page.text


def test_page_is_replaced_whole(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    before = sorted(path.name for path in run.root.iterdir())
    page_of(run)
    first = run.report.read_text()
    page_of(run)
    assert run.report.read_text() == first
    assert sorted(path.name for path in run.root.iterdir()) == sorted([*before, "report.html"])


@pytest.mark.parametrize(
    ("accepted", "rejected", "waiting", "max_clips", "expected"),
    [
        (30, 10, 0, 8, (6, 2)),
        (100, 1, 0, 10, (9, 1)),
        (3, 2, 5, 24, (3, 2)),
        (0, 50, 0, 4, (0, 4)),
        (5, 5, 0, 0, (0, 0)),
        (9, 9, 0, 1, (1, 0)),
    ],
)
def test_clips_are_chosen_in_their_share(finished, accepted, rejected, waiting, max_clips, expected):
    job = read_jobs(finished.jobs)[0]
    video = finished.clip_file(job.clip_id)

    def clips(number, verdict, path):
        return [Clip(replace(job, seed=i), verdict, (), {}, path, None) for i in range(number)]

    run = [*clips(accepted, "accepted", video), *clips(rejected, "rejected", video), *clips(waiting, "waiting", None)]
    chosen = choose_clips(run, max_clips)
    assert tuple(sum(c.verdict == v for c in chosen) for v in ("accepted", "rejected")) == expected
    assert len({(c.verdict, c.job.seed) for c in chosen}) == len(chosen), "none twice"
    seeds = [c.job.seed for c in chosen if c.verdict == "accepted"]
    assert seeds == sorted(seeds)
    if len(seeds) > 1:
        assert (seeds[0], seeds[-1]) == (0, accepted - 1)


def test_action_strips_draw_only_what_moves_most():
    action_TA = np.zeros((20, 44))
    for dim in range(30, 42):
        action_TA[:, dim] = np.linspace(0, dim / 100, 20)
    names = [f"joint <{dim}> with a very long name" for dim in range(44)]
    page = Page(str(action_strips(action_TA, names, fps=10)))
    assert len(page.all("polyline")) == 8
    assert [text for _, text in page.all("title")] == names[34:42], "the eight that move most, in order"
    assert all(len(text) < 60 for _, text in page.all("text"))
    assert "1.9 s" in [text for _, text in page.all("text")]
    top, bottom = page.all("polyline")[0][0]["points"].split()[-1], page.all("polyline")[0][0]["points"].split()[0]
    assert float(top.split(",")[1]) < float(bottom.split(",")[1]), "larger values are drawn higher"
    assert "action 41" in str(action_strips(action_TA, (), fps=10))
    assert "moves" in str(action_strips(np.ones((20, 3)), names, fps=10))
    assert len(Page(str(action_strips(action_TA[:1] + np.eye(1, 44), names, fps=10))).all("polyline")) == 0


def test_loss_curve_survives_what_logs_hold():
    page = Page(str(loss_curve(range(10, 5010, 10), 1 / np.arange(1, 501))))
    raw, mean = page.all("polyline")
    assert len(raw[0]["points"].split()) == len(mean[0]["points"].split()) == 500
    assert "nan" not in str(loss_curve([1, 2, 3], [1.0, float("nan"), 0.5])).lower()
    assert "nothing to draw" in str(loss_curve([1], [1.0]))
    assert len(Page(str(loss_curve([1, 2, 3], [0.5, 0.5, 0.5]))).all("polyline")) == 2


def test_numbers_of_curate_come_from_its_records_and_their_words_from_the_registries():
    recorded = {
        "num_frames": 33, "wanted_num_frames": 33, "motion": 1.25, "min_motion": 0.5, "first_frame_psnr_db": 21.04,
        "min_first_frame_psnr_db": 15.0, "sharpness": 7.0, "max_sharpness": None, "likes_version": "v1", "likes": 2,
        "min_likes": 1.0, "likes_reason": "the cup is lifted", "cut_score": None, "max_cut_score": 6.0,
    }  # fmt: skip
    measures = {measure.name: measure for measure in _measures(recorded)}
    assert list(measures) == ["motion", "first frame PSNR", "sharpness", "likes"]
    assert (measures["motion"].value, measures["motion"].limit) == ("1.25", "min 0.5")
    assert measures["first frame PSNR"].value == "21 dB"
    assert measures["motion"].about == SCORES.get("motion").summary
    assert (measures["sharpness"].limit, measures["sharpness"].about) == ("", ""), "its package is not installed"
    assert measures["likes"].about == "the cup is lifted"


def test_the_page_lists_the_stages_of_the_table(page):
    names = [stage.name for stage in STAGES.values() if stage.progress]
    assert [text.split()[0] for _, text in page.all("b") if text in names] == [name.split()[0] for name in names]
