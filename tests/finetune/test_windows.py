"""Every clip is checked before training, and the windows depend on seed and index alone."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dreamgen.config.settings import FinetuneSettings, VideoSettings
from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.flow import sample_noise
from dreamgen.run.run_folder import RunFolder
from finetune.batches import Collate, WindowDataset
from finetune.windows import (
    all_windows,
    choose_window,
    num_threads,
    num_windows,
    read_training_set,
    read_window,
    window_starts,
)
from tests.finetune.conftest import FPS, HEIGHT, NUM_FRAMES, WIDTH, write_training_set

VIDEO = VideoSettings(height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, fps=FPS)


@pytest.fixture
def run(tmp_path):
    write_training_set(tmp_path, num_clips=3, num_frames=14)
    return RunFolder(tmp_path)


def test_the_training_set_is_read_with_counted_frames(run):
    clips = read_training_set(run, VIDEO)
    assert [clip.num_frames for clip in clips] == [14, 14, 14]
    assert clips[2].prompt.endswith('place the square on the "plate", gently')
    assert num_windows(clips, NUM_FRAMES) == 3 * 6


def test_a_window_is_consecutive_frames_of_its_clip(run):
    clips = read_training_set(run, VIDEO)
    window = choose_window(clips, NUM_FRAMES, seed=0, sample_index=1)
    whole_THWC = read_video(window.clip.path)
    wanted_THWC = whole_THWC[window.start : window.start + NUM_FRAMES]
    assert np.array_equal(read_window(window, NUM_FRAMES).numpy(), wanted_THWC)


def test_each_epoch_visits_every_clip_once_in_a_new_order(run):
    clips = read_training_set(run, VIDEO)
    windows = [choose_window(clips, NUM_FRAMES, 0, index) for index in range(3 * 40)]
    epochs = [[window.clip.path.name for window in windows[start : start + 3]] for start in range(0, len(windows), 3)]
    assert all(len(set(names)) == 3 for names in epochs)
    assert len({tuple(names) for names in epochs}) == 6  # every order of three clips comes up
    assert {window.start for window in windows} == set(range(6))


def test_windows_depend_on_the_seed_and_not_on_workers(run):
    clips = read_training_set(run, VIDEO)

    def stream(seed, **options):
        dataset = WindowDataset(clips, NUM_FRAMES, 6, seed, None, lambda window: read_window(window, NUM_FRAMES))
        loader = DataLoader(
            dataset, collate_fn=Collate(partial(sample_noise, seed, (16, 3, 4, 6), FinetuneSettings())), **options
        )
        batches = list(loader)
        videos = [video_THWC for batch in batches for video_THWC in batch["content"]]
        return videos + [noise_CTHW for batch in batches for noise_CTHW in batch["noise"].noise_BCTHW]

    alone = stream(0)
    assert all(map(torch.equal, alone, stream(0, num_workers=2)))
    assert all(map(torch.equal, alone, stream(0, batch_size=3)))
    assert not all(map(torch.equal, alone, stream(1)))


def test_few_windows_are_spread_over_the_clip(run):
    clips = read_training_set(run, VIDEO)
    starts = {count: list(window_starts(clips[0], NUM_FRAMES, count)) for count in (1, 2, 3, 5, 6, 9, None)}
    assert starts == {
        1: [0], 2: [0, 5], 3: [0, 2, 5], 5: [0, 1, 2, 4, 5], 6: [*range(6)], 9: [*range(6)], None: [*range(6)]
    }  # fmt: skip
    chosen = {choose_window(clips, NUM_FRAMES, 0, index, windows_per_clip=2) for index in range(60)}
    assert chosen == set(all_windows(clips, NUM_FRAMES, 2)) and len(chosen) == 3 * 2


def test_all_problems_are_told_at_once(run):
    write_training_set(run.root / "slow", num_clips=1, num_frames=14, fps=10)
    write_training_set(run.root / "short", num_clips=1, num_frames=6)
    for name in ("slow", "short"):
        (run.root / name / "train/videos/clip_0.mp4").rename(run.train / f"videos/{name}.mp4")
    whole = (run.train / "videos/clip_0.mp4").read_bytes()
    (run.train / "videos/cut.mp4").write_bytes(whole[: len(whole) // 3])
    (run.train / "metadata.csv").write_bytes(
        b"file_name,prompt,num_frames\n"
        b"videos/missing.mp4,a,14\nvideos/cut.mp4,a,14\nvideos/slow.mp4,a,14\nvideos/short.mp4,a,6\n"
        b"videos/clip_0.mp4,,14\nvideos/clip_1.mp4,caf\xe9,14\nvideos/clip_2.mp4,a,20\n../../x.mp4,a,14\n"
        b"videos/clip_0.mp4,a,14\n"
    )
    with pytest.raises(UserError) as caught:
        read_training_set(run, VIDEO)
    message = str(caught.value)
    assert "(8 problems)" in message
    for sentence in (
        "missing.mp4 does not exist", "cut.mp4 is", "slow.mp4 has another frame rate", "10 fps",
        "short.mp4 is shorter than a window", "line 6: videos/clip_0.mp4 has no prompt",
        "line 7: videos/clip_1.mp4: the prompt is not UTF-8", "clip_2.mp4 is incomplete", "outside its dataset",
    ):  # fmt: skip
        assert sentence in message
    message.encode("utf-8")  # what was not UTF-8 can still be shown


def test_another_size_is_refused(run):
    with pytest.raises(UserError, match="another size"):
        read_training_set(run, VideoSettings(height=48, width=WIDTH, num_frames=NUM_FRAMES, fps=FPS))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "lacks columns: file_name, prompt"), ("file_name,text\na,b\n", "lacks columns: prompt"),
     ("file_name,prompt\n", "names no clip")],
)  # fmt: skip
def test_metadata_that_is_no_table_is_refused(run, text, sentence):
    (run.train / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_training_set(run, VIDEO)


def test_a_missing_training_set_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="dreamgen prepare"):
        read_training_set(RunFolder(tmp_path), VIDEO)


def test_a_clip_that_breaks_later_is_an_error_and_not_replaced(run):
    clips = read_training_set(run, VIDEO)
    write_training_set(run.root / "other", num_clips=1, num_frames=10)
    (run.root / "other/train/videos/clip_0.mp4").rename(clips[0].path)
    late = next(w for i in range(60) if (w := choose_window(clips, NUM_FRAMES, 0, i)).clip == clips[0] and w.start > 1)
    with pytest.raises(UserError, match=r"clip_0\.mp4 is damaged"):
        read_window(late, NUM_FRAMES)


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (num_threads(64), num_threads(8)) == (16, 8)
    for num_processes, expected in ((1, 8), (8, 2), (32, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
        assert num_threads(8) == expected
