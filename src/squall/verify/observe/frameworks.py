"""What has to be known of frameworks: FSDP2's reduction, Accelerate's gathering, who starts processes of its own."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from squall.verify.observe.blind import Guard
from squall.verify.observe.loaders import Loaders
from squall.verify.observe.ours import Ours
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder, where

_FSDP2 = "torch.distributed.fsdp._fully_shard"
_CPU_ACCELERATORS = (
    "lightning.pytorch.accelerators.cpu",
    "lightning.fabric.accelerators.cpu",
    "pytorch_lightning.accelerators.cpu",
)


class OwnProcessesError(RuntimeError):
    """The script starts its ranks itself."""


def install(recorder: Recorder, parameters: Parameters, loaders: Loaders) -> None:
    """Watches those that are there, and the others when they are imported."""
    _refuse_spawn(recorder)
    ours = Ours(recorder, parameters, loaders)
    _when_imported(
        recorder,
        {
            f"{_FSDP2}._fsdp_param_group": lambda module: _reductions(module, recorder, parameters),
            f"{_FSDP2}._fsdp_param": lambda module: _gathered(module, parameters),
            "accelerate.accelerator": lambda module: _accelerate(module, recorder),
            "lightning.pytorch.trainer.trainer": lambda module: _used(module.Trainer, "Lightning", recorder),
            "pytorch_lightning.trainer.trainer": lambda module: _used(module.Trainer, "Lightning", recorder),
            **{name: lambda module: _as_many_as_ranks(module, recorder) for name in _CPU_ACCELERATORS},
            "lightning.fabric.fabric": lambda module: _used(module.Fabric, "Fabric", recorder),
            "squall.run.stepper": ours.steps,
            "squall.run.evaluate": ours.reading,
            "squall.data.batches": ours.samples,
            "squall.run.run": lambda module: _used(module.Run, "Squall", recorder),
        },
    )


def _reductions(module: ModuleType, recorder: Recorder, parameters: Parameters) -> None:
    """FSDP2 takes the whole gradients of a group of layers, of one or of several backward passes, and scatters sums."""
    reduce, post_backward = module.foreach_reduce, module.FSDPParamGroup.post_backward

    @functools.wraps(reduce)
    def watched(shards: Any, gradients: Any, *args: Any, **named: Any) -> Any:
        if recorder.here and recorder.observing:
            for shard, gradient in zip(shards, gradients, strict=True):
                parameters.arrived(parameters.index(shard.sharded_param), gradient)
        recorder.about["fsdp2"] = True
        return reduce(shards, gradients, *args, **named)

    @functools.wraps(post_backward)
    def ended(group: Any, *args: Any) -> Any:
        if recorder.here and recorder.observing and not group.reduce_grads:
            for one in group.fsdp_params:
                if getattr(one, "_unsharded_param", None) is not None and one._unsharded_param.grad is not None:
                    parameters.held_back(parameters.index(one.sharded_param))
        return post_backward(group, *args)

    module.foreach_reduce = watched  # type: ignore[attr-defined]
    module.FSDPParamGroup.post_backward = ended


def _gathered(module: ModuleType, parameters: Parameters) -> None:
    """While a layer of FSDP2 computes, its parameters are other tensors."""
    gather = module.FSDPParam.to_unsharded

    @functools.wraps(gather)
    def watched(one: Any, *args: Any) -> Any:
        result = gather(one, *args)
        parameters.gathered(one._unsharded_param, one.sharded_param)
        return result

    module.FSDPParam.to_unsharded = watched


def _as_many_as_ranks(module: ModuleType, recorder: Recorder) -> None:
    """`devices="auto"` is one CPU for Lightning, and would be P GPUs: here it is as many as there are ranks."""
    module.CPUAccelerator.auto_device_count = staticmethod(lambda: recorder.processes)


def _used(kind: Any, framework: str, recorder: Recorder) -> None:
    """Notes that a framework is used when an object of its main class is made: an import says nothing."""
    create = kind.__init__

    @functools.wraps(create)
    def init(one: Any, *args: Any, **named: Any) -> None:
        used = recorder.about.setdefault("frameworks", [])
        if framework not in used:
            used.append(framework)
        create(one, *args, **named)

    kind.__init__ = init


def _accelerate(module: ModuleType, recorder: Recorder) -> None:
    if not torch.accelerator.is_available():  # `Accelerator()` trains alone on a CPU, and would take P GPUs
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    _used(module.Accelerator, "Accelerate", recorder)
    for name in ("gather", "gather_for_metrics", "reduce"):
        call = getattr(module.Accelerator, name)

        @functools.wraps(call)
        def watched(one: Any, *args: Any, _call: Any = call, _name: str = name, **named: Any) -> Any:
            if recorder.here:
                recorder.note("gathered", what=_name, where=where())
            return _call(one, *args, **named)

        setattr(module.Accelerator, name, watched)


def _refuse_spawn(recorder: Recorder) -> None:
    import torch.multiprocessing as multiprocessing

    def refuse(*args: Any, **named: Any) -> Any:
        recorder.note("spawned", where=where())
        raise OwnProcessesError("the script starts its own processes")

    for name in ("spawn", "start_processes"):
        setattr(multiprocessing, name, refuse)
    inner = sys.modules.get("torch.multiprocessing.spawn")
    if inner is not None:
        inner.spawn = inner.start_processes = refuse  # type: ignore[attr-defined]


def _when_imported(recorder: Recorder, todo: dict[str, Callable[[ModuleType], None]]) -> None:
    for name in list(todo):
        if name in sys.modules:
            with Guard(recorder, name):  # a version of it may lack what is looked for
                todo.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, _Finder(recorder, todo))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as ever, and does something to some of them once they are loaded."""

    def __init__(self, recorder: Recorder, todo: dict[str, Callable[[ModuleType], None]]) -> None:
        self.recorder, self.todo = recorder, todo

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As the other finders do; a loader's last act is ours."""
        if name not in self.todo:
            return None
        change = self.todo.pop(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then(module: ModuleType) -> None:
            execute(module)
            with Guard(self.recorder, name):
                change(module)

        spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec
