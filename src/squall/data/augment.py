"""Reads a recipe's list of operations on images, in the words that torchvision made common.

A list is checked as a whole, with all mistakes at once, and becomes one `Transform`: where each operation may stand is
fixed (windows, then the flip, then normalisation, then cutout), so the compiled form needs no interpreter. Operations
that need images of many sizes belong to the decoder (`squall.data.imagefolder`); `split_ops` finds the border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from squall.data.transform import Transform
from squall.errors import Mistakes, nearest

__all__ = ["STATISTICS", "Transform", "compile_ops", "split_ops"]

# Mean and standard deviation of the training pixels / 255.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((0.3052,), (0.3758,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}

# name -> (place in the list, its arguments beside the value that stands at the name)
_OPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "random_crop": (0, ("padding",)),
    "center_crop": (0, ()),
    "horizontal_flip": (1, ()),
    "normalize": (2, ()),
    "cutout": (3, ()),
}
_BY_PLACE = "random_crop or center_crop, horizontal_flip, normalize, cutout"
_DECODE_OPS = ("random_resized_crop", "resize", "center_crop", "horizontal_flip")


def split_ops(ops: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cuts the operations of a folder of images into those done while decoding and those done on the batch.

    Returns:
        The leading operations that bring each image to its size (`squall.data.imagefolder` does them in the loader
        processes), and the rest (`compile_ops`).
    """
    plain = [dict(op) for op in ops]
    cut = next((i for i, op in enumerate(plain) if not any(name in op for name in _DECODE_OPS)), len(plain))
    return plain[:cut], plain[cut:]


def compile_ops(
    ops: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], *, where: str = "the operations on images"
) -> Transform:
    """Compiles operations, in the order written, for images of one shape.

    ================================================  ==================================================================
    ``{random_crop = 32, padding = 4}``               a window of 32 x 32 at a random place of the padded image
    ``{center_crop = 28}``                            the window in the middle
    ``{horizontal_flip = 0.5}``                       mirrors left and right with this probability
    ``{normalize = "cifar10"}``                       (x / 255 - mean) / std; also ``{mean = [..], std = [..]}``
    ``{cutout = 8}``                                  sets a square at a random place to zero
    ================================================  ==================================================================

    Arguments:
        ops: one mapping an operation.
        shape: (H, W, C) of the images.
        where: what the error calls them, for example ``data.train``.

    Raises:
        InputError: with all mistakes at once, each with the valid names.
    """
    mistakes = Mistakes(where)
    fields: dict[str, Any] = {"in_shape": tuple(shape), "crop": tuple(shape[:2])}
    place, before = -1, ""
    for op in ops:
        shown = ", ".join(f"{key}={value!r}" for key, value in op.items())
        name = _name(op, shown, mistakes)
        if name is None:
            continue
        if _OPS[name][0] <= place:
            mistakes.add(shown, f"stands after {before}. The order: {_BY_PLACE}; each at most once")
        place, before = max(place, _OPS[name][0]), name
        rule = _read(name, op, shape, fields)
        if rule:
            mistakes.add(shown, rule)
    mistakes.raise_if_any()
    return Transform(**fields)


def _name(op: Mapping[str, Any], shown: str, mistakes: Mistakes) -> str | None:
    """The operation that a mapping names, or None with a mistake noted."""
    names = [key for key in op if key in _OPS]
    if len(names) != 1:
        first = next(iter(op), "")
        if names:
            mistakes.add(shown, f"two operations in one: write {' and '.join(f'{{{name} = ...}}' for name in names)}")
        elif any(name in op for name in _DECODE_OPS):
            mistakes.add(shown, "needs images of many sizes, data.name=imagefolder; there it comes first")
        else:
            near = nearest(first, list(_OPS)) or list(_OPS)
            mistakes.add(shown, f"no such operation. One of: {' '.join(near)}")
        return None
    wrong = [key for key in op if key != names[0] and key not in _OPS[names[0]][1]]
    for key in wrong:
        valid = " ".join(_OPS[names[0]][1]) or "none"
        mistakes.add(f"{names[0]}: {key}={op[key]!r}", f"no such argument. Arguments: {valid}")
    return None if wrong else names[0]


def _read(name: str, op: Mapping[str, Any], shape: tuple[int, int, int], fields: dict[str, Any]) -> str:
    """Puts one operation's values into a transform's fields; returns the rule that they break, or nothing."""
    value = op[name]
    if name in ("random_crop", "center_crop"):
        return _read_crop(value, op.get("padding", 0), shape, fields, drawn=name == "random_crop")
    if name == "horizontal_flip":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            return "a probability from 0 to 1, for example 0.5"
        fields["flip"] = float(value)
    elif name == "cutout":
        if not _is_count(value) or value < 1:
            return "the edge of the square in pixels, 1 or more"
        fields["cutout"] = value
    else:
        return _read_statistics(value, shape[2], fields)
    return ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_crop(value: Any, padding: Any, shape: tuple[int, int, int], fields: dict[str, Any], *, drawn: bool) -> str:
    size = (value, value) if _is_count(value) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(size) != 2 or not all(_is_count(edge) and edge > 0 for edge in size):
        return "the edge of the window in pixels, for example 32, or [height, width]"
    if not _is_count(padding):
        return "padding is a number of pixels, 0 or more"
    if any(edge > full + 2 * padding for edge, full in zip(size, shape[:2], strict=True)):
        padded = f" and {padding} of padding on each side" if padding else ""
        return f"larger than the images: {shape[0]} x {shape[1]}{padded}"
    fields.update(crop=size, padding=padding, random_crop=drawn)
    return ""


def _read_statistics(value: Any, channels: int, fields: dict[str, Any]) -> str:
    if isinstance(value, str) and value in STATISTICS:
        mean, std = STATISTICS[value]
    elif isinstance(value, Mapping) and set(value) == {"mean", "std"}:
        mean, std = (tuple(v) if isinstance(v, list | tuple) else (v,) for v in (value["mean"], value["std"]))
        if not all(isinstance(v, int | float) for v in mean + std) or not all(s > 0 for s in std):
            return "mean and std are numbers, std above 0, in units of 1 = white"
    else:
        return f"One of: {' '.join(STATISTICS)}, or {{ mean = [..], std = [..] }}"
    if len(mean) != channels or len(std) != channels:
        return f"{len(mean)} means and {len(std)} deviations for images of {channels} channel{'s' * (channels > 1)}"
    fields.update(mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    return ""
