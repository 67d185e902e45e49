"""Decode images: the only place that does, so that a file's size is judged before memory is asked for.

Axes: H height, W width, C channels.
"""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
