"""What is said of losses: right scripts that weigh, skip or mix in unusual ways, and beside each the fault itself.

Runs that are made up hold all ranks; what a loss or an optimiser leaves in a trace is observed from real trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from squall.verify.checks.accumulation import accumulation
from squall.verify.checks.gradient import emptied, gradient
from squall.verify.checks.law import LAWS, law, own
from squall.verify.checks.mixing import by_counts, factors, reduction, scales
from squall.verify.checks.training import Training
from squall.verify.checks.weighting import weighting
from squall.verify.finding import Finding
from squall.verify.trace import Rank, Run
from tests.unit.observing import observed
from tests.unit.test_verify_update import SIZES, made_up

ONE = ((1, 8, 1.0),) * 4
SHORT = (*((1, 8, 1.0),) * 10, (1, 5, 1.0))


def trained(weight: Callable[..., float], plan: Any = ONE, processes: Sequence[int] = (2, 4), **more: Any) -> Training:
    """Runs in which everything is known.

    Arguments:
        weight: with which the mean over a batch enters its rank's loss, of (processes, batches, samples, scale).
        plan: the updates, or what makes them of the number of processes: batches, samples of each, loss scale.
        more: `ratio` of the reduction, of processes; `term`: fields of each term; `edit`: changes a rank;
            `sums`: losses are sums.
    """
    runs = []
    for number in processes:
        ratio = more["ratio"](number) if "ratio" in more else 1 / number
        made = plan(number) if callable(plan) else plan
        run = made_up(number, made, weight, ratio=ratio, sums=more.get("sums", False))
        for rank in run.ranks:
            rank.about["backend"] = "gloo"  # type: ignore[index]
            rank.about["frameworks"] = more.get("frameworks", [])  # type: ignore[index]
            for event in rank.of("backward"):
                event["terms"][0].update(more.get("term", {}))
            for event in rank.of("step"):
                event["group_of"] = {str(index): 0 for index in range(len(SIZES))}  # type: ignore[index]
                event["groups"] = [{"lr": 0.1}]  # type: ignore[index]
            if "edit" in more:
                more["edit"](rank, run)
        runs.append(run)
    return Training(runs)


def said(finding: Finding) -> tuple[str, str]:
    return finding.outcome, f"{finding.says} {finding.found}"


# laws


def test_a_half_is_the_losss_own_and_with_one_number_of_processes_a_note() -> None:
    assert gradient(trained(lambda p, m, b, s: 0.5)).outcome == "ok"
    assert "the loss's own factor 0.5" in gradient(trained(lambda p, m, b, s: 0.5)).says
    outcome, words = said(gradient(trained(lambda p, m, b, s: 0.5, processes=(2,))))
    assert outcome == "note"
    assert "with another number would tell" in words
    assert gradient(trained(lambda p, m, b, s: 0.3, processes=(2,))).outcome == "ok"


@pytest.mark.parametrize("processes", [(2,), (2, 4)])
@pytest.mark.parametrize(("ratio", "name"), [(lambda p: 1.0, "x "), (lambda p: 1 / p**2, "/ ")])
def test_a_sum_or_a_second_mean_over_ranks_is_found_with_one_number_of_processes_too(
    processes: tuple[int, ...], ratio: Callable[[int], float], name: str
) -> None:
    finding = gradient(trained(lambda p, m, b, s: 1.0, processes=processes, ratio=ratio))
    assert finding.outcome == "FAIL"
    assert finding.says.startswith(f"{name}{max(processes)} with")
    assert "it is in the reduction" in finding.found


@pytest.mark.parametrize("by", [lambda p: p, lambda p: 1 / p], ids=["times", "divided"])
def test_a_short_last_batch_of_sums_hides_no_factor(by: Callable[[int], float]) -> None:
    right = trained(lambda p, m, b, s: b / 8, SHORT, sums=True)
    assert gradient(right).outcome == "ok"
    wrong = gradient(trained(lambda p, m, b, s: b / 8 * by(p), SHORT, sums=True))
    assert wrong.outcome == "FAIL"
    assert "the number of processes" in wrong.says
    assert "it is in the loss" in wrong.found


def _two_optimisers(rank: Rank, run: Run) -> None:
    for place, (backward, step) in enumerate(zip(rank.of("backward"), rank.of("step"), strict=True)):
        step["optimizer"] = place % 2  # type: ignore[index]
        backward["terms"][0]["factor"] *= 10.0 if place % 2 else 1.0
        for name in ("local", "grad"):
            for index in range(len(SIZES)):
                rank.arrays[f"{step['n']}.{name}.{index}"] *= 10.0 if place % 2 else 1.0


def test_optimisers_with_losses_of_other_sizes_are_looked_at_one_by_one() -> None:
    assert gradient(trained(lambda p, m, b, s: 1.0, edit=_two_optimisers)).outcome == "ok"
    wrong = gradient(trained(lambda p, m, b, s: p, edit=_two_optimisers))
    assert wrong.outcome == "FAIL"
    assert "the number of processes" in wrong.says


@pytest.mark.parametrize("constant", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("batch", [lambda p: 32 // p, lambda p: 8], ids=["global batch", "batch of a rank"])
def test_a_sum_is_a_sum_whatever_it_is_multiplied_by(constant: float, batch: Callable[[int], int]) -> None:
    found = gradient(trained(lambda p, m, b, s: constant * b, lambda p: ((1, batch(p), 1.0),) * 4, sums=True))
    assert found.outcome == "note"
    assert found.says.startswith(f"= {constant:.3g} x the sum over the samples of a rank's batches")


def test_a_sum_by_the_global_batch_under_a_mean_over_ranks_is_too_small() -> None:
    found = gradient(trained(lambda p, m, b, s: b / 32, lambda p: ((1, 32 // p, 1.0),) * 4, sums=True))
    assert found.outcome == "FAIL"
    assert "1 / the number of processes" in found.says


def test_a_law_that_does_not_vary_is_a_constant() -> None:
    for weight, plan in ((0.5, ((2, 8, 1.0),) * 4), (0.25, ((4, 8, 1.0),) * 4), (8.0, ((1, 8, 1.0),) * 4)):
        training = trained(lambda p, m, b, s, weight=weight: weight / m, plan)
        one = law(training.all_updates)
        assert one is not None
        assert (one.kind, one.constant) == ("one", pytest.approx(weight))
    assert len({one.name for one in LAWS}) == len(LAWS)


def test_what_terms_weigh_is_said_where_it_is_not_one() -> None:
    assert own([1.0]) == own([0.9, 0.1]) == own([0.5, 0.5]) == ""
    assert own([0.5]) == ", the loss's own factor 0.5"
    assert own([1.0, 0.3]) == ", its 2 terms weigh 1 and 0.3"
    assert own([0.5, 0.5, 0.5]) == ", its 3 terms weigh 0.5 each"
    assert own([0.5, 0.2] * 10) == ", its 20 terms weigh 0.2 to 0.5"


# mixtures


def _mixed(weights: Callable[[int, int], float]) -> Callable[[Rank, Run], None]:
    """Applies the ranks' own gradients with the weights of (rank, processes)."""

    def edit(rank: Rank, run: Run) -> None:
        for step in rank.of("step"):
            for index in range(len(SIZES)):
                rank.arrays[f"{step['n']}.grad.{index}"] = sum(  # type: ignore[index]
                    weights(other.number, run.processes) * other.arrays[f"{step['n']}.local.{index}"]
                    for other in run.ranks
                )

    return edit


