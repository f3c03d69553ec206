"""When enough was seen of a training: a table of what happens, and trainings whose observer goes light and leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from squall.verify.observe.appointment import Appointment
from squall.verify.observe.enough import Course, Enough
from squall.verify.observe.interrupting import KILL, Interruption
from squall.verify.observe.rank import STOP
from squall.verify.observe.recorder import Recorder
from tests.unit.observing import Observed, observed

TRAIN, VALID = 0, 1


class Table:
    """A policy of two epochs of three updates, its clock, what was agreed, and the passes that were begun."""

    def __init__(self, patience_s: float) -> None:
        self.now, self.agreed = 0.0, None
        self.enough = Enough(
            epochs=2, steps=3, patience_s=patience_s, clock=lambda: self.now, agreed=lambda: self.agreed
        )
        self.numbers = itertools.count()
        self.latest: dict[str, int] = {}

    def go(self, event: str) -> Course:
        """`pass X`, `beside X`: a pass over X begins; `bwd X`: a backward pass from the latest one over X."""
        what, *names = event.split()
        inside, names = "inside" in names, [name for name in names if name != "inside"]
        if what in ("pass", "beside"):
            course = self.enough.pass_begins(ord(names[0]), follows=what == "pass")
            self.latest[names[0]] = next(self.numbers)
            return course
        if what == "bwd":
            return self.enough.backward_ends({ord(name): self.latest[name] for name in names}, inside=inside)
        first, endless = "second" not in names, "endless" in names
        return self.enough.updated(first=first, endless=endless, inside=inside)


EPOCH = ["pass t", "bwd t", "step", "bwd t", "step"]
TABLE: dict[str, tuple[list[str], dict[int, str]]] = {
    "two epochs, then light, then away": ([*EPOCH * 5], {10: "light", 15: "agree", 20: "leave"}),
    "validation at the end of epochs": (
        [*EPOCH, "pass v", *EPOCH, "pass v", *EPOCH, "pass v"],
        {12: "light"},
    ),
    "validation in mid-epoch": (
        ["pass t", "bwd t", "step", "pass v", "bwd t", "step", "pass v", "bwd t", "step"] * 3,
        {18: "light"},
    ),
    "validation on a part of the same data": (
        ["pass t", "bwd t", "step", "beside t", "bwd v", "step"],
        {},
    ),
    "a loader for each pass, which may be beside it": (
        [*EPOCH, *EPOCH, "beside t", "bwd t", "step", *EPOCH, *EPOCH],
        {11: "light", 13: "agree", 18: "leave"},
    ),
    "two data sets at once": (["pass t", "pass u", "bwd t u", "step"] * 4, {8: "light", 12: "agree"}),
    "no passes": (["bwd", "step"] * 6, {11: "leave"}),
    "several optimisers for each minibatch": (["bwd", "step", "step second", "step second"] * 6, {21: "leave"}),
    "steps in hooks of a backward pass": (["step inside", "step second inside", "bwd"] * 6, {17: "leave"}),
    "a pass without an end": (
        ["pass t", *["bwd t", "step endless"] * 12],
        {12: "light", 18: "agree", 24: "leave"},
    ),
    "steps in hooks, without an end": (["pass t", *["step endless inside", "bwd t"] * 8], {12: "light"}),
    "nothing is trained": (["pass v"] * 9, {}),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_done_at_each_event(name: str) -> None:
    events, expected = TABLE[name]
    table = Table(patience_s=0.0)
    table.latest["v"] = -1
    found = {}
    for place, event in enumerate(events):
        course = table.go(event)
        if course is Course.AGREE and table.agreed is None:
            table.agreed = table.enough.leaving_before
        if course is not Course.GO_ON:
            found[place] = course.value
        if course is Course.LEAVE:
            break
    assert found == expected


def test_nobody_leaves_before_its_time() -> None:
    table = Table(patience_s=10.0)
    courses = []
    for _ in range(12):
        courses += [table.go(event) for event in EPOCH if event]
        table.now += 3.0
    begins = [course.value for course in courses[:: len(EPOCH)]]
    assert begins == ["go on"] * 2 + ["light"] + ["go on"] * 3 + ["agree"] * 6  # 12 s after it went light
    assert set(courses) == {Course.GO_ON, Course.LIGHT, Course.AGREE}


def test_a_rank_that_hears_of_it_late_leaves_with_the_others() -> None:
    rank = Table(patience_s=1e9)  # its own clock says nothing
    for event in EPOCH * 3:
        rank.go(event)
    assert rank.go(EPOCH[0]) is Course.GO_ON  # rank 0 is about to say that all leave before epoch 4
    rank.agreed = 4
    rest = [rank.go(event) for event in EPOCH[1:] + EPOCH]
    assert [course.value for course in rest] == ["go on"] * 4 + ["leave"] + ["go on"] * 4


def test_an_appointment_is_there_with_its_number_or_not_at_all(tmp_path: Path) -> None:
    one, other = Appointment(tmp_path, STOP), Appointment(tmp_path, STOP)
    assert other.number is None
    (tmp_path / f"{STOP}.new").write_text("")  # as it looks while it is being written
    assert other.number is None
    one.make(7)
    assert other.number == 7
    assert [path.name for path in tmp_path.iterdir()] == [STOP]


def test_an_interruption_is_agreed_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    (tmp_path / "job").mkdir()
    saved = tmp_path / "saved"
    saved.mkdir()
    ranks = [Interruption(Recorder(tmp_path / "job", rank, 2, epochs=2, steps=24), saved) for rank in range(2)]
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(step))
    for step in range(1, 9):
        if step == 2:
            (saved / "last.pt").write_text("x")
        for rank in ranks:
            rank.stepped(step)
    assert Appointment(tmp_path / "job", KILL).number == 5
    assert killed[:2] == [5, 5]


# trainings


class Left(BaseException):
    """The rank has left."""


def leaving(watched: Observed, patience_s: float = 0.0) -> list[bool]:
    """From now on a rank that leaves raises `Left`; whether it was in a backward pass is told."""
    inside: list[bool] = []

    def leave() -> None:
        inside.append(torch._C._current_graph_task_id() != -1)
        raise Left

    watched.leave = leave  # type: ignore[method-assign]
    watched._enough.patience_s = patience_s
    return inside


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        yield one


class Job:
    """A network that learns 40 samples in batches of 8: 5 updates an epoch."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.data = TensorDataset(torch.randn(40, 4), torch.randint(0, 2, (40,)))
        self.valid: Any = TensorDataset(torch.randn(12, 4), torch.randint(0, 2, (12,)))
        self.begun: list[int] = []

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def evaluate(self) -> None:
        with torch.no_grad():
            for x, _ in DataLoader(self.valid, 4):
                self.model(x)

    def train(
        self, epochs: int, *, each: int = 99, loaders: bool = False, most: int | None = None, ends: bool = False
    ) -> None:
        loader: DataLoader[Any] = DataLoader(self.data, 8, shuffle=True)
        for epoch in range(epochs):
            loader = DataLoader(self.data, 8, shuffle=True) if loaders else loader
            self.begun.append(epoch)
            for place, (x, y) in enumerate(itertools.islice(loader, most)):
                self.step(x, y)
                if (place + 1) % each == 0:
                    self.evaluate()
            if ends:
                self.evaluate()


