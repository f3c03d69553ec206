"""The recipe as a typed, frozen value: everything that fixes a training's result, nothing that names hardware.

A recipe is one table of numbers and words and a few tables below it (model, data, optimizer, lr, loss, compute, and
those of a strategy, in files of their own). Each
field carries its meaning here, once: `squall recipes NAME --fields` and the errors are printed from it. What is left
out is filled in when the recipe is built (`resolve.py`), so a recipe never means different things in two places; what
was really written stays known (pydantic's `model_fields_set`), so that an override acts on the words of the recipe and
not on their consequences.

Names are the field's own: `global_batch_size` (kn of Goyal et al. 2017), `worker_batch_size` (n), `milestones`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from squall.checkpoint.spec import CheckpointSpec
from squall.data.sizes import solve_batches
from squall.errors import InputError, Mistakes
from squall.optim.lr import Rate
from squall.recipe.base import Count, Fraction, NotNegative, Spec, Tables, Words
from squall.recipe.check import contradictions, rows_of
from squall.recipe.downpour import DownpourSpec
from squall.recipe.names import is_read
from squall.recipe.refused import refused
from squall.recipe.resolve import fill, flatten
from squall.recipe.sandblaster import SandblasterSpec
from squall.recipe.simulated import SimulatedSpec
from squall.recipe.strategies import ask_for_rate, foreign_keys, has_global_batch, only_read, own_minibatches


class ModelSpec(Spec):
    """Which network; keys beside these are arguments of its factory (`num_classes`, `width`, ...)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, protected_namespaces=())

    name: str = Field(description='a network\'s name, or "package.module:function" for your own')
    weights: str | None = Field(
        default=None, description="where weights come from: a .safetensors file or a run's folder"
    )
    weights_skip: Words = Field(
        default=(),
        description='tensors that are not taken from weights, by name or pattern, such as another head: ["fc"]',
    )
    freeze: Words = Field(
        default=(), description='parameters that stay as they are, by name or pattern: ["stem", "layer1.*"]'
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """What the factory is called with."""
        return dict(self.model_extra or {})


class DataSpec(Spec):
    """Which samples, and what is done to them before the network sees them."""

    name: str = Field(description='digits, cifar10, idx, imagefolder, or "package.module:function"')
    root: str | None = Field(default=None, description="folder of the set, below --data")
    num_workers: int = Field(default=0, ge=0, description="loader processes per process; changes no result")
    train: Tables = Field(
        default=(), description="operations on training images, in order: [{ random_crop = 32, padding = 4 }]"
    )
    val: Tables = Field(default=(), description="operations on images of evaluation")
    val_samples: int = Field(default=0, ge=0, description="training samples held out for validation, chosen by hash")
    train_limit: Count | None = Field(default=None, description="use only so many training samples, chosen by a hash")
    test_limit: Count | None = Field(default=None, description="use only so many test samples, chosen by a hash")
    on_error: Literal["error", "skip"] = Field(
        default="error", description="an image that does not decode: stop, or skip and count it"
    )


class OptimizerSpec(Spec):
    """The rule that turns a gradient into an update."""

    name: str = Field(
        default="sgd",
        description='sgd adamw adam adagrad rmsprop lars lamb, or "package.module:Class"; none with sandblaster',
    )
    momentum: Fraction = Field(
        default=0.0, description="of sgd, lars, rmsprop; the buffer is free of the rate, Goyal's form (9)"
    )
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum")
    betas: Annotated[tuple[Fraction, Fraction] | None, Field(strict=False)] = Field(
        default=None, description="decays of the two moments of adam, adamw, lamb; torch's defaults unless given"
    )
    eps: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of adam, adamw, lamb, adagrad, rmsprop"
    )
    weight_decay: NotNegative = Field(default=0.0, description="added after the reduction, never scaled with the loss")
    no_weight_decay: Words = Field(
        default=("norm",), description='not decayed: "norm", "bias", or patterns of parameter names'
    )
    groups: Tables = Field(
        default=(), description='parameters treated apart: [{ match = "head.*", lr_scale = 10.0, weight_decay = 0.0 }]'
    )
    options: dict[str, Any] = Field(
        default={}, description="further arguments of the optimizer's class, by its own names"
    )


