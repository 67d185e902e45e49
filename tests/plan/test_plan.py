"""plan: sources, refused rows, ids, and planning again."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.images import fit_frame, frame_sha256, read_image, write_png
from dreamgen.data.video import iter_frames, write_video
from dreamgen.errors import UserError
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.records import Job, job_id
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import HEIGHT, INSTRUCTIONS, WIDTH, frame, make_world, tiny_settings, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("model") / "world")


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs")


def jobs_of(settings) -> list[Job]:
    return read_jobs(RunFolder.of(settings).jobs)


def test_pairs_times_seeds(tmp_path, world, pairs):
    settings = tiny_settings(tmp_path / "run", world, pairs, plan={"num_seeds": 2})
    result = plan(settings)
    jobs = jobs_of(settings)
    assert [job.instruction for job in jobs] == [*INSTRUCTIONS, *INSTRUCTIONS]
    assert [job.seed for job in jobs] == [0, 0, 0, 1, 1, 1]
    assert jobs[0].prompt == "The robot arm is performing a task. push the red block"
    assert jobs[0].negative_prompt.startswith("The video captures")
    assert len({job.clip_id for job in jobs}) == 6 and all(job.clip_id == job_id(asdict(job)) for job in jobs)
    assert result.metrics | {"num_new": 6, "num_known": 0, "num_first_frames": 3} == result.metrics
    assert "a folder of 3 images" in result.notes[0]
    assert any("no adapter" in note for note in result.notes)
    for index, job in enumerate(jobs[:3]):
        stored = read_image(RunFolder.of(settings).first_frame_file(job.first_frame_sha256))
        np.testing.assert_array_equal(stored, frame(index))
        assert frame_sha256(stored) == job.first_frame_sha256


def test_id_hangs_on_what_determines_the_clip_and_nothing_else(tmp_path, world, pairs):
    settings = tiny_settings(tmp_path / "run", world, pairs)
    plan(settings)
    values = asdict(jobs_of(settings)[0])
    for name, value in values.items():
        other = value + 1 if isinstance(value, int | float) else f"{value}x"
        same_id = job_id({**values, name: other}) == values["clip_id"]
        assert same_id == (name in ("clip_id", "source", "model", "level", "adapter")), name
    moved = tiny_settings(tmp_path / "elsewhere", world, write_pairs(tmp_path / "other_pairs"))
    plan(moved)
    assert [job.clip_id for job in jobs_of(moved)] == [job.clip_id for job in jobs_of(settings)]
    assert jobs_of(moved)[0].source != jobs_of(settings)[0].source


def test_planning_again_adds_and_never_removes(tmp_path, world, pairs):
    settings = tiny_settings(tmp_path / "run", world, pairs)
    plan(settings)
    before = RunFolder.of(settings).jobs.read_bytes()
    assert plan(settings).metrics["num_new"] == 0
    assert RunFolder.of(settings).jobs.read_bytes() == before
    more = replace(settings, plan=replace(settings.plan, num_seeds=2))
    added = plan(more).metrics
    assert (added["num_new"], added["num_known"], added["num_jobs"]) == (3, 3, 6)
    fewer = plan(settings)
    assert len(jobs_of(settings)) == 6 and any("3 jobs that were planned before" in note for note in fewer.notes)


def test_frames_are_fit_and_equal_pixels_are_one_frame(tmp_path, world):
    folder = tmp_path / "pairs"
    large = frame(0, 90, 100)
    write_png(folder / "a.png", large)
    write_png(folder / "b.PNG", large)
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("lift it", encoding="utf-8")
    settings = tiny_settings(tmp_path / "run", world, folder)
    result = plan(settings)
    assert result.metrics["num_jobs"] == 1 and any(": made once" in note for note in result.notes)
    fitted = fit_frame(large, HEIGHT, WIDTH, "crop")
    assert jobs_of(settings)[0].first_frame_sha256 == frame_sha256(fitted)
    padded = replace(settings, out=str(tmp_path / "padded"), prepare=PrepareSettings(fit="pad"))
    plan(padded)
    assert jobs_of(padded)[0].first_frame_sha256 == frame_sha256(fit_frame(large, HEIGHT, WIDTH, "pad"))


def test_bad_pairs_are_refused_and_the_others_go_on(tmp_path, world, pairs):
    write_png(pairs / "without_text.png", frame(5))
    (pairs / "without_image.txt").write_text("lift it", encoding="utf-8")
    write_png(pairs / "empty.png", frame(5))
    (pairs / "empty.txt").write_text(" \n", encoding="utf-8")
    write_png(pairs / "latin.png", frame(5))
    (pairs / "latin.txt").write_bytes("schließe die Tür".encode("latin-1"))
    (pairs / "broken.jpg").write_bytes(b"not an image")
    (pairs / "broken.txt").write_text("lift it", encoding="utf-8")
    write_png(pairs / "twice.png", frame(5))
    cv2.imwrite(str(pairs / "twice.jpg"), frame(6))
    secret = tmp_path / "secret.png"
    write_png(secret, frame(6))
    (pairs / "linked.png").symlink_to(secret)
    settings = tiny_settings(tmp_path / "run", world, pairs)
    result = plan(settings)
    assert result.metrics["num_jobs"] == 3 and result.metrics["num_refused"] == 8
    refused = "\n".join(note for note in result.notes if note.startswith("refused"))
    for text in ("without_text.png has no instruction", "without_image.txt has no image", "instruction is empty",
                 "latin.txt is not UTF-8", "broken.jpg cannot", "several images", "outside its dataset"):  # fmt: skip
        assert text in refused, text


def test_nothing_usable_names_every_problem_and_writes_nothing(tmp_path, world):
    folder = tmp_path / "pairs"
    write_png(folder / "a.png", frame(0))
    (folder / "b.jpg").write_bytes(b"")
    (folder / "b.txt").write_text("lift it", encoding="utf-8")
    settings = tiny_settings(tmp_path / "run", world, folder)
    with pytest.raises(UserError, match=r"2 problems") as caught:
        plan(settings)
    assert "a.png has no instruction" in str(caught.value) and "b.jpg" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["missing", "empty", "videos_only"])
def test_sources_that_are_none(tmp_path, world, given):
    (tmp_path / "empty").mkdir()
    (tmp_path / "videos_only").mkdir()
    (tmp_path / "videos_only" / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError):
        plan(tiny_settings(tmp_path / "run", world, tmp_path / given))
    assert not (tmp_path / "run").exists()


def test_new_instructions_go_to_frames_without_their_own(tmp_path, world, pairs):
    write_png(pairs / "without_text.png", frame(5))
    settings = tiny_settings(tmp_path / "run", world, pairs, plan={"instructions": ["wave", "stop"]})
    result = plan(settings)
    assert [job.instruction for job in jobs_of(settings)] == [*INSTRUCTIONS, "wave", "stop"]
    assert any("3 first frames keep their own instruction" in note for note in result.notes)


def test_table_with_seeds_and_quirks(tmp_path, world, pairs):
    table = pairs / "ask.csv"
    rows = [
        ["scene_0.png", 'place it on the "plate", gently', "7"],
        ["scene_1.png", "öffne die Schublade", ""],
        ["scene_1.png", "close the drawer", ""],
        ["../secret.png", "steal", ""],
        ["/etc/passwd", "steal", ""],
        ["scene_9.png", "go", ""],
        ["scene_2.png", "go", "many"],
        ["scene_2.png", "", ""],
        ["", "go", ""],
        ["scene_2.png", "go", "1", "one more"],
    ]
    with table.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([["first_frame", "instruction", "seed"], *rows])
    settings = tiny_settings(tmp_path / "run", world, table, plan={"num_seeds": 2})
    result = plan(settings)
    found = [(job.instruction, job.seed) for job in jobs_of(settings)[:3]]
    assert found == [('place it on the "plate", gently', 7), ("öffne die Schublade", 0), ("close the drawer", 0)]
    assert jobs_of(settings)[3].seed == 8
    assert result.metrics["num_refused"] == 7 and result.metrics["num_first_frames"] == 2
    text = "\n".join(result.notes)
    for part in ("line 5 names a path outside", "line 6 names a path outside", "seed is not a whole number",
                 "has no instruction", "names no file", "more cells than columns", "scene_9.png does not"):  # fmt: skip
        assert part in text, part


def test_jsonl(tmp_path, world, pairs):
    lines = [
        json.dumps({"image": "scene_0.png", "text": "line\u2028separator", "seed": 3}, ensure_ascii=False),
        "",
        "{broken",
        "[1]",
        json.dumps({"image": 5, "text": "go"}),
        json.dumps({"image": "scene_1.png", "text": "go", "seed": True}),
    ]
    table = pairs / "ask.jsonl"
    table.write_text("\n".join(lines), encoding="utf-8")
    settings = tiny_settings(tmp_path / "run", world, table)
    result = plan(settings)
    assert [(job.instruction, job.seed) for job in jobs_of(settings)] == [("line separator", 3)]
    assert result.metrics["num_refused"] == 4


def test_table_without_an_image_column(tmp_path, world, pairs):
    (pairs / "ask.csv").write_text("imgae,prompt\nscene_0.png,go\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no image column") as caught:
        plan(tiny_settings(tmp_path / "run", world, pairs / "ask.csv"))
    assert caught.value.next_step == "rename the column imgae"


def make_train(folder, num_clips=3):
    for index in range(num_clips):
        write_video(folder / "videos" / f"demo_{index}.mp4", [frame(index), frame(4)], 16)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "prompt", "instruction", "source", "num_frames"])
        for index, text in enumerate(INSTRUCTIONS[:num_clips]):
            writer.writerow([f"videos/demo_{index}.mp4", f"The robot arm is performing a task. {text}", text, "x", 2])
    return folder


def test_training_set_crossed_with_new_instructions(tmp_path, world):
    settings = tiny_settings(tmp_path / "run", world, plan={"instructions": ["wave", "stop"], "num_first_frames": 2})
    with pytest.raises(UserError, match=r"metadata\.csv does not exist yet"):
        plan(settings)
    train = make_train(tmp_path / "run" / "train")
    assert plan(settings).metrics["num_jobs"] == 4
    jobs = jobs_of(settings)
    assert [job.instruction for job in jobs] == ["wave", "stop", "wave", "stop"]
    decoded = next(iter_frames(train / "videos" / "demo_0.mp4"))
    assert jobs[0].first_frame_sha256 == jobs[1].first_frame_sha256 == frame_sha256(decoded)


def test_training_set_with_its_own_instructions(tmp_path, world):
    train = make_train(tmp_path / "elsewhere" / "train")
    (train / "videos" / "demo_1.mp4").write_bytes(b"cut short")
    (train / "videos" / "demo_2.mp4").unlink()
    settings = tiny_settings(tmp_path / "run", world, train)
    result = plan(settings)
    assert [job.prompt for job in jobs_of(settings)] == [f"The robot arm is performing a task. {INSTRUCTIONS[0]}"]
    assert result.metrics["num_refused"] == 2


def test_lerobot_dataset_means_the_runs_training_set(tmp_path, world):
    dataset = tmp_path / "dataset"
    (dataset / "meta").mkdir(parents=True)
    (dataset / "meta" / "info.json").write_text("{}", encoding="utf-8")
    settings = tiny_settings(tmp_path / "run", world, dataset)
    with pytest.raises(UserError, match="did not prepare"):
        plan(settings)
    make_train(tmp_path / "run" / "train")
    assert plan(replace(settings, demos=str(dataset))).metrics["num_jobs"] == 3


def test_dry_run_writes_nothing(tmp_path, world, pairs):
    settings = tiny_settings(tmp_path / "run", world, pairs, model={"path": "mini"})
    result = plan(settings, dry_run=True)
    assert result.metrics["num_jobs"] == 3 and result.metrics["max_disk_gib"] >= 0
    assert sum(note.startswith("prompt: The robot arm") for note in result.notes) == 3
    assert not (tmp_path / "run").exists()


def test_damaged_stored_frame_is_written_anew(tmp_path, world, pairs):
    settings = tiny_settings(tmp_path / "run", world, pairs)
    plan(settings)
    stored = RunFolder.of(settings).first_frame_file(frame_sha256(frame(0)))
    stored.write_bytes(b"damaged")
    plan(settings)
    np.testing.assert_array_equal(read_image(stored), frame(0))


def test_empty_new_instruction_is_refused(tmp_path, world, pairs):
    with pytest.raises(UserError, match="contains an empty instruction"):
        plan(tiny_settings(tmp_path / "run", world, pairs, plan={"instructions": ["wave", " "]}))


def test_real_pairs(tmp_path, world, real_pairs):
    settings = tiny_settings(tmp_path / "run", world, real_pairs, plan={"num_seeds": 5})
    result = plan(settings)
    num_images = sum(path.suffix in (".png", ".jpg") for path in real_pairs.iterdir())
    assert result.metrics["num_jobs"] == 5 * num_images and result.metrics["num_refused"] == 0
    jobs = jobs_of(settings)
    assert all(job.prompt == f"The robot arm is performing a task. {job.instruction}" for job in jobs)
    assert {path.name for path in RunFolder.of(settings).first_frames.glob("*/*")} == {
        f"{job.first_frame_sha256[:32]}.png" for job in jobs
    }


@pytest.mark.parametrize(("tensors", "says"), [
    ({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": np.zeros((2, 7), np.float32)}, "does not fit"),
    (None, "damaged"),
])  # fmt: skip
def test_an_adapter_that_cannot_be_used_gets_no_jobs(tmp_path, world, pairs, tensors, says):
    settings = tiny_settings(tmp_path / "run", world, pairs)
    weights = RunFolder.of(settings).adapter / "pytorch_lora_weights.safetensors"
    weights.parent.mkdir(parents=True)
    if tensors is None:
        weights.write_bytes(b"\x00" * 40)
    else:
        save_file(tensors, weights)
    with pytest.raises(UserError, match=says):
        plan(settings)
    assert not RunFolder.of(settings).jobs.exists()
