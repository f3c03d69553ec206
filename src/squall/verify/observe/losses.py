"""How a loss was made of its samples, read from its autograd graph.

A loss is a scalar that was computed from many numbers. Walking back from it through scalars one comes to the nodes
where many became one: a mean, a sum, a cross entropy with its reduction. What flows into such a node in the backward
pass is the factor with which it enters the loss, whatever multiplied or divided it on the way::

    loss / 4  <-  add  <-  * 1.0   <-  cross entropy, mean of 24      enters with 1/4: each sample weighs 1/96
                       <-  * 1e-3  <-  sum over a parameter           enters with 1e-3/4: a penalty

So the weight of a sample is known without knowing the user's loss, also under loss scaling and accumulation. A term
that leads to nothing but parameters is a penalty. Two that do nothing but choose from the same log probabilities, and
add them up, are parts of one loss: cross entropy with smoothed labels.

What a node has saved is looked at, and left as it is: what checkpointing would have to compute again is not known.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

_MOST = 20_000  # nodes that are looked at
_PLAIN = (  # what penalties are made of
    *("Pow", "Abs", "Norm", "LinalgVectorNorm", "Sum", "Mean", "Mul", "Add", "Sub", "Div", "Sqrt", "Stack", "Cat"),
    *("View", "ReshapeAlias", "UnsafeView", "Clone", "Neg", "Select", "Unsqueeze", "Squeeze", "ToCopy", "Dot", "T"),
    *("AccumulateGrad", "Clamp", "Relu", "Expand", "Alias"),
)


_CARRIES = (  # what gives out the numbers that it is given, each for itself
    *("Mul", "Div", "Add", "Sub", "Neg", "Clone", "Alias", "View", "ReshapeAlias", "UnsafeView", "ToCopy", "Select"),
    *("Unbind", "Unsqueeze", "Squeeze", "Expand", "Index", "Slice", "Split", "Stack", "Cat"),
)
_REDUCES = ("Mean", "Sum", "Nansum")
_NLL = ("NllLoss", "NllLoss2D", "NllLoss2d")
_CHOOSES = (  # what gives out some of the numbers that it is given, or their sums
    *("Mean", "Sum", "Neg", "MaskedFill", "Gather", "Select", "Index", "Squeeze", "Unsqueeze", "View", "ReshapeAlias"),
    *("UnsafeView", "Permute", "Transpose", "Clone", "Alias", "ToCopy", *_NLL),
)
_FEW = 200  # nodes between a mean of losses and the losses


class _Look:
    """Whether a loss is being looked at."""

    open = False


_LOOK = _Look()


class PackedError(RuntimeError):
    """What was looked at is packed, and would have to be computed again."""


def leave_packed() -> None:
    """From now on looking at a loss unpacks nothing that hooks have packed: it may be computed again, with effects."""
    create = saved_tensors_hooks.__init__

    @functools.wraps(create)
    def init(one: Any, pack_hook: Any, unpack_hook: Any) -> None:
        def unpack(packed: Any) -> Any:
            if _LOOK.open:
                raise PackedError
            return unpack_hook(packed)

        create(one, pack_hook, unpack_hook if type(one) is save_on_cpu else unpack)

    setattr(saved_tensors_hooks, "__init__", init)  # noqa: B010


class Terms:
    """The terms of one loss; their factors are known once the backward pass has run."""

    def __init__(self, loss: Any) -> None:
        self.terms: list[dict[str, Any]] = []
        self._handles: list[Any] = []
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.grad_fn is None:
            self.terms.append({"how": "opaque", "node": "no scalar", "factor": None})
            return
        _LOOK.open = True
        try:
            sources: list[Any] = []
            for node, term, constants in _find(loss.grad_fn, (), set()):
                self._add(node, term, constants, sources)
        finally:
            _LOOK.open = False

    def _add(self, node: Any, term: dict[str, Any], constants: _Constants, sources: list[Any]) -> None:
        term |= {"node": node.name(), "factor": None, "constants": [value for value, _ in constants]}
        term["divisors"] = [1 / value for value, divided in constants if divided]
        source, each = _source(node)
        if term["how"] != "opaque":
            term |= {"penalty": _is_penalty(node), "of": _kind(source)}
            if _kind(source) == "LogSoftmax" and source in sources:  # of each sample `each` log probabilities are added
                samples = _samples(source)
                term |= {"part_of": sources.index(source)}
                term |= {"each": each if term["how"] == "mean" else each * (term.get("units") or 0) / samples}
        sources.append(source)
        self.terms.append(term)

        def arrived(gradients: tuple[Any, ...], term: dict[str, Any] = term) -> None:
            given = gradients[0] if gradients else None
            if isinstance(given, Tensor) and given.numel() == 1:
                term["factor"] = (term["factor"] or 0.0) + float(given.detach())

        self._handles.append(node.register_prehook(arrived))

    def close(self) -> list[dict[str, Any]]:
        """Takes the hooks away; the terms with their factors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return self.terms


