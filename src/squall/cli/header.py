"""The first lines of a training: where it runs, with which arithmetic, on what; where minibatch and rate come from.

Pure: from the resolved recipe, a few words on the task and the run's first record to lines of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from squall.cli import iterations, replicas
from squall.cli.sizes import order_of
from squall.cli.wording import hosted
from squall.data.order import Order, worker_sizes
from squall.recipe import Recipe
from squall.records import Started
from squall.units import count

if TYPE_CHECKING:
    from squall.task import Task

_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "tf32": "tf32"}


@dataclass(frozen=True)
class Words:
    """What the lines call things.

    Attributes:
        data: "1,437 train + 360 test images of 8x8, 10 classes (inside the package)".
        model: "resnet8".
        unit: what samples are called: "images" or "samples".
    """

    data: str
    model: str
    unit: str


def words(task: Task, recipe: Recipe, where: str, *, own: bool) -> Words:
    """Looks at a task's data sets.

    Arguments:
        where: the folder of the set, or another word on its origin.
        own: the task came from the user's file, not from the recipe.
    """
    splits = (("train", task.train), ("validation", task.val), ("test", task.test))
    sizes = " + ".join(f"{count(len(data))} {name}" for name, data in splits if data is not None)
    base = _whole(task.train)
    classes, images = getattr(base, "classes", None), getattr(base, "images", None)
    known = not own and classes is not None
    unit = "images" if known else "samples"
    text = f"{sizes} {unit}"
    if known and images is not None:
        text += f" of {images.shape[1]}x{images.shape[2]}"
    if known and classes is not None:
        text += f", {len(classes)} classes ({where})"
    else:
        text += f" ({type(base).__name__ if own else where})"
    model = f"of {where}" if own or recipe.model is None else recipe.model.name
    return Words(text, model, unit)


def header(recipe: Recipe, about: Words, started: Started, version: str) -> list[str]:
    """The lines, without the empty one that follows."""
    rows = {
        "data": about.data,
        "model": f"{about.model}, {count(started.num_parameters)} parameters{_start(recipe)}",
    }
    if recipe.strategy == "sandblaster":
        rows |= iterations.rows(recipe, started, about.unit) | replicas.clock(recipe, started)
    else:
        rows["minibatch"] = minibatch(recipe, order_of(recipe, started.num_samples), about.unit)
        if recipe.strategy == "downpour":
            rows |= replicas.rows(recipe, started) | replicas.clock(recipe, started)
        rows["rate"] = rate(recipe)
    if started.folder:
        rows["run"] = started.folder
    return [first_line(started, recipe, version), *(f"{label:<9}  {text}" for label, text in rows.items())]


def first_line(started: Started, recipe: Recipe, version: str) -> str:
    """Versions, processor, processes, and everything of the arithmetic that is on."""
    fingerprint, compute = started.fingerprint, recipe.compute
    torch, device = str(fingerprint["torch"]).split("+")[0], str(fingerprint["device"])
    if fingerprint["instruction_set"]:
        device += f" ({str(fingerprint['instruction_set']).lower()})"
    where, threads = f"{started.processes} process{'' if started.processes == 1 else 'es'}", fingerprint["threads"]
    if threads:
        where += f" x {threads} thread{'' if threads == 1 else 's'}"
    if recipe.roles is not None:
        where = hosted(started, threads)
    parts = [where, _PRECISIONS[compute.precision]]
    parts += ["channels-last"] * compute.channels_last + ["compiled"] * compute.compile
    parts += [f"{compute.fuse} workers a pass"] * (compute.fuse > 1)
    parts += [f"{compute.reduction} reduction"] * (recipe.strategy == "sync")
    return f"squall {version}, torch {torch}, {device}: {', '.join(parts)}"


def _start(recipe: Recipe) -> str:
    """Where the first weights come from, and which do not."""
    model = recipe.model
    if model is None or model.weights is None:
        return ""
    own = f", but {' '.join(model.weights_skip)} as made (weights_skip)" if model.weights_skip else ""
    return f"; weights of {model.weights}{own}"


def minibatch(recipe: Recipe, order: Order, unit: str) -> str:
    """ "128 = 8 virtual workers x 16; 12 steps an epoch (the last: 29 images), 360 in all"; with replicas
    "32 of one replica, each an update of its own; 1,875 steps an epoch, 18,750 in all"."""
    sizes = worker_sizes(recipe.update_size, recipe.worker_batch_size)
    each = str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[-1]} or {sizes[0]}"
    whose = f"= {count(len(sizes))} virtual worker{'' if len(sizes) == 1 else 's'} x {each}"
    if recipe.global_batch_size is None:
        sums = recipe.downpour.push_every if recipe.downpour is not None else 1
        whose = "of one replica, " + ("each an update of its own" if sums == 1 else f"the sum of {sums} an update")
    steps = order.steps_per_epoch
    text = f"{count(recipe.update_size)} {whose}; {count(steps)} step{'' if steps == 1 else 's'} an epoch"
    rest = order.num_samples % order.global_batch_size
    if rest:
        fate = {"short": f"the last: {count(rest)} {unit}", "drop": f"{count(rest)} {unit} left out"}
        text += f" ({fate.get(recipe.last_batch, f'{count(rest)} {unit} carried into the next')})"
    return f"{text}, {count(order.num_steps)} in all"


def rate(recipe: Recipe) -> str:
    """ "0.1 = 0.1 at 128, no scaling needed; no warm-up; cosine to 0 over 30 epochs"."""
    lr, total = recipe.lr, recipe.update_size
    value = lr.rate()
    size = lr.base_batch_size or total
    if value.scaling == "none":
        text = f"{lr.base:g}, not scaled"
    elif size == total:
        text = f"{value.peak(total):g} = {lr.base:g} at {count(size)}, no scaling needed"
    else:
        factor = f"{total} / {size}" if value.scaling == "linear" else f"sqrt({total} / {size})"
        name = "linear" if value.scaling == "linear" else "square root"
        text = f"{value.peak(total):.4g} = {lr.base:g} at {count(size)}, {name}: {lr.base:g} x {factor}"
    length = value.warmup_length(total)
    warmup = f"{value.warmup} warm-up from {value.warmup_start():g} in {_epochs(length)}" if length else "no warm-up"
    return f"{text}; {warmup}; {_course(value, recipe.epochs)}"


def _course(value: Any, epochs: int) -> str:
    if value.schedule == "cosine":
        return f"cosine to {value.final:g} over {_epochs(epochs)}"
    if value.schedule == "step":
        at = ", ".join(f"{milestone:g}" for milestone in value.milestones)
        return f"x {value.gamma:g} after {at} of {_epochs(epochs)}"
    return f"constant over {_epochs(epochs)}"


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


def _whole(data: Any) -> Any:
    """The set that a subset is taken from."""
    while hasattr(data, "ids") and hasattr(data, "data"):
        data = data.data
    return data