class LrSpec(Spec):
    """The learning rate as a function of samples seen."""

    base: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="the rate at base_batch_size; no default, and none at all with sandblaster"
    )
    base_batch_size: Count | None = Field(
        default=None,
        description="the size that base is meant for; unless given, the recipe's own: global_batch_size, or with "
        "downpour worker_batch_size",
    )
    scaling: Literal["linear", "sqrt", "none"] | None = Field(
        default=None,
        description="how the rate follows the size: linear unless given, none with adam, adamw, lamb, adagrad, rmsprop",
    )
    schedule: Literal["constant", "step", "cosine"] | None = Field(
        default=None, description="course after the warm-up: constant, or step where milestones are given"
    )
    milestones: Annotated[tuple[NotNegative, ...], Field(strict=False)] = Field(
        default=(), description="epochs at which the rate is multiplied by gamma (schedule step)"
    )
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=0.1, description="factor at each milestone"
    )
    final: NotNegative = Field(default=0.0, description="the rate at the end (schedule cosine)")
    warmup: Literal["gradual", "constant", "none"] | None = Field(
        default=None, description="start of the run: gradual where warmup_epochs are given, else none"
    )
    warmup_epochs: NotNegative = Field(default=0.0, description="length of the warm-up, inside the run's epochs")
    warmup_from: Literal["base"] | NotNegative | None = Field(
        default=None, description='rate at the first step: "base" where scaling lifts the rate above base, else 0'
    )

    def rate(self) -> Rate:
        """The schedule as a function of epochs done (of a recipe's own `lr`, where every default is filled in)."""
        return Rate(**{name: value for name, value in self if value is not None})


class LossSpec(Spec):
    """What is minimised: always a sum over samples divided by the minibatch's size."""

    name: str = Field(
        default="cross_entropy", description='cross_entropy, or "package.module:function" of (output, target)'
    )
    label_smoothing: Fraction = Field(default=0.0, description="of cross_entropy")


class ComputeSpec(Spec):
    """How the arithmetic is carried out; may change bits, never the mathematics."""

    precision: Literal["fp32", "bf16", "fp16", "tf32"] = Field(
        default="fp32", description="of products; weights stay float32"
    )
    reduction: Literal["exact", "fast"] = Field(
        default="exact",
        description="exact: same bits on any number of processes; fast: the collective chooses the order",
    )
    fuse: Count = Field(
        default=1, description="virtual workers a forward pass; normalisation stays over worker_batch_size"
    )
    threads: Count = Field(default=1, description="per process, on CPU; another number is another arithmetic")
    channels_last: bool = Field(default=False, description="memory format of images and convolutions")
    compile: bool = Field(default=False, description="torch.compile the network")


class CheckpointTable(Spec):
    """When the run's state is saved, and what stays on disk; changes no result."""

    every: str = Field(
        default="1ep",
        description='"1ep", "500step" or "10min"; "never": only when asked to stop. With sandblaster iterations, '
        "each by default",
    )
    keep: Count = Field(default=2, description="the newest so many stay")
    keep_best: str | None = Field(
        default=None, description='the best by a metric of the validation set stays too: "val/accuracy"'
    )

    def rule(self) -> CheckpointSpec:
        """As the run takes it."""
        return CheckpointSpec.of(self.model_dump())


