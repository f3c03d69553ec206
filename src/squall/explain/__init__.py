"""A recipe as arithmetic, before anything runs: minibatch, steps, rate, decay, bytes, memory, hosting, and warnings.

Every number follows from the recipe, the size of the training set and a few facts on the network. The steps are those
of `squall.data.order.Order`, the rate is that of `squall.optim.lr.Rate`, the partial sums are those of
`squall.reduce.tree`: what is printed is what a run does.
"""

from squall.explain.explanation import PLAN, Explanation, explain
from squall.explain.facts import ModelFacts, model_facts

__all__ = ["PLAN", "Explanation", "ModelFacts", "explain", "model_facts"]
