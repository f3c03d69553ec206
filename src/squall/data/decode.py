"""From the bytes of an image file to a resized box of it, with no more pixels decoded than needed.

libjpeg can decode at M/8 of the full size by taking smaller transforms, which is most of the work saved when a large
photograph becomes 224 x 224 (Independent JPEG Group, libjpeg: `scale_num`). The box is then cut in whole pixels of
that smaller picture and resized with antialiasing. Other formats, and the few JPEGs that libjpeg-turbo does not turn
into RGB (CMYK), go through Pillow where it is installed.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from squall.errors import MissingExtraError

Image = npt.NDArray[np.uint8]


class Box(NamedTuple):
    """A part of a picture, in pixels: its upper left corner, its rows and columns."""

    top: float
    left: float
    rows: float
    columns: float


class UndecodableError(Exception):
    """A file that is no readable image; the message says why."""


def decode(path: Path, size: tuple[int, int], box: Callable[[int, int], Box]) -> Image:
    """Decodes a box of an image file, resized.

    Arguments:
        path: the file.
        size: (h, w) of the result.
        box: takes the picture's full height and width, gives the part to keep.

    Returns:
        uint8, shape (h, w, 3).

    Raises:
        UndecodableError: the file cannot be read or is no whole image.
        MissingExtraError: it needs Pillow, which is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UndecodableError(error.strerror or str(error)) from error
    picture, part = _decode_jpeg(data, size, box) if data[:2] == b"\xff\xd8" else _decode_other(data, path, box)
    return resize(picture, part, size)


def resize(picture: Image, part: Box, size: tuple[int, int]) -> Image:
    """Cuts a box out of a picture, in whole pixels, and resizes it (bilinear, antialiased).

    Arguments:
        picture: uint8, shape (H, W, 3).
        part: the box; at least one pixel of it is kept.
        size: (h, w) of the result.
    """
    import torch
    import torch.nn.functional as F

    height, width, _ = picture.shape
    top, bottom = _whole(part.top, part.rows, height)
    left, right = _whole(part.left, part.columns, width)
    cut = picture[top:bottom, left:right]
    if cut.shape[:2] == size:
        return np.ascontiguousarray(cut)
    # (h, w, 3) -> (1, 3, h, w), channels-last: no copy beyond the cut
    pixels = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def _whole(first: float, length: float, limit: int) -> tuple[int, int]:
    begin = min(max(round(first), 0), limit - 1)
    return begin, min(max(round(first + length), begin + 1), limit)


def _decode_jpeg(data: bytes, size: tuple[int, int], box: Callable[[int, int], Box]) -> tuple[Image, Box]:
    """The picture at the smallest scale at which the box has the result's size, and the box in it."""
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        part = box(height, width)
        if colours in ("CMYK", "YCCK"):
            return _decode_other(data, None, lambda _height, _width: part)
        # the whole picture must be so high that the box in it is `size` high
        least = [
            math.ceil(want * full / have) for want, full, have in zip(size, (height, width), part[2:], strict=True)
        ]
        picture: Image = simplejpeg.decode_jpeg(
            data, "RGB", min_height=min(least[0], height), min_width=min(least[1], width), strict=True
        )
    except ValueError as error:
        raise UndecodableError(str(error)) from error
    # libjpeg's scale is M / 8; the edges are rounded up, so a pixel of the last row or column may be a part of one
    eighths = 8 * picture.shape[0] // height if height > width else 8 * picture.shape[1] // width
    return picture, Box(*(eighths / 8 * value for value in part))


def _decode_other(data: bytes, path: Path | None, box: Callable[[int, int], Box]) -> tuple[Image, Box]:
    try:
        from PIL import Image as Pillow
        from PIL import UnidentifiedImageError
    except ImportError:
        if path is not None and path.suffix.lower() in (".jpg", ".jpeg"):
            raise UndecodableError(
                f"it does not begin as a JPEG does: {data[:4].hex(' ') or 'an empty file'}"
            ) from None
        feature = f"reading {path.suffix} images" if path else "reading JPEG images in CMYK"
        raise MissingExtraError(feature, "Pillow", "images") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd but readable metadata
            with Pillow.open(io.BytesIO(data)) as opened:
                picture = np.array(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        shown = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UndecodableError(shown) from error
    return picture, box(*picture.shape[:2])
