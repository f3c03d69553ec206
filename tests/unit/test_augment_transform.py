"""Whole-batch augmentation against a slow twin, sample by sample."""

import numpy as np
import pytest
import torch

from squall.data.augment import compile_ops
from squall.data.images import ImageSet
from squall.data.order import Draw
from squall.rng import Stream, mix

RNG = np.random.default_rng(7)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (40, 11, 9, 3), dtype=np.uint8))
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
CROP_FLIP = [{"random_crop": [8, 7], "padding": 2}, {"horizontal_flip": 0.5}, {"normalize": STATISTICS}]


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def by_hand(image: np.ndarray, index: int, epoch: int, seed: int, cutout: int = 0) -> np.ndarray:
    """CROP_FLIP in the textbook's manner: pad, slice, mirror, normalise, one image; float64 (C, h, w)."""

    def below(stream: Stream, bound: int) -> int:
        return (mix(stream, seed, epoch, index) >> 32) * bound >> 32

    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    top, left = below(Stream.CROP_ROW, 15 - 8 + 1), below(Stream.CROP_COLUMN, 13 - 7 + 1)
    out = padded[top : top + 8, left : left + 7]
    if (mix(Stream.FLIP, seed, epoch, index) >> 11) * 2.0**-53 < 0.5:
        out = out[:, ::-1]
    out = (out / 255.0 - STATISTICS["mean"]) / STATISTICS["std"]
    if cutout:
        y, x = below(Stream.CUTOUT_ROW, 8) - cutout // 2, below(Stream.CUTOUT_COLUMN, 7) - cutout // 2
        for row in range(max(y, 0), min(y + cutout, 8)):
            for column in range(max(x, 0), min(x + cutout, 7)):
                out[row, column] = 0
    return out.transpose(2, 0, 1)


@pytest.mark.parametrize("cutout", [0, 3, 4])
def test_batch_equals_the_images_treated_one_by_one(cutout: int) -> None:
    ops = [*CROP_FLIP, {"cutout": cutout}] if cutout else CROP_FLIP
    transform = compile_ops(ops, (11, 9, 3))
    ids, epochs = np.arange(40), np.arange(40) % 3
    got = transform(IMAGES, ids, epochs, 5)
    wanted = np.stack([by_hand(IMAGES[i].numpy(), i, i % 3, 5, cutout) for i in range(40)])
    np.testing.assert_allclose(got.numpy(), wanted, atol=2e-6)
    assert tuple(got.shape[1:]) == transform.out_shape == (3, 8, 7)
    if cutout:
        assert (got == 0).any(dim=1).float().mean() > 0.05


def test_batch_is_float32_channels_last_and_aligned() -> None:
    got = compile_ops(CROP_FLIP, (11, 9, 3))(IMAGES[:5], np.arange(5), np.zeros(5, dtype=np.int64), 0)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.data_ptr() % 64 == 0


def test_a_sample_does_not_depend_on_its_batch() -> None:
    transform = compile_ops([*CROP_FLIP, {"cutout": 3}], (11, 9, 3))
    ids, epochs = np.arange(40), np.full(40, 2)
    whole = transform(IMAGES, ids, epochs, 1)
    for rows in (ints(3), ints(39, 0, 3), ints(3, 3)):
        part = transform.gather(IMAGES, rows, rows, np.full(len(rows), 2), 1)
        assert torch.equal(part, whole[rows])


def test_no_epoch_repeats_the_augmentations_of_another() -> None:
    """Lightning#20412: the same augmentations every epoch."""
    transform = compile_ops(CROP_FLIP, (11, 9, 3))
    ids = np.arange(40)
    first, second = (transform(IMAGES, ids, np.full(40, epoch), 0) for epoch in (0, 1))
    equal = sum(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert equal < 6  # 1 in 112 by chance
    assert not torch.equal(first, transform(IMAGES, ids, np.full(40, 0), 1))


def test_crops_and_flips_are_spread_evenly() -> None:
    probe = torch.arange(81, dtype=torch.uint8).view(1, 9, 9, 1)  # a pixel's value tells its place
    transform = compile_ops([{"random_crop": 7}, {"horizontal_flip": 0.25}], (9, 9, 1))
    num = 4000
    got = transform.gather(probe, np.zeros(num, dtype=np.int64), np.arange(num), np.zeros(num, dtype=np.int64), 3)
    left, right = (got[:, 0, 0, column] * 255 for column in (0, 6))
    flipped = left > right
    corner = torch.minimum(left, right).round().int()
    counts = torch.unique(corner, return_counts=True)[1]
    assert len(counts) == 9
    assert counts.min() > 444 - 5 * 20
    assert counts.max() < 444 + 5 * 20
    assert abs(flipped.float().mean() - 0.25) < 5 * (0.25 * 0.75 / num) ** 0.5


def test_without_random_operations_all_epochs_are_equal_and_centred() -> None:
    transform = compile_ops([{"center_crop": 5}], (11, 9, 3))
    a = transform(IMAGES[:4], np.arange(4), np.zeros(4, dtype=np.int64), 0)
    b = transform(IMAGES[:4], np.arange(4), np.ones(4, dtype=np.int64), 9)
    assert torch.equal(a, b)
    torch.testing.assert_close(a, IMAGES[:4, 3:8, 2:7].permute(0, 3, 1, 2) / 255)


def test_flip_of_a_centre_crop_mirrors_that_crop() -> None:
    always = compile_ops([{"center_crop": 5}, {"horizontal_flip": 1}], (11, 9, 3))
    never = compile_ops([{"center_crop": 5}], (11, 9, 3))
    ids, epochs = np.arange(6), np.zeros(6, dtype=np.int64)
    assert torch.equal(always(IMAGES[:6], ids, epochs, 0), never(IMAGES[:6], ids, epochs, 0).flip(3))


def test_images_are_not_changed() -> None:
    before = IMAGES.clone()
    compile_ops([*CROP_FLIP, {"cutout": 4}], (11, 9, 3))(IMAGES, np.arange(40), np.zeros(40, dtype=np.int64), 0)
    compile_ops([], (11, 9, 3))(IMAGES, np.arange(40), np.zeros(40, dtype=np.int64), 0).zero_()
    assert torch.equal(before, IMAGES)


def test_image_set_gives_the_same_batch_from_the_set_and_from_picked_images() -> None:
    transform = compile_ops(CROP_FLIP, (11, 9, 3))
    images = ImageSet(IMAGES, torch.arange(40), transform, ("a",), "set")
    draw = Draw(ints(7, 3, 31), ints(0, 0, 1))
    inputs, targets = images.batch(draw, 4, torch.device("cpu"))
    assert torch.equal(inputs, transform(IMAGES[draw.ids], draw.ids, draw.epochs, 4))
    assert targets.tolist() == [7, 3, 31]
    one, label = images[-1]
    assert label == 39
    assert torch.equal(one, images.batch(Draw(ints(39), ints(0)), 0, torch.device("cpu"))[0][0])
    assert len(images) == 40
    with pytest.raises(IndexError, match="40 images"):
        images[40]


def test_image_set_over_read_only_arrays_hands_out_memory_of_its_own() -> None:
    pixels, labels = IMAGES.numpy().copy(), np.arange(40)
    for array in (pixels, labels):
        array.setflags(write=False)
    images = ImageSet.of(pixels, labels, compile_ops([], (11, 9, 3)), ["a"], "set")
    inputs, targets = images.batch(Draw(labels, labels * 0), 0, torch.device("cpu"))
    inputs.fill_(-1)
    targets.fill_(-1)
    assert np.array_equal(pixels, IMAGES.numpy())
    assert labels[39] == 39
