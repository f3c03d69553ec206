"""`squall.Run`: lock-step training of one model, driven by whoever writes the loop.

Its calls, in order: `Run(...)` seeds and joins the job, `setup` places model and optimiser, `steps` yields one update
after the other, `evaluate` measures, `log` records, `finish` closes the ledger and writes the result. Squall's own
loop (`squall.loop.minibatch`) is nothing but a client of these calls.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from squall.cluster.world import World, join
from squall.data.order import Draw
from squall.errors import DivergedError, RunError
from squall.metrics import Loss, Metrics
from squall.model import weights
from squall.model.ghostnorm import refuse_synchronised
from squall.optim.ema import Ema
from squall.optim.groups import set_rate
from squall.optim.lr import Rate
from squall.records import Ended, Sink
from squall.rng import Stream, mix
from squall.run import account, arithmetic, evaluate, folder, precision, tensorboard
from squall.run.book import Book
from squall.run.collect import differing
from squall.run.fingerprint import agree, fingerprint
from squall.run.guards import check_gradients, check_left, check_open, check_updates
from squall.run.placing import check_optimizer, check_parameters, check_same_data, same_everywhere
from squall.run.result import Outcome, Result
from squall.run.spec import RunSpec
from squall.run.stepper import Stepper, finisher
from squall.run.steps import Step

Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


class Run:
    """One run of synchronous training.

    Arguments:
        out: the run folder (None: nothing is written).
        world: the job's processes; by default whatever torchrun or SLURM started, or this process alone.
        sinks: called with every record, on rank 0.
        name: for records and messages; by default the folder's name.
        fields: the numbers of `RunSpec`, by name: epochs, global_batch_size, worker_batch_size, seed, ...

    Raises:
        InputError: contradicting numbers, an unwritable or busy folder.

    Example:
        >>> import torch, squall
        >>> run = squall.Run(None, epochs=1, global_batch_size=8, worker_batch_size=4)
        >>> model = torch.nn.Linear(2, 1)
        >>> model, optimizer = run.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> data = [(torch.ones(2), torch.ones(1)) for _ in range(16)]
        >>> for step in run.steps(data):
        ...     for x, y in step:
        ...         step.backward((model(x) - y).square().sum())
        ...     optimizer.step()
        >>> run.finish().outcome
        'finished'
    """

    def __init__(
        self,
        out: str | Path | None,
        *,
        world: World | None = None,
        sinks: tuple[Sink, ...] = (),
        name: str | None = None,
        **fields: Any,
    ) -> None:
        self.spec = RunSpec.of(fields)
        self.world = world if world is not None else join()
        self._owns_world = world is None
        self.is_main = self.world.rank == 0
        self.path = Path(out) if out is not None else None
        self.name = name or (self.path.name if self.path else "run")
        self.book = Book(sinks if self.is_main else ())
        self.ema: Ema | None = None
        self.fingerprint: dict[str, Any] = {}
        self._folder: folder.Folder | None = None
        self._stepper: Stepper | None = None
        self._rate: Rate | None = None
        self._updates = self.steps_done = 0
        self._now: Step | None = None
        self._undo: list[Callable[[], None]] = []
        self._iteration: Iterator[Step] | None = None
        self._outcome: Outcome = "stopped"
        self.begun = self._ended = False
        self._at_exit = account.AtExit(self)
        self._settings: arithmetic.Settings | None = None
        try:
            precision.check(self.spec.precision, self.world.device)
            if self.path is not None and self.is_main:
                self._folder = folder.Folder(self.path)
            self._settings = arithmetic.enter(self.spec, self.world.device)
        except BaseException:
            self.close()
            raise
        torch.manual_seed(mix(Stream.INIT, self.spec.seed) >> 1)

    # -- set-up ------------------------------------------------------------------------------------------------

    def setup(self, model: Model, optimizer: Optimizer, lr: Rate | None = None) -> tuple[Model, Optimizer]:
        """Places model and optimiser: device, memory format, rank 0's weights everywhere, hooks.

        Arguments:
            model: any module; it stays the same object with the same parameter names.
            optimizer: over the model's parameters.
            lr: a rate to set before each update (`squall.lr`); without one, the groups' own rates stay.

        Raises:
            InputError: an optimiser of another model, lazy or complex parameters.
            RunError: ranks that compute with different arithmetic.
        """
        spec, world = self.spec, self.world
        check_parameters(model)
        check_optimizer(model, optimizer)
        refuse_synchronised(model)
        model.to(world.device)
        if spec.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        same_everywhere(world, model)
        self._stepper = Stepper(spec, world, model)
        self._undo.append(precision.wrap_forward(model, spec.precision, world.device))
        if spec.compile:
            model.compile()
        self.fingerprint = fingerprint(spec, world.device)
        agree(world, self.fingerprint, spec.reduction == "exact")
        if spec.ema is not None:
            self.ema = Ema([*model.named_parameters(), *model.named_buffers()], spec.ema)
        self._undo.append(optimizer.register_step_pre_hook(self._before_update).remove)
        self._undo.append(optimizer.register_step_post_hook(self._after_update).remove)
        self._optimizer, self._rate, self._model = optimizer, lr, model
        return model, optimizer

    # -- training ----------------------------------------------------------------------------------------------

    def steps(self, data: Any, *, collate: Callable[..., Any] | None = None, num_workers: int = 0) -> Iterator[Step]:
        """One update after the other, over all epochs; `next(run.steps(data))` is the first of them.

        Arguments:
            data: a map-style data set (`len`, `[index]`), or one of Squall's own.
            collate: joins samples into a batch; torch's default otherwise.
            num_workers: loader processes of this process; they change no result.

        Raises:
            InputError: more processes than passes; a virtual worker of one sample under batch normalisation.
            RunError: a step left early, an update forgotten.
            DivergedError: the loss is not finite any more.
        """
        stepper = self._require_setup()
        if self._iteration is not None:
            raise RunError("run.steps was called twice", [("rule", "one call goes over all epochs of the run")])
        # held here: a generator that nobody holds ends at once, and its reader, which the step needs, with it
        self._iteration = self._steps(stepper, data, collate, num_workers)
        return self._iteration

    def _steps(
        self, stepper: Stepper, data: Any, collate: Callable[..., Any] | None, num_workers: int
    ) -> Iterator[Step]:
        check_same_data(self.world, data, collate, self.spec.seed)
        order = stepper.begin(data, collate, num_workers)
        stepper.clock = self.book.clock
        stepper.clock.reset()
        self._announce(stepper)
        late: Step | None = None
        try:
            for index in range(order.num_steps):
                check_open(index, self._ended)
                plan = order.step(index)
                step = self._now = Step(stepper, plan, self._set_rate(order.progress(index)), self._diverged)
                before = self._updates
                yield step
                step.require_complete("the next step")
                check_updates(index, self._updates - before)
                if plan.ends_epoch or not stepper.late:
                    self._settle(late)
                    self._settle(step)
                    late = None
                else:
                    self._settle(late)
                    late = step
                if plan.ends_epoch:
                    self.book.end_epoch(plan.epoch, index, step.lr)
                    stepper.clock.reset()
            self._outcome = "finished"
        finally:
            stepper.close()

    # -- evaluation and records --------------------------------------------------------------------------------

    def evaluate(
        self,
        model: nn.Module,
        data: Any,
        measure: Callable[[Any, Any], torch.Tensor],
        *,
        collate: Callable[..., Any] | None = None,
        num_workers: int = 0,
        name: str = "data",
    ) -> evaluate.PerSample:
        """Measures every sample once, on all processes together.

        Arguments:
            data: a set of (input, target) pairs.
            measure: (outputs, targets) of a batch -> one value per sample.
            name: what errors call the set.

        Returns:
            The values of the whole set in its order; `.mean()` is the metric. With `ema`, of the averaged weights.
        """
        with self._averaged():
            return evaluate.per_sample(
                self.spec, self.world, model, data, measure, collate=collate, num_workers=num_workers, name=name
            )

    def averages(
        self,
        model: nn.Module,
        data: Any,
        step: Callable[[nn.Module, Any], tuple[Loss, Metrics]],
        *,
        collate: Callable[..., Any] | None = None,
        num_workers: int = 0,
        name: str = "data",
    ) -> dict[str, float]:
        """Runs a task's step over a set: the mean loss and every metric by name; errors call the set `name`."""
        with self._averaged():
            return evaluate.averages(
                self.spec, self.world, model, data, step, collate=collate, num_workers=num_workers, name=name
            )

    def log(
        self, *, val: Mapping[str, float] | None = None, test: Mapping[str, float] | None = None, **values: float
    ) -> None:
        """Records values at this point of the training; `val` and `test` (averages by name) join the epoch's record."""
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        self.book.note_values(self.steps_done, val or {}, test or {}, numbers)

    def position(self) -> str:
        """Where the run is, for messages: rank, epoch, step."""
        now = self._now
        where = f"epoch {now.epoch + 1}, step {now.index}" if now else "before the first step"
        return f"rank {self.world.rank} of {self.world.size}, {where}"

    def finisher(self, data: Any) -> Callable[[Any, Draw], Any]:
        """What the run does to a batch of this set once it is on its device."""
        return finisher(data, self.spec)

    # -- end ---------------------------------------------------------------------------------------------------

    def finish(self, **values: Any) -> Result:
        """Closes the ledger, compares the ranks' weights, writes weights and result.

        Arguments:
            values: joins result.json.

        Raises:
            RunError: a step that was begun and has no update; a missed or doubled sample; ranks with different weights.
        """
        stepper = self._require_setup()
        if stepper.ledger is None:
            raise RunError("run.finish() before run.steps(...)", [("rule", "train first")])
        assert stepper.order is not None
        assert self._iteration is not None
        if self.steps_done == stepper.order.num_steps:
            next(self._iteration, None)  # a loop that took the last step and asked for no further one
        advice = self._left(stepper)
        ledger = stepper.ledger.settle(self.world, self.steps_done)
        sha256 = weights.sha256(self._model.named_parameters())
        if strayed := differing(self.world, sha256):
            raise RunError(
                f"rank {strayed[0]} ends with other weights than rank 0",
                [("rule", "every rank applies the same updates to the same weights")],
            )
        if self._folder is not None:
            state = self._model.state_dict()
            weights.save(self._folder.path / folder.WEIGHTS, state, {"squall": "weights", "sha256": sha256})
            if self.ema is not None:
                with self.ema.swapped():
                    weights.save(self._folder.path / folder.EMA_WEIGHTS, self._model.state_dict(), {"squall": "ema"})
        return self._end(self._outcome, advice, {"weights_sha256": sha256, "ledger": ledger.as_dict(), **values})

    def close(self, error: BaseException | None = None) -> None:
        """Gives everything back: the model's and optimiser's hooks, files, loader processes, process group, torch's
        settings. Safe to call twice.

        Arguments:
            error: what a run that came to no result ended by, for its folder; the exception under way unless given.
        """
        if self.begun and not self._ended:
            self._break_off(error or sys.exception(), self._now)
        while self._undo:
            self._undo.pop()()
        if self._stepper is not None:
            self._stepper.release()
        self.book.close()
        if self._folder is not None:
            self._folder.close()
            self._folder = None
        atexit.unregister(self._at_exit)
        if self._settings is not None:
            arithmetic.leave(self._settings)
            self._settings = None
        if self._owns_world:
            self._owns_world = False
            self.world.close()

    # -- inside ------------------------------------------------------------------------------------------------

    def _require_setup(self) -> Stepper:
        if self._stepper is None:
            raise RunError("run.setup was not called", [("to do", "model, optimizer = run.setup(model, optimizer)")])
        return self._stepper

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def _set_rate(self, progress: float) -> float | None:
        groups = self._optimizer.param_groups
        if self._rate is None:
            return float(groups[0]["lr"]) if groups else None
        rate = self._rate.at(progress, global_batch_size=self.spec.global_batch_size, epochs=self.spec.epochs)
        set_rate(self._optimizer, rate)
        return rate

    def _settle(self, step: Step | None) -> None:
        """Looks at a step's loss and notes it; on a GPU one step late, so that nobody waits for the device."""
        if step is not None and step.sums is not None:
            step.check_finite()
            self.book.note_step(step.index, step.epoch, step.lr, step.seconds, step.sums)

    def _before_update(self, *_: Any) -> None:
        if self._now is None or self._stepper is None:
            return
        self._now.require_complete("optimizer.step()")
        if not self._stepper.scale.active:  # a step of fp16 that overflowed has no gradients, and means it
            check_gradients(self._now.index, self._stepper.parameters)

    def _after_update(self, *_: Any) -> None:
        self._updates += 1
        if self.ema is not None:
            self.ema.update()
        seconds = self.book.note_update()
        if self._now is not None:
            self.steps_done = self._now.index + 1
            self._now.seconds = seconds

    def _announce(self, stepper: Stepper) -> None:
        assert stepper.order is not None
        self.begun = True
        if self._folder is not None:
            self.book.write_to(self._folder.path / folder.RECORDS, self._folder.path / tensorboard.FOLDER)
            atexit.register(self._at_exit)
        self.book.emit(account.started(self, stepper.order, self._model))

    def _diverged(self, step: Step, loss: float) -> DivergedError:
        error = account.diverged(step, loss)
        self._break_off(error, step)
        self.close()
        return error

    def _left(self, stepper: Stepper) -> str:
        """Advice where the loop was left before its end."""
        assert stepper.order is not None
        if self._outcome == "finished":
            return ""
        if self._now is not None and stepper.read_samples and stepper.where[0] == self._now.index:
            check_left(self._now.index, self._now.complete, self.steps_done > self._now.index)
        return f"run.steps was left after {self.steps_done} of {stepper.order.num_steps} steps; a loop over it does all"

    def _end(self, outcome: Outcome, advice: str, values: Mapping[str, Any]) -> Result:
        result = account.result(self, outcome, advice, values)
        if self._folder is not None:
            self._folder.write_json(folder.RESULT, result.values)
        self._ended = True
        self.book.emit(Ended(outcome, advice, result.values["seconds"], result.values))
        self.close()
        return result

    def _break_off(self, error: BaseException | None, step: Step | None) -> None:
        """Leaves word of an end without a result; nothing that goes wrong here may hide what ended the run."""
        self._ended = True
        ended = account.broken_off(self, error, step)
        self.book.close()  # so that no sink of the user's keeps the record from the file
        if self._folder is not None:
            folder.note_end(self._folder.path, ended)
        with suppress(Exception):
            self.book.emit(ended)
