"""A small network that reads hand, gripper and object positions from a frame, to judge clips that have no recording.

Axes: N clips, B frames, T frames, H height, W width, C channels, V values that are read.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from metaworld_clips import Clips
from safetensors.torch import load_model, save_model
from torch import nn

VALUES = (
    "hand_x",
    "hand_y",
    "hand_z",
    "gripper",
    "object_x",
    "object_y",
    "object_z",
    "second_x",
    "second_y",
    "second_z",
)
HAND, GRIPPER, OBJECT, SECOND = slice(0, 3), 3, slice(4, 7), slice(7, 10)


class StateReadout(nn.Module):
    """Strided residual convolutions, then one layer that sees the whole picture."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 4]
        self.stem = nn.Conv2d(5, width, 5, 2, 2)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip([width, *widths[:-1]], widths, strict=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, w, 3, 1, 1), nn.GroupNorm(8, w), nn.SiLU(),
                          nn.Conv2d(w, w, 3, 1, 1)) for w in widths
        )  # fmt: skip
        self.head = nn.Sequential(nn.LazyLinear(512), nn.SiLU(), nn.Linear(512, len(VALUES)))
        # Of the values, so that the network reads numbers around zero; saved with the weights.
        self.mean_V = nn.Parameter(torch.zeros(len(VALUES)), requires_grad=False)
        self.std_V = nn.Parameter(torch.ones(len(VALUES)), requires_grad=False)

    def forward(self, frames_BHWC: torch.Tensor) -> torch.Tensor:
        """Read normalized values_BV from uint8 frames."""
        image = frames_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
        height, width = image.shape[-2:]
        rows = torch.linspace(-1, 1, height, device=image.device).view(1, 1, -1, 1).expand(len(image), 1, -1, width)
        columns = torch.linspace(-1, 1, width, device=image.device).view(1, 1, 1, -1).expand(len(image), 1, height, -1)
        hidden = self.stem(torch.cat([image, rows, columns], 1))
        for down, block in zip(self.downs, self.blocks, strict=True):
            hidden = down(F.silu(hidden))
            hidden = hidden + block(hidden)
        return self.head(F.silu(hidden).flatten(1))

    @torch.no_grad()
    def read(self, video_NTHWC: torch.Tensor, batch_size: int = 1024) -> np.ndarray:
        """Read values_NTV, in meters, from clips on any device."""
        device = self.mean_V.device
        values = []
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for frames_BHWC in video_NTHWC.flatten(0, 1).split(batch_size):
                values.append(self(frames_BHWC.to(device)).float() * self.std_V + self.mean_V)
        return torch.cat(values).cpu().numpy().reshape(*video_NTHWC.shape[:2], len(VALUES))


def recorded_values(clips: Clips) -> np.ndarray:
    """Return what the network should read, values_NTV."""
    return np.concatenate([clips.state_NTS[..., :4], clips.environment_NTE[..., :6]], axis=-1).astype(np.float32)


def train_readout(clips: Clips, device: torch.device, seconds: float, seed: int = 0) -> StateReadout:
    """Train on recorded clips for a time, with blurred and noisy frames among the others.

    Args:
        clips: On the CPU.
        device: To train on.
        seconds: When to stop; the learning rate falls to zero by then.
        seed: Of weights and batches.
    """
    torch.manual_seed(seed)
    values_MV = torch.from_numpy(recorded_values(clips)).flatten(0, 1)
    frames_MHWC = clips.video_NTHWC.flatten(0, 1)
    if device.type == "cuda" and frames_MHWC.nbytes < 30e9:
        frames_MHWC, values_MV = frames_MHWC.to(device), values_MV.to(device)
    model = StateReadout(48 if device.type == "cuda" else 16).to(device)
    model(frames_MHWC[:1].to(device))  # gives the lazy layer its size
    model.mean_V.data.copy_(values_MV.mean(0))
    model.std_V.data.copy_(values_MV.std(0).clamp(min=0.02))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)
    batch_size, start_s, step = 512 if device.type == "cuda" else 32, time.monotonic(), 0
    while (passed := (time.monotonic() - start_s) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 50) * (1 - passed)
        chosen_B = torch.randint(len(values_MV), (batch_size,), device=values_MV.device)
        image_BHWC = _augmented(frames_MHWC[chosen_B].to(device))
        target_BV = (values_MV[chosen_B].to(device) - model.mean_V) / model.std_V
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.smooth_l1_loss(model(image_BHWC).float(), target_BV, beta=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    print(f"state read-out: {step} steps of {batch_size} frames, loss {loss.item():.4f}", flush=True)
    return model.eval()


def _augmented(frames_BHWC: torch.Tensor) -> torch.Tensor:
    """Blur a third of the frames, as a VAE does, and add noise to another third; all as float 0-255."""
    frames_BHWC = frames_BHWC.float()
    third = len(frames_BHWC) // 3
    image_BCHW = frames_BHWC[:third].permute(0, 3, 1, 2)
    size = image_BCHW.shape[-2:]
    small_BCHW = F.interpolate(image_BCHW, scale_factor=0.5, mode="area")
    blurred_BCHW = F.interpolate(small_BCHW, size=size, mode="bilinear", align_corners=False)
    noisy_BHWC = frames_BHWC[third : 2 * third]
    noisy_BHWC = noisy_BHWC + 6 * torch.randn_like(noisy_BHWC)
    return torch.cat([blurred_BCHW.permute(0, 2, 3, 1), noisy_BHWC, frames_BHWC[2 * third :]]).clamp(0, 255)


def save_readout(model: StateReadout, file: Path) -> None:
    """Save the network's weights."""
    save_model(model, str(file))


def load_readout(file: Path, size_px: int, device: torch.device) -> StateReadout:
    """Load what `save_readout` wrote.

    Args:
        file: The weights.
        size_px: Height and width of the frames.
        device: To load on.
    """
    from safetensors import safe_open

    with safe_open(str(file), "pt") as weights:
        width = weights.get_slice("stem.weight").get_shape()[0]
    model = StateReadout(width)
    model(torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8))
    load_model(model, str(file))
    return model.to(device).eval()


def kept_readout(file: Path, known: Clips, device: torch.device, seconds: float, seed: int) -> StateReadout:
    """Return the read-out that a file holds, or train it and keep it there.

    Args:
        file: safetensors.
        known: Recordings to train on; their frames have the size of those to read.
        device: To run it on.
        seconds: Of the training.
        seed: Likewise.
    """
    if file.is_file():
        return load_readout(file, known.video_NTHWC.shape[2], device)
    readout = train_readout(known, device, seconds, seed)
    save_readout(readout, file)
    return readout
