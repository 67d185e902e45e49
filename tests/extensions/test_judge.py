"""The judge of docs/extending/judge.md with a tiny real CLIP, and what curate does with any judge."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.curate.stage import curate
from dreamgen.errors import UserError
from dreamgen.extensions.judge import JUDGES, Judge, Judgment
from dreamgen.extensions.score import Metric, Threshold
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.curate.test_curate import moving_square, settings_of, static
from tests.extensions.conftest import ROOT
from tests.fixtures.documented import titled_blocks
from tests.generate.clips import write_generated_run

PAGE = "extending/judge.md"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP of the real classes with small random weights, as `save_pretrained` writes it."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": 32},
        vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    small = {"shortest_edge": 32}
    image_processor = CLIPImageProcessor(size=small, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def test_the_documented_judge_works_through_the_command(installed, result_of, tiny_clip, tmp_path):
    jobs = write_generated_run(tmp_path / "run", [moving_square(), moving_square(1), static()])
    out = ["--out", tmp_path / "run", "--model.path=mini", "--json"]
    dreamgen = installed(PAGE, CLIP_JUDGE_MODEL=str(tiny_clip), HF_HUB_OFFLINE="1")
    assert "--min_clip_similarity" in dreamgen("curate", "--help").stdout
    assert "clip" in dreamgen("curate", *out, "--judges=[clap]", status=2).stderr
    result = result_of(dreamgen("curate", *out, "--judges=[clip]"))
    assert result["figures"]["num_accepted"] == 2
    rows = pq.read_table(tmp_path / "run/scores/scores.parquet").to_pylist()
    assert [row["clip_version"] for row in rows] == [str(tiny_clip)] * 3
    assert rows[2]["clip_similarity"] is None, "a judge sees only what the scores accept"
    similarities = [row["clip_similarity"] for row in rows[:2]]
    assert all(-1 <= value <= 1 for value in similarities) and similarities[0] != similarities[1]
    assert rows[0]["clip_similarity_reason"] == "the last frame against 'push'"
    between = sum(similarities) / 2
    result = result_of(dreamgen("curate", *out, "--judges=[clip]", f"--min_clip_similarity={between}"))
    assert result["figures"]["num_accepted"] == 1
    records = read_journal(RunFolder(tmp_path / "run").journal, "curate")
    worse = records[jobs[int(np.argmin(similarities))].clip_id]
    assert worse.reason.startswith("does not show the instruction: CLIP similarity ")
    assert worse.metrics["clip_version"] == str(tiny_clip) and worse.metrics["min_clip_similarity"] == between


@pytest.mark.parametrize(("page", "module"), [(PAGE, "clip_judge"), ("extending/score.md", "sharpness")])
def test_a_documented_module_imports_nothing_heavy_for_help(page, module, tmp_path):
    (tmp_path / f"{module}.py").write_text(titled_blocks(page)[f"{module}.py"])
    code = f"import sys, {module}; sys.exit(', '.join({{'numpy', 'cv2', 'torch'}} & set(sys.modules)) or 0)"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


class Brightness:
    """A judge that is loaded once and counts the clips that it sees."""

    version = "brightness 1"
    num_loaded = 0

    def __init__(self, settings) -> None:
        Brightness.num_loaded += 1
        self.seen: list[str] = []

    def judge(self, video_THWC, instruction):
        self.seen.append(instruction)
        mean = float(video_THWC.mean())
        return {"brightness": Judgment(mean, "it is bright" if mean > 60 else "it is dark")}


METRIC = Metric(
    name="brightness", summary="mean of all pixels", rejection="brightness {value:.0f} < {limit:g}",
    threshold=Threshold(setting="min_brightness", default=60.0, help="mean of all pixels"),
)  # fmt: skip


@pytest.fixture
def brightness():
    """Register the judge for this process."""
    judge = Judge(name="bright", summary="mean of all pixels", metrics=(METRIC,), load=Brightness)
    JUDGES.register("bright", judge)
    Brightness.num_loaded = 0
    yield judge
    JUDGES.unregister("bright")


def judged(root, videos):
    jobs = write_generated_run(root, videos)
    result = curate(settings_of(root, judges=["bright"]))
    return result, [read_journal(RunFolder(root).journal, "curate")[job.clip_id] for job in jobs]


def test_a_judge_is_loaded_once_and_rejects_with_its_reason(brightness, tmp_path):
    result, (bright, dark) = judged(tmp_path, [moving_square(), moving_square() // 4])
    assert Brightness.num_loaded == 1 and result.metrics["num_rejected"] == 1
    assert bright.status == "ok" and bright.metrics["brightness_reason"] == "it is bright"
    assert dark.reason.startswith("brightness 3") and dark.reason.endswith("< 60 (it is dark)")
    assert {record.metrics["bright_version"] for record in (bright, dark)} == {"brightness 1"}


def test_equal_judgments_add_nothing_and_another_version_does(brightness, tmp_path, monkeypatch):
    judged(tmp_path, [moving_square()])
    size = sum(path.stat().st_size for path in (tmp_path / "journal").glob("curate-*"))
    curate(settings_of(tmp_path, judges=["bright"]))
    assert sum(path.stat().st_size for path in (tmp_path / "journal").glob("curate-*")) == size
    monkeypatch.setattr(Brightness, "version", "brightness 2")
    curate(settings_of(tmp_path, judges=["bright"]))
    (record,) = read_journal(RunFolder(tmp_path).journal, "curate").values()
    assert record.metrics["bright_version"] == "brightness 2"


def test_without_being_named_a_judge_is_neither_loaded_nor_in_the_table(brightness, tmp_path):
    write_generated_run(tmp_path, [moving_square()])
    result = curate(settings_of(tmp_path))
    assert Brightness.num_loaded == 0
    assert not any("bright" in name for name in pq.read_schema(result.outputs["scores"]).names)


def test_a_judge_that_raises_fails_its_clip_and_is_tried_again(brightness, tmp_path, monkeypatch):
    works = Brightness.judge
    monkeypatch.setattr(Brightness, "judge", lambda self, *_: 1 / 0)
    result, (record,) = judged(tmp_path, [moving_square()])
    assert result.partial and record.status == "failed" and "ZeroDivisionError" in record.error
    monkeypatch.setattr(Brightness, "judge", works)
    assert curate(settings_of(tmp_path, judges=["bright"])).metrics["num_accepted"] == 1


def test_a_judge_that_cannot_be_loaded_stops_curate_before_any_clip(brightness, tmp_path):
    def load(settings):
        raise UserError("the endpoint does not answer", next_step="start it")

    JUDGES.unregister("bright")
    JUDGES.register("bright", replace(brightness, load=load))
    write_generated_run(tmp_path, [moving_square()])
    with pytest.raises(UserError, match="does not answer"):
        curate(settings_of(tmp_path, judges=["bright"]))
    assert not (tmp_path / "scores").exists()


def test_an_unknown_judge_is_refused_with_those_that_exist(brightness, tmp_path):
    write_generated_run(tmp_path, [moving_square()])
    with pytest.raises(UserError, match="brihgt") as caught:
        curate(settings_of(tmp_path, judges=["brihgt"]))
    assert "bright" in str(caught.value)
