"""Reading a recipe's operations: all mistakes at once, each with what is valid."""

import pytest

from squall.data import digits
from squall.data.augment import STATISTICS, compile_ops, split_ops
from squall.errors import InputError


def test_operations_become_fields() -> None:
    transform = compile_ops(
        [{"random_crop": 32, "padding": 4}, {"horizontal_flip": 0.5}, {"normalize": "cifar10"}, {"cutout": 8}],
        (32, 32, 3),
    )
    assert (transform.crop, transform.padding, transform.random_crop) == ((32, 32), 4, True)
    assert (transform.flip, transform.cutout, transform.out_shape) == (0.5, 8, (3, 32, 32))
    assert (transform.mean, transform.std) == STATISTICS["cifar10"]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        compile_ops([{"random_cropp": 32}, {"horizontal_flip": 2}, {"cutout": 4, "size": 1}], (32, 32, 3), where="X")
    assert caught.value.headline == "3 mistakes in X"
    rows = dict(caught.value.rows)
    assert rows["random_cropp=32"].startswith("no such operation. One of: random_crop")
    assert "from 0 to 1" in rows["horizontal_flip=2"]
    assert rows["cutout: size=1"] == "no such argument. Arguments: none"


@pytest.mark.parametrize(
    ("op", "rule"),
    [
        ({"random_crop": 41, "padding": 4}, "larger than the images: 32 x 32 and 4 of padding on each side"),
        ({"center_crop": 33}, "larger than the images: 32 x 32"),
        ({"random_crop": 0}, "the edge of the window"),
        ({"random_crop": True}, "the edge of the window"),
        ({"random_crop": "32"}, "the edge of the window"),
        ({"random_crop": [1, 2, 3]}, "the edge of the window"),
        ({"random_crop": 32, "padding": -1}, "padding is a number of pixels"),
        ({"horizontal_flip": "yes"}, "a probability"),
        ({"cutout": 0}, "the edge of the square"),
        ({"normalize": "cifar"}, "One of: cifar10 digits"),
        ({"normalize": "mnist"}, "1 means and 1 deviations for images of 3 channels"),
        ({"normalize": {"mean": [0.5] * 3, "std": [0.0] * 3}}, "std above 0"),
        ({"random_resized_crop": 24}, "data.name=imagefolder"),
        ({"random_crop": 32, "horizontal_flip": 0.5}, "two operations in one"),
        ({}, "no such operation"),
    ],
)
def test_a_wrong_value_is_told_with_its_rule(op: dict, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        compile_ops([op], (32, 32, 3))
    assert rule in caught.value.rows[0][1]


@pytest.mark.parametrize(
    "ops",
    [
        [{"normalize": "cifar10"}, {"random_crop": 32}],
        [{"cutout": 8}, {"normalize": "cifar10"}],
        [{"horizontal_flip": 0.5}, {"horizontal_flip": 0.5}],
        [{"center_crop": 30}, {"random_crop": 28}],
    ],
)
def test_an_operation_out_of_its_place_is_a_mistake(ops: list) -> None:
    with pytest.raises(InputError, match=f"stands after {next(iter(ops[0]))}"):
        compile_ops(ops, (32, 32, 3))


def test_split_puts_the_border_after_what_the_decoder_does() -> None:
    train = [{"random_resized_crop": 224}, {"horizontal_flip": 0.5}, {"normalize": "imagenet"}, {"cutout": 8}]
    assert split_ops(train) == (train[:2], train[2:])
    val = [{"resize": 256}, {"center_crop": 224}, {"normalize": "imagenet"}]
    assert split_ops(val) == (val[:2], val[2:])
    assert split_ops(val[2:]) == ([], val[2:])
    assert split_ops(val[:2]) == (val[:2], [])


def test_statistics_of_the_digits_are_those_of_their_training_images() -> None:
    images, _ = digits.read("train")
    mean, std = STATISTICS["digits"]
    assert (images / 255).mean() == pytest.approx(mean[0], abs=5e-5)
    assert (images / 255).std() == pytest.approx(std[0], abs=5e-5)
