"""A mistake in the loop is a named error in its first step, not a number in its last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.errors import DivergedError, InputError, RunError
from squall.run import Step
from squall.run.guards import check_loss
from tests.unit.runs import CLASSES, make_data, make_model, start, summed, train


@pytest.fixture
def model() -> nn.Module:
    return make_model()


@pytest.fixture
def run(model: nn.Module) -> Iterator[squall.Run]:
    run = start(model)
    yield run
    run.close()


@pytest.fixture
def steps(run: squall.Run) -> Iterator[Step]:
    """The run's two updates of two passes each (held here: a generator that nobody holds ends its reader)."""
    return run.steps(make_data())


def update(run: squall.Run) -> None:
    run.optimizer.step()


def compute(step: Step, model: nn.Module, most: int = 2, own: bool = False) -> None:
    """The inner loop: backward of the first `most` batches, by `step.backward` or a call of one's own."""
    for index, (inputs, targets) in enumerate(step):
        if index < most and own:
            summed(model, inputs, targets).backward()
        elif index < most:
            step.backward(summed(model, inputs, targets))


def leave_early(step: Step, model: nn.Module) -> None:
    for inputs, targets in step:
        step.backward(summed(model, inputs, targets))
        break


# -- the shape of the loop ---------------------------------------------------------------------------------------


def test_an_inner_loop_left_early_is_found_at_the_update(
    run: squall.Run, steps: Iterator[Step], model: nn.Module
) -> None:
    leave_early(next(steps), model)
    with pytest.raises(RunError, match=r"optimizer.step\(\) was called in step 0 before all of its batches") as error:
        update(run)
    assert "of 2 passes of this process" in str(error.value)


def test_an_inner_loop_left_early_is_found_at_the_next_step(steps: Iterator[Step], model: nn.Module) -> None:
    leave_early(next(steps), model)
    with pytest.raises(RunError, match="the next step was called in step 0 before all"):
        next(steps)


def test_an_inner_loop_never_entered_is_found(steps: Iterator[Step]) -> None:
    next(steps)
    with pytest.raises(RunError, match="before all of its batches were computed"):
        next(steps)


# -- a loop that is left -------------------------------------------------------------------------------------------


def test_the_first_step_can_be_taken_without_a_loop(run: squall.Run, model: nn.Module) -> None:
    """`next(run.steps(data))` drops the iterator at once; the step still reads its batches."""
    step = next(run.steps(make_data()))
    compute(step, model)
    update(run)
    result = run.finish()
    assert result.outcome == "stopped"
    assert result.advice == "run.steps was left after 1 of 2 steps; a loop over it does all"
    assert result.values["ledger"]["samples"] == 8


def test_a_loop_that_is_left_between_its_steps_is_stopped(run: squall.Run, model: nn.Module) -> None:
    for step in run.steps(make_data()):
        if step.index == 1:
            break
        compute(step, model)
        update(run)
    assert run.finish().values["steps"] == 1


@pytest.mark.parametrize("complete", [True, False])
def test_a_step_that_was_begun_is_finished_before_the_run(
    complete: bool, run: squall.Run, steps: Iterator[Step], model: nn.Module
) -> None:
    step = next(steps)
    (compute if complete else leave_early)(step, model)
    with pytest.raises(RunError, match=r"run\.steps was left in step 0, before its update") as error:
        run.finish()
    found = "optimizer.step() was not called" if complete else "not all of the step's batches were computed"
    assert found in str(error.value)


@pytest.mark.parametrize("call", ["finish", "close"])
def test_a_run_that_was_ended_in_its_loop_goes_no_further(call: str, run: squall.Run, model: nn.Module) -> None:
    def ends() -> None:
        for step in run.steps(make_data()):
            compute(step, model)
            update(run)
            getattr(run, call)()

    with pytest.raises(RunError, match=r"run\.steps cannot go on to step 1: the run has ended"):
        ends()


def test_two_iterators_of_one_run_are_refused(run: squall.Run) -> None:
    run.steps(make_data())
    with pytest.raises(RunError, match=r"run\.steps was called twice"):
        run.steps(make_data())


def test_clipping_and_the_loss_wait_for_all_batches(steps: Iterator[Step]) -> None:
    step = next(steps)
    with pytest.raises(RunError, match=r"step\.clip_grad_norm_ was called"):
        step.clip_grad_norm_(1.0)
    with pytest.raises(RunError, match=r"step\.loss was called"):
        _ = step.loss


