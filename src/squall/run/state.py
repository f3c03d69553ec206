"""Everything that a run would lose with its processes: collected for a checkpoint, and put back.

Equal on all ranks, so that any rank's copy will do and any number of ranks can go on from it:

    tensors    model.NAME           parameters (frozen ones too) and buffers, persistent or not
               optimizer.state...   the optimiser's, under its own names
               ema.NAME             averaged weights
               ledger.counts        how often each sample was read, summed over ranks
               kept.NAME...         what a loop of one's own asked to keep (`Run.keep`)
    values     position, groups of the optimiser, loss scale, sums of the epoch, Python's, NumPy's and torch's
               generators: everything else that is a number

The optimiser's state is set tensor by tensor in the form it had (dtype, strides): `load_state_dict` would cast it to
its parameter's dtype.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from squall.checkpoint import layout, plain
from squall.checkpoint.layout import Entry
from squall.errors import InputError, Mistakes, RunError
from squall.optim.ema import Ema

_KERNELS = ("fused", "foreach", "capturable", "differentiable")


@dataclass
class State:
    """A run's state: live tensors by name, and values that are plain JSON."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, each once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {f"model.{name}": plain.real(tensor.detach()) for name, tensor in named}


def collect(model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> State:
    """The state of what is trained.

    Raises:
        RunError: a value that a checkpoint cannot hold.
    """
    state = State(model_tensors(model))
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    extra = {key: value for key, value in model.state_dict().items() if key not in named}  # `get_extra_state`
    if extra:
        state.values["model"] = plain.pack(extra, "model.extra", state.tensors)
    state.values["optimizer"] = {
        "class": class_name(optimizer),
        "defaults": _defaults(optimizer),
        "state": plain.pack(optimizer.state_dict(), "optimizer", state.tensors),
    }
    if ema is not None:
        state.tensors |= {f"ema.{name}": tensor for name, tensor in ema.averages.items()}
        state.values["ema"] = {"num_updates": ema.num_updates}
    return state


def restore(
    values: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
) -> None:
    """Puts the state of what is trained back.

    Raises:
        InputError: it is another model's, or another optimiser's.
    """
    check_fits(tensors, model)
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(tensors[name])
    if "model" in values:
        extra = plain.unpack(values["model"], tensors)
        _, unexpected = model.load_state_dict(extra, strict=False)
        if unexpected:
            raise InputError(f"the checkpoint holds {unexpected[0]}, which the model has no place for")
    _restore_optimizer(values["optimizer"], tensors, optimizer)
    if ema is not None:
        averages = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
        ema.load(averages, values["ema"]["num_updates"])


def check_fits(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Refuses a checkpoint of another model.

    Raises:
        InputError: lists names and shapes that differ.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model_tensors(model).items()}
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("model.")}
    rows = [(name.removeprefix("model."), "the checkpoint has none") for name in own if name not in held]
    rows += [(name.removeprefix("model."), "the model has none") for name in held if name not in own]
    rows += [
        (name.removeprefix("model."), f"{held[name]} in the checkpoint, {shape} in the model")
        for name, shape in own.items()
        if name in held and held[name] != shape
    ]
    if rows:
        more = [("...", f"and {len(rows) - 8} more")] if len(rows) > 8 else []
        raise InputError(
            "the checkpoint is of another model",
            [*rows[:8], *more, ("to do", "go on with the model that was trained, or choose another run folder")],
        )


def class_name(value: object) -> str:
    """Module and name of a value's class; torch's schedulers and Squall's rules keep theirs."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _restore_optimizer(
    held: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    mistakes = Mistakes("the checkpoint's optimiser")
    if held["class"] != class_name(optimizer):
        mistakes.add(held["class"], f"now it is {class_name(optimizer)}")
    for name, now in _defaults(optimizer).items():
        if held["defaults"].get(name, now) != now:
            mistakes.add(f"{name}={held['defaults'][name]}", f"now {now}")
    saved = plain.unpack(held["state"], tensors)
    before, now = saved["param_groups"], optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in before] != [len(group["params"]) for group in now]:
        mistakes.add(f"{len(before)} groups of parameters", f"now {len(now)}, of other sizes or another number")
    mistakes.raise_if_any()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(isinstance(key, int) and isinstance(value, dict) for key, value in saved["state"].items()):
        optimizer.load_state_dict(saved)  # a class with a form of its own
        return
    optimizer.load_state_dict({**saved, "state": {}})
    counts = any(group.get("capturable") or group.get("fused") for group in optimizer.param_groups)
    for index, state in saved["state"].items():
        parameter = parameters[index]
        optimizer.state[parameter] = {name: _placed(value, parameter.device, counts) for name, value in state.items()}


def _placed(value: Any, device: torch.device, counts_there: bool) -> Any:
    """A value of the optimiser's state, tensors where its parameter is; counters of steps where the rule wants them."""
    if isinstance(value, torch.Tensor) and (value.ndim or counts_there):
        return value.to(device)
    return value


