"""The learning rate: a pure function of the epochs done, never an object that is stepped or restored.

Schedulers with a counter inside go wrong in three ways: each of P processes steps them, a restart begins them anew, and
a restored one drives an optimiser that is gone. Here nothing is kept: whoever asks says how far the run is. The rule is
that of Goyal et al. 2017 (sections 2.1, 2.2 and 5.1), with eta = `base`, kn = `global_batch_size`, 256 =
`base_batch_size`::

    peak = base * kn / 256

    rate   peak |      ._______
                |    ./        |
                |  ./          |__________
                | /                       |_____
           base |/                                      warm-up lies inside the budget of epochs,
                +------+-------+----------+-----> epochs    drops stay at absolute epochs
                0  warmup_epochs  milestones

The ramp starts from `base` whatever kn is, and is left out when the peak is not above its start (kn <= 256). A rate
without a `base_batch_size` is the peak itself; its ramp starts from 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from squall.errors import InputError, Mistakes, nearest

Scaling = Literal["linear", "sqrt", "none"]
Schedule = Literal["constant", "step", "cosine"]
Warmup = Literal["gradual", "constant", "none"]

# Progress is a sum of fractions: an epoch's boundary counts as reached within this many epochs (no step is so short).
_REACHED = 1e-9


class Steps(Protocol):
    """What `Rate.describe` needs to know of a run; `squall.data.order.Order` is one."""

    @property
    def global_batch_size(self) -> int:
        """Samples an update, kn."""

    @property
    def epochs(self) -> int:
        """Passes over the training set."""

    @property
    def num_steps(self) -> int:
        """Updates in the run."""

    def progress(self, index: int) -> float:
        """Epochs done before update `index`."""


@dataclass(frozen=True)
class Segment:
    """A stretch of steps under one law.

    Attributes:
        first_step: its first update.
        last_step: the update that no longer belongs to it: the next segment's first, or the number of steps.
        from_rate: the rate of `first_step`.
        to_rate: what the law reaches at `last_step`; equal to `from_rate` where the rate is constant.
        what: "gradual warm-up, 5 epochs", "epoch 30", "cosine to 0", or "" for the plain peak.
        increment: what each step of a ramp adds; None elsewhere.
    """

    first_step: int
    last_step: int
    from_rate: float
    to_rate: float
    what: str
    increment: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate of a run as a value: `at` gives the rate for the epochs done.

    Arguments:
        base: the rate at `base_batch_size`.
        base_batch_size: samples an update that `base` was chosen for; None: the run's own, so that nothing is scaled.
        scaling: "linear" (Goyal), "sqrt" or "none": how the peak grows with the global batch size.
        schedule: "constant", "step" (times `gamma` at each milestone) or "cosine" (from the end of the warm-up).
        milestones: epochs of the drops, absolute, rising.
        gamma: factor of each drop.
        final: the rate at which the cosine ends.
        warmup: "gradual" (equal increments every step), "constant" (the start's rate, then a jump) or "none".
        warmup_epochs: length of the warm-up, inside the run's epochs.
        warmup_from: where it starts: a rate, or "base". Without a `base_batch_size` base and peak are one number,
            from which no ramp could rise: "base" then means 0.

    Raises:
        InputError: lists every value that breaks a rule.

    Example (ImageNet at 8,192, `progress` in epochs):
        >>> rate = Rate(base=0.1, base_batch_size=256, schedule="step", milestones=(30, 60, 80), warmup_epochs=5)
        >>> [round(rate.at(e, global_batch_size=8192, epochs=90), 4) for e in (0, 1, 5, 30, 89.9)]
        [0.1, 0.72, 3.2, 0.32, 0.0032]

    Source: Goyal et al. 2017, sections 2.1, 2.2, 5.1; cosine: Loshchilov and Hutter 2016, equation 5, one period.
    """

    base: float
    base_batch_size: int | None = None
    scaling: Scaling = "linear"
    schedule: Schedule = "constant"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    final: float = 0.0
    warmup: Warmup = "gradual"
    warmup_epochs: float = 0.0
    warmup_from: float | Literal["base"] = "base"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        mistakes = Mistakes("the learning rate")
        for found, rule in self._mistakes():
            mistakes.add(found, rule)
        mistakes.raise_if_any()

    def peak(self, global_batch_size: int) -> float:
        """The scaled rate at which the warm-up ends: base * kn / base_batch_size with linear scaling."""
        factor = global_batch_size / (self.base_batch_size or global_batch_size)
        if self.scaling == "none":
            return self.base
        return self.base * (math.sqrt(factor) if self.scaling == "sqrt" else factor)

    def warmup_start(self) -> float:
        """The rate of the very first step of a warm-up."""
        if self.warmup_from == "base":
            return 0.0 if self.base_batch_size is None else self.base
        return self.warmup_from

    def warmup_length(self, global_batch_size: int) -> float:
        """Epochs of warm-up; 0 where there is none, or where the peak is not above its start."""
        if self.warmup == "none" or self.peak(global_batch_size) <= self.warmup_start():
            return 0.0
        return self.warmup_epochs

    def at(self, progress: float, *, global_batch_size: int, epochs: float) -> float:
        """The rate of the update that starts after `progress` epochs.

        Arguments:
            progress: epochs done, with equal steps inside an epoch (`squall.data.order.Order.progress`).
            global_batch_size: samples an update, kn.
            epochs: length of the run, where the cosine ends. Past it the last value stays.

        Raises:
            InputError: `progress` lies before the run.
        """
        if not progress >= 0:
            raise InputError("a learning rate was asked for before the run", [("found", f"progress = {progress}")])
        peak, start = self.peak(global_batch_size), self.warmup_start()
        length = self.warmup_length(global_batch_size)
        if progress < length - _REACHED:
            return start if self.warmup == "constant" else start + (peak - start) * (progress / length)
        if self.schedule == "step":
            return peak * self.gamma ** sum(milestone <= progress + _REACHED for milestone in self.milestones)
        if self.schedule == "cosine" and epochs > length:
            share = min((progress - length) / (epochs - length), 1.0)
            return self.final + (peak - self.final) * 0.5 * (1 + math.cos(math.pi * max(share, 0.0)))
        return peak

    def at_step(self, steps: Steps, index: int) -> float:
        """The rate of update `index` of a run."""
        return self.at(steps.progress(index), global_batch_size=steps.global_batch_size, epochs=steps.epochs)

    def describe(self, steps: Steps) -> tuple[Segment, ...]:
        """The run's rate as consecutive segments, first to last, without gaps.

        Arguments:
            steps: the run, an `Order` for instance.
        """
        batch, epochs, num_steps = steps.global_batch_size, steps.epochs, steps.num_steps
        starts = [(_first_step(steps, epoch), epoch, what) for epoch, what in self._laws(batch)]
        starts = [start for start in starts if start[0] < num_steps]
        ends = [first for first, _, _ in starts[1:]] + [num_steps]
        segments = []
        for (first, epoch, what), last in zip(starts, ends, strict=True):
            if first == last:  # two laws begin within one step: the later one holds
                continue
            before = self.at(steps.progress(first), global_batch_size=batch, epochs=epochs)
            after, increment = before, None
            ramp = self.warmup == "gradual" and epoch < self.warmup_length(batch)
            if ramp or what.startswith("cosine"):
                after = self.at(steps.progress(last), global_batch_size=batch, epochs=epochs)
            if ramp:
                span = self.peak(batch) - self.warmup_start()
                increment = span * (steps.progress(1) - steps.progress(0)) / self.warmup_epochs
                if last < num_steps:  # a schedule may leave the peak at once, the ramp still reaches it
                    after = self.peak(batch)
            segments.append(Segment(first, last, before, after, what, increment))
        return tuple(segments)

    def _laws(self, global_batch_size: int) -> Iterator[tuple[float, str]]:
        """(first epoch, name) of every law, in order of time."""
        length = self.warmup_length(global_batch_size)
        if length:
            plural = "" if self.warmup_epochs == 1 else "s"
            yield 0.0, f"{self.warmup} warm-up, {self.warmup_epochs:g} epoch{plural}"
        yield length, f"cosine to {self.final:g}" if self.schedule == "cosine" else ""
        if self.schedule == "step":
            yield from ((milestone, f"epoch {milestone:g}") for milestone in self.milestones)

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        for field, valid in (("scaling", Scaling), ("schedule", Schedule), ("warmup", Warmup)):
            value = getattr(self, field)
            if value not in get_args(valid):
                near = nearest(str(value), get_args(valid), most=1)
                yield f"{field}={value}", f"not known. One of: {' '.join(get_args(valid))}" + _near(near)
        if not _number(self.base) or self.base <= 0:
            yield f"base={self.base}", "the learning rate is a number above 0"
        if self.base_batch_size is not None and (not _number(self.base_batch_size) or self.base_batch_size < 1):
            yield f"base_batch_size={self.base_batch_size}", "samples an update that base was chosen for: 1 or more"
        if not _number(self.gamma) or self.gamma <= 0:
            yield f"gamma={self.gamma}", "the factor of each drop is a number above 0"
        for field in ("final", "warmup_epochs"):
            value = getattr(self, field)
            if not _number(value) or value < 0:
                yield f"{field}={value}", "a number, 0 or more"
        if self.warmup_from != "base" and (not _number(self.warmup_from) or self.warmup_from < 0):
            yield f"warmup_from={self.warmup_from}", 'a rate, 0 or more, or "base"'
        elif self.warmup == "constant" and self.warmup_epochs and self.warmup_start() == 0:
            yield f"warmup_from={self.warmup_from}", "a constant warm-up at rate 0 trains nothing: give a rate above 0"
        yield from self._milestone_mistakes()

    def _milestone_mistakes(self) -> Iterator[tuple[str, str]]:
        found = f"milestones={list(self.milestones)}"
        if self.schedule == "step" and not self.milestones:
            yield found, 'schedule="step" needs the epochs of its drops, such as [30, 60, 80]'
        if self.schedule != "step" and self.milestones:
            yield found, f'only schedule="step" has milestones; found schedule="{self.schedule}"'
        numbers = all(_number(milestone) and milestone > 0 for milestone in self.milestones)
        if not numbers or list(self.milestones) != sorted(set(self.milestones)):
            yield found, "epochs above 0, rising"
        elif self.milestones and self._warmup_spec() > self.milestones[0]:
            yield found, f"the first drop lies inside the warm-up of {self.warmup_epochs:g} epochs"

    def _warmup_spec(self) -> float:
        """Epochs of warm-up as given, whatever the batch size; 0 where the value is no number."""
        return self.warmup_epochs if self.warmup != "none" and _number(self.warmup_epochs) else 0.0


