"""Names that a recipe may use, known without loading torch.

A misspelt network or optimizer should be an error together with all other mistakes, at once, before torch is loaded;
so the names stand here a second time. The tests compare them with the parts that own them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# strategy -> the keys of a recipe that it reads and that not all others do; a key named here is an error elsewhere
KEYS_OF_STRATEGIES: Mapping[str, Sequence[str]] = {
    "downpour": ("downpour", "simulated", "lr"),
    "sandblaster": ("sandblaster", "simulated"),
    "sync": ("global_batch_size", "virtual_workers", "lr"),
}
STRATEGIES = tuple(KEYS_OF_STRATEGIES)
# strategy -> the fields of the optimizer that it does not read
NO_RULE: Mapping[str, Sequence[str]] = {
    "sandblaster": ("name", "momentum", "nesterov", "betas", "eps", "options"),
}
SHARD_RULES = ("adagrad", "rmsprop", "sgd")
"""Rules that parameter shards know: each element's update needs nothing but that element's own numbers."""

LOSSES = ("cross_entropy",)
DATA = ("cifar10", "digits", "idx", "imagefolder")
NEEDS_ROOT = ("idx", "imagefolder")
OPTIMIZERS = ("adagrad", "adam", "adamw", "lamb", "lars", "rmsprop", "sgd")
LINEARLY_SCALED = ("sgd", "lars")
"""Rules whose rate follows the minibatch's size unless the recipe says otherwise (Goyal et al. 2017, section 2.1)."""

OPERATIONS = (
    "center_crop",
    "cutout",
    "horizontal_flip",
    "normalize",
    "random_crop",
    "random_resized_crop",
    "resize",
)

_CIFAR = ("num_classes", "in_channels", "width", "zero_init_residual", "fc_init_std")
_IMAGENET = ("num_classes", "in_channels", "zero_init_residual", "fc_init_std")
MODELS: Mapping[str, Sequence[str]] = {
    "acoustic": ("in_features", "hidden", "num_classes", "init_gain"),
    "mlp": ("in_features", "hidden", "num_classes", "dropout"),
    **{f"resnet{depth}": _CIFAR for depth in (8, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}": _IMAGENET for depth in (18, 34, 50, 101, 152)},
}

# optimizer field -> the rules that read it; a field not named here is read by all
FIELDS_OF_RULES: Mapping[str, Sequence[str]] = {
    "momentum": ("sgd", "lars", "rmsprop"),
    "nesterov": ("sgd", "lars"),
    "betas": ("adam", "adamw", "lamb"),
    "eps": ("adagrad", "adam", "adamw", "lamb", "lars", "rmsprop"),
}


def foreign_to(strategy: str) -> list[str]:
    """The keys that a strategy does not read, and another one does."""
    own = KEYS_OF_STRATEGIES[strategy]
    return sorted({key for keys in KEYS_OF_STRATEGIES.values() for key in keys if key not in own})


def is_read(strategy: str, field: str) -> bool:
    """Whether a strategy reads a field of a recipe, by its full name: "lr", "lr.base", "optimizer.momentum"."""
    table, _, name = field.partition(".")
    return table not in foreign_to(strategy) and not (table == "optimizer" and name in NO_RULE.get(strategy, ()))


def is_own(name: str) -> bool:
    """Whether a name means a user's function or class: "package.module:name"."""
    module, colon, attribute = name.partition(":")
    return bool(colon and module and attribute)
