"""Weights in and out of safetensors files, freezing, and the fingerprint of a model.

A weights file is plain data: `safetensors` holds names, shapes and bytes. Pickles (.pt, .pth, .bin, .ckpt) run code
when they are opened and are refused. Names are the module's own, so that any program can read what Squall saved, and
Squall can read what others published for the same module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from squall.errors import InputError, Mistakes, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME = "weights.safetensors"

_PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"})
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
_MOST_ROWS = 20
_MOST_MODULES = 4


def save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors into a safetensors file, whole or not at all.

    Arguments:
        path: the file; one that exists is replaced.
        tensors: by name, on any device, of any memory format; tied ones are written under each of their names.
        metadata: short texts for the file's header.
    """
    from safetensors.torch import save_file

    plain = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(plain, partial, dict(metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_into(model: nn.Module, source: Path, *, strict: bool = True, skip: Sequence[str] = ()) -> list[str]:
    """Copies the tensors of a file into a model's parameters and buffers of the same names.

    Everything is compared before anything is copied. A prefix `module.` or `_orig_mod.` before every name of the file
    (left by DistributedDataParallel and torch.compile) is taken off.

    Arguments:
        model: keeps its devices, dtypes and memory formats.
        source: a .safetensors file, or the folder of a run.
        strict: all names and shapes must agree; otherwise what does not fit keeps its first values.
        skip: patterns, as of `freeze`, of tensors that the file may lack or hold in another shape: another head. The
            model's keep their first values, the file's are not read.

    Returns:
        The model's tensors that were left as they were; only those of `skip` if `strict`.

    Raises:
        InputError: no such file, a pickle, a damaged file; names or shapes that do not agree (all of them at once);
            nothing that agrees; a pattern that matches nothing.
    """
    path = _weights_file(source)
    with _open(path) as file:
        own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        stored = _without_wrapper(list(file.keys()), own)
        skipped = _skipped(skip, [*own, *(name for name in stored if name not in own)])
        shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in stored.items() if name not in skipped}
        wanted = {name: value for name, value in own.items() if name not in skipped}
        fitting = [name for name in wanted if shapes.get(name) == tuple(wanted[name].shape)]
        if strict:
            _raise_differences(path, model, wanted, shapes)
        elif wanted and not fitting:
            raise InputError(
                f"nothing in {path} fits the model",
                [("found", _some(list(shapes))), ("model has", _some(list(own)))],
            )
        with torch.no_grad():
            for name in fitting:
                own[name].copy_(file.get_tensor(stored[name]))
    return [name for name in own if name not in fitting]


def _skipped(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that patterns match; one that matches none is a mistake."""
    mistakes = Mistakes("model.weights_skip")
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if _matches(name, pattern)}
        if not matched:
            near = nearest(pattern.rstrip(".*"), _module_names(names))
            mistakes.add(repr(pattern), f"matches no tensor. Near: {' '.join(near) or _some(list(names))}")
        found |= matched
    mistakes.raise_if_any()
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Takes parameters out of training (`requires_grad = False`).

    A frozen batch normalisation stays an ordinary module: its scale and shift stay, but in training mode it goes on to
    normalise by the batch and to update its running statistics, as in PyTorch. Put it in `eval()` to fix these too.

    Arguments:
        model: changed in place.
        patterns: module or parameter names (`"layer1"` means all below layer1, not layer10), or with the wildcards
            `*` and `?` (`"*.bias"`).

    Returns:
        The names of the frozen parameters, in the model's order.

    Raises:
        InputError: a pattern that matches no parameter, with names that resemble it.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[str] = set()
    mistakes = Mistakes("model.freeze")
    for pattern in patterns:
        found = [name for name in parameters if _matches(name, pattern)]
        if not found:
            near = nearest(pattern.rstrip(".*"), _module_names(parameters))
            children = list(dict.fromkeys(name.split(".", 1)[0] for name in parameters))
            mistakes.add(repr(pattern), f"matches no parameter. Near: {' '.join(near) or _some(children)}")
        frozen.update(found)
    mistakes.raise_if_any()
    for name in frozen:
        parameters[name].requires_grad_(False)
    return [name for name in parameters if name in frozen]


def sha256(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The fingerprint of a model: SHA-256 over its tensors' bytes (row by row, unpadded) in order of their names.

    Example:
        >>> sha256([("b", torch.zeros(2)), ("a", torch.ones(1))])[:12]
        '480376c6bf73'
    """
    digest = hashlib.sha256()
    for _, tensor in sorted(named, key=lambda pair: pair[0]):
        plain = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights_file(source: Path) -> Path:
    path = source / FILE_NAME if source.is_dir() else source
    if path.suffix.lower() in _PICKLES:
        raise InputError(
            f"{path} is refused",
            [
                ("found", f"a {path.suffix} file: a pickle, which runs code when it is opened"),
                (
                    "to do",
                    "save the weights again as .safetensors: safetensors.torch.save_file(model.state_dict(), FILE)",
                ),
            ],
        )
    if not path.is_file():
        is_run = source.is_dir()
        raise InputError(
            f"no weights in {source}" if is_run else f"{path} does not exist",
            [("to do", f"give a run's folder that holds {FILE_NAME}" + ("" if is_run else ", or a .safetensors file"))],
        )
    return path


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file",
            [("found", f"{path.stat().st_size:,} bytes; {error}"), ("to do", "copy or download it again")],
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read", [("found", error.strerror or str(error))]) from None


def _without_wrapper(keys: list[str], own: Mapping[str, Any]) -> dict[str, str]:
    """The file's keys by the name each would have in the model."""
    for prefix in _WRAPPERS:
        if keys and all(key.startswith(prefix) for key in keys) and not any(name.startswith(prefix) for name in own):
            return {key.removeprefix(prefix): key for key in keys}
    return {key: key for key in keys}


def _raise_differences(
    path: Path,
    model: nn.Module,
    own: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    rows: list[tuple[str, str]] = []
    for name, tensor in own.items():
        if name not in shapes:
            rows.append((name, "is missing in the file"))
        elif shapes[name] != tuple(tensor.shape):
            here, there = tuple(tensor.shape), shapes[name]
            rows.append((name, f"{_times(there)} in the file, {_times(here)} in the model"))
    for name in shapes:
        if name not in own:
            near = nearest(name, list(own), most=1)
            rows.append((name, f"the model has no such tensor{'. Near: ' + near[0] if near else ''}"))
    if not rows:
        return
    mistakes = Mistakes(f"the weights {path}", hint=_remedy(model, own, shapes))
    for row in rows[:_MOST_ROWS]:
        mistakes.add(*row)
    if len(rows) > _MOST_ROWS:
        mistakes.add("...", f"and {len(rows) - _MOST_ROWS:,} more")
    mistakes.raise_if_any()


def _remedy(model: nn.Module, own: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What to do if the difference is meant: another head above all."""
    reshaped = [name for name in own if name in shapes and shapes[name] != tuple(own[name].shape)]
    different = [
        *reshaped,
        *(name for name in own if name not in shapes),
        *(name for name in shapes if name not in own),
    ]
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in different))
    if len(modules) > _MOST_MODULES:
        return "model.weights_skip leaves tensors as the model made them, by name or pattern"
    keep = f"model.weights_skip={json.dumps(modules)} to keep the model's own"
    last = [name.rpartition(".")[0] or name for name, _ in model.named_parameters()][-1:]
    if modules != last or different != reshaped or any(own[n].shape[1:] != shapes[n][1:] for n in reshaped):
        return f"if that is meant: {keep}"
    there, here = shapes[reshaped[0]][0], own[reshaped[0]].shape[0]
    return (
        f"{modules[0]} in the file is a head of {there:,} classes, the model's has {here:,}: "
        f"set num_classes = {there}, or {keep}"
    )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _module_names(parameters: Iterable[str]) -> list[str]:
    names: dict[str, None] = {}
    for parameter in parameters:
        parts = parameter.split(".")
        names.update((".".join(parts[:end]), None) for end in range(1, len(parts) + 1))
    return list(names)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _some(names: list[str]) -> str:
    return " ".join(names[:8]) + (f" ... ({len(names):,})" if len(names) > 8 else "")
