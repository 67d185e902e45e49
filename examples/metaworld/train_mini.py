"""Record Meta-World and train the mini world model on it: one command, a stated time.

    python examples/metaworld/train_mini.py --out runs/mini --minutes 26 --text_encoder runs/text_encoder
    python examples/metaworld/train_mini.py --out runs/more --minutes 26 --start runs/mini/weights --num_gpus 4

The second command continues from the weights of the first, on recordings of another seed if --seed is given.

The stages: record the VAE's set; train the VAE while the transformer's set is recorded and prepared; train the
transformer; evaluate; collect. Each is a command with its own log, and is skipped when its output exists, so the same
command continues after an interruption (with new minutes). `--collect` ends the trainings where they are and collects.

    OUT/weights/     the pipeline in half precision, in files of at most 14 MB
    OUT/parts/       the same and all curves and logs in one tar, split into parts of 15 MiB
    OUT/progress.txt one line: the stages that run, and the last line of their logs
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
POLL_S = 2.0
GRACE_S = 40.0  # after a stage's time, for its last validation and files; then SIGTERM
VAE_SHARE = 0.48  # of the time left when its training begins
COLLECT_S = 45.0
STILL_TO_DO_S = 120.0  # kept from the recording while the VAE trains: preparing its clips
RETRY_S = 90.0  # least time for which a failed training is started again
SUCCESS_SHARE = 0.5  # recorded episodes a second beside the VAE's training, of those before it


@dataclass
class Running:
    """A stage's process.

    Args:
        name: Of the stage and its log.
        process: That runs.
        log: Its output.
        until_s: `time.monotonic()` when it must have ended.
        stopped: Whether it was asked to stop.
    """

    name: str
    process: subprocess.Popen
    log: TextIO
    until_s: float
    stopped: bool = False


class Plan:
    """Runs stages as processes until the deadline.

    Args:
        out: Folder of everything.
        deadline_s: `time.monotonic()` of the end.
    """

    def __init__(self, out: Path, deadline_s: float) -> None:
        self.out, self.start_s, self.deadline_s = out, time.monotonic(), deadline_s
        self.running: list[Running] = []
        (out / "logs").mkdir(parents=True, exist_ok=True)

    def left_s(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline_s - time.monotonic()

    def start(self, name: str, command: list[str], limit_s: float) -> Running:
        """Start a command whose output goes to `logs/NAME.log`."""
        log = (self.out / "logs" / f"{name}.log").open("a", encoding="utf-8")
        say(f"[{time.monotonic() - self.start_s:5.0f} s] {name}, at most {limit_s:.0f} s: {shlex.join(command)}")
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        self.running.append(Running(name, process, log, time.monotonic() + limit_s))
        return self.running[-1]

    def wait(self, one: Running) -> bool:
        """Wait until a stage has ended, or was stopped at its time; the others go on meanwhile.

        Returns:
            Whether it succeeded.
        """
        while one in self.running:
            self._look()
            time.sleep(0 if one not in self.running else POLL_S)
        return one.process.returncode == 0

    def run(self, name: str, command: list[str], limit_s: float) -> bool:
        """Start a command and wait for it."""
        return self.wait(self.start(name, command, limit_s))

    def end(self) -> None:
        """Stop what still runs."""
        for one in self.running:
            one.until_s = 0.0
        while self.running:
            self._look()
            time.sleep(POLL_S)

    def _look(self) -> None:
        now_s, lines = time.monotonic(), []
        for one in list(self.running):
            if one.process.poll() is not None:
                one.log.close()
                self.running.remove(one)
                say(f"[{now_s - self.start_s:5.0f} s] {one.name} ended with {one.process.returncode}")
                continue
            if now_s > one.until_s + GRACE_S and one.stopped:
                one.process.kill()
            elif now_s > one.until_s and not one.stopped:
                one.stopped, one.until_s = True, now_s
                one.process.send_signal(signal.SIGTERM)
            lines.append(f"{one.name}: {last_line(self.out / 'logs' / f'{one.name}.log')}")
        text = f"[{now_s - self.start_s:.0f} of {self.deadline_s - self.start_s:.0f} s] " + " | ".join(lines)
        (self.out / "progress.txt").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Run the stages that are left."""
    args = parse_args()
    out = args.out.resolve()
    plan = Plan(out, time.monotonic() + 60 * args.minutes)
    try:
        if not args.collect:
            train(args, out, plan)
        return collect(args, out, plan)
    except StageFailed as error:
        say(f"error: {error}")
        return 1
    finally:
        plan.end()


