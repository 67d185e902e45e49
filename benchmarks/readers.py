"""Readers of trainers on exported datasets: each loads or trains, and its values are compared with the clips.

    python benchmarks/readers.py --out benchmarks/results/readers.json
    python benchmarks/readers.py --only lerobot,act            # some of them
    python benchmarks/readers.py --gr00t path/to/n1.6-release --gr00t path/to/n1.7-release   # checkouts of GR00T

GR00T's loaders are imported from the checkouts. robomimic, and the packages that GR00T's loaders import, are installed
from PyPI, without their dependencies, to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"

import h5py
import numpy as np
from synthetic_run import hdf5_dataset, make_run

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import ConvertSettings
from dreamgen.data.video import read_video
from dreamgen.extensions.export_format import EXPORT_FORMATS
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.run_folder import RunFolder
from export import export_datasets
from export.convert import convert_dataset
from export.episodes import read_label

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERA = "observation.images.ego_view"
FPS, SECTION_FRAMES = 16, 17
GR00T_NEEDS = ("numpydantic", "scipy")


def main() -> None:
    """Export a small run in every format, run each reader, print the table and write the results."""
    args = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="readers-", dir=args.folder))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "hf_datasets")  # before datasets is imported
    try:
        run = exported_run(folder / "run", args)
        rows = [read_by(name, run, folder, args) for name in READERS if not args.only or name in args.only]
    finally:
        shutil.rmtree(folder)
    if args.out:
        Path(args.out).write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print("| reader | dataset | what it read | result |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['reader']} | {row['dataset']} | {row['read']} | {row['result']} |")
    sys.exit(any(row["result"].startswith("failed") for row in rows))


def exported_run(folder: Path, args: argparse.Namespace) -> RunFolder:
    """Make a run and export it: robomimic with next_obs, and ALOHA as pixels and as JPEG."""
    run = make_run(folder, args.clips, 64, 96, SECTION_FRAMES, 7, FPS)

    def export(formats: list[str], **hdf5: Any) -> None:
        values = {"out": str(run.root), "export": {"formats": formats, "hdf5": hdf5, "num_workers": 2}}
        export_datasets(settings_from_dict(values))

    export(["aloha"], jpeg_quality=95)
    (run.datasets / "aloha").rename(run.datasets / "aloha-jpeg")
    export(EXPORT_FORMATS.names(), next_obs=True)
    return run


def read_by(name: str, run: RunFolder, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run one reader; if it raises, the error is its result."""
    dataset, reader = READERS[name]
    start_s = time.perf_counter()
    try:
        read = reader(run, folder, args)
        result = "skipped" if read.startswith("skipped") else f"ok, {time.perf_counter() - start_s:.1f} s"
    except Exception as error:  # other projects' readers may raise anything
        read, result = "", f"failed: {type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
    return {"reader": name, "dataset": dataset, "read": read, "result": result}


