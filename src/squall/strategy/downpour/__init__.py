"""Downpour SGD (Dean et al. 2012, section 4.1): replicas that push gradients to shards and fetch weights from them."""

from squall.strategy.downpour.coordinator import Coordinator, CoordinatorSpec
from squall.strategy.downpour.replica import Replica, ReplicaSpec
from squall.strategy.evaluator import Evaluator, EvaluatorSpec
from squall.strategy.summary import Summary

__all__ = ["Coordinator", "CoordinatorSpec", "Evaluator", "EvaluatorSpec", "Replica", "ReplicaSpec", "Summary"]
