"""Scores that compare a clip with what is known of its kind: demonstrations, rigid scenes, the label's own doubt."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dreamgen.curate.demonstration_pictures import demonstration_pictures
from dreamgen.curate.measure import measure_clip
from dreamgen.curate.scores.end_deviation import LEAST_USUAL, MAX_BEGIN, end_excess, usual_excess
from dreamgen.curate.scores.epipolar_error import epipolar_error, sampson_errors
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.frames import sparse_frames
from dreamgen.data.video import read_video, write_video
from dreamgen.errors import UserError
from dreamgen.extensions.score import SCORES
from dreamgen.label.stage import label
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from finetune.inverse_dynamics import finetune_idm
from tests.finetune.square_world import square_episode, square_settings, write_square_training_set
from tests.generate.clips import write_generated_run

NUM_FRAMES = 16


@pytest.fixture
def run(tmp_path):
    """Four demonstrations, and clips: the beginning of one, one that ends like one, and one of another scene."""
    write_square_training_set(tmp_path, num_episodes=4)
    copy = square_episode(2, 24)[0]
    ends_like_it = np.concatenate([square_episode(50, NUM_FRAMES - 1)[0], copy[-1:]])
    other = 255 - square_episode(51, NUM_FRAMES)[0]
    jobs = write_generated_run(tmp_path, [copy[:NUM_FRAMES], ends_like_it, other])
    return RunFolder(tmp_path), jobs


def values(run, jobs, name):
    return [SCORES.get(name).measure(ClipContext(run, job)) for job in jobs]


def test_a_copy_of_a_demonstration_is_recognized(run):
    run, jobs = run
    copy, ends_like_it, other = values(run, jobs, "demonstration_difference")
    assert copy < 0.1 < ends_like_it < other


def test_an_end_is_compared_with_the_ends_of_demonstrations(run):
    run, jobs = run
    copy, ends_like_it, other = values(run, jobs, "end_frame_difference")
    assert ends_like_it < 0.5 < copy < other, "a demonstration's first frames end elsewhere than the demonstration"


def test_an_end_counts_as_far_as_the_beginning_does_not_explain_it():
    begin_NK = np.array([[10.0, 10], [12, 12], [50, 50]])
    end_NK = begin_NK + np.array([[20], [20], [0]])
    assert end_excess(begin_NK[0] + 3, end_NK[0] + 3, begin_NK, end_NK) == 0, "as far off at the end as at the start"
    assert end_excess(begin_NK[0], begin_NK[0], begin_NK, end_NK) == pytest.approx(20), "nothing happens in it"
    assert end_excess(begin_NK[2], begin_NK[2], begin_NK, end_NK) == 0, "as in the one that begins like it"
    assert end_excess(begin_NK[0] + 15, end_NK[0], begin_NK, end_NK) is None, "it begins like none"
    assert end_excess(begin_NK[2] + MAX_BEGIN, end_NK[2], begin_NK, end_NK) == 0


def test_what_is_usual_is_the_largest_excess_among_the_demonstrations():
    begin_NK, end_NK = np.zeros((5, 2)), np.array([[10.0], [14.0], [50.0], [55.0], [55.0]]) @ np.ones((1, 2))
    assert usual_excess(begin_NK, end_NK) == pytest.approx(5.0), "4, 4, 5, 0 and 0"
    begin_NK[0] = 50
    assert usual_excess(begin_NK, end_NK) is None, "four begin like another one, which is too few"
    assert usual_excess(np.zeros((5, 2)), np.ones((5, 2))) == LEAST_USUAL, "also where all are alike"


def journeys(offsets, far_px):
    """Return videos of a square that goes 24 pixels to the right, from `offsets` lower; the last ones go `far_px`."""
    videos = []
    for offset, way in zip(offsets, [*[24] * (len(offsets) - len(far_px)), *far_px], strict=True):
        video_THWC = np.full((NUM_FRAMES, 64, 64, 3), 60, np.uint8)
        for t in range(NUM_FRAMES):
            x, y = 20 + round(way * t / (NUM_FRAMES - 1)), 30 + offset
            video_THWC[t, y - 8 : y + 8, x - 8 : x + 8] = (230, 220, 90)
        videos.append(video_THWC)
    return videos


@pytest.fixture
def journey_run(tmp_path):
    """Five demonstrations of one instruction, and clips: alike, one that goes elsewhere, and one of another scene."""
    write_square_training_set(tmp_path, num_episodes=5)
    for number, video_THWC in enumerate(journeys([0, 1, 2, 3, 4], [])):
        write_video(tmp_path / "train" / "videos" / f"square_{number}.mp4", video_THWC, 16)
    alike, elsewhere, other = journeys([2, 2, 2], [-16, 24])
    jobs = write_generated_run(tmp_path, [alike, elsewhere, 255 - other])
    return RunFolder(tmp_path), [replace(job, instruction="move the square") for job in jobs]


def test_a_clip_that_does_something_else_ends_unlike_the_demonstrations(journey_run):
    run, jobs = journey_run
    alike, elsewhere, other = values(run, jobs, "end_deviation")
    assert alike < 1 and elsewhere > 3 and other is None, "another scene says nothing"
    score = SCORES.get("end_deviation")
    limit = score.threshold.default
    assert score.reason_to_reject(alike, limit) is None and score.reason_to_reject(other, limit) is None
    assert "ends unlike the demonstrations" in score.reason_to_reject(elsewhere, limit)


def test_demonstrations_of_the_instruction_alone_count_where_there_are_five(journey_run):
    run, jobs = journey_run
    before = values(run, jobs, "end_deviation")[1]
    table = run.train / "metadata.csv"
    for number, video_THWC in enumerate(journeys([0, 1, 2, 3, 4], [-16] * 5)):
        write_video(run.train / "videos" / f"back_{number}.mp4", video_THWC, 16)
        with table.open("a") as stream:
            stream.write(f"videos/back_{number}.mp4,Back.,move it back,drawn,{NUM_FRAMES}\n")
    assert values(run, jobs, "end_deviation")[1] == before > 3
    back, new = (replace(jobs[1], instruction=text) for text in ("move it back", "move it up"))
    assert SCORES.get("end_deviation").measure(ClipContext(run, back)) < 1
    assert SCORES.get("end_deviation").measure(ClipContext(run, new)) is None, "no demonstration says how it ends"
    table.write_text(table.read_text().replace("Back.,move it back", "Back.,move it up", 1))
    for instruction in ("move it back", "move it up"):
        job = replace(jobs[1], instruction=instruction)
        assert SCORES.get("end_deviation").measure(ClipContext(run, job)) < 1, "all count where there are fewer"


def test_a_longer_demonstration_is_compared_at_the_time_of_the_clips_end(journey_run):
    run, jobs = journey_run
    before = values(run, jobs, "end_deviation")[0]
    for number, video_THWC in enumerate(journeys([0, 1, 2, 3, 4], [])):
        there_and_back = np.concatenate([video_THWC, video_THWC[::-1]])
        write_video(run.train / "videos" / f"square_{number}.mp4", there_and_back, 16)
    (run.train / "metadata.csv").touch()
    assert before < 1 and values(run, jobs, "end_deviation")[0] == pytest.approx(before, abs=0.1)


def test_every_instruction_keeps_its_share_of_many_demonstrations(journey_run, monkeypatch):
    run, _ = journey_run
    table = run.train / "metadata.csv"
    header, *rows = table.read_text().splitlines()
    others = [row.replace("move the square", "move it back") for row in rows]
    mixed = [row for pair in zip(rows, others, strict=True) for row in pair]  # one in two is of one instruction
    table.write_text("\n".join([header, *mixed]) + "\n")
    monkeypatch.setattr("dreamgen.curate.demonstration_pictures.MAX_DEMONSTRATIONS", 5)
    known = demonstration_pictures(run.train, NUM_FRAMES)
    assert known is not None and sorted(known.instruction_N) == ["move it back"] * 3 + ["move the square"] * 2
    assert known.num_of == {"move the square": 5, "move it back": 5}


def test_a_score_is_measured_again_when_the_demonstrations_change(journey_run):
    run, jobs = journey_run
    first = measure_clip(ClipContext(run, jobs[1]))
    assert first.metrics["end_deviation"] > 3
    assert measure_clip(ClipContext(run, jobs[1], previous=first)) is first
    for number, video_THWC in enumerate(journeys([0, 1, 2, 3, 4], [-16] * 5)):
        write_video(run.train / "videos" / f"square_{number}.mp4", video_THWC, 16)
    table = run.train / "metadata.csv"
    table.write_text(table.read_text().replace("A square moves.", "A square moves back."))
    again = measure_clip(ClipContext(run, jobs[1], previous=first))
    assert again.metrics["end_deviation"] < 1 and again.metrics["motion"] == first.metrics["motion"]


def test_demonstrations_set_no_threshold_for_a_score_that_compares_with_them():
    of_demonstrations = {score.name for _, score in SCORES.items() if score.reads_demonstrations}
    assert "end_deviation" in of_demonstrations
    assert not [name for name in of_demonstrations if "end_" in name and SCORES.get(name).is_calibrated]


def test_ends_of_the_same_instruction_count_where_there_are_some(run):
    run, jobs = run
    table = run.train / "metadata.csv"
    table.write_text(table.read_text().replace("square_2.mp4,A square moves.,move the square", "square_2.mp4,A.,push"))
    assert "push" in table.read_text() and jobs[1].instruction == "push"
    job = replace(jobs[1], instruction="move the square")
    assert SCORES.get("end_frame_difference").measure(ClipContext(run, job)) > 0.5
    assert values(run, jobs, "end_frame_difference")[1] < 0.5


def test_without_demonstrations_there_is_nothing_to_compare_with(run, tmp_path):
    run, jobs = run
    (run.train / "metadata.csv").unlink()
    for name in ("end_frame_difference", "demonstration_difference", "end_deviation"):
        assert values(run, jobs, name) == [None] * 3


def test_a_demonstration_that_cannot_be_read_is_left_out(run):
    run, _ = run
    (run.train / "videos" / "square_1.mp4").write_bytes(b"no video")
    found = demonstration_pictures(run.train, NUM_FRAMES)
    assert found is not None and len(found.end_NHWC) == len(found.signature_NK) == 3


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_sparse_frames_are_those_of_the_whole_video(tmp_path, codec):
    path = tmp_path / "video.mp4"
    write_video(path, square_episode(0, 20)[0], 16, codec, gop=6)
    video_THWC, numbers = read_video(path), [0, 11, 5, 19, 19]
    for number, frame in zip(numbers, sparse_frames(path, numbers), strict=True):
        assert (frame.rgb() == video_THWC[number]).all()
    with pytest.raises(UserError, match="has no frame 20"):
        sparse_frames(path, [20])


def test_the_uncertainty_of_a_label_is_that_of_its_record(run):
    run, jobs = run
    finetune_idm(square_settings(run.root, num_steps=5))
    assert values(run, jobs, "label_uncertainty") == [None] * 3
    label(square_settings(run.root, num_steps=5))
    records = read_journal(run.journal, "label")
    expected = [records[job.clip_id].metrics["action_uncertainty"] for job in jobs]
    assert values(run, jobs, "label_uncertainty") == expected and min(expected) > 0


def points_of_a_moved_camera(num: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Project points of a scene into two cameras; the fundamental matrix follows from their poses."""
    focal_33 = np.array([[300.0, 0, 128], [0, 300, 72], [0, 0, 1]])
    scene_P3 = random.uniform([-2, -1, 3], [2, 1, 8], (num, 3))
    turn_33, way_3 = cv2.Rodrigues(np.array([0.01, 0.05, 0.0]))[0], np.array([0.3, 0.02, 0.1])
    first, second = scene_P3 @ focal_33.T, (scene_P3 @ turn_33.T + way_3) @ focal_33.T
    cross_33 = np.array([[0, -way_3[2], way_3[1]], [way_3[2], 0, -way_3[0]], [-way_3[1], way_3[0], 0]])
    inverse_33 = np.linalg.inv(focal_33)
    return first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:], inverse_33.T @ cross_33 @ turn_33 @ inverse_33


