"""Which box of a picture becomes the result: the operations that bring each image of a folder to one size.

The training crop is a box of drawn area and shape (Szegedy et al. 2015: 8 to 100 % of the area, sides 3:4 to 4:3), the
evaluation crop the centre after the short side was resized; both are only a box to cut and a size to resize it to, so
they are found before a pixel is decoded. Random numbers are hashes of (purpose, seed, epoch, sample).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squall.data.decode import Box
from squall.errors import Mistakes, nearest
from squall.rng import Stream, mix

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "random_resized_crop": ("scale", "ratio"),
    "resize": (),
    "center_crop": (),
    "horizontal_flip": (),
}
_ATTEMPTS = 10  # as in torchvision: then the largest central box whose sides keep within the ratio


@dataclass(frozen=True)
class DataOps:
    """How one image becomes an array of fixed size.

    Attributes:
        size: (h, w) of the result.
        drawn: whether the box is drawn (random resized crop); else it is the centre.
        short_side: what the short side becomes before the centre is cut out; 0: the whole picture is stretched.
        scale: least and largest share of the area of a drawn box.
        ratio: least and largest width / height of a drawn box.
        flip: probability of a horizontal flip.
    """

    size: tuple[int, int]
    drawn: bool = False
    short_side: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def box(self, height: int, width: int, keys: tuple[int, int, int]) -> Box:
        """The part of a picture of `height` x `width` that becomes the result; `keys` are (seed, epoch, sample)."""
        if self.drawn:
            return _drawn_box(height, width, self.scale, self.ratio, keys)
        if not self.short_side:
            return Box(0.0, 0.0, float(height), float(width))
        unit = min(height, width) / self.short_side
        rows, columns = self.size[0] * unit, self.size[1] * unit
        return Box((height - rows) / 2, (width - columns) / 2, rows, columns)

    def flipped(self, keys: tuple[int, int, int]) -> bool:
        """Whether this sample is mirrored in this epoch."""
        return self.flip > 0 and _uniform(Stream.FLIP, *keys) < self.flip


def parse_ops(ops: Sequence[Mapping[str, Any]], *, where: str = "the operations on images") -> DataOps:
    """Compiles the operations of a folder of images.

    ====================================  =====================================================================
    ``{random_resized_crop = 224}``       a drawn box becomes 224 x 224; also ``scale = [0.08, 1]``, ``ratio``
    ``{resize = 256}``                    the short side becomes 256; a ``center_crop`` must follow
    ``{resize = [64, 96]}``               the whole picture is stretched to 64 rows of 96
    ``{center_crop = 224}``               the middle, after ``resize``
    ``{horizontal_flip = 0.5}``           mirrors left and right with this probability
    ====================================  =====================================================================

    Raises:
        InputError: with all mistakes at once, each with the valid names.
    """
    mistakes = Mistakes(where)
    given: dict[str, Mapping[str, Any]] = {}
    for op in ops:
        shown = ", ".join(f"{key}={value!r}" for key, value in op.items())
        name = next((key for key in op if key in _ARGUMENTS), None)
        if name is None:
            near = nearest(next(iter(op), ""), list(_ARGUMENTS)) or list(_ARGUMENTS)
            mistakes.add(shown, f"no such operation on a file. One of: {' '.join(near)}")
            continue
        for key in op:
            if key != name and key not in _ARGUMENTS[name]:
                valid = " ".join(_ARGUMENTS[name]) or "none"
                mistakes.add(f"{name}: {key}={op[key]!r}", f"no such argument. Arguments: {valid}")
        if name in given:
            mistakes.add(shown, "stands twice")
        given[name] = op
    fields = _read_ops(given, mistakes)
    mistakes.raise_if_any()
    return DataOps(**fields)


def _read_ops(given: Mapping[str, Mapping[str, Any]], mistakes: Mistakes) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    names = set(given) - {"horizontal_flip"}
    sizes = {name: _size(given[name][name]) for name in names}
    for name, size in sizes.items():
        if size is None:
            mistakes.add(f"{name}={given[name][name]!r}", "an edge in pixels, for example 224, or [height, width]")
    if names == {"random_resized_crop"}:
        op = given["random_resized_crop"]
        fields.update(size=sizes["random_resized_crop"], drawn=True)
        for key, highest in (("scale", 1.0), ("ratio", math.inf)):
            if key in op:
                fields[key] = _range(op[key], highest)
                if fields[key] is None:
                    mistakes.add(f"{key}={op[key]!r}", "two numbers above 0, the smaller first; a scale is at most 1")
    elif names == {"resize", "center_crop"}:
        short = given["resize"]["resize"]
        fields.update(size=sizes["center_crop"], short_side=short)
        if not isinstance(short, int):
            mistakes.add(f"resize={short!r}", "one number, the short side, when center_crop follows")
        elif sizes["center_crop"] and sizes["resize"] and max(sizes["center_crop"]) > short:
            mistakes.add(f"center_crop={given['center_crop']['center_crop']!r}", f"larger than resize={short}")
    elif names == {"resize"} and isinstance(given["resize"]["resize"], list | tuple):
        fields.update(size=sizes["resize"])
    else:
        found = ", ".join(sorted(names)) or "nothing"
        rule = "images of many sizes need random_resized_crop, or resize and center_crop, or resize=[height, width]"
        mistakes.add(found, rule)
    flip = given.get("horizontal_flip", {}).get("horizontal_flip", 0.0)
    if isinstance(flip, bool) or not isinstance(flip, int | float) or not 0 <= flip <= 1:
        mistakes.add(f"horizontal_flip={flip!r}", "a probability from 0 to 1, for example 0.5")
    else:
        fields["flip"] = float(flip)
    return fields


def _size(value: Any) -> tuple[int, int] | None:
    edges = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(edges) == 2 and all(isinstance(edge, int) and not isinstance(edge, bool) and edge > 0 for edge in edges):
        return (edges[0], edges[1])
    return None


def _range(value: Any, highest: float) -> tuple[float, float] | None:
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
        low, high = map(float, value)
        if 0 < low <= high <= highest:
            return low, high
    return None


def _uniform(stream: Stream, *keys: int) -> float:
    """One number in [0, 1), the value that `rng.uniform` gives for the same keys."""
    return (mix(stream, *keys) >> 11) * 2.0**-53


def _drawn_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], keys: tuple[int, int, int]
) -> Box:
    """A box of drawn area and shape inside the picture, whole pixels."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_ATTEMPTS):
        u = [_uniform(Stream.RESIZED_CROP, *keys, attempt, which) for which in range(4)]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
        shape = math.exp(low + (high - low) * u[1])
        columns, rows = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < columns <= width and 0 < rows <= height:
            return Box(int(u[2] * (height - rows + 1)), int(u[3] * (width - columns + 1)), rows, columns)
    shape = min(max(width / height, ratio[0]), ratio[1])
    rows, columns = min(height, round(width / shape)), min(width, round(height * shape))
    return Box((height - rows) // 2, (width - columns) // 2, max(rows, 1), max(columns, 1))