def lr(**fields: Any) -> Rate:
    """A `Rate` for one's own loop; `schedule` is "step" where milestones are given.

    Arguments:
        fields: those of `Rate`.

    Raises:
        InputError: no `base`, an unknown field, or a value that breaks a rule.

    Example:
        >>> lr(base=0.1, base_batch_size=256, warmup_epochs=5, milestones=[30, 60, 80]).schedule
        'step'
    """
    names = list(inspect.signature(Rate).parameters)
    mistakes = Mistakes("squall.lr", hint=f"all fields: {' '.join(names)}")
    if "base" not in fields:
        mistakes.add("base", "no learning rate: it has no default. Write base=0.1, say")
    for name in fields:
        if name not in names:
            mistakes.add(f"{name}={fields[name]}", "no such field." + _near(nearest(name, names)))
    mistakes.raise_if_any()
    return Rate(**{"schedule": "step" if fields.get("milestones") else "constant"} | fields)


def _first_step(steps: Steps, epoch: float) -> int:
    """The first update that starts at `epoch` or later, by bisection; the number of steps if none does."""
    low, high = 0, steps.num_steps
    while low < high:
        middle = (low + high) // 2
        if steps.progress(middle) >= epoch - _REACHED:
            high = middle
        else:
            low = middle + 1
    return low


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _near(names: list[str]) -> str:
    return f" Near: {', '.join(names)}" if names else ""
