"""A second set of scripts, in other styles than the corpus, written without knowledge of the checks.

Endless loops, no loaders at all, iterables, LBFGS and SAM, two losses, optimisers and reductions by hand, frameworks'
less common ways. For a fault that no check was meant for, the one that ought to name it. `MISSED` are those that
`squall verify` does not name: what is not there yet.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent

RIGHT: dict[str, str] = {
    "r01_endless.py": "step-based loop, set_epoch per pass, drop_last in both: drops, never repeats",
    "r02_nodata.py": "one seeded draw of a global batch, disjoint rows per rank; autograd.grad, flat all-reduce mean",
    "r03_stream.py": "sharded by rank x worker, a new seeded order each epoch, 960 divides all",
    "r04_windows.py": "sums / samples of the rank's window; all ranks hold equal counts by DistributedSampler",
    "r05_terms.py": "focal with alpha by .mean() over samples, aux 0.3, huber 0.5: equal batches",
    "r06_contrast.py": "differentiable all_gather (backward sums over ranks), DDP mean = gradient of the global InfoNCE",
    "r07_vae.py": "sum / len(x), equal batches, own noise per rank",
    "r08_wgan.py": "critic frozen for G's step; D grads zeroed before each D step; G forward of D without DDP because frozen",
    "r09_dcgan.py": "two backward calls add two means; each DDP reduction of (averaged + local) gives the mean of both",
    "r10_lbfgs.py": "equal shares, reduced loss and gradient: all ranks decide alike",
    "r11_sam.py": "reduced gradients in both passes; weights restored before the step",
    "r12_byhand.py": "mean, clip, own decay and common noise added after the reduction, on purpose",
    "r13_compiled.py": "fp16-compressed all-reduce, reentrant checkpoint, static_graph, compile (eager backend)",
    "r14_tied.py": "tied weights, skipped blocks equal on all ranks, find_unused_parameters",
    "r15_lion.py": "custom Lion; EMA; padding removed from the gathered predictions",
    "r16_plateau.py": "plateau and early stopping on reduced sums; no padding in validation",
    "r17_lazy.py": "index-seeded synthesis + torch noise in workers, base seed differs per rank and epoch; fractional warm restarts",
    "r18_accel.py": "split_batches, accumulate(2), clip when sync_gradients, manual cosine once an update",
    "r19_dispatch.py": "dispatch_batches with own unprepared warm-up, clip by value",
    "r20_lightning.py": "DataModule, clipping by value, OneCycle per step, equal validation shares, sync_dist",
    "r21_fabric.py": "no_backward_sync windows of 3 that divide 36 and 24; loss / 3; clip once",
    "r22_fsdp_mixed.py": "FSDP2 bf16 params, fp32 reduce, clip_grad_norm_ over DTensors, SequentialLR",
    "r23_hflike.py": "token count of the whole step over all ranks as divisor, x world against DDP's mean",
    "r24_buckets.py": "files cover exactly; all buckets flushed and averaged; loss weighted by advantage",
}

WRONG: dict[str, tuple[str, str]] = {
    "w01_endless.py": ("epoch order", "endless stream without set_epoch: each pass has the same order"),
    "w02_nodata.py": (
        "epoch coverage",
        "all ranks draw the same LOCAL rows (same seed, no slice): each sample P times a step; P processes do the work of one",
    ),
    "w03_stream.py": (
        "epoch coverage",
        "divided by rank only: both loader processes of a rank yield the same samples, each seen twice",
    ),
    "w04_piling.py": (
        "gradient",
        "gradients are cleared once an epoch only and pile up over updates (accumulation would name it too)",
    ),
    "w05_global.py": (
        "gradient",
        "the focal terms are summed and divided by the global batch though DDP averages too: gradient / P",
    ),
    "w06_contrast.py": (
        "gradient",
        "plain all_gather: gradients through the other ranks' embeddings are lost; every rank has the whole loss, DDP's mean makes it / P",
    ),
    "w07_maskmean.py": (
        "loss weighting",
        "divided by the tokens of this rank's window only (no all-reduce), no x world: a token weighs more on ranks with short rows",
    ),
    "w08_ganleak.py": (
        "gradient",
        "netD is cleared at the start of training only: its update contains the generator's gradient and all earlier ones",
    ),
    "w09_samlocal.py": (
        "gradient",
        "no zero_grad between the two passes: the gradient at the top is added to the one below, about x 2",
    ),
    "w10_lbfgs.py": ("weights", "no DDP: the closure never reduces gradients, each rank optimises its own share"),
    "w11_noise.py": (
        "weights",
        "gradient noise after the reduction from a generator seeded by rank: weights drift apart",
    ),
    "w12_decay2.py": ("weight decay", "decay added to .grad by hand and by the optimiser: applied twice"),
    "w13_clipearly.py": ("clipping", "clipped by hand on each rank before the all-reduce"),
    "w14_accelclip.py": (
        "clipping",
        "clip_grad_norm_ in every micro-batch: the partial sum is clipped to 0.5, then the next added (sync_gradients not asked)",
    ),
    "w15_onecycle.py": (
        "rate",
        "OneCycle is told the steps of one process (len(data) // 20 * 3) and training ends by the sharded loader: the rate never comes down; depends on P",
    ),
    "w16_plateau.py": (
        "rate",
        "the plateau schedule is fed each rank's own validation loss: rates differ between ranks",
    ),
    "w17_workerseed.py": (
        "augmentation",
        "worker_init_fn seeds by worker id alone: the same noise on all ranks and in every epoch",
    ),
    "w18_evaldrop.py": (
        "evaluation",
        "drop_last in the test loader: the last 32-batch of each rank is silently not counted",
    ),
    "w19_evaldropout.py": (
        "mode",
        "no eval() before the evaluation: dropout is active while accuracy is measured (evaluation would name it too)",
    ),
    "w20_litsampler.py": (
        "epoch coverage",
        "use_distributed_sampler=False: all ranks read the whole training set, in the same seeded order",
    ),
    "w21_fabricbypass.py": (
        "weights",
        "the forward goes through the inner module: DDP's reduction is never armed, each rank trains alone (gradient would name it too)",
    ),
    "w22_fsdpclip.py": ("clipping", "the norm is of this rank's shards alone: each shard is scaled by another factor"),
    "w23_buckets.py": (
        "weights",
        "the last bucket is never flushed: the first layers' gradients stay local (gradient would name it too)",
    ),
    "w24_timeseed.py": (
        "determinism",
        "rank 0 draws the seed of the order from the clock and broadcasts it: right shares, another order in each run",
    ),
    "w25_unfreeze.py": (
        "parameters",
        "the layers are frozen first and thawed after epoch 0, but the optimiser was made of what was trainable then: gradients, no updates",
    ),
    "w26_momentum.py": (
        "momentum",
        "momentum of one's own holds rate x gradient (v = mu v - lr g): at each drop of the rate it is 10 times too large",
    ),
    "w27_nanskip.py": (
        "non-finite",
        "each rank asks its own loss whether to step: where one sample is broken the other ranks apply the NaN gradient",
    ),
    "w28_ownnorm.py": (
        "batch statistics",
        "a normalisation layer of one's own whose running mean DDP does not broadcast: each rank's buffer differs; rank 0's is saved",
    ),
    "w29_evalmode.py": ("mode", "validate() leaves the model in eval() on all ranks: no dropout from epoch 1 on"),
    "w30_scale.py": (
        "loss scaling",
        "a static loss scale of 16, taken out of the blocks' and input's gradients only: the head gets 16 times its gradient",
    ),
    "w31_sched_micro.py": ("rate", "the schedule is stepped by every micro-batch: at 0 after half of the training"),
    "w32_head.py": (
        "parameters",
        "the right tower is replaced after the optimiser was made: it gets gradients and no update",
    ),
}

MISSED = {"w06_contrast.py", "w12_decay2.py", "w18_evaldrop.py", "w24_timeseed.py"}
