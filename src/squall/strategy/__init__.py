"""Strategies: who computes which gradient, and who applies it."""

from squall.strategy.base import Strategy
from squall.strategy.sync import sync

STRATEGIES: dict[str, Strategy] = {"sync": sync}

__all__ = ["STRATEGIES", "Strategy", "sync"]
