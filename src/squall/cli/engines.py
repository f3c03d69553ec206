"""Where an asynchronous run's roles live: `--engine ray` (processes, on this machine or a cluster) or `simulated`.

target -> engine -> session of roles (`squall.training.asynchronous`), in this process; Ray starts the others
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from squall.cli.flags import TIMEOUT_S
from squall.cli.restarts import DEFAULT
from squall.cli.session import Wish, sink_of
from squall.errors import InputError, UserCodeError
from squall.training.lockstep import refuse


class EngineName(StrEnum):
    """Where roles live."""

    ray = "ray"
    simulated = "simulated"


EngineFlag = Annotated[
    EngineName | None,
    typer.Option(
        "--engine",
        help="Of an asynchronous strategy: ray (real processes; the default) or simulated time.",
        show_default=False,
    ),
]
ClusterFlag = Annotated[
    str | None,
    typer.Option("--cluster", metavar="ADDRESS", help="A Ray cluster that is running, HOST:PORT.", show_default=False),
]
TrustFlag = Annotated[
    bool, typer.Option("--trust-cluster", help="Join a cluster that asks for no token: whoever reaches it owns it.")
]


def check(wish: Wish, engine: EngineName | None, cluster: str | None, trusted: bool, foreign: Sequence[str]) -> bool:
    """Whether the recipe's strategy is one of roles.

    Arguments:
        foreign: flags that were given and are of lock-step training.

    Raises:
        InputError: flags of the other kind of training; ranks of a job.
    """
    recipe = wish.target.recipe
    trust = ["--trust-cluster"] * trusted
    if recipe.strategy == "sync":
        given = [*[f"--engine {engine}"] * bool(engine), *[f"--cluster {cluster}"] * bool(cluster), *trust]
        if given:
            raise InputError(
                f"{given[0]} with strategy=sync",
                [
                    (
                        "rule",
                        "an engine runs the roles of an asynchronous strategy; sync is one job of equal processes",
                    ),
                    ("to do", "leave it away, or strategy=downpour downpour.replicas=4"),
                    ("or", "strategy=sandblaster sandblaster.replicas=4"),
                ],
            )
        return False
    refuse(recipe, foreign)
    if engine is EngineName.simulated and (given := ["--cluster"] * bool(cluster) + trust):
        raise InputError(f"{given[0]} with --engine simulated", [("rule", "simulated time needs no cluster")])
    if trusted and not cluster:
        rule = "it is said of a cluster that is joined; Squall's own on this machine asks for a token"
        raise InputError("--trust-cluster without --cluster", [("rule", rule), ("to do", "--cluster HOST:PORT")])
    return True


def foreign(*, device: str | None, timeout: float, restarts: int, **others: object) -> list[str]:
    """The flags of lock-step training that were given to a verb; `--device cpu` says what replicas do anyway.

    Example:
        >>> foreign(device="cpu", timeout=300.0, restarts=0, other_arithmetic=True)
        ['--restarts', '--other-arithmetic']
    """
    given = {"device": device not in (None, "cpu"), "timeout": timeout != TIMEOUT_S, "restarts": restarts != DEFAULT}
    return [f"--{name.replace('_', '-')}" for name, value in {**given, **others}.items() if value]


def work(wish: Wish, folder: Path, engine: EngineName | None, cluster: str | None, trusted: bool) -> int:
    """Trains by roles; this process is their driver, and prints."""
    from squall.cli.folders import log_traceback
    from squall.cli.session import leaves
    from squall.cli.terminal import Terminal
    from squall.training import compose
    from squall.training import train as train_
    from squall.training.roles import alone

    name = engine or EngineName.ray
    started = {**wish.started(), "engine": str(name), "cluster": cluster, "trust_cluster": trusted}
    shown = wish.target.task or compose(wish.target.recipe, alone("cpu"), wish.data_folder)
    sink = sink_of(wish, shown)
    try:
        with leaves():
            train_(
                wish.target.task,
                wish.target.recipe,
                out=folder,
                sinks=(sink,),
                data_root=wish.data_folder,
                trackers=wish.trackers,
                started=started,
                engine=str(name),
                cluster=cluster,
                trust_cluster=trusted,
            )
    except UserCodeError as error:
        raise log_traceback(error, folder, 0) from error.__cause__
    finally:
        if isinstance(sink, Terminal):
            sink.close()
    return 0
