"""The card says what a hub and a reader want to know; an upload that cannot work is refused before the training."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dreamgen.errors import Problems, UserError
from dreamgen.models.adapter_files import WEIGHTS_NAME
from dreamgen.models.world_model import WorldModelSource
from finetune import finetune
from finetune.card import NUM_ROWS, adapter_card, loss_plot, spread, write_card
from finetune.hub import check_can_push, push_adapter
from tests.finetune.conftest import training_settings, write_training_set

HUB = WorldModelSource("owner/base@r1", "owner/base", "r1", "owner/base@r1")
COUNTS = {"num_clips": 3, "num_windows": 12, "num_samples": 40, "num_epochs": 13.33}


def write_logs(run, num_lines=50):
    (run / "finetune").mkdir(parents=True)
    losses = [f"{10 * (n + 1)},{2 / (n + 1)}" for n in range(num_lines)]
    (run / "finetune/loss.csv").write_text("step,loss\n" + "\n".join(losses) + "\n")
    rows = [f"{step},{sigma},{sigma + 1 / (step + 1)}" for step in (0, 250, 500) for sigma in (0.2, 0.95)]
    (run / "finetune/validation.csv").write_text("step,sigma,loss\n" + "\n".join(rows) + "\n")


def tables(card):
    """Return a Markdown text's tables as lists of rows of cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", card, re.M)]
    starts = [n - 1 for n, row in enumerate(rows) if set("".join(row)) == {"-"}]
    return [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def test_the_card_has_a_hubs_front_matter_curves_and_settings(tmp_path, world):
    settings = training_settings(tmp_path, world, finetune={"validation_clips": 1, "cache_dir": "/secret/place"})
    write_logs(tmp_path)
    (tmp_path / "new").mkdir()
    write_card(tmp_path / "new", settings, HUB, "cuda", COUNTS, 0.04)
    card = (tmp_path / "new/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "owner/base" and front["base_model_relation"] == "adapter"
    assert (
        front["library_name"] == "diffusers" and front["pipeline_tag"] == "image-to-video" and "lora" in front["tags"]
    )
    facts, training, validation = tables(card)
    assert ["clips held out", "1"] in facts and ["validation loss", f"{0.575 + 1 / 501:.6f}"] in facts
    assert len(training) == 2 + NUM_ROWS and training[2] == ["10", "2.0000"] and training[-1] == ["500", "0.0400"]
    assert [row[0] for row in validation[2:]] == ["0", "250", "500"]
    assert validation[2][1:] == ["1.2000", "1.9500"] and "noise 0.95" in validation[0][2]
    recorded = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert recorded["finetune"]["lora"]["rank"] == 4 and recorded["seed"] == 0
    assert "/secret/place" not in card
    drawn = ElementTree.parse(tmp_path / "new/loss.svg").getroot()
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [50, 3] and "](loss.svg)" in card


def test_a_card_without_validation_says_nothing_of_it(tmp_path, world):
    card = adapter_card(training_settings(tmp_path, world), HUB, tmp_path / "adapter", "cpu", COUNTS, 0.5)
    assert "validation loss" not in card


def test_a_card_shows_names_of_any_kind_as_they_are_and_no_path_of_the_machine(tmp_path, world):
    source = WorldModelSource("x|<b>[y](z)", str(tmp_path / "run" / "model"), None, "abc")
    settings = replace(training_settings(tmp_path / "run", world), prompt_prefix="a `b`\n# c")
    card = adapter_card(settings, source, tmp_path / "run" / "adapter", "cpu", COUNTS, 0.5)
    assert "x\\|\\<b\\>\\[y\\](z)" in card and "\n# c" not in card and "`a 'b' # c`" in card
    assert str(tmp_path) not in card and "'run/adapter'" in card and "| base model | run/model |" in card
    assert "relative to the folder that holds the run" in card


def test_a_pushed_adapters_card_loads_it_from_the_hub(tmp_path, world):
    settings = training_settings(tmp_path, world, finetune={"push_to_hub": "me/robot"})
    source = WorldModelSource("model", str(world), None, "abc")
    card = adapter_card(settings, source, tmp_path / "adapter", "cpu", COUNTS, 0.5)
    assert "load_lora_weights('me/robot')" in card and str(tmp_path / "adapter") not in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize(
    "curves",
    [
        {"training": [], "validation": []},
        {"training": [(1, 0.5)], "validation": []},
        {"training": [(1, float("nan")), (2, 0.5), (3, 0.5)], "validation": [(0, float("inf"))]},
        {"training": [(n, 100.0 if n == 1 else 1.0) for n in range(1, 200)], "validation": [(0, 1.0)]},
    ],
)
def test_curves_of_any_kind_are_drawn_inside_the_picture(curves):
    root = ElementTree.fromstring(loss_plot(curves))
    for line in root.findall("{http://www.w3.org/2000/svg}polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 640 and 0 <= y <= 280


def test_spread_keeps_the_first_and_the_last():
    assert spread(list(range(100)), 5) == [0, 25, 50, 74, 99] and spread([1, 2], 5) == [1, 2] and spread([], 5) == []


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))


def test_without_a_login_the_training_does_not_start(world, tmp_path, logged_out):
    write_training_set(tmp_path)
    with pytest.raises(UserError) as caught:
        finetune(training_settings(tmp_path, world, finetune={"push_to_hub": "me/robot"}))
    assert "not logged in" in str(caught.value) and "hf auth login" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("repo_id", ["robot", "a/b/c", "me/ro bot", "/x"])
def test_a_name_that_no_hub_takes_is_refused(repo_id, logged_out):
    problems = Problems()
    check_can_push(repo_id, problems)
    assert "push_to_hub" in problems.errors[0].what and problems.errors[0].actual == repo_id


def test_nothing_is_checked_without_an_upload(logged_out):
    problems = Problems()
    check_can_push(None, problems)
    assert not problems.errors


def test_an_adapter_is_uploaded_whole_and_private(hub, tmp_path):
    files = {"README.md": b"# card\n", WEIGHTS_NAME: b"\x00weights", "loss.svg": b"<svg/>"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    message, is_done = push_adapter(tmp_path, "me/robot")
    assert is_done, message
    assert "uploaded to" in message and hub.files == files
    made = hub.created[0]
    assert made["name"] == "robot" and (made.get("visibility") == "private" or made.get("private"))


def test_a_failed_upload_is_told_with_the_command_to_try_again(hub, tmp_path):
    (tmp_path / "README.md").write_text("# card\n")
    hub.is_full = True
    message, is_done = push_adapter(tmp_path, "me/robot")
    assert not is_done and f"hf upload me/robot {tmp_path}" in message and hub.files == {}


def test_an_upload_that_fails_leaves_the_adapter_and_a_result_in_part(world, tmp_path, hub):
    hub.is_full = True
    write_training_set(tmp_path)
    result = finetune(training_settings(tmp_path, world, finetune={"push_to_hub": "me/robot"}))
    assert result.partial and (tmp_path / "adapter" / WEIGHTS_NAME).is_file()
    assert any("hf upload me/robot" in note for note in result.notes)


def test_a_training_uploads_its_adapter(world, tmp_path, hub):
    write_training_set(tmp_path)
    result = finetune(training_settings(tmp_path, world, finetune={"push_to_hub": "me/robot"}))
    assert not result.partial and any("uploaded to" in note for note in result.notes)
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert set(hub.files) == {"README.md", "loss.svg", WEIGHTS_NAME}


def test_all_weights_are_loaded_as_a_transformer(world, tmp_path, monkeypatch):
    write_training_set(tmp_path)
    finetune(training_settings(tmp_path, world, finetune={"method": "full", "num_steps": 2}))
    card = (tmp_path / "adapter/README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    assert "# All weights of" in card and "rank, alpha" not in card and len(snippet.splitlines()) <= 10
    names = {}
    assert f"from_pretrained({world.name!r}" in snippet and "'test_" in snippet  # no absolute paths
    snippet = snippet.replace(repr(world.name), repr(str(world)))  # which is not below the folder that holds the run
    monkeypatch.chdir(tmp_path.parent)
    exec(snippet.split("clip = ")[0], names)  # our own text
    trained = load_file(next((tmp_path / "adapter/transformer").glob("*.safetensors")))
    loaded = names["pipe"].transformer.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained.items())
