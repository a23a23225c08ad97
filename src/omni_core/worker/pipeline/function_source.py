"""Reading what the source of a pipeline's methods says, for what their signatures do not."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any


def is_stock(function: Any) -> bool:
    """Whether a function is one of diffusers' own, and nobody else has replaced or wrapped it."""
    while True:
        # Not `__module__`: functools.wraps gives a wrapper that of what it wraps.
        home = getattr(function, "__globals__", {}).get("__name__", "").partition(".")[0]
        if home not in ("diffusers", "torch"):  # torch.no_grad wraps too
            return False
        if not hasattr(function, "__wrapped__"):
            return bool(home == "diffusers")
        function = function.__wrapped__


class FunctionSource:
    """The syntax tree of a function, with ways to ask it.

    Attributes:
        tree: The function's definition.
    """

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.tree = tree
        self._nodes = [*ast.walk(tree)]
        self._parents = {child: node for node in self._nodes for child in ast.iter_child_nodes(node)}

    def parent(self, node: ast.AST) -> ast.AST:
        """Return what a node stands in."""
        return self._parents[node]

    def statement(self, node: ast.AST) -> ast.AST:
        """Return the statement that a node is part of."""
        while not isinstance(node, ast.stmt):
            node = self._parents[node]
        return node

    def conditions(self, node: ast.AST) -> list[ast.If]:
        """Return the `if` statements that a node stands in, innermost first."""
        found: list[ast.If] = []
        while node is not self.tree:
            node = self._parents[node]
            if isinstance(node, ast.If):
                found.append(node)
        return found

    def reads(self, name: str) -> list[ast.Name]:
        """Return the places where a variable is read."""
        return [node for node in self._names if node.id == name and isinstance(node.ctx, ast.Load)]

    def writes(self, name: str) -> list[ast.Name]:
        """Return the places where a variable is set."""
        return [node for node in self._names if node.id == name and isinstance(node.ctx, ast.Store)]

    def names_read(self) -> set[str]:
        """Return the variables that are read anywhere."""
        return {node.id for node in self._names if isinstance(node.ctx, ast.Load)}

    def calls(self, path: str) -> list[ast.Call]:
        """Return the calls of `self.path`."""
        return [node for node in self.all_calls() if path_from_self(node.func) == path]

    def all_calls(self) -> Iterator[ast.Call]:
        """Yield every call."""
        return (node for node in self._nodes if isinstance(node, ast.Call))

    @functools.cached_property
    def _names(self) -> list[ast.Name]:
        return [node for node in self._nodes if isinstance(node, ast.Name)]


def source_of(function: Any) -> FunctionSource | None:
    """Return the source of one of diffusers' own functions; None if it is not one, or there is no source."""
    function = getattr(function, "__func__", function)
    return _parsed(inspect.unwrap(function)) if is_stock(function) else None


@functools.lru_cache(maxsize=16)
def _parsed(function: Callable[..., Any]) -> FunctionSource | None:
    try:
        source = inspect.getsource(function)
        # A method is indented, and texts in it may not be, so that it cannot be moved to the margin.
        tree = ast.parse(f"class _:\n{source}" if source[:1].isspace() else source)
    except (OSError, TypeError, SyntaxError):
        return None
    found = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
    return FunctionSource(found) if found is not None else None


def path_from_self(node: ast.AST) -> str | None:
    """Return `a.b` for the expression `self.a.b`, None for another."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    is_of_self = isinstance(node, ast.Name) and node.id == "self" and bool(names)
    return ".".join(reversed(names)) if is_of_self else None


def value_at(owner: Any, path: str | None) -> Any:
    """Return `owner.path`, or None if there is no such thing."""
    for name in path.split(".") if path else ("",):
        owner = getattr(owner, name, None)
    return owner


def callee(call: ast.Call, owner: Any) -> Any:
    """Return what `self.path(…)` calls: a bound method, also of a pipeline that is called itself. None if not known."""
    target = value_at(owner, path_from_self(call.func))
    if target is None or inspect.isroutine(target):
        return target
    return getattr(target, "__call__", None)  # noqa: B004  # the method itself is wanted


def parameter_of(argument: ast.AST, call: ast.Call, function: Any) -> str | None:
    """Return the name under which a function gets an argument of a call; None if it has no such parameter."""
    parameters = [*inspect.signature(function).parameters.values()]
    if isinstance(argument, ast.keyword):
        name = argument.arg
    else:
        place = next((place for place, given in enumerate(call.args) if given is argument), len(parameters))
        name = parameters[place].name if place < len(parameters) else None
    kinds = {parameter.name: parameter.kind for parameter in parameters}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return name if name is not None and kinds.get(name) in named else None


def integer(node: ast.AST, owner: Any) -> int | None:
    """Return the value of an expression of integers and attributes of `self`, None for another."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Pow)):
        left, right = integer(node.left, owner), integer(node.right, owner)
        if left is None or right is None:
            return None
        return left * right if isinstance(node.op, ast.Mult) else int(left**right)
    found = node.value if isinstance(node, ast.Constant) else value_at(owner, path_from_self(node))
    return found if type(found) is int else None
