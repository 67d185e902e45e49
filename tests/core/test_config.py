"""Command line, YAML and run.yaml become settings; mistakes are named with the nearest right word."""

import pytest
import yaml

from dreamgen.core.config import parse_settings, settings_from_dict
from dreamgen.core.errors import UserError
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings


def test_layers_command_line_over_preset_over_run_over_defaults(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("video: {height: 64, width: 64}\nfinetune: {num_steps: 7, lora: {rank: 3}}\n")
    preset = tmp_path / "preset.yaml"
    preset.write_text("video: {width: 96}\nfinetune: {lora: {alpha: 5}}\n")
    settings, _ = parse_settings(["--config_path", str(preset), f"--out={run}", "--lora.rank=4"], "finetune")
    assert (settings.video.height, settings.video.width) == (64, 96)
    assert settings.finetune.num_steps == 7
    assert (settings.finetune.lora.rank, settings.finetune.lora.alpha) == (4, 5)
    assert settings.finetune.method == Settings().finetune.method


def test_section_may_be_left_out_only_in_its_own_command():
    settings, _ = parse_settings(["--finetune.lora.rank=9"], None)
    assert settings.finetune.lora.rank == 9
    with pytest.raises(UserError, match="unknown setting: lora"):
        parse_settings(["--lora.rank=9"], None)


@pytest.mark.parametrize(
    ("tokens", "named", "nearest"),
    [
        (["--lora.rnk=4"], "finetune.lora.rnk", "finetune.lora.rank"),
        (["--video.heigth=64"], "video.heigth", "video.height"),
        (["--finetune.lora=3"], "lora", None),
    ],
)
def test_unknown_key_is_refused_with_the_closest_match(tokens, named, nearest):
    with pytest.raises(UserError) as caught:
        parse_settings(tokens, "finetune")
    assert named in str(caught.value)
    assert nearest is None or nearest in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"video": {"height": 100}}, "--video.height=96"),
        ({"video": {"num_frames": 32}}, "--video.num_frames=29"),
        ({"finetune": {"num_steps": "many"}}, "num_steps"),
        ({"finetune": {"method": "qlora"}}, "method"),
        ({"export": {"formats": ["lerobot-v9"]}}, "lerobot-v9"),
        ({"generate": {"limit": 0}}, "generate.limit"),
        ({"finetune": {"text_dropout": 1.5}}, "text_dropout"),
    ],
)
def test_values_that_cannot_work_are_refused(values, message):
    with pytest.raises(UserError) as caught:
        settings_from_dict(values)
    assert message in str(caught.value)


def test_text_values_stay_text():
    settings, _ = parse_settings(["--prompt_prefix", "yes: ", "--plan.negative_prompt=null"], None)
    assert settings.prompt_prefix == "yes: "
    assert settings.plan.negative_prompt is None


def test_value_missing_and_stray_word():
    with pytest.raises(UserError, match="--out has no value"):
        parse_settings(["--out", "--resume"], None, ("resume",))
    with pytest.raises(UserError, match="unexpected word"):
        parse_settings(["somewhere"], None)


def test_run_yaml_repeats_the_run(tmp_path):
    settings = settings_from_dict({"out": str(tmp_path / "a"), "video": {"height": 64}, "plan": {"num_seeds": 3}})
    run = RunFolder.of(settings)
    run.record(settings, ["plan", "finetune"])
    again, _ = parse_settings(["--config_path", str(run.settings_file)], None)
    assert again == settings
    assert set(yaml.safe_load(run.settings_file.read_text())) >= {"plan", "finetune", "model", "video"}


def test_a_limit_holds_for_one_call_only(tmp_path):
    settings = settings_from_dict({"out": str(tmp_path), "generate": {"limit": 1, "num_workers": 2}})
    RunFolder.of(settings).record(settings, ["generate"])
    later, _ = parse_settings([f"--out={tmp_path}"], "generate")
    assert (later.generate.limit, later.generate.num_workers) == (None, 2)


def test_other_settings_in_the_same_run_are_refused(tmp_path):
    settings = settings_from_dict({"out": str(tmp_path), "finetune": {"num_steps": 5}})
    run = RunFolder.of(settings)
    run.record(settings, ["finetune"])
    run.check_unchanged(settings_from_dict({"model": {"device": "cpu"}}), [])
    with pytest.raises(UserError, match="video.height: 432 -> 64"):
        run.check_unchanged(settings_from_dict({"video": {"height": 64}}), [])
    changed = settings_from_dict({"finetune": {"num_steps": 6}})
    run.check_unchanged(changed, [])
    with pytest.raises(UserError, match=r"finetune.num_steps: 5 -> 6"):
        run.check_unchanged(changed, ["finetune"])
