"""Pictures of every common kind look as viewers show them: upright, eight bits, in RGB, transparent parts in white."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from dreamgen.data.images import read_image
from tests.fixtures.videos import corner_error, number_in, picture

NUMBER = 5
# How a camera stores what EXIF's orientation turns back; 1 is upright.
STORED_FOR = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
              5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
              8: Image.Transpose.ROTATE_270}  # fmt: skip
WRITERS = {"jpg": {"quality": 95, "subsampling": 0}, "png": {}, "webp": {"lossless": True}, "tiff": {}}


def shown() -> Image.Image:
    return Image.fromarray(picture(NUMBER))


def gray_HWC() -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(picture(NUMBER), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@pytest.mark.parametrize("extension", WRITERS)
def test_pictures_are_turned_as_their_exif_entry_says(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    for orientation, stored in STORED_FOR.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        own = {"tiffinfo": {0x0112: orientation}} if extension == "tiff" else {"exif": exif}
        shown().transpose(stored).save(path, **own, **WRITERS[extension])
        found_HWC = read_image(path)
        assert found_HWC.shape == picture(NUMBER).shape, orientation
        assert corner_error(found_HWC) <= 2 and number_in(found_HWC) == NUMBER, orientation


def test_other_depths_and_color_models_keep_their_values(tmp_path):
    deep_HWC = picture(NUMBER)[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep_HWC)
    cv2.imwrite(str(tmp_path / "deep.tiff"), deep_HWC)
    cv2.imwrite(str(tmp_path / "deep_gray.png"), gray_HWC()[..., 0].astype(np.uint16) * 257)
    shown().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name, mode in (("gray.jpg", "L"), ("cmyk.jpg", "CMYK"), ("cmyk.tiff", "CMYK")):
        shown().convert(mode).save(tmp_path / name, **({"quality": 95} if name.endswith("jpg") else {}))
    shown().save(
        tmp_path / "animated.webp", save_all=True, append_images=[Image.new("RGB", shown().size)], lossless=True
    )
    for path in sorted(tmp_path.iterdir()):
        found_HWC = read_image(path)
        assert found_HWC.dtype == np.uint8 and number_in(found_HWC) == NUMBER, path.name
        if "gray" in path.name:
            assert np.abs(found_HWC.astype(int) - gray_HWC()).max() <= 8, path.name
        else:
            assert corner_error(found_HWC) <= 2, path.name


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff", "deep.png", "turned.png"])
def test_a_transparent_background_is_white_in_every_format_and_depth(name, tmp_path):
    rgba_HWC = np.dstack([picture(NUMBER), np.full(picture(NUMBER).shape[:2], 255, np.uint8)])
    half = rgba_HWC.shape[1] // 2
    rgba_HWC[:, :half] = (255, 0, 255, 0)
    if name == "deep.png":
        cv2.imwrite(str(tmp_path / name), rgba_HWC[..., [2, 1, 0, 3]].astype(np.uint16) * 257)
    elif name == "turned.png":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(rgba_HWC).transpose(STORED_FOR[6]).save(tmp_path / name, exif=exif)
    else:
        own = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        Image.fromarray(rgba_HWC).save(tmp_path / name, **own)
    found_HWC = read_image(tmp_path / name)
    assert (found_HWC[:, :half] == 255).all()
    np.testing.assert_array_equal(found_HWC[:, half:], picture(NUMBER)[:, half:])
