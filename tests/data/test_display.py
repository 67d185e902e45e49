"""Frames come out as their file says they are to be shown: upright, in square pixels, by their own color tags."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from dreamgen.data.display import ColorTags, Orientation
from dreamgen.data.video import probe, read_video, write_video
from dreamgen.errors import UserError
from tests.fixtures.videos import (
    CORNERS,
    MATRICES,
    ONE,
    corner_error,
    encode,
    number_in,
    picture,
    show_as,
    stored_for,
    yuv_frame,
)

BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
LIMITED, FULL = 1, 2


@pytest.mark.parametrize("turn", MATRICES, ids=str)
def test_frames_are_turned_as_the_display_matrix_says(turn, tmp_path):
    matrix = MATRICES[turn]
    stored = [stored_for(picture(number), matrix) for number in (1, 6)]
    path = show_as(encode(tmp_path / "phone.mp4", stored), matrix)
    info, video_THWC = probe(path), read_video(path)
    assert (info.height, info.width) == (64, 96) and video_THWC.shape == (2, 64, 96, 3)
    assert [number_in(frame_HWC) for frame_HWC in video_THWC] == [1, 6]
    assert max(map(corner_error, video_THWC)) <= 6


def test_frames_at_an_angle_are_refused(tmp_path):
    with pytest.raises(UserError, match="at an angle"):
        Orientation.of_matrix(np.array([0.7 * ONE, 0.7 * ONE, 0, -0.7 * ONE, 0.7 * ONE, 0, 0, 0, 1 << 30], np.int32))
    path = show_as(encode(tmp_path / "a.mp4", [picture(0)]), (1, 1, -1, 1))
    with pytest.raises(UserError, match=r"a\.mp4: its frames are to be shown at an angle"):
        probe(path)


@pytest.mark.parametrize(
    ("matrix", "weights", "color_range", "bits"),
    [
        (6, BT601, LIMITED, 8), (5, BT601, FULL, 8), (2, BT601, 0, 8),  # a file without tags is BT.601
        (1, BT709, LIMITED, 8), (1, BT709, FULL, 8), (1, BT709, LIMITED, 10), (1, BT709, FULL, 10),
        (9, BT2020, LIMITED, 8), (9, BT2020, LIMITED, 10), (9, BT2020, FULL, 10),
    ],
)  # fmt: skip
def test_colors_are_those_that_were_recorded(matrix, weights, color_range, bits, tmp_path):
    pix_fmt = "yuv444p" if bits == 8 else "yuv444p10le"
    frames = [yuv_frame(picture(number), *weights, color_range == FULL, pix_fmt) for number in (3, 5)]
    tags = ColorTags(matrix, 9 if matrix == 9 else 2, 14 if matrix == 9 else 2, color_range)
    path = encode(tmp_path / "camera.mp4", frames, codec="libx265", pix_fmt=pix_fmt, color=tags)
    assert not color_range or probe(path).display.color == tags
    video_THWC = read_video(path)
    assert [number_in(frame_HWC) for frame_HWC in video_THWC] == [3, 5]
    assert max(map(corner_error, video_THWC)) <= 3


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264", "yuvj420p"), ("libaom-av1", "yuv420p"), ("libx265", "yuv420p10le")]
)
def test_full_range_as_phones_have_it(codec, pix_fmt, tmp_path):
    """H.264's decoder says it with the pixel format; AV1's, and all of 10 bits, only with a tag."""
    options = {"cpu-used": "8"} if codec == "libaom-av1" else {}
    for color, weights in ((ColorTags(1, 1, 1, FULL), BT709), (ColorTags(6, 6, 6, FULL), BT601)):
        frames = [yuv_frame(picture(number), *weights, True, pix_fmt) for number in (1, 2)]
        path = encode(tmp_path / "phone.mp4", frames, codec=codec, pix_fmt=pix_fmt, color=color, **options)
        assert probe(path).pix_fmt == pix_fmt
        assert corner_error(read_video(path)[1]) <= 4


@pytest.mark.parametrize("color_range", [0, LIMITED, FULL])
def test_a_gray_video_keeps_black_and_white_whatever_its_range_says(color_range, tmp_path):
    """As FFmpeg and torchcodec have it."""
    ramp_HW = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    frames = [av.VideoFrame.from_ndarray(ramp_HW, format="gray") for _ in range(2)]
    path = encode(tmp_path / "gray.mp4", frames, codec="libaom-av1", pix_fmt="gray", crf="4",
                  color=ColorTags(color_range=color_range), **{"cpu-used": "8"})  # fmt: skip
    assert probe(path).pix_fmt == "gray"
    assert np.abs(read_video(path)[0].mean(axis=-1) - ramp_HW).max() <= 4


def test_a_matrix_that_is_not_known_is_refused(tmp_path):
    path = encode(tmp_path / "ycgco.mp4", [picture(0)], color=ColorTags(matrix=8))
    for read in (probe, read_video):
        with pytest.raises(UserError, match=r"ycgco\.mp4: its colors have a matrix that is not known"):
            read(path)


@pytest.mark.parametrize(
    ("aspect", "turn", "size"), [(Fraction(4, 3), 0, (64, 128)), (Fraction(8, 9), 0, (72, 96)),
                                 (Fraction(4, 3), 90, (128, 64)), (Fraction(1000, 1001), 0, (64, 96))],
)  # fmt: skip
def test_pixels_are_made_square(aspect, turn, size, tmp_path):
    path = encode(tmp_path / "dv.mp4", [picture(2)] * 2, pixel_aspect=aspect)
    show_as(path, MATRICES[turn])
    info = probe(path)
    assert (info.height, info.width) == size and read_video(path).shape == (2, *size, 3)
    assert corner_error(np.rot90(read_video(path)[0], turn // 90)) <= 6


def test_a_pixel_shape_that_no_camera_has_is_refused(tmp_path):
    path = encode(tmp_path / "wide.mp4", [picture(0)], pixel_aspect=Fraction(20, 1))
    with pytest.raises(UserError, match="impossible shape"):
        probe(path)


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_what_is_written_says_how_it_is_to_be_read(codec, tmp_path):
    """Decoding by a reader of its own, with the tags that the file carries, gives the colors that were written."""
    hdr = ColorTags(matrix=9, primaries=9, transfer=16, color_range=FULL)
    write_video(tmp_path / "plain.mp4", [picture(n) for n in range(3)], 16, codec, crf=8)
    write_video(tmp_path / "hdr.mp4", [picture(n) for n in range(3)], 16, codec, crf=8, color=hdr)
    assert probe(tmp_path / "plain.mp4").display.color == ColorTags(matrix=6, color_range=LIMITED)
    assert probe(tmp_path / "hdr.mp4").display.color == ColorTags(6, 9, 16, LIMITED)
    with av.open(str(tmp_path / "plain.mp4")) as container:
        frame = next(container.decode(video=0))
        planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]
    y, u, v = (float(plane[len(plane) // 8, plane.shape[1] // 8]) for plane in planes)
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = y + 2 * (1 - 0.299) * v, y + 2 * (1 - 0.114) * u
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    np.testing.assert_allclose(255 * np.array([red, green, blue]), CORNERS["top left"], atol=5)
