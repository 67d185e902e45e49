"""Command line, YAML and run.yaml become settings; mistakes are named with the nearest right word."""

import pytest
import yaml

from dreamgen.config.loading import configs_folder, parse_settings, settings_from_dict
from dreamgen.config.paths import all_settings, get_path
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models.world_model import check_size
from dreamgen.run.run_folder import RunFolder


def test_a_home_folder_behind_an_equals_sign_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for tokens in (["--out=~/runs/x"], ["--out", "~/runs/x"]):
        assert parse_settings(tokens, "plan")[0].out == "/home/me/runs/x"


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


def test_a_misspelled_section_is_one_problem_with_the_setting_that_was_meant():
    with pytest.raises(UserError) as caught:
        parse_settings(["--generat.limit", "3"], "generate")
    assert caught.value.allowed == "did you mean generate.limit?"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"video": {"height": 101}}, "--video.height=100"),
        ({"video": {"num_frames": 1}}, "at least 2"),
        ({"finetune": {"num_steps": "many"}}, "num_steps"),
        ({"finetune": {"method": "qlora"}}, "method"),
        ({"export": {"formats": ["lerobot-v9"]}}, "lerobot-v9"),
        ({"generate": {"limit": 0}}, "generate.limit"),
        ({"finetune": {"text_dropout": 1.5}}, "text_dropout"),
        ({"video": {"crf": 52}}, "0 to 51"),
        ({"video": {"crf": -1}}, "video.crf"),
        ({"video": {"codec": "av1", "crf": 64}}, "0 to 63"),
        ({"idm": {"image_px": 40}}, "--idm.image_px=32"),
        ({"idm": {"image_px": 0}}, "--idm.image_px=16"),
        ({"generate": {"gpus_per_worker": -0.5}}, "generate.gpus_per_worker"),
        ({"generate": {"cpus_per_worker": -1}}, "generate.cpus_per_worker"),
        ({"finetune": {"learning_rate": 0}}, "above 0"),
        ({"finetune": {"learning_rate": float("nan")}}, "finetune.learning_rate is not a finite number"),
        ({"idm": {"learning_rate": float("inf")}}, "idm.learning_rate is not a finite number"),
        ({"idm": {"learning_rate": -1e-3}}, "idm.learning_rate"),
        ({"finetune": {"lora": {"alpha": 0}}}, "finetune.lora.alpha"),
        ({"finetune": {"weight_decay": -1}}, "finetune.weight_decay"),
        ({"finetune": {"warmup_steps": -1}}, "finetune.warmup_steps"),
        ({"finetune": {"sigma_shift": 0}}, "finetune.sigma_shift"),
        ({"finetune": {"conditional_frame_timestep": 2}}, "finetune.conditional_frame_timestep"),
        ({"curate": {"max_cut_score": float("inf")}}, "curate.max_cut_score is not a finite number"),
        ({"curate": {"min_motion": float("nan")}}, "curate.min_motion is not a finite number"),
        ({"seed": -1}, "seed"),
        ({"prepare": {"action_kind": "velocity"}}, "action_kind"),
        ({"video": {"gop": True}}, "video.gop does not take true or false"),
        ({"generate": {"limit": True}}, "generate.limit does not take true or false"),
        ({"finetune": {"learning_rate": True}}, "finetune.learning_rate does not take true or false"),
        ({"model": {"path": False}}, "model.path does not take true or false"),
    ],
)
def test_values_that_cannot_work_are_refused(values, message):
    with pytest.raises(UserError) as caught:
        settings_from_dict(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("video", "message"), [({"height": 100}, "--video.height=96"), ({"num_frames": 32}, "--video.num_frames=29")]
)
def test_sizes_that_the_world_model_cannot_generate_are_refused(video, message):
    settings = settings_from_dict({"video": video, "model": {"path": "mini"}})
    with pytest.raises(UserError) as caught:
        check_size(settings)
    assert message in str(caught.value)


def test_text_values_stay_text():
    settings, _ = parse_settings(["--prompt_prefix", "yes: ", "--plan.negative_prompt=null"], None)
    assert settings.prompt_prefix == "yes: "
    assert settings.plan.negative_prompt is None


def test_one_text_stands_for_a_list_of_one():
    settings, _ = parse_settings(["--instructions", "pick up: the cup"], "plan")
    assert settings.plan.instructions == ["pick up: the cup"]
    settings, _ = parse_settings(["--instructions=['a', 'b']"], "plan")
    assert settings.plan.instructions == ["a", "b"]


def test_a_switch_of_another_command_is_named():
    with pytest.raises(UserError, match="has no --dry_run"):
        parse_settings(["--dry_run"], "label", ("resume",))


def test_value_missing_and_stray_word():
    with pytest.raises(UserError, match="--out has no value"):
        parse_settings(["--out", "--resume"], None, ("resume",))
    with pytest.raises(UserError, match="unexpected argument"):
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


def test_values_at_the_edge_of_their_range_are_taken():
    settings = settings_from_dict({
        "seed": 0, "video": {"codec": "av1", "crf": 63}, "generate": {"gpus_per_worker": 0, "num_workers": None},
        "finetune": {"conditional_frame_timestep": -1, "text_dropout": 1}, "idm": {"image_px": 16},
        "model": {"safety_checker": False},
    })  # fmt: skip
    assert settings.video.crf == 63 and settings.idm.image_px == 16


def test_every_default_is_within_its_own_bounds_and_every_setting_has_help():
    settings = Settings()
    for path, setting in all_settings().items():
        assert setting.option.problem(path, get_path(settings, path)) is None
        assert setting.option.help and setting.type_name


def test_shipped_presets_are_within_the_ranges():
    presets = sorted(path.stem for path in configs_folder().glob("*.yaml"))
    assert presets
    for name in presets:
        parse_settings(["--config_path", name], None)


def test_shipped_presets_generate_on_a_gpu_where_there_is_one():
    for name in sorted(path.stem for path in configs_folder().glob("*.yaml")):
        settings, _ = parse_settings([f"--config_path={name}"], None)
        assert settings.model.device == "auto" and settings.generate.gpus_per_worker > 0, name


def test_a_value_that_is_another_settings_name_does_not_mislead():
    with pytest.raises(UserError, match=r"unknown value for plan\.level"):
        parse_settings(["--level=fast"], "plan")


@pytest.mark.parametrize(
    ("values", "named", "allowed"),
    [
        ({"finetune": {"method": "qlora"}}, "finetune.method", "lora, dora, full"),
        ({"finetune": {"lora": {"rank": [1]}}}, "finetune.lora.rank", "a whole number"),
        ({"plan": {"chunk_overlap": 3}}, "plan.chunk_overlap", "1, 5"),
        ({"generate": {"resources_per_worker": 3}}, "generate.resources_per_worker", "numbers by name"),
        ({"prepare": {"cameras": 7}}, "prepare.cameras", "a list of strings or null"),
        ({"finetune": 3}, "finetune", "a group of settings"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_its_path(values, named, allowed):
    with pytest.raises(UserError, match="(wrong type of value|unknown value) for") as caught:
        settings_from_dict(values)
    assert caught.value.what.endswith(named)
    assert allowed in str(caught.value)


def test_several_values_of_the_wrong_type_are_reported_together():
    with pytest.raises(UserError, match="2 problems") as caught:
        settings_from_dict({"video": {"height": "tall"}, "idm": {"width": "wide"}})
    assert "video.height" in str(caught.value) and "idm.width" in str(caught.value)


def test_a_section_without_a_line_in_it_keeps_its_defaults():
    assert settings_from_dict({"finetune": None}) == Settings()
