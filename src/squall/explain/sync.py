"""Synchronous SGD as arithmetic: virtual workers, the steps they share, and what P processes send and hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from squall.data.order import Order
from squall.explain import rows
from squall.explain.facts import ModelFacts
from squall.explain.traffic import traffic
from squall.optim.lr import Segment
from squall.recipe import Recipe


def topics_and_numbers(
    recipe: Recipe, facts: ModelFacts, order: Order, segments: tuple[Segment, ...], processes: int
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The lines below each label, and the values behind them.

    Arguments:
        processes: for the bytes that each sends and holds; at most as many as there are passes are counted.
    """
    num_passes = order.step(0).num_passes
    processes = max(1, min(processes, num_passes))
    exact = recipe.compute.reduction == "exact"
    moved = traffic(num_passes, processes, exact=exact)
    last = traffic(order.step(order.num_steps - 1).num_passes, processes, exact=exact)
    topics = {
        "minibatch": rows.minibatch(recipe, facts),
        "epoch": rows.epoch(recipe, order),
        "rate": rows.rate(recipe, segments),
        "decay": rows.decay(recipe, facts),
        "network": rows.network(facts, processes, moved),
        "memory": rows.memory(recipe, facts, moved, last),
        "checkpoint": rows.checkpoint(recipe, facts),
        "hosting": rows.hosting(recipe),
    }
    sums = max(moved.partial_sums, last.partial_sums) + max(moved.staging, last.staging)
    gradient = facts.num_trainable * rows.FLOAT_BYTES
    return topics, {
        "name": recipe.name,
        "global_batch_size": recipe.global_batch_size,
        "worker_batch_size": recipe.worker_batch_size,
        "virtual_workers": recipe.virtual_workers,
        "num_samples": order.num_samples,
        "steps_per_epoch": order.steps_per_epoch,
        "num_steps": order.num_steps,
        "peak_lr": recipe.lr.rate().peak(recipe.update_size),
        "rate": [asdict(segment) for segment in segments],
        "model": asdict(facts),
        "processes": processes,
        "gradient_bytes": gradient,
        "sent_bytes": round(moved.sent * gradient),
        "received_bytes": round(moved.received * gradient),
        "state_bytes": facts.num_parameters * rows.FLOAT_BYTES + gradient * (1 + rows.num_states(recipe)),
        "last_step_sent_bytes": round(last.sent * gradient),
        "checkpoint_bytes": rows.checkpoint_bytes(recipe, facts),
        "reduction_bytes": round(sums * gradient),
        "max_processes": num_passes,
    }
