"""Read, write, resize and hash single images.

No other module decodes them, so that a file's size is judged before memory is asked for.

Axes: H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it prints information about files otherwise

MAX_PIXELS = 2**26  # 8192 x 8192; a decoded image of this size takes 200 MB
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")


def decode_image(data: bytes | np.ndarray, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray | None:
    """Decode an image file's bytes.

    Args:
        data: The bytes.
        flags: Of `cv2.imdecode`.

    Returns:
        The pixels as `cv2.imdecode` returns them; None for what is no image, is damaged, or is too large.
    """
    size = image_size(data)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def image_size(data: bytes | np.ndarray) -> tuple[int, int] | None:
    """Return height and width as an image file's header states them; None for what is no image."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, TypeError):
        return None


def on_white(data: bytes, pixels_HWC: np.ndarray) -> np.ndarray:
    """Return a decoded image with what is transparent in white, as viewers show it; it may hide any color.

    Args:
        data: The image file's bytes.
        pixels_HWC: Its pixels, uint8, 0-255, RGB.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if not image.has_transparency_data:
                return pixels_HWC
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, TypeError):
        return pixels_HWC  # OpenCV has decoded what this library cannot
    return np.array(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))


def fit_frame(frame_HWC: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Resize a frame and keep its aspect ratio.

    Args:
        frame_HWC: uint8, RGB.
        height: Target height in pixels.
        width: Target width in pixels.
        fit: "crop" fills the size and crops both sides evenly; "pad" shows the whole frame with black borders.

    Returns:
        frame_HWC of the target size; the same array if it has that size already.
    """
    source_height, source_width = frame_HWC.shape[:2]
    if (source_height, source_width) == (height, width):
        return frame_HWC
    scales = (height / source_height, width / source_width)
    scale = max(scales) if fit == "crop" else min(scales)
    inner_height, inner_width = max(1, round(source_height * scale)), max(1, round(source_width * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(frame_HWC, (inner_width, inner_height), interpolation=kind)
    if fit == "crop":
        top, left = (inner_height - height) // 2, (inner_width - width) // 2
        return np.ascontiguousarray(resized[top : top + height, left : left + width])
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + inner_height, left : left + inner_width] = resized
    return padded


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture: PNG, JPEG, WebP, BMP or TIFF, turned as its EXIF entry says, on white where it is transparent.

    Returns:
        frame_HWC, uint8, 0-255, RGB.

    Raises:
        UserError: if it is missing or not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed="a PNG or JPEG image")
    data = path.read_bytes()
    pixels = decode_image(data)
    if pixels is None:
        size = image_size(data)
        raise UserError(
            f"{path} cannot be read as an image", actual=f"{size[1]} x {size[0]} pixels" if size else None,
            allowed=f"a PNG, JPEG, WebP, BMP or TIFF image of at most {MAX_PIXELS} pixels",
        )  # fmt: skip
    return on_white(data, pixels)


def frame_sha256(frame_HWC: np.ndarray) -> str:
    """Return the hash of a frame's size and pixels, which does not depend on the file format.

    Args:
        frame_HWC: uint8, 0-255, RGB.

    Returns:
        Hex SHA-256 over `HxW` in ASCII and the RGB bytes, row by row.
    """
    height, width = frame_HWC.shape[:2]
    return hashlib.sha256(f"{height}x{width}".encode() + frame_HWC.tobytes()).hexdigest()


def write_png(path: str | Path, frame_HWC: np.ndarray) -> None:
    """Write uint8 RGB pixels as a lossless PNG, atomically."""
    done, data = cv2.imencode(".png", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR))
    assert done, "PNG encoding of a uint8 array does not fail"
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.tobytes())  # numpy's own writing does not tell why it failed
