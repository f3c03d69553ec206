"""The client of Weights & Biases, in a process of its own (`track_child`), online or offline.

Where to and as whom are its own settings (`wandb login`, WANDB_PROJECT, WANDB_MODE=offline, ...). A resumed run goes on
under its id; the service takes no step twice. Console, code, git, packages, machine and system metrics are not
sent, and no reports of errors go to the maker.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

_EXIT = {"finished": 0, "stopped": 255, "diverged": 1, "failed": 1}  # 255 shows as killed
_FINISH_S = 8.0
_FLUSH_S = 1.0  # so that a run that is killed has its values on disk


class Client:
    """As `track_child.Client`."""

    def __init__(self) -> None:
        os.environ.pop("WANDB_SERVICE", None)  # of a run of the user's own
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        self._run: Any = None
        self._first = self._last = 0

    def start(self, known: str | None, name: str, start_step: int, folder: str | None) -> str:
        """Begins a run, or goes on with the known one."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            finish_timeout=_FINISH_S,
            finish_timeout_raises=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=_FLUSH_S,
        )
        identity = known or secrets.token_hex(4)
        self._run = wandb.init(
            id=identity,
            resume="allow",
            name=name,
            project=wandb.setup().settings.project or "squall",
            dir=os.environ.get("WANDB_DIR") or folder,
            settings=settings,
        )
        self._first = self._run.step  # of a resumed run the first that is not there yet
        if start_step:
            self._run.summary["resumed_at"] = start_step
        return identity

    def config(self, values: Mapping[str, Any]) -> None:
        """Sets the run's configuration."""
        self._run.config.update(dict(values), allow_val_change=True)

    def log(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Logs values; steps never go back, or they would be lost."""
        for step, _, values in points:
            if step >= self._first:
                self._last = max(step, self._last)
                self._run.log(dict(values), step=self._last)

    def end(self, outcome: str, step: int, result: Mapping[str, Any]) -> None:
        """Puts the result into the run's summary and waits until it has arrived, for a while."""
        import wandb

        self._run.summary.update({"outcome": outcome, **{f"result/{name}": value for name, value in result.items()}})
        self._run.finish(exit_code=_EXIT.get(outcome, 255))
        wandb.teardown()