def test_a_forgotten_update_is_found_in_step_0(steps: Iterator[Step], model: nn.Module) -> None:
    compute(next(steps), model)
    with pytest.raises(RunError, match=r"optimizer.step\(\) was not called in step 0"):
        next(steps)


@pytest.mark.parametrize("done", [0, 1])
def test_a_forgotten_backward_is_found_at_the_next_batch(done: int, steps: Iterator[Step], model: nn.Module) -> None:
    step = next(steps)
    with pytest.raises(RunError, match=r"step 0: a batch was read but step.backward was not called"):
        compute(step, model, most=done)


def test_two_backwards_of_one_batch_are_found(steps: Iterator[Step], model: nn.Module) -> None:
    step = next(steps)
    batches = iter(step)
    inputs, targets = next(batches)
    step.backward(summed(model, inputs, targets))
    with pytest.raises(RunError, match=r"step\.backward was called twice for one batch"):
        step.backward(summed(model, inputs, targets))


def test_an_own_backward_beside_step_backward_is_found(steps: Iterator[Step], model: nn.Module) -> None:
    step = next(steps)
    batches = iter(step)
    inputs, targets = next(batches)
    summed(model, inputs, targets).backward()
    with pytest.raises(RunError, match="two backward passes in one pass"):
        step.backward(summed(model, inputs, targets))


def test_an_own_backward_instead_of_step_backward_is_found(steps: Iterator[Step], model: nn.Module) -> None:
    """Every other script says loss.backward(); here the batch would be missing in the books."""
    step = next(steps)
    with pytest.raises(RunError, match=r"step.backward was not called"):
        compute(step, model, own=True)


def test_a_backward_outside_the_inner_loop_is_found(steps: Iterator[Step], model: nn.Module) -> None:
    step = next(steps)
    compute(step, model)
    stray = model(torch.ones(1, 5)).sum()
    with pytest.raises(RunError, match=r"a backward pass ran outside step\.backward"):
        stray.backward()
    with pytest.raises(RunError, match=r"step\.backward was called outside `for batch in step:`"):
        step.backward(stray)


def test_a_step_is_iterated_once(steps: Iterator[Step], model: nn.Module) -> None:
    step = next(steps)
    compute(step, model)
    with pytest.raises(RunError, match="iterated twice"):
        next(iter(step))


def test_steps_before_setup_and_finish_before_steps_are_refused(run: squall.Run) -> None:
    with pytest.raises(RunError, match=r"run.finish\(\) before run.steps"):
        run.finish()
    bare = squall.Run(None, epochs=1, global_batch_size=8, worker_batch_size=4)
    with pytest.raises(RunError, match=r"run.setup was not called"):
        next(bare.steps(make_data()))
    bare.close()


def test_a_run_that_the_loop_leaves_early_is_stopped_not_finished(model: nn.Module) -> None:
    run = start(model)
    for step in run.steps(make_data(24)):
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        update(run)
        if step.index == 1:
            break
    result = run.finish()
    assert result.outcome == "stopped"
    assert result.values["steps"] == 2
    assert not result.values["ledger"]["complete"]
    assert result.values["ledger"]["samples"] == 16


# -- the loss ----------------------------------------------------------------------------------------------------

MEANS = {
    "cross_entropy's default": lambda m, x, y: F.cross_entropy(m(x), y),
    "mean of per-sample losses": lambda m, x, y: F.cross_entropy(m(x), y, reduction="none").mean(),
    "sum over the batch's length": lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum") / len(y),
    "sum times the inverse length": lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum") * (1 / len(y)),
    "label smoothing": lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.1),
    "mean squares": lambda m, x, y: F.mse_loss(m(x), F.one_hot(y, CLASSES).float()),
    "binary cross entropy": lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), F.one_hot(y, CLASSES).float()),
    "batchmean": lambda m, x, y: F.kl_div(F.log_softmax(m(x), 1), F.one_hot(y, CLASSES).float(), reduction="batchmean"),
    "mean and something else": lambda m, x, y: F.cross_entropy(m(x), y) + 0.001 * m.weight.square().sum(),
    "scaled by a constant": lambda m, x, y: F.cross_entropy(m(x), y) * 2.0,
    "mean of doubles": lambda m, x, y: F.cross_entropy(m(x).double(), y).float(),
    "mean of a mean": lambda m, x, y: F.cross_entropy(m(x), y).mean(),
    "mean over samples and values": lambda m, x, y: m(x).square().mean((0, 1)),
    "smooth l1": lambda m, x, y: F.smooth_l1_loss(m(x), F.one_hot(y, CLASSES).float()),
    "mean and a mean of weights": lambda m, x, y: F.cross_entropy(m(x), y) + 0.01 * m.weight.abs().mean(),
    "divided sum and a mean of weights": lambda m, x, y: summed(m, x, y) / len(y) + 0.01 * m.weight.abs().mean(),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_where_a_sum_is_asked_for_is_found_in_step_0(name: str, model: nn.Module) -> None:
    """pytorch#4406, fairseq#494, apex#696: the silent factor that most threads are about."""
    with pytest.raises(RunError, match="got a mean over the batch; it takes the sum") as error:
        train(model, MEANS[name])
    assert 'reduction="sum"' in str(error.value)


