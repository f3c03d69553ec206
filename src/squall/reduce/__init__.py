"""Sums over processes: one fixed tree (`exact`) or whatever order the collective takes (`fast`).

`flat` lays a model's tensors out as the one vector that is summed.
"""

from squall.reduce.exact import TreeReduction
from squall.reduce.fast import FastReduction
from squall.reduce.lane import Bucket, Reduction, buckets

__all__ = ["Bucket", "FastReduction", "Reduction", "TreeReduction", "buckets"]
