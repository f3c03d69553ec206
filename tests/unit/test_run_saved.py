"""A run of one process that is saved, stopped and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import squall
from squall.checkpoint import files
from squall.errors import InputError, RunError
from squall.run import requests
from squall.run.leaving import words
from squall.run.signals import Signals
from squall.run.steps import Step
from tests.chaos import training
from tests.unit.runs import make_data, make_model, summed

FIELDS: dict[str, Any] = {"epochs": 4, "global_batch_size": 8, "worker_batch_size": 4, "ema": 0.9}
Body = Callable[[squall.Run, Step], Any]


def nothing(run: squall.Run, step: Step) -> None:
    pass


def net() -> nn.Module:
    return make_model(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))


def train(
    out: Path,
    body: Body = nothing,
    scheduler: bool = False,
    in_evaluation: Body = nothing,
    late: bool = False,
    **fields: Any,
) -> squall.Result:
    """Twelve steps in four epochs, with a body that draws, clips, logs and evaluates wherever one may."""
    reading = {"num_workers": fields.pop("num_workers", 0)}
    run = squall.Run(out, **{**FIELDS, **fields})
    try:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        stepped = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if scheduler else None
        run.setup(model, optimizer)
        assert run.stepper is not None
        run.stepper.late = late
        if stepped is not None:
            run.keep(scheduler=stepped)

        def measure(step: Step | None, out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            if step is not None:
                in_evaluation(run, step)
            return out.argmax(1) == labels

        for step in run.steps(make_data(24), **reading):
            for batch in step:
                step.backward(summed(model, *batch))
            run.log(norm=float(step.clip_grad_norm_(1.0)), before=float(torch.rand(())))
            optimizer.step()
            if stepped is not None:
                stepped.step()
            drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
            run.log(python=drawn[0], numpy=drawn[1], torch=drawn[2], rate=optimizer.param_groups[0]["lr"])
            if step.ends_epoch or step.index == 4:
                run.log(hits=run.evaluate(model, make_data(7), partial(measure, step)).sum())
            body(run, step)
        run.log(final=1.0)
        run.log(last=run.evaluate(model, make_data(7), partial(measure, None)).sum())
        return run.finish()
    finally:
        run.close()


def written(run: squall.Run, step: Step) -> None:
    """The disk is faster than the steps."""
    run.saver.finish()


def after(index: int, do: Callable[[], Any]) -> Body:
    return lambda run, step: do() if step.index == index else None


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def sessions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]


def held(out: Path) -> list[int]:
    return sorted(files.steps_of(out / "checkpoints"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, squall.Result]]:
    found = {}
    for scheduler in (False, True):
        random.seed(3)
        np.random.seed(3)
        out = tmp_path_factory.mktemp("whole") / "run"
        found[scheduler] = out, train(out, scheduler=scheduler)
    return found


@pytest.mark.parametrize("scheduler", [False, True])
@pytest.mark.parametrize("where", ["body", "evaluation"])
@pytest.mark.parametrize("index", [0, 4, 5, 8, 10])
@pytest.mark.parametrize("late", [False, True])
def test_stopped_anywhere_and_gone_on_it_is_the_same_training(
    index: int, where: str, scheduler: bool, late: bool, whole: Any, tmp_path: Path
) -> None:
    """Weights, averages, ledger, records; and what the loop draws from three generators, before and after updates.

    Late: steps are looked at when the next one is under way, as on a GPU.
    """
    random.seed(3)
    np.random.seed(3)
    stops = {"body": after(index, terminated)} if where == "body" else {"in_evaluation": after(index, terminated)}
    if where == "evaluation" and index in (0, 10):
        index = {0: 2, 10: 11}[index]  # an epoch's end
        stops = {"in_evaluation": after(index, terminated)}
    if where == "evaluation":
        stops["body"] = written  # else a state may not be copied in time, and the evaluation is finished first
    with pytest.raises(SystemExit) as left:
        train(tmp_path, scheduler=scheduler, late=late, **stops)
    assert left.value.code == 143
    assert json.loads((tmp_path / "result.json").read_text())["outcome"] == "stopped"
    if where == "evaluation" and index == 8 and not late:  # and once more, in the same evaluation
        with pytest.raises(SystemExit):
            train(tmp_path, scheduler=scheduler, late=late, **stops)
        assert held(tmp_path)[-1] == 8
    random.seed(99)
    np.random.seed(99)
    result = train(tmp_path, scheduler=scheduler, late=late)
    out, expected = whole[scheduler]
    assert result.values["weights_sha256"] == expected.values["weights_sha256"]
    assert result.values["ledger"] == expected.values["ledger"]
    assert (tmp_path / "ema.safetensors").read_bytes() == (out / "ema.safetensors").read_bytes()
    if late:  # records of steps then come when the next step is under way, or before a save
        assert in_order(tmp_path) == in_order(out)
    else:
        assert training(tmp_path) == training(out)


def in_order(out: Path) -> list[str]:
    return sorted(json.dumps(record, sort_keys=True) for record in training(out))


def test_ctrl_c_is_a_keyboard_interrupt_after_the_save(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as left:
        train(tmp_path, after(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    headline, advice = words(left.value) or ("", "")
    assert headline == "stopped by Ctrl-C after step 5"
    assert advice.startswith("run it again: ")
    assert type(left.value) is KeyboardInterrupt  # of a subclass Python makes the status 1
    assert held(tmp_path)[-1] == 5


def test_an_evaluation_that_was_broken_off_is_said_with_where_the_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        train(tmp_path, written, in_evaluation=after(5, terminated))
    headline, advice = words(left.value) or ("", "")
    assert headline == "stopped by SIGTERM after step 6"
    assert advice.startswith("its evaluation was broken off; from step 5: run it")


def test_the_second_signal_is_not_held_back(tmp_path: Path) -> None:
    """It goes to whoever would have had it without us; here Python, which raises at once."""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as left:
        train(tmp_path, after(4, twice))
    assert words(left.value) is None
    assert json.loads((tmp_path / "result.json").read_text())["error"] == "stopped by Ctrl-C"


def test_terms_that_come_together_are_one(tmp_path: Path) -> None:
    """As a scheduler sends them."""

    def thrice() -> None:
        for _ in range(3):
            terminated()

    with pytest.raises(SystemExit) as left:
        train(tmp_path, after(3, thrice))
    assert left.value.code == 143
    assert held(tmp_path)[-1] == 5


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    train(tmp_path / "a")
    with pytest.raises(SystemExit):
        train(tmp_path / "b", after(2, terminated))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_without_checkpoints_signals_do_what_they_do(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as left:
        train(tmp_path, after(4, lambda: os.kill(os.getpid(), signal.SIGINT)), checkpoint=None)
    assert words(left.value) is None
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("do", "status"), [("stop", 143), ("resize", 75)])
def test_a_request_is_followed(do: Any, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squall.run.saver._LOOK_S", 0.0)
    with pytest.raises(SystemExit) as left:
        train(tmp_path, after(3, lambda: requests.ask(tmp_path, requests.Request(do, 3))))
    assert left.value.code == status
    assert (requests.waiting(tmp_path) is None) == (do == "stop")  # the launcher follows the other one
    assert held(tmp_path)[-1] == 5
    assert train(tmp_path).outcome == "finished"  # what was asked of processes that are gone is forgotten
    assert requests.waiting(tmp_path) is None


def test_the_newest_stay(tmp_path: Path) -> None:
    train(tmp_path, written, checkpoint={"every": "1step", "keep": 3})
    found = held(tmp_path)
    assert len(found) == 3
    assert found[-1] == 12


def test_the_best_stays_too(tmp_path: Path) -> None:
    scores = [0.2, 0.9, 0.5, 0.9]

    def score(run: squall.Run, step: Step) -> None:
        if step.ends_epoch:
            run.log(val={"accuracy": scores[step.epoch]})
        run.saver.finish()

    train(tmp_path / "a", score, checkpoint={"every": "1step", "keep": 1, "keep_best": "val/accuracy"})
    assert held(tmp_path / "a") == [6, 12]
    with pytest.raises(SystemExit):  # and is known to the session after
        train(
            tmp_path / "b",
            lambda run, step: (score(run, step), after(7, terminated)(run, step)),
            checkpoint={"every": "1step", "keep": 1, "keep_best": "val/accuracy"},
        )
    train(tmp_path / "b", score, checkpoint={"every": "1step", "keep": 1, "keep_best": "val/accuracy"})
    assert held(tmp_path / "b") == [6, 12]


def test_a_best_that_nobody_measures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="names no metric of this run"):
        train(tmp_path, checkpoint={"keep_best": "val/accuracy"})


def test_a_step_looked_at_late_does_not_wait_for_the_writer(tmp_path: Path) -> None:
    """As on a GPU: the votes known at a step's end were cast before the last order was given."""
    passed: list[int] = []

    def body(run: squall.Run, step: Step) -> None:
        assert run.saver._background is not None
        assert run.saver._background._process is not None
        if step.index == 3:
            os.kill(run.saver._background._process.pid, signal.SIGSTOP)
        if 3 < step.index < 9:  # nothing waits for an answer
            assert run.saver._background.busy
            passed.append(step.index)
        if step.index == 9:
            os.kill(run.saver._background._process.pid, signal.SIGCONT)

    train(tmp_path, body, late=True, checkpoint={"every": "4step"})
    assert passed == [4, 5, 6, 7, 8]


