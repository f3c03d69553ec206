"""`squall eval` and `squall export`: a run's model measured again, and its weights as a plain file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squall.cli import flags, processes
from squall.cli.folders import whole
from squall.cli.target import import_from, load_task
from squall.errors import InputError
from squall.units import count

if TYPE_CHECKING:
    import torch

    from squall.recipe import Recipe


def evaluate(
    run: flags.RunArgument,
    data: flags.DataFlag = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="FILE.py", help="The task of a run that trained one.", show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE.csv", help="Write each sample's prediction.", show_default=False),
    ] = None,
    processes_: flags.ProcessesFlag = None,
    device: flags.DeviceFlag = None,
    json_: flags.JsonFlag = False,
) -> int:
    """Measure a run's model, exactly: the numbers of its result.json again, or those on other data."""
    place = processes.job(processes_)
    size = processes_ or 1
    with processes.threads_before_torch(_threads(run)):
        if save is not None and (place is None or place.rank == 0):
            _writable(save)
        if place is None and size > 1:
            given = [run, f"--data={flags.data_folder(data)}", *([f"--task={task}"] if task else [])]
            given += [f"--save={save}"] if save else []
            given += [f"--device={device.value}"] if device else []
            return processes.again(["eval", *given, *["--json"] * json_], size, _threads(run))
        return _measure(run, flags.data_folder(data), task, save, device.value if device else None, json_)


def _measure(
    run: str, data_folder: Path, task_file: str | None, save: Path | None, device: str | None, json_: bool
) -> int:
    from squall.cluster.world import join
    from squall.training import compose
    from squall.training.measure import measure
    from squall.training.saved import find, recipe_of, result

    folder = find(run)
    recipe, before = recipe_of(folder), result(folder)
    import_from(Path.cwd())
    if task_file is None and recipe.model is None:
        raise InputError(f"{folder} trained a task of its own", [("to do", f"squall eval {run} --task FILE.py")])
    own = load_task(task_file)[1] if task_file is not None else None
    world = join(device)
    try:
        task = own or compose(_unstarted(recipe), world, data_folder)
        if task.val is None and task.test is None:
            raise InputError(f"{folder} has neither a validation nor a test set", [("found", "training data only")])
        found = measure(recipe, task, folder, world, predictions=save is not None)
        if world.rank == 0:
            if save is not None and found.rows is not None:
                _save(save, found.rows, task)
            _show(folder, found.val, found.test, before, save, json_)
    finally:
        world.close()
    return 0


def _unstarted(recipe: Recipe) -> Recipe:
    """The recipe without the weights that its training started from: they may be gone, and are not needed."""
    assert recipe.model is not None
    model = recipe.model.model_copy(update={"weights": None, "weights_skip": ()})
    return recipe.model_copy(update={"model": model})


def _show(
    folder: Path, val: dict[str, float], test: dict[str, float], before: dict[str, Any], save: Path | None, json_: bool
) -> None:
    if json_:
        print(
            json.dumps({"run": str(folder), "val": val, "test": test, **({"predictions": str(save)} if save else {})})
        )
        return
    print(f"run     {folder}")
    for split, name, values in (("val", "validation", val), ("test", "test", test)):
        for key, value in values.items():
            then = before.get(f"{split}_{key}")
            told = f"{100 * value:.2f} %" if key.endswith("accuracy") else f"{value:.6f}"
            same = (
                ""
                if then is None
                else "  as in result.json"
                if then == value
                else f"  result.json: {then!r}, now {value!r}"
            )
            print(f"{name} {key} {told}{same}")
    if save:
        print(f"wrote   {save}")


def _save(path: Path, rows: torch.Tensor, task: Any) -> None:
    try:
        _write(path, rows, task)
    except OSError as error:
        raise InputError(f"{path} cannot be written", [("found", error.strerror or str(error))]) from error


def _write(path: Path, rows: torch.Tensor, task: Any) -> None:
    classes = getattr(task.test if task.test is not None else task.val, "classes", None)
    with whole(path) as file:
        out = csv.writer(file)
        out.writerow(["index", "target", "prediction", "probability", *(["class"] if classes else [])])
        for index, (target, predicted, probability) in enumerate(rows.tolist()):
            named = [classes[int(predicted)]] if classes else []
            out.writerow([index, int(target), int(predicted), f"{probability:.6f}", *named])


def export(
    run: flags.RunArgument,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="By default NAME.safetensors here.", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The last weights, though the run has averaged ones.")] = False,
    json_: flags.JsonFlag = False,
) -> int:
    """Write a run's weights as plain safetensors under the module's own parameter names."""
    from squall.run.folder import EMA_WEIGHTS
    from squall.training.saved import weights_of

    folder, values = _run(run)
    source = weights_of(folder, ema=False if raw else None)
    averaged = source.name == EMA_WEIGHTS
    path = to or Path(f"{values.get('name', folder.name)}.safetensors")
    if path.suffix != ".safetensors":
        raise InputError(
            f"--to {path}", [("rule", "a .safetensors file"), ("to do", f"--to {path.with_suffix('.safetensors')}")]
        )
    _writable(path)
    if path.exists():
        raise InputError(f"{path} exists already", [("to do", "remove it, or choose another name with --to FILE")])
    from safetensors import safe_open

    from squall.model import weights

    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    weights.save(path, tensors, {"format": "pt"})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if json_:
        fields = {
            "run": str(folder),
            "file": str(path),
            "tensors": len(tensors),
            "numbers": numbers,
            "averaged": averaged,
        }
        print(json.dumps(fields))
        return 0
    kind = " (averaged weights; --raw for the last ones)" if averaged else ""
    print(f"run     {folder}")
    print(f"wrote   {path}: {len(tensors)} tensors, {count(numbers)} numbers{kind}")
    print(f'load    safetensors.torch.load_file("{path}"), or model.weights={path} in a recipe')
    return 0


def _run(run: str) -> tuple[Path, dict[str, Any]]:
    from squall.training.saved import find, result

    folder = find(run)
    return folder, result(folder)


def _threads(run: str) -> int:
    """Threads of the run's recipe, before torch is there; 1 where it has none."""
    import tomllib

    from squall.run.folder import RECIPE

    folder, _ = _run(run)
    if not (folder / RECIPE).is_file():
        return 1
    compute = tomllib.loads((folder / RECIPE).read_text(encoding="utf-8")).get("compute", {})
    return int(compute.get("threads", 1))


def _writable(path: Path) -> None:
    import os

    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        found = "it is a folder" if path.is_dir() else "no such folder" if not path.parent.is_dir() else "no permission"
        raise InputError(f"{path} cannot be written", [("found", found)])