def _tokens(rank: int, processes: int) -> float:
    return (rank + 1) / sum(range(1, processes + 1))


def _counted(rank: Rank, run: Run) -> None:
    for event in rank.of("backward"):
        event["terms"][0]["units"] = 10 * (rank.number + 1)
    _mixed(_tokens)(rank, run)


def test_ranks_that_enter_by_their_tokens_are_a_mean_over_all_tokens() -> None:
    training = trained(lambda p, m, b, s: 1.0, edit=_counted)
    for update in training.all_updates:
        assert not update.reduced
        assert by_counts(update) == pytest.approx([_tokens(rank, update.processes) for rank in range(update.processes)])
        assert (reduction(update), scales(update)) == (pytest.approx(1.0), [pytest.approx(1.0)])
    assert gradient(training).outcome == "ok"
    assert "ranks enter by how much each holds" in gradient(training).says
    assert weighting(training).outcome == "ok"


def test_ranks_that_enter_by_tokens_and_are_summed_again_are_too_small() -> None:
    def again(rank: Rank, run: Run) -> None:
        _counted(rank, run)
        _mixed(lambda number, processes: _tokens(number, processes) / processes)(rank, run)

    found = gradient(trained(lambda p, m, b, s: 1.0, edit=again))
    assert found.outcome == "FAIL"
    assert "1 / the number of processes" in found.says


