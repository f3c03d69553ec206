"""The learning rate: Goyal's trace (check G5), purity, and the faults that stateful schedulers are known for."""

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.data.order import Order
from squall.errors import InputError
from squall.optim import Rate, Segment, lr

GOYAL = Rate(base=0.1, base_batch_size=256, schedule="step", milestones=(30, 60, 80), warmup_epochs=5)


def imagenet(batch: int = 8192) -> Order:
    return Order(num_samples=1_281_167, global_batch_size=batch, worker_batch_size=32, epochs=90, seed=0)


def trace(rate: Rate, order: Order) -> list[float]:
    return [
        rate.at(order.progress(t), global_batch_size=order.global_batch_size, epochs=order.epochs)
        for t in range(order.num_steps)
    ]


def textbook(t: int, steps_per_epoch: int, batch: int) -> float:
    """Goyal et al. 2017, section 5.1, as pseudo-code."""
    ref = 0.1 * batch / 256
    e = t / steps_per_epoch
    if batch > 256 and e < 5:
        return 0.1 + (ref - 0.1) * e / 5
    return ref * 0.1 ** sum(drop <= e for drop in (30, 60, 80))


class TestG5:
    def test_every_step_of_imagenet_at_8192_is_the_textbooks(self) -> None:
        order = imagenet()
        assert trace(GOYAL, order) == pytest.approx([textbook(t, 157, 8192) for t in range(14_130)], rel=1e-12)

    def test_starts_at_base_reaches_the_reference_and_drops_by_ten(self) -> None:
        rates = trace(GOYAL, imagenet())
        assert rates[0] == 0.1
        assert rates[785] == pytest.approx(3.2)
        assert [rates[t] for t in (4_709, 4_710, 9_419, 9_420, 12_559, 12_560, 14_129)] == pytest.approx(
            [3.2, 0.32, 0.32, 0.032, 0.032, 0.0032, 0.0032]
        )

    def test_the_ramp_rises_by_equal_increments_over_the_epochs_short_step_too(self) -> None:
        rates = trace(GOYAL, imagenet())[:786]
        increments = [later - earlier for earlier, later in itertools.pairwise(rates)]
        assert increments == pytest.approx([3.1 / 785] * 785, rel=1e-9)
        assert round(increments[0], 5) == 0.00395

    def test_a_shortened_budget_scales_its_fractions(self) -> None:
        short = Rate(base=0.1, base_batch_size=128, schedule="step", milestones=(3, 6, 8), warmup_epochs=0.5)
        order = Order(num_samples=10_240, global_batch_size=1024, worker_batch_size=32, epochs=9, seed=0)
        rates = trace(short, order)
        assert rates[:6] == pytest.approx([0.1, 0.24, 0.38, 0.52, 0.66, 0.8])
        assert [rates[t] for t in (29, 30, 59, 60, 80)] == pytest.approx([0.8, 0.08, 0.08, 0.008, 0.0008])

    @pytest.mark.parametrize("batch", [64, 128, 256])
    def test_no_warmup_up_to_the_reference_batch(self, batch: int) -> None:
        assert GOYAL.warmup_length(batch) == 0
        assert GOYAL.at(0, global_batch_size=batch, epochs=90) == pytest.approx(0.1 * batch / 256)

    @pytest.mark.parametrize("batch", [512, 1024, 8192, 65_536])
    def test_warmup_starts_at_base_whatever_the_batch(self, batch: int) -> None:
        assert GOYAL.at(0, global_batch_size=batch, epochs=90) == 0.1


class TestScaling:
    @pytest.mark.parametrize(("scaling", "peak"), [("linear", 3.2), ("sqrt", 0.1 * math.sqrt(32)), ("none", 0.1)])
    def test_peak(self, scaling: str, peak: float) -> None:
        assert Rate(base=0.1, base_batch_size=256, scaling=scaling).peak(8192) == pytest.approx(peak)  # type: ignore[arg-type]

    def test_without_a_base_batch_size_base_is_the_peak(self) -> None:
        assert Rate(base=0.3).peak(77) == 0.3

    def test_rule_speaks_of_the_global_batch_not_of_the_share_of_one_process(self) -> None:
        """mmdetection#351, #815, mala#422: which batch? The one of the update: 32 workers of 8 are 8 of 32."""
        orders = [Order(50_000, 256, worker_batch_size, 10, seed=0) for worker_batch_size in (8, 32, 256)]
        assert trace(GOYAL_SHORT, orders[0]) == trace(GOYAL_SHORT, orders[1]) == trace(GOYAL_SHORT, orders[2])


