"""MLflow's client, in a process of its own (`track_child`): a server, or a database file.

Where to is MLflow's own setting, MLFLOW_TRACKING_URI; without one MLflow writes mlflow.db into the working folder. Runs
are in the experiment "squall" unless MLFLOW_EXPERIMENT_NAME says otherwise. A resumed run goes on under its id; of each
value only the steps are added that are not there yet. MLflow's usage statistics stay off, and no source, commit,
user or environment is sent.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one request, by MLflow's interface
_LONGEST_NAME, _LONGEST_VALUE = 250, 500


class Client:
    """As `track_child.Client`."""

    def __init__(self) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at the import
        os.environ["GIT_PYTHON_REFRESH"] = "quiet"
        import mlflow.entities
        import mlflow.exceptions
        from mlflow.tracking import MlflowClient

        self._entities = mlflow.entities
        self._error = mlflow.exceptions.MlflowException
        self._client = MlflowClient()
        self._run = ""
        self._resumed = False
        self._last: dict[str, int] = {}

    def start(self, known: str | None, name: str, start_step: int, folder: str | None) -> str:
        """Makes a run, or takes the known one up again if this server has it."""
        self._resumed = known is not None and self._has(known)
        if known is not None and self._resumed:
            self._run = known
            self._client.update_run(known, status="RUNNING")
        else:
            self._run = self._client.create_run(self._experiment(), run_name=name).info.run_id
        if start_step:
            self._client.set_tag(self._run, "squall.resumed_at", str(start_step))
        return self._run

    def config(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; MLflow takes each once, so that those of an earlier session stay."""
        known = self._client.get_run(self._run).data.params if self._resumed else {}
        params = [
            self._entities.Param(key, _text(value))
            for name, value in values.items()
            if (key := _key(name)) not in known
        ]
        for part in _parts(params, _MOST_PARAMS):
            self._client.log_batch(self._run, params=part)

    def log(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Logs metrics."""
        metrics = [
            self._entities.Metric(key, value, int(1000 * when), step)
            for step, when, values in points
            for name, value in values.items()
            if step > self._logged(key := _key(name))
        ]
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._run, metrics=part)

    def end(self, outcome: str, step: int, result: Mapping[str, Any]) -> None:
        """Logs the result, numbers as metrics and the rest as tags, and ends the run."""
        numbers = {f"result/{name}": value for name, value in result.items() if isinstance(value, int | float)}
        self.log([(step, time.time(), numbers)])
        for name, value in {"outcome": outcome, **result}.items():
            if isinstance(value, str):
                self._client.set_tag(self._run, f"squall.{name}", _text(value))
        self._client.set_terminated(self._run, _STATUS.get(outcome, "KILLED"))

    def _has(self, run: str) -> bool:
        try:
            self._client.get_run(run)
        except self._error as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _experiment(self) -> str:
        if identity := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "squall"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except self._error:  # another run may have made it just now
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _logged(self, key: str) -> int:
        """The last step at which an earlier session has left this value; -1: none."""
        if not self._resumed:
            return -1
        if key not in self._last:
            history = self._client.get_metric_history(self._run, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last[key]


def _key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, `_-. /`, a plain relative path."""
    parts = re.sub(r"[^\w.\- /]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip("."))[:_LONGEST_NAME].rstrip("/") or "_"


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_VALUE]


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
