"""Texts beyond the text encoder's 512 tokens: measured with the model's tokenizer, named, and refused where equal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dreamgen.config.settings import ModelSettings
from dreamgen.data.prompts import sample_prompt
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.mini import build_mini, byte_tokenizer
from dreamgen.models.cosmos_predict25.model import CosmosPredict25
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS, TYPE
from dreamgen.models.cosmos_predict25.text import cut_prompts
from dreamgen.models.prompt_length import check_prompt_lengths
from dreamgen.models.world_model import WorldModelType
from dreamgen.plan.stage import plan
from tests.fixtures.world import make_world, tiny_settings, tiny_sizes, write_pairs

SCENE = "A kitchen table with many things on it, seen from above, and a robot arm at its right. " * 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("model") / "world")


def tokens_of_the_pipeline(pipe, prompt):
    """What the pipeline itself gives its text encoder."""
    caught = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    with torch.no_grad():
        pipe.encode_prompt([prompt], do_classifier_free_guidance=False)
    return caught[0][0]


def test_what_is_measured_is_what_the_pipeline_reads():
    for prompt in (SCENE, "\u0152uvre \u7ea2\u8272 \U0001f7e5 " * 60, "x" * 2000):
        pipe = build_mini(tiny_sizes())
        (cut,) = cut_prompts(byte_tokenizer(), [prompt])
        read = tokens_of_the_pipeline(pipe, prompt)
        assert cut.tokens_read == read.numpy().tobytes() and cut.num_tokens > NUM_TEXT_TOKENS == cut.max_tokens
        text = pipe.tokenizer.decode(read)
        assert prompt[: cut.num_read - 1][-20:] in text[-22:] and 0 < cut.num_read < len(prompt)
        # One character more or less does not change what is read; one within does.
        (same,) = cut_prompts(byte_tokenizer(), [prompt[: cut.num_read + 1] + "something else " * 9])
        (other,) = cut_prompts(byte_tokenizer(), ["o" + prompt[1:]])
        assert same.tokens_read == cut.tokens_read != other.tokens_read


def test_no_prompt_that_is_taken_for_short_is_cut():
    prompt = "w" * TYPE.max_uncut_bytes
    assert TYPE.max_uncut_bytes == 312 and cut_prompts(byte_tokenizer(), [prompt]) == []


def test_the_model_is_asked_for_long_prompts_only(tmp_path, monkeypatch):
    """Its class comes with torch and diffusers, which take longer to import than most demonstrations to prepare."""
    model, asked = ModelSettings(path="mini-random", revision=None), []
    monkeypatch.setattr(WorldModelType, "load_class", lambda kind: asked.append(kind) or CosmosPredict25)
    for character, num_bytes in (("w", 1), ("\u00e9", 2), ("\u0958", 6)):  # the last one is two when it is composed
        num = TYPE.max_uncut_bytes // num_bytes
        assert check_prompt_lengths(model, tmp_path / "none", {character * num: "short.txt"}, False) == [] and not asked
        assert check_prompt_lengths(model, tmp_path / "none", {character * (num + 1): "long.txt"}, False) == []
        assert asked.pop() == TYPE


def test_short_texts_are_checked_without_torch(tmp_path):
    """Also a run folder on a disk is read without what an object store needs."""
    (tmp_path / "made_from").mkdir()
    code = """
import sys
from pathlib import Path
from dreamgen.config.settings import ModelSettings
from dreamgen.models.prompt_length import check_prompt_lengths
from dreamgen.run.store import Store
import dreamgen.prepare.stage
folder = Path(sys.argv[1])
assert check_prompt_lengths(ModelSettings(path="mini"), folder / "model", {"push the block": "1.txt"}, False) == []
assert not Store(str(folder)).has("jobs.parquet")
assert not {"torch", "transformers", "diffusers", "fsspec"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_texts_that_become_equal_are_refused_and_others_named(tmp_path):
    model = ModelSettings(path="mini-random", revision=None)

    def checked(*prompts):
        return check_prompt_lengths(model, tmp_path / "none", {p: f"{i}.txt" for i, p in enumerate(prompts)}, False)

    assert checked("push the block", "open the drawer") == []
    (note,) = checked(SCENE + "Pick up the cup.", "push the block")
    assert note.startswith("text cut: 0.txt: ") and "of which 512 are read" in note and 'Pick up the cup."' in note
    with pytest.raises(UserError, match=r"2 different texts become the same[\s\S]*0\.txt[\s\S]*1\.txt"):
        checked(SCENE + "Pick up the cup.", SCENE + "Open the drawer.", "push the block")
    assert len(checked(*(f"{number} {SCENE}" for number in range(9)))) == 6


def test_plan_names_cut_texts_and_refuses_equal_ones(tmp_path, world):
    pairs = write_pairs(tmp_path / "pairs", 2)
    (pairs / "scene_0.txt").write_text(SCENE + "Pick up the cup.")
    settings = tiny_settings(tmp_path / "run", world, pairs)
    assert any("text cut" in note and "scene_0.png" in note for note in plan(settings, dry_run=True).notes)
    (pairs / "scene_1.txt").write_text(SCENE + "Open the drawer.")
    with pytest.raises(UserError, match="become the same"):
        plan(settings)
    assert not (tmp_path / "run/jobs.parquet").exists()


def test_a_text_that_becomes_one_that_was_planned_before_is_refused(tmp_path, world):
    pairs = write_pairs(tmp_path / "pairs", 1)
    settings, text = tiny_settings(tmp_path / "run", world, pairs), pairs / "scene_0.txt"
    text.write_text(SCENE + "Pick up the cup.")
    assert plan(settings).metrics["num_new"] == 1
    assert plan(settings).metrics["num_new"] == 0, "the same text again is the same job"
    text.write_text(SCENE + "Open the drawer.")
    with pytest.raises(UserError, match=r"become the same[\s\S]*planned before") as refused:
        plan(settings)
    assert "scene_0.png" in str(refused.value)
    text.write_text("Open the drawer. " + SCENE)
    assert plan(settings).metrics["num_new"] == 1


def test_a_negative_prompt_is_measured_too(tmp_path, world):
    settings = tiny_settings(tmp_path / "run", world, write_pairs(tmp_path / "pairs", 1))
    settings = replace(settings, plan=replace(settings.plan, negative_prompt=SCENE + "blurred"))
    assert [note.partition(":")[2].split(":")[0] for note in plan(settings, dry_run=True).notes if "cut" in note] == [
        " plan.negative_prompt"
    ]


def test_sample_prompts_are_short():
    prompt = "push the block " * 100
    assert sample_prompt("push the block") == "push the block"
    assert sample_prompt(prompt) == prompt[:300] + "..."
