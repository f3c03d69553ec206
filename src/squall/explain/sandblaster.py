"""Sandblaster L-BFGS as arithmetic: portions of the batch, what an evaluation costs, what the shards hold.

Dean et al. 2012, section 4.2. How many evaluations an iteration takes only the run knows: one where the first step that
a line search tries is good enough. Times are left out: the same recipe runs on any machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from squall.checkpoint.spec import NEVER
from squall.data.order import Order
from squall.explain import rows
from squall.explain.facts import ModelFacts
from squall.explain.rows import FLOAT_BYTES, ending, rough
from squall.explain.shards import each_of, elements, elements_of_shards
from squall.optim.linesearch import SearchSpec
from squall.recipe import Recipe, SandblasterSpec
from squall.units import count

_SUM_BYTES = 8
"""Sums over the batch are float64, vectors are float32."""

_BESIDE_HISTORY = 5
"""The point, its gradient, the trial, its gradient, and the direction; the history is two vectors a pair."""

_DRAWN = ("cutout", "horizontal_flip", "random_crop", "random_resized_crop")


_ROUNDING = {"bf16": 4e-3, "tf32": 5e-4}
"""Half the distance of 1 to the next number of each precision of products."""


def topics(recipe: Recipe, facts: ModelFacts, order: Order) -> dict[str, list[str]]:
    """The lines below each label."""
    spec = _of(recipe)
    return {
        "batch": _batch(recipe, facts, order),
        "budget": _budget(recipe, order),
        "replicas": _replicas(spec, order),
        "search": _search(spec),
        "history": _history(spec),
        "ends": _ends(recipe, spec),
        "traffic": _traffic(spec, facts, order),
        "shards": _shards(spec, facts),
        "rate": ["none: the line search finds the length of each step"],
        "decay": _decay(recipe, facts),
        "checkpoint": _checkpoint(recipe, spec, facts),
    }


def notes(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    """What a reader should know."""
    if facts.batch_norms:
        yield (
            f"{count(facts.batch_norms)} layer{ending(facts.batch_norms)} normalise over a portion: with another "
            "worker_batch_size the function is another one."
        )
    drawn = [name for op in (recipe.data.train if recipe.data is not None else ()) for name in _DRAWN if name in op]
    if recipe.model is not None and recipe.model.arguments.get("dropout"):
        drawn.append("dropout")
    if drawn:
        yield f"{', '.join(drawn)}: drawn once a sample or portion, the same in each evaluation; the function is one."
    if _of(recipe).line_search == "armijo" and not _of(recipe).own_damping:
        yield (
            "with armijo and damping=0 pairs without curvature are left out; damping=0.2 makes something of each "
            "(Powell 1978)."
        )


def warnings(recipe: Recipe, order: Order) -> Iterator[str]:
    """What a reader should change, or know well why not."""
    spec, units = _of(recipe), _units(recipe, order)
    if spec.replicas > units:
        more = "they compute copies at most" if spec.backups else "they have nothing to do"
        yield (
            f"{count(spec.replicas - units)} of {count(spec.replicas)} replicas get none of the {count(units)} "
            f"unit{ending(units)}: {more}. A smaller sandblaster.unit or worker_batch_size makes more units."
        )
    if recipe.compute.precision != "fp32" and spec.noise < _ROUNDING[recipe.compute.precision]:
        yield (
            f"{recipe.compute.precision} rounds products by up to {_ROUNDING[recipe.compute.precision]:.0e}; with "
            f"sandblaster.noise={spec.noise:g} the line search may find no step near the optimum."
        )


def numbers(recipe: Recipe, facts: ModelFacts, order: Order) -> dict[str, Any]:
    """The values behind the text."""
    spec = _of(recipe)
    return {
        "name": recipe.name,
        "worker_batch_size": recipe.worker_batch_size,
        "num_samples": order.num_samples,
        "portions": order.steps_per_epoch,
        "units": _units(recipe, order),
        "max_evaluations": recipe.epochs,
        "max_samples": recipe.epochs * order.num_samples,
        "model": asdict(facts),
        "replicas": spec.replicas,
        "history": spec.history,
        "damping": spec.own_damping,
        "fetch_bytes": _vector_bytes(facts),
        "push_bytes": _vector_bytes(facts),
        "evaluation_bytes": _evaluation_bytes(spec, facts, order),
        "shard_elements": elements_of_shards(facts, spec.shards),
        "server_bytes": _held(spec, facts),
        "checkpoint_bytes": _point_bytes(facts),
        "history_bytes": _history_bytes(spec, facts),
    }


def _of(recipe: Recipe) -> SandblasterSpec:
    assert recipe.sandblaster is not None  # of every recipe with this strategy
    return recipe.sandblaster


def _units(recipe: Recipe, order: Order) -> int:
    return -(-order.steps_per_epoch // _of(recipe).unit)


def _batch(recipe: Recipe, facts: ModelFacts, order: Order) -> list[str]:
    """What the function is, and how the work is cut."""
    total, size = count(order.num_samples), recipe.worker_batch_size
    full, rest = divmod(order.num_samples, size)
    cut = f"{count(full)} portion{ending(full)} of {count(size)}" + (f" + one of {count(rest)}" if rest else "")
    mean = f"value = sum of losses / {total}" + (" + decay" if facts.decayed else "")
    units, last = _units(recipe, order), order.steps_per_epoch % _of(recipe).unit
    one = _of(recipe).unit if units > 1 or not last else last
    unit = f"{count(units)} unit{ending(units)} of {count(one)} portion{ending(one)}"
    unit += f", the last of {count(last)}" if last and units > 1 else ""
    return [f"{total} images = {cut}; {mean}", f"{unit}: computed by one replica and pushed at once"]


def _budget(recipe: Recipe, order: Order) -> list[str]:
    most = f"{count(recipe.epochs)} evaluation{ending(recipe.epochs)} of the batch"
    passes = (
        f"{count(recipe.epochs * order.num_samples)} images, {count(recipe.epochs * order.steps_per_epoch)} portions"
    )
    return [f"at most {most} = {passes}; an iteration takes one, and one more for each further step that it tries"]


def _replicas(spec: SandblasterSpec, order: Order) -> list[str]:
    units = -(-order.steps_per_epoch // spec.unit)
    if spec.replicas == 1:
        return ["1: all units of an evaluation"]
    each = units / spec.replicas
    share = f"{'' if each.is_integer() else 'about '}{each:.3g} unit{'' if each == 1 else 's'} each of an evaluation"
    idle = "idle ones compute copies of what takes long" if spec.backups else "idle ones wait (backups=false)"
    return [f"{count(spec.replicas)}: {share} where they are equally fast; {idle}"]


def _search(spec: SandblasterSpec) -> list[str]:
    numbers = SearchSpec()
    name, rule = "Armijo", f"decrease c1 = {numbers.c1:g}"
    if spec.line_search == "strong_wolfe":
        name, rule = "strong Wolfe", f"{rule}, slope c2 = {numbers.c2:g}"
    noise = f"forgives {spec.noise:g} of the loss" if spec.noise else "forgives nothing"
    return [f"{name}: {rule}; tries step 1 first, at most {numbers.most_trials} steps a search; {noise}"]


def _history(spec: SandblasterSpec) -> list[str]:
    damping = spec.own_damping
    kept = (
        f"damped below {damping:g} of the curvature believed in" if damping else "left out where there is no curvature"
    )
    return [f"{count(spec.history)} pair{ending(spec.history)}; a pair is {kept}"]


def _ends(recipe: Recipe, spec: SandblasterSpec) -> list[str]:
    tests = [f"where the gradient's norm is within {spec.tolerance_gradient:g}"] if spec.tolerance_gradient else []
    tests += [f"where a step is within {spec.tolerance_step:g} of the weights"] if spec.tolerance_step else []
    return [", or ".join([*tests, "where nothing gets better", f"with the budget of {count(recipe.epochs)}"])]


def _traffic(spec: SandblasterSpec, facts: ModelFacts, order: Order) -> list[str]:
    size, units = _vector_bytes(facts), -(-order.steps_per_epoch // spec.unit)
    what = "weights and statistics" if facts.batch_norms else "weights"
    text = f"an evaluation: {rough(size)} of {what} to each replica once, {rough(size)} of sums from each unit"
    text += f", 1/{spec.shards} of it with each shard" if spec.shards > 1 else ""
    text += f"; {rough(_evaluation_bytes(spec, facts, order))} in all"
    copies = spec.backups and spec.replicas > 1
    return [f"{text}, and what copies push" if copies and units > 1 else text]


def _shards(spec: SandblasterSpec, facts: ModelFacts) -> list[str]:
    held = f"{count(2 * spec.history + _BESIDE_HISTORY)} vectors (2 a pair + {_BESIDE_HISTORY}) + sums in float64"
    return [f"{each_of(facts, spec.shards)}; {held} {rough(_held(spec, facts))} over all"]


def _decay(recipe: Recipe, facts: ModelFacts) -> list[str]:
    (text,) = rows.decay(recipe, facts, "to the function: decay / 2 x their squares")
    return [text]


def _checkpoint(recipe: Recipe, spec: SandblasterSpec, facts: ModelFacts) -> list[str]:
    table = recipe.checkpoint
    duration = table.rule().duration
    when = "when the run is asked to stop" if table.every == NEVER else f"every {table.every}"
    if duration.unit != "second":
        when = "every iteration" if duration.amount <= 1 else f"every {duration.amount:g} iterations"
    pairs = f"the history's pairs {rough(_history_bytes(spec, facts))}"
    return [f"{when}, {table.keep} kept: point and gradient {rough(_point_bytes(facts))} each on disk; {pairs}"]


def _vector_bytes(facts: ModelFacts) -> int:
    return elements(facts) * FLOAT_BYTES


def _evaluation_bytes(spec: SandblasterSpec, facts: ModelFacts, order: Order) -> int:
    units = -(-order.steps_per_epoch // spec.unit)
    return (min(spec.replicas, units) + units) * _vector_bytes(facts)


def _held(spec: SandblasterSpec, facts: ModelFacts) -> int:
    """Bytes of all shards' vectors, sums, and two sets of buffers."""
    parameters = (elements(facts) - facts.buffers) * FLOAT_BYTES
    sums = elements(facts) * _SUM_BYTES
    return (2 * spec.history + _BESIDE_HISTORY) * parameters + sums + 2 * facts.buffers * FLOAT_BYTES


def _point_bytes(facts: ModelFacts) -> int:
    """Bytes of the point, its gradient and the buffers."""
    return (2 * (elements(facts) - facts.buffers) + facts.buffers) * FLOAT_BYTES


def _history_bytes(spec: SandblasterSpec, facts: ModelFacts) -> int:
    return 2 * spec.history * (elements(facts) - facts.buffers) * FLOAT_BYTES
