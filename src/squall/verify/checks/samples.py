"""Epoch coverage and order: is each sample read once an epoch, by some rank, and in a new order each time?"""

from __future__ import annotations

import numpy

from squall.verify import edits
from squall.verify.checks.passes import Pass, training_passes
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding


def coverage(training: Training) -> Finding:
    """Is each sample read once an epoch, by one rank?"""
    notes = []
    chosen: Pass | None = None
    seen: list[Pass] = []
    for run in training.runs:
        for one in training_passes(run):
            seen.append(one)
            if one.split_apart:
                return _split_apart(training, one)
            if not one.missing and not one.repeated:
                continue
            if "Weighted" in one.sampler or _replaces(one):
                return Finding(
                    check="epoch coverage",
                    outcome="note",
                    says=f"{one.sampler} draws with replacement: no sample is certain",
                )
            if _own_shards(one):
                return Finding(
                    check="epoch coverage",
                    outcome="note",
                    says="each rank has data of its own: the same indices are other samples",
                )
            if _is_padding(one):
                notes.append(one)
            elif _is_chosen(training, one):
                chosen = chosen or one
            else:
                return _uncovered(training, one)
    same = _same_inputs(training) or _read_again(training)
    if same is not None and not notes:
        return same
    if not seen:
        return Finding(check="epoch coverage", outcome="--", says="no DataLoader with known indices was trained from")
    if chosen is not None:
        return Finding(
            check="epoch coverage",
            outcome="note",
            says=f"{chosen.sampler} reads {chosen.size - chosen.missing:,} of {chosen.size:,} samples in an epoch"
            + (f", {chosen.repeated:,} of them again" if chosen.repeated else "")
            + ", with any number of processes" * (chosen.run.processes > 1),
            place=training.place(chosen.events[0]),
        )
    broken_off = _broken_off(training)
    if broken_off is not None:
        return broken_off
    if not notes:
        return Finding(check="epoch coverage", outcome="ok", says=f"each of {seen[0].size:,} samples once an epoch")
    worst = max(notes, key=lambda one: one.missing + one.repeated)
    said = [f"{worst.size:,} samples"]
    if worst.repeated:
        said.append(f"{worst.repeated} of them twice")
    if worst.missing:
        said.append(f"{worst.missing} not in every epoch")
    why = f"{worst.sampler} {'pads' if worst.repeated else 'drops the rest'} to give all ranks as many"
    if worst.missing and worst.events[0]["drop_last"]:
        why = "an incomplete batch is dropped" + (f", and {worst.sampler} pads" if worst.repeated else "")
    return Finding(
        check="epoch coverage",
        outcome="note",
        says=f"{', '.join(said)} with {count(worst.run.processes, 'process')}: {why}",
    )


def _broken_off(training: Training) -> Finding | None:
    """Every epoch ends before the loader does: meant, or a window of batches that was not filled."""
    for run in training.runs:
        passes = training_passes(run)[:-1]  # the last may be where the script ends
        if passes and all(one.left for one in passes):
            one = passes[0]
            batches = len(one.events[0]["run"])
            return Finding(
                check="epoch coverage",
                outcome="note",
                says=f"each epoch leaves its loader after {batches - one.left} of {batches} batches, with "
                f"{count(run.processes, 'process')}: the samples of the others are not in it",
                place=training.place(one.events[0]),
            )
    return None


def _same_inputs(training: Training) -> Finding | None:
    """Ranks whose networks are called with the same numbers, wherever those come from."""
    for run in training.several:
        calls = [[event for event in rank.of("forward") if event["grad"] and event.get("input")] for rank in run.ranks]
        together = list(zip(*calls, strict=False))
        same = [events for events in together if len({event["input"] for event in events}) == 1]
        if len(together) > 3 and len(same) > 0.9 * len(together):
            return Finding(
                check="epoch coverage",
                outcome="FAIL",
                says=f"every rank computes the same batch, in {len(same)} of {count(len(together), 'step')}",
                place=training.place(same[0][0]),
                expected="each rank computes samples of its own",
                found=f"with {run.processes} processes the networks' inputs are equal on all ranks",
                effect=f"{run.processes} processes do the work of one: each batch is averaged with itself",
                change="let each rank draw its own share: seed by rank, or cut one order by rank::world",
            )
    return None


