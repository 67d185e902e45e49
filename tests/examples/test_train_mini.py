"""train_mini.py continues from weights, on datasets that are there, at a size that proves that it works."""

import subprocess
import sys

import pytest
import yaml
from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline
from safetensors.torch import load_file

from dreamgen.config.loading import read_yaml
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from tests.examples.test_examples import EXAMPLES
from tests.fixtures.demos import write_lerobot_v30
from tests.fixtures.world import make_world, tiny_sizes

pytestmark = pytest.mark.slow


def test_a_training_from_weights_writes_weights(tmp_path):
    start, out = make_world(tmp_path / "start"), tmp_path / "out"
    for name in ("vae", "base"):
        write_lerobot_v30(out / "data" / name, num_episodes=3, num_frames=12)
    settings = read_yaml(EXAMPLES / "metaworld/training.yaml")
    settings["model"]["dtype"] = "float32"
    settings["video"] |= {"height": 32, "width": 48, "num_frames": 9}
    del settings["prepare"]
    small = {"num_steps": 3, "batch_size": 1, "validation_clips": 1, "validate_every": 2, "num_workers": 0}
    settings["finetune_vae"] |= small
    settings["finetune"] |= small
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(tiny_sizes()))
    words = ["--out", out, "--minutes", "9", "--start", start, "--config", tmp_path / "tiny.yaml"]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "metaworld/train_mini.py", *words, "--sizes", tmp_path / "sizes.yaml"],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    logs = "\n".join(path.read_text() for path in (out / "logs").glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert "ended with" in done.stderr and "failed" not in done.stderr
    Cosmos2_5_PredictBasePipeline.from_pretrained(out / "weights", safety_checker=NoSafetyChecker())
    vaes = (AutoencoderKLWan.from_pretrained(folder / "vae") for folder in (start, out / "weights"))
    before, after = (vae.state_dict() for vae in vaes)
    assert before.keys() == after.keys() and any((before[name].half() != after[name].half()).any() for name in before)
    before, after = (load_file(folder / "text_encoder/model.safetensors") for folder in (start, out / "weights"))
    assert before.keys() == after.keys() and all(before[name].half().equal(after[name]) for name in before)
    assert len(list((out / "parts").glob("mini.tar.*"))) == 1