def test_ranks_that_enter_by_anything_else_are_noted_with_their_factors() -> None:
    training = trained(lambda p, m, b, s: 1.0, processes=(2,), edit=_mixed(lambda rank, p: (0.8, 0.2)[rank]))
    assert factors(training.all_updates[0]) == pytest.approx([0.8, 0.2])
    outcome, words = said(gradient(training))
    assert outcome == "note"
    assert "1.6 and 0.4 over 2" in words


# windows


def _divided_by(*divisors: float, times: Sequence[float] = (), of: str = "LogSoftmax") -> dict[str, Any]:
    """Fields of a term that was divided, and multiplied, by numbers."""
    return {"divisors": list(divisors), "constants": [*(1 / one for one in divisors), *times], "of": of}


def windows(weight: float, batches: int, *divisors: float, **more: Any) -> Finding:
    """Of updates of so many batches, each batch's loss with a weight."""
    term = _divided_by(*divisors, **{key: more.pop(key) for key in ("times", "of") if key in more})
    return accumulation(trained(lambda p, m, b, s: weight, ((batches, 8, 1.0),) * 4, term=term, **more))


def test_losses_that_are_divided_once_are_right_whatever_else_they_weigh() -> None:
    assert windows(0.25, 4, 4.0).outcome == "ok"
    assert windows(0.125, 4, 4.0, times=[0.5]).outcome == "ok"
    assert windows(0.25, 2, 2.0, times=[0.5], of="MseLoss").outcome == "ok"  # 0.5 x the squared error, by 2
    assert windows(0.25, 2, 2.0, times=[0.5], of="Pow").outcome == "ok"
    assert windows(2.5, 4, times=[2.5]).outcome == "ok"  # 10 / 4
    assert windows(0.175, 4, times=[0.175]).outcome == "ok"  # 0.7 / 4
    assert "the loss's own factor 10" in windows(2.5, 4, times=[2.5]).says


def test_losses_that_are_not_divided_or_divided_twice_are_wrong() -> None:
    for found in (windows(1.0, 4), windows(0.3, 4, times=[0.3]), windows(0.5, 4, times=[0.5], of="MseLoss")):
        assert found.outcome == "FAIL"
        assert "not divided by the 4 batches" in found.says
    assert windows(1.0, 10).outcome == "FAIL"
    twice = [
        windows(1 / 16, 4, 4.0, 4.0),
        windows(0.25, 2, 2.0, 2.0),
        windows(0.25, 2, 2.0, 2.0, of="MseLoss", frameworks=["Accelerate"]),
        accumulation(trained(lambda p, m, b, s: 1 / m**2, ((4, 8, 1.0), (2, 8, 1.0)) * 3)),
    ]
    for found in twice:
        assert found.outcome == "FAIL"
        assert "divided twice by" in found.says


def test_what_cannot_be_told_from_a_factor_of_the_loss_is_a_note() -> None:
    assert windows(0.25, 2, 2.0, 2.0, of="MseLoss").outcome == "note"  # half the squared error, by 2
    assert windows(0.5, 4, times=[0.5]).outcome == "note"  # 2 / 4, or not divided


def test_the_mean_over_a_batch_of_as_many_samples_as_the_window_is_no_division_by_it() -> None:
    summed: dict[str, Any] = {"sums": True, "of": "Sub"}
    assert windows(0.125, 8, 8.0, 8.0, **summed).outcome == "ok"
    assert "not divided" in windows(1.0, 8, 8.0, **summed).says


