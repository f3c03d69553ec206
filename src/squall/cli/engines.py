"""Where an asynchronous run's roles live: `--engine ray` (processes, on this machine or a cluster) or `simulated`.

target -> engine -> session of roles (`squall.training.asynchronous`), in this process; Ray starts the others
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from squall.cli.session import Wish, sink_of
from squall.errors import InputError, UserCodeError


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


def check(wish: Wish, engine: EngineName | None, cluster: str | None, foreign: Sequence[str]) -> bool:
    """Whether the recipe's strategy is one of roles.

    Arguments:
        foreign: flags that were given and are of lock-step training.

    Raises:
        InputError: flags of the other kind of training.
    """
    recipe = wish.target.recipe
    if recipe.strategy == "sync":
        given = [f"--engine {engine}"] * bool(engine) + [f"--cluster {cluster}"] * bool(cluster)
        if given:
            raise InputError(
                f"{given[0]} with strategy=sync",
                [
                    (
                        "rule",
                        "an engine runs the roles of an asynchronous strategy; sync is one job of equal processes",
                    ),
                    ("to do", "leave it away, or strategy=downpour downpour.replicas=4"),
                ],
            )
        return False
    if foreign:
        raise InputError(
            f"{foreign[0]} with strategy={recipe.strategy}",
            [
                ("rule", "replicas and shards are numbers of the recipe; the engine starts their processes"),
                ("to do", f"leave it away; downpour.replicas={recipe.downpour.replicas if recipe.downpour else 2}"),
            ],
        )
    if cluster and engine is EngineName.simulated:
        raise InputError("--cluster with --engine simulated", [("rule", "simulated time needs no cluster")])
    return True


def work(wish: Wish, folder: Path, engine: EngineName | None, cluster: str | None, trusted: bool) -> int:
    """Trains by roles; this process is their driver, and prints."""
    from squall.cli.folders import log_traceback
    from squall.cli.session import leaves
    from squall.cli.terminal import Terminal
    from squall.cluster.world import join
    from squall.training import compose
    from squall.training import train as train_

    name = engine or EngineName.ray
    started = {**wish.started(), "engine": str(name), "cluster": cluster, "trust_cluster": trusted}
    shown = wish.target.task or compose(wish.target.recipe, join(wish.device, wish.timeout), wish.data_folder)
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
