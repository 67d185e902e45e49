"""The block for bug reports: complete, readable as Markdown, without a token, and with a row for each broken part."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch

from dreamgen import __version__
from dreamgen import doctor as module
from dreamgen.data import video
from dreamgen.doctor import Finding, doctor, markdown

TOKEN = "hf_" + "q" * 34


def install_fake(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def rows_of(text: str) -> dict[str, tuple[str, str]]:
    """Return what -> (found, state) of every row of the table."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    assert all(len(row) == 4 for row in cells)
    return {row[1]: (row[2], row[3]) for row in cells[1:]}


def state_of(findings, name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_the_block_holds_versions_codecs_disk_and_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = doctor(tmp_path / "runs" / "not-there-yet")
    text = result.metrics["markdown"]
    rows = rows_of(text)
    assert rows["DreamGen"] == (__version__, "ok")
    assert rows["Python"][0].startswith(".".join(map(str, sys.version_info[:3])))
    for name in ("torch", "diffusers", "transformers", "peft", "accelerate", "ray", "lerobot", "h5py", "av", "pyarrow"):
        assert rows[name][0][0].isdigit()
    assert rows["encode libx264"][1] == rows["encode libsvtav1"][1] == "ok"
    assert rows["run folder"][0].endswith("GiB free")
    assert rows["hub token"] == ("present", "ok")
    assert "HF_HUB_OFFLINE" in rows
    assert "cosmos_guardrail" in rows
    assert result.outputs == {}
    assert len(result.notes) == result.metrics["num_problems"]
    assert TOKEN not in json.dumps([text, result.notes, result.metrics])
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_no_part_of_a_token_is_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    findings = list(module._accounts())
    assert not any("qqq" in f"{finding}" for finding in findings)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert state_of(module._accounts(), "hub token").found == "none"


@pytest.mark.parametrize("value", [None, "1"])
def test_offline_and_cluster_are_shown(monkeypatch, value):
    for name in ("HF_HUB_OFFLINE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    findings = list(module._accounts())
    assert state_of(findings, "HF_HUB_OFFLINE").state == ("note" if value else "ok")
    assert state_of(findings, "RAY_ADDRESS").found.startswith("set" if value else "not set")


def test_two_opencv_builds_and_an_old_package_are_problems(tmp_path, monkeypatch):
    install_fake(tmp_path, "opencv-python", "4.10.0")
    install_fake(tmp_path, "peft", "0.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    findings = list(module._packages())
    clash = state_of(findings, "OpenCV builds")
    assert (clash.found, clash.state) == ("opencv-python, opencv-python-headless", "problem")
    assert "uninstall" in clash.to_do
    old = state_of(findings, "peft")
    assert (old.found, old.state) == ("0.1.0", "problem")
    assert "peft>=" in old.to_do


def test_missing_package_is_a_problem(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package",))
    finding = state_of(module._packages(), "no-such-package")
    assert (finding.found, finding.state) == ("not installed", "problem")


def test_libraries_that_do_not_import_are_rows(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert "does not load" in module._torchcodec().found
    monkeypatch.setitem(sys.modules, "av", None)
    assert [finding.state for finding in module._codecs()] == ["problem"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert state_of(module._accounts(), "hub token").state == "problem"
    assert state_of(module._disk(Path.cwd()), "hub cache").found.endswith("GiB free")
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = module._gpus()
    assert finding.state == "problem"
    assert "does not import" in finding.found


def test_gpus_are_shown_with_memory_and_precision(monkeypatch):
    def memory(index):
        if index == 1:
            raise RuntimeError("CUDA error: out of memory")
        return 20 * 2**30, 24 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    findings = list(module._gpus())
    assert state_of(findings, "cuda:0").found == "Card 0, 24 GiB (20 free), bfloat16 no"
    assert "float32" in state_of(findings, "cuda:0").to_do
    assert "does not answer" in state_of(findings, "cuda:1").found


def test_encoder_that_is_not_there_is_a_problem(monkeypatch):
    monkeypatch.setitem(video.ENCODERS, "av1", ("libnothing", {}))
    findings = list(module._codecs())
    broken = state_of(findings, "encode libnothing")
    assert broken.state == "problem"
    assert "av1" in broken.to_do
    assert state_of(findings, "encode libx264").state == "ok"


def test_full_disk_is_a_problem(tmp_path, monkeypatch):
    assert state_of(module._disk(tmp_path), "run folder").state == "ok"
    monkeypatch.setattr(module, "LOW_DISK_GIB", 1e9)
    assert state_of(module._disk(tmp_path), "run folder").state == "problem"


def test_markdown_keeps_one_row_a_line_and_lists_what_to_do():
    findings = [Finding("a", "odd", "x | y\nz", "problem", "mend it"), Finding("a", "fine", "yes")]
    text = markdown(findings)
    assert "x \\| y z" in text
    assert "- **odd** (x \\| y z): mend it" in text
    assert "No problems found" not in text
    assert "No problems found" in markdown(findings[1:])
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