def test_two_losses_on_two_data_sets_are_no_accumulation() -> None:
    def sets(rank: Rank, run: Run) -> None:
        for place, event in enumerate(rank.of("batch")):
            event["data"] = place % 2  # type: ignore[index]

    plan = ((2, 8, 1.0),) * 4
    assert accumulation(trained(lambda p, m, b, s: 1.0, plan, edit=sets)).outcome == "--"
    assert accumulation(trained(lambda p, m, b, s: 1.0, plan)).outcome == "FAIL"


# weights of samples


def _factors(rank: Rank, run: Run) -> None:
    for place, event in enumerate(rank.of("backward")):
        event["terms"][0]["factor"] = 0.1 if (place + rank.number) % 2 else 1.0


def _units(rank: Rank, run: Run) -> None:
    for event in rank.of("backward"):
        event["terms"][0]["units"] = 8 - rank.number


def _over_a_window(rank: Rank, run: Run) -> None:
    """A sum over each batch's tokens by those of the rank's window."""
    for step in rank.of("step"):
        tokens = {number: 3 + place + 5 * rank.number for place, number in enumerate(step["from"]["0"])}
        for number, units in tokens.items():
            term = {"how": "sum", "units": units, "factor": 1 / sum(tokens.values())}
            rank.events[number]["terms"][0].update(term)


def test_tasks_that_weigh_otherwise_are_no_mean_of_means() -> None:
    outcome, words = said(weighting(trained(lambda p, m, b, s: 1.0, edit=_factors)))
    assert outcome == "note"
    assert "10 times apart" in words
    assert "by factors in the loss" in words


@pytest.mark.parametrize(("edit", "batches"), [(_units, 1), (_over_a_window, 3)])
def test_a_mean_of_means_is_named_of_batches_and_of_ranks(edit: Callable[[Rank, Run], None], batches: int) -> None:
    finding = weighting(trained(lambda p, m, b, s: 1.0, ((batches, 8, 1.0),) * 4, edit=edit))
    assert finding.outcome == "FAIL"
    assert "a mean of means over unequal counts" in finding.says


def test_a_mean_of_means_is_named_beside_a_term_of_tasks() -> None:
    def both(rank: Rank, run: Run) -> None:
        _factors(rank, run)
        for event in rank.of("backward"):
            units = 8 - rank.number
            event["terms"].append({"how": "mean", "units": units, "factor": 1.0, "constants": [], "penalty": False})

    assert weighting(trained(lambda p, m, b, s: 1.0, edit=both)).outcome == "FAIL"


def test_a_loss_that_one_rank_switches_off_is_no_fault() -> None:
    def off(rank: Rank, run: Run) -> None:
        for event in rank.of("backward") if rank.number == 1 else ():
            event["terms"][0]["factor"] = 0.0

    assert weighting(trained(lambda p, m, b, s: 1.0, edit=off)).outcome == "ok"


# trainings


MADE = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 8, generator=MADE), torch.randint(0, 3, (40,), generator=MADE)
DATA = TensorDataset(X, Y)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def look(folder: Path, train: Callable[[], object]) -> Training:
    """A training in one process."""
    with observed(folder) as observer:
        train()
        return Training([Run(1, [observer.trace()])])


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=1e-2)


def epochs(number: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(number):
        yield from DataLoader(DATA, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))


def accumulated(loss: Callable[[nn.Module, Tensor, Tensor], Tensor], window: int, number: int = 4) -> None:
    """Windows that take no notice of epochs, each of five batches."""
    net = network()
    optimizer = sgd(net)
    for place, (x, y) in enumerate(epochs(number)):
        loss(net, x, y).backward()
        if (place + 1) % window == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    "loss",
    [
        lambda net, x, y: F.cross_entropy(net(x), y) / 3,
        lambda net, x, y: F.cross_entropy(net(x), y, label_smoothing=0.1) / 3,
        lambda net, x, y: 0.2 * F.cross_entropy(net(x), y) / 3,
        lambda net, x, y: net(x).norm() / 3,
    ],
    ids=["plain", "smoothed", "weighed", "opaque"],
)
def test_windows_that_cross_epochs_and_weigh_as_others_are_right(loss: Any, tmp_path: Path) -> None:
    found = accumulation(look(tmp_path, lambda: accumulated(loss, 3)))
    assert found.outcome in ("ok", "--")


