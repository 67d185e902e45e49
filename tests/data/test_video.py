"""Videos round-trip, depend on nothing but their frames, and damaged ones say so."""

from fractions import Fraction

import numpy as np
import pytest

from dreamgen.data.images import fit_frame, read_image, write_png
from dreamgen.data.timeline import frame_time_s, num_latent_frames, resampled_indices
from dreamgen.data.video import probe, read_video, write_video
from dreamgen.errors import UserError


def moving_square(num_frames=9, height=48, width=64):
    video_THWC = np.full((num_frames, height, width, 3), 40, np.uint8)
    for index in range(num_frames):
        video_THWC[index, 10:26, 2 + 4 * index : 18 + 4 * index] = (220, 60, 30)
    return video_THWC


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_round_trip_and_equal_bytes(tmp_path, codec):
    video_THWC = moving_square()
    assert write_video(tmp_path / "a.mp4", video_THWC, 16, codec, crf=12) == 9
    write_video(tmp_path / "b.mp4", iter(video_THWC), 16, codec, crf=12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.pix_fmt, info.fps) == (codec, "yuv420p", Fraction(16))
    assert (info.height, info.width, info.num_frames) == (48, 64, 9)
    decoded_THWC = read_video(tmp_path / "a.mp4")
    assert decoded_THWC.shape == video_THWC.shape
    assert np.abs(decoded_THWC.astype(int) - video_THWC).mean() < 4


def test_every_second_frame_is_a_key_frame_and_none_is_reordered(tmp_path):
    import av

    write_video(tmp_path / "a.mp4", moving_square(), 16, gop=2)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert [p.is_keyframe for p in packets] == [True, False] * 4 + [True]
    assert all(p.pts == p.dts for p in packets)


def test_damaged_videos_say_so(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(), 16)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    (tmp_path / "short.mp4").write_bytes(whole[:-400])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("cut", "short", "text", "empty"):
        with pytest.raises(UserError, match="damaged or is not a video|no video stream"):
            probe(tmp_path / f"{name}.mp4")
    with pytest.raises(UserError, match="does not exist"):
        probe(tmp_path / "none.mp4")


def test_fit_keeps_the_aspect_ratio():
    frame_HWC = np.zeros((100, 200, 3), np.uint8)
    frame_HWC[:, 50:150] = 255
    cropped = fit_frame(frame_HWC, 64, 64, "crop")
    assert cropped.shape == (64, 64, 3)
    assert cropped.min() == 255  # the middle half is white, the borders were cut
    padded = fit_frame(frame_HWC, 64, 64, "pad")
    assert padded.shape == (64, 64, 3)
    assert padded[:16].max() == 0
    assert padded[-16:].max() == 0
    assert padded[32, 32].min() == 255
    assert fit_frame(frame_HWC, 100, 200, "crop") is frame_HWC


def test_images_round_trip_in_rgb(tmp_path):
    frame_HWC = moving_square(1)[0]
    write_png(tmp_path / "a.png", frame_HWC)
    assert np.array_equal(read_image(tmp_path / "a.png"), frame_HWC)
    (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_image(tmp_path / "b.png")


def test_resampling_takes_the_nearest_frame_in_time():
    assert resampled_indices(5, 16, 16).tolist() == [0, 1, 2, 3, 4]
    for num_frames, source, target in ((416, 20, 16), (93, 30, 16), (31, 8, 16), (1, 20, 16)):
        indices = resampled_indices(num_frames, source, target)
        times = indices / source - np.arange(len(indices)) / target
        assert np.abs(times).max() <= 0.5 / source + 1e-9
        assert indices[0] == 0
        assert indices[-1] <= num_frames - 1
        assert (len(indices) - 1) / target <= (num_frames - 1) / source < len(indices) / target
    assert resampled_indices(0, 20, 16).size == 0


def test_frame_times_do_not_drift():
    assert frame_time_s(16 * 3600, 16) == 3600.0
    assert frame_time_s(1, Fraction(30000, 1001)) == pytest.approx(1001 / 30000)
    assert [num_latent_frames(n) for n in (1, 5, 93)] == [1, 2, 24]
