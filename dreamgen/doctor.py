"""Describe this machine for a bug report in one Markdown block: versions, GPU, codecs, disk, hub login.

Nothing here uses the network or shows a token. A broken part is a row of the table and never raises.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dreamgen
from dreamgen.cores import usable_cores
from dreamgen.run.records import StageResult

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "ray", "lerobot", "huggingface_hub",
    "numpy", "pandas", "pyarrow", "h5py", "av", "opencv-python-headless", "safetensors",
)  # fmt: skip
OPENCV_BUILDS = (
    "opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
DECODERS = ("h264", "av1")
LOW_DISK_GIB = 5
# What importing or using a broken binary package raises; a wider list would hide our own errors.
BROKEN_IMPORT = (ImportError, OSError, RuntimeError)


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Args:
        part: Part of the machine.
        name: What was inspected.
        found: Its value in words.
        state: ok; note (works, with a limitation); problem.
        to_do: How to fix a problem, or what a note means.
    """

    part: str
    name: str
    found: str
    state: Literal["ok", "note", "problem"] = "ok"
    to_do: str | None = None


def doctor(out: Path | None = None) -> StageResult:
    """Describe this machine in one Markdown block for a bug report.

    Args:
        out: A run folder whose disk is inspected; the working directory when not given.

    Returns:
        The block in `metrics["markdown"]`, and one note per problem with its fix.
    """
    findings = [*_machine(), *_packages(), *_gpus(), *_codecs(), *_disk(out or Path.cwd()), *_accounts()]
    problems = [finding for finding in findings if finding.state == "problem"]
    metrics = {"num_problems": len(problems), "markdown": markdown(findings)}
    notes = [f"{finding.name}: {finding.found}. {finding.to_do}" for finding in problems]
    return StageResult("doctor", {}, metrics, notes)