def test_a_rest_that_is_carried_into_the_next_epoch_weighs_too_much(tmp_path: Path) -> None:
    def train() -> None:
        net = network()
        optimizer = sgd(net)
        for _ in range(3):
            for place, (x, y) in enumerate(epochs(1)):
                (F.cross_entropy(net(x), y, label_smoothing=0.1) / 2).backward()
                if (place + 1) % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()

    outcome, words = said(accumulation(look(tmp_path, train)))
    assert outcome == "FAIL"
    assert "weighs 1.5, where others weigh 1" in words


def _probed(probe: Callable[[nn.Module], object]) -> None:
    net = network()
    optimizer = sgd(net)
    for _ in range(2):
        for x, y in epochs(1):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        probe(net)
    net.zero_grad()


def _fisher(net: nn.Module) -> None:
    for x, y in DataLoader(TensorDataset(X[:16].clone(), Y[:16]), batch_size=8):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()


def _fisher_of_the_set(net: nn.Module) -> None:
    for x, y in DataLoader(DATA, batch_size=8):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()


@pytest.mark.parametrize("probe", [_fisher, _fisher_of_the_set])
def test_passes_that_only_look_at_gradients_lose_none(probe: Callable[[nn.Module], object], tmp_path: Path) -> None:
    assert accumulation(look(tmp_path, lambda: _probed(probe))).outcome == "--"


def _left_out(when: int, how: str) -> None:
    """A batch's gradient overflows, and its update is left out by hand or by a scaler; each epoch's last is dropped."""
    net = network()
    optimizer, scaler = sgd(net), torch.amp.GradScaler("cpu", init_scale=4.0)
    calls = iter(range(1000))
    net[0].weight.register_hook(lambda gradient: gradient * (float("inf") if next(calls) == when else 1.0))
    for _ in range(2):
        for place, (x, y) in enumerate(epochs(1)):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            if "dropped" in how and place == 4:
                loss.backward()
            elif "scaler" in how:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                if torch.isfinite(net[0].weight.grad).all():
                    optimizer.step()


@pytest.mark.parametrize("how", ["hand", "scaler"])
def test_updates_that_overflowed_are_not_lost_and_hide_none_that_are(how: str, tmp_path: Path) -> None:
    assert accumulation(look(tmp_path, lambda: _left_out(2, how))).outcome == "--"
    (tmp_path / "dropped").mkdir()
    finding = accumulation(look(tmp_path / "dropped", lambda: _left_out(2, f"{how}, dropped")))
    assert finding.outcome == "FAIL"
    assert finding.says.startswith("the gradients of 1 of 10 backward passes are thrown away")


def test_a_window_whose_rest_is_dropped_is_named(tmp_path: Path) -> None:
    def train() -> None:
        net = network()
        optimizer = sgd(net)
        for _ in range(2):
            optimizer.zero_grad()
            for place, (x, y) in enumerate(epochs(1)):
                (F.cross_entropy(net(x), y) / 2).backward()
                if (place + 1) % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()

    finding = accumulation(look(tmp_path, train))
    assert finding.outcome == "FAIL"
    assert "1 batch of rank 0" in finding.found


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("before_step", [True, False])
def test_gradients_that_are_emptied_before_the_update_are_named(
    to_none: bool, before_step: bool, tmp_path: Path
) -> None:
    def train() -> None:
        net = network()
        optimizer = sgd(net)
        for x, y in epochs():
            F.cross_entropy(net(x), y).backward()
            if before_step:
                optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()
            if not before_step:
                optimizer.zero_grad(set_to_none=to_none)

    training = look(tmp_path, train)
    assert (emptied(training.runs[0]) is not None) == before_step
    finding = gradient(training)
    assert finding.outcome == ("FAIL" if before_step else "ok")
    assert ("are emptied" in finding.says) == before_step


def test_optimisers_of_one_loss_may_step_unequally_often(tmp_path: Path) -> None:
    def train() -> None:
        net = network()
        often, seldom = (torch.optim.SGD(net[place].parameters(), lr=1e-2) for place in (0, 2))
        for place, (x, y) in enumerate(epochs()):
            F.cross_entropy(net(x), y).backward()
            often.step()
            often.zero_grad()
            if place % 2 == 1:
                seldom.step()
                seldom.zero_grad()

    assert gradient(look(tmp_path, train)).outcome == "ok"


