"""The whole job on this machine's GPUs, at a model's real sizes with random weights, through the command line.

    python benchmarks/gpu_check.py                                          # Cosmos-Predict2.5-2B, all GPUs, 10 minutes
    python benchmarks/gpu_check.py --preset mini --height 64 --width 64 --num_frames 9 --num_inference_steps 2

1. `dreamgen run` on generated demonstrations and first frames, from prepare to the report.
2. `python -m finetune.launch` with DoRA on all GPUs: a second adapter.
3. `dreamgen generate` at levels exact and turbo with both adapters in one job; killed after the first clip and resumed.
4. `dreamgen label` and `dreamgen curate`, killed after the first result and resumed.
5. What `--dry_run` estimates against what was measured.

Resumed clips, labels and scores must equal those of the undisturbed run byte for byte. A table goes to stdout and JSON
to `--json`, which is rewritten after every stage. SIGTERM ends the check as the time limit does. Exit status: 0 all
stages ended well, 1 one did not or a resumed result differs, 3 the time limit left stages out.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from gpu_check_report import Check, exit_status, is_out_of_time, read_finished, report_of, tables
from gpu_check_steps import STAGES, STEPS
from gpu_monitor import GpuMonitor
from measured_commands import TIME_LIMIT, MeasuredCommands, Row
from metrics import write_report

from dreamgen.config.loading import find_preset, read_yaml
from dreamgen.run.files import read_json


class Stopped(BaseException):  # not an Exception: libraries catch those
    """The check was told to end (SIGTERM)."""


def main() -> int:
    """Run all steps, print the tables and return the exit status."""
    args = parse_arguments()
    start_s, report = time.monotonic(), Path(args.json)
    signal.signal(signal.SIGTERM, stop)
    with GpuMonitor() as monitor:
        check = Check(args, count_gpus(), MeasuredCommands(args.work / "logs", monitor, args.limit_s, lambda: flush()))

        def flush() -> None:
            write_report(report_of(check, STAGES, time.monotonic() - start_s), str(report))

        if args.resume:
            read_finished(check, read_json(report))
        flush()
        try:
            for step, needs, gives in STEPS:
                if check.commands.is_ok(*needs) and not check.commands.is_ok(*gives):
                    step(check)
            is_stopped = False
        except Stopped:
            is_stopped = True
            check.commands.stop_all()
    why = TIME_LIMIT if is_stopped or is_out_of_time(check) else "not run: an earlier stage failed"
    for stage in STAGES:
        if stage not in check.commands.rows:
            check.commands.add(Row(stage, why))
    flush()
    print(tables(report_of(check, STAGES, time.monotonic() - start_s)))
    print(f"\nlogs: {args.work / 'logs'}\nmetrics: {report}", file=sys.stderr)
    return exit_status(check)


def stop(*_: object) -> NoReturn:
    """Handle SIGTERM, as `timeout` and job schedulers send it: what was measured is still reported."""
    raise Stopped


def count_gpus() -> int:
    """Count the GPUs, without taking memory on one."""
    import torch

    return torch.cuda.device_count()


def parse_arguments() -> argparse.Namespace:
    """Read the command line; sizes that are not given are the preset's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cosmos2.5-2b", help="a preset of configs/")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num_frames", type=int)
    parser.add_argument("--num_inference_steps", type=int, default=8)
    parser.add_argument("--num_steps", type=int, default=6, help="optimizer steps of each adapter")
    parser.add_argument("--idm_num_steps", type=int, default=100, help="optimizer steps of inverse dynamics")
    parser.add_argument("--clips_per_gpu", type=int, default=2, help="of each adapter and level; at least 2")
    parser.add_argument("--no_compile", action="store_true", help="compile nothing: a shorter check, slower clips")
    parser.add_argument("--limit_s", type=float, default=600.0, help="for everything together")
    parser.add_argument(
        "--resume", action="store_true", help="go on in --work with its --json; what ended well is kept"
    )
    parser.add_argument("--work", type=Path, help="new folder for models, runs and logs; a temporary one if not given")
    parser.add_argument("--json", default="benchmarks/results/gpu_check.json", help="where to write the metrics")
    args = parser.parse_args()
    if args.resume and (args.work is None or not Path(args.json).is_file()):
        parser.error("--resume needs --work and --json of the check that it continues")
    video = read_yaml(find_preset(args.preset))["video"]
    for name in ("height", "width", "num_frames"):
        setattr(args, name, getattr(args, name) or video[name])
    args.work = (args.work or Path(tempfile.mkdtemp(prefix="gpu_check-"))).resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    sys.exit(main())
