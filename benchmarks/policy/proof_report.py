"""Results of the policy benchmark as JSON, tables and pictures."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from metaworld_clips import read_clips
from metrics import markdown_table, shown
from proof_plot import success_plot
from significance import paired_p_value, rank_correlation, wilson_interval
from steps import ARMS, REAL, arm_title

from dreamgen.config.settings import CurateSettings
from dreamgen.curate.selection import clip_quality
from dreamgen.data.images import write_png
from dreamgen.data.video import read_video
from dreamgen.extensions.score import SCORES
from dreamgen.run.files import write_json, write_text
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder

NUM_SHOWN_FRAMES = 7


def write_reports(args: argparse.Namespace) -> None:
    """Write report.json, report.md, a plot for each policy and a picture for each task; print the tables."""
    runs = [run for task in args.tasks for run in _rollouts(args, task)]
    replays = [json.loads(file.read_text()) for task in args.tasks
               if (file := args.out / task / "results" / "replay.json").is_file()]  # fmt: skip
    report = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "policies": runs,
        "table": [row for policy in args.policies for row in policy_rows(runs, args.tasks, policy)],
        "over_tasks": [row for policy in args.policies for row in task_means(runs, args.tasks, policy)],
        "replay": [replay_row(replay) for replay in replays],
        "scores": _score_rows(replays),
        "dreams": [dreams_of(replay) for replay in replays],
        "seconds": {file.relative_to(args.out / "done").with_suffix("").as_posix(): float(file.read_text())
                    for file in sorted((args.out / "done").rglob("*.seconds"))},
    }  # fmt: skip
    write_json(args.out / "report.json", report)
    text = tables(report, args.tasks)
    write_text(args.out / "report.md", text)
    for policy in args.policies:
        if rows := [row for row in report["table"] if row["policy"] == policy]:
            write_text(args.out / f"{policy}.svg", success_plot(rows, args.tasks))
    for task in args.tasks:
        _write_grid(args, task)
    print(text)


def _rollouts(args: argparse.Namespace, task: str) -> list[dict[str, Any]]:
    """Return every policy that was evaluated, also those of arms that this call does not ask for."""
    found = []
    for file in sorted((args.out / task / "results").glob("*-*-*.json")):
        arm, policy, seed = file.stem.rsplit("-", 2)
        values = json.loads(file.read_text())
        found.append({"task": task, "arm": arm, "policy": policy, "seed": int(seed), "success": values["success"]})
    return found


def policy_rows(runs: list[dict[str, Any]], tasks: list[str], policy: str) -> list[dict[str, Any]]:
    """Return a row for each arm: success on each task with its interval, and p-values against real alone.

    One p-value is of episodes, the other of pairs of trainings with the same seed, as in `task_means`.

    Axes: K seeds, E episodes.

    Args:
        runs: With `task`, `arm`, `policy`, `seed` and `success`.
        tasks: Columns.
        policy: Which one.
    """
    rows = []
    arms = sorted({run["arm"] for run in runs if run["policy"] == policy}, key=_position)
    for arm in arms:
        row: dict[str, Any] = {"policy": policy, "arm": arm, "tasks": {}}
        for task in tasks:
            mine, real = (_of(runs, task, name, policy) for name in (arm, REAL))
            if not mine:
                continue
            success_KE = _common(mine, sorted(mine))
            low, high = wilson_interval(int(success_KE.sum()), success_KE.size)
            cell = {"success": success_KE.mean(), "low": low, "high": high, "seeds": sorted(mine),
                    "of_seeds": success_KE.mean(axis=1).tolist(), "episodes": success_KE.shape[1]}  # fmt: skip
            if arm != REAL and (seeds := sorted(set(mine) & set(real))):
                both_2KE = _of_both(mine, real, seeds)
                cell |= _comparison(both_2KE.mean(axis=1), both_2KE.mean(axis=2))
            row["tasks"][task] = cell
        rows.append(row)
    return rows


def task_means(runs: list[dict[str, Any]], tasks: list[str], policy: str) -> list[dict[str, Any]]:
    """Return a row for each arm: its success beside that of real alone with the same tasks and seeds, and two p-values.

    One is of episodes, with the trainings as they are: whether these policies differ. The other is of pairs of
    trainings with the same task and seed: whether others would. In `success`, all tasks have the same weight; in the
    first p-value, all episodes.

    Axes: 2 the arm and real alone, K seeds, E episodes, P pairs of trainings.

    Args:
        runs: With `task`, `arm`, `policy`, `seed` and `success`.
        tasks: Those that count.
        policy: Which one.
    """
    rows = []
    for arm in sorted({run["arm"] for run in runs if run["policy"] == policy} - {REAL}, key=_position):
        episodes, pairs, names = [], [], []
        for task in tasks:
            mine, real = (_of(runs, task, name, policy) for name in (arm, REAL))
            if seeds := sorted(set(mine) & set(real)):
                both_2KE = _of_both(mine, real, seeds)
                episodes.append(both_2KE.mean(axis=1))
                pairs.append(both_2KE.mean(axis=2))
                names.append(task)
        if names:
            episodes_2E, pairs_2P = (np.concatenate(parts, axis=1) for parts in (episodes, pairs))
            success, real = (float(np.mean([part[row].mean() for part in pairs])) for row in (0, 1))
            rows.append({"policy": policy, "arm": arm, "tasks": names, "success": success, "real": real,
                         **_comparison(episodes_2E, pairs_2P)})  # fmt: skip
    return rows


def _common(successes: dict[int, list[bool]], seeds: Sequence[int]) -> np.ndarray:
    """Return success_KE of seeds, cut to the episodes that all have: episode k is the same for every policy."""
    num = min(len(successes[seed]) for seed in seeds)
    return np.array([successes[seed][:num] for seed in seeds], float)


def _of_both(mine: dict[int, list[bool]], real: dict[int, list[bool]], seeds: Sequence[int]) -> np.ndarray:
    """Return both_2KE, the successes of an arm and of real alone, in the episodes that both have."""
    both = [_common(successes, seeds) for successes in (mine, real)]
    num = min(success_KE.shape[1] for success_KE in both)
    return np.stack([success_KE[:, :num] for success_KE in both])


def _comparison(episodes_2E: np.ndarray, pairs_2P: np.ndarray) -> dict[str, Any]:
    """Return both p-values of an arm against real alone, and in how many pairs of trainings it is better.

    Args:
        episodes_2E: Success of each episode, the mean over trainings.
        pairs_2P: Success of each training, the mean over episodes.
    """
    return {"p": paired_p_value(episodes_2E[:1], episodes_2E[1:]), "pairs": pairs_2P.shape[1],
            "better": int((pairs_2P[0] > pairs_2P[1]).sum()),
            "p_of_trainings": paired_p_value(pairs_2P[:1], pairs_2P[1:])}  # fmt: skip


def _of(runs: list[dict[str, Any]], task: str, arm: str, policy: str) -> dict[int, list[bool]]:
    key = (task, arm, policy)
    return {run["seed"]: run["success"] for run in runs if (run["task"], run["arm"], run["policy"]) == key}


def _position(arm: str) -> tuple[int, str]:
    names = list(ARMS)
    return (names.index(arm) if arm in names else len(names), arm)


def replay_row(replay: dict[str, Any]) -> dict[str, Any]:
    """Return the shares of successful replays, and those of the third of dreams that curation ranks best and worst."""
    dreams = replay["dreams"].get("curated", [])
    row = {"task": replay["task"], "recorded": _mean(replay["recorded"]), "recovered": _mean(replay["recovered"]),
           "nearest": _mean(replay.get("nearest", [])),
           "dreams": _mean([dream["success"] for dream in dreams]), "num_dreams": len(dreams)}  # fmt: skip
    accepted = [dream["success"] for dream in dreams if dream["scores"].get("verdict") == "ok"]
    row |= {"accepted": _mean(accepted), "num_accepted": len(accepted)}
    if base := replay["dreams"].get("base"):
        row["base"] = _mean([dream["success"] for dream in base])
    if len(dreams) >= 6:
        quality = clip_quality(
            [dream["scores"] for dream in dreams], CurateSettings().best_by, [score for _, score in SCORES.items()]
        )
        order, third = np.argsort(-quality, kind="stable"), len(dreams) // 3
        success = np.array([dream["success"] for dream in dreams], float)
        row |= {
            "best_third": float(success[order[:third]].mean()),
            "worst_third": float(success[order[-third:]].mean()),
        }
    return row


def dreams_of(replay: dict[str, Any]) -> dict[str, Any]:
    """Return the success of each dream's replay and its scores, as columns, from which all that is said follows."""
    dreams = replay["dreams"].get("curated", [])
    columns = {name: [_rounded(dream["scores"].get(name)) for dream in dreams] for name in SCORES.names()}
    measured = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return {"task": replay["task"], "episode": [dream["episode"] for dream in dreams],
            "success": [int(dream["success"]) for dream in dreams], "scores": measured}  # fmt: skip


