"""The cache changes no loss, encodes what changed and nothing else, and is whole whoever fills it."""

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKLWan
from transformers import Qwen2_5_VLForConditionalGeneration

from dreamgen.data.video import write_video
from dreamgen.errors import UserError
from dreamgen.models.adapter_files import adapter_sha256
from dreamgen.models.cosmos_predict25 import whole_clip
from dreamgen.models.cosmos_predict25.loading import load_pipeline
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from finetune.cache import Cache, encode_prompt, encode_windows, missing_share, read_tensor, write_tensor
from finetune.inputs import fill
from finetune.train import batch_loss, needed
from finetune.windows import read_training_set, read_window
from tests.finetune.conftest import FPS, HEIGHT, NUM_FRAMES, WIDTH, training_settings, write_training_set
from tests.finetune.test_train import curve
from tests.fixtures.demos import make_episode
from tests.fixtures.leftovers import OTHER_HOST, leftover

LOAD_PIPELINE = "dreamgen.models.cosmos_predict25.training.load_pipeline"


@pytest.fixture
def encoded(monkeypatch):
    """Counts what the frozen encoders are asked for."""
    counts = {"windows": 0, "prompts": 0}

    def counting(cls, method, name):
        plain = getattr(cls, method)

        def counted(*args, **named):
            counts[name] += 1
            return plain(*args, **named)

        monkeypatch.setattr(cls, method, counted)

    counting(whole_clip, "encode_moments", "windows")
    counting(Qwen2_5_VLForConditionalGeneration, "forward", "prompts")
    return counts


def again(settings, name, **sections):
    """The same training set in another run, with the first run's cache."""
    first = Path(settings.out)
    out = first.parent / name
    out.mkdir()
    (out / "train").symlink_to(first / "train")
    changes = sections | {"finetune": {"cache_dir": str(first / "cache"), **sections.get("finetune", {})}}
    settings = replace(settings, out=str(out))
    for section, values in changes.items():
        settings = replace(settings, **{section: replace(getattr(settings, section), **values)})
    return settings


def first_run(folder, world, num_frames=10, **sections):
    write_training_set(folder / "first", num_frames=num_frames)
    settings = training_settings(folder / "first", world, **sections)
    finetune(settings)
    return settings


def cache_of(settings):
    run = RunFolder.of(settings)
    source = resolve_world_model(settings.model, run)
    model = source.load_class().for_training(source, settings, torch.device("cpu"))
    return Cache(run.cache, source, settings, model), source, read_training_set(run, settings.video)