_Constants = tuple[tuple[float, bool], ...]  # each with whether it is a division's: 1/4 for one by 4
_Found = tuple[Any, dict[str, Any], _Constants]


def _find(root: Any, constants: _Constants, seen: set[Any]) -> list[_Found]:
    """The terms below a node: node, what it makes one number of, the numbers that it was multiplied by."""
    found: list[_Found] = []
    stack: list[tuple[Any, int, _Constants]] = [(root, 0, constants)]
    while stack and len(seen) < _MOST:
        node, output, constants = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        single = _numel(node, output) in (1, None)
        term = _term(node) if single else None
        if term is not None and term["how"] != "opaque" and _of_scalars(node) and not _is_penalty(node):
            children = [child for child, _ in node.next_functions if child is not None]
            below = [one for child in children for one in _find(child, constants, set(seen))]
            if any(one[1].get("units") != 1 for one in below):  # a mean of losses: each is a term of its own
                term = None
        elif term is not None and term.get("units") == 1 and _kind(node) in _REDUCES:
            # of a batch of one, unless there is more to see below it
            children = [child for child, _ in node.next_functions if child is not None]
            below = [one for child in children for one in _find(child, constants, seen)]
            readable = [one for one in below if one[1]["how"] != "opaque"]
            found += readable if readable else [(node, term, constants)]
            continue
        elif not single and not _of_scalars(node):
            term = {"how": "opaque"}  # many numbers became one in a way that is not known
        if term is not None:
            found.append((node, term, constants))
            continue
        more = (*constants, *_constants(node))
        # the first input last, so that terms come in the order in which they were written
        stack.extend((child, place, more) for child, place in reversed(node.next_functions) if child is not None)
    return found


def _numel(node: Any, output: int) -> int | None:
    """How many numbers one of a node's outputs has."""
    known = getattr(node, "_input_metadata", None)  # of its gradient, which has the same shape
    return _count(known[output].shape) if known and output < len(known) else None


def _of_scalars(node: Any) -> bool:
    """Whether a node's numbers were single numbers that had been stacked: losses."""
    stack, stacked, looked = [node], False, 0
    while stack:
        one = stack.pop()
        looked += 1
        if looked > _FEW:
            return False
        if _kind(one) in ("Stack", "Cat") and all(_numel(child, at) == 1 for child, at in one.next_functions if child):
            stacked = True
            continue
        if one is node or (_kind(one) in _CARRIES and _numel(one, 0) != 1):
            stack.extend(child for child, _ in one.next_functions if child is not None)
        elif _numel(one, 0) != 1:
            return False
    return stacked


def _saved(node: Any, name: str) -> Any:
    try:
        return getattr(node, f"_saved_{name}", None)
    except RuntimeError:  # freed, or changed in place since
        return None


def _kind(node: Any) -> str:
    """ "MeanBackward1" -> "Mean"."""
    return str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")


def _count(sizes: Any) -> int | None:
    if sizes is None:
        return None
    count = 1
    for size in sizes:
        count *= int(size)
    return count


