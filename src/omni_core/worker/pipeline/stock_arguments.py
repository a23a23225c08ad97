"""What the code of a stock pipeline tells of its arguments: further names, values that it knows, what it ignores.

Pipelines of diffusers often take a `**kwargs` and use two names of it, or know four output types and take any text.
What is not understood here is not restricted: then the pipeline itself has the last word.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from omni_core.pipeline_info import StrengthRule
from omni_core.worker.pipeline.function_source import (
    FunctionSource,
    callee,
    integer,
    is_stock,
    parameter_of,
    path_from_self,
    source_of,
    value_at,
)

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_STEPS, _STRENGTH = "num_inference_steps", "strength"


# --- names --------------------------------------------------------------------------------------------------------


def names_in_kwargs(pipeline: Any) -> list[str] | None:
    """Return the names that a pipeline takes by its `**kwargs`; None if that may be any."""
    function = type(pipeline).__call__
    blocks = getattr(pipeline, "blocks", None)
    is_modular = any(kind.__name__ == "ModularPipeline" for kind in type(pipeline).__mro__)
    if is_modular and blocks is not None and is_stock(function):
        names = [name for wanted in blocks.inputs for name in (wanted.name, wanted.kwargs_type) if name is not None]
        return [*dict.fromkeys(names)]
    return _kwargs_of(function, pipeline)


def _kwargs_of(function: Any, owner: Any) -> list[str] | None:
    keywords = next((p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD), None)
    if keywords is None:
        return []
    source = source_of(function)
    if source is None:
        return None
    names: list[str] = []
    for read in source.reads(keywords):
        found = _names_at(read, source, owner)
        if found is None:
            return None
        names += found
    return [*dict.fromkeys(names)]


def _names_at(read: ast.Name, source: FunctionSource, owner: Any) -> list[str] | None:
    """Return the names that one use of `kwargs` takes out of it; None if that cannot be told."""
    use = source.parent(read)
    if isinstance(use, ast.Attribute) and use.attr in ("pop", "get"):
        call = source.parent(use)
        name = call.args[0] if isinstance(call, ast.Call) and call.args else None
    elif isinstance(use, ast.Subscript):
        name = use.slice
    elif isinstance(use, ast.Compare) and isinstance(use.ops[0], (ast.In, ast.NotIn)):
        name = use.left
    elif isinstance(use, ast.keyword) and use.arg is None:
        return _names_handed_on(source.parent(use), owner)
    else:
        return None
    return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def _names_handed_on(call: ast.AST, owner: Any) -> list[str] | None:
    """Return the names that what is called with `**kwargs` takes, and that the call does not give already."""
    target = callee(call, owner) if isinstance(call, ast.Call) else None
    if target is None or source_of(target) is None:
        return None
    assert isinstance(call, ast.Call)
    more = _kwargs_of(target, getattr(target, "__self__", owner))
    if more is None:
        return None
    named = [p.name for p in inspect.signature(target).parameters.values() if p.kind in _NAMED]
    given = {keyword.arg for keyword in call.keywords} | set(named[: len(call.args)])
    return [name for name in [*named, *more] if name not in given]


def ignored_names(pipeline: Any) -> list[str]:
    """Return the arguments that the code of a pipeline has and never reads."""
    source = source_of(type(pipeline).__call__)
    if source is None:
        return []
    for read in source.reads("locals"):  # one variable of all, by its name, or a way to read them all
        if not isinstance(source.parent(source.parent(read)), ast.Subscript):
            return []
    arguments = source.tree.args
    read_names = source.names_read()
    return [one.arg for one in [*arguments.args[1:], *arguments.kwonlyargs] if one.arg not in read_names]


# --- values -------------------------------------------------------------------------------------------------------


def output_types(pipeline: Any) -> tuple[str, ...]:
    """Return the values that a pipeline knows for `output_type`; nothing if they are not known."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("output_type")
    if parameter is None:
        return ()
    found = _compared_with(type(pipeline).__call__, "output_type", pipeline, set())
    if found is None:
        return ()
    if isinstance(parameter.default, str):
        found.add(parameter.default)
    # What a pipeline does with any other value has no comparison: pictures stay arrays, sound stays tensors.
    if found & {"pil", "latent"}:
        found.add("np")
    if found & {"np", "latent"} and "pil" not in found:
        found.add("pt")
    return tuple(sorted(found))


