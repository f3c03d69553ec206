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
    for loop in reversed(loops[:-1]):
        if isinstance(loop.target, ast.Name) and loop.target.id != "_":
            return file.first_in(loop, f"{sampler}.set_epoch({loop.target.id})")
    function = file.function(place.line)
    if len(loops) == 1 and not isinstance(function, ast.Module) and _takes(function, "epoch"):
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
    statement, loops = file.statement(place.line), file.loops(place.line)
    if statement is None or len(loops) < 2:
        return ()
    called = {ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call)}
    methods = _methods(file.function(place.line))
    networks = called & {name for name, method, _ in methods if method in ("parameters", "train", "eval")}
    return file.first_in(loops[-2], f"{networks.pop()}.train()") if len(networks) == 1 else ()


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
        while isinstance(loader, ast.Call) and loader.args:
            loader = loader.args[0]
        name = ast.unparse(loader)
        if not _is_name(name):
            return None
        for value in self._bound_to(name, line):
            for keyword in value.keywords if isinstance(value, ast.Call) else ():
                given = ast.unparse(keyword.value)
                if keyword.arg == "sampler" and len(self._bound_to(given, line)) == 1:
                    return given
        return f"{name}.sampler"

    def _bound_to(self, name: str, line: int) -> list[ast.expr]:
        """What a name that is seen at a line was bound to: in its function, else in the module."""
        function = self.function(line)
        if not isinstance(function, ast.Module):
            here = _assigned(function, name)
            if here or _takes(function, name):
                return here
        return _assigned(self.tree, name)

    def first_in(self, loop: ast.For, code: str) -> tuple[Edit, ...]:
        """A new first line of a loop."""
        first, head = loop.body[0], loop.lineno
        if first.lineno == head or (loop.iter.end_lineno or 0) != head:  # more, or less, than one line to show
            return ()
        return (
            Edit(mark=" ", line=head, text=self.lines[head - 1]),
            Edit(mark="+", line=head + 1, text=f"{self._indent(first.lineno)}{code}"),
        )

    def before(self, statement: ast.stmt, code: str) -> tuple[Edit, ...]:
        """A new line before a statement."""
        line = statement.lineno
        if self.lines[line - 1][: statement.col_offset].strip():  # it shares its line with another
            return ()
        return (
            Edit(mark="+", line=line, text=f"{self._indent(line)}{code}"),
            Edit(mark=" ", line=line + 1, text=self.lines[line - 1]),
        )

    def _indent(self, line: int) -> str:
        text = self.lines[line - 1]
        return text[: len(text) - len(text.lstrip())]


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


def _assigned(scope: _Function, name: str) -> list[ast.expr]:
    found = [node for node in _own(scope) if isinstance(node, ast.Assign)]
    return [node.value for node in found for target in node.targets if ast.unparse(target) == name]


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