class StageFailed(Exception):
    """A stage that the next ones need did not end well."""


def train(args: argparse.Namespace, out: Path, plan: Plan) -> None:
    """Run all stages up to the transformer's training."""
    text_encoder = None
    if not (args.text_encoder or args.start) and not (out / "text_encoder/text_encoder").exists():
        command = [sys.executable, str(HERE / "train_text_encoder.py"), "--out", str(out / "text_encoder")]
        text_encoder = plan.start("text_encoder", command, plan.left_s())
    rate = record(args, out, plan, "vae", args.vae_episodes, args.workers, plan.left_s())
    prepare(out, plan, args, "vae")
    end_s = args.evaluation_minutes * 60 + COLLECT_S
    vae_s = args.vae_minutes * 60 if args.vae_minutes else VAE_SHARE * (plan.left_s() - end_s)
    vae = None
    training = vae_training(args, out)
    if not training.result.exists():
        vae = training.start(plan, args, vae_s)
    workers = max(1, args.workers - 2)  # the training's own processes need some
    recording_s = max(30.0, vae_s - STILL_TO_DO_S)
    episodes = args.base_episodes or max(5, int(rate * SUCCESS_SHARE * recording_s / args.base_tasks))
    record(args, out, plan, "base", episodes, workers, plan.left_s())
    prepare(out, plan, args, "base")
    if vae is not None:
        training.wait(plan, args, vae)
    if text_encoder is not None and not plan.wait(text_encoder):
        raise StageFailed("the text encoder, see logs/text_encoder.log")
    if not (out / "start").exists():
        assemble(args, out)
    training = transformer_training(args, out)
    if not training.result.exists():
        training.wait(plan, args, training.start(plan, args, plan.left_s() - end_s - GRACE_S / 2))


def record(
    args: argparse.Namespace, out: Path, plan: Plan, name: str, episodes: int, workers: int, limit_s: float
) -> float:
    """Record a set unless it exists, and return the episodes a second."""
    folder = out / "data" / name
    if not folder.exists():
        command = [sys.executable, str(HERE / "record.py"), "--set", name, "--out", str(folder)]
        command += ["--episodes_per_task", str(episodes), "--workers", str(workers), "--seed", str(args.seed)]
        command += ["--tasks", *args.tasks] if args.tasks else []
        start_s = time.monotonic()
        if not plan.run(f"record_{name}", command, limit_s):
            raise StageFailed(f"recording, see logs/record_{name}.log")
        (folder.parent / f"{name}.seconds").write_text(str(time.monotonic() - start_s), encoding="utf-8")
    stated = folder.parent / f"{name}.seconds"
    seconds = float(stated.read_text(encoding="utf-8")) if stated.exists() else 60.0
    num_episodes = json.loads((folder / "meta/info.json").read_text(encoding="utf-8"))["total_episodes"]
    say(f"{name}: {num_episodes} episodes, {num_episodes / seconds:.1f} a second")
    return num_episodes / seconds


def prepare(out: Path, plan: Plan, args: argparse.Namespace, name: str) -> None:
    """Make the training set of a recorded set unless it exists."""
    if (out / name / "train").exists():
        return
    command = [*DREAMGEN, "prepare", "--config_path", str(args.config), "--demos", str(out / "data" / name)]
    command += ["--out", str(out / name), f"--seed={args.seed}"]
    model = out / "start" if name == "base" else args.start
    command += [f"--model.path={model}"] if model else []  # as the training that uses the run folder next
    if not plan.run(f"prepare_{name}", command, plan.left_s()):
        raise StageFailed(f"preparing, see logs/prepare_{name}.log")


DREAMGEN = [sys.executable, "-m", "dreamgen"]


def trainer(command: str, num_gpus: int) -> list[str]:
    """Return the words that start a training of dreamgen, on one GPU or on several."""
    if num_gpus == 1:
        return [*DREAMGEN, command]
    launcher = [sys.executable, "-m", "finetune.launch", f"--num_processes={num_gpus}"]
    return launcher if command == "finetune" else [*launcher, command]


