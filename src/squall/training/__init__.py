"""The composition root: a recipe and a task become a run."""

from squall.training.compose import compose, model_of
from squall.training.session import run_spec, train

__all__ = ["compose", "model_of", "run_spec", "train"]
