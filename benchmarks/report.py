"""Write the report of a run of ten thousand clips, open it in headless Chromium, and work with it.

    python benchmarks/report.py --folder /tmp/report_run --out benchmarks/results/report.json
    python benchmarks/report.py --folder /tmp/small --num_clips 200 --repeats 1

The run has clips of the default size and labels with uncertainty, of which a few are drawn and the others are hard
links, and a value of every registered score for each clip. It is made once and used again. Writing is measured as the
command of a process of its own. In the browser, opening is measured from the navigation, and every other action from
its event, until the cards of the page are drawn with their curves and the next frame is painted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from environments import with_checkout  # noqa: E402
from synthetic_run import make_run  # noqa: E402

from dreamgen.data.trajectory import ACTION_STD  # noqa: E402
from dreamgen.extensions.judge import curation_metrics  # noqa: E402
from dreamgen.extensions.score import Metric  # noqa: E402
from dreamgen.run.jobs import iter_jobs  # noqa: E402
from dreamgen.run.journal import Journal  # noqa: E402
from dreamgen.run.records import JournalRecord  # noqa: E402
from dreamgen.run.run_folder import RunFolder  # noqa: E402
from tests.fixtures.browser import Page, chromium  # noqa: E402

NUM_FRAMES, NUM_DIMS = 93, 44
NUM_LABELS = 64  # drawn; more than are compressed together on the page
PAINTED = "grid.ready.then(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))"
ACTIONS = {
    "verdict": "document.querySelector('[data-show=rejected]').click()",
    "find": "set('#find', 'red')",
    "score range": "set('[data-from=\"0\"]', listing.scores[0].values.filter((v) => v !== null).sort((a, b) => a - b)"
                   "[Math.floor(numClips / 2)])",
    "misses threshold": "document.querySelector('[data-missed=\"0\"]').click()",
    "sort": "set('#sort', 1, 'change')",
    "direction": "document.querySelector('#direction').click()",
    "next page": "document.querySelector('[data-step=\"1\"]').click()",
    "side by side": "document.querySelector('[data-sides]').click()",
}  # fmt: skip
BEFORE = {"misses threshold": "document.querySelector('#ranges').open = true", "direction": ACTIONS["sort"]}
SETTER = """
globalThis.set = (selector, value, event = "input") => {
  const input = document.querySelector(selector);
  input.value = value;
  input.dispatchEvent(new Event(event, { bubbles: true }));
};
"""


def main() -> None:
    """Make the run if it is not there, measure, and print and write the metrics."""
    args = parse_arguments()
    run = RunFolder(args.folder)
    if not run.jobs.is_file():
        make_scored_run(args.folder, args.num_clips, args.noise)
    results: dict[str, Any] = {"num_clips": args.num_clips, "labels": "noise" if args.noise else "smooth motion"}
    results["machine"] = f"{os.cpu_count()} CPU cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}"
    results |= measure_writing(run, args.repeats)
    print(json.dumps(results), file=sys.stderr)
    results |= measure_page(run, args.repeats)
    print(json.dumps(results, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


def make_scored_run(folder: Path, num_clips: int, noise: bool) -> RunFolder:
    """Make a finished run whose clips have a value of every registered score, about one in ten beyond each threshold.

    Args:
        folder: The run folder.
        num_clips: Clips in it.
        noise: Label with noise, the largest page there can be, instead of smooth motion.
    """
    run = make_run(folder, num_clips, num_frames=NUM_FRAMES, dims=NUM_DIMS)
    random, metrics = np.random.default_rng(0), list(curation_metrics())
    drawn = [folder / "drawn" / f"{number}.parquet" for number in range(NUM_LABELS)]
    for number, path in enumerate(drawn):
        write_label(path, number, noise)
    with Journal(run.journal, "curate") as journal:
        for number, job in enumerate(iter_jobs(run.jobs)):
            label = run.label_file(job.clip_id)
            label.unlink(missing_ok=True)
            os.link(drawn[number % NUM_LABELS], label)
            journal.add(scored(job.clip_id, metrics, random))
    return run


def scored(clip_id: str, metrics: list[Metric], random: np.random.Generator) -> JournalRecord:
    """Return a verdict with a value and a threshold of each metric."""
    recorded: dict[str, Any] = {"num_frames": NUM_FRAMES, "wanted_num_frames": NUM_FRAMES}
    reasons = []
    for metric in metrics:
        limit = metric.threshold.default
        middle = 1.0 if limit is None else limit
        spread = abs(middle) or 1.0
        value = float(middle + spread * (random.normal(0.4, 0.3) * (1 if metric.threshold.direction == "min" else -1)))
        recorded |= {metric.name: value, metric.threshold.setting: limit}
        if reason := metric.reason_to_reject(value, limit):
            reasons.append(reason)
    status = "rejected" if reasons else "ok"
    return JournalRecord(clip_id, "curate", status, reason="; ".join(reasons) or None, metrics=recorded)


def write_label(path: Path, number: int, noise: bool) -> None:
    """Write actions with uncertainty: a smooth path of a few waves in each dimension, or noise."""
    random = np.random.default_rng(number)
    if noise:
        action_TA = random.normal(size=(NUM_FRAMES, NUM_DIMS))
        std_TA = random.uniform(0, 0.3, action_TA.shape)
    else:
        time_T1 = np.linspace(0, 1, NUM_FRAMES)[:, None]
        phase_TA = time_T1 * random.uniform(1, 9, NUM_DIMS) + random.uniform(0, 6, NUM_DIMS)
        action_TA = np.sin(phase_TA) * random.uniform(0.01, 1.5, NUM_DIMS) + 0.01 * random.normal(size=phase_TA.shape)
        std_TA = 0.05 + 0.04 * np.cos(phase_TA)
    vectors = pa.list_(pa.float32())
    columns = {name: pa.array([*map(np.float32, rows)], vectors)
               for name, rows in (("action", action_TA), (ACTION_STD, std_TA))}  # fmt: skip
    pq.write_table(pa.table(columns), path)


def measure_writing(run: RunFolder, repeats: int) -> dict[str, Any]:
    """Write the report with the command: wall and CPU seconds of the process, its peak memory, and the page's size."""
    walls_s, cpus_s, peaks_mb = [], [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun_s = time.perf_counter()
        code = ("import resource, sys; from dreamgen.cli.main import main; status = main(['report', sys.argv[1]]); "
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, str(run.root)], check=True, capture_output=True, text=True,
                              env=with_checkout(ROOT))  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls_s.append(time.perf_counter() - begun_s)
        cpus_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        peaks_mb.append(int(done.stdout.split()[-1]) / 1e3)
    return {"write_s": summary(walls_s), "write_cpu_s": summary(cpus_s), "write_peak_mb": round(max(peaks_mb)),
            "page_mb": round(run.report.stat().st_size / 1e6, 2)}  # fmt: skip


