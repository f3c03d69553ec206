"""Augments whole batches of images of one size, with random numbers that belong to samples.

The usual way, one Python transform after another for each sample, costs more than a small network's training step and
draws from whatever generator the loader process happens to hold. A `Transform` (compiled from a list of operations by
`squall.data.augment`) treats a batch in a few tensor operations, on any device. Crop and flip only choose which pixel
goes where, so both are one gather of pixels (rows of C bytes) out of the set as it lies in memory (N, H, W, C); the
result is already channels-last.

Each random number is a hash of (purpose, seed, epoch, sample): a sample's crop does not depend on the batch it stands
in, on the process that makes it, or on what was drawn before. Sources: crop and flip of He et al. 2016, section 4.2
(padding with zeros, here black); cutout of DeVries and Taylor 2017 (the square may reach beyond the border).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from squall.rng import Stream, below, mix, mix_array, uniform

if TYPE_CHECKING:
    import torch

    Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Transform:
    """A compiled list of operations: uint8 images in, normalised float32 batches out.

    Attributes:
        in_shape: (H, W, C) of the images.
        crop: (h, w) of the result.
        padding: rows and columns of black around the image before a random crop.
        random_crop: whether the crop is drawn; else it is the centre.
        flip: probability of a horizontal flip.
        cutout: edge of the square that is set to zero (after normalisation: to the mean); 0 for none.
        mean, std: per channel, in units of 1 = white; None for plain x / 255.
    """

    in_shape: tuple[int, int, int]
    crop: tuple[int, int]
    padding: int = 0
    random_crop: bool = False
    flip: float = 0.0
    cutout: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one result."""
        return (self.in_shape[2], *self.crop)

    def __call__(self, images: torch.Tensor, ids: Ids, epochs: Ids, seed: int) -> torch.Tensor:
        """Transforms a batch.

        Arguments:
            images: uint8, shape (n, H, W, C), on any device; not changed.
            ids: the samples' numbers, shape (n,): what their random numbers belong to.
            epochs: the epoch of each, shape (n,).
            seed: the recipe's seed.

        Returns:
            A new float32 tensor of shape (n, C, h, w), channels-last in memory, on the device of `images`.
        """
        return self.gather(images, np.arange(len(ids), dtype=np.int64), ids, epochs, seed)

    def gather(self, images: torch.Tensor, rows: Ids, ids: Ids, epochs: Ids, seed: int) -> torch.Tensor:
        """As a call, on images picked from a larger tensor (N, H, W, C): sample i of the batch is `images[rows[i]]`."""
        if tuple(images.shape[1:]) != self.in_shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])} given to a transform for {self.in_shape}")
        images = images.contiguous()
        if self.random_crop or self.flip > 0:
            pixels = self._moved(images, rows, ids, epochs, seed)
        else:
            pixels = self._centred(images, rows)
        out = self._normalised(pixels)
        if self.cutout:
            self._cut(out, ids, epochs, seed)
        # (n, h, w, C) -> (n, C, h, w), no copy: channels-last
        return out.permute(0, 3, 1, 2)

    def _corner(self) -> tuple[int, int]:
        height, width, _ = self.in_shape
        return (height - self.crop[0]) // 2, (width - self.crop[1]) // 2

    def _centred(self, images: torch.Tensor, rows: Ids) -> torch.Tensor:
        import torch

        (top, left), (height, width) = self._corner(), self.crop
        picked = images.index_select(0, torch.tensor(rows, device=images.device))
        return picked[:, top : top + height, left : left + width].contiguous()

    def _moved(self, images: torch.Tensor, rows: Ids, ids: Ids, epochs: Ids, seed: int) -> torch.Tensor:
        """Crop and flip as one gather of pixels."""
        import torch

        (full_h, full_w, channels), (height, width), num = self.in_shape, self.crop, len(ids)
        top, left, flipped = self._draw(ids, epochs, seed)
        # what each sample needs, shape (4, n, 1), in one transfer
        needs = torch.from_numpy(np.stack([rows, top, left, flipped])).to(images.device)[:, :, None]
        across = torch.arange(width, device=images.device)
        y = needs[1] + torch.arange(height, device=images.device)  # (n, h)
        x = needs[2] + torch.where(needs[3] > 0, width - 1 - across, across)  # (n, w)
        index = (needs[0] * full_h + y.clamp(0, full_h - 1))[:, :, None] * full_w + x.clamp(0, full_w - 1)[:, None, :]
        # (N * H * W, C) -> (n * h * w, C) -> (n, h, w, C)
        pixels = images.view(-1, channels).index_select(0, index.view(-1)).view(num, height, width, channels)
        if self.padding:
            inside = ((y >= 0) & (y < full_h))[:, :, None] & ((x >= 0) & (x < full_w))[:, None, :]
            pixels = pixels * inside[..., None]
        return pixels

    def _draw(self, ids: Ids, epochs: Ids, seed: int) -> tuple[Ids, Ids, Ids]:
        """Row and column of each crop's corner in the image (negative inside the padding), and 1 where flipped."""
        zeros = np.zeros(len(ids), dtype=np.int64)
        top, left = (zeros + corner for corner in self._corner())
        if self.random_crop:
            room_y, room_x = (
                full + 2 * self.padding - size + 1 for full, size in zip(self.in_shape[:2], self.crop, strict=True)
            )
            top = below(_hash(Stream.CROP_ROW, seed, epochs, ids), room_y) - self.padding
            left = below(_hash(Stream.CROP_COLUMN, seed, epochs, ids), room_x) - self.padding
        if self.flip > 0:
            return top, left, (uniform(_hash(Stream.FLIP, seed, epochs, ids)) < self.flip).astype(np.int64)
        return top, left, zeros

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """(x / 255 - mean) / std as one product and one sum: the same bits on every device."""
        import torch

        num, height, width, channels = pixels.shape
        scale, shift = _affine(self.mean or (0.0,) * channels, self.std or (1.0,) * channels, width, pixels.device)
        out = pixels.to(torch.float32)
        # (n, h, w, C) -> (n * h, w * C): the inner loop runs over whole rows
        out.view(num * height, width * channels).mul_(scale).add_(shift)
        return out

    def _cut(self, out: torch.Tensor, ids: Ids, epochs: Ids, seed: int) -> None:
        import torch

        _, height, width, _ = out.shape
        first_y = below(_hash(Stream.CUTOUT_ROW, seed, epochs, ids), height) - self.cutout // 2
        first_x = below(_hash(Stream.CUTOUT_COLUMN, seed, epochs, ids), width) - self.cutout // 2
        corner = torch.from_numpy(np.stack([first_y, first_x])).to(out.device)[:, :, None]
        y = torch.arange(height, device=out.device) - corner[0]  # (n, h)
        x = torch.arange(width, device=out.device) - corner[1]  # (n, w)
        hole = ((y >= 0) & (y < self.cutout))[:, :, None] & ((x >= 0) & (x < self.cutout))[:, None, :]
        out.masked_fill_(hole[..., None], 0.0)


def _hash(stream: Stream, seed: int, epochs: Ids, ids: Ids) -> npt.NDArray[np.uint64]:
    return mix_array(mix_array(mix(stream, seed), epochs), ids)


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of each value of a row of `width` pixels, shape (width * C,)."""
    import torch

    scale = torch.tensor([1 / (255 * s) for s in std], device=device, dtype=torch.float32)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device, dtype=torch.float32)
    return scale.repeat(width), shift.repeat(width)
