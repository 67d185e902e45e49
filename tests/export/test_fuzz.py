"""Mutated files of every kind: a clear error or a result, never a traceback, a crash, or more than 2 GB."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dreamgen.config.settings import ConvertSettings, PrepareSettings
from dreamgen.data.images import read_image, write_png
from dreamgen.data.video import decode_frames, probe, write_video
from dreamgen.errors import UserError
from dreamgen.plan.sources import table_rows
from dreamgen.prepare.detect import open_source
from export import export_datasets
from export.check import check, check_stage
from export.convert import convert_dataset
from tests.fixtures.damage import DATA21, DATA30, EPISODES30, INFO, MODALITY, STATS, TASKS30, VIDEO21
from tests.fixtures.mutations import mutated
from tests.fixtures.runs import make_run, moving_square, run_settings

MOST_BYTES = 2 * 2**30
V21, V30 = "lerobot-v2.1", "lerobot-v3.0"
# Dataset, file, is it JSON, how many mutations; more can be asked for with FUZZ_TIMES.
FILES = (
    (V21, INFO, True, 20), (V30, INFO, True, 15), (V21, MODALITY, True, 10), (V21, "meta/tasks.jsonl", True, 7),
    (V21, "meta/episodes.jsonl", True, 10), (V21, "meta/episodes_stats.jsonl", True, 7), (V30, STATS, True, 7),
    (V30, TASKS30, False, 10), (V30, EPISODES30, False, 15), (V30, DATA30, False, 10), (V21, DATA21, False, 7),
    (V21, VIDEO21, False, 10), (V21, "manifest.sha256", False, 6), ("robomimic", "data.hdf5", False, 20),
    ("aloha", "episode_1.hdf5", False, 15),
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Return a folder with a small dataset of each format."""
    run = make_run(tmp_path_factory.mktemp("fuzz") / "run", num_clips=3, num_frames=(5, 9), rejected=0)
    export_datasets(run_settings(run.root, export={"formats": [V21, V30, "robomimic", "aloha"]}))
    return run.datasets


def use_dataset(root: Path, target: Path, number: int) -> None:
    """Read a dataset in all ways; errors that a user can act on are results."""
    for action in (
        lambda: check(root, fast=number % 2 == 0, num_workers=1),
        lambda: check_stage(root, fix=True) if number % 4 == 0 else None,
        lambda: _prepare(root),
        lambda: convert_dataset(root, target, ConvertSettings(num_workers=1)) if (root / "meta").exists() else None,
    ):
        with suppress(UserError):
            action()
        shutil.rmtree(target, ignore_errors=True)


def _prepare(root: Path) -> None:
    for clip in open_source(str(root), PrepareSettings()).clips:
        if clip.load_trajectory is not None and not clip.refused:
            try:
                clip.load_trajectory()
            except UserError:
                continue


def in_child(function: Callable[[], None]) -> None:
    """Run a function in a child process, so that a crash and its memory are seen."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            function()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            if grown > MOST_BYTES:
                print(f"{grown} bytes more RAM", file=sys.stderr)
                status = 1
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the traceback above"


def fuzz(path: Path, is_json: bool, times: int, use: Callable[[int], None]) -> None:
    """Use a file in many mutations, each with a seed of its own."""
    good, failed = path.read_bytes(), []
    for number in range(times):
        seed = number + int(os.environ.get("FUZZ_SEED", "0"))
        path.write_bytes(mutated(good, np.random.default_rng([seed, len(good)]), is_json))
        try:
            use(number)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(f.filename).name}:{f.lineno}" for f in last if "site-packages" not in f.filename]
            failed.append(f"seed {seed}: {type(error).__name__}: {ascii(str(error))[:150]} at {' '.join(own[-4:])}")
        path.write_bytes(good)
    if failed:
        raise AssertionError(f"{path.name}: {len(failed)} tracebacks\n" + "\n".join(sorted(failed)))


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "file", "is_json", "times"), FILES, ids=lambda v: v if isinstance(v, str) else "")
def test_datasets(good, tmp_path, dataset, file, is_json, times):
    def run() -> None:
        fresh = tmp_path / "fresh"
        shutil.copytree(good / dataset, fresh)

        def use(number: int) -> None:
            root = tmp_path / "dataset"
            shutil.copytree(fresh, root)
            try:
                use_dataset(root, tmp_path / "converted", number)
            finally:
                shutil.rmtree(root)

        fuzz(fresh / file, is_json, times * int(os.environ.get("FUZZ_TIMES", "1")), use)

    in_child(run)


@pytest.mark.slow
def test_tables_and_pictures(tmp_path):
    video_THWC = moving_square(0, 5, 32, 48)
    write_png(tmp_path / "a.png", video_THWC[0])
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"image": "a.png", "text": t}) + "\n" for t in ("x", "y\n")))
    (tmp_path / "t.csv").write_text('image,text,seed\na.png,"x, y",1\na.png,z,2\n')
    (tmp_path / "gr1/videos").mkdir(parents=True)
    write_video(tmp_path / "gr1/videos/a.mp4", video_THWC, 16)
    (tmp_path / "gr1/metadata.csv").write_text("file_name,text\nvideos/a.mp4,x\n")

    def read_table(path: Path, number: int) -> None:
        with suppress(UserError):
            list(table_rows(path).rows)

    def read(path: Path, number: int) -> None:
        for action in (probe, lambda p: list(decode_frames(p))) if path.suffix == ".mp4" else (read_image,):
            with suppress(UserError):
                action(path)

    def prepare(path: Path, number: int) -> None:
        with suppress(UserError):
            _prepare(tmp_path / "gr1")

    times = 40 * int(os.environ.get("FUZZ_TIMES", "1"))
    for path, is_json, use in (
        (tmp_path / "t.jsonl", True, read_table), (tmp_path / "t.csv", False, read_table),
        (tmp_path / "a.png", False, read),
        (tmp_path / "gr1/videos/a.mp4", False, read), (tmp_path / "gr1/metadata.csv", False, prepare),
    ):  # fmt: skip
        in_child(partial(fuzz, path, is_json, times, partial(use, path)))
