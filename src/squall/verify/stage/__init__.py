"""Runs a script in several ranks, again and again, without paying for torch's import each time.

Each rank of a launch is a fresh interpreter that imports torch, 1.5 s, and often Accelerate or Lightning, 3 s more; a
verification launches three times, and a suite of tests hundreds of times. A *stage* is one process that imports them
once and then forks: for each job a runner, which forks the job's ranks::

    owner ── Stage ──> python -m squall.verify.stage          imports; no threads, no CUDA
                         └── runner of job 1                  holds the store, watches, ends, reports      runner
                               ├── rank 0                     function(rank=0, processes=P, ...)           rank
                               ├── rank 1 ── its loaders
                               └── orphans of any rank        they come here, however they hide            kin

Jobs and answers are lines of JSON on pipes. Whoever dies takes all below along: a rank is tied to its runner by the
kernel; the runner sees the stage die, and the stage its owner, and each ends what is below it. Runner and stage are
subreapers, so that a daemon which has forked itself free is still below one of them.
"""

from squall.verify.stage.job import Ended, Failure, Frame, Job, RankEnd
from squall.verify.stage.owner import Stage

__all__ = ["Ended", "Failure", "Frame", "Job", "RankEnd", "Stage"]
