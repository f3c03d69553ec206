"""Recipes: typed, frozen, TOML in and out; checks that span components. Loads without torch.

recipe = squall.recipe.load("cifar10")
recipe = squall.recipe.override(recipe, ["lr=0.2", "model.width=16"])
"""

from squall.recipe.downpour import DownpourSpec
from squall.recipe.fields import FieldRow, fields_table
from squall.recipe.files import load, override, parse, read, shipped, source
from squall.recipe.sandblaster import SandblasterSpec
from squall.recipe.simulated import SimulatedSpec
from squall.recipe.spec import ComputeSpec, DataSpec, LossSpec, LrSpec, ModelSpec, OptimizerSpec, Recipe
from squall.recipe.toml import to_toml

__all__ = [
    "ComputeSpec",
    "DataSpec",
    "DownpourSpec",
    "FieldRow",
    "LossSpec",
    "LrSpec",
    "ModelSpec",
    "OptimizerSpec",
    "Recipe",
    "SandblasterSpec",
    "SimulatedSpec",
    "fields_table",
    "load",
    "override",
    "parse",
    "read",
    "shipped",
    "source",
    "to_toml",
]
