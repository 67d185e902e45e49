"""Settings for all tests: offline, few threads, and Ray small and shut down."""

import os

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # with more threads sums come out otherwise, and so do the bytes of a clip
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
# 15 by default: beside a busy process a worker would take minutes to start.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 Ray spells it so
os.environ.pop("RAY_ADDRESS", None)  # no test joins a cluster that is there

from pathlib import Path

import pytest

from dreamgen.environment import set_library_defaults
from tests.fixtures.hub import hub  # noqa: F401 a fixture of several packages

set_library_defaults()

# A test process takes whole files (`make test`), in this order: those that take longest begin first.
LONGEST_FIRST = (
    "test_gpu_check.py", "test_demo_output.py", "test_main_job.py", "test_two_processes.py", "test_faults.py",
    "test_kill.py", "test_examples.py", "test_cluster.py", "test_docs.py", "test_storage.py", "test_label_faults.py",
    "test_generate.py", "test_idm.py", "test_resume.py", "test_label_curate.py", "test_idm_training.py",
    "test_readme.py", "test_parallel.py", "test_cache.py", "test_session.py", "test_vae_residual.py",
)  # fmt: skip

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files of `LONGEST_FIRST` to the front."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A folder with the tiny model in world/ and first frames in pairs/; tests only read it."""
    from tests.fixtures.world import make_world, write_pairs

    base = tmp_path_factory.mktemp("base")
    make_world(base / "world")
    write_pairs(base / "pairs")
    return base


@pytest.fixture(scope="session")
def world(base) -> Path:
    """The tiny model's folder; tests only read it."""
    return base / "world"


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
