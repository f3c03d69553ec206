"""Asks a run of replicas and shards for another number of replicas; it goes on meanwhile, and nothing is started anew.

    leave the request    the driver looks once a second and tells the coordinator
    the coordinator      enlists new replicas, or gives those that are too many no more to do; notes it ("resized")
    say what came of it  from the folder

Unlike the processes of a synchronous run, replicas change the result of Downpour: each has a part of the data of its
own. That of Sandblaster is the same with any number of them.
"""

from __future__ import annotations

from pathlib import Path

from squall.cli.asking import Answer, begun, late, requested, wait
from squall.cli.overview import progress, was, word
from squall.cli.states import State
from squall.errors import InputError, RunError
from squall.run.requests import Request
from squall.units import count


def replicas(folder: Path, runs: Path, wanted: int, *, wait_s: float | None) -> Answer:
    """Asks a run to go on with another number of replicas.

    Arguments:
        folder: the run's.
        runs: the folder that it was looked for in.
        wait_s: seconds to wait until it has begun to; None: not at all.

    Raises:
        InputError: it does not run, or has no replicas.
        RunError: it did not do so in time.
    """
    run, name = begun(folder), word(folder, runs)
    if run.strategy and not run.replicated:  # one that has not said it yet may be
        raise InputError(
            f"--replicas {wanted} of a run with strategy={run.strategy}",
            [
                ("rule", "replicas are those of an asynchronous strategy: downpour, sandblaster"),
                ("to do", f"squall runs resize {name} --processes {wanted}"),
            ],
        )
    if not run.running:
        to_do = [("to do", f"squall resume {name}, and resize it while it runs")] if run.resumable else []
        raise InputError(f"{name} is not running", [("found", f"it {was(run)}"), *to_do])
    if not run.strategy:
        rows = [("found", "its engine is still being started"), ("to do", "ask again when it has begun")]
        raise InputError(f"{name} is just beginning", rows)
    if run.processes == wanted:
        return Answer(run, f"{name} has {_replicas(wanted)} already")
    with requested(folder, Request("resize", replicas=wanted)) as asked:
        if wait_s is None:
            return Answer(run, f"{name} is asked to go on with {_replicas(wanted)}      squall runs show {name}")

        def done(now: State) -> bool:
            if now.running and now.processes != wanted:
                asked.renew()
                return False
            return True

        changed = wait(folder, f"{name} changes to {_replicas(wanted)}", wait_s, done)
    if changed is None:
        raise late(name, wait_s)
    if changed.processes == wanted:
        return Answer(changed, f"{name} goes on with {_replicas(wanted)}, at {progress(changed)}")
    if changed.state == "finished":
        return Answer(changed, f"{name} finished before it looked at the request")
    raise RunError(
        f"{name} does not go on with {_replicas(wanted)}",
        [("found", f"it {was(changed)} at {progress(changed)}"), ("to do", f"squall runs show {name}")],
    )


def _replicas(number: int) -> str:
    return f"{count(number)} replica{'' if number == 1 else 's'}"
