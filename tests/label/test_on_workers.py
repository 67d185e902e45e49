"""Label and curate on Ray workers write what they write without Ray, also when workers are killed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from dreamgen.cluster import clip_pass
from dreamgen.cluster.clip_pass import CLIPS_PER_WORKER, pool_options
from dreamgen.config.settings import LabelSettings
from dreamgen.label.stage import label
from dreamgen.pipeline import label_and_curate
from dreamgen.run import files
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from finetune.inverse_dynamics import finetune_idm
from tests.finetune.square_world import NUM_FRAMES, square_episode, square_settings, write_square_training_set
from tests.fixtures.local_ray import start_ray
from tests.generate.clips import write_generated_run

NUM_CLIPS = 12


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("on_workers") / "run"
    write_square_training_set(root, num_episodes=6)
    finetune_idm(square_settings(root, num_steps=5))
    write_generated_run(root, [square_episode(1000 + number, NUM_FRAMES)[0] for number in range(NUM_CLIPS)])
    return root


def outcome(run: RunFolder) -> tuple:
    """Return what both stages wrote, without times and process ids."""
    records = {
        (stage, clip_id): replace(record, time_s=0.0, worker=None)
        for stage in ("label", "curate") for clip_id, record in read_journal(run.journal, stage).items()
    }  # fmt: skip
    labels = {path.name: path.read_bytes() for path in run.labels.rglob("*.parquet")}
    return records, labels, pq.read_table(run.scores / "scores.parquet").to_pylist()


def num_lines(run: RunFolder, stage: str) -> int:
    """Count the records of a stage, those that later ones replace too."""
    return sum(len(path.read_text().splitlines()) for path in run.journal.glob(f"{stage}*.jsonl"))


@contextmanager
def a_worker_killed(run: RunFolder) -> Iterator[list[int]]:
    """Kill the process that labeled the first clip, as if it was writing a label; yields its pid once that is done."""
    killed: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not killed and not is_over.is_set():
            for record in read_journal(run.journal, "label").values():
                killed.append(int(record.worker.split(":")[1]))
                os.kill(killed[0], signal.SIGKILL)
                half_written = files._temporary_sibling(run.root / record.file)
                name = half_written.name.replace(f".{os.getpid()}-", f".{killed[0]}-")
                half_written.with_name(name).write_bytes(b"P")
                return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        is_over.set()
        watcher.join()


@pytest.mark.slow
def test_workers_write_what_one_process_writes_though_one_is_killed(generated, tmp_path, monkeypatch):
    alone, together = (RunFolder(Path(shutil.copytree(generated, tmp_path / name))) for name in ("alone", "together"))
    label_and_curate(square_settings(alone.root))
    settings = square_settings(together.root)
    settings = replace(settings, label=replace(settings.label, num_workers=2))
    start_ray(num_cpus=2)
    try:
        with a_worker_killed(together) as killed:
            label_and_curate(settings)
        assert killed and killed[0] != os.getpid()
        for ours, expected in zip(outcome(together), outcome(alone), strict=True):
            assert ours == expected
        workers = {record.worker for record in read_journal(together.journal, "label").values()}
        assert len(workers) >= 2 and f"{os.uname().nodename}:{os.getpid()}" not in workers
        assert num_lines(together, "label") == num_lines(together, "curate") == NUM_CLIPS, "a clip was done twice"
        assert label(settings).metrics["num_already_done"] == NUM_CLIPS
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("settings", "num_clips", "address", "expected"),
    [
        (LabelSettings(), 2 * CLIPS_PER_WORKER - 1, None, 1),
        (LabelSettings(), 3 * CLIPS_PER_WORKER, None, 3),
        (LabelSettings(), 1000 * CLIPS_PER_WORKER, None, 8),
        (LabelSettings(num_workers=5), 1, None, 5),
        (LabelSettings(), CLIPS_PER_WORKER, "10.0.0.1:6379", 1),
        (LabelSettings(), CLIPS_PER_WORKER + 1, "10.0.0.1:6379", None),
        (LabelSettings(num_workers=5), 1, "10.0.0.1:6379", 5),
    ],
)
def test_as_many_workers_as_are_worth_their_start(monkeypatch, settings, num_clips, address, expected):
    monkeypatch.setattr(clip_pass, "usable_cores", lambda: 8)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert pool_options(settings, "label", num_clips).num_workers == expected
