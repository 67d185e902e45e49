"""Record demonstrations of Meta-World's scripted experts as a LeRobot v3.0 dataset.

    pip install 'dreamgen[sim]'
    python examples/metaworld/record.py --set base --episodes_per_task 100 --out data/base

Sets:
  base      successes on the seen tasks, and on every task of the scenes that allow several
  heldout   successes on the tasks that the transformer never sees in training
  vae       all 50 tasks: three expert episodes, successful or not, to one of random motion
  play      all 50 tasks: noisy experts and random motion, for inverse dynamics
  failures  all 50 tasks: experts that make a mistake and do not finish
  demo      successes on one held-out task

The same seed gives the same dataset, whatever the number of workers. Positions of objects and goals, instructions and
seeds are split: --region train never shows those of --region test. Each frame's action is held until the next frame,
so it can be replayed; the frame rate is 80 Hz / --frame_skip.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import batched
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import FIRST_RECORDING_SEED, HELD_OUT, SEEN, TASKS, VARIATIONS

from dreamgen.errors import UserError
from dreamgen.progress import Progress, log

if TYPE_CHECKING:
    from dataset import StoredEpisode
    from episodes import Episode
    from scene import Scene

DEMO_TASK = "drawer-open"
EPISODES_AT_ONCE = 20  # of one task: its environment is built once for them
MAX_ATTEMPTS = 6  # to get a wanted result
CONTROL_RATE_HZ = 80


@dataclass(frozen=True)
class RecordingSet:
    """What a set holds.

    Args:
        tasks: Its tasks.
        behaviors: Of an episode, by its number, over and over.
        wants: Whether an episode must succeed (True), must not (False), or may do either (None).
        has_variations: Whether the scenes that allow several tasks are recorded, too.
        is_paraphrased: Whether half of the instructions are sentences of the text encoder's grammar.
    """

    tasks: tuple[str, ...]
    behaviors: tuple[str, ...] = ("expert",)
    wants: bool | None = True
    has_variations: bool = False
    is_paraphrased: bool = False


SETS = {
    "base": RecordingSet(SEEN, has_variations=True, is_paraphrased=True),
    "heldout": RecordingSet(tuple(HELD_OUT)),
    "vae": RecordingSet(TASKS, ("expert", "expert", "expert", "random"), None),
    "play": RecordingSet(TASKS, ("noisy", "random"), None),
    "failures": RecordingSet(TASKS, ("mistaken",), False),
    "demo": RecordingSet((DEMO_TASK,)),
}


@dataclass(frozen=True)
class Block:
    """Consecutive episodes of one task, which one worker records.

    Args:
        name: The set.
        task: The task.
        variation: Key of `VARIATIONS`; "" for the task's own scene.
        numbers: Of the episodes within the task.
        first_seed: Seed of the set's episode 0.
        region: "train" or "test".
        frame_skip, num_frames, size_px: As `Options` has them.
        folder: For the videos.
    """

    name: str
    task: str
    variation: str
    numbers: tuple[int, ...]
    first_seed: int
    region: str
    frame_skip: int
    num_frames: int
    size_px: int
    folder: Path


def main() -> int:
    """Record a dataset as the command line says."""
    arguments = _parser().parse_args()
    try:
        _check(arguments)
        record(arguments)
    except UserError as error:
        log(str(error))
        return 2
    return 0


def record(arguments: argparse.Namespace) -> None:
    """Record a dataset and print what became of it as JSON."""
    import dataset  # noqa: F401  # now, and not in the thread that receives the first result

    out, start_s = arguments.out, time.monotonic()
    staging = out.parent / f".{out.name}.recording"
    shutil.rmtree(staging, ignore_errors=True)  # of an interrupted recording
    blocks = _blocks(arguments, staging)
    total = sum(len(block.numbers) for block in blocks)
    done: dict[tuple[int, int], StoredEpisode] = {}
    attempts: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")  # a forked process cannot render where its parent has a GPU open
    with (
        ProcessPoolExecutor(arguments.workers, context, _start_worker) as pool,
        Progress("record", total, "episodes") as progress,
    ):
        futures = [pool.submit(_record_block, *numbered) for numbered in enumerate(blocks)]
        for future in as_completed(futures):
            try:
                position, episodes, tried = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            attempts.update({f"{blocks[position].task}|{blocks[position].variation}": tried})
            done |= {(number, position): episode for number, episode in episodes.items()}
            seconds = time.monotonic() - start_s
            progress.add(len(blocks[position].numbers), note=f"{len(done) / seconds:.1f} episodes/s")
        recorded_s = time.monotonic() - start_s
        # Interleaved, so that any part of the dataset has all tasks.
        episodes = [done[key] for key in sorted(done)]
        if not episodes:
            raise UserError("no episode came out as the set wants", actual=f"{sum(attempts.values())} attempts")
        _write(out, staging, episodes, arguments, pool)
    shutil.rmtree(staging)
    print(json.dumps(_summary(episodes, attempts, total, recorded_s, time.monotonic() - start_s)))


def _write(
    out: Path, staging: Path, episodes: Sequence[StoredEpisode], arguments: argparse.Namespace,
    pool: ProcessPoolExecutor,
) -> None:  # fmt: skip
    from dataset import write_dataset

    (markers := staging / "done").mkdir(parents=True, exist_ok=True)
    (unfinished := staging / "dataset").mkdir()
    write_dataset(
        unfinished, markers, episodes, CONTROL_RATE_HZ // arguments.frame_skip, arguments.size_px, vector_names(), pool
    )
    unfinished.rename(out)


def _summary(
    episodes: Sequence[StoredEpisode], attempts: Counter[str], wanted: int, recorded_s: float, total_s: float
) -> dict[str, object]:
    kept, good = Counter[str](), Counter[str]()
    for episode in episodes:
        key = f"{episode.extras['source_task']}|{episode.extras['scene']}"
        kept[key] += 1
        good[key] += episode.extras["success"]
    tasks = {
        key.removesuffix("|"): {"attempts": tried, "episodes": kept[key], "successes": good[key]}
        for key, tried in sorted(attempts.items())
    }
    return {
        "num_episodes": len(episodes), "num_wanted": wanted,
        "episodes_per_s": round(len(episodes) / recorded_s, 2),
        "recorded_s": round(recorded_s, 1), "total_s": round(total_s, 1), "tasks": tasks,
    }  # fmt: skip


def _blocks(arguments: argparse.Namespace, staging: Path) -> list[Block]:
    """Split the set into blocks; a set's seeds do not overlap with those of other sets or seeds."""
    recording = SETS[arguments.set]
    sources = [(task, "") for task in recording.tasks]
    if recording.has_variations:
        sources += [(task, name) for name, variation in VARIATIONS.items() for task in variation.tasks]
    sources = [(task, name) for task, name in sources if not arguments.tasks or task in arguments.tasks]
    number = list(SETS).index(arguments.set) + len(SETS) * arguments.seed
    first_seed = FIRST_RECORDING_SEED + 1_000_000 * number if arguments.region == "train" else 0
    size = min(EPISODES_AT_ONCE, max(2, -(-arguments.episodes_per_task * len(sources) // (3 * arguments.workers))))
    parts = [(source, numbers) for source in sources for numbers in batched(range(arguments.episodes_per_task), size)]
    return [
        Block(arguments.set, task, name, numbers, first_seed, arguments.region, arguments.frame_skip,
              arguments.num_frames, arguments.size_px, staging / f"{position:06d}")
        for position, ((task, name), numbers) in enumerate(parts)
    ]  # fmt: skip


_scene: Scene | None = None  # of a worker: the last one, as blocks of a task follow one another


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(0)
    _choose_gpu(multiprocessing.current_process()._identity[-1])
    Finalize(None, _close_scene, exitpriority=100)


def _choose_gpu(number: int) -> None:
    """Render on one of this machine's GPUs, by the worker's number; MuJoCo would take the first one for all workers."""
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    chosen = {"MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"} & set(os.environ)
    if os.environ.get("MUJOCO_GL") != "egl" or num_gpus < 2 or chosen:
        return
    from mujoco.egl import egl_ext  # pyright: ignore[reportMissingImports]  # of the extra `sim`

    num_gpus = min(num_gpus, len(egl_ext.eglQueryDevicesEXT()))
    os.environ["MUJOCO_EGL_DEVICE_ID"] = str(number % num_gpus)


def _close_scene() -> None:
    global _scene
    if _scene is not None:
        _scene.close()
        _scene = None


def _scene_of(block: Block) -> Scene:
    global _scene
    from scene import Scene

    variation = VARIATIONS.get(block.variation)
    if _scene is None or (_scene.task, _scene.variation) != (block.task, variation):
        _close_scene()
        _scene = Scene(block.task, block.frame_skip, variation, block.size_px)
    return _scene


def _record_block(position: int, block: Block) -> tuple[int, dict[int, StoredEpisode], int]:
    from episodes import run_episode

    recording, scene, episodes, tried = SETS[block.name], _scene_of(block), {}, 0
    block.folder.mkdir(parents=True, exist_ok=True)
    for number in block.numbers:
        behavior = recording.behaviors[number % len(recording.behaviors)]
        for attempt in range(1 if recording.wants is None else MAX_ATTEMPTS):
            seed, tried = block.first_seed + number * MAX_ATTEMPTS + attempt, tried + 1
            episode = run_episode(scene, behavior, seed, block.region, block.num_frames, recording.is_paraphrased)
            if recording.wants in (None, episode.success):
                video = block.folder / f"{number:06d}.mp4"
                episodes[number] = stored(scene, episode, video, behavior, seed, CONTROL_RATE_HZ // block.frame_skip)
                break
    return position, episodes, tried


def stored(scene: Scene, episode: Episode, video: Path, behavior: str, seed: int, fps: int) -> StoredEpisode:
    """Film an episode, encode it to `video`, and describe it as `write_dataset` wants it."""
    from dataset import store_episode

    extras = {
        "source_task": scene.task, "scene": scene.variation.name if scene.variation else "", "behavior": behavior,
        "seed": seed, "success": episode.success, "frames_to_success": episode.frames_to_success,
        "done_at_end": episode.done_at_end,
    }  # fmt: skip
    vectors = {
        "observation.state": episode.state_TS, "action": episode.action_TA,
        "observation.environment_state": episode.environment_TE,
    }  # fmt: skip
    frames = [scene.render(physics) for physics in episode.physics]
    return store_episode(video, frames, fps, episode.instruction, vectors, extras)


def vector_names() -> dict[str, tuple[str, ...]]:
    """Return the names of each vector's elements."""
    from scene import ACTION_NAMES, ENVIRONMENT_NAMES, STATE_NAMES

    return {
        "observation.state": STATE_NAMES,
        "action": ACTION_NAMES,
        "observation.environment_state": ENVIRONMENT_NAMES,
    }


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that cannot work.

    Raises:
        UserError: naming the option or the missing package.
    """
    if unknown := set(arguments.tasks or ()) - set(SETS[arguments.set].tasks):
        raise UserError(f"--tasks: not in the set {arguments.set}", actual=", ".join(sorted(unknown)),
                        allowed=", ".join(SETS[arguments.set].tasks))  # fmt: skip
    if CONTROL_RATE_HZ % arguments.frame_skip:
        raise UserError("--frame_skip does not give a whole frame rate", actual=str(arguments.frame_skip),
                        allowed="a divisor of 80, such as 4, 5 or 8")  # fmt: skip
    if arguments.region == "test" and arguments.episodes_per_task * MAX_ATTEMPTS > FIRST_RECORDING_SEED:
        raise UserError("--episodes_per_task: too many for the seeds kept for tests",
                        actual=str(arguments.episodes_per_task),
                        allowed=f"at most {FIRST_RECORDING_SEED // MAX_ATTEMPTS}")  # fmt: skip
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists", next_step="name another folder with --out")
    check_simulator()


def check_simulator() -> None:
    """Choose how to render, unless the environment says it, and find the simulator.

    Raises:
        UserError: if it is not installed.
    """
    if "MUJOCO_GL" not in os.environ:
        has_gpu, has_osmesa = Path("/dev/nvidia0").exists(), ctypes.util.find_library("OSMesa")
        os.environ["MUJOCO_GL"] = "osmesa" if has_osmesa and not has_gpu else "egl"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if importlib.util.find_spec("metaworld") is None or importlib.util.find_spec("mujoco") is None:
        raise UserError("the simulator is not installed", next_step="pip install 'dreamgen[sim]'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=tuple(SETS), required=True, help="what to record")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dataset, which must not exist")
    parser.add_argument("--episodes_per_task", type=int, default=10, help="of each task and scene (default: 10)")
    parser.add_argument("--tasks", nargs="+", help="only these tasks of the set")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other episodes (default: 0)")
    parser.add_argument("--region", choices=("train", "test"), default="train",
                        help="test: only positions and instructions that training data never shows")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--frame_skip", type=int, default=5, help="control steps of 1/80 s a frame (default: 5)")
    parser.add_argument("--num_frames", type=int, default=25, help="length of an episode (default: 25)")
    parser.add_argument("--size_px", type=int, default=128, help="height and width (default: 128)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
