"""A frame is found by when it is shown: uneven rates, holes, late or negative first times, edit lists, odd units."""

from __future__ import annotations

import struct
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest

from dreamgen.data.frames import FrameReader
from dreamgen.data.timeline import FrameTimes, resampled_frames, row_frames
from dreamgen.data.video import probe
from dreamgen.errors import UserError
from tests.fixtures.videos import encode, number_in, picture

MS = Fraction(1, 1000)


def shown(path, numbers):
    """Return the numbers that some frames of a video show."""
    with closing(FrameReader()) as reader:
        return [number_in(frame_HWC) for frame_HWC in reader.frames(probe(path), np.asarray(numbers))]


def times_of(*ms):
    return FrameTimes(np.array(ms, np.int64), MS)


def test_the_nearest_frame_and_of_two_the_earlier():
    times = times_of(0, 40, 100, 200)
    assert times.nearest(np.array([-1, 0, 0.019, 0.020, 0.021, 0.07, 0.1501, 9])).tolist() == [0, 0, 0, 0, 1, 1, 3, 3]
    assert times_of(7).nearest(np.array([0, 1])).tolist() == [0, 0]
    assert times.at_rate(10).tolist() == [0, 2, 3] and times.at_s(3) == 0.2


@pytest.mark.parametrize("unit_s", [MS, Fraction(1, 12288), Fraction(1001, 30000)])
def test_the_first_frame_from_a_time_on_is_found_as_in_a_list_of_all_times(unit_s):
    times = FrameTimes(np.sort(np.random.default_rng(0).integers(-20, 500, 300)), unit_s)
    time_s_T = times.pts_T * float(unit_s)
    for time_s in [*time_s_T, *(time_s_T + 1e-9), -np.inf, np.inf]:
        assert times.first_from(time_s) == np.searchsorted(time_s_T, time_s)


def test_what_containers_round_is_a_constant_rate():
    in_ms = [round(1000 * k / Fraction(30000, 1001)) for k in range(200)]
    assert times_of(*in_ms).is_regular(Fraction(30000, 1001))
    assert times_of(*(5000 + time for time in in_ms)).is_regular(Fraction(30000, 1001))
    assert not times_of(*in_ms[:50], *in_ms[51:]).is_regular(Fraction(30000, 1001))
    assert resampled_frames(times_of(*in_ms), Fraction(30000, 1001), 15).tolist() == list(range(0, 200, 2))


def test_an_uneven_rate_with_reordered_frames(tmp_path):
    """A phone in low light: 30 frames a second, then 10, with B-frames."""
    times = [round(1000 * k / 30) for k in range(30)] + [1000 + 100 * k for k in range(20)]
    path = encode(tmp_path / "phone.mp4", map(picture, range(50)), times, MS, bf="3", crf="16")
    info = probe(path)
    assert info.num_frames == 50 and not info.times.is_regular(info.fps)
    wanted = [int(np.argmin([abs(time - 1000 * k / 16) for time in times])) for k in range(int(2.9 * 16) + 1)]
    assert shown(path, resampled_frames(info.times, info.fps, 16)) == wanted


def test_rows_of_a_video_with_a_hole():
    hole = [k for k in range(40) if k not in (10, 11)]
    times = FrameTimes(np.array(hole), Fraction(1, 16))
    with pytest.raises(UserError, match=r"no frame for row 10, at 0\.6250 s"):
        row_frames(times, 16, num_rows=40)
    assert row_frames(times, 16, num_rows=10)[:10].tolist() == list(range(10)), "a hole after the rows does not matter"
    wanted = [hole.index(k) for k in range(40) if k not in (10, 11)]
    wanted[10:10] = [9, 10]  # the nearest of each
    assert row_frames(times, 16, num_rows=40, reach=2).tolist() == wanted
    with pytest.raises(UserError, match="row 12"):
        row_frames(FrameTimes(np.array([*range(10), *range(16, 40)]), Fraction(1, 16)), 16, num_rows=40, reach=2)


def test_episodes_of_a_shared_video_do_not_move_when_one_has_a_hole():
    times = FrameTimes(np.array([k for k in range(120) if k not in (10, 11, 119)]), Fraction(1, 16))
    with pytest.raises(UserError, match="row 10"):
        row_frames(times, 16, (0.0, 2.5), 40)
    assert row_frames(times, 16, (2.5, 5.0), 40).tolist() == list(range(38, 78))
    assert row_frames(times, 16, (5.0, 7.5), 40).tolist() == list(range(78, 117)), "its last frame is missing"
    with pytest.raises(UserError, match="row 0"):
        row_frames(FrameTimes(np.arange(41, 120), Fraction(1, 16)), 16, (2.5, 5.0), 40)