@pytest.mark.parametrize("loaders", [False, True])
@pytest.mark.parametrize("most", [None, 3])
def test_a_long_training_is_left(watched: Observed, loaders: bool, most: int | None) -> None:
    job, inside = Job(), leaving(watched)
    with pytest.raises(Left):
        job.train(50, loaders=loaders, most=most)
    assert job.begun[-1] == 4  # observed: 0, 1; light: 2; agreed on in 3
    assert inside == [False]
    assert len(watched.trace().steps) in ((10,) if most is None else (6,))


def test_a_training_that_is_short_enough_runs_to_its_end(watched: Observed) -> None:
    job, inside = Job(), leaving(watched, patience_s=600.0)
    job.train(9)
    assert not inside
    trace = watched.trace()
    assert len(trace.of("step")) == 45
    assert len(trace.steps) == 10
    assert not trace.of("blind")


@pytest.mark.parametrize("where", ["other data", "a part of the same data", "the same data"])
def test_validation_in_mid_epoch_is_no_epoch(watched: Observed, where: str) -> None:
    job = Job()
    if where == "a part of the same data":
        job.data, job.valid = random_split(job.data, [32, 8])  # type: ignore[assignment]
    elif where == "the same data":
        job.valid = job.data
    updates = len(DataLoader(job.data, 8))
    job.train(3, each=2)
    trace = watched.trace()
    assert len(trace.steps) == 2 * updates
    (enough,) = trace.of("enough")
    third = [
        event["n"]
        for event in trace.of("pass")
        if event["batches"] == updates and event["sampler"]["class"] == "RandomSampler"
    ][2]
    assert enough["n"] < third