@dataclass(frozen=True)
class Training:
    """A training that ends by itself within its time.

    Args:
        command: Of dreamgen.
        name: Of the stage.
        run: Its run folder.
        settings: More settings.
        result: What it writes at the end.
        start_model: The pipeline that it trains; None for the VAE from scratch.
    """

    command: str
    name: str
    run: Path
    settings: list[str]
    result: Path
    start_model: Path | None = None

    def start(self, plan: Plan, args: argparse.Namespace, seconds: float, *more: str) -> Running:
        """Start it, from its last checkpoint if there is one."""
        words = [*trainer(self.command, args.num_gpus), "--config_path", str(args.config), "--out", str(self.run)]
        words += ["--resume", f"--seed={args.seed}", f"--{self.command}.max_minutes={max(seconds, 1) / 60:.3f}"]
        words += [f"--model.path={self.start_model}"] if self.start_model else [f"--finetune_vae.config={args.sizes}"]
        return plan.start(self.name, [*words, *(w.strip() for w in self.settings), *more], max(seconds, 120) + GRACE_S)

    def wait(self, plan: Plan, args: argparse.Namespace, running: Running) -> None:
        """Wait for it; after a failure continue without compilation, and at the end of its time write what there is.

        Raises:
            StageFailed: if there is no result.
        """
        if plan.wait(running) or self.result.exists():
            return
        left_s = running.until_s - GRACE_S - time.monotonic()
        if not running.stopped and left_s > RETRY_S:
            say(f"{self.name} failed, see logs/{self.name}.log: again without compilation")
            if plan.wait(self.start(plan, args, left_s, f"--{self.command}.compile=false")):
                return
        self.finish(plan, args)

    def finish(self, plan: Plan, args: argparse.Namespace) -> None:
        """Write the weights of a training that was interrupted after its first checkpoint.

        Raises:
            StageFailed: if there is no result.
        """
        say(f"{self.name} was interrupted: its last checkpoint is used")
        if not plan.wait(self.start(plan, args, 0.0)):
            raise StageFailed(f"{self.name}, see logs/{self.name}.log")


def vae_training(args: argparse.Namespace, out: Path) -> Training:
    """Return the training of the VAE."""
    return Training("finetune_vae", "vae", out / "vae", args.vae_set, out / "vae/vae", args.start)


def transformer_training(args: argparse.Namespace, out: Path) -> Training:
    """Return the training of the transformer."""
    return Training("finetune", "transformer", out / "base", args.base_set, out / "base/adapter", out / "start")


def assemble(args: argparse.Namespace, out: Path) -> None:
    """Write the pipeline that the transformer's training starts from.

    It has the trained VAE, a text encoder, and a transformer with random weights or those of `--start`.
    """
    import torch
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    from dreamgen.config.loading import configs_folder, read_yaml
    from dreamgen.models.cosmos_predict25.mini import build_mini, save_pipeline

    text = args.text_encoder or args.start or out / "text_encoder"
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(text / "text_encoder")
    shape = encoder.config.get_text_config()
    # The mini preset's text part is built and thrown away; the transformer must fit the trained one.
    sizes = read_yaml(configs_folder() / "models" / "mini.yaml") | read_yaml(args.sizes)
    sizes["transformer"]["crossattn_proj_in_channels"] = shape.hidden_size * shape.num_hidden_layers
    pipe = build_mini(sizes | {"seed": args.seed})
    pipe.vae = AutoencoderKLWan.from_pretrained(out / "vae/vae")
    if args.start:
        pipe.transformer = CosmosTransformer3DModel.from_pretrained(
            args.start / "transformer", torch_dtype=torch.float32
        )
    pipe.text_encoder, pipe.tokenizer = encoder, AutoTokenizer.from_pretrained(text / "tokenizer")
    save_pipeline(pipe, out / "start")


def collect(args: argparse.Namespace, out: Path, plan: Plan) -> int:
    """Write the weights in half precision, evaluate them if time is left, and pack everything into parts.

    Returns:
        Exit status: 1 if there are no weights.
    """
    vae = vae_training(args, out)
    for training, logs in ((vae, out / "vae/finetune_vae"), (transformer_training(args, out), out / "base/finetune")):
        if not training.result.exists() and any(logs.glob("checkpoints/step-*")):
            training.finish(plan, args)
    trained = out / "base/adapter"
    if trained.exists() and not (out / "weights").exists():
        halve(trained, out / "weights")
    if args.evaluate and (out / "weights").exists():
        command = args.evaluate.format(weights=out / "weights", out=out)
        plan.run("evaluate", shlex.split(command), max(20.0, plan.left_s() - COLLECT_S / 2))
    pack(out)
    return 0 if (out / "weights").exists() else 1


