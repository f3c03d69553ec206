"""What ranks are told so that no tracker of experiments takes a trial for a training.

Each has a switch in the environment that keeps its runs on this machine; what it then writes goes into the job's
folder, and goes with it. A script that asks for the network itself, as by `wandb.init(mode="online")`, is stronger.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_SWITCHES: dict[str, tuple[str, frozenset[str]]] = {
    "WANDB_MODE": ("offline", frozenset({"disabled", "dryrun"})),
    "COMET_MODE": ("OFFLINE", frozenset({"disabled"})),
    "COMET_START_ONLINE": ("0", frozenset()),
    "NEPTUNE_MODE": ("offline", frozenset({"debug", "disabled"})),
    "CLEARML_OFFLINE_MODE": ("1", frozenset()),
}
"""What turns each off, and what the user may have turned it off with."""

_FOLDERS = ("WANDB_DIR", "COMET_OFFLINE_DIRECTORY", "NEPTUNE_LOG_DIRECTORY")


def offline(given: Mapping[str, str], folder: Path) -> dict[str, str | None]:
    """Variables for the ranks; None takes one away.

    Arguments:
        given: the user's environment.
        folder: for what trackers write.
    """
    values: dict[str, str | None] = {
        name: given[name] if given.get(name, "").lower() in off else ours for name, (ours, off) in _SWITCHES.items()
    }
    values |= dict.fromkeys(_FOLDERS, str(folder))
    values |= dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), (folder / "mlruns").as_uri())
    values |= {"MLFLOW_ALLOW_FILE_STORE": "true"}  # newer ones have to be asked
    return values | {"MLFLOW_EXPERIMENT_ID": None, "MLFLOW_RUN_ID": None}  # these are of the user's own store