def _rounded(value: Any) -> float | None:
    return float(f"{value:.4g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _score_rows(replays: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each score's rank correlation with the success of the replay, in each task."""
    rows = []
    for name in SCORES.names():
        row: dict[str, Any] = {"score": name, "tasks": {}}
        for replay in replays:
            dreams = [d for d in replay["dreams"].get("curated", []) if isinstance(d["scores"].get(name), int | float)]
            values = np.array([d["scores"][name] for d in dreams], float)
            known = np.isfinite(values)
            if known.sum() >= 6:
                success = np.array([d["success"] for d in dreams], float)
                row["tasks"][replay["task"]] = rank_correlation(values[known], success[known])
        rows.append(row)
    return rows


def tables(report: dict[str, Any], tasks: list[str]) -> str:
    """Return the report as Markdown."""
    parts = []
    for policy in dict.fromkeys(row["policy"] for row in report["table"]):
        rows = [[arm_title(row["arm"]), *(_cell(row["tasks"].get(task)) for task in tasks)]
                for row in report["table"] if row["policy"] == policy]  # fmt: skip
        title = f"{policy}: success, percent (95 %), p against real; trainings better, p of these"
        parts.append(markdown_table([title, *tasks], rows))
    rows = [[row["policy"], arm_title(row["arm"]), ", ".join(row["tasks"]), f"{row['success']:.0%}",
             f"{row['real']:.0%}", f"{row['p']:.2g}", f"{row['better']} of {row['pairs']}",
             f"{row['p_of_trainings']:.2g}"]
            for row in report["over_tasks"]]  # fmt: skip
    if rows:
        names = ["policy", "over tasks", "tasks", "success", "real alone", "p (episodes)", "trainings better",
                 "p (trainings)"]  # fmt: skip
        parts.append(markdown_table(names, rows))
    if report["replay"]:
        columns = {
            "recorded": "recorded actions", "nearest": "the nearest demonstration's",
            "recovered": "recovered from real video", "dreams": "dreams",
            "accepted": "accepted dreams", "base": "dreams of the base", "best_third": "best third by curation",
            "worst_third": "worst third",
        }  # fmt: skip
        rows = [[row["task"], *(shown(row.get(key), ".0%") for key in columns)] for row in report["replay"]]
        parts.append(markdown_table(["replayed actions: success", *columns.values()], rows))
    rows = [[row["score"], *(shown(row["tasks"].get(task), ".2f") for task in tasks)] for row in report["scores"]
            if any(value is not None for value in row["tasks"].values())]  # fmt: skip
    if rows:
        parts.append(markdown_table(["rank correlation of a score with replay success", *tasks], rows))
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any] | None) -> str | None:
    if cell is None:
        return None
    text = f"{100 * cell['success']:.0f} ({100 * cell['low']:.0f} to {100 * cell['high']:.0f})"
    if "p" not in cell:
        return text
    text += f", p {cell['p']:.2g}"
    return text if cell["pairs"] < 2 else f"{text}; {cell['better']} of {cell['pairs']}, p {cell['p_of_trainings']:.2g}"


