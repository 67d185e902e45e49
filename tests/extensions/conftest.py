"""Installing a documented package for commands of this test, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.documented import install_documented

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path) -> Callable[..., Callable[..., subprocess.CompletedProcess]]:
    """Install a page's package; the result runs `dreamgen` with it as if pip had installed it."""

    def install(page: str | None, **environment: str) -> Callable[..., subprocess.CompletedProcess]:
        folder = tmp_path / "site-packages"
        folder.mkdir(exist_ok=True)
        if page is not None:
            install_documented(page, folder)

        def dreamgen(*words: object, status: int = 0) -> subprocess.CompletedProcess:
            done = subprocess.run(
                [sys.executable, "-m", "dreamgen", *map(str, words)], capture_output=True, text=True, timeout=300,
                env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment},
            )  # fmt: skip
            assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
            return done

        return dreamgen

    return install


@pytest.fixture
def result_of() -> Callable[[subprocess.CompletedProcess], dict]:
    """Read the result that a stage's command printed with --json."""
    return lambda done: json.loads(done.stdout)[-1]
