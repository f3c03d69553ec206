"""The fields of `squall.Run`: what is filled in, and every mistake at once."""

from __future__ import annotations

from typing import Any

import pytest

from squall.errors import InputError
from squall.run import RunSpec

FIELDS: dict[str, Any] = {"epochs": 1, "global_batch_size": 8, "worker_batch_size": 4}


def mistakes(**fields: Any) -> dict[str, str]:
    with pytest.raises(InputError) as error:
        RunSpec.of(fields)
    return dict(error.value.rows)


@pytest.mark.parametrize("left_out", ["global_batch_size", "worker_batch_size", "virtual_workers"])
def test_two_of_the_three_sizes_give_the_third(left_out: str) -> None:
    given = {**FIELDS, "virtual_workers": 2}
    del given[left_out]
    assert RunSpec.of(given) == RunSpec(**FIELDS)


@pytest.mark.parametrize(
    ("sizes", "label", "says"),
    [
        ({}, "batch sizes", "give two of"),
        ({"global_batch_size": 8}, "global_batch_size=8", "one more is needed: worker_batch_size or virtual_workers"),
        ({"global_batch_size": 8, "virtual_workers": 0}, "virtual_workers=0", "at least 1"),
        ({"global_batch_size": 8, "virtual_workers": 3}, "global_batch_size=8", "no multiple of virtual_workers=3"),
        ({"global_batch_size": 8, "worker_batch_size": 9}, "worker_batch_size=9", "larger than global_batch_size=8"),
        ({"global_batch_size": 2.0, "worker_batch_size": 1}, "global_batch_size=2.0", "whole number"),
    ],
)
def test_sizes_that_do_not_fit_are_one_mistake(sizes: dict[str, Any], label: str, says: str) -> None:
    found = mistakes(epochs=1, **sizes)
    assert list(found) == [label]
    assert says in found[label]


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", None, 2**63])
def test_a_seed_is_a_whole_number_from_zero(value: Any) -> None:
    assert "at least 0" in mistakes(**FIELDS, seed=value)[f"seed={value!r}"]


@pytest.mark.parametrize("field", ["channels_last", "compile"])
@pytest.mark.parametrize("value", [0, 1, "false", None])
def test_a_switch_is_true_or_false(field: str, value: Any) -> None:
    assert mistakes(**FIELDS, **{field: value}) == {f"{field}={value!r}": "must be True or False"}


def test_all_mistakes_show_at_once() -> None:
    found = mistakes(global_batch_size=8, worker_batch_size=0, seed=-1, compile="no", precision="fp8", sed=3)
    assert set(found) == {"epochs", "worker_batch_size=0", "seed=-1", "compile='no'", "precision='fp8'", "sed=3"}
    assert "Near: seed" in found["sed=3"]
