"""Records as lines of strict JSON."""

from __future__ import annotations

import json
import math
from types import MappingProxyType

from squall.records import Ended, Logged, Stepped


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_a_step_is_a_line_of_its_fields() -> None:
    line = Stepped(3, 1, 128, 0.5, 0.1, 2.25, {"accuracy": 0.75}, {"data": 0.001}).to_json()
    assert "\n" not in line
    assert json.loads(line, parse_constant=refuse) == {
        "kind": "step",
        "step": 3,
        "epoch": 1,
        "samples": 128,
        "loss": 0.5,
        "lr": 0.1,
        "seconds": 2.25,
        "metrics": {"accuracy": 0.75},
        "spent": {"data": 0.001},
    }


def test_numbers_that_are_not_finite_become_words_however_deep_they_lie() -> None:
    line = Ended("diverged", "a lower rate", math.inf, {"val": {"loss": math.nan}, "last": [1.0, -math.inf]}).to_json()
    found = json.loads(line, parse_constant=refuse)
    assert found["seconds"] == "inf"
    assert found["result"] == {"val": {"loss": "nan"}, "last": [1.0, "-inf"]}


def test_any_mapping_and_sequence_will_do() -> None:
    line = Logged(1, 0, MappingProxyType({"a": (1.0, 2.0), "b": MappingProxyType({"c": 1.0})})).to_json()
    assert json.loads(line)["values"] == {"a": [1.0, 2.0], "b": {"c": 1.0}}