def test_a_batch_that_is_only_measured_beside_each_that_is_learned_from_is_no_training(watched: Observed) -> None:
    job, inside = Job(), leaving(watched)
    probes = (x for _ in itertools.count() for x, _ in DataLoader(job.valid, 4))

    def train() -> None:
        for epoch in range(50):
            job.begun.append(epoch)
            for (x, y), probe in zip(DataLoader(job.data, 8), probes, strict=False):
                with torch.no_grad():
                    job.model(probe)
                job.step(x, y)

    with pytest.raises(Left):
        train()
    assert inside == [False]
    assert job.begun[-1] == 4
    assert len(watched.trace().steps) == 10


def test_a_rank_that_evaluates_alone_leaves_after_it_where_the_others_do(watched: Observed) -> None:
    job = Job()
    job.data, job.valid = random_split(job.data, [32, 8])  # type: ignore[assignment]
    leaving(watched)
    with pytest.raises(Left):
        job.train(50, loaders=True, ends=True)
    assert watched.updates.steps == 4 * 4
    assert [event["batches"] for event in watched.events("pass")] == [4, 2] * 4  # no evaluation is left out


def test_one_optimiser_for_each_parameter_steps_for_one_update(watched: Observed) -> None:
    model, inside = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))), leaving(watched)
    for parameter in model.parameters():
        own = torch.optim.SGD([parameter], 0.1)

        def stepped(one: torch.Tensor, own: torch.optim.Optimizer = own) -> None:
            own.step()
            own.zero_grad()

        parameter.register_post_accumulate_grad_hook(stepped)
    backwards = []

    def train() -> None:
        for _ in range(100):
            backwards.append(model(torch.randn(2, 4)).sum().backward())

    with pytest.raises(Left):
        train()
    assert len(backwards) == 47  # and in the 48th it left
    assert inside == [False]


def test_an_iteration_that_nothing_counts_is_left_after_as_many_updates(watched: Observed) -> None:
    job, inside = Job(), leaving(watched)

    def train() -> None:
        for _ in range(100):
            job.step(torch.randn(8, 4), torch.randint(0, 2, (8,)))

    with pytest.raises(Left):
        train()
    assert watched.updates.steps == 48
    assert inside == [False]


def test_a_rank_that_cannot_save_its_trace_leaves_with_the_others(
    watched: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(code: int) -> None:
        raise Left

    def full() -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os._exit", gone)
    monkeypatch.setattr(watched.recorder, "save", full)
    watched._enough.patience_s = 0.0
    job = Job()
    with pytest.raises(Left):
        job.train(50)
    assert job.begun[-1] == 4
