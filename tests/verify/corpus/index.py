"""What each script of the corpus is: right, or with one fault, and then which check must name it.

The corpus was written before the checks. A script with a fault differs from its right twin by that fault alone; file
names and comments tell nothing. Sizes are mostly no multiples of anything, so padding, short last batches and unequal
shares occur in right scripts as they do elsewhere. Each script runs under torchrun with 2, 3 and 4 processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CHECKS = (
    *("gradient", "accumulation", "loss weighting", "weight decay", "momentum", "epoch coverage", "epoch order"),
    *("augmentation", "rate", "parameters", "mode", "clipping", "loss scaling", "non-finite", "batch statistics"),
    *("evaluation", "determinism", "resume", "weights"),
)
FRAMEWORKS = ("ddp", "manual", "accelerate", "lightning", "fsdp2", "squall")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One script: `faults` are the checks that must fail, none for a right one.

    `notes`: checks that should be notes with some of 2, 3 and 4 processes; others may be. `also`: checks that may fail
    too, as a consequence of the same fault. `twin`: the right script that differs by the fault alone. `why`: what is
    wrong, and by what factor or count it shows. `source`: paper, or thread as repository#number. `args`: what
    `verify --resume` adds to the command line, with {folder} for an empty folder.
    """

    file: str
    framework: str
    faults: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    twin: str = ""
    why: str = ""
    source: str = ""
    args: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether no check may fail."""
        return not self.faults


PADS = ("epoch coverage",)  # a sampler that pads or drops to equal shares
NORMALISES = ("epoch coverage", "batch statistics")
RESUMES = ("--ckpt", "{folder}")

RIGHT: tuple[Case, ...] = (
    Case(file="accelerate_accum_b.py", framework="accelerate"),
    Case(file="accelerate_metrics_a.py", framework="accelerate", notes=PADS),
    Case(file="accelerate_rate_a.py", framework="accelerate", notes=PADS),
    Case(file="amp_adam_b.py", framework="ddp", notes=PADS),
    Case(file="amp_clip_a.py", framework="ddp", notes=PADS),
    Case(file="averaged_a.py", framework="ddp", notes=PADS),  # averages once more by hand: idle, and right
    Case(file="bf16_mixer_a.py", framework="ddp", notes=PADS),
    Case(file="bn_eval_b.py", framework="ddp", notes=NORMALISES),
    Case(file="checkpoints_c.py", framework="ddp", notes=PADS, args=RESUMES),
    Case(file="deep_checkpointed_a.py", framework="ddp", notes=PADS),
    Case(file="digits_mlp_b.py", framework="ddp", notes=PADS),
    Case(file="finetune_b.py", framework="ddp", notes=PADS),
    Case(file="flips_a.py", framework="ddp", notes=PADS),
    Case(file="fsdp2_blocks_b.py", framework="fsdp2", notes=PADS),
    Case(file="gan_a.py", framework="ddp", notes=PADS),
    Case(file="groups_a.py", framework="ddp", notes=PADS),
    Case(file="houses_manual_a.py", framework="manual", notes=PADS),
    Case(file="lightning_accum_a.py", framework="lightning"),
    Case(file="lightning_cosine_b.py", framework="lightning", notes=PADS),
    Case(file="lightning_manual_a.py", framework="lightning", notes=PADS),
    Case(file="lightning_plain_a.py", framework="lightning", notes=PADS),
    Case(file="loaders_b.py", framework="ddp", notes=PADS),
    Case(file="noisy_signals_b.py", framework="ddp", notes=PADS),
    Case(file="own_order_b.py", framework="ddp", notes=PADS),
    Case(file="own_sgd_a.py", framework="ddp", notes=PADS),  # form 9 of the paper
    Case(file="own_sgd_c.py", framework="ddp", notes=PADS, twin="own_sgd_a.py"),  # the folded form, corrected
    Case(file="ratings_sum_b.py", framework="ddp", notes=PADS),
    # a sum, its count divided out of the rate: the same steps, as there is no decay
    Case(file="ratings_sum_c.py", framework="ddp", notes=("epoch coverage", "gradient"), twin="ratings_sum_b.py"),
    Case(file="regress_eval_b.py", framework="ddp", notes=PADS),
    Case(file="ridge_accum_b.py", framework="ddp"),
    Case(file="rnn_clip_b.py", framework="manual", notes=PADS),
    Case(file="sensors_a.py", framework="manual", notes=("epoch coverage", "non-finite")),
    Case(file="bars_cnn_a.py", framework="ddp", notes=NORMALISES),
    Case(file="shares_b.py", framework="ddp"),
    Case(file="sine_accum_b.py", framework="ddp", notes=PADS),
    Case(file="squall_loop_b.py", framework="squall"),
    Case(file="squall_task_a.py", framework="squall"),
    Case(file="held_out_a.py", framework="ddp", notes=PADS),
    Case(file="tiny_lm_a.py", framework="ddp", notes=PADS),
    Case(file="topic_accum_c.py", framework="ddp", notes=PADS),
    Case(file="trainer_class_a.py", framework="ddp", notes=PADS),
    Case(file="two_heads_a.py", framework="ddp", notes=PADS),
    Case(file="validate_b.py", framework="ddp", notes=NORMALISES),
    Case(file="wine_ddp_c.py", framework="ddp", notes=PADS),
)

_TWINS = {case.file: case for case in RIGHT}


def _wrong(file: str, fault: str, *, twin: str, **fields: Any) -> Case:
    """A twin of a right script: framework, notes and arguments are the same unless given."""
    return replace(_TWINS[twin], file=file, faults=(fault,), twin=twin, **fields)


WRONG: tuple[Case, ...] = (
    _wrong(
        "accelerate_accum_a.py",
        "accumulation",
        twin="accelerate_accum_b.py",
        why="divided by 2 micro-batches by hand and by Accelerate: gradient / 2 with any number of processes",
    ),
    _wrong(
        "accelerate_metrics_b.py",
        "evaluation",
        twin="accelerate_metrics_a.py",
        why="gather keeps the samples that even batches add: more than 361 of 361 are counted",
        source="pytorch#25162",
    ),
    _wrong(
        "accelerate_rate_b.py",
        "rate",
        twin="accelerate_rate_a.py",
        why="length taken after prepare, and a prepared schedule steps once a process: at 0 after 1/P of the training",
        source="accelerate#1382",
    ),
    _wrong(
        "amp_adam_a.py",
        "loss scaling",
        also=("gradient",),
        twin="amp_adam_b.py",
        why="optimizer.step() instead of scaler.step(optimizer): gradient x 1,024, hidden by Adam but for its epsilon",
    ),
    _wrong(
        "amp_clip_b.py",
        "clipping",
        twin="amp_clip_a.py",
        why="clipped without unscale_: the norm is 1,024 times too large, so the limit is 0.5 / 1,024",
    ),
    _wrong(
        "averaged_b.py",
        "gradient",
        twin="averaged_a.py",
        why="divided by the number of processes on top of DDP's mean: gradient / P",
        source="kubeflow/pytorch-operator#122",
    ),
    _wrong(
        "bn_eval_a.py",
        "batch statistics",
        also=("evaluation",),
        notes=PADS,
        twin="bn_eval_b.py",
        why="buffers neither broadcast nor averaged: P models are evaluated, the saved one has rank 0's statistics",
        source="pytorch#13711",
    ),
    _wrong(
        "checkpoints_a.py",
        "resume",
        twin="checkpoints_c.py",
        why="momentum is not saved: the first update after a resume starts from zero buffers",
        source="NeMo-Automodel#3427",
    ),
    _wrong(
        "checkpoints_b.py",
        "resume",
        twin="checkpoints_c.py",
        why="the epoch begins again at batch 0: its first 4 (8, 12, ...) batches are seen twice",
        source="streaming#880",
    ),
    _wrong(
        "checkpoints_d.py",
        "resume",
        twin="checkpoints_c.py",
        why="the schedule is not saved: the rate begins its warm-up again, in the second update after a resume",
        source="openfold#181",
    ),
    _wrong(
        "digits_mlp_a.py",
        "epoch order",
        twin="digits_mlp_b.py",
        why="set_epoch is never called: every epoch has the order of epoch 0, at all positions",
        source="pytorch#31771",
    ),
    _wrong(
        "digits_mlp_c.py",
        "gradient",
        twin="digits_mlp_b.py",
        why="the loss is multiplied by the world size though DDP takes a mean: gradient x P",
        source="sparseml#135",
    ),
    _wrong(
        "digits_mlp_d.py",
        "epoch coverage",
        notes=(),
        twin="digits_mlp_b.py",
        why="DistributedSampler seeded by rank: shares of different permutations; at P=2 about a quarter is never seen",
    ),
    _wrong(
        "finetune_a.py",
        "rate",
        twin="finetune_b.py",
        why="the schedule still drives the optimiser of phase 1: the rate of phase 2 stays at 0.002",
        source="pytorch-gradual-warmup-lr#27",
    ),
    _wrong(
        "flips_b.py",
        "augmentation",
        twin="flips_a.py",
        why="the generator is made anew from seed and index: a sample looks the same in every epoch",
        source="Lightning#20412",
    ),
    _wrong(
        "fsdp2_blocks_a.py",
        "gradient",
        twin="fsdp2_blocks_b.py",
        why="the loss is averaged over ranks before backward, which does not see the sum: gradient / P",
        source="verl-SpeCo#29",
    ),
    _wrong(
        "groups_b.py",
        "parameters",
        twin="groups_a.py",
        why="the neck is in no group: 2 of 10 tensors get gradients and no update",
    ),
    _wrong(
        "houses_manual_b.py",
        "gradient",
        twin="houses_manual_a.py",
        why="summed over ranks and not divided: gradient x P",
        source="torchft#286",
    ),
    _wrong(
        "houses_manual_c.py",
        "weights",
        also=("gradient",),
        twin="houses_manual_a.py",
        why="seeded by rank and never broadcast: each rank starts from, and keeps, other weights",
    ),
    _wrong(
        "lightning_accum_b.py",
        "accumulation",
        twin="lightning_accum_a.py",
        why="divided by 2 batches by hand and by the trainer: gradient / 2",
    ),
    _wrong(
        "lightning_cosine_a.py",
        "rate",
        twin="lightning_cosine_b.py",
        why="the schedule counts steps and is stepped once an epoch, the default: 3 times in all",
    ),
    _wrong(
        "loaders_a.py",
        "augmentation",
        twin="loaders_b.py",
        why="the generator of the data set is copied into each loader process: 2 workers draw the same, each epoch",
        source="pytorch#5059",
    ),
    _wrong(
        "noisy_signals_a.py",
        "augmentation",
        twin="noisy_signals_b.py",
        why="NumPy is seeded alike on all ranks: the i-th samples of P ranks share gain and noise",
        source="transformers#37932",
    ),
    _wrong(
        "own_order_a.py",
        "determinism",
        also=("epoch coverage",),
        notes=(),
        twin="own_order_b.py",
        why="each rank shuffles by a generator that nobody seeded: another order in each run, and on each rank",
    ),
    _wrong(
        "own_sgd_b.py",
        "momentum",
        twin="own_sgd_a.py",
        why="v = m v + rate x gradient without correction: after the drop by 10 the buffer is 10 times too large",
        source="Goyal et al. 2017, Remark 2",
    ),
    _wrong(
        "ratings_sum_a.py",
        "weight decay",
        also=("gradient",),
        twin="ratings_sum_b.py",
        why="a sum over 24, the rate divided by 24, the decay left: it acts 24 times too weakly",
        source="Goyal et al. 2017, Remark 1",
    ),
    _wrong(
        "regress_eval_a.py",
        "evaluation",
        twin="regress_eval_b.py",
        why="a mean of the ranks' means over unequal shares: 25, 25, 25 and 22 of 97 at P=4",
        source="fairchem#269",
    ),
    _wrong(
        "ridge_accum_a.py",
        "weight decay",
        also=("accumulation", "gradient"),
        twin="ridge_accum_b.py",
        why="the penalty is added to each of 4 micro-batches and not divided: it counts 4 times",
    ),
    _wrong(
        "rnn_clip_a.py",
        "clipping",
        twin="rnn_clip_b.py",
        why="each rank clips its own gradient before the mean: not the clipped gradient of the minibatch",
    ),
    _wrong(
        "sensors_b.py",
        "non-finite",
        also=("gradient", "weights"),
        notes=PADS,
        twin="sensors_a.py",
        why="the rank with the broken sample skips the update alone: weights differ between ranks from then on",
    ),
    _wrong(
        "bars_cnn_b.py",
        "rate",
        twin="bars_cnn_a.py",
        why="the schedule counts steps and is stepped once an epoch: 3 of 60 steps at P=2, the rate stays at its peak",
    ),
    _wrong(
        "shares_a.py",
        "loss weighting",
        twin="shares_b.py",
        why="a mean of means: the last batch of 7 is cut in 4 and 3 at P=2, so some samples weigh 4/3 of others",
        source="pytorch#42577",
    ),
    _wrong(
        "sine_accum_a.py",
        "accumulation",
        twin="sine_accum_b.py",
        why="the last partial window is carried into the next epoch's first update, and divided by its samples alone",
        source="AnimaLoraStudio#305",
    ),
    _wrong(
        "sine_accum_c.py",
        "accumulation",
        also=("epoch coverage",),
        twin="sine_accum_b.py",
        why="the last partial window is dropped: 1 of 46 micro-batches of each epoch at P=2",
        source="NVIDIA-NeMo/Automodel#2257",
    ),
    _wrong(
        "squall_loop_a.py",
        "augmentation",
        also=("determinism",),
        twin="squall_loop_b.py",
        why="the data set's own generator, seeded alike on all ranks: the i-th samples of P ranks share gain and noise",
    ),
    _wrong(
        "held_out_b.py",
        "evaluation",
        twin="held_out_a.py",
        why="padded by DistributedSampler: 362 (P=2), 363 (P=3), 364 (P=4) of 361 samples are counted",
        source="pytorch#25162",
    ),
    _wrong(
        "tiny_lm_b.py",
        "loss weighting",
        twin="tiny_lm_a.py",
        why="a mean over each rank's own tokens: a token weighs more where sentences are short",
        source="transformers#34191",
    ),
    _wrong(
        "topic_accum_a.py",
        "gradient",
        also=("weights",),
        twin="topic_accum_c.py",
        why="no_sync covers the last micro-batch too: nothing is ever reduced, each rank trains alone",
    ),
    _wrong(
        "topic_accum_b.py",
        "accumulation",
        twin="topic_accum_c.py",
        why="not divided by the number of micro-batches: gradient x 4, x 2 or x 1 in the last window",
        source="axolotl#2262",
    ),
    _wrong(
        "topic_accum_d.py",
        "rate",
        twin="topic_accum_c.py",
        why="stepped once a micro-batch: the warm-up of 5 updates is over in 2",
    ),
    _wrong(
        "trainer_class_b.py",
        "parameters",
        twin="trainer_class_a.py",
        why="the optimiser holds the parameters of the original, a copy is trained: no weight ever changes",
    ),
    _wrong(
        "validate_a.py",
        "mode",
        also=("batch statistics", "gradient"),
        twin="validate_b.py",
        why="rank 0 stays in eval() after its first validation: no dropout, frozen statistics from epoch 2 on",
    ),
    _wrong(
        "wine_ddp_a.py",
        "epoch coverage",
        notes=(),
        twin="wine_ddp_c.py",
        why="no sampler: all ranks read the same samples, each is seen P times an epoch",
    ),
    _wrong(
        "wine_ddp_b.py",
        "epoch coverage",
        notes=(),
        twin="wine_ddp_c.py",
        why="each rank shuffles the whole set and reads 1/P of it: at P=2 about a fifth is never seen",
    ),
)

CASES: tuple[Case, ...] = tuple(sorted(RIGHT + WRONG, key=lambda case: case.file))
