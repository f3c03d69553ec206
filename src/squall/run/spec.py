"""What a run needs to know to compute: the part of a recipe that fixes the arithmetic.

All of these numbers change the result, or its bits; none names hardware. `squall.Run(folder, **fields)` takes them by
name; `squall.train` fills them from the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from squall.data.order import LastBatch, Order
from squall.data.sizes import solve_batches
from squall.errors import Mistakes, nearest

Precision = Literal["fp32", "bf16", "fp16", "tf32"]
ReductionKind = Literal["exact", "fast"]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The numbers of one run.

    Attributes:
        epochs: passes over the training set.
        global_batch_size: kn, samples an update (Goyal's kn).
        worker_batch_size: n, samples of a virtual worker: what batch normalisation sees (Goyal's n).
        seed: of order, augmentation, initial weights, dropout.
        last_batch: what becomes of an epoch's smaller last minibatch: short, drop or carry.
        reduction: exact (same bits on any number of processes) or fast (the collective chooses the order).
        fuse: virtual workers a pass; normalisation stays over n.
        precision: fp32, bf16 (autocast), fp16 (autocast with loss scaling, CUDA), tf32 (CUDA).
        threads: intra-operator threads of each process on CPU; they change bits, so they are not the machine's choice.
        channels_last: memory format of 4-d weights and inputs.
        compile: torch.compile the model.
        ema: decay of an exponential moving average of the weights, which is then evaluated and saved beside them.
        eval_batch_size: samples of an evaluation batch; a number of the recipe, since an output's bits depend on the
            batch it sits in.
        loss_over: "sample": the loss is a sum over samples; "worker": it is the mean of a worker's batch and not a sum
            over samples (contrastive losses); it then weighs by the worker's samples.
    """

    epochs: int
    global_batch_size: int
    worker_batch_size: int
    seed: int = 0
    last_batch: LastBatch = "short"
    reduction: ReductionKind = "exact"
    fuse: int = 1
    precision: Precision = "fp32"
    threads: int = 1
    channels_last: bool = False
    compile: bool = False
    ema: float | None = None
    eval_batch_size: int = 500
    loss_over: Literal["sample", "worker"] = "sample"

    @staticmethod
    def of(given: Mapping[str, Any]) -> RunSpec:
        """Builds a spec from fields by name; any two of the three batch numbers give the third.

        Raises:
            InputError: with all mistakes at once.
        """
        mistakes = Mistakes("squall.Run(...)")
        values = dict(given)
        names = [field.name for field in fields(RunSpec)]
        for key in [key for key in values if key not in (*names, "virtual_workers")]:
            near = nearest(key, [*names, "virtual_workers"])
            mistakes.add(f"{key}={values.pop(key)!r}", f"no such field. Near: {', '.join(near) or ', '.join(names)}")
        solve_batches(values, mistakes)
        if "epochs" not in values:
            mistakes.add("epochs", "missing: say how many passes over the training set, for example epochs=90")
        for key in ("epochs", "global_batch_size", "worker_batch_size", "fuse", "threads", "eval_batch_size"):
            value = values.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                mistakes.add(f"{key}={value!r}", "must be a whole number of at least 1")
        seed = values.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            mistakes.add(f"seed={seed!r}", "must be a whole number of at least 0 and below 2**63")
        for key in ("channels_last", "compile"):
            if not isinstance(values.get(key, False), bool):
                mistakes.add(f"{key}={values[key]!r}", "must be True or False")
        for key, kinds in (("last_batch", LastBatch), ("reduction", ReductionKind), ("precision", Precision)):
            if key in values and values[key] not in get_args(kinds):
                mistakes.add(f"{key}={values[key]!r}", f"not known. One of: {' '.join(get_args(kinds))}")
        if values.get("loss_over", "sample") not in ("sample", "worker"):
            mistakes.add(f"loss_over={values['loss_over']!r}", "not known. One of: sample worker")
        if values.get("loss_over") == "worker" and values.get("fuse", 1) != 1:
            mistakes.add(
                f"fuse={values['fuse']}", 'must be 1 with loss_over = "worker": each worker needs its own loss'
            )
        ema = values.get("ema")
        if ema is not None and not (isinstance(ema, float) and 0 < ema < 1):
            mistakes.add(f"ema={ema!r}", "must lie between 0 and 1, for example 0.999")
        mistakes.raise_if_any()
        return RunSpec(**values)

    def order(self, num_samples: int) -> Order:
        """Who sees which sample, for a training set of this size."""
        return Order(
            num_samples=num_samples,
            global_batch_size=self.global_batch_size,
            worker_batch_size=self.worker_batch_size,
            epochs=self.epochs,
            seed=self.seed,
            fuse=self.fuse,
            last_batch=self.last_batch,
        )
