"""What the terminal says of batch optimisation: lines of the header, columns of the table, the last block.

Pure: from the recipe and records to text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from squall.cli.summary import score
from squall.cli.wording import Column, many, stalled
from squall.recipe import Recipe, SandblasterSpec
from squall.records import Evaluating, Started
from squall.units import count, duration

_SEARCHES = {"strong_wolfe": "strong Wolfe steps", "armijo": "Armijo steps, pairs damped"}
_BUDGET = "budget spent"


def rows(recipe: Recipe, started: Started, unit: str) -> dict[str, str]:
    """Lines of the header by label: how the batch is cut, who computes and who holds what, how it searches."""
    own = recipe.sandblaster
    assert own is not None  # of every recipe with this strategy
    size, samples = recipe.worker_batch_size, started.num_samples
    portions, rest = -(-samples // size), samples % size
    last = f" (the last: {count(rest)})" if rest else ""
    copies = "; idle ones copy what takes long" if own.backups and own.replicas > 1 else ""
    return {
        "batch": f"all {count(samples)} {unit}: {many(portions, 'portion')} of {count(size)}{last}, handed out by "
        f"{count(own.unit)}",
        "replicas": f"{count(own.replicas)}: a unit to whoever is free{copies}",
        "shards": f"{count(own.shards)}: point, gradient and {many(own.history, 'pair')} of history",
        "search": f"L-BFGS, {_SEARCHES[own.line_search]}; {_until(own, recipe.epochs)}",
    }


def _until(own: SandblasterSpec, evaluations: int) -> str:
    text = f"{many(evaluations, 'evaluation')} of the batch at most"
    return f"{text}, or a gradient's norm of {own.tolerance_gradient:g}" if own.tolerance_gradient else text


COLUMNS: Sequence[Column] = (
    ("gradient", 8, lambda epoch: f"{epoch.train.get('gradient_norm', 0.0):.1e}"),
    ("step", 7, lambda epoch: f"{epoch.lr:.3g}"),
    ("passes", 6, lambda epoch: count(epoch.step + 1)),
)
"""The gradient's norm, the length of the step in lengths of its direction, and evaluations of the batch so far."""

LAST: Sequence[Column] = (("stalled", 7, stalled),)


def progress(record: Evaluating, started: Started) -> str:
    """ "evaluation 12 of 40   loss 0.0480   2 replicas": of one that is under way."""
    words = [f"evaluation {count(record.evaluation)} of {count(started.num_steps)}"]
    if record.loss is not None:
        words.append(f"loss {record.loss:.4f}")
    return "   ".join([*words, many(record.alive, "replica")])


def summary(result: Mapping[str, Any], *, simulated: bool, next_line: str) -> list[str]:
    """The last lines of a training.

    Arguments:
        result: what result.json holds.
        simulated: its seconds are virtual.
        next_line: commands worth typing now.
    """
    took = f"{duration(float(result['seconds']))}{' of simulated time' if simulated else ''}"
    iterations = int(result.get("iterations", 0))
    lines = [f"{score(result, iterations, word='iterations')} in {took}", f"ended   {_ended(result)}"]
    if advice := result["minimum"]["advice"]:
        lines.append(f"advice  {advice}")
    exact = "  the same with any number of replicas" if not result["inexact"] else ""
    return [
        *lines,
        f"ledger  {_ledger(result)}",
        f"weights sha256 {str(result['weights_sha256'])[:12]}...{exact}",
        f"next    {next_line}",
    ]


def _ended(result: Mapping[str, Any]) -> str:
    minimum = result["minimum"]
    done = f"{many(int(result['iterations']), 'iteration')}, {many(int(result['evaluations']), 'evaluation')}"
    why = "the budget is spent" if minimum["outcome"] == _BUDGET else f"{minimum['outcome']}: {minimum['why']}"
    return f"{done}: {why}; loss {result['loss']:.4f}, gradient's norm {result['gradient_norm']:.1e}"


def _ledger(result: Mapping[str, Any]) -> str:
    """Each evaluation counts each sample once; what was computed and did not count."""
    evaluations, samples = int(result["evaluations"]), int(result["samples"])
    text = f"{many(evaluations, 'evaluation')} x {count(samples // max(evaluations, 1))} samples: each once in each"
    if wasted := int(result["portions"]["wasted"]):
        text += f"; {many(wasted, 'portion')} computed besides, as copies or for what was given up"
    if times := int(result["set_backs"]["times"]):
        again = int(result["set_backs"]["iterations"])
        text += f"; set back {'once' if times == 1 else f'{count(times)} times'} by a shard's death, "
        text += f"{many(again, 'iteration')} done again"
    return text
