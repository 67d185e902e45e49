"""A finished run of many synthetic clips, made in little time: what the export benchmarks start from.

A few distinct clips are drawn and encoded as generate encodes them; the others are hard links to these. Labels are
random, and each clip has its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.video import write_video
from dreamgen.run.files import write_json
from dreamgen.run.jobs import write_jobs
from dreamgen.run.records import METRICS_KEY, Job, RobotFeatures, job_id
from dreamgen.run.run_folder import RunFolder

INSTRUCTIONS = [f"pick up the {colour} cube and put it {place}" for colour in ("red", "blue", "green", "white")
                for place in ("into the box", "on the plate", "aside")]  # fmt: skip


def make_run(folder: Path, num_clips: int, height: int = 432, width: int = 768, num_frames: int = 93, dims: int = 44,
             fps: int = 16, distinct: int = 8, codec: str = "h264", crf: int = 18) -> RunFolder:  # fmt: skip
    """Make a run in which every clip is accepted.

    Args:
        folder: The run folder; made anew.
        num_clips: Clips in it.
        dims: Dimensions of action and of state.
        distinct: How many clips are drawn; lengths vary by four frames a clip below `num_frames` where it is small.
    """
    run = RunFolder(folder)
    names = tuple(f"joint_{index}" for index in range(dims))
    features = RobotFeatures("synthetic", "observation.images.ego_view", names, names)
    write_json(run.train / "features.json", asdict(features))
    sources = [drawn_clip(folder, number) for number in range(distinct)]

    def draw(number: int) -> None:
        write_video(sources[number], drawn_frames(number, num_frames, height, width), fps, codec, crf)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(draw, range(distinct)))
    journal = run.root / "journal"
    journal.mkdir(parents=True)
    streams = {stage: (journal / f"{stage}-1.jsonl").open("w") for stage in ("generate", "label", "curate")}
    jobs = []
    for number in range(num_clips):
        job = _job(number, height, width, num_frames, fps, codec, crf)
        jobs.append(job)
        clip, label = run.clip_file(job.clip_id), run.label_file(job.clip_id)
        for path in (clip, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        os.link(sources[number % distinct], clip)
        action_TA, state_TS = labels_of(number, num_frames, dims)
        vectors = pa.list_(pa.float32())
        pq.write_table(pa.table({"action": pa.array(list(action_TA), vectors),
                                 "observation.state": pa.array(list(state_TS), vectors)}), label)  # fmt: skip
        metrics = {
            "generate": {"num_frames": num_frames, "safety_checker": False}, "label": {"num_rows": num_frames},
            "curate": {"motion": 3.5, "first_frame_psnr_db": 30.0, "cut_score": 1.5},
        }  # fmt: skip
        for stage, stream in streams.items():
            record = {"clip_id": job.clip_id, "stage": stage, "status": "ok", METRICS_KEY: metrics[stage]}
            stream.write(json.dumps({**record, "time_s": time.time()}) + "\n")
    for stream in streams.values():
        stream.close()
    write_jobs(run.jobs, jobs)
    return run


def drawn_clip(folder: Path, number: int) -> Path:
    """Return the file of a distinct clip of the run in a folder."""
    return folder / "drawn" / f"{number}.mp4"


def labels_of(number: int, num_frames: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Return action_TA and state_TS of the clip with this number, float32."""
    random = np.random.default_rng(number)
    return tuple(random.normal(size=(2, num_frames, dims)).astype(np.float32))


def hdf5_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of a file, which may hold groups too."""
    dataset = file[name]
    assert isinstance(dataset, h5py.Dataset), f"{name} is a group"
    return dataset


def drawn_frames(number: int, num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield frame_HWC of a textured scene with sensor noise over which a block moves, so that it costs real bits."""
    random = np.random.default_rng(number)
    coarse = random.integers(30, 226, (max(2, height // 24), max(2, width // 24), 3)).astype(np.uint8)
    scene_HWC = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    side = max(4, height // 5)
    for t in range(num_frames):
        frame_HWC = scene_HWC.copy()
        left = (t * (3 + number)) % max(1, width - side)
        frame_HWC[height // 3 : height // 3 + side, left : left + side] = 255 - scene_HWC[:side, :side]
        noise_HWC = random.integers(-2, 3, (height, width, 1))
        yield np.clip(frame_HWC + noise_HWC, 0, 255).astype(np.uint8)


def _job(number: int, height: int, width: int, num_frames: int, fps: int, codec: str, crf: int) -> Job:
    values = {
        "first_frame_sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        "instruction": INSTRUCTIONS[number % len(INSTRUCTIONS)],
        "prompt": "The robot arm is performing a task.", "negative_prompt": "blurry", "seed": number, "height": height,
        "width": width, "num_frames": num_frames, "num_conditioning_frames": 1, "num_chunks": 1, "chunk_overlap": 0,
        "fps": fps, "num_inference_steps": 36, "guidance_scale": 7.0, "level": "exact", "step_skipping": "{}",
        "adapter": None, "model": "synthetic", "model_sha256": "0" * 64, "adapter_sha256": None, "dtype": "bfloat16",
        "codec": codec, "crf": crf, "gop": 2, "source": f"drawn {number}",
    }  # fmt: skip
    return Job(clip_id=job_id(values), **values)
