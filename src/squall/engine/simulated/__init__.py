"""Programs of roles on a virtual clock: one process, seeded order, scripted faults, real gradients."""

from squall.engine.simulated.engine import Simulated

__all__ = ["Simulated"]
