"""One update a step, with the minibatch's gradient: what goes wrong between the inner loop and optimizer.step()."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import squall
from squall.errors import InputError, RunError
from squall.records import Record, Stepped
from tests.unit.runs import make_data, make_model, start, summed


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
    threads = torch.get_num_threads()
    with pytest.raises(InputError, match="holds a run already"):
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