SUMS = {
    "cross_entropy's sum": summed,
    "sum of per-sample losses": lambda m, x, y: F.cross_entropy(m(x), y, reduction="none").sum(),
    "mean times the length": lambda m, x, y: F.cross_entropy(m(x), y) * len(y),
    "length times mean": lambda m, x, y: len(y) * F.mse_loss(m(x), F.one_hot(y, CLASSES).float()),
    "mean over each sample's own values": lambda m, x, y: m(x).square().mean(1).sum(),
    "label smoothing, summed": lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum", label_smoothing=0.1),
    "a small factor": lambda m, x, y: summed(m, x, y) * 0.01,
    "two sums": lambda m, x, y: summed(m, x, y) + 0.5 * m(x).square().sum(),
    "a norm": lambda m, x, y: m(x).norm(),
    "a sum and a mean of weights": lambda m, x, y: summed(m, x, y) + 0.01 * m.weight.abs().mean(),
    "a sum and mean squares of weights": lambda m, x, y: (
        summed(m, x, y) + F.mse_loss(m.weight, torch.zeros(CLASSES, 5))
    ),
    "a sum and a mean over classes": lambda m, x, y: summed(m, x, y) + F.cross_entropy(m.weight, torch.arange(CLASSES)),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_not_accused(name: str, model: nn.Module) -> None:
    assert train(model, SUMS[name]).outcome == "finished"


def test_a_smoothed_sum_is_not_accused_where_its_share_of_a_class_is_one_over_the_batch(model: nn.Module) -> None:
    """Label smoothing adds a sum weighted by smoothing / classes: here 0.375 / 3 = 1 / 8 samples."""

    def smoothed(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x), y, reduction="sum", label_smoothing=0.375)

    result = train(model, smoothed, worker_batch_size=8)
    assert result.outcome == "finished"


def test_a_mean_over_tokens_is_found_against_the_given_count(steps: Iterator[Step], model: nn.Module) -> None:
    step = next(steps)
    batches = iter(step)
    inputs, _ = next(batches)
    with pytest.raises(RunError, match="a sum divided by 12"):
        step.backward(model(inputs).square().sum() / 12, count=12)


@pytest.mark.parametrize("shape", [(12,), (4, 3)])
def test_a_mean_over_the_tokens_that_are_not_ignored_is_found(
    shape: tuple[int, ...], steps: Iterator[Step], model: nn.Module
) -> None:
    """Its divisor is neither the number of samples nor the number of tokens."""
    inputs, _ = next(iter(next(steps)))
    targets = torch.tensor([0, 1, 2, -100] * 3).reshape(shape)
    scores = model(inputs).repeat(3, 1) if len(shape) == 1 else model(inputs).unsqueeze(2).expand(-1, -1, 3)
    with pytest.raises(RunError, match="with a mean reduction over 9 samples"):
        check_loss(F.cross_entropy(scores, targets), 9)


@pytest.mark.parametrize(
    ("loss_of", "message"),
    [
        (lambda m, x, y: F.cross_entropy(m(x), y, reduction="none"), r"got a tensor of shape \(4,\)"),
        (lambda m, x, y: summed(m, x, y).item(), "got a float"),
        (lambda m, x, y: summed(m, x, y).detach(), "got a loss without a gradient"),
        (lambda m, x, y: torch.tensor(1.0), "got a loss without a gradient"),
        (lambda m, x, y: None, "got a NoneType"),
    ],
)
def test_what_is_no_loss_is_named(loss_of: Any, message: str, model: nn.Module) -> None:
    with pytest.raises(RunError, match=message):
        train(model, loss_of)


