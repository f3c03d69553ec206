"""`squall.Run`: lock-step training of one model, driven by whoever writes the loop.

Its calls, in order: `Run(...)` seeds and joins the job, `setup` places model and optimiser, `steps` yields one update
after the other, `evaluate` measures, `log` records, `finish` closes the ledger and writes the result. Squall's own
loop (`squall.loop.minibatch`) is nothing but a client of these calls.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from squall.checkpoint.spec import CheckpointSpec
from squall.cluster.world import World, join
from squall.data.order import Draw
from squall.errors import DivergedError, RunError
from squall.metrics import Loss, Metrics
from squall.model.ghostnorm import refuse_synchronised
from squall.optim.ema import Ema
from squall.optim.lr import Rate
from squall.records import Ended, Sink
from squall.rng import Stream, mix
from squall.run import account, arithmetic, beginning, ending, evaluate, folder, precision
from squall.run import trackers as tracking
from squall.run.book import Book
from squall.run.fingerprint import agree, fingerprint
from squall.run.guards import check_open, check_updates
from squall.run.leaving import Left
from squall.run.placing import check_optimizer, check_parameters, check_same_data, same_everywhere
from squall.run.result import Outcome, Result
from squall.run.saver import Saver
from squall.run.spec import RunSpec
from squall.run.stepper import Stepper, finisher
from squall.run.steps import Step
from squall.run.updates import Updates

Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


class Run:
    """One run of synchronous training.

    Arguments:
        out: the run folder (None: nothing is written).
        world: the job's processes; by default whatever torchrun or SLURM started, or this process alone.
        sinks: called with every record, on rank 0.
        name: for records and messages; by default the folder's name.
        checkpoint: when the run is saved: "10min", or fields of `CheckpointSpec`; None: never.
        trackers: "mlflow", "wandb": who gets the records too.
        other_arithmetic: go on with a run that was begun with another arithmetic; the bits are then others.
        profile: write a trace of a few steps by torch's profiler into the folder, one file a rank.
        fields: the numbers of `RunSpec`, by name: epochs, global_batch_size, worker_batch_size, seed, ...

    Raises:
        InputError: contradicting numbers, an unwritable or busy folder, or one with a run that came to its end.

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
        checkpoint: CheckpointSpec | Mapping[str, Any] | str | None = "1ep",
        trackers: Sequence[str] = (),
        other_arithmetic: bool = False,
        profile: bool = False,
        **fields: Any,
    ) -> None:
        self.spec = RunSpec.of(fields)
        saving = CheckpointSpec.of(checkpoint) if checkpoint is not None else None
        tracking.check(trackers)
        self.world = world if world is not None else join()
        self._owns_world = world is None
        self.is_main = self.world.rank == 0
        self.path = Path(out) if out is not None else None
        self.name = name or (self.path.name if self.path else "run")
        self.book = Book(sinks if self.is_main else (), self.world.rank, self.world.size)
        self.ema: Ema | None = None
        self.fingerprint: dict[str, Any] = {}
        self.data_digest = self.rate = ""
        self.stepper: Stepper | None = None
        self.trackers, self.other_arithmetic, self.wants_profile = tuple(trackers), other_arithmetic, profile
        self.started: Mapping[str, Any] | None = None
        self.config: Mapping[str, Any] | None = None
        self.saver = Saver(self, saving)
        self._folder: folder.Folder | None = None
        self.now: Step | None = None
        self._late: Step | None = None
        self.steps_done, self.body_ended = 0, False
        self._start = beginning.Start()
        self._undo: list[Callable[[], None]] = []
        self._iteration: Iterator[Step] | None = None
        self._outcome: Outcome = "stopped"
        self.begun = self._ended = False
        self._at_exit = account.AtExit(self)
        self._settings: arithmetic.Settings | None = None
        try:
            precision.check(self.spec.precision, self.world.device)
            if self.path is not None and self.is_main:
                self._folder = folder.Folder(self.path, goes_on=saving is not None)
            self._settings = arithmetic.enter(self.spec, self.world.device)
        except BaseException:
            self.close()
            raise
        torch.manual_seed(mix(Stream.INIT, self.spec.seed) >> 1)

    # -- set-up ------------------------------------------------------------------------------------------------

    def setup(self, model: Model, optimizer: Optimizer, lr: Rate | None = None) -> tuple[Model, Optimizer]:
        """Places model and optimiser: device, memory format, rank 0's weights everywhere, hooks; and the state of the
        newest whole checkpoint, where the folder holds a run that goes on.

        Arguments:
            model: any module; it stays the same object with the same parameter names.
            optimizer: over the model's parameters.
            lr: a rate to set before each update (`squall.lr`); without one, the groups' own rates stay.

        Raises:
            InputError: an optimiser of another model, lazy or complex parameters; a checkpoint that does not fit.
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
        self.stepper = Stepper(spec, world, model)
        self._undo.append(precision.wrap_forward(model, spec.precision, world.device))
        if spec.compile:
            model.compile()
        self.fingerprint = fingerprint(spec, world.device)
        agree(world, self.fingerprint, spec.reduction == "exact")
        if spec.ema is not None:
            self.ema = Ema([*model.named_parameters(), *model.named_buffers()], spec.ema)
        self._updates, self.rate = Updates(self, optimizer, lr), repr(lr)
        self._undo.append(self._updates.remove)
        self.optimizer, self.model = optimizer, model
        self._start = beginning.find(self, self._folder.path if self._folder is not None else None)
        return model, optimizer

    def keep(self, **objects: Any) -> None:
        """Keeps objects with `state_dict` and `load_state_dict` in the checkpoints, such as a scheduler of one's own.

        Call it before `steps`, with the same names in every session; their state must be the same on all ranks.
        """
        self.saver.kept.add(objects, begun=self.begun)

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
        self.data_digest = check_same_data(self.world, data, collate, self.spec.seed, wanted=self.saver.is_on)
        order = stepper.begin(data, collate, num_workers, self._start.first_step)
        stepper.votes = self.saver.votes
        self._announce(stepper, len(data))
        try:
            for index in range(self._start.first_step, order.num_steps):
                check_open(index, self._ended)
                plan = order.step(index)
                step = self.now = Step(stepper, plan, self._updates.set_rate(order.progress(index)), self._diverged)
                self.body_ended = False
                before = self._updates.count
                yield step
                step.require_complete("the next step")
                check_updates(index, self._updates.count - before)
                self.settle_late()
                self._late = step
                if plan.ends_epoch or not stepper.late:
                    self.settle_late()
                if plan.ends_epoch:
                    self.book.end_epoch(plan.epoch, index, step.lr)
                    self.book.begin_epoch()
                self.body_ended = True
                self._start.end_step()
                self.saver.end_step(step, order.progress(index), order.progress(index + 1))
            self._outcome = "finished"
        finally:
            self._start.close()
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
        reading: Any = {"collate": collate, "num_workers": num_workers, "name": name, "asked": self.saver.is_asked}
        try:
            with self._averaged():
                return evaluate.per_sample(self.spec, self.world, model, data, measure, **reading)
        except evaluate.BrokenOffError:
            raise self.saver.break_off_evaluation() from None

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
        reading: Any = {"collate": collate, "num_workers": num_workers, "name": name, "asked": self.saver.is_asked}
        try:
            with self._averaged():
                return evaluate.averages(self.spec, self.world, model, data, step, **reading)
        except evaluate.BrokenOffError:
            raise self.saver.break_off_evaluation() from None

    def log(
        self, *, val: Mapping[str, float] | None = None, test: Mapping[str, float] | None = None, **values: float
    ) -> None:
        """Records values at this point of the training; `val` and `test` (averages by name) join the epoch's record."""
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        self.book.note_values(self.steps_done, val or {}, test or {}, numbers)

    def position(self) -> str:
        """Where the run is, for messages: rank, epoch, step."""
        now = self.now
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
        advice = "" if self._outcome == "finished" else ending.left_early(self, stepper)
        found = ending.settled(self, stepper.ledger)
        ending.write_weights(self, self._folder.path if self._folder is not None else None, found["weights_sha256"])
        self.saver.finish()
        return self._end(self._outcome, advice, {**found, **values})

    def close(self, error: BaseException | None = None) -> None:
        """Gives everything back: the model's and optimiser's hooks, files, loader processes, process group, torch's
        settings. Safe to call twice.

        Arguments:
            error: what a run that came to no result ended by, for its folder; the exception under way unless given.
        """
        if self.begun and not self._ended:
            self._break_off(error or sys.exception(), self.now)
        self.saver.close()
        while self._undo:
            self._undo.pop()()
        if self.stepper is not None:
            self.stepper.release()
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

    def leave(self, error: Left) -> None:
        """Ends the run as stopped; its state is saved."""
        self._break_off(error, self.now)
        self.close()

    def _require_setup(self) -> Stepper:
        if self.stepper is None:
            raise RunError("run.setup was not called", [("to do", "model, optimizer = run.setup(model, optimizer)")])
        return self.stepper

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def settle_late(self) -> None:
        """Looks at a step's loss and notes it; on a GPU one step late, so that nobody waits for the device."""
        step, self._late = self._late, None
        if step is not None and step.sums is not None:
            step.check_finite()
            self.book.note_step(step)
            self.saver.hear(step.index, step.sums.votes)

    def _announce(self, stepper: Stepper, num_samples: int) -> None:
        """The first thing that is written: from here on there is a run."""
        self._start.check_data(num_samples, self.data_digest)
        self.begun = True
        if self._folder is not None:
            atexit.register(self._at_exit)
        self._start.begin(self, stepper, self._folder.path if self._folder is not None else None)

    def _diverged(self, step: Step, loss: float) -> DivergedError:
        error = account.diverged(step, loss)
        self._break_off(error, step)
        self.close()
        return error

    def _end(self, outcome: Outcome, advice: str, values: Mapping[str, Any]) -> Result:
        self.saver.close(outcome, advice)
        result = account.result(self, outcome, advice, values)
        if self._folder is not None:
            ending.write_result(self._folder.path, result.values)
        self._ended = True
        self.book.emit(Ended(outcome, advice, result.values["seconds"], result.values))
        self.close()
        return result

    def _break_off(self, error: BaseException | None, step: Step | None) -> None:
        """Leaves word of an end without a result; nothing that goes wrong here may hide what ended the run."""
        self._ended = True
        ended = account.broken_off(self, error, step)
        with suppress(Exception):
            self.saver.close(ended.outcome, str(ended.result["error"]))
        self.book.close_files()  # so that no sink of the user's keeps the record from the file
        if self._folder is not None:
            folder.note_end(self._folder.path, ended)
        with suppress(Exception):
            self.book.emit(ended)
