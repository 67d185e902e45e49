"""Training of inverse dynamics: resumed exactly, stopped early, with more demonstrations, cameras and encoders."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

from dreamgen.config.training_settings import IdmSettings
from dreamgen.cores import usable_cores
from dreamgen.errors import UserError
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.models.idm.network import MASK_AT, MASK_WIDTH
from dreamgen.run.run_folder import RunFolder
from finetune import idm_batches
from finetune.idm_batches import WindowSamples, augmented
from finetune.idm_episodes import IdmEpisode
from finetune.idm_training import BEST, NUM_AUGMENTING, num_loading_processes, window_loader
from finetune.inverse_dynamics import finetune_idm
from tests.finetune.square_world import square_settings, write_square_training_set

TINY = {"num_steps": 12, "batch_size": 2, "width": 16, "checkpoint_every": 4, "validate_every": 3, "warmup_steps": 2}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_of(run):
    return load_file(run / "idm" / "model.safetensors")


def rows_of(path):
    with path.open() as stream:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in csv.DictReader(stream)
        ]


@pytest.mark.parametrize("patience", [0, 9])
def test_a_resumed_training_ends_with_the_same_weights(tmp_path, patience):
    """With augmentation, dropout, and the best weights so far: none depends on the interruption."""
    write_square_training_set(tmp_path / "run", num_episodes=4, num_frames=17)
    settings = square_settings(tmp_path / "run", **TINY, patience=patience, augment=True, log_every=1)
    finetune_idm(settings)
    whole, logs = weights_of(tmp_path / "run"), tmp_path / "run" / "finetune_idm"
    losses, curve = rows_of(logs / "loss.csv"), rows_of(logs / "validation.csv")
    assert [row["step"] for row in curve] == ["3", "6", "9", "12"]
    shutil.rmtree(tmp_path / "run" / "idm")
    shutil.rmtree(logs / "checkpoints" / "step-000008")
    assert any(n.startswith(BEST) for n in load_file(logs / "checkpoints/step-000004/idm/model.safetensors")) == bool(
        patience
    )
    result = finetune_idm(settings, resume=True)
    assert "resumed from" in result.notes[0] and "step-000004" in result.notes[0]
    again = weights_of(tmp_path / "run")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    for before, after in ((losses, rows_of(logs / "loss.csv")), (curve, rows_of(logs / "validation.csv"))):
        assert [row["step"] for row in before] == [row["step"] for row in after]
        key = "loss" if "loss" in before[0] else "r2"
        assert [row[key] for row in before] == [row[key] for row in after]


def test_a_signal_leaves_a_checkpoint_and_other_data_is_refused(tmp_path, monkeypatch):
    write_square_training_set(tmp_path, num_episodes=4, num_frames=17)
    settings = square_settings(tmp_path, **TINY)
    draw = WindowSamples.__getitem__

    def interrupt(self, index):
        if index == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, index)

    monkeypatch.setattr(WindowSamples, "__getitem__", interrupt)
    result = finetune_idm(settings)
    assert result.partial and "finetune_idm" in result.notes[-1] and not (tmp_path / "idm").exists()
    assert result.outputs["checkpoint"].is_dir()
    with pytest.raises(UserError, match="other settings or data"):
        finetune_idm(replace(settings, idm=replace(settings.idm, weight_decay=0.5)), resume=True)
    monkeypatch.undo()  # the interrupted sample is drawn again
    assert not finetune_idm(settings, resume=True).partial


def test_another_training_in_the_same_process_changes_nothing(tmp_path):
    for name in ("a", "b"):
        write_square_training_set(tmp_path / name, num_episodes=2, num_frames=17)
        AcceleratorState._reset_state()
        if name == "b":  # as of an adapter in bf16
            Accelerator(cpu=True, mixed_precision="bf16")
        finetune_idm(square_settings(tmp_path / name, **TINY))
    one, other = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_stops_early_with_the_best_weights(tmp_path):
    write_square_training_set(tmp_path, num_episodes=5, num_frames=17)
    # The rate rises until the weights are useless, so the first point is the best.
    tiny = TINY | {"num_steps": 40, "learning_rate": 1.0, "warmup_steps": 20, "held_out": 0.4, "num_models": 1}
    finetune_idm(square_settings(tmp_path, **tiny, patience=2))
    held_out = json.loads((tmp_path / "idm" / "config.json").read_text())["held_out"]
    curve = [float(row["r2"]) for row in rows_of(tmp_path / "finetune_idm" / "validation.csv")]
    best = int(np.argmax(curve))
    assert len(curve) == best + 1 + 2 < 13 and held_out["step"] == 3 * (best + 1)
    assert "1 chose the best step" in held_out["how"] and len(held_out["episodes"]) == 1


def test_more_demonstrations_are_trained_on_and_never_held_out(tmp_path):
    write_square_training_set(tmp_path / "run", num_episodes=3, num_frames=17)
    write_square_training_set(tmp_path / "play", num_episodes=4, num_frames=20)
    settings = square_settings(tmp_path / "run", **TINY, extra_demos=[str(tmp_path / "play")])
    result = finetune_idm(settings)
    held_out = json.loads((tmp_path / "run" / "idm" / "config.json").read_text())["held_out"]
    assert result.metrics["num_train_episodes"] == 2 + 4 and len(held_out["episodes"]) == 1
    features = tmp_path / "play" / "train" / "features.json"
    features.write_text(features.read_text().replace("next_x", "wheel"))
    shutil.rmtree(tmp_path / "run" / "idm")
    with pytest.raises(UserError, match="another robot") as caught:
        finetune_idm(settings)
    assert "wheel" in str(caught.value) and "next_x" in str(caught.value)


def test_a_pretrained_encoder_is_kept_with_the_model(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    mean_std = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    processor = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 32},
                 "crop_size": {"height": 28, "width": 28}, **mean_std}  # fmt: skip
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "dino").image_std) == [0.2, 0.3, 0.4]
    write_square_training_set(tmp_path / "run", num_episodes=3, num_frames=17)
    settings = square_settings(tmp_path / "run", **TINY, encoder=str(tmp_path / "dino"), num_models=1)
    finetune_idm(settings)
    before = load_file(tmp_path / "dino" / "model.safetensors")
    shutil.rmtree(tmp_path / "dino")
    model = InverseDynamics.load(tmp_path / "run" / "idm")
    assert np.isfinite(model.predict(np.zeros((9, 64, 64, 3), np.uint8)).action_TA).all()
    tower = model.networks[0].encoder.tower.state_dict()
    assert all(torch.equal(tower[name], value) for name, value in before.items() if name in tower)
    assert len(set(before) & set(tower)) > 10
    shutil.rmtree(tmp_path / "run" / "idm")
    with pytest.raises(UserError, match="idm.encoder cannot be loaded"):
        finetune_idm(settings)


def test_samples_depend_on_their_number_only():
    random = np.random.default_rng(0)
    episodes = [
        IdmEpisode(str(i), random.integers(0, 256, (30, 6, 32, 32), np.uint8), np.zeros((30, 1)), None)
        for i in range(2)
    ]
    targets = [np.arange(30, dtype=np.float32)[:, None] for _ in episodes]
    for augment in (False, True):
        first, second = (WindowSamples(episodes, targets, 4, 17, augment, seed=1) for _ in range(2))
        second[3]
        for one, other in zip(first[7], second[7], strict=True):
            assert torch.equal(one, other)
        pictures, background, target = first[7]
        assert pictures.shape == (4, 6, 32, 32) and background.shape == (6, 32, 32)
        assert target[:, 0].diff().tolist() == [1, 1, 1]
        assert not torch.equal(first[8][0], pictures)
    starts = {int(first[index][2][0, 0]) for index in range(300)}
    assert starts == set(range(27))  # every window of an episode is drawn


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({}, "cuda", min(NUM_AUGMENTING, usable_cores())),
        ({}, "cpu", 0),
        ({"augment": False}, "cuda", 0),
        ({"num_workers": 0}, "cuda", 0),
        ({"num_workers": 3}, "cpu", 3),
    ],
)
def test_processes_augment_for_a_gpu_by_default(changes, device, expected):
    assert num_loading_processes(IdmSettings(**changes), torch.device(device)) == expected


def test_batches_do_not_depend_on_the_number_of_processes():
    random = np.random.default_rng(0)
    episode = IdmEpisode("one", random.integers(0, 256, (30, 3, 32, 32), np.uint8), np.zeros((30, 1)), None)
    samples = WindowSamples([episode], [np.arange(30, dtype=np.float32)[:, None]], 4, 17, True, seed=1)
    alone, together = (list(window_loader(samples, 4, 3, 19, num_workers)) for num_workers in (0, 2))
    assert len(alone) == len(together) == 4
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_augmentation_changes_window_and_background_alike():
    """Where nothing moves, a frame stays like its background, so that what moves still stands out."""
    still = np.random.default_rng(0).integers(60, 200, (3, 32, 32)).astype(np.uint8)
    pictures_KCHW = np.repeat(still[None], 3, axis=0).copy()
    pictures_KCHW[:, :, 10:20, 10:20] = 250
    for seed in range(12):
        changed, background = augmented(pictures_KCHW, still, 255 - still, np.random.default_rng(seed))
        assert changed.dtype == background.dtype == np.uint8 and changed.shape == pictures_KCHW.shape
        difference = np.abs(changed[0].astype(int) - background).max(axis=0)
        assert np.median(difference) <= 40 and not np.array_equal(changed, pictures_KCHW)


@pytest.mark.parametrize(
    ("share", "num_frames", "num_cameras"), [(0.0, 3, 2), (0.0, 180, 1), (1.0, 3, 2), (1.0, 90, 2)]
)
def test_augmentation_agrees_with_one_frame_after_the_other_in_float(monkeypatch, share, num_frames, num_cameras):
    """Each camera and frame is another picture; also beyond the number of channels that an image of OpenCV has."""
    random = np.random.default_rng(0)
    still, other, moving = (
        np.concatenate([smooth_picture(random) for _ in range(num_cameras)]).astype(np.uint8) for _ in range(3)
    )
    pictures_KCHW = np.repeat(still[None], num_frames, axis=0)
    for frame, picture_CHW in enumerate(pictures_KCHW):
        left = 2 + 5 * frame % 20
        picture_CHW[:, 10:20, left : left + 10] = moving[:, 10:20, left : left + 10]
    monkeypatch.setattr(idm_batches, "SHARE", share)
    errors = []
    for seed in range(12):
        draws = [np.random.default_rng(seed) for _ in range(2)]
        changed_KCHW, background_CHW = augmented(pictures_KCHW, still, other, draws[0])
        both = plainly_augmented(np.concatenate([pictures_KCHW, still[None]]), other, share == 1, draws[1])
        assert draws[0].bit_generator.state == draws[1].bit_generator.state
        changed_NCHW = np.concatenate([changed_KCHW, background_CHW[None]])
        compressed, plain = (np.abs(changed_NCHW - expected_NCHW) for expected_NCHW in both)
        errors.append((compressed.mean(), plain.mean()))
        if not share:
            assert plain.max() <= 3 and (plain <= 1).mean() > 0.95
        assert compressed.mean() < 3  # a difference of one level can change a whole block
    if share:
        assert np.mean(errors, axis=0)[0] < 0.5 * np.mean(errors, axis=0)[1]  # the marks of compression are there


def smooth_picture(random):
    """Return a picture_CHW of 32 x 32 pixels, in float."""
    noise = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return (cv2.GaussianBlur(noise, (0, 0), 2) * 1.5).transpose(2, 0, 1)


def plainly_augmented(stack_NCHW, other_CHW, has_all, random):
    """Return what `augmented` computes, from float, and the same without compression.

    Args:
        stack_NCHW: Frames, and the background as the last one.
        other_CHW: Another background.
        has_all: Whether all changes are made, or shift and colors only.
        random: Generator of the changes.
    """
    random.random()
    if has_all:
        order = random.permutation(3)
        other_CHW = other_CHW.reshape(-1, 3, 32, 32)[:, order].reshape(other_CHW.shape)
    mix = np.eye(3) + random.random() * idm_batches.COLOR_MIX * random.standard_normal((3, 3))
    shift = 127.5 * idm_batches.COLOR_SHIFT * random.standard_normal(3)
    zoom = 1 + random.uniform(-idm_batches.MAX_SCALE, idm_batches.MAX_SCALE, 2)
    move = 32 * (random.uniform(-idm_batches.MAX_SHIFT, idm_batches.MAX_SHIFT, 2) + (1 - zoom) / 2)
    random.random()
    blur_px = random.uniform(0.3, idm_batches.MAX_BLUR_PX) if has_all else 0
    random.random()
    quality = int(random.integers(idm_batches.MIN_JPEG, 90)) if has_all else None
    random.random()
    tall, wide = random.integers(2, int(32 * idm_batches.MAX_CUT), 2) if has_all else (0, 0)
    top, left = (random.integers(32 - tall), random.integers(32 - wide)) if has_all else (0, 0)
    color = random.uniform(0, 255, 3)
    result_NCHW, plain_NCHW = np.empty(stack_NCHW.shape), np.empty(stack_NCHW.shape)
    for number, frame_CHW in enumerate(stack_NCHW.astype(np.float32)):
        for camera in range(0, len(frame_CHW), 3):
            image, still, other = (
                x[camera : camera + 3].transpose(1, 2, 0) for x in (frame_CHW, stack_NCHW[-1], other_CHW)
            )
            if has_all:
                moved_HW = np.abs(image - still).max(axis=2) / 127.5
                share_HW = cv2.dilate(1 / (1 + np.exp((MASK_AT - moved_HW) / MASK_WIDTH)), np.ones((3, 3)))
                image = share_HW[..., None] * image + (1 - share_HW[..., None]) * other
            matrix = np.array([[zoom[0], 0, move[0]], [0, zoom[1], move[1]]])
            image = cv2.warpAffine(image, matrix, (32, 32), borderMode=cv2.BORDER_REPLICATE)
            image[top : top + tall, left : left + wide] = color
            image = np.clip((image - 127.5) @ mix.T + 127.5 + shift, 0, 255)
            image = cv2.GaussianBlur(image, (0, 0), blur_px) if has_all else image
            plain_NCHW[number, camera : camera + 3] = image.transpose(2, 0, 1)
            if quality is not None:
                written = cv2.imencode(".jpg", np.rint(image).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
                image = cv2.imdecode(written, cv2.IMREAD_COLOR)
            result_NCHW[number, camera : camera + 3] = image.transpose(2, 0, 1)
    return result_NCHW, plain_NCHW


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    write_square_training_set(tmp_path, num_episodes=4, num_frames=17)
    settings = square_settings(tmp_path, **TINY)
    RunFolder(tmp_path).record(settings, ["idm"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    words = ["-m", "finetune", "finetune_idm", f"--out={tmp_path}"]
    done = subprocess.run([*command, *words], env=env, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nheld_out_mae") == 1  # one process speaks
    assert [row["step"] for row in rows_of(tmp_path / "finetune_idm" / "validation.csv")] == ["3", "6", "9", "12"]
    assert np.isfinite(
        InverseDynamics.load(tmp_path / "idm").predict(np.zeros((5, 64, 64, 3), np.uint8)).action_TA
    ).all()