def test_a_loss_without_a_gradient_is_found_in_later_steps_too(model: nn.Module) -> None:
    calls: list[int] = []

    def third_is_detached(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return summed(m, x, y).detach() if len(calls) == 3 else summed(m, x, y)

    with pytest.raises(RunError, match="got a loss without a gradient"):
        train(model, third_is_detached)


def test_a_model_left_in_evaluation_mode_is_found(model: nn.Module) -> None:
    model.eval()
    with pytest.raises(RunError, match="the model is in evaluation mode in a training step"):
        train(model)


def test_evaluate_puts_the_mode_back_module_by_module() -> None:
    model = make_model(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, CLASSES))
    run = start(model)
    model[1].eval()  # a user who keeps one layer fixed
    run.evaluate(model, make_data(), lambda scores, labels: scores.argmax(1) == labels)
    assert [module.training for module in model] == [True, False, True]
    run.close()


# -- the model, the optimiser, the cut ----------------------------------------------------------------------------


def test_a_sparse_gradient_is_named() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, CLASSES))
    data = [(torch.tensor([i % 9, (i + 1) % 9]), i % CLASSES) for i in range(16)]
    with pytest.raises(InputError, match=r"0.weight has a sparse gradient") as error:
        train(model, data=data)
    assert "sparse=False" in str(error.value)


def test_a_lazy_layer_is_named() -> None:
    model = nn.Sequential(nn.LazyLinear(CLASSES))
    with pytest.raises(InputError, match=r"0.weight has no shape yet \(a lazy layer\)"):
        start(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_complex_and_wholly_frozen_parameters_are_refused() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    with pytest.raises(InputError, match="phase is complex"):
        start(Complex())
    frozen = make_model().requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that requires a gradient") as error:
        start(frozen)
    assert "2 parameters, all frozen" in str(error.value)


def test_an_optimiser_of_another_model_is_refused(model: nn.Module) -> None:
    """metatrain#375, pytorch-gradual-warmup-lr#27: an optimiser that drives a dead copy trains nothing."""
    with pytest.raises(InputError, match="the optimiser holds 2 parameters that are not the model's"):
        start(model, torch.optim.SGD(make_model().parameters(), lr=0.1))


def test_a_worker_of_one_sample_is_refused_under_batch_normalisation() -> None:
    model = make_model(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    with pytest.raises(InputError, match="step 2 has a virtual worker of one sample"):
        train(model, data=make_data(17))
    assert train(make_model(), data=make_data(17)).outcome == "finished"


@pytest.mark.parametrize("last_batch", ["short", "carry"])
def test_a_worker_of_one_sample_is_found_before_the_first_step(last_batch: str) -> None:
    model = make_model(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match="a mean and a variance need two samples or more"):
        train(model, data=make_data(25), last_batch=last_batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_synchronised_normalisation_is_refused() -> None:
    """Goyal 2017: n defines the loss function; statistics over all workers are another objective."""
    model = make_model(nn.Linear(5, 4), nn.SyncBatchNorm(4), nn.Linear(4, CLASSES))
    with pytest.raises(InputError, match="SyncBatchNorm"):
        start(model)


def test_a_set_that_is_smaller_than_a_dropped_minibatch_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="no minibatch of 8 fits into 5 samples"):
        train(model, data=make_data(5), last_batch="drop")


def test_a_loss_that_is_not_finite_ends_the_run(model: nn.Module) -> None:
    with pytest.raises(DivergedError, match=r"the loss is nan in step 0, epoch 1"):
        train(model, lambda m, x, y: summed(m, x, y) * float("nan"))


def test_a_model_is_free_again_when_its_run_ends(model: nn.Module) -> None:
    """What a run hangs on a model comes off: plain training and a second run go on with it."""
    train(model, precision="bf16")
    inputs = torch.randn(2, 5)
    assert torch.equal(model(inputs), F.linear(inputs, model.weight, model.bias))  # float32 again, no autocast
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(inputs).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert train(model).outcome == "finished"


def test_a_step_kept_beyond_the_end_of_its_run_says_so() -> None:
    run = start(make_model())
    step = next(run.steps(make_data()))
    run.close()
    with pytest.raises(RunError, match="step 0 was iterated after the run had ended"):
        next(iter(step))
