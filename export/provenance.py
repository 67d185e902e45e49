"""Where each episode came from: one row an episode, beside the dataset, so that no reader stumbles over it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import dreamgen
from dreamgen.core.files import atomic_file, read_json
from dreamgen.core.run_folder import RunFolder
from export.episodes import Episode

FROM_JOB = ("instruction", "prompt", "negative_prompt", "seed", "model", "model_sha256", "adapter_sha256",
            "num_inference_steps", "guidance_scale", "dtype", "first_frame_sha256", "source")  # fmt: skip


def provenance_file(run: RunFolder, dataset: str) -> Path:
    """Return where a dataset's provenance lies."""
    return run.datasets / f"{dataset}.provenance.parquet"


def write_provenance(path: Path, episodes: Sequence[Episode], of_run: dict[str, Any]) -> None:
    """Write one row an episode, atomically.

    Columns: episode_index, clip_id, num_frames, the job's own, `score_NAME` for each figure, and those of the run.

    Args:
        of_run: `run_provenance`.
    """
    scores = sorted({name for episode in episodes for name in episode.clip.scores})
    plain = {name: _is_plain(name, episodes) for name in scores}
    rows = []
    for episode in episodes:
        job, figures = episode.clip.job, episode.clip.scores
        rows.append(
            {
                "episode_index": episode.index,
                "clip_id": job.clip_id,
                "num_frames": episode.num_frames,
                **{name: getattr(job, name) for name in FROM_JOB},
                "safety_checker": episode.clip.safety_checker,
                **{f"score_{n}": _cell(figures[n], plain[n]) if n in figures else None for n in scores},
                **of_run,
            }
        )
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def run_provenance(run: RunFolder) -> dict[str, Any]:
    """Return what all clips of a run share: error of the inverse-dynamics model, version.

    `idm_held_out` is JSON: every entry of idm/config.json whose name begins with `held_out`; None without the file.
    """
    config = run.idm / "config.json"
    held_out = None
    if config.exists():
        held_out = json.dumps({k: v for k, v in read_json(config).items() if k.startswith("held_out")})
    return {
        "idm_held_out": held_out,
        "dreamgen_version": dreamgen.__version__,
    }


def _is_plain(score: str, episodes: Sequence[Episode]) -> bool:
    """Say whether every value of a score fits one column of numbers."""
    values = (episode.clip.scores.get(score) for episode in episodes)
    return all(value is None or isinstance(value, bool | int | float) for value in values)


def _cell(value: Any, plain: bool) -> Any:
    if plain:
        return None if value is None else float(value)
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
