"""What "package.module:name" refers to: the form in which a recipe names a person's own code."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class NoModuleError(ModuleNotFoundError):
    """The module of a reference, or a package above it, is not there; `name` is what was not found."""


def is_reference(text: str) -> bool:
    """Whether a text has the form "package.module:name"; the name may lie inside a class: "Class.method"."""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def find(reference: str) -> tuple[ModuleType, Any]:
    """The module of a reference, and the object in it; None where the module has no such name.

    Raises:
        NoModuleError: the module is not there.
        Exception: whatever the module raised while it was imported.
    """
    path, _, name = reference.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise NoModuleError(str(error), name=error.name) from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return module, found