GOYAL_SHORT = Rate(base=0.1, base_batch_size=128, schedule="step", milestones=(4, 8), warmup_epochs=1)


class TestWarmup:
    def test_constant_holds_the_start_and_jumps(self) -> None:
        rate = Rate(base=0.1, base_batch_size=256, warmup="constant", warmup_epochs=5)
        at = [rate.at(e, global_batch_size=8192, epochs=90) for e in (0, 2.5, 4.999, 5, 6)]
        assert at == pytest.approx([0.1, 0.1, 0.1, 3.2, 3.2])

    def test_none_ignores_the_epochs_so_that_a_study_changes_one_key(self) -> None:
        rate = Rate(base=0.1, base_batch_size=256, warmup="none", warmup_epochs=5)
        assert rate.at(0, global_batch_size=8192, epochs=90) == pytest.approx(3.2)

    def test_a_given_start(self) -> None:
        rate = Rate(base=0.4, warmup_from=0.2, warmup_epochs=2)
        at = [rate.at(e, global_batch_size=64, epochs=9) for e in (0, 1, 2)]
        assert at == pytest.approx([0.2, 0.3, 0.4])

    def test_a_rate_without_reference_ramps_from_zero(self) -> None:
        """Else ``lr = 3e-4, warmup_epochs = 1`` would silently have no warm-up: base is the peak."""
        rate = Rate(base=3e-4, scaling="none", schedule="cosine", warmup_epochs=1)
        assert [rate.at(e, global_batch_size=512, epochs=20) for e in (0, 0.5, 1)] == pytest.approx([0, 1.5e-4, 3e-4])

    def test_an_unscaled_rate_with_a_reference_needs_no_ramp(self) -> None:
        """Study G12 sets scaling to none and nothing else: the recipe of the small batch, which has no warm-up."""
        rate = Rate(base=0.1, base_batch_size=256, scaling="none", warmup_epochs=5)
        assert rate.at(0, global_batch_size=8192, epochs=90) == 0.1


class TestCosine:
    RATE = Rate(base=0.1, base_batch_size=128, schedule="cosine", warmup_epochs=2, final=0.001)

    def test_runs_from_the_end_of_the_warmup_to_the_end_of_the_run(self) -> None:
        at = [self.RATE.at(e, global_batch_size=256, epochs=10) for e in (0, 2, 6, 10)]
        assert at == pytest.approx([0.1, 0.2, (0.2 + 0.001) / 2, 0.001])

    def test_falls_at_every_step(self) -> None:
        order = Order(num_samples=1437, global_batch_size=128, worker_batch_size=16, epochs=30, seed=0)
        rates = trace(Rate(base=0.1, schedule="cosine"), order)
        assert rates[0] == 0.1
        assert all(later < earlier for earlier, later in itertools.pairwise(rates))
        assert rates[12] == pytest.approx(0.0997, abs=5e-5)


RATES = st.sampled_from(
    [
        GOYAL_SHORT,
        Rate(base=0.05, schedule="cosine", warmup_epochs=1.5),
        Rate(base=0.1, base_batch_size=64, warmup="constant", warmup_epochs=2),
        Rate(base=0.1, base_batch_size=64, scaling="sqrt", schedule="cosine", final=0.01),
    ]
)
ORDERS = st.builds(
    Order,
    num_samples=st.integers(40, 400),
    global_batch_size=st.sampled_from([16, 24, 40]),
    worker_batch_size=st.just(8),
    epochs=st.integers(1, 12),
    seed=st.just(0),
    last_batch=st.sampled_from(["short", "drop", "carry"]),
)