def test_sampson_errors_are_the_way_to_the_nearest_points_that_fit():
    random = np.random.default_rng(0)
    first_P2, second_P2, fundamental_33 = points_of_a_moved_camera(100, random)
    assert sampson_errors(first_P2, second_P2, fundamental_33).max() < 1e-9
    moved_P2 = second_P2 + random.normal(0, 0.5, second_P2.shape)
    line_P3 = np.column_stack([first_P2, np.ones(100)]) @ fundamental_33.T
    to_line_P = np.abs((np.column_stack([moved_P2, np.ones(100)]) * line_P3).sum(1)) / np.hypot(*line_P3.T[:2])
    errors_P = sampson_errors(first_P2, moved_P2, fundamental_33)
    # Both points may move, so the way is shorter than that of one alone, by about the root of 2 for a small motion.
    assert (errors_P <= to_line_P + 1e-9).all() and errors_P.mean() == pytest.approx(to_line_P.mean() / 2**0.5, rel=0.1)


def rendered(depth_of_right: float, num: int = 12) -> np.ndarray:
    """Gray frames of two textured planes before a camera that moves sideways and forward."""
    random = np.random.default_rng(1)
    texture_HW = cv2.GaussianBlur(random.integers(0, 256, (600, 900)).astype(np.uint8), (0, 0), 1.5)
    frames = []
    for t in range(num):
        scale = 1 + 0.01 * t
        planes = [cv2.warpAffine(texture_HW, np.float32([[scale, 0, -3 * t / d], [0, scale, 0]]), (256, 144))
                  for d in (1.0, depth_of_right)]  # fmt: skip
        frames.append(np.concatenate([planes[0][:, :128], planes[1][:, 128:]], axis=1))
    return np.stack(frames)


def test_a_rigid_scene_has_a_small_error_and_a_scene_that_deforms_a_large_one():
    rigid_NHW = rendered(2.0)
    rows, columns = np.mgrid[0:144, 0:256].astype(np.float32)

    def bent(frame_HW: np.ndarray, t: int) -> np.ndarray:
        x, y = columns + 3 * np.sin(rows / 9 + 2 * t), rows + 3 * np.sin(columns / 9 + 3 * t)
        return cv2.remap(frame_HW, x, y, cv2.INTER_LINEAR)

    deformed_NHW = np.stack([bent(frame_HW, t) for t, frame_HW in enumerate(rigid_NHW)])
    rigid, deformed = epipolar_error(rigid_NHW), epipolar_error(deformed_NHW)
    assert rigid is not None and deformed is not None and rigid < 0.2 and deformed > 3 * rigid


def test_a_camera_that_stands_still_has_no_epipolar_error():
    still_NHW = np.repeat(rendered(2.0)[:1], 12, axis=0)
    assert epipolar_error(still_NHW) is None
    assert epipolar_error(np.zeros((12, 144, 256), np.uint8)) is epipolar_error(still_NHW[:1]) is None
