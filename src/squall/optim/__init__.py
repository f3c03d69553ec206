"""Update rules and the learning rate: pure maths on tensors, no processes.

Only the rate stands here, because recipes and `squall explain` need it and must not load torch. The rest is imported
from its module: `squall.optim.build` (a named rule for a model), `squall.optim.groups` (who is decayed),
`squall.optim.lars` (LARS, LAMB), `squall.optim.norms` (norms that do not depend on threads), `squall.optim.ema`.
"""

from squall.optim.lr import Rate, Segment, lr

__all__ = ["Rate", "Segment", "lr"]
