"""One run of lock-step training: steps, reduction, evaluation, ledger, records."""

from squall.run.evaluate import PerSample
from squall.run.result import Result, mean_and_std, median_of_last
from squall.run.run import Run
from squall.run.spec import RunSpec
from squall.run.steps import Step

__all__ = ["PerSample", "Result", "Run", "RunSpec", "Step", "mean_and_std", "median_of_last"]
