"""A run folder at the point where generate is done, with the clips that a test draws."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from dreamgen.data.images import write_png
from dreamgen.data.video import write_video
from dreamgen.run.jobs import write_jobs
from dreamgen.run.journal import Journal
from dreamgen.run.records import Job, JournalRecord, job_id
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.jobs import SAMPLED_PLAINLY


def write_generated_run(
    root: Path, videos: list[np.ndarray], first_frames: list[np.ndarray] | None = None, fps: int = 16
) -> list[Job]:
    """Write jobs, first frames, clips and the generate journal for some video_THWC; returns the jobs in order."""
    run, jobs = RunFolder(root), []
    with Journal(run.journal, "generate") as journal:
        for number, video_THWC in enumerate(videos):
            _, height, width, _ = video_THWC.shape
            values = {
                "first_frame_sha256": f"{number:02x}" * 32, "instruction": "push",
                "prompt": "push", "negative_prompt": "",
                "seed": number, "height": height, "width": width, "num_frames": len(video_THWC), "fps": fps,
                "num_inference_steps": 1, "guidance_scale": 1.0, "model": "mini", "model_sha256": "0",
                **SAMPLED_PLAINLY,
                "adapter_sha256": None, "dtype": "float32", "codec": "h264", "crf": 18, "gop": 2, "source": "drawn",
            }  # fmt: skip
            job = Job(clip_id=job_id(values), **values)
            first_frame_HWC = video_THWC[0] if first_frames is None else first_frames[number]
            write_png(run.first_frame_file(job.first_frame_sha256), first_frame_HWC)
            clip = run.clip_file(job.clip_id)
            write_video(clip, video_THWC, fps)
            metrics = {"num_frames": len(video_THWC)}
            journal.append(JournalRecord(job.clip_id, "generate", "ok", file=str(clip), metrics=metrics))
            jobs.append(job)
    write_jobs(run.jobs, jobs)
    return jobs


def replan(root: Path, jobs: list[Job], number: int, **changes) -> None:
    """Rewrite jobs.parquet with one job changed and its id kept."""
    jobs = [Job(**{**asdict(job), **changes}) if i == number else job for i, job in enumerate(jobs)]
    write_jobs(RunFolder(root).jobs, jobs)
