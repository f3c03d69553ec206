"""One update a step, with the minibatch's gradient: what goes wrong between the inner loop and optimizer.step()."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import squall
from squall.errors import InputError, RunError
from squall.records import Record, Stepped
from tests.unit.runs import make_data, make_model, start, summed, train


def test_gradients_taken_away_before_the_update_are_found() -> None:
    """zero_grad between backward and step is an old habit; the model would learn nothing and nobody would say so."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = start(model, optimizer)
    try:
        steps = run.steps(make_data())
        step = next(steps)
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        optimizer.zero_grad()
        with pytest.raises(RunError, match=r"optimizer\.step\(\) has no gradients in step 0"):
            optimizer.step()
    finally:
        run.close()


def test_a_second_update_in_one_step_is_found() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = start(model, optimizer)
    try:
        steps = run.steps(make_data())
        step = next(steps)
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        optimizer.step()
        optimizer.step()
        with pytest.raises(RunError, match="was called 2 times in step 0"):
            next(steps)
    finally:
        run.close()


def test_steps_are_asked_for_once() -> None:
    run = start(make_model())
    try:
        steps = run.steps(make_data())
        next(steps)
        with pytest.raises(RunError, match=r"run\.steps was called twice"):
            next(run.steps(make_data()))
    finally:
        run.close()


def test_a_run_that_could_not_begin_gives_back_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / "result.json").write_text('{"outcome": "finished"}')
    threads = torch.get_num_threads()
    with pytest.raises(InputError, match="holds a run that is finished"):
        squall.Run(tmp_path, epochs=1, global_batch_size=4, worker_batch_size=2, threads=threads + 1)
    assert torch.get_num_threads() == threads
    with pytest.raises(InputError, match="needs a CUDA device"):
        squall.Run(None, epochs=1, global_batch_size=4, worker_batch_size=2, precision="fp16")


def test_a_steps_time_is_that_of_its_update() -> None:
    """What the loop does after an epoch's last update (evaluation, saving) must not look like a slow step."""
    records: list[Record] = []
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = start(model, optimizer, sinks=(records.append,), epochs=2)
    updated = []
    for step in run.steps(make_data()):
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        optimizer.step()
        updated.append(run.book.seconds)
        optimizer.zero_grad()
    run.finish()
    stepped = [record.seconds for record in records if isinstance(record, Stepped)]
    assert all(seconds <= after for seconds, after in zip(stepped, updated, strict=True))
    assert stepped == sorted(stepped)


def test_a_loop_that_counts_its_steps_itself_is_complete() -> None:
    """`zip(range(n), run.steps(...))` takes all n steps and never asks for one more."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = start(model, optimizer)
    for _, step in zip(range(2), run.steps(make_data()), strict=False):
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        optimizer.step()
        optimizer.zero_grad()
    result = run.finish()
    assert (result.outcome, result.advice) == ("finished", "")
    assert result.values["train_loss"] is not None


def test_a_gradient_hook_registered_after_setup_is_refused() -> None:
    """It would see the gradients of some parameters and miss others, and which depends on the number of processes."""
    model = make_model()
    seen = []
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad is not None))
    run = start(model)
    try:
        step = next(run.steps(make_data()))
        model.weight.register_post_accumulate_grad_hook(lambda p: None)
        with pytest.raises(RunError, match=r"registered on the gradient of weight after run\.setup"):
            next(iter(step))
    finally:
        run.close()


def test_a_gradient_hook_registered_before_setup_sees_the_gradient_of_each_pass() -> None:
    model = make_model()
    seen = []
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad is not None))
    train(model)
    assert seen == [True] * 4  # 16 samples in passes of 4