def lerobot_loader(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """`LeRobotDataset` in a DataLoader of two processes, with windows of actions."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    windows = {"action": [t / FPS for t in range(4)]}
    dataset = LeRobotDataset("dreamgen/readers", root=run.datasets / "lerobot-v3.0", video_backend="pyav",
                             return_uint8=True, delta_timestamps=windows)  # fmt: skip
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=2, shuffle=True)
    clips = accepted_clips(run)
    videos = [read_video(clip.video) for clip in clips]
    labels = [read_label(clip.label, True) for clip in clips]
    seen = 0
    for batch in loader:
        for i in range(len(batch["index"])):
            episode, frame = int(batch["episode_index"][i]), int(batch["frame_index"][i])
            np.testing.assert_array_equal(batch[CAMERA][i].permute(1, 2, 0).numpy(), videos[episode][frame])
            rows = np.minimum(np.arange(frame, frame + 4), SECTION_FRAMES - 1)
            np.testing.assert_array_equal(batch["action"][i].numpy(), labels[episode][0][rows])
            seen += 1
    assert seen == len(dataset) == len(clips) * SECTION_FRAMES
    return f"{seen} frames in random order, each bit for bit with its own action window"


def lerobot_train(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """`lerobot-train` with ACT, small, for 20 steps on the CPU."""
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_train", "--dataset.repo_id=dreamgen/readers",
        f"--dataset.root={run.datasets / 'lerobot-v3.0'}", "--dataset.video_backend=pyav", "--policy.type=act",
        "--policy.device=cpu", "--policy.push_to_hub=false", "--policy.pretrained_backbone_weights=null",
        "--policy.dim_model=64", "--policy.dim_feedforward=64", "--policy.n_heads=2", "--policy.n_encoder_layers=1",
        "--policy.chunk_size=8", "--policy.n_action_steps=8", "--batch_size=2", "--steps=20", "--log_freq=10",
        "--num_workers=0", "--wandb.enable=false", "--save_checkpoint=false", f"--output_dir={folder / 'act'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    text = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(text[-2000:])
    losses = [word.removeprefix("loss:") for word in text.split() if word.startswith("loss:")]
    assert losses and np.isfinite([float(loss) for loss in losses]).all(), text[-1000:]
    return f"ACT, 20 steps; loss {' then '.join(losses)}"


def lerobot_tools(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """lerobot's merge and delete, read back by `LeRobotDataset`."""
    from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def opened(root: Path) -> LeRobotDataset:
        return LeRobotDataset("dreamgen/readers", root=root, video_backend="pyav", return_uint8=True)

    ours = opened(run.datasets / "lerobot-v3.0")
    merge_datasets([ours, ours], "dreamgen/merged", folder / "merged")
    merged = opened(folder / "merged")
    assert len(merged) == 2 * len(ours)
    for index in np.linspace(0, len(ours) - 1, 12).astype(int):
        for place in (index, len(ours) + index):
            one, two = frame_of(ours, index), frame_of(merged, place)
            for name in (CAMERA, "action", "observation.state", "timestamp"):
                np.testing.assert_array_equal(one[name].numpy(), two[name].numpy())
            assert one["task"] == two["task"]
    delete_episodes(ours, [0], folder / "deleted", "dreamgen/deleted")
    rest = opened(folder / "deleted")
    assert len(rest) == len(ours) - SECTION_FRAMES
    for index in np.linspace(0, len(rest) - 1, 12).astype(int):
        one, two = frame_of(ours, index + SECTION_FRAMES), frame_of(rest, index)
        np.testing.assert_array_equal(one["action"].numpy(), two["action"].numpy())
        assert one["task"] == two["task"]
        # It encodes the rest of a file again, so images are similar and not equal.
        error = np.abs(one[CAMERA].numpy().astype(int) - two[CAMERA].numpy()).mean()
        assert error < 8, f"mean error {error:.1f}"
    return f"merged {len(merged)} frames, deleted to {len(rest)}"


def frame_of(dataset: LeRobotDataset, index: int) -> dict[str, Any]:
    """Return one frame with its row."""
    frame = dataset[int(index)]
    assert isinstance(frame, dict), "a slice gives a list"
    return frame


def lerobot_converter(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """lerobot's v2.1 -> v3.0 converter, and ours, on our v2.1."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset as theirs

    source = run.datasets / "lerobot-v2.1"
    convert_dataset(source, folder / "ours", ConvertSettings(num_workers=1))
    shutil.copytree(source, folder / "theirs")
    theirs("dreamgen/readers", root=folder / "theirs", push_to_hub=False)
    roots = (run.datasets / "lerobot-v3.0", folder / "ours", folder / "theirs")
    read = [LeRobotDataset("dreamgen/readers", root=r, video_backend="pyav", return_uint8=True) for r in roots]
    for index in range(len(read[0])):
        items = [frame_of(dataset, index) for dataset in read]
        for name, value in items[0].items():
            for other in items[1:]:
                np.testing.assert_array_equal(np.array(value), np.array(other[name]))
    return f"{len(read[0])} frames and rows equal in our v3.0, our conversion and theirs"


def robomimic_sequences(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """robomimic's `SequenceDataset` in a DataLoader of two processes."""
    target = folder / "robomimic"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), "robomimic"],
                   check=True, capture_output=True)  # fmt: skip
    sys.path.insert(0, str(target))
    import torch
    from robomimic.utils import obs_utils  # pyright: ignore[reportMissingImports]
    from robomimic.utils.dataset import SequenceDataset  # pyright: ignore[reportMissingImports]

    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": ["state"], "rgb": ["ego_view"]}}])
    path = run.datasets / "robomimic/data.hdf5"
    dataset = SequenceDataset(str(path), ("state", "ego_view"), ("actions", "rewards", "dones"), seq_length=4,
                              filter_by_attribute="train", load_next_obs=True)  # fmt: skip
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=2, shuffle=False)
    clips, place = accepted_clips(run), 0
    with h5py.File(path) as file:
        demos = sorted(int(name.decode().removeprefix("demo_")) for name in hdf5_dataset(file, "mask/train"))
        scale_A, offset_A = file["data"].attrs["action_scale"], file["data"].attrs["action_offset"]
    for batch in loader:
        for i in range(len(batch["actions"])):
            demo, frame = divmod(place, SECTION_FRAMES)
            clip = clips[demos[demo]]
            rows = np.minimum(np.arange(frame, frame + 4), SECTION_FRAMES - 1)
            action_TA, state_TS = read_label(clip.label, True)
            assert state_TS is not None, "the labels of a synthetic run have states"
            video_THWC = read_video(clip.video)
            actions = batch["actions"][i].numpy() * scale_A + offset_A
            np.testing.assert_allclose(actions, action_TA[rows], atol=1e-5)
            np.testing.assert_array_equal(batch["obs"]["state"][i].numpy(), state_TS[rows])
            images = batch["obs"]["ego_view"][i].numpy()
            images = images if images.shape[-1] == 3 else np.moveaxis(images, 1, -1) * 255
            np.testing.assert_allclose(images, video_THWC[rows], atol=0.01)
            np.testing.assert_array_equal(
                batch["next_obs"]["state"][i].numpy(), state_TS[np.minimum(rows + 1, SECTION_FRAMES - 1)]
            )
            place += 1
    assert place == len(dataset) == len(demos) * SECTION_FRAMES
    return f"{place} sequences of 4 of the train mask, with next_obs"