def test_a_checkpoint_is_whole_though_later_records_are_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    def body(run: squall.Run, step: Step) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(run.book, "flush", full)
            run.saver.finish()

    train(tmp_path, body)
    assert [record["kind"] for record in sessions(tmp_path)[1:-1]] == ["saved"] * 4


def test_a_result_that_does_not_fit_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("squall.run.ending.write_json", full)
        with pytest.raises(RunError, match="the result cannot be written to") as error:
            train(tmp_path)
    assert error.value.hint.startswith("run it again: ")
    assert train(tmp_path).outcome == "finished"


def test_keeping_something_after_the_beginning_is_an_error(tmp_path: Path) -> None:
    """It would be saved, and never put back."""
    with pytest.raises(RunError, match=r"run\.keep\(late=\.\.\.\) was called after"):
        train(tmp_path, lambda run, step: run.keep(late=nn.Linear(1, 1)))


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own could not be given back."""
    before = signal.getsignal(signal.SIGUSR1)
    found = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else found(number))
    signals = Signals()
    signals.listen()
    signals.close()
    assert found(signal.SIGUSR1) == before
    assert signal.SIGUSR1 not in signals._before


def test_minutes_are_counted_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("squall.run.saver.time", type("Clock", (), {**vars(time), "monotonic": lambda: now[0]}))

    def tick(run: squall.Run, step: Step) -> None:
        run.saver.finish()
        now[0] += 25.0

    train(tmp_path, tick, checkpoint={"every": "1min", "keep": 9})
    assert held(tmp_path) == [4, 8, 12]  # a vote at 75 s; the body of that step takes 25 s more


def test_the_pause_and_the_writing_are_recorded(tmp_path: Path) -> None:
    train(tmp_path, written)
    saved = [record for record in sessions(tmp_path) if record["kind"] == "saved"]
    assert [record["step"] for record in saved] == [3, 6, 9, 12]
    assert all(record["blocked"] > 0 and record["seconds"] > 0 and record["num_bytes"] > 1000 for record in saved)
    steps = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    pauses = {step["step"]: step["spent"]["save"] for step in steps if step["kind"] == "step"}
    # after each epoch, and before each epoch's last step, for an evaluation that is broken off
    assert [step for step, pause in pauses.items() if pause] == [2, 3, 5, 6, 8, 9, 11]


def test_a_scheduler_that_is_not_kept_is_an_error(tmp_path: Path) -> None:
    run = squall.Run(tmp_path, **FIELDS)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    run.setup(model, optimizer)
    with pytest.raises(RunError, match="a scheduler drives the optimiser") as error:
        next(run.steps(make_data(24)))
    run.close()
    assert "run.keep(scheduler=scheduler)" in str(error.value)


def test_what_is_kept_must_be_the_same_in_every_session(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, after(4, terminated), scheduler=True)
    with pytest.raises(RunError, match="keeps other things than this loop"):
        train(tmp_path)
    run = squall.Run(None, **FIELDS)
    with pytest.raises(InputError, match=r"run\.keep\(a=\.\.\.\) got a int"):
        run.keep(a=3)
    run.close()


def test_a_generator_of_the_loops_own_goes_on_where_it_was(tmp_path: Path) -> None:
    def session(out: Path, stop: int) -> list[float]:
        run = squall.Run(out, **FIELDS)
        model, drawn = net(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.setup(model, optimizer)
        noise = torch.Generator().manual_seed(5)
        run.keep(noise=noise)
        try:
            for step in run.steps(make_data(24)):
                for batch in step:
                    step.backward(summed(model, *batch))
                optimizer.step()
                drawn.append(float(torch.rand((), generator=noise)))
                if step.index == stop:
                    terminated()
        finally:
            run.close()
        return drawn

    whole = session(tmp_path / "whole", 99)
    with pytest.raises(SystemExit):
        session(tmp_path / "killed", 4)
    rest = session(tmp_path / "killed", 99)
    assert 0 < len(rest) < len(whole)
    assert rest == whole[-len(rest) :]


def test_a_run_in_use_is_not_gone_on_with(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(InputError, match="in use by another process"):
            squall.Run(tmp_path, **FIELDS)

    train(tmp_path, after(4, second))


def test_a_run_that_diverged_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / "result.json").write_text('{"outcome": "diverged"}')
    with pytest.raises(InputError, match="holds a run that diverged") as error:
        train(tmp_path)
    assert "the same numbers again" in str(error.value)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(whole: Any, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"kind": "started"}\n{"kind": "step", "st')
    random.seed(3)
    np.random.seed(3)
    train(tmp_path)
    assert training(tmp_path) == training(whole[False][0])


def test_state_that_has_no_plain_form_is_an_error_when_it_is_saved(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> Any:
            return {**super().state_dict(), "odd": object()}

    run = squall.Run(tmp_path, **FIELDS)
    model = net()
    run.setup(model, Odd(model.parameters(), lr=0.1))

    def trained() -> None:
        for step in run.steps(make_data(24)):
            for batch in step:
                step.backward(summed(model, *batch))
            run.optimizer.step()

    with pytest.raises(RunError, match=r"optimizer\.odd cannot be saved"):
        trained()
    run.close()


def test_extra_state_of_modules_and_of_optimisers_travels(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        seen = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.seen += len(inputs) * self.training
            return super().forward(inputs)

        def get_extra_state(self) -> Any:
            return {"seen": self.seen}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    def session(stop: int) -> int:
        run = squall.Run(tmp_path, **FIELDS)
        model = Counting(5, 3)
        run.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        try:
            for step in run.steps(make_data(24)):
                for batch in step:
                    step.backward(summed(model, *batch))
                run.optimizer.step()
                if step.index == stop:
                    terminated()
            run.finish()
        finally:
            run.close()
        return model.seen

    with pytest.raises(SystemExit):
        session(4)
    assert session(99) == 24 * 4


def test_a_profile_is_a_trace_of_some_steps(tmp_path: Path) -> None:
    train(tmp_path, profile=True)
    trace = json.loads((tmp_path / "profile" / "rank-0.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("ProfilerStep") for name in names) >= 5
    assert any(name == "aten::linear" for name in names)


def test_a_loader_process_outlives_a_signal_to_the_whole_group(whole: Any, tmp_path: Path) -> None:
    """As a terminal's Ctrl-C and some schedulers send it."""

    def everybody() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in children:
            if b"writer.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGTERM)
                os.kill(int(pid), signal.SIGINT)
        terminated()

    random.seed(3)
    np.random.seed(3)
    started = time.monotonic()
    with pytest.raises(SystemExit) as left:
        train(tmp_path, after(4, everybody), num_workers=2)
    assert left.value.code == 143
    assert time.monotonic() - started < 20
    train(tmp_path)
    assert training(tmp_path) == training(whole[False][0])