def files(settings):
    return sorted(path for path in RunFolder.of(settings).cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_and_uncached_training_are_one(world, tmp_path, encoded, dtype):
    # Clips with as many windows as are cached: then both draw the same ones.
    settings = first_run(tmp_path, world, num_frames=12, model={"dtype": dtype}, finetune={"batch_size": 2})
    assert encoded == {"windows": 2 * 4, "prompts": 2}
    uncached = again(settings, "uncached", finetune={"cache": "none", "cache_dir": None})
    finetune(uncached)
    assert encoded == {"windows": 2 * 4 + 8, "prompts": 2 + 2}
    assert curve(tmp_path / "first") == curve(tmp_path / "uncached")
    assert adapter_sha256(tmp_path / "first/adapter") == adapter_sha256(tmp_path / "uncached/adapter")
    assert not (tmp_path / "uncached/cache").exists()


def test_workers_read_the_same(world, tmp_path):
    settings = first_run(tmp_path, world)
    finetune(again(settings, "workers", finetune={"num_workers": 2}))
    assert curve(tmp_path / "first") == curve(tmp_path / "workers")


def test_a_warm_cache_loads_no_encoder(world, tmp_path, encoded, monkeypatch):
    settings = first_run(tmp_path, world)
    before = dict(encoded), [path.stat().st_mtime_ns for path in files(settings)]
    monkeypatch.setattr(LOAD_PIPELINE, lambda *_, **__: pytest.fail("it was loaded"))
    finetune(again(settings, "second"))
    assert (encoded, [path.stat().st_mtime_ns for path in files(settings)]) == before
    assert curve(tmp_path / "first") == curve(tmp_path / "second")
    assert not (tmp_path / "second/cache").exists()


def test_the_encoders_are_gone_while_it_trains(world, tmp_path, monkeypatch):
    loaded, alive = [], []

    def remember(*args, **named):
        pipe = load_pipeline(*args, **named)
        loaded.extend(weakref.ref(part) for part in (pipe, pipe.vae, pipe.text_encoder))
        return pipe

    def look(*args):
        alive.append([reference() is not None for reference in loaded])
        return batch_loss(*args)

    monkeypatch.setattr(LOAD_PIPELINE, remember)
    monkeypatch.setattr("finetune.train.batch_loss", look)
    first_run(tmp_path, world)
    assert alive == [[False] * 3] * 4
    gc.collect()
    encoders = (AutoencoderKLWan, Qwen2_5_VLForConditionalGeneration)
    assert not any(isinstance(thing, encoders) for thing in gc.get_objects())


def test_only_what_changed_is_encoded_again(world, tmp_path, encoded):
    settings = first_run(tmp_path, world)
    num_files = len(files(settings))
    assert encoded == {"windows": 4, "prompts": 2} and num_files == 4 + 2 + 1  # and the dropped text

    def then(name, windows, prompts, **sections):
        before = dict(encoded)
        AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision for a process
        finetune(again(settings, name, **sections))
        assert {kind: encoded[kind] - before[kind] for kind in encoded} == {"windows": windows, "prompts": prompts}

    then("same", 0, 0, finetune={"num_steps": 5})
    metadata = tmp_path / "first/train/metadata.csv"
    captions = metadata.read_text()
    metadata.write_text(captions.replace("The robot arm is performing a task. ", "Look: ", 1))
    then("caption", 0, 1)
    metadata.write_text(captions)
    then("old_caption", 0, 0)
    clip = tmp_path / "first/train/videos/clip_1.mp4"
    write_video(clip, make_episode(7, 10, FPS, HEIGHT, WIDTH).video_THWC, FPS)
    then("clip", 2, 0)
    clip.rename(clip.with_name("other.mp4"))
    metadata.write_text(captions.replace("clip_1.mp4", "other.mp4"))
    then("renamed", 0, 0)
    then("length", 2 * 4, 0, video={"num_frames": 5})
    then("fewer", 0, 0, video={"num_frames": 5}, finetune={"windows_per_clip": 2})
    then("more", 2 * 2, 0, video={"num_frames": 5}, finetune={"windows_per_clip": 5})
    then("dtype", 4, 2, model={"dtype": "bfloat16"})


def test_another_size_or_model_has_other_names(world, tmp_path):
    write_training_set(tmp_path)
    settings = training_settings(tmp_path, world)
    cache, source, clips = cache_of(settings)
    windows, prompts = needed(settings, clips)
    video = settings.video
    others = [
        Cache(cache.root, source, replace(settings, video=replace(video, height=video.height + 16)), cache.model),
        Cache(cache.root, source, replace(settings, video=replace(video, width=video.width + 16)), cache.model),
        Cache(cache.root, replace(source, sha256="another"), settings, cache.model),
    ]
    names = [other.window_file(windows[0]) for other in [cache, *others]]
    assert len(set(names)) == 4
    texts = [other.prompt_file(prompts[0]) for other in [cache, *others]]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert cache.prompt_file(None) != cache.prompt_file("None") != cache.prompt_file("")


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "other", "gone"])
def test_a_damaged_file_is_encoded_again(world, tmp_path, encoded, harm):
    settings = first_run(tmp_path, world, num_frames=NUM_FRAMES)
    whole = {path: path.read_bytes() for path in files(settings)}
    for path, data in whole.items():
        if harm == "gone":
            path.unlink()
        elif harm == "other":
            write_tensor(path, torch.zeros(3))
        else:
            middle = len(data) - 40
            flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
            path.write_bytes({"cut": data[:-8], "empty": b"", "flipped": flipped}[harm])
    finetune(again(settings, "second"))
    assert encoded["windows"] == 2 * 2
    assert curve(tmp_path / "first") == curve(tmp_path / "second")
    assert {path: path.read_bytes() for path in files(settings)} == whole