def _compared_with(function: Any, parameter: str, owner: Any, seen: set[Any]) -> set[str] | None:
    """Return the texts that a parameter is compared with, there and where it is handed on; None if not known."""
    source = source_of(function)
    if source is None:
        return None
    if (source, parameter) in seen:
        return set()
    seen.add((source, parameter))
    found: set[str] = set()
    for read in source.reads(parameter):
        use = source.parent(read)
        if isinstance(use, ast.Compare):
            texts = [part.value for part in ast.walk(use) if isinstance(part, ast.Constant)]
            found.update(text for text in texts if isinstance(text, str))
            continue
        if isinstance(use, ast.FormattedValue):
            continue
        argument, call = (use, source.parent(use)) if isinstance(use, ast.keyword) else (read, use)
        target = callee(call, owner) if isinstance(call, ast.Call) else None
        if target is None:
            return None
        assert isinstance(call, ast.Call)
        name = parameter_of(argument, call, target)
        more = _compared_with(target, name, getattr(target, "__self__", owner), seen) if name is not None else None
        if more is None:
            return None
        found |= more
    return found


def size_multiple(pipeline: Any) -> int:
    """Return the number that height and width must be multiples of, 1 if that is not known."""
    source, checks = source_of(type(pipeline).__call__), source_of(getattr(pipeline, "check_inputs", None))
    if source is None or checks is None:
        return 1
    calls = source.calls("check_inputs")
    if not calls or not all(_reaches(side, calls[0], source) for side in _SIDES):
        return 1
    for side in checks.reads("height"):
        remainder = checks.parent(side)
        if not (isinstance(remainder, ast.BinOp) and isinstance(remainder.op, ast.Mod) and remainder.left is side):
            continue
        conditions = checks.conditions(side)
        raises = bool(conditions) and isinstance(conditions[0].body[0], ast.Raise)
        if raises and all(_is_about_size_alone(condition.test) for condition in conditions[1:]):
            return integer(remainder.right, pipeline) or 1
    return 1


def sides_go_together(pipeline: Any) -> bool:
    """Whether a pipeline that is given height or width alone replaces both."""
    source = source_of(type(pipeline).__call__)
    return source is not None and any(
        ast.unparse(condition.test) == _NEITHER_SIDE and {"height", "width"} <= _names_set(condition)
        for write in source.writes("height")
        for condition in source.conditions(write)
    )


_SIDES = ("height", "width")
_NEITHER_SIDE = "not height or not width"


def _names_set(condition: ast.If) -> set[str]:
    nodes = (node for statement in condition.body for node in ast.walk(statement))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _reaches(name: str, call: ast.Call, source: FunctionSource) -> bool:
    """Whether a call gets an argument as the user set it: before it, only what was not set is filled in."""
    if not any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(call)):
        return False
    for node in source.writes(name):
        if node.lineno >= call.lineno:
            continue
        value = getattr(source.statement(node), "value", None)
        is_default = (
            isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or) and ast.unparse(value.values[0]) == name
        )
        tests = [ast.unparse(condition.test) for condition in source.conditions(node)]
        fills_in = any((f"{name} is None" in test and " or " not in test) or test == _NEITHER_SIDE for test in tests)
        if not is_default and not fills_in:
            return False
    return True


def _is_about_size_alone(test: ast.AST) -> bool:
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    return names <= set(_SIDES)


def strength_rule(pipeline: Any) -> StrengthRule | None:
    """Return how many of its steps a pipeline takes at a given `strength`; None if it has none, or it is not known."""
    function = type(pipeline).__call__
    source = source_of(function)
    if source is None or not {_STEPS, _STRENGTH} <= set(inspect.signature(function).parameters):
        return None
    timesteps = source_of(getattr(pipeline, "get_timesteps", None))
    if timesteps is None:
        return _rule_of_a_part(source, pipeline)
    code = ast.unparse(timesteps.tree)
    if f"min(int({_STEPS} * {_STRENGTH}), {_STEPS})" in code:
        rounds_down = True
    elif f"min({_STEPS} * {_STRENGTH}, {_STEPS})" in code:
        rounds_down = False
    else:
        return None
    for call in source.calls("get_timesteps"):
        given = {part.id for part in ast.walk(call) if isinstance(part, ast.Name)}
        tests = [condition.test for condition in source.conditions(call)]
        unless = [
            test.operand.id
            for test in tests
            if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and isinstance(test.operand, ast.Name)
        ]
        if {_STEPS, _STRENGTH} <= given and len(unless) == len(tests):
            # Further arguments (denoising_start, timesteps of one's own) take the place of one of the two.
            others = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
            names = inspect.signature(function).parameters
            replaced = [name for name in [*unless, *others, "timesteps", "sigmas"] if name in names]
            return StrengthRule(rounds_down, tuple(name for name in replaced if name not in (_STEPS, _STRENGTH)))
    return None


def _rule_of_a_part(source: FunctionSource, pipeline: Any) -> StrengthRule | None:
    """Return the rule of a pipeline inside this one that gets both arguments as they are."""
    for call in source.all_calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if given.get(_STEPS) == _STEPS and given.get(_STRENGTH) == _STRENGTH:
            part = value_at(pipeline, path_from_self(call.func))
            return strength_rule(part) if callable(part) and not inspect.isroutine(part) else None
    return None