class Recipe(Spec):
    """One training, complete.

    Takes the tables as mappings or specs, and short forms for common cases: `optimizer="adamw"`, `model="resnet20"`,
    `data="digits"`, `loss="cross_entropy"`, `lr=0.1`, and any field of optimizer, lr, loss and compute without its
    table (`weight_decay=1e-4`, `schedule="cosine"`, `precision="bf16"`). Two of `global_batch_size`,
    `worker_batch_size` and `virtual_workers` give the third; with `strategy="downpour"` and `"sandblaster"` there is
    `worker_batch_size` alone. With `"sandblaster"` there is no `lr` either: the attribute holds a constant rate of 1,
    which stands in and is not written.

    Raises:
        InputError: with all mistakes at once, each with the nearest valid names.

    Example:
        >>> recipe = Recipe(epochs=20, global_batch_size=512, worker_batch_size=64, optimizer="adamw", lr=3e-4)
        >>> recipe.virtual_workers, recipe.lr.scaling, recipe.lr.base_batch_size
        (8, 'none', 512)
    """

    name: str = Field(default="recipe", min_length=1, description="of the recipe, and of its runs' folders")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of order, augmentation, first weights and dropout")
    epochs: Count = Field(
        description="passes over the training set; with sandblaster the most evaluations of the batch, each one pass"
    )
    strategy: str = Field(
        default="sync", description="who computes which gradient and who applies it: sync, downpour, sandblaster"
    )
    global_batch_size: Count | None = Field(
        default=None,
        description="samples an update: what the optimizer sees (kn); there is none with downpour and sandblaster",
    )
    worker_batch_size: Count = Field(
        description="samples of a virtual worker, of a replica, or of a portion of the batch (n): what batch "
        "normalisation sees; ceil(kn/n) workers"
    )
    loss: LossSpec = Field(default=LossSpec(), description="what is minimised")
    last_batch: Literal["short", "drop", "carry"] = Field(
        default="short",
        description="an epoch's smaller last minibatch: used as it is, left out, or carried into the next epoch",
    )
    loss_over: Literal["sample", "worker"] = Field(
        default="sample", description="what the loss is a sum over; worker for losses over a whole batch (contrastive)"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="decay of an average of the weights that is evaluated and saved beside them"
    )
    clip_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="largest norm of the whole minibatch's gradient"
    )
    eval_batch_size: Count = Field(default=500, description="samples an evaluation batch; a number of the arithmetic")
    model: ModelSpec | None = Field(default=None, description="the network; a task brings its own")
    data: DataSpec | None = Field(default=None, description="the samples; a task brings its own")
    optimizer: OptimizerSpec = Field(default=OptimizerSpec(), description="the update rule")
    lr: LrSpec = Field(default_factory=lambda: LrSpec(base=1.0), description="the learning rate")
    compute: ComputeSpec = Field(default=ComputeSpec(), description="how the arithmetic is carried out")
    checkpoint: CheckpointTable = Field(default=CheckpointTable(), description="when the run is saved")
    downpour: DownpourSpec | None = Field(default=None, description="of strategy downpour: replicas and shards")
    sandblaster: SandblasterSpec | None = Field(
        default=None, description="of strategy sandblaster: replicas and shards, L-BFGS"
    )
    simulated: SimulatedSpec | None = Field(default=None, description="a simulated cluster, for --engine simulated")

    def __init__(self, **given: Any) -> None:
        _build(self, given, Mistakes("squall.Recipe(...)", hint="all fields: squall recipes --fields"))

    @property
    def update_size(self) -> int:
        """Samples that belong together: kn with sync; n with downpour, where each replica's minibatch is an update of
        its own; a portion with sandblaster."""
        return self.global_batch_size or self.worker_batch_size

    @property
    def virtual_workers(self) -> int:
        """k: virtual workers of an update; 1 with downpour and sandblaster."""
        return -(-self.update_size // self.worker_batch_size)

    @property
    def roles(self) -> DownpourSpec | SandblasterSpec | None:
        """The table of the replicas and shards that do the training; None where ranks in lock-step do."""
        return self.downpour or self.sandblaster

    @property
    def has_rate(self) -> bool:
        """Whether there is a learning rate; else `lr` stands in and means nothing."""
        return is_read(self.strategy, "lr")

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return only_read(self.strategy, write(self))


def build(given: Mapping[str, Any], where: str, hint: str) -> Recipe:
    """A recipe from its fields; mistakes are reported as being in `where`, with `hint` as the last line.

    Raises:
        InputError: with all mistakes at once.
    """
    recipe = Recipe.__new__(Recipe)
    _build(recipe, given, Mistakes(where, hint))
    return recipe


def _build(recipe: Recipe, given: Mapping[str, Any], mistakes: Mistakes) -> None:
    values = flatten(given, Recipe, mistakes)
    for found, rule in foreign_keys(values):
        mistakes.add(found, rule)
    (solve_batches if has_global_batch(values) else own_minibatches)(values, mistakes)
    ask_for_rate(values)
    try:
        BaseModel.__init__(recipe, **values)
    except ValidationError as error:
        mistakes.rows.extend(rows_of(error, values, Recipe))
    for found, rule in (*contradictions(values), *refused(values)):
        mistakes.add(found, rule)
    mistakes.raise_if_any()
    fill(recipe)
    try:
        recipe.lr.rate()
    except InputError as error:
        mistakes.rows.extend((f"lr.{found}", rule) for found, rule in error.rows)
    mistakes.raise_if_any()