class TestFaultsOfSchedulers:
    """Schedules that count processes or restored steps: accelerate#1382, openfold#181."""

    @given(RATES, ORDERS, st.lists(st.integers(0, 60), max_size=4))
    def test_trace_with_any_kill_points_is_the_trace_without(self, rate: Rate, order: Order, kills: list[int]) -> None:
        """openfold#181 (warm-up again after a restart), yolov5#292 (rate reset), prime-rl#1095."""
        whole = trace(rate, order)
        pieces, at = [], 0
        for stop in [*sorted(kill % order.num_steps for kill in kills), order.num_steps]:
            fresh = Rate(**vars(rate))  # what a restarted process builds from its recipe
            batch, epochs = order.global_batch_size, order.epochs
            pieces += [fresh.at(order.progress(t), global_batch_size=batch, epochs=epochs) for t in range(at, stop)]
            at = stop
        assert pieces == whole

    @pytest.mark.parametrize("processes", [1, 2, 4, 8])
    def test_schedule_does_not_run_faster_with_more_processes(self, processes: int) -> None:
        """accelerate#1382, transformers#24088: every process steps the scheduler, so it runs P times as fast."""
        order, rate = imagenet(), GOYAL
        asked = []
        for step in range(0, order.num_steps, 997):
            for _ in range(processes):  # each process asks, and may ask twice
                asked.append(rate.at(order.progress(step), global_batch_size=8192, epochs=90))
        alone = trace(rate, order)[::997]
        assert asked == [value for value in alone for _ in range(processes)]

    @given(RATES, ORDERS)
    def test_rate_is_never_negative_and_never_above_the_peak(self, rate: Rate, order: Order) -> None:
        """metatrain#375: a negative warm-up."""
        assert all(0 <= value <= rate.peak(order.global_batch_size) * (1 + 1e-12) for value in trace(rate, order))

    def test_negative_warmup_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"warmup_epochs=-1"):
            Rate(base=0.1, warmup_epochs=-1)

    @pytest.mark.parametrize("past", [10.0, 10.3, 25.0, 1e6])
    def test_past_the_end_the_last_value_stays(self, past: float) -> None:
        """composer#1384: a cosine that comes up again after t_max."""
        rate = Rate(base=0.1, schedule="cosine", final=0.01)
        assert rate.at(past, global_batch_size=1, epochs=10) == pytest.approx(0.01)

    def test_before_the_start_is_an_error(self) -> None:
        with pytest.raises(InputError, match="before the run"):
            GOYAL.at(-0.1, global_batch_size=8192, epochs=90)

    def test_schedule_is_in_epochs_so_equal_images_at_any_batch(self) -> None:
        """Detectron.pytorch#32: the rate was scaled, the schedule's length not."""
        for batch in (256, 1024, 8192):
            drops = [segment.first_step for segment in GOYAL.describe(imagenet(batch)) if "epoch " in segment.what]
            per_epoch = imagenet(batch).steps_per_epoch
            assert [drop / per_epoch for drop in drops] == [30, 60, 80]

    def test_a_run_that_ends_within_its_warmup_stays_on_the_ramp(self) -> None:
        rate = Rate(base=0.1, base_batch_size=64, schedule="cosine", warmup_epochs=5)
        assert rate.at(2.0, global_batch_size=128, epochs=2) == pytest.approx(0.1 + 0.1 * 2 / 5)

    def test_a_boundary_reached_by_fractions_counts_as_reached(self) -> None:
        rate = Rate(base=1.0, schedule="step", milestones=(0.3,))
        progress = 0.1 + 0.1 + 0.1 - 1e-16
        assert rate.at(progress - 5e-17, global_batch_size=1, epochs=1) == pytest.approx(0.1)