def _read_again(training: Training) -> Finding | None:
    """Samples of an iterable data set that come several times in one pass: all of them, so not by chance."""
    for run in training.runs:
        rows = []
        place = None
        for rank in run.ranks:
            for event in rank.of("batch"):
                array = rank.array(event, "rows") if event.get("round") == 0 else None
                if array is not None and len(array):
                    rows.append(array)
                    place = place or training.place(rank.backwards[0]) if rank.backwards else None
        if not rows:
            continue
        _, counts = numpy.unique(numpy.concatenate(rows), return_counts=True)
        again = int((counts > 1).sum())
        if len(counts) > 20 and again > 0.9 * len(counts):
            return Finding(
                check="epoch coverage",
                outcome="FAIL",
                says=f"{again:,} of {len(counts):,} samples come {int(numpy.median(counts))} times in one pass",
                place=place,
                expected="each sample once, from one rank and one loader process",
                found=f"with {count(run.processes, 'process')} the iterable data set gives the same samples to several "
                "readers",
                effect="an epoch is that many times longer than meant, and minibatches hold copies",
                change="cut the iteration by rank and by get_worker_info().id",
            )
    return None


def _replaces(one: Pass) -> bool:
    """Whether even one rank reads samples several times: drawing with replacement."""
    return all(len(order) > 20 and len(numpy.unique(order)) < 0.9 * len(order) for order in one.orders)


def _is_padding(one: Pass) -> bool:
    """Whether what is missing or repeated is no more than it takes to give all ranks as many."""
    processes = one.run.processes
    if one.sampler == "DistributedSampler":
        most = processes - 1
        left = processes - 1 + (one.rank_batches if one.events[0]["drop_last"] else 0)
    else:
        most = left = one.rank_batches
        accelerate = "Accelerate" in one.run.first.about.get("frameworks", ())
        if accelerate and not one.missing and one.repeated < one.rank_batches:
            return True  # it fills the last batches of all ranks from the start
    shares = [len(set(order.tolist())) for order in one.orders]
    if processes > 1 and min(shares) == one.size:
        return False  # everybody reads everything
    if processes > 1 and most >= one.size / 4:
        most = left = one.size // 4
    return one.repeated <= most and one.missing <= left


def _is_chosen(training: Training, one: Pass) -> bool:
    """Whether what is left out is the sampler's own choice: one process, or as much with any number of them."""
    if one.run.processes == 1:
        return True
    others = [found[0] for run in training.runs if run is not one.run and (found := training_passes(run))]
    return bool(others) and not any(
        other.repeated or abs(other.missing - one.missing) >= max(one.run.processes, other.run.processes)
        for other in (one, *others)
    )


def _split_apart(training: Training, one: Pass) -> Finding:
    parts = one.parts or []
    both = len(numpy.intersect1d(parts[0], parts[1]))
    return Finding(
        check="epoch coverage",
        outcome="FAIL",
        says=f"each rank splits the data set for itself: ranks 0 and 1 share {both:,} of {len(parts[0]):,} samples",
        place=training.place(one.events[0]),
        expected="one split into training and held-out samples, on all ranks",
        found=f"with {one.run.processes} processes the ranks' loaders read different parts of {one.events[0]['kind']}",
        effect="what one rank holds out another trains on, so that the evaluation is no longer one; samples are seen "
        "more or less often",
        change="random_split(..., generator=torch.Generator().manual_seed(seed)), the same on all ranks",
    )


def _own_shards(one: Pass) -> bool:
    """Whether equal indices mean different samples on different ranks."""
    if one.run.processes < 2:
        return False
    held: list[dict[int, int]] = []
    for rank, event in zip(one.run.ranks, one.events, strict=True):
        rows = rank.items[(rank.items[:, 1] == event["data"]) & (rank.items[:, 4] == 0) & (rank.items[:, 5] == 0)]
        held.append({int(row[3]): int(row[6]) for row in rows})
    both = set(held[0]) & set(held[1])
    return len(both) > 3 and all(held[0][index] != held[1][index] for index in both)


