"""The table [simulated]: what a simulated cluster is like, and what goes wrong in it. Read by --engine simulated only.

    [simulated]
    compute = { mean = "120ms", spread = 0.2, stragglers = 0.05, slowdown = 3.0 }
    network = { latency = "0.2ms", bandwidth = "10Gbit" }
    server = "5GB"
    faults = [{ kill = "replica 3", at = "40s", restart = "10s" }]

The engine takes plain numbers: `SimulatedSpec.numbers` and `SimulatedSpec.planned` give them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from squall.cluster.fault import Costs, Fault
from squall.recipe.base import BytesPerSecond, NotNegative, Spec, Tables, Time, TimeFromZero
from squall.recipe.faults import fault_of
from squall.units import to_bytes_per_second, to_seconds


class ComputeCost(Spec):
    """How long a replica computes."""

    mean: Time = Field(default="120ms", description="of one replica's minibatch, or of a portion")
    spread: NotNegative = Field(
        default=0.2, description="sigma of a log-normal factor on each minibatch, whose mean is 1"
    )
    stragglers: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.05, description="fraction of the replicas that are slower for the whole run"
    )
    slowdown: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        default=3.0, description="how many times slower those are"
    )


class NetworkCost(Spec):
    """What a message takes."""

    latency: TimeFromZero = Field(default="0.2ms", description="of a message, whatever its size")
    bandwidth: BytesPerSecond = Field(
        default="10Gbit", description='of each machine\'s link, each way: "10Gbit" or "1.25GB" a second'
    )


class SimulatedSpec(Spec):
    """A cluster as the simulated engine plays it."""

    compute: ComputeCost = Field(default=ComputeCost(), description="how long a replica computes")
    network: NetworkCost = Field(default=NetworkCost(), description="what a message takes")
    server: BytesPerSecond = Field(
        default="5GB", description="what a shard reads and writes in a second while it applies a push"
    )
    faults: Tables = Field(
        default=(),
        description='kill, slow, drop, delay, duplicate: [{ kill = "replica 3", at = "40s", restart = "10s" }]',
    )

    def numbers(self) -> Costs:
        """Seconds, bytes a second and factors, as the engine takes them."""
        return Costs(
            minibatch=to_seconds(self.compute.mean),
            spread=self.compute.spread,
            stragglers=self.compute.stragglers,
            slowdown=self.compute.slowdown,
            latency=to_seconds(self.network.latency),
            bandwidth=to_bytes_per_second(self.network.bandwidth),
            server=to_bytes_per_second(self.server),
        )

    def planned(self) -> tuple[Fault, ...]:
        """What goes wrong, in the order of the recipe."""
        return tuple(map(fault_of, self.faults))
