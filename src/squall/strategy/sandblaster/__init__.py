"""Sandblaster L-BFGS (Dean et al. 2012, section 4.2): batch optimisation on shards, with portions for replicas."""

from squall.strategy.sandblaster.coordinator import Coordinator, CoordinatorSpec
from squall.strategy.sandblaster.replica import Replica, ReplicaSpec

__all__ = ["Coordinator", "CoordinatorSpec", "Replica", "ReplicaSpec"]
