"""The lines of an explanation, one function a topic: from a recipe and its order to text.

Each returns the lines below one label. Numbers come from `Order`, `Rate` and `Traffic`; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from squall.checkpoint.spec import NEVER
from squall.data.order import Order, worker_sizes
from squall.explain.facts import ModelFacts
from squall.explain.traffic import Traffic
from squall.optim.lr import Segment
from squall.recipe import Recipe
from squall.units import count, megabytes

FLOAT_BYTES = 4
"""Weights, gradients and their sums are float32, whatever the precision of products is."""

_TWO_MOMENTS = ("adam", "adamw", "lamb")
_STEP_WIDTH = 6


def minibatch(recipe: Recipe, facts: ModelFacts) -> list[str]:
    """k x n = kn, and what is divided by what."""
    total = recipe.update_size
    sizes = worker_sizes(total, recipe.worker_batch_size)
    product = f"{count(len(sizes))} virtual worker{ending(len(sizes))} x {_between(sizes)} images = {count(total)}"
    mean = f"loss = sum over {count(total)} / {count(total)}"
    if recipe.loss_over == "worker":
        mean = f"loss = mean over {count(len(sizes))} workers, by their samples"
    norm = f"; normalisation over {_between(sizes)}" if facts.batch_norms else ""
    return [f"{product:<51}{mean}{norm}"]


def epoch(recipe: Recipe, order: Order) -> list[str]:
    """Steps of an epoch and of the run."""
    full, rest = divmod(order.num_samples, order.global_batch_size)
    line = f"{count(order.num_samples)} images = {count(full)} step{ending(full)} of {count(order.global_batch_size)}"
    if rest and recipe.last_batch == "short":
        sizes = worker_sizes(rest, order.worker_batch_size)
        line += f" + one of {count(rest)}"
        if recipe.global_batch_size is not None:
            line += f" ({len(sizes)} worker{ending(len(sizes))} of {_between(sizes)})"
    elif rest and recipe.last_batch == "drop":
        line += f"; {count(rest)} others left out"
    elif rest:
        line += f"; {count(rest)} carried into the next"
    return [f"{line}; {count(order.num_steps)} step{ending(order.num_steps)} in all"]


def rate(recipe: Recipe, segments: tuple[Segment, ...]) -> list[str]:
    """The scaling and the course of the rate."""
    lr, total = recipe.lr, recipe.update_size
    peak, size = lr.rate().peak(total), lr.base_batch_size
    if lr.scaling == "none":
        head = f"{_rate(lr.base)}, not scaled with the minibatch"
    elif size == total:
        head = f"{_rate(lr.base)} at {size}, no scaling needed"
    elif lr.scaling == "sqrt":
        head = f"{_rate(lr.base)} at {size}, square root:  {_rate(lr.base)} x sqrt({total} / {size}) = {_rate(peak)}"
    else:
        head = f"{_rate(lr.base)} at {size}, linear:  {_rate(lr.base)} x {total} / {size} = {_rate(peak)}"
    spans = [_span(segment) for segment in segments]
    width = max(10, *(len(span) for span in spans))
    steps = max([_STEP_WIDTH, *(len(count(segment.last_step)) for segment in segments)])
    lines = [head]
    for segment, span in zip(segments, spans, strict=True):
        more = segment.what
        if segment.increment is not None:
            more += f", +{segment.increment:.3g} a step"
        first, last = count(segment.first_step), count(segment.last_step)
        lines.append(f"step{first:>{steps}} .. {last:>{steps}}   {span:<{width}}   {more}".rstrip())
    return lines


def decay(recipe: Recipe, facts: ModelFacts, when: str = "after the reduction") -> list[str]:
    """Which tensors are decayed, and when."""
    amount = recipe.optimizer.weight_decay
    if not facts.decayed:
        return ["none"]
    text = (
        f"{_decay(amount)} on {_total(facts.decayed)} tensor{ending(_total(facts.decayed))} ({_kinds(facts.decayed)})"
    )
    if any(group.get("weight_decay") not in (None, amount) for group in recipe.optimizer.groups):
        text = text.replace(" on ", " (groups: their own) on ", 1)
    if facts.undecayed:
        only = list(facts.undecayed) == ["normalisation"]
        without = "of normalisation" if only else f"({_kinds(facts.undecayed)})"
        text += f"; none on {_total(facts.undecayed)} {without}"
    return [f"{text}; added {when}"]


def network(facts: ModelFacts, processes: int, moved: Traffic) -> list[str]:
    """Parameters and bytes of a step."""
    gradient = facts.num_trainable * FLOAT_BYTES
    frozen = facts.num_parameters - facts.num_trainable
    text = f"{count(facts.num_parameters)} parameters"
    text += f" ({count(frozen)} frozen)" if frozen else ""
    text += f" = {megabytes(gradient)} of gradient a step"
    if processes == 1:
        return [f"{text}; one process sends nothing"]
    most = megabytes(max(moved.sent, moved.received) * gradient)
    return [f"{text}; each of {processes} processes sends and receives {'' if moved.even else 'at most '}{most}"]


def memory(recipe: Recipe, facts: ModelFacts, moved: Traffic, last: Traffic) -> list[str]:
    """Bytes held by a process beside its activations; `last` is the run's last, perhaps smaller step."""
    gradient, states = facts.num_trainable * FLOAT_BYTES, num_states(recipe)
    words = ["weights", "gradient", *state_words(recipe)]
    held = facts.num_parameters * FLOAT_BYTES + gradient * (1 + states)
    text = f"{' + '.join(words)} {rough(held)} a process"
    if recipe.compute.reduction == "exact":
        number, staging = max(moved.partial_sums, last.partial_sums), max(moved.staging, last.staging)
        extra = [f"{number} partial sum{ending(number)}"] if number else []
        extra += [f"{staging:.3g} received"] if staging else []
        when = " in an epoch's last step" if staging > moved.staging else ""
        more = f"+ {' + '.join(extra)}{when} = {rough((number + staging) * gradient)}"
        text += f"; exact: {more if extra else 'nothing more'}"
    return [text]