def markdown(findings: list[Finding]) -> str:
    """Return findings as an aligned Markdown table, with the fixes below it."""
    rows = [(_cell(f.part), _cell(f.name), _cell(f.found), f.state) for f in findings]
    header = ("part", "what", "found", "state")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(4)]

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    table = [line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]
    lines = ["### dreamgen doctor", "", *table, ""]
    for state, title in (("problem", "Problems"), ("note", "Notes")):
        lines_of_state = [
            f"- **{_cell(f.name)}** ({_cell(f.found)}): {f.to_do}" for f in findings if f.state == state and f.to_do
        ]
        lines += [f"**{title}**", "", *lines_of_state, ""] if lines_of_state else []
    if not any(finding.state == "problem" for finding in findings):
        lines += ["No problems found.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "DreamGen", dreamgen.__version__)
    yield Finding("machine", "Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Finding("machine", "system", f"{platform.platform()} {platform.machine()}")
    yield Finding("machine", "CPU cores", f"{usable_cores()} usable of {os.cpu_count()}")
    yield Finding("machine", "RAM", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB")


def _packages() -> Iterator[Finding]:
    wanted = _requirements()
    for name in PACKAGES:
        version = _version(name)
        allowed = wanted.get(_canonical(name))
        if version is None:
            yield Finding("packages", name, "not installed", "problem", f"pip install '{name}{allowed or ''}'")
        elif allowed is not None and not allowed.contains(version, prereleases=True):
            to_do = f"DreamGen needs {name}{allowed}: pip install '{name}{allowed}'"
            yield Finding("packages", name, version, "problem", to_do)
        else:
            yield Finding("packages", name, version)
    builds = [name for name in OPENCV_BUILDS if _version(name)]
    if len(builds) > 1:
        to_do = (
            f"they overwrite each other's files: pip uninstall {' '.join(builds)}, "
            "then pip install opencv-python-headless"
        )
        yield Finding("packages", "OpenCV builds", ", ".join(builds), "problem", to_do)
    yield _torchcodec()


def _torchcodec() -> Finding:
    version = _version("torchcodec")
    if version is None:
        return Finding("packages", "torchcodec", "not installed", "note", "lerobot decodes with PyAV instead")
    try:
        import torchcodec.decoders  # noqa: F401
    except BROKEN_IMPORT as error:
        to_do = "lerobot decodes with PyAV instead (slower); install FFmpeg's shared libraries to use it"
        return Finding("packages", "torchcodec", f"{version}, does not load ({type(error).__name__})", "note", to_do)
    return Finding("packages", "torchcodec", f"{version}, loads")


def _gpus() -> Iterator[Finding]:
    try:
        import torch
    except BROKEN_IMPORT as error:
        to_do = "install torch again for this Python and this driver"
        yield Finding("GPU", "torch", f"does not import ({type(error).__name__}: {error})", "problem", to_do)
        return
    driver = _driver_version()
    yield Finding("GPU", "driver", driver or "no nvidia-smi")
    built_for = torch.version.cuda or torch.version.hip
    yield Finding("GPU", "torch built for", f"CUDA {built_for}" if built_for else "CPU only")
    if not torch.cuda.is_available():
        if driver:
            to_do = "there is a driver, but this torch cannot use it: install the torch build for its CUDA version"
            yield Finding("GPU", "CUDA", "not available", "problem", to_do)
        else:
            to_do = "--model.path=mini runs on the CPU; the real model needs a CUDA GPU"
            yield Finding("GPU", "CUDA", "not available", "note", to_do)
        return
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
            with torch.cuda.device(index):
                bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            name = torch.cuda.get_device_name(index)
        except RuntimeError as error:
            to_do = "another process may use it or have filled its memory; nvidia-smi shows which"
            yield Finding("GPU", f"cuda:{index}", f"does not answer ({error})", "problem", to_do)
            continue
        found = f"{name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free), bfloat16 {'yes' if bf16 else 'no'}"
        to_do = None if bf16 else "use --model.dtype=float32"
        yield Finding("GPU", f"cuda:{index}", found, "ok" if bf16 else "problem", to_do)


def _codecs() -> Iterator[Finding]:
    try:
        import av

        from dreamgen.data.video import ENCODERS
    except BROKEN_IMPORT as error:
        to_do = "pip install --force-reinstall av opencv-python-headless"
        yield Finding("codecs", "PyAV, OpenCV", f"do not import ({type(error).__name__}: {error})", "problem", to_do)
        return
    to_do = "pip install --force-reinstall av: its wheels include FFmpeg with this codec"
    for codec, (encoder, _) in ENCODERS.items():
        broken = _round_trip(codec)
        found = f"does not work ({broken})" if broken else "works: 8 frames written and read back"
        setting = f"; until then choose another --video.codec than {codec}"
        yield Finding("codecs", f"encode {encoder}", found, "problem" if broken else "ok", to_do + setting)
    for decoder in DECODERS:
        found, state = ("available", "ok") if decoder in av.codecs_available else ("missing", "problem")
        yield Finding("codecs", f"decode {decoder}", found, state, to_do)


def _round_trip(codec: str) -> str | None:
    """Write eight frames with a codec and read them back; return what went wrong, or None."""
    import av
    import numpy as np

    from dreamgen.data.video import read_video, write_video
    from dreamgen.errors import UserError

    ramp_W = np.linspace(30, 220, 96, dtype=np.uint8)
    video_THWC = np.stack([np.broadcast_to(np.roll(ramp_W, 4 * t)[None, :, None], (64, 96, 3)) for t in range(8)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            write_video(path, video_THWC, fps=16, codec=codec)
            decoded_THWC = read_video(path)
        except (av.FFmpegError, ValueError, OSError, UserError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if decoded_THWC.shape != video_THWC.shape:
        return f"wrote {video_THWC.shape}, read {decoded_THWC.shape}"
    difference = np.abs(decoded_THWC.astype(float) - video_THWC).mean()
    return f"pixels differ by {difference:.0f} of 255 on average" if difference > 8 else None


def _disk(out: Path) -> Iterator[Finding]:
    for name, folder in (("run folder", out), ("hub cache", _hub_cache())):
        existing = next((path for path in (folder, *folder.resolve().parents) if path.exists()), Path("/"))
        free_gib = shutil.disk_usage(existing).free / 2**30
        low = free_gib < LOW_DISK_GIB
        found = f"{free_gib:.0f} GiB free"
        if not os.access(existing, os.W_OK):
            yield Finding("disk", name, f"{found}, not writable", "problem", "choose a folder that you may write to")
        else:
            to_do = "free space, or put it on another disk (--out, HF_HOME)" if low else None
            yield Finding("disk", name, found, "problem" if low else "ok", to_do)


def _hub_cache() -> Path:
    try:
        from huggingface_hub import constants
    except BROKEN_IMPORT:
        return Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(constants.HF_HUB_CACHE)


def _accounts() -> Iterator[Finding]:
    yield _hub_token()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    to_do = "models must be in the hub cache already; unset HF_HUB_OFFLINE to download them"
    yield Finding("accounts", "HF_HUB_OFFLINE", "set" if offline else "not set", "note" if offline else "ok", to_do)
    guarded = importlib.util.find_spec("cosmos_guardrail") is not None
    to_do = "the license of the real model requires it: pip install cosmos_guardrail (mini does not need it)"
    found = "installed" if guarded else "not installed"
    yield Finding("accounts", "cosmos_guardrail", found, "ok" if guarded else "note", to_do)
    cluster = "set: Ray joins that cluster" if os.environ.get("RAY_ADDRESS") else "not set: Ray runs on this machine"
    yield Finding("accounts", "RAY_ADDRESS", cluster)


def _hub_token() -> Finding:
    try:
        from huggingface_hub import get_token
    except BROKEN_IMPORT as error:
        to_do = "pip install --force-reinstall huggingface_hub"
        return Finding("accounts", "hub token", f"huggingface_hub: {type(error).__name__}", "problem", to_do)
    # Only whether there is one: this block is pasted into public reports.
    if get_token() is not None:
        return Finding("accounts", "hub token", "present")
    to_do = "needed only to download gated models or to push: hf auth login"
    return Finding("accounts", "hub token", "none", "note", to_do)


def _requirements() -> dict:
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("dreamgen") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in lines]
    return {_canonical(r.name): r.specifier for r in parsed if r.marker is None or r.marker.evaluate()}


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi fails"
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else "nvidia-smi shows no GPU"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
