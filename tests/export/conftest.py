"""One finished run, exported once; tests that damage a dataset take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dreamgen.run.run_folder import RunFolder
from export import export_datasets
from export.manifest import MANIFEST
from tests.fixtures.runs import make_run, run_settings

LENGTHS = (9, 13, 5)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> RunFolder:
    """A run with five accepted clips of 9, 13, 5, 9 and 13 frames, exported in every format."""
    run = make_run(tmp_path_factory.mktemp("exported") / "run", num_clips=6, num_frames=LENGTHS, rejected=1, failed=1)
    export_datasets(run_settings(run.root))
    return run


@pytest.fixture
def copy_of(exported, tmp_path):
    """Return a function that copies an exported dataset, to be damaged; without a manifest, which finds any damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(exported.datasets / name, tmp_path / name, ignore=lambda *_: {MANIFEST}))

    return copy


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory):
    """Keep the tables that lerobot's reader caches out of the user's home."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf_datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before
