"""Mode: is the network in train() where it is trained, and in eval() where it is measured?"""

from __future__ import annotations

from squall.verify import edits
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Event, Rank, Run


def mode(training: Training) -> Finding:
    """Is the network in training mode at every training step, on every rank?

    It matters to dropout and batch normalisation alone, whose own flags decide.
    """
    checked, matters = 0, False
    last: Event | None = None
    for run in training.runs:
        calls = [training_calls(rank) for rank in run.ranks]
        for events in zip(*calls, strict=False):
            checked += 1
            last = events[0]
            modes = [event["modes"] for event in events]
            matters = matters or bool(modes[0])
            if any(one != modes[0] for one in modes[1:]) and len({len(one) for one in modes}) == 1:
                quiet = min(range(len(modes)), key=lambda place: sum(modes[place]))
                return _in_eval(
                    training,
                    run,
                    run.ranks[quiet],
                    events[quiet],
                    f"rank {quiet} trains in eval mode, the others do not",
                )
        for rank, own in zip(run.ranks, calls, strict=True):
            for model in {event["model"] for event in own}:
                mine = [event for event in own if event["model"] == model and event["modes"]]
                later = next((event for event in mine if any(mine[0]["modes"]) and not any(event["modes"])), None)
                if later is not None:
                    everybody = all(any(not any(event["modes"]) for event in each) for each in calls)
                    who = "all ranks go" if everybody and run.processes > 1 else f"rank {rank.number} goes"
                    return _in_eval(training, run, rank, later, f"{who} on training in eval mode")
    measured = _measured_in_training(training)
    if measured is not None:
        return measured
    if last is None:
        return Finding(check="mode", outcome="--", says="no call of a network was seen in training")
    if not matters:
        return Finding(
            check="mode", outcome="--", says="no dropout and no batch normalisation: train() and eval() are alike"
        )
    if not any(last["modes"]):
        return Finding(
            check="mode",
            outcome="note",
            says="the network is trained in eval mode: no dropout, frozen statistics",
            place=training.place(last),
        )
    said = f"train() in all {count(checked, 'training step')}, on all ranks"
    if last["quiet"]:
        said += f"; {last['quiet'][0]} stays in eval mode"
    return Finding(check="mode", outcome="ok", says=said)


def _measured_in_training(training: Training) -> Finding | None:
    """An evaluation by a network with dropout or batch statistics switched on: on data that nothing is learned from."""
    for run in training.runs:
        for rank in run.ranks:
            calls = [event for event in rank.of("forward") if event["batch"] is not None]
            learned = {rank.events[event["batch"]]["data"] for event in calls if event["grad"]} | {*rank.training_data}
            calls = [one for one in calls if not one["grad"] and rank.events[one["batch"]]["data"] not in learned]
            active = [event for event in calls if event["training"] and any(event["modes"])]
            if active and len(active) > 0.5 * len(calls):
                return Finding(
                    check="mode",
                    outcome="FAIL",
                    says=f"evaluated in training mode, in {len(active)} of {count(len(calls), 'call')}",
                    place=training.place(active[0]),
                    expected="model.eval() before an evaluation",
                    found=f"with {count(run.processes, 'process')} dropout or batch normalisation is in training mode "
                    "there",
                    effect="results with random masks, or by the statistics of each batch; and running statistics that "
                    "have seen the evaluation set",
                    change="model.eval() before, model.train() after",
                    known=("pytorch-3dunet#53",),
                )
    return None


def training_calls(rank: Rank) -> list[Event]:
    """The calls of networks that a backward pass followed."""
    return [rank.events[event["forward"]] for event in rank.backwards if event.get("forward") is not None]


def _in_eval(training: Training, run: Run, rank: Rank, event: Event, says: str) -> Finding:
    batch = event["batch"]
    begins = batch is not None and rank.events[batch].get("position") == 0  # else train() would come too early
    return Finding(
        check="mode",
        outcome="FAIL",
        says=says,
        place=training.place(event),
        expected="model.train() before every epoch, on all ranks",
        found=f"with {count(run.processes, 'process')} a training step is made with the network in eval()",
        effect="no dropout there, and normalisation by frozen statistics: another network than the one that is meant",
        change="call model.train() at the start of each epoch, and after every evaluation",
        edits=edits.train_mode(training.place(event)) if begins else (),
        known=("pytorch-fcn#56", "coRNN#1"),
    )
