"""A change as numbered lines of the user's own file, where reading it leaves no doubt what they are.

::

      27   for epoch in range(epochs):
    + 28       sampler.set_epoch(epoch)

The file is parsed, not guessed at: a loop has to stand in the function of the line that was seen, a name has to be
bound once. In all other cases there are no edits, and the change stays a sentence.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from pathlib import Path

from squall.verify.finding import Edit, Place

_COUNTS = ("range", "trange")
_PASSES_ON = ("enumerate", "tqdm", "iter", "islice", "track")  # each of a loader's batches, one after the other
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module


def set_epoch(place: Place | None) -> tuple[Edit, ...]:
    """Tells a loader's `DistributedSampler` which epoch it is, around the loop over that loader at `place`."""
    file = _File.of(place)
    if file is None or place is None:
        return ()
    loops = file.loops(place.line)
    if not loops or not loops[-1].iter.lineno <= place.line <= (loops[-1].iter.end_lineno or 0):
        return ()
    sampler = file.sampler(loops[-1].iter, place.line)
    if sampler is None:
        return ()
    outer, counted = loops[:-1], _counted(loops[:-1])
    if counted is not None and isinstance(counted.target, ast.Name) and counted.target.id != "_":
        return file.before(loops[-1], f"{sampler}.set_epoch({counted.target.id})", after=counted)
    function = file.function(place.line)
    if not outer and not isinstance(function, ast.Module) and _takes(function, "epoch"):
        return file.before(loops[-1], f"{sampler}.set_epoch(epoch)")
    return ()


def unscale(place: Place | None) -> tuple[Edit, ...]:
    """Takes the loss scale out of the gradients before the clipping at `place`."""
    file = _File.of(place)
    if file is None or place is None:
        return ()
    calls = list(_methods(file.function(place.line)))
    scalers = {name for name, method, _ in calls if method == "scale"}
    stepped = {
        (name, ast.unparse(call.args[0]))
        for name, method, call in calls
        if method == "step" and name in scalers and len(call.args) == 1
    }
    statement = file.statement(place.line)
    if len(stepped) != 1 or statement is None:
        return ()
    ((scaler, optimizer),) = stepped
    return file.before(statement, f"{scaler}.unscale_({optimizer})")


def train_mode(place: Place | None) -> tuple[Edit, ...]:
    """Puts the network that is called at `place` into training mode at the begin of each epoch."""
    file = _File.of(place)
    if file is None or place is None:
        return ()
    statement, loop = file.statement(place.line), _counted(file.loops(place.line)[:-1])
    if statement is None or loop is None:
        return ()
    called = {ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call)}
    methods = _methods(file.function(place.line))
    networks = called & {name for name, method, _ in methods if method in ("parameters", "train", "eval")}
    return file.before(loop.body[0], f"{networks.pop()}.train()", after=loop) if len(networks) == 1 else ()