def test_what_breaks_during_training_is_an_error_that_says_so(world, tmp_path):
    settings = first_run(tmp_path, world, num_frames=NUM_FRAMES)
    cache, _, clips = cache_of(settings)
    windows, prompts = needed(settings, clips)
    cache.window_file(windows[0]).unlink()
    cache.prompt_file(prompts[0]).write_bytes(b"nonsense")
    for read in (lambda: cache.read_window(windows[0]), lambda: cache.read_prompt(prompts[0])):
        with pytest.raises(UserError, match="gone or damaged"):
            read()


def test_processes_share_the_work_and_nothing_is_left(world, tmp_path):
    write_training_set(tmp_path, num_clips=3, num_frames=11)
    settings = training_settings(tmp_path, world)
    cache, _, clips = cache_of(settings)
    windows, prompts = needed(settings, clips)
    prompts = [*prompts, None]
    shares = [missing_share(cache, windows, prompts, rank, 2) for rank in range(2)]
    assert set(shares[0][0]).isdisjoint(shares[1][0]) and set(shares[0][1]).isdisjoint(shares[1][1])
    assert abs(len(shares[0][0]) - len(shares[1][0])) <= 1
    cache.model.load_encoders(text_encoder=True)
    threads = ThreadPoolExecutor(2)
    list(encode_windows(cache, [shares[0][0]], threads))
    for prompt in shares[0][1]:
        encode_prompt(cache, prompt)
    # The second looks again only now, when the first has written; what it has to do is the same.
    assert missing_share(cache, windows, prompts, 1, 2) == shares[1]
    list(encode_windows(cache, [shares[1][0]], threads))
    for prompt in shares[1][1]:
        encode_prompt(cache, prompt)
    assert missing_share(cache, windows, prompts) == ([], [])


@pytest.fixture
def uncached(world, tmp_path, monkeypatch):
    """An empty cache with loaded encoders, six windows of three clips, two of which are a batch, and prompts."""
    write_training_set(tmp_path, num_clips=3, num_frames=NUM_FRAMES + 1)
    settings = training_settings(tmp_path, world)
    cache, _, clips = cache_of(settings)
    cache.model.load_encoders(text_encoder=True)
    monkeypatch.setattr("finetune.cache.BATCH_BYTES", 2 * 3 * NUM_FRAMES * HEIGHT * WIDTH)
    return cache, *needed(settings, clips)


def whole_windows(cache, windows):
    return sum(map(cache.has_window, windows))


def test_what_is_encoded_meanwhile_is_the_same_as_one_after_another(uncached, tmp_path):
    cache, windows, _ = uncached
    with ThreadPoolExecutor(3) as threads:
        assert list(encode_windows(cache, [windows[:3], [], windows[3:]], threads)) == windows
    for window in windows:
        encoded_B = cache.model.encode_windows(read_window(window, NUM_FRAMES)[None])
        write_tensor(tmp_path / "serial", encoded_B[0])
        assert cache.window_file(window).read_bytes() == (tmp_path / "serial").read_bytes()