def _uncovered(training: Training, one: Pass) -> Finding:
    processes = one.run.processes
    same = processes > 1 and all(numpy.array_equal(order, one.orders[0]) for order in one.orders[1:])
    everything = min(len(set(order.tolist())) for order in one.orders) == one.size
    if same or everything:
        says = f"every rank reads all {one.size:,} samples: each is seen {processes} times an epoch"
        found = f"no rank's share: {one.sampler} gives " + (
            "all ranks the same order" if same else "each rank all of them"
        )
        effect = f"{processes} processes do {processes} times the work of one; epochs, and schedules in epochs, are "
        effect += f"{processes} times longer than meant" + ("; every batch is averaged with itself" if same else "")
    else:
        says = (
            f"{one.missing:,} of {one.size:,} samples are never seen in an epoch, {one.repeated:,} are seen again"
            f", with {count(processes, 'process')}"
        )
        found = f"the ranks' shares overlap: {one.sampler} cuts them from different orders"
        effect = "an epoch is a draw with replacement; other samples are missed each time, and coverage differs with "
        effect += "the number of processes"
    return Finding(
        check="epoch coverage",
        outcome="FAIL",
        says=says,
        place=training.place(one.events[0]),
        expected="each sample once an epoch, by one rank (a few more or less where shares are made equal)",
        found=found,
        effect=effect,
        change="DistributedSampler(dataset) with the same seed on all ranks, and set_epoch(epoch) in each epoch",
        known=("RoMa#32",) if same or everything else ("LongLive#71",),
    )


def order(training: Training) -> Finding:
    """Do epochs have different orders?"""
    fails: list[tuple[Pass, Pass, float]] = []
    compared = 0
    stored = False
    for run in training.runs:
        passes = training_passes(run)
        if len(passes) < 2:
            continue
        first, second = passes[0], passes[1]
        shares = []
        for one, other in zip(first.orders, second.orders, strict=True):
            shortest = min(len(one), len(other))
            if shortest:
                shares.append(float((one[:shortest] == other[:shortest]).mean()))
                stored = stored or bool((numpy.diff(one[:shortest]) > 0).all())
        compared += 1
        if shares and min(shares) > 0.5:
            fails.append((first, second, min(shares)))
    if not compared:
        return Finding(check="epoch order", outcome="--", says="fewer than two epochs with known indices")
    if not fails:
        size = sum(len(one) for one in first.orders)
        return Finding(check="epoch order", outcome="ok", says=f"a new one each epoch, over {count(size, 'position')}")
    first, _, share = fails[-1]
    size = sum(len(one) for one in first.orders)
    if stored:
        return Finding(
            check="epoch order",
            outcome="note",
            says="samples come in the order in which they are stored, in every epoch",
            place=training.place(first.events[0]),
        )
    epochs = [one.events[0]["sampler"].get("epoch") for one in fails[-1][:2]]
    stale = first.sampler == "DistributedSampler" and epochs[0] == epochs[1]
    place = training.place(first.events[0])
    return Finding(
        check="epoch order",
        outcome="FAIL",
        says=f"epoch 2 repeats epoch 1: {round(share * size):,} of {size:,} positions equal; by chance about 1",
        place=place,
        expected="a new permutation in each epoch",
        found=f"DistributedSampler's epoch is {epochs[0]} in both: set_epoch has not told it of the next"
        if stale
        else f"{first.sampler} gives the same order in each epoch",
        effect="the same samples meet in every epoch; usually 0 to 1 points of accuracy, and never an error message",
        change="sampler.set_epoch(epoch) at the start of each epoch" if stale else "let the order depend on the epoch",
        edits=edits.set_epoch(place) if stale else (),
        known=("pytorch#31771", "pytorch#31232") if stale else (),
    )
