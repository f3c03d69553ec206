"""How roles become actors: what is sent, once for all that are made alike, and where it is to run.

A role's content may be large: for a replica it holds the user's whole task, with data sets in memory. It goes into
Ray's memory once, told by its hash, as a role that the chief enlists comes as a new object each time.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from squall.cluster.program import Plan
from squall.engine.ray.actor import Boot, Host
from squall.engine.ray.cluster import Cluster, in_words
from squall.engine.ray.sealed import seal

_LITTLE = 1e-3
"""Processors; Ray counts by less."""
_CALLS_AT_ONCE = 1000

_SOME_BYTES = 1
"""Of memory, of which every machine has: Ray does not heed where a role is wanted that takes nothing."""


Needs = tuple[float, float]
"""Processors and GPUs."""


def unplaced(starting: Iterable[tuple[str, Needs]], taken: Needs, free: Needs) -> list[str]:
    """Roles for which there is no room; others have theirs, and are on their way.

    Arguments:
        starting: roles without a process, as they were asked for.
        taken: what is in use for some of them.
        free: what nobody uses.
    """
    found = []
    for name, needs in starting:
        if all(need <= left + _LITTLE for need, left in zip(needs, taken, strict=True)):
            taken = taken[0] - needs[0], taken[1] - needs[1]
        elif any(need > left + _LITTLE for need, left in zip(needs, free, strict=True)):
            found.append(name)
    return found


class Maker:
    """Makes actors on one cluster.

    Arguments:
        cluster: that they live on.
        boot: what each is told.
        by_value: modules that the roles' processes cannot import; see `sealed`.
        own: processors are not counted.
    """

    def __init__(self, cluster: Cluster, boot: Boot, by_value: Sequence[ModuleType], own: bool) -> None:
        import ray

        self._ray, self._cluster, self._boot, self._by_value, self._own = ray, cluster, boot, by_value, own
        self._host = ray.remote(Host)
        self._sealed: dict[int, tuple[Plan, Any]] = {}
        self._sent: dict[bytes, Any] = {}
        self._dealt = 0

    def content(self, plan: Plan) -> Any:
        """How a role is made, in Ray's memory.

        Raises:
            InputError: it cannot be sent.
        """
        if id(plan) in self._sealed:
            return self._sealed[id(plan)][1]
        sealed = seal(plan.make, self._by_value)
        number = hashlib.blake2b(pickle.dumps(sealed, pickle.HIGHEST_PROTOCOL), digest_size=16).digest()
        if number not in self._sent:
            self._sent[number] = self._ray.put(sealed)
        if sealed is not plan.make:  # the driver's own: pickled once for all that share it
            self._sealed[id(plan)] = plan, self._sent[number]
        return self._sent[number]

    def actor(self, name: str, plan: Plan) -> Any:
        """An actor, which Ray will place and start; None as long as one of that name is about to end."""
        cpus, gpus = self.needs(plan)
        options: dict[str, Any] = {
            "name": name,
            "namespace": self._cluster.namespace,
            "num_cpus": cpus,
            "num_gpus": gpus,
            "memory": _SOME_BYTES,
            "max_restarts": -1 if plan.restarts else 0,
            "max_concurrency": _CALLS_AT_ONCE,
            "enable_task_events": False,  # a line a call in Ray's own log of what it did, which nobody reads here
            "scheduling_strategy": self._placed(plan),
        }
        host = self._host.options(**options)
        try:
            return host.remote(name, self._boot)
        except ValueError:
            return None

    def needs(self, plan: Plan) -> Needs:
        """What a role is given for itself."""
        return 0.0 if self._own else plan.cpus, plan.gpus

    def free(self) -> tuple[Needs, Needs, str]:
        """What is in use on the cluster, what is free, and that in words."""
        there, free = self._cluster.room()
        used = there["CPU"] - free["CPU"], there["GPU"] - free["GPU"]
        return used, (free["CPU"], free["GPU"]), f"{in_words(free)} free of {in_words(there)}"

    def _placed(self, plan: Plan) -> Any:
        """Roles that compute go where there is room; those that take no processor are dealt out over the machines,
        beginning with the driver's, and go elsewhere only when theirs is dead."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if plan.beside_driver:
            return NodeAffinitySchedulingStrategy(self._cluster.node_id, soft=False)
        if plan.cpus or plan.gpus:
            return "SPREAD"
        nodes = [node.id for node in self._cluster.nodes()]
        first, dealt = nodes.index(self._cluster.node_id), self._dealt
        self._dealt += 1
        return NodeAffinitySchedulingStrategy(nodes[(first + dealt) % len(nodes)], soft=True)
