"""The last lines of a training: what it came to, the proof that the data was seen as promised, what to type next.

Pure: from result.json's values to lines of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squall.report.ledger import sentence
from squall.units import count, duration, percent

_MOST_PROCESSES = 8
_EPOCHS = {2: "both", 3: "the three", 4: "the four", 5: "the five"}


def summary(
    result: Mapping[str, Any], *, num_epochs: int, exact: bool, num_passes: int, averaged: bool, next_line: str
) -> list[str]:
    """The lines.

    Arguments:
        result: what result.json holds.
        num_epochs: epochs that were trained.
        exact: the reduction gives the same bits on other numbers of processes.
        num_passes: the most processes that can share a step.
        averaged: the accuracy is that of averaged weights.
        next_line: commands worth typing now.
    """
    lines = [f"{score(result, num_epochs, averaged=averaged)} in {duration(float(result['seconds']))}"]
    if "ledger" in result:
        lines.append(f"ledger  {sentence(result['ledger'])}")
    if "weights_sha256" in result:
        line = f"weights sha256 {str(result['weights_sha256'])[:12]}..."
        if exact and num_passes > 1:
            processes = int(result["processes"])
            line += f"  the same on {_numbers(num_passes)} processes: try --processes {1 if processes > 1 else 2}"
        lines.append(line)
    return [*lines, f"next    {next_line}"]


def score(result: Mapping[str, Any], num_epochs: int, *, averaged: bool = False, word: str = "epochs") -> str:
    """The accuracy with its error and the median, or whatever the task measures; `word`: what epochs are called."""
    for split, name in (("test", "test"), ("val", "validation")):
        if f"{split}_accuracy" in result:
            accuracy, median = float(result[f"{split}_accuracy"]), float(result[f"{split}_error_median_last5"])
            over = f"{_EPOCHS.get(num_epochs, 'the last five')} {word}"
            remarks = [f"median of {over}: {percent(median)}"] * (num_epochs > 1) + ["averaged weights"] * averaged
            text = f"{name} accuracy {percent(accuracy)}, error {percent(1 - accuracy)}"
            return f"{text} ({'; '.join(remarks)})" if remarks else text
    measured = [key for key in result if key.startswith(("test_", "val_")) and not key.endswith("_median_last5")]
    texts = [f"{key.replace('_', ' ', 1)} {float(result[key]):.4f}" for key in measured]
    return ", ".join(texts) or f"train loss {float(result['train_loss']):.4f}"


def _numbers(num_passes: int) -> str:
    if num_passes > _MOST_PROCESSES:
        return f"any number up to {count(num_passes)}"
    powers = [2**exponent for exponent in range(4) if 2**exponent < num_passes]
    return f"{', '.join(map(str, powers))} or {num_passes}"
