"""Which parameter gets which rate and decay: groups by name pattern.

Weight decay acts on weights, never on the parameters of normalisation layers (Goyal et al. 2017, section 5.1; their
paper says nothing of the last layer's bias, so it is decayed), and a new head may learn faster than a pretrained
body. So every parameter falls into one group by three questions: which of the recipe's `groups` matches its name
first, is it decayed, and is it one that layer-wise rules leave alone.

A pattern is an exact name, a prefix (``layer4`` means all of ``layer4.*``) or a shell pattern (``*.fc.weight``). A
pattern that matches nothing is an error: it is nearly always a misspelt name, and training would go on without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from squall.errors import Mistakes, nearest

_GROUP_KEYS = ("match", "lr_scale", "weight_decay")
_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Named:
    """A trainable parameter with all that its group depends on.

    Attributes:
        names: every name it has; more than one where modules share it.
        parameter: the tensor itself.
        is_norm: whether it belongs to a normalisation layer.
    """

    names: tuple[str, ...]
    parameter: nn.Parameter
    is_norm: bool

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias: one dimension, and its own name begins or ends with "bias"."""
        own = self.names[0].rpartition(".")[2]
        return self.parameter.ndim <= 1 and (own.startswith("bias") or own.endswith("bias"))

    def matches(self, pattern: str) -> bool:
        """Whether any of its names is the pattern, lies below it, or fits it as a shell pattern."""
        return any(
            name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) for name in self.names
        )


def named(model: nn.Module) -> list[Named]:
    """All parameters of a model in its own order, frozen ones too, each once."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    norms = {
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if isinstance(module, _NORMALISATION) or (_called_norm(module) and parameter.ndim <= 1)
    }
    return [Named(tuple(names[id(parameter)]), parameter, id(parameter) in norms) for parameter in model.parameters()]


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    no_weight_decay: Sequence[str] = ("norm",),
    groups: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Cuts a model's trainable parameters into the groups that an optimiser takes.

    Arguments:
        model: its parameters may lie on any device, the meta device too.
        weight_decay: of every group that names none of its own.
        no_weight_decay: "norm" (normalisation parameters), "bias", and patterns; they hold against a group's own decay.
        groups: {match, lr_scale = 1.0, weight_decay = the recipe's}; the first that matches takes the parameter.

    Returns:
        Groups in a fixed order, none empty, each with "params", "name", "lr_scale", "weight_decay", and
        "adapt": False where a layer-wise rule has to leave them alone. Frozen parameters are in none.

    Raises:
        InputError: lists every pattern that matches nothing, unknown key and value out of range.
    """
    everything = named(model)
    trainable = [entry for entry in everything if entry.parameter.requires_grad]
    mistakes = Mistakes("optimizer")
    for found, rule in (
        *_decay_mistakes(everything, no_weight_decay),
        *_group_mistakes(everything, groups),
        *_model_mistakes(trainable),
    ):
        mistakes.add(found, rule)
    mistakes.raise_if_any()

    cut: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for entry in trainable:
        index = next((i for i, group in enumerate(groups) if entry.matches(group["match"])), -1)
        adapt = not (entry.is_norm and entry.parameter.ndim > 1)
        cut.setdefault((index, _decayed(entry, no_weight_decay), adapt), []).append(entry.parameter)

    result = []
    for (index, decayed, adapt), parameters in sorted(cut.items(), key=lambda item: _place(item[0])):
        group = groups[index] if index >= 0 else {}
        own_decay = group.get("weight_decay")
        decay = weight_decay if own_decay is None else own_decay
        name = group.get("match", "all") + ("" if decayed else ", no decay") + ("" if adapt else ", not adapted")
        result.append(
            {
                "params": parameters,
                "name": name,
                "lr_scale": float(group.get("lr_scale", 1.0)),
                "weight_decay": float(decay) if decayed else 0.0,
            }
            | ({} if adapt else {"adapt": False})
        )
    return result


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Gives every group its rate for the coming update: `rate` times the group's "lr_scale".

    Called before each update, so that whatever rate a stored optimiser brought along is overwritten.

    Arguments:
        optimizer: any; a group without "lr_scale" gets the plain rate.
        rate: `Rate.at` of the run's progress.
    """
    for group in optimizer.param_groups:
        value = rate * group.get("lr_scale", 1.0)
        if hasattr(group["lr"], "fill_"):  # a rate kept as a tensor is read by a captured or compiled step
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def _decayed(entry: Named, no_weight_decay: Sequence[str]) -> bool:
    rules = {"norm": entry.is_norm, "bias": entry.is_bias}
    return not any(rules[word] if word in rules else entry.matches(word) for word in no_weight_decay)


def _place(key: tuple[int, bool, bool]) -> tuple[int, bool, bool]:
    index, decayed, adapt = key
    return index, not decayed, not adapt


def _called_norm(module: nn.Module) -> bool:
    return re.search("norm", type(module).__name__, re.IGNORECASE) is not None


def _decay_mistakes(everything: Sequence[Named], no_weight_decay: Sequence[str]) -> Iterator[tuple[str, str]]:
    for pattern in no_weight_decay:
        if pattern not in ("norm", "bias") and not any(entry.matches(pattern) for entry in everything):
            yield (
                f'no_weight_decay "{pattern}"',
                f'matches no parameter, and is not "norm" or "bias".{_near(pattern, everything)}',
            )


def _group_mistakes(everything: Sequence[Named], groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    free = list(everything)
    for index, group in enumerate(groups):
        where = f"groups[{index}]"
        for key in group:
            if key not in _GROUP_KEYS:
                yield f"{where}.{key}", f"no such field. One of: {' '.join(_GROUP_KEYS)}"
        for key in ("lr_scale", "weight_decay"):
            value = group.get(key)
            if value is not None and (isinstance(value, (bool, str)) or not 0 <= value < float("inf")):
                yield f"{where}.{key}={value}", "a number, 0 or more"
        pattern = group.get("match")
        if not isinstance(pattern, str):
            yield where, 'has no match. Write match = "head.*", say'
            continue
        matched = [entry for entry in everything if entry.matches(pattern)]
        if not matched:
            yield f'{where} "{pattern}"', f"matches no parameter.{_near(pattern, everything)}"
        elif not any(entry.parameter.requires_grad for entry in matched):
            yield f'{where} "{pattern}"', "matches frozen parameters only: unfreeze them or leave the group out"
        elif not any(entry.matches(pattern) for entry in free):
            yield f'{where} "{pattern}"', "groups before it took all of its parameters: put the narrower one first"
        free = [entry for entry in free if not entry.matches(pattern)]


def _model_mistakes(trainable: Sequence[Named]) -> Iterator[tuple[str, str]]:
    if not trainable:
        yield "no parameters", "the model has none that is trained: is everything frozen?"
    for entry in trainable:
        if isinstance(entry.parameter, UninitializedParameter):
            yield entry.names[0], "has no shape yet: run the model on one batch before the optimiser is built"


def _near(pattern: str, everything: Sequence[Named]) -> str:
    names = [entry.names[0] for entry in everything]
    plain = pattern.replace("*", "").strip(".")
    close = nearest(plain, names)
    tops = sorted({name.partition(".")[0] for name in names})
    near = nearest(plain.partition(".")[0], tops, most=1)
    found = close + [f"{top}.*" for top in near if not close]
    return f" Near: {', '.join(found)}" if found else f" The model's parts: {', '.join(tops[:8])}"
