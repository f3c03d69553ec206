"""What TARGET means everywhere: a shipped recipe, a .toml file, or a .py file with a `task` and perhaps a `recipe`.

A recipe is read without loading torch. A .py file is the user's own code: it is imported under its own name, so that
its objects can be pickled for loader processes and found again (`python -c "import my_task; my_task.task.train[7]"`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from squall.errors import InputError, SquallError
from squall.recipe import Recipe, override, read

if TYPE_CHECKING:
    from squall.task import Task


@dataclass(frozen=True)
class Target:
    """What is to be trained.

    Attributes:
        given: the word on the command line.
        recipe: with all overrides applied.
        task: of a .py file; None where the recipe names network and data.
        module: the .py file, imported.
    """

    given: str
    recipe: Recipe
    task: Task | None = None
    module: ModuleType | None = None

    def forget(self) -> None:
        """Lets go of a .py file's objects (data sets, often): this process only launches others from now on."""
        if self.module is not None:
            sys.modules.pop(self.module.__name__, None)
            vars(self.module).clear()
            vars(self.task).clear()


def resolve(given: str, overrides: Sequence[str]) -> Target:
    """Reads a target and applies `key=value` overrides.

    Raises:
        InputError: no such target, or mistakes in it, all at once.
        UserCodeError: the .py file raised an exception.
    """
    import_from(Path.cwd())
    if given.endswith(".py"):
        return _from_python(given, overrides)
    values = read(given)
    if given.endswith(".toml"):
        values.setdefault("name", Path(given).stem)
    return Target(given, override(values, overrides, where=given))


def import_from(folder: Path) -> None:
    """Lets "package.module:function" and a .py file's imports be found in a folder, however Squall was started."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def load_task(path: str) -> tuple[ModuleType, Task]:
    """Imports a .py file and takes its `task`.

    Raises:
        InputError: no such file, no Python, or no task in it.
        UserCodeError: it raised an exception.
    """
    module = _imported(Path(path))
    from squall.task import Task

    task = getattr(module, "task", None)
    if not isinstance(task, Task):
        found = "no variable task" if task is None else f"task is a {type(task).__name__}"
        raise InputError(
            f"{path} defines no task",
            [("found", found), ("to do", "task = squall.Task(model=..., loss=..., train=...) at the top level")],
        )
    return module, task


def _from_python(given: str, overrides: Sequence[str]) -> Target:
    module, task = load_task(given)
    recipe = getattr(module, "recipe", None)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise InputError(
            f"recipe in {given} is a {type(recipe).__name__}",
            [("rule", "recipe = squall.Recipe(epochs=..., global_batch_size=..., worker_batch_size=..., lr=...)")],
        )
    values: dict[str, Any] = recipe.model_dump(exclude_unset=True) if recipe is not None else {}
    values.setdefault("name", Path(given).stem)
    return Target(given, override(values, overrides, where=given), task, module)


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"cannot read {path}", [("found", "a folder" if path.is_dir() else "no such file")])
    from squall.data.usercode import user_code_error

    import_from(path.resolve().parent)
    name = path.stem
    taken = sys.modules.get(name)
    if not name.isidentifier() or (taken is not None and getattr(taken, "__file__", None) != str(path.resolve())):
        name = "squall_task_file"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SquallError:
        raise
    except SyntaxError as error:
        where = f"{Path(error.filename or path).name}:{error.lineno}"
        raise InputError(f"{path} is no Python", [(where, (error.text or "").strip()), ("found", error.msg)]) from error
    except Exception as error:
        raise user_code_error(error, str(path)) from error
    return module
