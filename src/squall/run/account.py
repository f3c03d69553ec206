"""What a run says of itself: when it begins, and how it ended."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from squall.cluster.lifeline import has_launcher
from squall.data.order import Order
from squall.errors import DivergedError
from squall.records import Ended, SessionBegan, Started
from squall.run import arithmetic
from squall.run.fingerprint import digest
from squall.run.result import Outcome, Result, cause
from squall.run.spec import RunSpec
from squall.version import own_version

if TYPE_CHECKING:
    from torch import nn

    from squall.run.run import Run
    from squall.run.steps import Step


def started(run: Run, order: Order, model: nn.Module, start_step: int = 0) -> Started:
    """The first record; `start_step` is where this session begins."""
    spec = run.spec
    return Started(
        name=run.name,
        folder=str(run.path) if run.path else "",
        processes=run.world.size,
        seed=spec.seed,
        fingerprint=run.fingerprint,
        num_steps=order.num_steps,
        steps_per_epoch=order.steps_per_epoch,
        epochs=spec.epochs,
        global_batch_size=spec.global_batch_size,
        worker_batch_size=spec.worker_batch_size,
        num_samples=order.num_samples,
        num_parameters=sum(p.numel() for p in model.parameters()),
        start_step=start_step,
    )


def session_began(run: Run, start_step: int) -> SessionBegan:
    """The first record of these processes."""
    return SessionBegan(
        time=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        processes=run.world.size,
        start_step=start_step,
        fingerprint=run.fingerprint,
        version=own_version(),
        launched=has_launcher(),
    )


def result(run: Run, outcome: Outcome, advice: str, values: Mapping[str, Any]) -> Result:
    """The result of a run that came to one; `values` joins what result.json holds."""
    found = {**_facts(run, outcome), **run.book.headline(), **values}
    last = run.book.epochs[-1] if run.book.epochs else None
    averages = {split: getattr(last, split) for split in ("train", "val", "test")} if last else {}
    return Result(outcome, advice, run.path, found, **averages)


def broken_off(run: Run, error: BaseException | None, step: Step | None) -> Ended:
    """The last record of a run that came to none: no accuracy, no weights, but what ended it in which step."""
    outcome, headline, advice = cause(error)
    found = {**_facts(run, outcome), "error": headline, f"{outcome}_at_step": step.index if step else 0}
    if outcome == "diverged" and step is not None:
        found["diverged_at_rate"] = step.lr
    seconds = run.book.seconds
    return Ended(outcome, advice, seconds, {**found, "seconds": seconds})


def diverged(step: Step, loss: float) -> DivergedError:
    """The error of a loss that is not finite."""
    return DivergedError(
        f"the run diverged: the loss is {loss} in step {step.index}, epoch {step.epoch + 1}",
        [
            ("rate", "unknown" if step.lr is None else f"{step.lr:.6g}"),
            ("to try", "a smaller rate (lr.base), a longer warm-up (lr.warmup_epochs), or clip_grad_norm=1.0"),
        ],
    )


class AtExit:
    """Closes a run that is open when the process ends, as after an exception in a loop of the user's own."""

    def __init__(self, run: Run) -> None:
        self._run = weakref.ref(run)  # the interpreter's list must not keep a model alive
        self._process = os.getpid()  # a child forked by the user's code is not the run

    def __call__(self) -> None:
        """The interpreter has printed the exception that ended it, and keeps it here."""
        run = self._run()
        if run is not None and os.getpid() == self._process:
            run.close(getattr(sys, "last_value", None))


def _facts(run: Run, outcome: Outcome) -> dict[str, Any]:
    return {
        "processes": run.world.size,
        "global_batch_size": run.spec.global_batch_size,
        **facts(run.name, outcome, run.spec, run.steps_done, run.fingerprint),
    }


def facts(name: str, outcome: Outcome, spec: RunSpec, steps: int, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What every result says, however the run was trained."""
    return {
        "name": name,
        "outcome": outcome,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "worker_batch_size": spec.worker_batch_size,
        "steps": steps,
        "fingerprint": dict(fingerprint),
        "fingerprint_sha256": digest(dict(fingerprint)),
        **arithmetic.versions(),
    }