def test_nothing_whole_is_an_error_and_not_a_beginning(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, after(7, terminated))
    before = (tmp_path / "records.jsonl").read_bytes()
    for path in (tmp_path / "checkpoints").glob("step-*/manifest.json"):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole") as error:
        train(tmp_path)
    assert [row[0] for row in error.value.rows][:-1] == [f"step-{step:08}" for step in reversed(held(tmp_path))]
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_run_that_saves_nothing_does_not_begin_over_one_that_did(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, after(7, terminated))
    with pytest.raises(InputError, match="holds a run already"):
        train(tmp_path, checkpoint=None)


def test_a_run_of_other_numbers_does_not_begin_over_one_that_was_never_saved(tmp_path: Path) -> None:
    def dies() -> None:
        raise KeyError("killed")

    with pytest.raises(KeyError):
        train(tmp_path, after(1, dies))
    with pytest.raises(InputError, match="which was never saved") as error:
        train(tmp_path, epochs=9)
    assert error.value.rows[0] == ("epochs=9", "4 in the folder")
    assert train(tmp_path).outcome == "finished"


def test_another_optimiser_argument_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, after(7, terminated))
    run = squall.Run(tmp_path, **FIELDS)
    model = net()
    with pytest.raises(InputError, match=r"weight_decay=0\.01"):
        run.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5))
    run.close()


def test_complex_buffers_and_counters_travel(tmp_path: Path) -> None:
    class Turned(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 3)
            self.register_buffer("turn", torch.polar(torch.ones(3), torch.arange(3.0)))

    def session(stop: int) -> torch.Tensor:
        run = squall.Run(tmp_path, **{**FIELDS, "ema": None})
        model = Turned()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6])
        run.setup(model, optimizer)
        run.keep(scheduler=scheduler)
        try:
            for step in run.steps(make_data(24)):
                for batch in step:
                    step.backward(summed(model, *batch))
                optimizer.step()
                scheduler.step()
                if step.index == stop:
                    model.turn.mul_(2)
                    terminated()
        finally:
            run.close()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
        turn: torch.Tensor = model.turn
        return turn

    with pytest.raises(SystemExit):
        session(4)
    assert torch.equal(session(99), 2 * torch.polar(torch.ones(3), torch.arange(3.0)))
