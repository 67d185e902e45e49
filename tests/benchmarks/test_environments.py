"""Environments of the processes that benchmarks start."""

from __future__ import annotations

import os
from pathlib import Path

from environments import visible_gpus, with_checkout


def test_a_checkout_comes_before_what_pythonpath_names_already(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "more")
    environment = with_checkout(Path("checkout"), SIZE="2")
    assert environment["PYTHONPATH"].split(os.pathsep) == ["checkout", "more"] and environment["SIZE"] == "2"
    monkeypatch.delenv("PYTHONPATH")
    assert with_checkout(Path("checkout"))["PYTHONPATH"] == "checkout"


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus(2) == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(0) == []
