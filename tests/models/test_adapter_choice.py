"""Which adapter a job uses, blends of adapters, and changing one for another without residue."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch

from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.generate.clip import make_clip
from dreamgen.models.adapter_choice import adapter_of_job, choose_adapter
from dreamgen.models.cosmos_predict25.adapter import add_adapter, save_adapter
from dreamgen.models.cosmos_predict25.adapter_switch import AdapterSwitch
from dreamgen.models.cosmos_predict25.loading import load_pipeline
from dreamgen.models.world_model import resolve_world_model
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import clip_generator, make_world, tiny_settings, write_pairs

SETTINGS = ModelSettings(revision=None, dtype="float32", device="cpu", safety_checker=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny world with adapters a (LoRA) and b (DoRA), first frames, and a whole transformer where one would be."""
    base = tmp_path_factory.mktemp("adapters")
    make_world(base / "world")
    write_pairs(base / "pairs", 1)
    for seed, (name, use_dora) in enumerate((("a", False), ("b", True))):
        transformer = load(base).transformer
        torch.manual_seed(seed)
        for parameter in add_adapter(transformer, 2, 2, ["to_q", "to_v", "ff.net.2"], use_dora):
            parameter.data += 0.1 * torch.randn_like(parameter)
        (base / name).mkdir()
        save_adapter(transformer, base / name)
    whole = load(base).transformer
    whole.proj_out.weight.data *= 1.5
    (base / "whole").mkdir()
    save_adapter(whole, base / "whole")
    return base


def load(base):
    settings = replace(SETTINGS, path=str(base / "world"))
    return load_pipeline(resolve_world_model(settings, RunFolder(base)), settings, text_encoder=False)


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_changing_back_and_forth_leaves_no_drift(base):
    run, pipe = RunFolder(base / "run"), load(base)
    choices = {name: choose_adapter(str(base / name), run) for name in ("a", "b", "whole")} | {"base": None}
    alone = {}
    for name, choice in choices.items():
        fresh = load(base)
        AdapterSwitch(fresh, several=False).to(choice)
        alone[name] = weights(fresh)
    assert not equal(alone["a"], alone["base"]) and not equal(alone["a"], alone["b"])
    switch = AdapterSwitch(pipe, several=True)
    for name in ("a", "b", "a", "whole", "base", "b", "a", "a"):
        switch.to(choices[name])
        assert equal(weights(pipe), alone[name]), name
    assert switch.num_switches == 5  # from the base model and to the same one nothing has to be undone


def test_a_blend_adds_each_update_by_its_weight(base):
    run, pipe = RunFolder(base / "run"), load(base)
    plain, switch = weights(pipe), AdapterSwitch(pipe, several=True)
    switch.to(choose_adapter(str(base / "a"), run))
    update = {name: value - plain[name] for name, value in weights(pipe).items()}
    switch.to(choose_adapter(f"{base / 'a'}:0.5,{base / 'a'}:0.25", run))
    for name, value in weights(pipe).items():
        assert torch.allclose(value, plain[name] + 0.75 * update[name], atol=1e-6), name


def test_what_a_choice_is_called_and_what_it_hashes(base, tmp_path):
    run = RunFolder(tmp_path / "run")
    assert choose_adapter(None, run) is None and choose_adapter("base", run) is None
    shutil.copytree(base / "a", run.adapter)
    own = choose_adapter(None, run)
    assert own.text(run) == "adapter" and own.sha256 == choose_adapter(str(base / "a"), run).sha256
    assert choose_adapter("base", run) is None
    blend = choose_adapter(f"{run.adapter}:0.7,{base / 'b'}:0.3", run)
    assert blend.text(run) == f"adapter:0.7,{base / 'b'}:0.3"
    assert blend.sha256 not in (own.sha256, choose_adapter(f"{run.adapter}:0.6,{base / 'b'}:0.4", run).sha256)
    moved = RunFolder(shutil.copytree(run.root, tmp_path / "moved"))
    fields = dict.fromkeys(Job.__dataclass_fields__) | {"adapter": own.text(run)}
    assert adapter_of_job(Job(**fields), moved).parts[0][0] == moved.adapter


@pytest.mark.parametrize(
    ("text", "says"),
    [("{base}/a:heavy", "weight is not a number"), ("{base}/none", "no adapter"), ("{base}/whole:0.5", "takes LoRA")],
)
def test_choices_that_cannot_be_are_refused(base, tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        choose_adapter(text.format(base=base), RunFolder(tmp_path))


def test_jobs_of_several_adapters_in_one_run_give_each_its_own_clip(base, tmp_path):
    def planned(out, names):
        for name in names:
            settings = tiny_settings(out, base / "world", base / "pairs", plan={"adapter": name and str(base / name)})
            plan(settings)
        return settings, RunFolder.of(settings)

    settings, run = planned(tmp_path / "both", ["a", "b"])
    generator = clip_generator(settings, run, several_adapters=True)
    first, second = read_jobs(run.jobs)
    records = [make_clip(generator, job) for job in (first, second)]
    clips = [run.clip_file(job.clip_id).read_bytes() for job in (first, second)]
    records.append(make_clip(generator, first))
    assert [record.status for record in records] == ["ok"] * 3, records
    assert run.clip_file(first.clip_id).read_bytes() == clips[0] != clips[1]

    settings, alone = planned(tmp_path / "alone", ["a"])
    (job,) = read_jobs(alone.jobs)
    assert asdict(job) == asdict(first)
    make_clip(clip_generator(settings, alone), job)
    assert alone.clip_file(job.clip_id).read_bytes() == clips[0]
