"""The checks of `squall verify`: their names in the order of the table, what each asks, and where it was described.

A name is what a person types (`--checks "epoch order"`) and what a finding carries; the checks themselves stand in
`squall.verify.checks`. Sources are papers, and threads as repository#number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from squall.errors import Mistakes, nearest


@dataclass(frozen=True)
class CheckInfo:
    """One check.

    Attributes:
        name: "epoch order".
        asks: its question, in one line.
        known: where the fault that it looks for is described.
    """

    name: str
    asks: str
    known: tuple[str, ...]


CHECKS: tuple[CheckInfo, ...] = (
    CheckInfo(
        "gradient",
        "is what the optimiser applies the gradient of the mean over all samples of the step?",
        (
            *(
                "Goyal et al. 2017, Remark 3",
                "kubeflow/pytorch-operator#122",
                "sparseml#135",
                "verl-SpeCo#29",
                "torchtitan#2323",
            ),
            *("torchft#286", "apex#696", "fairseq#494"),
        ),
    ),
    CheckInfo(
        "accumulation",
        "does an update out of several backward passes weigh each of their samples alike?",
        ("axolotl#2262", "NVIDIA-NeMo/Automodel#2257", "AnimaLoraStudio#305", "OpenNMT-py#2209"),
    ),
    CheckInfo(
        "loss weighting",
        "does each sample, or token, weigh the same where ranks hold unequal numbers of them?",
        ("transformers#34191", "pytorch#42577", "pytorch#37359"),
    ),
    CheckInfo(
        "weight decay",
        "does the decay stay what it is when the loss is scaled or summed?",
        ("Goyal et al. 2017, Remark 1",),
    ),
    CheckInfo(
        "momentum",
        "does the momentum keep its size when the rate changes?",
        ("Goyal et al. 2017, Remark 2", "mxnet#15533", "pytorch#1099"),
    ),
    CheckInfo(
        "clipping",
        "is it the gradient of the whole step, unscaled, that is clipped?",
        ("lczero-training#162", "pytorch/examples#1196", "Lightning#9694", "returnn#1590"),
    ),
    CheckInfo(
        "loss scaling",
        "is the factor of mixed precision taken out of the gradient before the update?",
        ("PyTorch: automatic mixed precision examples", "nerfacc#307", "Applio#860"),
    ),
    CheckInfo(
        "non-finite",
        "do all ranks do the same when one has a loss or a gradient that is not finite?",
        ("WeatherGenerator#2718", "NVIDIA-NeMo/Automodel#2468", "Lightning#5359"),
    ),
    CheckInfo(
        "rate",
        "does the learning rate follow its schedule, one step of it for each update?",
        ("Goyal et al. 2017, section 2.2", "accelerate#1382", "pytorch-gradual-warmup-lr#27", "Detectron.pytorch#32"),
    ),
    CheckInfo(
        "epoch coverage",
        "is each sample seen once in an epoch, by one rank?",
        ("Goyal et al. 2017, Remark 4", "LongLive#71", "Qwen3-VL#1971", "torchft#292"),
    ),
    CheckInfo(
        "epoch order",
        "has each epoch an order of its own?",
        ("pytorch#31771", "pytorch#31232", "pytorch#11324"),
    ),
    CheckInfo(
        "augmentation",
        "does each rank, each loader process and each epoch draw its own random numbers?",
        ("pytorch#5059", "Lightning#20412", "transformers#37932"),
    ),
    CheckInfo(
        "parameters",
        "does every parameter that gets a gradient get the update?",
        ("pytorch#14467", "HVPNeT#5"),
    ),
    CheckInfo(
        "mode",
        "is the model in training mode on all ranks at each update?",
        ("pytorch-fcn#56", "pytorch-pfn-extras#688"),
    ),
    CheckInfo(
        "batch statistics",
        "over how many samples are layers normalised, and are running statistics the same on all ranks?",
        ("Goyal et al. 2017, section 2.3", "pytorch#13711", "pytorch#22192", "mmdetection#4582"),
    ),
    CheckInfo(
        "weights",
        "do all ranks hold the same weights, from the start and after each update?",
        ("PyTorch: DistributedDataParallel, notes on the internal design",),
    ),
    CheckInfo(
        "evaluation",
        "is each sample of an evaluation counted once, with the same weight?",
        ("pytorch#25162", "pytorch#22584", "fairchem#269"),
    ),
    CheckInfo(
        "determinism",
        "does a second run see the same samples and come to the same numbers?",
        ("PyTorch: Reproducibility",),
    ),
    CheckInfo(
        "resume",
        "does a run that goes on from a checkpoint do what the uninterrupted run does?",
        ("NeMo-Automodel#3427", "streaming#880", "openfold#181"),
    ),
)

NAMES: tuple[str, ...] = tuple(check.name for check in CHECKS)


def chosen(words: Iterable[str], mistakes: Mistakes, flag: str) -> tuple[str, ...]:
    """The names that are meant, in the order of the table; "epoch-order" is "epoch order".

    Arguments:
        words: as a person wrote them.
        mistakes: gets a row for each word that is no name.
        flag: where the words stand.
    """
    known = {_key(name): name for name in NAMES}
    found = set()
    for word in words:
        name = known.get(_key(word))
        if name is None:
            near = nearest(_key(word), NAMES)
            names = f"Near: {', '.join(near)}" if near else f"One of: {', '.join(NAMES)}"
            mistakes.add(f"{flag} {word}".rstrip(), f"no such check. {names}")
        else:
            found.add(name)
    return tuple(name for name in NAMES if name in found)


def _key(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())