def _defaults(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """The arguments that an optimiser was built with, as text; without those that choose a kernel."""
    return {name: repr(value) for name, value in optimizer.defaults.items() if name not in _KERNELS}


# -- tensors and the checkpoint's vectors ------------------------------------------------------------------------------


def taken_out(entries: list[Entry], vectors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, each new and in the memory format that it had."""
    found = {}
    for entry in entries:
        vector = vectors[entry.dtype]
        found[entry.name] = entry.empty(vector.device)
        layout.take(entry, vector, found[entry.name])
    return found


# -- generators --------------------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Any]:
    """The global generators of this process, as plain JSON."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    kind, keys, *rest = legacy
    found = {
        "python": [version, _text(np.array(numbers, dtype=np.uint32)), gauss],
        "numpy": [kind, _text(keys), *rest],
        "torch": _text(torch.default_generator.get_state().numpy()),
    }
    if device.type == "cuda":
        found["cuda"] = _text(torch.cuda.get_rng_state(device).numpy())
    return found


def set_random_state(held: Mapping[str, Any], device: torch.device) -> None:
    """Puts the global generators back."""
    version, numbers, gauss = held["python"]
    random.setstate((version, tuple(_numbers(numbers, np.uint32).tolist()), gauss))
    kind, keys, *rest = held["numpy"]
    np.random.set_state((kind, _numbers(keys, np.uint32), *rest))
    torch.default_generator.set_state(torch.from_numpy(_numbers(held["torch"], np.uint8)))
    if "cuda" in held and device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(_numbers(held["cuda"], np.uint8)), device)


def _text(numbers: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def _numbers(text: str, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).copy()


# -- what a loop of one's own keeps ------------------------------------------------------------------------------------


class _Generator:
    """A generator of torch's that the loop made itself, with the methods of everything else that is kept."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self._generator.set_state(state["state"].cpu())


class Kept:
    """Objects with a state of their own that travel with the checkpoints."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}

    def add(self, objects: Mapping[str, Any], *, begun: bool) -> None:
        """Takes objects in, by name.

        Raises:
            InputError: one has no `state_dict` and `load_state_dict`.
            RunError: the training has begun, so that nothing would be put back.
        """
        for name, value in objects.items():
            if begun:
                raise RunError(
                    f"run.keep({name}=...) was called after the training had begun",
                    [("rule", "what a checkpoint holds is put back there"), ("to do", "call it before run.steps(...)")],
                )
            if isinstance(value, torch.Generator):
                value = _Generator(value)
            if not all(callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")):
                raise InputError(
                    f"run.keep({name}=...) got a {type(value).__name__}",
                    [
                        ("rule", "what is kept is a torch.Generator, or has state_dict() and load_state_dict(state)"),
                        ("to do", "give it these two methods, as torch's schedulers have them"),
                    ],
                )
            self._objects[name] = value

    def __bool__(self) -> bool:
        return bool(self._objects)

    def collect(self, tensors: plain.Tensors) -> dict[str, Any]:
        """All states with the classes they are of; their tensors are added to `tensors`."""
        return {
            name: {"class": class_name(value), "state": plain.pack(value.state_dict(), f"kept.{name}", tensors)}
            for name, value in self._objects.items()
        }

    def load(self, held: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts the states back.

        Raises:
            RunError: something was saved that is not kept now, or the other way round.
        """
        lost = [name for name in held if name not in self._objects]
        new = [name for name in self._objects if name not in held]
        if lost or new:
            rows = [(name, "in the checkpoint, but run.keep was not called for it") for name in lost]
            rows += [(name, "kept now, but the checkpoint has no state of it") for name in new]
            raise RunError(
                "the checkpoint keeps other things than this loop",
                [*rows, ("rule", "run.keep(...) comes before run.steps(...), with the same names in every session")],
            )
        for name, value in self._objects.items():
            if held[name]["class"] != class_name(value):
                raise RunError(
                    f"run.keep({name}=...) is of another class than in the checkpoint",
                    [("found", class_name(value)), ("saved", held[name]["class"])],
                )
            value.load_state_dict(plain.unpack(held[name]["state"], tensors))