@pytest.mark.parametrize("emptied_too", [True, False])
def test_the_generators_gradient_in_a_critic_is_named(emptied_too: bool, tmp_path: Path) -> None:
    def train() -> None:
        torch.manual_seed(0)
        critic, generator = nn.Linear(8, 1), nn.Linear(4, 8)
        of_critic, of_generator = sgd(critic), sgd(generator)
        for x, _ in epochs():
            fake = generator(torch.randn(8, 4))
            if emptied_too:
                of_critic.zero_grad()
            (critic(fake.detach()).mean() - critic(x).mean()).backward()
            of_critic.step()
            if not emptied_too:
                of_critic.zero_grad()
            of_generator.zero_grad()
            (-critic(fake).mean()).backward()
            of_generator.step()

    finding = gradient(look(tmp_path, train))
    assert finding.outcome == ("ok" if emptied_too else "FAIL")
    assert ("of another loss is left" in finding.says) != emptied_too


def _by_hand(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Smoothing as libraries write it: sums over what is not masked, by its count."""
    logs = -F.log_softmax(net(x), dim=-1)
    masked = (y == -100)[:, None]
    counted = (~masked).sum()
    chosen = logs.gather(-1, y[:, None]).masked_fill(masked, 0.0).sum() / counted
    return 0.9 * chosen + 0.1 * logs.sum(-1, keepdim=True).masked_fill(masked, 0.0).sum() / (3 * counted)


SMOOTHED: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "mean": lambda net, x, y: F.cross_entropy(net(x), y, label_smoothing=0.1),
    "some ignored": lambda net, x, y: F.cross_entropy(net(x), y, label_smoothing=0.1, ignore_index=0),
    "sum": lambda net, x, y: F.cross_entropy(net(x), y, label_smoothing=0.1, reduction="sum") / len(x),
    "rows": lambda net, x, y: F.cross_entropy(net(x).t()[None], y[None], label_smoothing=0.1),
    "by hand": _by_hand,
    "a mean over all": lambda net, x, y: _with_a_mean(net(x).log_softmax(1), y),
}


def _with_a_mean(logs: Tensor, y: Tensor) -> Tensor:
    return 0.9 * F.nll_loss(logs, y) - 0.1 * logs.mean()


@pytest.mark.parametrize("name", SMOOTHED)
def test_a_loss_with_smoothed_labels_weighs_one(name: str, tmp_path: Path) -> None:
    def train() -> None:
        net = network()
        optimizer = sgd(net)
        for x, y in epochs():
            optimizer.zero_grad()
            SMOOTHED[name](net, x, y).backward()
            optimizer.step()

    training = look(tmp_path, train)
    for update in training.all_updates:
        assert scales(update) == pytest.approx([1.0], abs=1e-4)
    finding = gradient(training)
    assert (finding.outcome, "terms" in finding.says, "factor" in finding.says) == ("ok", False, False)


def test_two_losses_of_the_same_log_probabilities_stay_two(tmp_path: Path) -> None:
    def train() -> None:
        net = network()
        optimizer = sgd(net)
        for x, y in epochs():
            logs = net(x).log_softmax(1)
            optimizer.zero_grad()
            (F.nll_loss(logs, y) + 0.3 * (logs * logs.detach().exp()).mean()).backward()
            optimizer.step()

    training = look(tmp_path, train)
    assert scales(training.all_updates[0]) == pytest.approx([1.0, 0.3])
    assert "its 2 terms weigh 1 and 0.3" in gradient(training).says


def test_the_sign_of_a_loss_is_not_in_its_weight(tmp_path: Path) -> None:
    def train() -> None:
        net = network()
        optimizer = sgd(net)
        for x, y in epochs():
            optimizer.zero_grad()
            (-net(x).log_softmax(1).gather(1, y[:, None]).mean()).backward()
            optimizer.step()

    finding = gradient(look(tmp_path, train))
    assert (finding.outcome, "factor" in finding.says) == ("ok", False)