def _mean(successes: Sequence[bool] | np.ndarray) -> float | None:
    return float(np.mean(successes)) if len(successes) else None


def _write_grid(args: argparse.Namespace, task: str) -> None:
    """Write TASK.png: frames of a real episode, of the dream of its start, and of a rollout of each arm's policy."""
    folder = args.out / task
    run, strips = RunFolder(folder / "curated"), []
    jobs = read_jobs(run.jobs) if run.jobs.is_file() else []
    if not jobs or not run.clip_file(jobs[0].clip_id).is_file() or not (folder / "new").is_dir():
        return
    strips = [read_clips(folder / "new", 1).video_NTHWC[0].numpy(), read_video(run.clip_file(jobs[0].clip_id))]
    names = ["real", "dream"]
    for arm in args.arms:
        films = sorted((folder / "results").glob(f"{arm}-{args.policies[0]}-*.0.mp4"))
        if films:
            strips.append(read_video(films[0]))
            names.append(f"policy: {arm}")
    rows = []
    for name, video_THWC in zip(names, strips, strict=True):
        chosen = np.linspace(0, len(video_THWC) - 1, NUM_SHOWN_FRAMES).round().astype(int)
        row = np.ascontiguousarray(np.concatenate(list(video_THWC[chosen]), axis=1))
        cv2.putText(row, name, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(row)
    write_png(args.out / f"{task}.png", np.concatenate(rows))
