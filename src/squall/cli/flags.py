"""Flags that several verbs share: one word and one meaning each."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from squall.cli.processes import Span
from squall.data.sources import data_root

TIMEOUT_S = 300.0
"""Of `--timeout`, where nobody says another."""


class Device(StrEnum):
    """Where to compute."""

    cpu = "cpu"
    cuda = "cuda"


TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="A shipped recipe, a .toml file, or a .py file that defines task.", show_default=False
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, its name under runs/, or last.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe: lr=0.2 model.width=24", show_default=False),
]
ProcessesFlag = Annotated[
    int | None,
    typer.Option(
        "--processes",
        "-P",
        min=1,
        help="Processes on this machine; by default its cores, or its GPUs.",
        show_default=False,
    ),
]
ElasticFlag = Annotated[
    Span | None,
    typer.Option(
        "--processes",
        "-P",
        metavar="P|MIN:MAX",
        parser=Span.parse,
        help="Processes on this machine; by default its cores, or its GPUs. 2:4: as many of 2 to 4 as there are.",
        show_default=False,
    ),
]
TimeoutFlag = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=1, help="How long a process may keep the others waiting."),
]
RestartsFlag = Annotated[
    int,
    typer.Option("--restarts", metavar="N", min=0, help="How often to go on by itself after a process was killed."),
]
DataFlag = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder of the data sets; else $SQUALL_DATA, else ./data.", show_default=False
    ),
]
DeviceFlag = Annotated[
    Device | None, typer.Option("--device", help="By default a GPU where there is one.", show_default=False)
]
TrackerFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker", metavar="NAME", help="Who gets the records too: mlflow, wandb; repeatable.", show_default=False
    ),
]
ProfileFlag = Annotated[
    bool, typer.Option("--profile", help="Write a trace of a few steps by torch's profiler: RUN/profile/rank-N.json.")
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print the last block only.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RecordsFlag = Annotated[bool, typer.Option("--json", help="Print one record of JSON a line.")]


def data_folder(flag: Path | None) -> Path:
    """The folder that holds the data sets."""
    return data_root(flag, os.environ.get("SQUALL_DATA"))
