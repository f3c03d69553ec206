"""What is verified: a script with its arguments, or a target of `squall train`, as something that ranks can run."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from squall.errors import InputError

FOLDER = "{folder}"
"""In a script's arguments: an empty folder, a new one for each run."""

_HEAVY = (  # imports worth making once for all ranks
    *("accelerate", "lightning", "pytorch_lightning", "transformers", "datasets", "torchvision", "sklearn", "pandas"),
)
_OFTEN = "checkpoint.every=5step"


@dataclass(frozen=True)
class Program:
    """A training as ranks run it.

    Arguments:
        given: a path that ends in .py, or a target.
        arguments: for the script, or for `squall train`.
        resume_with: further arguments with which a script goes on from its checkpoints.

    Raises:
        InputError: a script that cannot be read, or is no Python.
    """

    given: str
    arguments: tuple[str, ...] = ()
    resume_with: tuple[str, ...] = ()

    @cached_property
    def tree(self) -> ast.Module | None:
        """The script's own syntax; None for a target of another kind."""
        if not self.given.endswith(".py"):
            return None
        path = Path(self.given)
        try:
            return ast.parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}", [("found", str(error.strerror))]) from None
        except (SyntaxError, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{path} is no Python", [("found", str(error))]) from None

    @cached_property
    def is_script(self) -> bool:
        """Whether it is run by itself; a file that only defines a task is trained by `squall train`."""
        if self.tree is None:
            return False
        defines = any(
            isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "task" for to in node.targets)
            for node in self.tree.body
        )
        runs = any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in self.tree.body)
        return runs or not defines

    @cached_property
    def slow_imports(self) -> list[str]:
        """Modules that all ranks will import, to be imported once."""
        if not self.is_script or self.tree is None:
            return ["squall.training"]
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
        return [name for name in _HEAVY if name in names]

    def options(self, folder: Path, *, often: bool = False) -> dict[str, Any]:
        """What a rank is told to run, from the beginning.

        Arguments:
            folder: of this run's files.
            often: a target writes checkpoints every few updates.
        """
        if self.is_script:
            return {"script": self.given, "arguments": _filled(self.arguments, folder)}
        more = [_OFTEN] if often and not any(one.startswith("checkpoint.every") for one in self.arguments) else []
        out = ["--out", str(folder / "run")]
        return {"module": "squall", "arguments": ["train", self.given, *more, *self.arguments, *out]}

    def resumed(self, folder: Path) -> dict[str, Any]:
        """What a rank is told to run to go on from what lies in the folder."""
        if self.is_script:
            return {"script": self.given, "arguments": _filled((*self.arguments, *self.resume_with), folder)}
        return {"module": "squall", "arguments": ["resume", str(folder / "run"), *self._data_flags()]}

    def checkpoints(self, folder: Path) -> Path:
        """Where checkpoints come."""
        return folder if self.is_script else folder / "run" / "checkpoints"

    def _data_flags(self) -> list[str]:
        for place, argument in enumerate(self.arguments):
            if argument == "--data":
                return list(self.arguments[place : place + 2])
            if argument.startswith("--data="):
                return [argument]
        return []


def _filled(arguments: Sequence[str], folder: Path) -> list[str]:
    return [argument.replace(FOLDER, str(folder)) for argument in arguments]