def test_while_a_batch_is_encoded_the_next_is_decoded_and_the_last_is_written(uncached, monkeypatch):
    cache, windows, _ = uncached
    decoded, counts, encode = [], [], cache.model.encode_windows

    def decoding(window, *args):
        decoded.append(window)
        return read_window(window, *args)

    def encoding(video_BTHWC):
        threads.submit(int).result()  # the only thread has then done all that it was asked for before
        counts.append((len(decoded), whole_windows(cache, windows)))
        return encode(video_BTHWC)

    monkeypatch.setattr("finetune.cache.read_window", decoding)
    monkeypatch.setattr(cache.model, "encode_windows", encoding)
    with ThreadPoolExecutor(1) as threads:
        list(encode_windows(cache, [windows], threads))
    assert decoded == windows and len(windows) == 6
    assert counts == [(4, 0), (6, 2), (6, 4)]


def test_a_clip_that_is_damaged_meanwhile_is_named_and_the_windows_before_it_are_kept(uncached):
    cache, windows, prompts = uncached
    path = windows[-1].clip.path
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="clip_2.mp4 is damaged"):
        fill(cache, windows, prompts, Accelerator(cpu=True))
    assert whole_windows(cache, windows) == 4 and missing_share(cache, [], prompts) == ([], [])


def test_all_is_written_between_the_barriers(uncached, monkeypatch, capsys):
    cache, windows, prompts = uncached
    accelerator, written = Accelerator(cpu=True), []

    def wait():
        written.append(len(prompts) - len(missing_share(cache, [], prompts)[1]) + whole_windows(cache, windows))

    monkeypatch.setattr("finetune.inputs.ITEMS_BETWEEN_BARRIERS", 4)
    monkeypatch.setattr(accelerator, "wait_for_everyone", wait)
    assert fill(cache, windows, prompts, accelerator) == (6, 3)
    assert len(written) == 3 and all(map(int.__ge__, written, (4, 8, 9)))
    assert "encode 9/9 windows and prompts" in capsys.readouterr().err


def test_a_shared_cache_is_swept_of_what_dead_processes_of_this_host_left(world, tmp_path):
    settings = first_run(tmp_path, world)
    whole = files(settings)
    stale = [leftover(whole[0]), leftover(RunFolder.of(settings).cache / "latents/ff/new.safetensors")]
    kept = [leftover(whole[0], pid=os.getpid()), leftover(whole[0], host=OTHER_HOST)]
    finetune(again(settings, "second"))
    assert not any(path.exists() for path in stale)
    assert files(settings) == sorted([*whole, *kept])


@pytest.mark.slow
def test_two_trainings_that_fill_one_cache_at_once_leave_it_whole(world, tmp_path):
    write_training_set(tmp_path / "a", num_clips=3, num_frames=12)
    write_training_set(tmp_path / "b", num_clips=3, num_frames=12)
    root = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "finetune", f"--out={tmp_path / name}", f"--model.path={world}",
                "--model.dtype=float32", "--model.device=cpu", "--model.safety_checker=false", "--num_steps=4",
                f"--video.height={HEIGHT}", f"--video.width={WIDTH}", f"--video.num_frames={NUM_FRAMES}",
                "--lora.rank=2", "--log_every=1", "--tracker=none", f"--cache_dir={tmp_path / 'cache'}",
            ],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    for process in processes:
        _, message = process.communicate(timeout=300)
        assert process.returncode == 0, message
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(kept) == 3 * 4 + 3 + 1 and all(read_tensor(path) is not None for path in kept)


def test_half_precision_costs_two_bytes_a_value(world, tmp_path):
    settings = first_run(tmp_path, world, num_frames=NUM_FRAMES, model={"dtype": "bfloat16"})
    cache, _, clips = cache_of(settings)
    windows, prompts = needed(settings, clips)
    num_values = 16 * 3 * (HEIGHT // 8) * (WIDTH // 8)
    assert num_values * 2 < cache.window_file(windows[0]).stat().st_size < num_values * 2 + 200
    assert cache.read_prompt(prompts[0]).shape == (1, 512, 32) and cache.read_prompt(None).dtype == torch.bfloat16