class _File:
    """A file of the user's, parsed."""

    def __init__(self, tree: ast.Module, lines: Sequence[str]) -> None:
        self.tree, self.lines = tree, lines

    @classmethod
    def of(cls, place: Place | None) -> _File | None:
        """The file of a line, if it is there and still holds that line."""
        if place is None:
            return None
        lines = linecache.getlines(str(Path(place.path).absolute()))
        if not 0 < place.line <= len(lines) or lines[place.line - 1].strip() != place.text.strip():
            return None
        try:
            return cls(ast.parse("".join(lines)), [line.rstrip("\n") for line in lines])
        except (SyntaxError, ValueError):
            return None

    def function(self, line: int) -> _Function:
        """The innermost function that holds a line; the module, where there is none."""
        found: _Function = self.tree
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _holds(node, line):
                found = node if isinstance(found, ast.Module) or node.lineno > found.lineno else found
        return found

    def loops(self, line: int) -> list[ast.For]:
        """The `for` loops around a line within its function, the outermost first."""
        found = [node for node in _own(self.function(line)) if isinstance(node, ast.For) and _holds(node, line)]
        return sorted(found, key=lambda loop: loop.lineno)

    def statement(self, line: int) -> ast.stmt | None:
        """The innermost simple statement that holds a line."""
        found = [
            node
            for node in _own(self.function(line))
            if isinstance(node, ast.stmt) and _holds(node, line) and not hasattr(node, "body")
        ]
        return found[-1] if found else None

    def sampler(self, loader: ast.expr, line: int) -> str | None:
        """What a loader's sampler is called at a line: its own name, where it was given to the loader by that.

        Arguments:
            loader: what a loop goes over: the loader's name, also within `enumerate(...)` and progress bars.
        """
        while isinstance(loader, ast.Call) and loader.args and ast.unparse(loader.func).split(".")[-1] in _PASSES_ON:
            loader = loader.args[0]
        name = ast.unparse(loader)
        if not _is_name(name):
            return None
        values = self._bound_to(name, line)
        bound = [one for one in values if isinstance(one, ast.Call) and ast.unparse(one.func).endswith("DataLoader")]
        if len(bound) < len(values):
            return None  # something around a loader, perhaps
        given = [ast.unparse(word.value) for value in bound for word in value.keywords if word.arg == "sampler"]
        if len(given) == len(bound) == 1 and len(self._bound_to(given[0], line)) == 1:
            return given[0]
        function = self.function(line)
        known = bound or (not isinstance(function, ast.Module) and _takes(function, name))
        return f"{name}.sampler" if known else None

    def _bound_to(self, name: str, line: int) -> list[ast.expr]:
        """What a name that is seen at a line was bound to: in its function, else in the module; attributes anywhere."""
        if "." in name:
            return [one.value for one in ast.walk(self.tree) if isinstance(one, ast.Assign) and _binds(one, name)]
        function = self.function(line)
        if not isinstance(function, ast.Module):
            here = _assigned(function, name)
            if here or _takes(function, name):
                return here
        return _assigned(self.tree, name)

    def before(self, statement: ast.stmt, code: str, *, after: ast.For | None = None) -> tuple[Edit, ...]:
        """A new line before a statement; where that is the first in the loop `after`, shown with that loop's line."""
        line, text = statement.lineno, self.lines[statement.lineno - 1]
        if text[: statement.col_offset].strip():  # it shares its line with another
            return ()
        new = Edit(mark="+", line=line, text=text[: statement.col_offset] + code)
        if after is not None and after.lineno == line - 1:
            return Edit(mark=" ", line=line - 1, text=self.lines[line - 2]), new
        return new, Edit(mark=" ", line=line + 1, text=text)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, without what is in functions and classes in it, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from _own(child)


def _holds(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


def _takes(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    return any(argument.arg == name for argument in [*function.args.args, *function.args.kwonlyargs])


def _counted(loops: Sequence[ast.For]) -> ast.For | None:
    """The loop over epochs: the only one that counts, `for epoch in range(...)`."""
    found = [loop for loop in loops if isinstance(loop.iter, ast.Call) and ast.unparse(loop.iter.func) in _COUNTS]
    return found[0] if len(found) == 1 else None


def _assigned(scope: _Function, name: str) -> list[ast.expr]:
    return [node.value for node in _own(scope) if isinstance(node, ast.Assign) and _binds(node, name)]


def _binds(assignment: ast.Assign, name: str) -> bool:
    return any(ast.unparse(target) == name for target in assignment.targets)


def _is_name(text: str) -> bool:
    """Whether it is a name, or an attribute of one: `sampler`, `self.sampler`."""
    return all(part.isidentifier() for part in text.split("."))


def _methods(scope: _Function) -> Iterator[tuple[str, str, ast.Call]]:
    """The methods that are called on something that has a name: that name, the method's, and the call."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func.value)
            if _is_name(name):
                yield name, node.func.attr, node
