"""Augmentation: does each sample get random numbers of its own, on every rank, in every loader process and epoch?

Two samples that began from the same states of the generators they drew from, or that seeded one alike, got the same
numbers (`observe/streams.py`). With P ranks seeded alike the i-th samples of all of them share theirs, so that each
minibatch has 1/P of the variety it should have.
"""

from __future__ import annotations

import numpy

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Run

_RANK, _WORKER, _DATA, _PASS, _INDEX, _DRAWN, _MADE, _CONTENT, _STORED = range(9)
_SHARED = 0.05  # of the samples
_GENERATORS = (" of Python's generator", " of NumPy's generator", " of torch's generator", " of the data set's own")


def augmentation(training: Training) -> Finding:
    """Does each sample get random numbers of its own, on every rank and in every epoch?"""
    drew = 0
    seeded = 0
    for run in training.several or training.runs:
        rows = _rows(run)
        if not len(rows):
            continue
        drawn, made = rows[rows[:, _DRAWN] != 0], rows[rows[:, _MADE] != 0]
        drew += len(numpy.unique(drawn[:, _RANK : _INDEX + 1], axis=0))
        seeded += len(made)
        for place, name in enumerate(_GENERATORS):
            finding = _shared(training, run, drawn[numpy.minimum(drawn[:, _DRAWN] % 8, 3) == place], _DRAWN, name)
            if finding is not None:
                return finding
        finding = _shared(training, run, made, _MADE)
        if finding is not None:
            return finding
        finding = _repeated(training, run, made)
        if finding is not None:
            return finding
    masks = _masks(training)
    if masks is not None:
        return masks
    if drew or seeded:
        return Finding(
            check="augmentation",
            outcome="ok",
            says=f"no two ranks, loader processes or epochs share a stream, over {count(drew + seeded, 'sample')}",
        )
    return Finding(check="augmentation", outcome="--", says="no random number was seen to be drawn for a sample")


def _rows(run: Run) -> Array:
    """What was read of the training data by all ranks, the rank in front."""
    data = run.first.training_data[:1]
    found = []
    for rank in run.ranks:
        mine = rank.items[rank.items[:, 1] == data[0]] if data else rank.items[:0]
        trained = {event["pass_"] for event in rank.passes(data[0], training=True)} if data else set()
        if trained and len(mine):
            mine = mine[numpy.isin(mine[:, 2], list(trained))]
        found.append(numpy.concatenate([numpy.full((len(mine), 1), rank.number), mine], axis=1))
    return numpy.concatenate(found) if found else numpy.zeros((0, 9), dtype=numpy.int64)


def _shared(training: Training, run: Run, rows: Array, column: int, generator: str = "") -> Finding | None:
    """Readings of different samples, or by different ranks, with the same numbers.

    Arguments:
        rows: those that drew from one kind of generator, or that gave seeds.
        generator: which, for the sentence.
    """
    if len(rows) < 2:
        return None
    order = numpy.argsort(rows[:, column], kind="stable")
    rows = rows[order]
    equal = numpy.flatnonzero(rows[1:, column] == rows[:-1, column])
    pairs = [
        (rows[place], rows[place + 1])
        for place in equal
        if column == _DRAWN or rows[place][_INDEX] != rows[place + 1][_INDEX]
    ]
    if len(pairs) <= _SHARED * len(rows):
        return None
    one, other = next(
        ((a, b) for a, b in pairs if a[_RANK] != b[_RANK]),
        next(((a, b) for a, b in pairs if a[_WORKER] != b[_WORKER]), pairs[0]),
    )
    if one[_RANK] != other[_RANK]:
        who = "ranks share their random numbers"
        found = f"rank {one[_RANK]}'s sample {one[_INDEX]} and rank {other[_RANK]}'s sample {other[_INDEX]}"
        effect = f"a minibatch holds each gain, flip or noise {run.processes} times: 1/{run.processes} of the variety"
        if len(pairs) < 0.9 * len(rows) * (1 - 1 / run.processes):
            effect = f"{len(pairs) / len(rows):.0%} of the gains, flips or noises are copies of another's"
        change = "seed what the data set draws from with the rank in it (seed + rank), or by (seed, epoch, index)"
        if "Lightning" in run.first.about.get("frameworks", ()):
            change = "seed_everything(seed, workers=True): loader processes are seeded by rank and place"
        if "Accelerate" in run.first.about.get("frameworks", ()):
            change = "set_seed(seed, device_specific=True) before the loaders are read: ranks draw other numbers"
        known = ("transformers#37932",)
    elif one[_WORKER] != other[_WORKER]:
        who = "loader processes share their random numbers"
        found = f"sample {one[_INDEX]} in loader process {one[_WORKER]} and sample {other[_INDEX]} in {other[_WORKER]}"
        effect = "each loader process starts from a copy of the same generator, every epoch"
        change = "make the generator anew in worker_init_fn, from get_worker_info().seed and the rank"
        known = ("pytorch#5059",)
    else:
        who = "epochs share their random numbers"
        found = f"sample {one[_INDEX]} in epoch {one[_PASS] + 1} and sample {other[_INDEX]} in epoch {other[_PASS] + 1}"
        effect = "the same numbers come back in each epoch: little more than one look at each sample"
        change = "do not seed again in each epoch, or seed by (seed, epoch, index)"
        known = ("Lightning#20412",)
    return Finding(
        check="augmentation",
        outcome="FAIL",
        says=f"{who}{generator}: {len(pairs):,} of {len(rows):,} samples got those of another",
        place=training.place(_pass(run)),
        expected="each sample draws numbers that no other gets",
        found=f"with {count(run.processes, 'process')} {found} drew from generators in the same state",
        effect=effect,
        change=change,
        known=known,
    )


def _repeated(training: Training, run: Run, made: Array) -> Finding | None:
    """Samples that look the same in each epoch, though they are altered at random."""
    altered = made[made[:, _STORED] == 0]
    if len(altered) < 8:
        return None
    passes: dict[int, dict[int, int]] = {}
    for row in altered:
        passes.setdefault(int(row[_PASS]), {})[int(row[_INDEX])] = int(row[_MADE])
    if len(passes) < 2:
        return None
    first, second = (passes[one] for one in sorted(passes)[:2])
    both = set(first) & set(second)
    same = sum(first[index] == second[index] for index in both)
    if not both or same < 0.9 * len(both):
        return None
    return Finding(
        check="augmentation",
        outcome="FAIL",
        says=f"a sample looks the same in every epoch: {same:,} of {len(both):,} got the same seed again",
        place=training.place(_pass(run)),
        expected="another flip, shift or noise in each epoch",
        found="samples are altered by a generator that is seeded without the epoch",
        effect="the network sees one fixed version of each sample: no augmentation, though it costs its time",
        change="put the epoch into the seed: (seed, epoch, index)",
        known=("Lightning#20412",),
    )


def _masks(training: Training) -> Finding | None:
    """Dropout whose masks are the same on all ranks."""
    for run in training.several:
        calls = [
            [event for event in rank.of("forward") if event["grad"] and event["dropout"] and event["training"]]
            for rank in run.ranks
        ]
        together = list(zip(*calls, strict=False))
        same = sum(len({event["stream"] for event in events}) == 1 for events in together)
        if together and same > 0.5 * len(together):
            return Finding(
                check="augmentation",
                outcome="note",
                says="dropout has the same masks on all ranks, as torch is seeded alike on them",
                place=training.place(together[0][0]),
            )
    return None


def _pass(run: Run) -> Event | None:
    data = run.first.training_data[:1]
    found = run.first.passes(data[0], training=True) if data else []
    return found[0] if found else None