def act_reader(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """Read like ACT and ACT++: names, shapes, a random start, JPEG rows, channel order."""
    import cv2

    clips, random = accepted_clips(run), np.random.default_rng(0)
    for root in (run.datasets / "aloha", run.datasets / "aloha-jpeg"):
        qpos = []
        for number, clip in enumerate(clips):
            action_TA, state_TS = read_label(clip.label, True)
            assert state_TS is not None, "the labels of a synthetic run have states"
            video_THWC, start = read_video(clip.video), int(random.integers(SECTION_FRAMES))
            with h5py.File(root / f"episode_{number}.hdf5", "r") as file:
                image = hdf5_dataset(file, "observations/images/ego_view")[start]
                if file.attrs.get("compress", False):
                    image = cv2.imdecode(image, 1)
                    assert image is not None, "it is a JPEG"
                first = start if file.attrs["sim"] else max(0, start - 1)
                np.testing.assert_array_equal(hdf5_dataset(file, "action")[()][first:], action_TA[start:])
                qpos_TS = hdf5_dataset(file, "observations/qpos")[()]
                np.testing.assert_array_equal(qpos_TS[start], state_TS[start])
                assert hdf5_dataset(file, "observations/qvel").shape == state_TS.shape
                qpos.append(qpos_TS)
            assert image.shape == video_THWC.shape[1:] and np.abs(image.astype(int) - video_THWC[start]).mean() < 4
        np.stack(qpos)  # the first ACT stacks all episodes for its statistics
    return f"{2 * len(clips)} episodes, pixels and JPEG"


def gr00t_loaders(run: RunFolder, folder: Path, args: argparse.Namespace) -> str:
    """GR00T's loader of each checkout that the user names, each in its own process."""
    if not args.gr00t:
        return "skipped: --gr00t names no checkout"
    packages = folder / "gr00t-needs"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *GR00T_NEEDS],
                   check=True, capture_output=True)  # fmt: skip
    read = []
    for checkout in args.gr00t:
        command = [sys.executable, str(Path(__file__).with_name("gr00t_reader.py")), str(checkout), str(run.root)]
        done = subprocess.run([*command, str(packages)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{checkout.name}: {done.stderr.strip().splitlines()[-1]}")
        read.append(f"{checkout.name}: {json.loads(done.stdout.splitlines()[-1])}")
    return "; ".join(read)


READERS: dict[str, tuple[str, Callable[..., str]]] = {
    "lerobot": ("lerobot-v3.0", lerobot_loader),
    "lerobot-train": ("lerobot-v3.0", lerobot_train),
    "lerobot-tools": ("lerobot-v3.0", lerobot_tools),
    "lerobot-converter": ("lerobot-v2.1", lerobot_converter),
    "robomimic": ("robomimic", robomimic_sequences),
    "act": ("aloha", act_reader),
    "gr00t": ("lerobot-v2.1", gr00t_loaders),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of {', '.join(READERS)}")
    parser.add_argument("--gr00t", type=Path, action="append", metavar="CHECKOUT",
                        help="checkout of any release of Isaac-GR00T, or of GR00T-Dreams; may be repeated")  # fmt: skip
    parser.add_argument("--folder", help="working directory; default: the system's temporary directory")
    parser.add_argument("--out", help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