def _term(node: Any) -> dict[str, Any] | None:
    """What a node makes one number of; None where it only passes scalars on."""
    kind = _kind(node)
    if kind in _NLL:
        return _nll(node)
    if kind in _REDUCES:
        numel = _saved(node, "self_sym_numel")
        count = int(numel) if numel is not None else _count(_saved(node, "self_sym_sizes"))
        if count == 1 and not _saved(node, "self_sym_sizes"):
            return None  # of a number that is one already
        return {"how": "mean" if kind == "Mean" else "sum", "units": count}
    reduction = _saved(node, "reduction")
    if isinstance(reduction, int):
        given = _saved(node, "target" if kind == "MultiMarginLoss" else "self")
        if isinstance(given, Tensor) and kind == "MultilabelMarginLoss":
            given = given.select(-1, 0)  # one number for each sample
        if reduction == 0 or not isinstance(given, Tensor):
            return {"how": "opaque"} if reduction else None
        return {"how": "mean" if reduction == 1 else "sum", "units": given.numel()}
    if not hasattr(node, "_raw_saved_self") and _is_custom(node):
        return {"how": "opaque"}
    return None


def _is_custom(node: Any) -> bool:
    """Whether a node is a user's own autograd function, of which nothing is known."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _nll(node: Any) -> dict[str, Any] | None:
    reduction, target = _saved(node, "reduction"), _saved(node, "target")
    if reduction == 0:
        return None
    counted = int((target != _saved(node, "ignore_index")).sum()) if isinstance(target, Tensor) else None
    weights = _saved(node, "weight")
    term: dict[str, Any] = {"how": "mean" if reduction == 1 else "sum", "units": counted}
    if isinstance(weights, Tensor):
        term["weighted"] = True
        total = _saved(node, "total_weight")
        term["total"] = float(total) if isinstance(total, Tensor) else None
    return term


def _constants(node: Any) -> _Constants:
    """The number by which a node multiplies or divides."""
    kind = _kind(node)
    if kind not in ("Mul", "Div"):
        return ()
    for name in ("other", "self"):
        value = _saved(node, name)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
            value = float(value)
            if kind == "Div" and name == "self":  # a number by a loss
                return ()
        if isinstance(value, int | float) and not isinstance(value, bool):
            divided = kind == "Div"
            return () if divided and not value else ((1 / value if divided else float(value), divided),)
    return ()


def _source(node: Any) -> tuple[Any, float]:
    """What a term chooses from or adds up, and of how many of its numbers each of the term's units is the sum."""
    one, each = node, 1.0
    for _ in range(_FEW):
        children = [(child, at) for child, at in one.next_functions if child is not None]
        if _kind(one) not in _CHOOSES or len(children) != 1:
            break
        child, at = children[0]
        if _kind(one) == "Sum" and one is not node:
            each *= (_numel(child, at) or 1) / (_numel(one, 0) or 1)
        one = child
    return one, each


def _samples(node: Any) -> int:
    """How many samples (or tokens) a log softmax was taken of."""
    shape, dim = node._input_metadata[0].shape, int(_saved(node, "dim"))
    return max(1, (_count(shape) or 1) // int(shape[dim if dim < len(shape) else dim - 2**64]))


def _is_penalty(node: Any) -> bool:
    """Whether nothing but parameters flows into a node."""
    stack, seen = [node], set()
    while stack:
        one = stack.pop()
        if one in seen:
            continue
        seen.add(one)
        if len(seen) > _MOST or _kind(one) not in _PLAIN:
            return False
        children = [child for child, _ in one.next_functions]
        if any(child is None for child in children) and _holds_data(one):
            return False
        stack.extend(child for child in children if child is not None)
    return True


def _holds_data(node: Any) -> bool:
    """Whether a node has an input of many numbers that needs no gradient: data."""
    for name in ("self", "other", "tensor", "vec1", "vec2"):
        value = _saved(node, name)
        if isinstance(value, Tensor) and value.numel() > 1 and not value.requires_grad:
            return True
    return _kind(node) in ("Add", "Sub", "Cat", "Stack")
