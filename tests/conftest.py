"""Settings for all tests: offline, few threads, and Ray small and shut down."""

import os

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
os.environ.pop("RAY_ADDRESS", None)  # no test joins a cluster that is there

from pathlib import Path

import pytest

from dreamgen.environment import set_library_defaults
from tests.fixtures.hub import hub  # noqa: F401 a fixture of several packages

set_library_defaults()

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def real_demos() -> Path:
    """Five real GR1 episodes, LeRobot v2.0 with its quirks; not part of the project."""
    folder = SHARED_DATA / "robot_sim.PickNPlace"
    if not folder.is_dir():
        pytest.skip(f"real demonstrations are not on this machine ({folder.name})")
    return folder


@pytest.fixture
def real_pairs() -> Path:
    """First frames with prompts beside them; not part of the project."""
    folder = SHARED_DATA / "eval_pairs"
    if not folder.is_dir():
        pytest.skip(f"real first frames are not on this machine ({folder.name})")
    return folder
