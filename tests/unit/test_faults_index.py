"""Faults that peers have had on the way of synchronous training, and the test of each that Squall has it not.

Sources: Goyal et al. 2017 (sections 2, 3 and 5, remarks 1 to 4), its public reproductions, and the threads named. Resuming
in mid-epoch comes with checkpoints; its part that concerns a run without a break (random numbers, order, rate as pure
functions) stands here.

Loss mean, gradient mean, rate
    a mean where a sum is asked for: pytorch#4406, apex#696, fairseq#494      unit/test_run_guards.py::test_a_mean_where_a_sum_is_asked_for_is_found_in_step_0
    a right sum accused of being a mean                                       unit/test_run_guards.py::test_a_sum_is_not_accused
    multiplied or averaged twice: sparseml#135, kubeflow/pytorch-operator#122 contract/test_sync.py::test_averaging_twice_is_impossible
    divided by ranks, not by samples: pytorch#36516, #37359, #67253           process/test_faults_ranks.py::test_unequal_shares_are_averaged_by_rank
    a mean of unequal means: fairchem#269, pytorch#42577                      contract/test_sync.py::test_a_short_last_minibatch_of_unequal_workers_weighs_by_samples
    sum or mean by mode: tensorflow/benchmarks#199, torchft#286               contract/test_sync.py::test_processes_do_not_change_what_is_computed
    the loss is reduced before the backward pass: verl-SpeCo#29               unit/test_faults_accumulation.py::test_the_loss_is_reduced_before_the_backward_pass
    k cancelled against the rate despite decay: Remarks 1 and 3               unit/test_optim_momentum.py::test_cancelling_k_is_wrong_because_of_decay
    the loss scaled instead of the rate despite decay: Remark 1               contract/test_sync.py::test_g2_with_decay_they_differ
    momentum corrected where it needs none: pytorch#1099, Detectron           unit/test_optim_momentum.py::test_correcting_form_9_once_more_would_be_a_bug
    momentum keeps gradients of the old rate: mxnet#15533, Remark 2           unit/test_optim_momentum.py::test_our_momentum_is_form_9
    the rate follows the share of one process: mmdetection#351, #1038         unit/test_optim_lr.py::test_rule_speaks_of_the_global_batch_not_of_the_share_of_one_process
    the rate is not scaled: horovod#384, #478                                 unit/test_explain_text.py::test_a_rate_that_is_not_scaled_is_warned_of
    the schedule counts iterations, not images: Detectron.pytorch#32          unit/test_optim_lr.py::test_schedule_is_in_epochs_so_equal_images_at_any_batch
    drops at 30/60/90, no warm-up: caffe2's imagenet_trainer                  unit/test_optim_lr.py::test_every_step_of_imagenet_at_8192_is_the_textbooks
    a warm-up that starts below the base rate: horovod#88                     unit/test_optim_lr.py::test_warmup_starts_at_base_whatever_the_batch
    normalisation is decayed too: caffe2's generic helper                     unit/test_optim_groups.py::test_decay_excludes_normalisation_55_and_106_tensors_of_resnet50
    class weights or ignore_index under a mean                                unit/test_task_probe.py::test_a_loss_that_depends_on_the_batch_is_refused
    class weights unseen in a sorted set                                      unit/test_task_probe.py::test_class_weights_are_seen_in_a_set_that_is_sorted_by_class

Gradient accumulation
    sequences of varying lengths: transformers#34191, trl#2175, OpenNMT#2209  unit/test_faults_accumulation.py::test_accumulation_is_not_the_large_batch_with_varying_lengths
    2 x 8 and 16 x 1 differ: axolotl#1100                                     unit/test_faults_accumulation.py::test_2x8_and_16x1_give_different_losses
    the last partial window is dropped: mlx-lm#1413, #1544                    unit/test_faults_accumulation.py::test_the_last_partial_window_is_dropped
    all activations are kept: torchtune#1875                                  unit/test_faults_accumulation.py::test_activations_of_all_parts_are_kept_until_the_step
    no overlap with the backward pass                                  unit/test_faults_accumulation.py::test_the_reduction_waits_for_the_whole_backward_pass
    k chunks in one process are not k workers                          contract/test_sync.py::test_g1_k_workers_equal_one_process_that_accumulates_k_chunks
    unused parameters hang the ranks or are decayed                           process/test_faults_ranks.py::test_a_parameter_that_only_one_rank_uses_hangs_the_others_or_is_decayed

Batch normalisation
    statistics over kn: horovod#390, caffe2's combine_spatial_bn              contract/test_sync.py::test_g1_one_chunk_of_kn_is_another_objective_with_normalisation
    SyncBatchNorm hangs in evaluation: pytorch#48988                          unit/test_run_guards.py::test_synchronised_normalisation_is_refused
    running means differ between ranks: pytorch#13711, mmdetection#4582       process/test_faults_ranks.py::test_running_means_differ_between_ranks
    k updates of the statistics in one step                    unit/test_run_parameters.py::test_buffers_are_counted_once_a_step_and_averaged_over_the_workers
    statistics of unequal workers: pytorch#22192                              contract/test_sync.py::test_a_short_last_minibatch_of_unequal_workers_weighs_by_samples
    gamma = 0 taken for a bug: sonnet#185, tensorpack#420                     unit/test_model_networks.py::test_g6_a_new_residual_block_is_relu_of_its_shortcut
    a constant buffer loses its bits in the mean                              unit/test_run_parameters.py::test_constant_buffers_keep_every_bit

Order, random streams, evaluation
    the same order in every epoch: pytorch#31771, #31232, #11324              unit/test_data_order.py::test_set_epoch_never_called_cannot_happen
    k independent shuffles: Remark 4                                          unit/test_data_order.py::test_g4_an_epoch_is_one_permutation_cut_into_disjoint_shares
    an epoch is padded: DistributedSampler                                    process/test_faults_ranks.py::test_samples_are_padded_or_dropped_to_a_multiple_of_the_ranks
    NumPy repeats its augmentations: pytorch#5059, #3880, CenterNet#233       unit/test_batches_read.py::test_numpy_does_not_repeat_augmentations
    the same augmentations in every epoch: Lightning#6960, #20412             unit/test_batches_read.py::test_no_epoch_repeats_the_random_numbers_of_another
    ranks share loader seeds: transformers#37932                              unit/test_batches_read.py::test_ranks_share_no_random_numbers_and_their_number_changes_none
    ranks that never seed: other weights on each                              process/test_faults_ranks.py::test_ranks_that_never_seed_train_different_models
    padded validation: pytorch#25162, #22584, examples#980, AReaL#1096        process/test_faults_ranks.py::test_padded_validation_gives_a_wrong_accuracy
    evaluation moves the training's random numbers or statistics              unit/test_run_parameters.py::test_evaluation_and_its_buffers_do_not_touch_training
    a single run is reported                                           unit/test_run_folder.py::test_g9_spread_over_seeds_has_n_minus_1_and_needs_three

Schedules
    the scheduler steps once a process: accelerate#1382, transformers#24088   process/test_faults_ranks.py::test_the_scheduler_steps_once_a_process
    a restart falls back into the warm-up: openfold#181, yolov5#292           unit/test_optim_lr.py::test_trace_with_any_kill_points_is_the_trace_without
    a scheduler drives a dead optimiser: pytorch-gradual-warmup-lr#27         unit/test_run_guards.py::test_an_optimiser_of_another_model_is_refused
    a negative warm-up: metatrain#375                                         unit/test_optim_lr.py::test_negative_warmup_is_refused
    the rate past the end: composer#1384                                      unit/test_optim_lr.py::test_past_the_end_the_last_value_stays
    a constant warm-up jumps                                            unit/test_optim_lr.py::test_constant_holds_the_start_and_jumps
    a restored state brings an old rate along: ParlAI#1812                    unit/test_optim_rules.py::test_a_restored_state_goes_on_bit_for_bit_and_brings_no_rate_along

Between ranks
    ranks build different models and hang                                     process/test_faults_ranks.py::test_ranks_that_build_different_models_hang_in_a_collective
    ranks drift apart: NeMo-Automodel#3427                                    process/test_faults_ranks.py::test_ranks_drift_apart_and_nobody_notices
    another number of processes, another result: ms-swift#7349                process/test_bits_recipes.py::test_processes_do_not_touch_the_bits
    ranks of another arithmetic                                               process/test_bits_fingerprint.py::test_ranks_of_different_arithmetic_refuse_exact_and_name_the_field
"""  # noqa: E501 (a table: one fault a line)

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = re.findall(r"^    (\S.*?)\s+(\w+/\w+\.py)::(test_\w+)$", __doc__ or "", flags=re.MULTILINE)


@pytest.mark.parametrize(("fault", "file", "test"), ROWS, ids=[fault for fault, _, _ in ROWS])
def test_each_fault_has_its_test(fault: str, file: str, test: str) -> None:
    assert re.search(rf"^ *def {test}\(", (TESTS / file).read_text(encoding="utf-8"), flags=re.MULTILINE), (
        f"{fault}: {file} has no {test}"
    )


def test_every_line_of_the_table_is_read() -> None:
    indented = [line for line in (__doc__ or "").splitlines() if line.startswith("    ")]
    assert len(ROWS) == len(indented) > 40