def checkpoint(recipe: Recipe, facts: ModelFacts) -> list[str]:
    """When the state is saved, how large it is on disk and while it is written."""
    spec = recipe.checkpoint
    size = megabytes(checkpoint_bytes(recipe, facts))
    words = " + ".join(["weights", *state_words(recipe)])
    when = "when the run is asked to stop" if spec.every == NEVER else f"every {spec.every}"
    kept = f"{spec.keep} kept" + (f", and the best by {spec.keep_best}" if spec.keep_best else "")
    return [f"{when}, {kept}: {words} {size} each on disk; once as much in memory, over all processes"]


def checkpoint_bytes(recipe: Recipe, facts: ModelFacts) -> int:
    """Bytes of a checkpoint's tensors, without buffers and the ledger."""
    return FLOAT_BYTES * (facts.num_parameters + facts.num_trainable * num_states(recipe))


def num_states(recipe: Recipe) -> int:
    """Vectors that the optimizer and the average of weights keep beside the weights."""
    return sum(2 if word == "two moments" else 1 for word in state_words(recipe))


def state_words(recipe: Recipe) -> list[str]:
    """What the optimizer and the average of weights keep beside the weights, in words."""
    name, words = recipe.optimizer.name, []
    if name in _TWO_MOMENTS:
        words.append("two moments")
    elif name in ("adagrad", "rmsprop"):
        words.append("squares")
    if recipe.optimizer.momentum:
        words.append("momentum")
    return words + ["average"] * (recipe.ema is not None)


def hosting(recipe: Recipe) -> list[str]:
    """Which numbers of processes can host the virtual workers, and how many each gets."""
    workers, fuse = recipe.virtual_workers, recipe.compute.fuse
    passes = -(-workers // fuse)
    sizes = [2**power for power in range(passes.bit_length()) if 2**power < passes] + [passes]
    cells = ["-".join(map(str, _hosted(workers, fuse, processes))) for processes in sizes]
    width = max(3, *(len(cell) for cell in (*cells, *map(str, sizes))))
    first = f"processes{sizes[0]:>{width}}", f"workers  {cells[0]:>{width}}"
    lines = [
        first[0] + "".join(f"{size:>{width + 2}}" for size in sizes[1:]),
        first[1] + "".join(f"{cell:>{width + 2}}" for cell in cells[1:]) + "   each",
    ]
    uneven = [size for size in range(2, passes) if size not in sizes and len(_hosted(workers, fuse, size)) > 1]
    if uneven:
        example = 24 if 24 in uneven else uneven[len(uneven) // 2]
        each = " or ".join(map(str, _hosted(workers, fuse, example)))
        limit = f" up to {passes}" if fuse > 1 else ""
        lines[1] += f"; any other number{limit} works too ({example}: {each} each)"
    return lines


def _hosted(workers: int, fuse: int, processes: int) -> list[int]:
    """The numbers of virtual workers that a process may get, rising."""
    passes = -(-workers // fuse)
    cuts = [min(workers, fuse * (rank * passes // processes)) for rank in range(processes + 1)]
    return sorted({stop - start for start, stop in pairwise(cuts)})


def _span(segment: Segment) -> str:
    if segment.from_rate == segment.to_rate:
        return _rate(segment.from_rate)
    return f"{_rate(segment.from_rate)} -> {_rate(segment.to_rate)}"


def _rate(value: float) -> str:
    return f"{value:.4g}"


def _decay(value: float) -> str:
    short = f"{value:.0e}".replace("e-0", "e-")
    return short if value < 0.001 and float(short) == value else f"{value:g}"


def _between(sizes: tuple[int, ...]) -> str:
    low, high = min(sizes), max(sizes)
    return count(low) if low == high else f"{count(low)} or {count(high)}"


def ending(number: int) -> str:
    """The s of a plural."""
    return "" if number == 1 else "s"


def _total(kinds: Mapping[str, int]) -> int:
    return sum(kinds.values())


def _kinds(kinds: Mapping[str, int]) -> str:
    """Kinds with their numbers: "53 convolutions, the last layer's weight and bias"."""
    left = dict(kinds)
    parts = []
    if left.get("convolution"):
        number = left.pop("convolution")
        parts.append(f"{number} convolution{ending(number)}")
    if left.get("linear weight") == 1 and left.get("linear bias", 1) == 1:
        bias = left.pop("linear bias", None)
        del left["linear weight"]
        parts.append(f"the last layer's weight{' and bias' if bias else ''}")
    for kind, number in left.items():
        plural = kind if kind == "normalisation" else kind + ("es" if kind.endswith("s") else "s") * (number > 1)
        parts.append(f"{number} {'of ' if kind == 'normalisation' else ''}{plural}")
    return ", ".join(parts)


def rough(num_bytes: float) -> str:
    """Bytes without digits that nobody needs: 307 MB, 1.2 MB, 3.4 GB; 19.5 kB."""
    if 0 < num_bytes < 1e5:
        return f"{num_bytes / 1e3:.1f} kB"
    return f"{num_bytes / 1e6:.0f} MB" if 10e6 <= num_bytes < 1e9 else megabytes(num_bytes)