@pytest.mark.parametrize("span_s", [(float("nan"), 1.0), (0.0, float("nan")), (float("inf"), 1.0)])
def test_an_episode_whose_place_is_not_known_is_refused(span_s):
    with pytest.raises(UserError, match="does not say where in its video"):
        row_frames(FrameTimes.regular(20, 16), 16, span_s, 10)


def test_a_video_of_its_own_may_begin_at_any_time():
    for first in (-3, 5, 160):
        times = FrameTimes(np.arange(first, first + 20), Fraction(1, 16))
        assert row_frames(times, 16, num_rows=20).tolist() == list(range(20)), first
    with pytest.raises(UserError, match="row 0"):  # not late: its first two frames are missing
        row_frames(FrameTimes(np.arange(2, 20), Fraction(1, 16)), 16, num_rows=20)


def test_a_rate_that_is_stated_wrongly_and_rows_at_half_the_rate():
    assert row_frames(FrameTimes.regular(24, 30), 10, num_rows=24).tolist() == list(range(24))
    assert row_frames(FrameTimes.regular(48, 32), 16, num_rows=24).tolist() == list(range(0, 48, 2))


def test_jitter_below_half_a_frame_is_no_hole():
    times = times_of(*(round(62.5 * k + (25 if k % 3 else -25) * (k > 0)) for k in range(30)))
    assert row_frames(times, 16, num_rows=30).tolist() == list(range(30))


@pytest.mark.parametrize("first", [-2, 0, 7])
def test_frames_of_a_file_that_begins_late_or_before_zero(first, tmp_path):
    path = encode(tmp_path / "late.mkv", map(picture, range(9)), [1000 + 50 * k + 100 * first for k in range(9)], MS,
                  container="matroska", bf="2")  # fmt: skip
    info = probe(path)
    assert info.times.at_s(0) == pytest.approx(1 + first / 10) and info.times.is_regular(20)
    assert shown(path, row_frames(info.times, 20, num_rows=9)) == list(range(9))
    assert shown(path, [2, 5, 5, 8]) == [2, 5, 5, 8]


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    path = encode(tmp_path / "cut.mp4", map(picture, range(20)), bf="2", g="4")
    content = bytearray(path.read_bytes())
    media_time = content.index(b"elst") + 4 + 4 + 4 + 4
    (delay,) = struct.unpack(">i", content[media_time : media_time + 4])
    unit = int(1 / probe(path).times.unit_s) // 16
    content[media_time : media_time + 4] = struct.pack(">i", delay + 6 * unit)
    path.write_bytes(content)
    info = probe(path)
    assert (info.num_frames, info.times.at_s(0)) == (14, 0.0)
    assert shown(path, row_frames(info.times, 16, num_rows=14)) == list(range(6, 20))


@pytest.mark.parametrize(("container", "codec"), [("avi", "mpeg4"), ("mpegts", "libx264"), ("matroska", "libx264")])
def test_other_containers_with_times_of_their_own_or_none(container, codec, tmp_path):
    options = {"bf": "0", "qscale": "2"} if codec == "mpeg4" else {"bf": "2"}
    path = encode(tmp_path / f"video.{container}", map(picture, range(12)), codec=codec, container=container, **options)
    info = probe(path)
    assert info.num_frames == 12 and info.times.is_regular(16)
    assert shown(path, row_frames(info.times, 16, num_rows=12)) == list(range(12))
    assert shown(path, [3, 9]) == [3, 9]


def test_a_frame_that_the_decoder_leaves_out_does_not_shift_the_others(tmp_path):
    path = encode(
        tmp_path / "cut.ts", map(picture, range(20)), container="mpegts", g="5", bf="0", **{"x264-params": "scenecut=0"}
    )
    packets = path.read_bytes()
    info = probe(path)
    # Damage the payload of the frames 5 to 9: a key frame and those that need it.
    start, end = len(packets) * 5 // 20 // 188 * 188, len(packets) * 9 // 20 // 188 * 188
    broken = bytearray(packets)
    for place in range(start, end, 188):
        broken[place + 100 : place + 188] = b"\x00" * 88
    path.write_bytes(broken)
    reader = FrameReader()
    try:
        found = [number_in(frame_HWC) for frame_HWC in reader.frames(info, np.array([0, 17, 18, 19]))]
        assert found == [0, 17, 18, 19]
    except UserError as error:
        assert "damaged" in error.what or "ends before" in error.what