class TestDescribe:
    def test_imagenet_as_explain_prints_it(self) -> None:
        assert [(s.first_step, s.last_step, s.what) for s in GOYAL.describe(imagenet())] == [
            (0, 785, "gradual warm-up, 5 epochs"),
            (785, 4_710, ""),
            (4_710, 9_420, "epoch 30"),
            (9_420, 12_560, "epoch 60"),
            (12_560, 14_130, "epoch 80"),
        ]
        ramp, *rest = GOYAL.describe(imagenet())
        assert (ramp.from_rate, ramp.to_rate) == pytest.approx((0.1, 3.2))
        assert ramp.increment == pytest.approx(3.1 / 785)
        assert [s.from_rate for s in rest] == pytest.approx([3.2, 0.32, 0.032, 0.0032])

    def test_a_plain_rate_is_one_segment(self) -> None:
        order = Order(num_samples=100, global_batch_size=10, worker_batch_size=10, epochs=2, seed=0)
        assert Rate(base=0.1).describe(order) == (Segment(0, 20, 0.1, 0.1, ""),)

    def test_a_skipped_warmup_is_not_shown(self) -> None:
        assert GOYAL.describe(imagenet(256))[0].what == ""

    def test_a_ramp_that_ends_between_two_steps_is_shown_up_to_the_peak(self) -> None:
        order = Order(num_samples=30, global_batch_size=10, worker_batch_size=10, epochs=4, seed=0)
        ramp, rest = Rate(base=0.3, schedule="cosine", warmup_epochs=0.5).describe(order)
        assert (ramp.last_step, ramp.to_rate) == (2, 0.3)
        assert rest.from_rate < 0.3

    def test_drops_after_the_end_are_not_shown(self) -> None:
        order = Order(num_samples=256, global_batch_size=256, worker_batch_size=32, epochs=50, seed=0)
        assert [s.what for s in GOYAL.describe(order)] == ["", "epoch 30"]

    @given(RATES, ORDERS)
    def test_segments_follow_each_other_and_state_the_rates_of_the_trace(self, rate: Rate, order: Order) -> None:
        segments, rates = rate.describe(order), trace(rate, order)
        assert segments[0].first_step == 0
        assert [s.last_step for s in segments] == [s.first_step for s in segments[1:]] + [order.num_steps]
        for segment in segments:
            inside = rates[segment.first_step : segment.last_step]
            assert segment.from_rate == inside[0]
            if segment.increment is not None:
                ramp = [segment.from_rate + segment.increment * i for i in range(len(inside))]
                assert inside == pytest.approx(ramp, rel=1e-9, abs=1e-12)
            elif not segment.what.startswith("cosine"):
                assert inside == pytest.approx([segment.from_rate] * len(inside))
                assert segment.to_rate == segment.from_rate


class TestInput:
    def test_all_mistakes_at_once(self) -> None:
        with pytest.raises(InputError) as caught:
            Rate(base=-1, scaling="liner", schedule="cosin", gamma=0, warmup_from="bass")  # type: ignore[arg-type]
        text = caught.value.text()
        for part in ("5 mistakes", "base=-1", "Near: linear", "Near: cosine", "gamma=0", "warmup_from=bass"):
            assert part in text

    @pytest.mark.parametrize(
        ("fields", "part"),
        [
            ({"schedule": "step"}, "needs the epochs of its drops"),
            ({"milestones": (3,)}, 'only schedule="step"'),
            ({"schedule": "step", "milestones": (60, 30)}, "rising"),
            ({"schedule": "step", "milestones": (3,), "warmup_epochs": 5}, "inside the warm-up of 5"),
            ({"warmup": "constant", "warmup_epochs": 1}, "trains nothing"),
            ({"base": float("nan")}, "base=nan"),
            ({"base_batch_size": 0}, "base_batch_size=0"),
            ({"final": -0.1}, "final=-0.1"),
        ],
    )
    def test_each_rule_names_what_was_found(self, fields: dict[str, object], part: str) -> None:
        with pytest.raises(InputError) as caught:
            Rate(**({"base": 0.1} | fields))  # type: ignore[arg-type]
        assert part in caught.value.text()

    def test_lr_infers_steps_from_milestones(self) -> None:
        assert lr(base=0.1, base_batch_size=256, warmup_epochs=5, milestones=[30, 60, 80]) == GOYAL
        assert lr(base=0.1).schedule == "constant"

    def test_lr_has_no_default_and_names_near_fields(self) -> None:
        with pytest.raises(InputError) as caught:
            lr(warmup_epoch=5)
        assert "no learning rate" in caught.value.text()
        assert "Near: warmup_epochs" in caught.value.text()


def test_the_rate_loads_without_torch() -> None:
    """Recipes and `squall explain` answer at once; torch takes a second or more to load."""
    code = "import sys, squall.optim; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
