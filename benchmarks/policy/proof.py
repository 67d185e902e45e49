"""Do dreams make a better policy? Real demonstrations alone against real ones with dreams, closed loop in a simulator.

    pip install 'dreamgen[sim]'
    python benchmarks/policy/proof.py --small --out runs/proof_small   # one task, one seed, ACT, on a CPU
    python benchmarks/policy/proof.py --out runs/proof                 # four tasks, three seeds, two policies: a GPU

For each task that mini's base has not seen: N demonstrations, a LoRA on them, M dreams from new first frames, inverse
dynamics, labels, curation and export by the product's own commands; then LeRobot policies on each arm, evaluated at
object positions that no training data shows. The same command continues after an interruption: what is done is kept.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from fnmatch import fnmatch
from pathlib import Path

import torch
from steps import ARMS, AUGMENTATIONS, POLICIES, Step, all_steps, environment, python, write_settings

from dreamgen.run.files import write_text

# The held-out tasks in which the actions of another episode do the task least often (docs/proof.md); the next two are
# for choosing settings.
TABLE_TASKS = ("coffee-push", "push-back", "push-wall", "sweep")
DEVELOPMENT_TASKS = ("door-unlock", "reach-wall")
# N, so that policies that are trained on N demonstrations alone succeed in about 20 to 50 % of the episodes.
NUM_DEMOS = {"coffee-push": 5, "push-back": 20, "push-wall": 10, "sweep": 10}
SMALL = {
    "tasks": ["sweep"], "seeds": [0], "policies": ["act"], "arms": ["real", "curated"], "dream_counts": [],
    "num_demos": [10], "num_dreams": 20, "dreams_per_start": 1, "play_episodes": 1, "other_episodes": 0,
    "lora_steps": 120, "lora_batch_size": 2, "idm_steps": 300, "idm_batch_size": 8, "idm_image_px": 64,
    "idm_width": 128, "updates": 300, "batch_size": 8, "eval_episodes": 20, "num_workers": 0,
}  # fmt: skip


def main() -> int:
    """Run the steps that are left, and write the report."""
    args = parse_arguments()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    write_settings(args)
    deadline_s = time.monotonic() + 60 * args.minutes
    results = run_steps(
        all_steps(args), lambda step: _marker(args, step).is_file(), lambda step, gpu: run(args, step, gpu, deadline_s),
        args.jobs, args.gpus,
    )  # fmt: skip
    from proof_report import write_reports  # imports modules beside this folder, which `steps` makes importable

    write_reports(args)
    return max((status for name, status in results.items() if is_asked_for(args, name)), default=0)


def is_asked_for(args: argparse.Namespace, name: str) -> bool:
    """Whether this call runs the step of that name."""
    return any(fnmatch(name, pattern) for pattern in args.only)


def run_steps(
    steps: Sequence[Step],
    is_done: Callable[[Step], bool],
    run_step: Callable[[Step, str | None], int],
    jobs: int,
    gpus: Sequence[str],
) -> dict[str, int]:
    """Run each step once the ones that it needs are done, several at a time; the first in the list come first.

    Args:
        steps: Each after those that it needs.
        is_done: Whether a step was done by an earlier call.
        run_step: Runs a step on a GPU, or on the CPU with None, and returns 0 when it is done.
        jobs: Steps at a time.
        gpus: Each step gets the one that fewest steps use.

    Returns:
        What `run_step` returned for each step that ran; of the others, those that could not run, as a step that they
        need failed or was left out, are 1.
    """
    waiting = {step.name: step for step in steps if not is_done(step)}
    results: dict[str, int] = {}
    running: dict[Future[int], tuple[str, str | None]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for name, step in list(waiting.items()):
                if any(results.get(need) for need in step.needs):
                    results[name] = 1
                    del waiting[name]
                elif len(running) < jobs and not any(need in waiting or need in _names(running) for need in step.needs):
                    used = Counter(gpu for _, gpu in running.values())
                    gpu = min(gpus, key=lambda one: used[one]) if gpus else None
                    running[pool.submit(run_step, step, gpu)] = name, gpu
                    del waiting[name]
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, _ = running.pop(future)
                    results[name] = future.result()
    return results


def _names(running: dict[Future[int], tuple[str, str | None]]) -> set[str]:
    return {name for name, _ in running.values()}


def run(args: argparse.Namespace, step: Step, gpu: str | None, deadline_s: float) -> int:
    """Run a step's commands, with their output in a log.

    Returns:
        0 when it is done, 1 when it was not asked for or had no time left, 2 when a command failed.
    """
    if not is_asked_for(args, step.name):
        return 1
    if time.monotonic() > deadline_s:
        print(f"{step.name}: no time left", flush=True)
        return 1
    log = args.out / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    if step.output is not None and step.output.is_dir():
        shutil.rmtree(step.output)
    with log.open("w", encoding="utf-8") as file:
        for command in step.commands:
            if callable(command):
                command()
                continue
            file.write(f"$ python {shlex.join(command)}\n")
            file.flush()
            done = subprocess.run([python(), *command], stdout=file, stderr=file, env=environment(gpu))
            if done.returncode:
                lines = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
                print(f"{step.name}: exit {done.returncode}, see {log}\n{lines}", file=sys.stderr, flush=True)
                return 2
    seconds = time.monotonic() - start_s
    _marker(args, step).parent.mkdir(parents=True, exist_ok=True)
    write_text(_marker(args, step), f"{seconds:.1f}\n")
    print(f"{step.name}: {seconds:.0f} s", flush=True)
    return 0


def _marker(args: argparse.Namespace, step: Step) -> Path:
    return args.out / "done" / f"{step.name}.seconds"


def parse_arguments() -> argparse.Namespace:
    """Return the command line; `--small` changes defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; the same one continues")
    parser.add_argument("--small", action="store_true", help="one task, one seed, two arms, short trainings")
    parser.add_argument("--tasks", nargs="+", default=list(TABLE_TASKS),
                        help=f"settings are chosen on others: {', '.join(DEVELOPMENT_TASKS)}")  # fmt: skip
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the policies' trainings")
    parser.add_argument("--num_demos", nargs="+", type=int, help="N: one number, or one for each task")
    parser.add_argument("--num_dreams", type=int, default=100, help="M")
    parser.add_argument("--dreams_per_start", type=int, default=1, help="with other noise")
    parser.add_argument("--dream_counts", nargs="*", type=int, default=[25], help="more arms, with fewer dreams")
    parser.add_argument("--play_episodes", type=int, default=20, help="of each of 50 tasks, for inverse dynamics")
    parser.add_argument("--other_episodes", type=int, default=10, help="demonstrations of each seen task, likewise")
    parser.add_argument("--lora_steps", type=int, default=1200, help="steps of the adapter")
    parser.add_argument("--lora_batch_size", type=int, default=8, help="of the adapter")
    parser.add_argument("--idm_steps", type=int, default=5000, help="steps of the inverse-dynamics model")
    parser.add_argument("--idm_batch_size", type=int, default=32)
    parser.add_argument("--idm_image_px", type=int, default=128)
    parser.add_argument("--idm_width", type=int, default=256)
    parser.add_argument("--updates", type=int, default=4000, help="steps of each policy, the same for every arm")
    parser.add_argument("--batch_size", type=int, default=32, help="of the policies")
    parser.add_argument("--eval_episodes", type=int, default=50)
    parser.add_argument("--num_workers", type=int, default=1, help="data loading processes of a policy's training")
    parser.add_argument("--augment", default="colors", choices=tuple(AUGMENTATIONS), help="of the policies' pictures")
    parser.add_argument("--policy_words", nargs="*", default=[], help="more settings of lerobot-train")
    parser.add_argument("--cuda_graphs", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
                        help="replay training steps of ACT as CUDA graphs")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    from environments import visible_gpus  # beside this folder, which `steps` makes importable

    gpus = visible_gpus(torch.cuda.device_count())
    parser.add_argument("--gpus", nargs="*", default=gpus, help="values of CUDA_VISIBLE_DEVICES; default: all")
    parser.add_argument("--jobs", type=int, default=max(1, 4 * len(gpus)), help="steps at a time, on all GPUs together")
    parser.add_argument("--record_workers", type=int, default=max(1, torch.get_num_threads() // 4),
                        help="processes of a recording; several run at a time")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=["*"], help="steps by name, such as '*/demos' and '*/policies/*'; "
                        "those that they need must be among them, or done")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=100_000, help="after which no step begins")
    if parser.parse_known_args()[0].small:
        parser.set_defaults(**SMALL)
    args = parser.parse_args()
    args.num_demos = args.num_demos or [NUM_DEMOS.get(task, 10) for task in args.tasks]
    if len(args.num_demos) not in (1, len(args.tasks)):
        parser.error(f"--num_demos has {len(args.num_demos)} numbers for {len(args.tasks)} tasks")
    return args


if __name__ == "__main__":
    sys.exit(main())