def halve(trained: Path, folder: Path) -> None:
    """Save a pipeline in float16, which keeps 10 bits of each weight, in files of at most 14 MB."""
    import torch
    from diffusers import Cosmos2_5_PredictBasePipeline

    from dreamgen.models.cosmos_predict25.mini import save_pipeline
    from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker

    pipe = Cosmos2_5_PredictBasePipeline.from_pretrained(
        trained, torch_dtype=torch.float16, safety_checker=NoSafetyChecker()
    )
    save_pipeline(pipe, folder, max_shard_size="14MB")


def pack(out: Path) -> None:
    """Pack weights, curves, pictures and logs into a tar and split it."""
    parts = out / "parts"
    shutil.rmtree(parts, ignore_errors=True)  # of an earlier call
    parts.mkdir()
    wanted = ["weights", "logs", "evaluation", "vae/vae", "vae/finetune_vae/*.csv", "base/finetune/*.csv"]
    wanted += [
        "base/adapter/README.md",
        "base/adapter/loss.svg",
        "*/run.yaml",
        "data/*/meta/info.json",
        "data/*.seconds",
    ]
    names = [str(path.relative_to(out)) for pattern in wanted for path in sorted(out.glob(pattern))]
    if (out / "weights").exists():
        names.remove("vae/vae")
        names += [str(p.relative_to(out)) for p in out.glob("vae/vae/*.png")]
    tar = subprocess.Popen(["tar", "-C", str(out), "-c", *names], stdout=subprocess.PIPE)
    assert tar.stdout is not None
    number = 0
    while piece := tar.stdout.read(15 * 2**20):
        (parts / f"mini.tar.{number:02d}").write_bytes(piece)
        number += 1
    if tar.wait():
        raise StageFailed("tar could not read the results")
    for picture in out.glob("vae/vae/held_out.png"):
        shutil.copyfile(picture, parts / "vae.png")
    say(f"{parts}: {number} parts; cat mini.tar.* | tar x")


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, shortened."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 2000))
        lines = [
            line for line in stream.read().decode("utf-8", "replace").replace("\r", "\n").split("\n") if line.strip()
        ]
    return lines[-1][-160:].strip() if lines else ""


def say(message: str) -> None:
    """Write a line to stderr."""
    print(message, file=sys.stderr, flush=True)


def existing_path(text: str) -> Path:
    """Return a whole path, for commands that run in another folder."""
    path = Path(text).resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def pipeline_folder(text: str) -> Path:
    """Return the whole path of a pipeline that `save_pretrained` wrote."""
    path = existing_path(text)
    if not (path / "model_index.json").exists():
        raise argparse.ArgumentTypeError(f"{text} is no pipeline: it has no model_index.json")
    return path


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--minutes", type=float, required=True, help="for everything that is left to do")
    add(
        "--text_encoder",
        type=existing_path,
        help="folder with text_encoder/ and tokenizer/; default: that of --start, or train one on the CPU",
    )
    add("--sizes", type=existing_path, default=HERE / "mini.yaml", help="of VAE and transformer")
    add("--config", type=existing_path, default=HERE / "training.yaml", help="settings of the trainings")
    add("--start", type=pipeline_folder, help="folder of a pipeline: continue from its weights, with its text encoder")
    add("--num_gpus", type=int, default=1, help="for both trainings; each takes a batch")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that record; default: all cores")
    add("--vae_episodes", type=int, default=40, help="of each task for the VAE")
    add("--base_episodes", type=int, help="of each task for the transformer; default: as many as time allows")
    add("--base_tasks", type=int, default=45, help="tasks and scenes of the base set, to estimate its length")
    add("--tasks", nargs="+", help="record only these tasks")
    add("--vae_minutes", type=float, help="of the VAE's training; default: about half of the time left")
    add("--evaluation_minutes", type=float, default=0.0, help="kept for --evaluate")
    add("--evaluate", help="command that evaluates {weights} and writes to {out}/evaluation")
    add("--collect", action="store_true", help="end the trainings where they are, and collect")
    add("--vae_set", nargs="*", default=[], help="more settings of the VAE's training, --name=value after --vae_set")
    add("--base_set", nargs="*", default=[], help="more settings of the transformer's training")
    words = sys.argv[1:]
    # argparse takes words that begin with dashes for its own options.
    args = parser.parse_args([f" {w}" if w.startswith(("--finetune", "--model.", "--video.")) else w for w in words])
    if args.num_gpus < 1:
        parser.error("--num_gpus is at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