def measure_page(run: RunFolder, repeats: int) -> dict[str, Any]:
    """Open the page and do what a person does, each action on the whole list."""
    opens_s, pictures_s, heaps_mb = [], [], []
    actions_ms: dict[str, list[float]] = {name: [] for name in ACTIONS}
    with chromium() as page:
        version = page.call("Browser.getVersion")["product"]
        for _ in range(repeats):
            page.open(None)
            begun_s = time.perf_counter()
            page.open(run.report)
            page.run(PAINTED)
            opens_s.append(time.perf_counter() - begun_s)
            pictures_s.append(seconds_to_pictures(page))
            heaps_mb.append(page.run("performance.memory.usedJSHeapSize") / 1e6)
            for name, action in ACTIONS.items():
                page.open(run.report)
                page.run(SETTER + "document.querySelector('#clips').scrollIntoView();" + BEFORE.get(name, ""))
                page.run(PAINTED)
                script = f"(async () => {{ const begun = performance.now(); {action}; await {PAINTED};"
                actions_ms[name].append(page.run(script + " return performance.now() - begun; })()"))
        assert not page.messages, page.messages
    return {
        "browser": version, "open_s": summary(opens_s), "first_pictures_s": summary(pictures_s),
        "js_heap_mb": round(max(heaps_mb), 1),
        "action_s": {name: summary([value / 1e3 for value in values]) for name, values in actions_ms.items()},
    }  # fmt: skip


def seconds_to_pictures(page: Page) -> float:
    """Scroll to the clips and return the seconds until each video in the window shows its first frame."""
    begun_s = time.perf_counter()
    page.run("document.querySelector('#clips').scrollIntoView()")
    in_window = (
        "[...document.querySelectorAll('#grid video')].filter((v) => v.getBoundingClientRect().top < innerHeight)"
    )
    page.wait(f"{in_window}.every((video) => video.readyState >= 2)")
    return time.perf_counter() - begun_s


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median, the extremes and the number of measurements."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3),
            "n": len(values)}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the run folder; made if it does not exist")
    parser.add_argument("--num_clips", type=int, default=10_000)
    parser.add_argument("--noise", action="store_true", help="labels of noise: the largest page")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=None, help="JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
