"""The script and the notebook under examples/, run as a user runs them, at a size that proves that they work."""

import copy
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import yaml

from dreamgen.config.loading import find_preset, read_yaml
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.runs import lenient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {
    "video": {"height": 64, "width": 64, "num_frames": 9},
    "finetune": {"num_steps": 2, "warmup_steps": 1, "tracker": "none"},
    "idm": {"num_steps": 20, "image_px": 32, "horizon": 4},
    "plan": {"num_inference_steps": 2, "num_first_frames": 2},
    "generate": {"num_workers": 1},
    "curate": lenient(),
    "export": {"formats": ["lerobot-v3.0"]},
}

pytestmark = pytest.mark.slow


def test_the_script_goes_through_all_stages(tmp_path):
    demos = write_lerobot_v21(tmp_path / "demos", num_episodes=3, num_frames=24)
    preset = read_yaml(find_preset("mini"))
    for section, values in TINY.items():
        preset[section] = {**preset.get(section, {}), **values}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset))
    words = ["--demos", demos, "--out", tmp_path / "run", "--preset", tmp_path / "tiny.yaml"]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "python_api.py", *words], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "accepted 2 of 2 clips" in done.stdout
    assert "lerobot-v3.0: 0 errors" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "one_more_clip.mp4").stat().st_size > 0
    recorded = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert {"prepare", "finetune", "plan", "generate", "idm", "curate", "export"} <= set(recorded)


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in git"
    position = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    smaller = nbformat.v4.new_code_cell(f"out = {str(tmp_path / 'run')!r}\nchanges = {TINY!r}")
    notebook.cells.insert(position + 1, smaller)
    nbclient.NotebookClient(copy.deepcopy(notebook), timeout=600, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()  # fmt: skip
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "datasets" / "lerobot-v3.0" / "meta" / "info.json").is_file()
