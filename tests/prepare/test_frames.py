"""A packed mp4 is read forwards in one pass, and again from the start when asked to go back."""

import numpy as np
import pytest

from dreamgen.data.frames import FrameReader
from dreamgen.data.video import probe, read_video, write_video
from dreamgen.errors import UserError
from tests.fixtures import demos


@pytest.fixture
def packed(tmp_path):
    write_video(tmp_path / "packed.mp4", demos.make_episode(0, 30, 16, 48, 64).video_THWC, 16)
    return tmp_path / "packed.mp4"


def test_runs_are_the_frames_with_those_numbers(packed):
    truth, reader, video = read_video(packed), FrameReader(), probe(packed)
    # Forwards with frames left out and repeated, over a gap, then back.
    for numbers in ([0, 2, 2, 3], [4, 5], [21, 25], [3, 7]):
        found = np.stack(list(reader.frames(video, np.array(numbers))))
        np.testing.assert_array_equal(found, truth[numbers])


def test_going_forwards_does_not_open_the_file_again(packed):
    reader, video = FrameReader(), probe(packed)
    assert len(list(reader.frames(video, np.array([0, 1])))) == 2
    packed.rename(packed.with_name("moved.mp4"))  # an open file stays readable, a new one could not be opened
    assert len(list(reader.frames(video, np.array([5, 6])))) == 2
    with pytest.raises(UserError, match="does not exist"):
        list(reader.frames(video, np.array([0])))


def test_frames_are_read_to_where_the_file_ends(packed):
    reader, video = FrameReader(), probe(packed)
    assert len(list(reader.frames(video, np.arange(25, 35)))) == 5
    assert reader.count_to(video, 100) == 30
    with pytest.raises(UserError, match="ends before the clip"):
        list(reader.frames(video, np.array([40])))
